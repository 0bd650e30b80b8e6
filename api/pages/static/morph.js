// Bringing what is shown up to what the server has rendered anew, element by element, so that nothing else moves.
// What somebody is doing stays: focus, what they typed or ticked, which menus are open.

import { halves, pickers } from "./pickers.js";

/** Make `old` like `fresh`; both are elements of the same kind. Children with an id are the same wherever they stand. */
export function morph(old, fresh) {
  const active = document.activeElement;
  pickers(fresh);
  change(old, fresh);
  halves(old);
  if (active && active !== document.activeElement && active.isConnected) active.focus({ preventScroll: true });
}

function change(old, fresh) {
  const [value, ticked] = [old.getAttribute("value"), old.hasAttribute("checked")];
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !isTheirs(old, name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !isTheirs(old, name)) old.setAttribute(name, value);
  }
  children(old, fresh);
  // What somebody typed or ticked stays, unless the server has something else to say than it had before.
  if (old instanceof HTMLInputElement && old !== document.activeElement) {
    if (value !== fresh.getAttribute("value")) old.value = fresh.getAttribute("value") ?? "";
    if (ticked !== fresh.hasAttribute("checked")) old.checked = fresh.hasAttribute("checked");
  }
  if (old instanceof HTMLSelectElement && [...fresh.options].some((each) => each.defaultSelected)) {
    [...old.options].forEach((each, index) => (each.selected = fresh.options[index].selected));
  }
}

function isTheirs(element, name) {
  return name === "open" && element instanceof HTMLDetailsElement;
}

function children(old, fresh) {
  const kept = new Map([...old.children].filter(key).map((each) => [key(each), each]));
  const wanted = new Set([...fresh.children].map(key).filter(Boolean));
  let next = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    // Those that are gone are passed over, so that those that stay do not move.
    while (next && key(next) && !wanted.has(key(next))) {
      const leaving = next;
      next = next.nextSibling;
      leaving.remove();
    }
    const same = key(child) ? kept.get(key(child)) : isLike(next, child) ? next : null;
    if (!same || same.nodeName !== child.nodeName) {
      old.insertBefore(document.importNode(child, true), next);
      continue;
    }
    if (same === next) next = next.nextSibling;
    else if (old.moveBefore) old.moveBefore(same, next);
    else old.insertBefore(same, next);
    if (same.nodeType === Node.ELEMENT_NODE) change(same, child);
    else if (same.data !== child.data) same.data = child.data;
  }
  while (next) {
    const leaving = next;
    next = next.nextSibling;
    leaving.remove();
  }
}

function isLike(old, child) {
  return old && !key(old) && old.nodeName === child.nodeName;
}

/** The id as written: a form with a field called id has that field as its property. */
function key(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.getAttribute("id") : null;
}
