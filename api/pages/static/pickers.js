// Dates and moments are picked; without this they are typed, and the server says what it cannot read.
// What is picked by half is no value to a browser, which would send nothing: it is told beside the field, and stays.

const words = document.getElementById("main").dataset.half;

/** Make the fields below `root` that can be picked pickers. */
export function pickers(root) {
  for (const each of root.querySelectorAll("input[data-picker]")) each.type = each.dataset.picker;
}

/** Say beside each field below `root` that nobody is at whether it is given by half. */
export function halves(root) {
  for (const each of root.querySelectorAll("input[data-picker]")) if (each !== document.activeElement) look(each);
}

function look(field) {
  const id = `half-${field.id}`;
  const said = document.getElementById(id);
  if (field.validity.badInput === Boolean(said)) return;
  if (said) {
    said.remove();
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  } else {
    const mistake = Object.assign(document.createElement("p"), { id, className: "mistake", textContent: words });
    field.parentElement.append(mistake);
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", id);
  }
}

for (const happens of ["focusout", "input"]) {
  document.addEventListener(happens, ({ target, type }) => {
    if (target.dataset.picker && (type === "focusout" || !target.validity.badInput)) look(target);
  });
}

// Before whatever else a form does when it is sent, unless it only takes another shape.
document.addEventListener("submit", (event) => {
  if (event.submitter?.formNoValidate) return;
  const bad = [...event.target.elements].filter((each) => each.validity?.badInput);
  if (!bad.length) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  bad.forEach(look);
  bad[0].closest("details")?.setAttribute("open", "");
  bad[0].focus();
}, true);

pickers(document);
