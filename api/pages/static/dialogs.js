// Links that open a page's form above the page that one is on; without this they are links to it.

import { serverGone } from "./site.js";

document.addEventListener("click", async (event) => {
  const link = event.target.closest("a[data-dialog]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    try {
      await open(link.href);
    } catch {
      serverGone();
    }
  }
  const close = event.target.closest("dialog [data-close]");
  if (close) {
    event.preventDefault();
    close.closest("dialog").close();
  }
});

async function open(address) {
  const answer = await fetch(address);
  if (!answer.ok || answer.redirected) return location.assign(address);
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-labelledby", "sheet-title");
  dialog.append(...[...page.querySelector("main").children].map((each) => document.importNode(each, true)));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  const finding = dialog.querySelector("form[data-filters]");
  finding?.addEventListener("submit", (event) => event.preventDefault());
  finding?.addEventListener("input", () => narrow(dialog, finding.elements.q.value));
  (finding?.elements.q ?? dialog.querySelector("input:not([type=hidden])"))?.focus();
}

const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

/** Show the choices that are called so; a sector with all of its agents. */
function narrow(dialog, text) {
  const words = plain(text).split(/\s+/).filter(Boolean);
  const fits = (each) => words.every((word) => ` ${plain(each.dataset.name)}`.includes(` ${word}`));
  for (const group of dialog.querySelectorAll(".choices")) {
    const sector = group.querySelector(".sector");
    const agents = [...group.querySelectorAll(".choice:not(.sector)")];
    const all = sector !== null && fits(sector);
    for (const each of agents) each.hidden = !all && !fits(each);
    group.hidden = !all && agents.every((each) => each.hidden);
  }
}
