// What every page has alive: the time zone told to the server, and what happens while the server is gone.

import "./pickers.js";

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (zone) document.cookie = `conversas-zone=${zone}; path=/; max-age=31536000; samesite=lax`;

if (!document.querySelector(".top nav")) sessionStorage.clear(); // nobody is signed in: what they looked at is theirs

const note = document.getElementById("gone");
let gone = false;
const CLOSING_MS = 1000; // whoever is to keep the stream of those unseen knows it long before

/** Say that the server is gone, and look for it until it is back; then `server-back` is told to the document. */
export function serverGone() {
  if (gone) return;
  gone = true;
  note.textContent = note.dataset.gone;
  note.classList.add("shown");
  look();
}

async function look() {
  while (gone) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    if (await reachable()) gone = false;
  }
  note.textContent = note.dataset.back;
  document.dispatchEvent(new Event("server-back"));
  setTimeout(() => gone || note.classList.remove("shown"), 3000);
}

/** Whether the server answers at all. */
async function reachable() {
  try {
    return (await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(3000) })).ok;
  } catch {
    return false;
  }
}

// A form is sent only to a server that is there: else what was typed would be lost.
document.addEventListener("submit", async (event) => {
  const { target: form, submitter } = event;
  if (event.defaultPrevented || form.method !== "post" || form.dataset.sure) return;
  event.preventDefault();
  if (!(await reachable())) return serverGone();
  form.dataset.sure = "yes";
  form.requestSubmit(submitter);
  delete form.dataset.sure;
});

// Fields that suggest what exists: it is asked for when one of them is first used.
const suggestions = {};

document.addEventListener("focusin", ({ target }) => suggest(target));
document.addEventListener("input", ({ target }) => target.dataset.several !== undefined && suggest(target));

async function suggest(field) {
  const list = field.list;
  if (!list?.dataset.suggest) return;
  suggestions.found ??= fetch("/v1/conversations/suggestions").then((answer) => (answer.ok ? answer.json() : {}));
  const found = (await suggestions.found.catch(() => ({})))[list.dataset.suggest] ?? [];
  // Where several are typed with commas between, what is before the last one stays.
  const before = field.dataset.several === undefined ? "" : (field.value.match(/^.*,\s*/)?.[0] ?? "");
  list.replaceChildren(...found.map((each) => new Option("", before + each)));
}

setInterval(async () => {
  if (!document.hidden && !gone && !(await reachable())) serverGone();
}, 10000);
addEventListener("offline", serverGone);

/**
 * A browser has six connections to a site, for all of its pages together, and each stream takes one. So a page that
 * nobody sees closes its own, but for one of them: who works elsewhere meanwhile is still there. `open` may be called
 * while it is open.
 */
export function streamWhileSeen(open, close) {
  let leaving = new AbortController();
  function look() {
    leaving.abort();
    if (!document.hidden) return open();
    const { signal } = (leaving = new AbortController());
    const closing = setTimeout(close, CLOSING_MS);
    const seen = new Promise((resolve) => signal.addEventListener("abort", () => resolve(clearTimeout(closing))));
    const stay = () => {
      clearTimeout(closing);
      open();
      return seen;
    };
    navigator.locks.request("stream", { signal }, stay).catch(() => {}); // seen before it was its turn
  }
  document.addEventListener("visibilitychange", look);
  look();
}
