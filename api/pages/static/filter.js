// The builder of conditions alive: the form takes the shape of what is chosen in it, and tells how many fit.

import { morph } from "./morph.js";
import { serverGone } from "./site.js";

const form = document.getElementById("builder");
let asking, typing;
document.documentElement.classList.add("scripted");

/** Bring the form up to what the server makes of it after `action`. */
async function update(action) {
  asking?.abort();
  const mine = (asking = new AbortController());
  const given = new URLSearchParams(new FormData(form));
  given.append("do", action);
  try {
    const answer = await fetch(`/filter?${given}`, { signal: mine.signal });
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("builder");
    if (!fresh) return;
    const before = new Set([...form.querySelectorAll(".condition")].map((each) => each.id));
    morph(form, fresh);
    const added = [...form.querySelectorAll(".condition")].find((each) => !before.has(each.id));
    if (added && !action.startsWith("update")) added.querySelector("select").focus();
  } catch (error) {
    if (error.name !== "AbortError") serverGone();
  }
}

form.addEventListener("submit", (event) => {
  const action = event.submitter?.value ?? "apply";
  if (action === "apply") return;
  event.preventDefault();
  update(action);
});
form.addEventListener("change", () => update("update"));
form.addEventListener("input", (event) => {
  if (event.target.tagName !== "INPUT") return;
  clearTimeout(typing);
  typing = setTimeout(() => update("update"), 400);
});
