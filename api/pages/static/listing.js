// The listing alive: filters apply as they are set, rows change as conversations do, without moving what one looks at.

import { morph } from "./morph.js";
import { serverGone, streamWhileSeen } from "./site.js";

const PAUSE_MS = 300; // between two looks at the server, however much happens
const TYPING_MS = 200;
const MINUTE_MS = 60000; // waiting times go on without anything happening

const results = document.getElementById("results");
const bar = document.getElementById("bar");
let showing, refreshing; // requests under way: for another state, for the rows of the present one
let unsaid; // what could not be asked, because the server was gone
let stream, due, typing;
let at = location.search; // what is shown
let typed = false; // the address has been changed by typing: what follows is no further step back
let resting = true; // nobody sees it: no stream
document.documentElement.classList.add("scripted");

/** The page at `address`, as a document; null where the server is gone or another request has come after. */
async function ask(address, { signal }, headers = {}) {
  try {
    const answer = await fetch(address, { headers, signal });
    if (answer.redirected && new URL(answer.url).pathname === "/sign-in") return location.reload();
    if (answer.status === 503) throw new TypeError("not available");
    return [new DOMParser().parseFromString(await answer.text(), "text/html"), answer];
  } catch (error) {
    if (error.name === "AbortError") return null;
    serverGone();
    return undefined;
  }
}

/** Show the state at `address`; whatever else was asked for before no longer matters. */
async function show(address, how = "pushState") {
  showing?.abort();
  refreshing?.abort();
  typed = false;
  const mine = (showing = new AbortController());
  const asked = await ask(address, mine);
  if (showing !== mine) return;
  showing = undefined;
  if (asked === undefined) unsaid = [address, how];
  if (!asked) return;
  const [page, answer] = asked;
  if (!page.getElementById("results")) return location.assign(address);
  if (how) history[how](null, "", new URL(answer.url));
  at = location.search;
  for (const id of ["bar", "results", "menu-views", "menu-columns", "menu-export"]) {
    const [old, fresh] = [document.getElementById(id), page.getElementById(id)];
    if (old && fresh) morph(old, fresh);
  }
  if (!how) bar.elements.q.value = page.getElementById("q").value; // where one goes back, also from what is being typed
  follow();
  count();
  if (due) soon(0);
}

/** Load the rows of the present state anew, and keep what is looked at where it is. */
async function refresh() {
  due = Boolean(showing || refreshing || document.hidden);
  if (due) return;
  const mine = (refreshing = new AbortController());
  const asked = await ask(location.href, mine, { fragment: "results" });
  const fresh = !mine.signal.aborted && asked?.[0].getElementById("results");
  if (fresh) {
    const versions = new Map([...results.querySelectorAll("tbody tr")].map((row) => [row.id, row.dataset.version]));
    const anchor = lookedAt();
    const top = anchor?.getBoundingClientRect().top;
    morph(results, fresh);
    if (anchor?.isConnected) scrollBy(0, anchor.getBoundingClientRect().top - top);
    for (const row of results.querySelectorAll("tbody tr")) {
      if (versions.size && versions.get(row.id) !== row.dataset.version) flash(row);
    }
    count();
  }
  setTimeout(() => {
    refreshing = undefined;
    if (due) refresh();
  }, PAUSE_MS);
}

/** The row that must not move: the one with the focus or under the pointer, else the first in view once one scrolled. */
function lookedAt() {
  const row = document.activeElement?.closest?.("#rows tbody tr") ?? document.querySelector("#rows tbody tr:hover");
  if (row || scrollY === 0) return row;
  return [...results.querySelectorAll("tbody tr")].find((each) => each.getBoundingClientRect().top >= 0);
}

function flash(row) {
  row.classList.remove("changed");
  requestAnimationFrame(() => row.classList.add("changed"));
}

/** Follow what changes under the filter that is shown, to which one comes back from a conversation. */
function follow() {
  sessionStorage.setItem("listing", results.dataset.address);
  const address = results.dataset.stream;
  if (stream?.address === address && stream?.readyState !== EventSource.CLOSED) return;
  stream?.close();
  stream = undefined;
  if (!address || resting) return;
  stream = new EventSource(address);
  stream.address = address;
  stream.addEventListener("ready", ({ data }) => {
    // What happened after the rows were read and before it was open.
    if (!(JSON.parse(data).position <= Number(results.dataset.position))) soon(0);
  });
  stream.addEventListener("change", () => soon(0));
  stream.addEventListener("resync", () => {
    delete results.dataset.position; // all is to be read anew, whatever the position
    stream.close();
    setTimeout(follow, 1000);
  });
  stream.onerror = async () => {
    if (stream?.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    soon(1000);
    setTimeout(follow, 2000);
  };
}

function soon(ms) {
  clearTimeout(soon.timer);
  soon.timer = setTimeout(refresh, ms);
}

document.addEventListener("visibilitychange", () => due && soon(0));
document.addEventListener("server-back", () => {
  stream?.close();
  stream = undefined;
  follow();
  const again = unsaid;
  unsaid = undefined;
  if (again) show(...again);
  else soon(0);
});
setInterval(() => soon(0), MINUTE_MS);

// Filters

function address(form) {
  const given = [...new FormData(form)].filter(([, value]) => value !== "");
  return `/?${new URLSearchParams(given)}`;
}

bar.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  show(address(bar));
});
bar.addEventListener("change", (event) => event.target.type !== "search" && show(address(bar)));
bar.addEventListener("input", (event) => {
  if (event.target.type !== "search") return;
  clearTimeout(typing);
  typing = setTimeout(() => {
    show(address(bar), typed ? "replaceState" : "pushState");
    typed = true;
  }, TYPING_MS);
});
document.getElementById("columns").addEventListener("submit", (event) => {
  event.preventDefault();
  event.target.closest("details").open = false;
  show(address(event.target));
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("#results a, #menu-views a, #columns a");
  if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  if (new URL(link.href).pathname !== "/" || link.hasAttribute("download")) return;
  event.preventDefault();
  link.closest("details")?.removeAttribute("open");
  show(link.href);
});
// Where only the fragment is another, as by the link to the content, what is being typed stays.
addEventListener("popstate", () => (showing || location.search !== at) && show(location.href, null));

// Menus close as menus do.
document.addEventListener("pointerdown", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("keydown", (event) => {
  const menu = event.key === "Escape" && document.querySelector("details.menu[open]");
  if (!menu) return;
  menu.open = false;
  menu.querySelector("summary").focus();
});

// Selection

/** Say how many are selected, and offer what can be done with them. */
function count() {
  const form = document.getElementById("bulk");
  if (!form) return;
  const all = form.elements.all.checked;
  const boxes = [...results.querySelectorAll("td.select input")];
  const chosen = boxes.filter((box) => box.checked).length;
  const note = document.getElementById("selected");
  note.textContent = all ? "" : chosen === 1 ? note.dataset.one : note.dataset.many.replace("{n}", chosen);
  form.classList.toggle("shown", all || chosen > 0);
  const page = document.getElementById("select-page");
  page.checked = chosen > 0 && chosen === boxes.length;
  page.indeterminate = chosen > 0 && chosen < boxes.length;
  for (const box of boxes) box.closest("tr").classList.toggle("chosen", all || box.checked);
}

results.addEventListener("change", (event) => {
  if (event.target.id === "select-page") {
    for (const box of results.querySelectorAll("td.select input")) box.checked = event.target.checked;
  }
  count();
});
results.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.getAttribute("id") === "bulk" && !form.elements.all.checked && !results.querySelector("td.select input:checked")) {
    event.preventDefault();
  }
});

streamWhileSeen(
  () => {
    resting = false;
    follow();
  },
  () => {
    resting = true;
    stream?.close();
    stream = undefined;
  },
);
count();
