// A conversation that goes on while somebody looks: what the stream tells is rendered by the server and put in place.

import { morph } from "./morph.js";
import { serverGone, streamWhileSeen } from "./site.js";
import "./dialogs.js";

const live = document.getElementById("live");
const here = live.dataset.address; // not the page's own, where a form was sent that is shown again
let wanted = Number(live.dataset.version);
let loading = false;
let held = false;
let source;
let resting = true; // nobody sees it: no stream

const log = document.getElementById("log"); // its style sheet lets it begin, and stay, at its end

if (new URLSearchParams(location.search).has("at_least")) history.replaceState(null, "", location.pathname);

// Back to the listing as it was left, in this tab

document.addEventListener("click", ({ target }) => {
  const back = target.closest("a[data-back]");
  if (back) back.href = sessionStorage.getItem("listing") ?? "/";
});

// The slider

const slider = document.getElementById("version");
slider?.addEventListener("input", () => (document.getElementById("version-shown").value = slider.value));
slider?.addEventListener("change", () => slider.form.requestSubmit());
slider?.form.querySelector("button").remove();

// Live

if (live.dataset.stream) {
  streamWhileSeen(
    () => {
      resting = false;
      if (!source || source.readyState === EventSource.CLOSED) follow();
    },
    () => {
      resting = true;
      source?.close();
    },
  );
}

function follow() {
  source?.close();
  if (resting) return;
  source = new EventSource(`${live.dataset.stream}?after=${live.dataset.version}`);
  const sign = document.querySelector(".live");
  source.addEventListener("ready", () => (sign.hidden = false));
  for (const name of ["message", "event"]) source.addEventListener(name, (told) => load(Number(told.lastEventId)));
  source.addEventListener("leave", () => location.assign(here));
  source.addEventListener("resync", () => {
    source.close();
    sign.hidden = true;
    setTimeout(again, 1000);
  });
  source.onerror = () => {
    sign.hidden = true;
    if (source.readyState === EventSource.CLOSED) serverGone();
  };
}

/** Begin anew without losing what somebody is typing. */
async function again() {
  if (!live.dataset.stream) return;
  await load(wanted);
  follow();
}

document.addEventListener("server-back", again);
document.addEventListener("focusout", () => held && setTimeout(() => load(wanted), 50));

/** Show the conversation from `version` on; the listing may be a little behind the stream. */
async function load(version) {
  wanted = Math.max(wanted, version);
  if (loading) return;
  loading = true;
  let pause = 100;
  try {
    do {
      const answer = await fetch(here, { headers: { Fragment: "live" } });
      if (!answer.ok || answer.redirected) return location.assign(here);
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
      show(fresh);
      if (Number(fresh.dataset.version) >= wanted) break;
      await new Promise((resolve) => setTimeout(resolve, pause));
      pause = Math.min(pause * 2, 3000);
    } while (true);
  } catch {
    serverGone();
  } finally {
    loading = false;
  }
}

/** Put what has changed in place, but nothing that somebody is about to use. */
function show(fresh) {
  held = false;
  const read = log.scrollTop < -40 && [...log.querySelectorAll("article")].find((each) => placeOf(each) >= placeOf(log));
  const place = read && placeOf(read);
  // What is seen changes with the page, also where a form is left alone because somebody is about to use it.
  for (const each of live.querySelectorAll("input[type=hidden][name=version]")) each.setAttribute("value", fresh.dataset.version);
  for (const part of fresh.querySelectorAll("[data-live]")) {
    const old = document.getElementById(part.id);
    if (!old || old.innerHTML === part.innerHTML) continue;
    if (old.querySelector(":focus")) held = true;
    else morph(old, part);
  }
  if (slider && fresh.dataset.version !== slider.max) {
    const last = slider.value === slider.max;
    slider.max = fresh.dataset.version;
    if (last) slider.value = slider.max;
    document.getElementById("version-shown").value = slider.value;
  }
  live.dataset.version = fresh.dataset.version;
  if (read?.isConnected) log.scrollTop += placeOf(read) - place;
}

function placeOf(element) {
  return element.getBoundingClientRect().top;
}
