"""Forms as they stand in a page: their fields, what is in them, and what is said beside them.

Invariant: what is read here is what a browser would send, and what a screen reader would say of a field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"input", "meta", "link", "img", "br", "hr", "source"}


@dataclass
class Control:
    """A field."""

    name: str
    kind: str
    value: str
    is_on: bool
    """Whether it is sent: ticked or chosen, where it can be."""
    described_by: list[str]
    is_invalid: bool


@dataclass
class Form:
    """A form, its fields in their order."""

    action: str
    method: str
    controls: list[Control] = field(default_factory=list)

    def sent(self) -> list[tuple[str, str]]:
        """What is sent as it stands."""
        return [(each.name, each.value) for each in self.controls if each.is_on]

    def named(self, name: str) -> list[Control]:
        return [each for each in self.controls if each.name == name]

    def values(self, name: str) -> list[str]:
        return [each.value for each in self.named(name) if each.is_on]

    def names(self) -> set[str]:
        """Of the fields that somebody sees."""
        return {each.name for each in self.controls if each.kind != "hidden"}

    def filled(self, typed: dict[str, str | list[str]]) -> list[tuple[str, str]]:
        """What is sent once ``typed`` is filled in."""
        kept = [(name, value) for name, value in self.sent() if name not in typed]
        return kept + [
            (name, each) for name, value in typed.items() for each in ([value] if isinstance(value, str) else value)
        ]


class PageOfForms(HTMLParser):
    """A page, read."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.texts: dict[str, str] = {}
        """Of elements with an id."""
        self.alerts: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []
        self._form: Form | None = None
        self._select: Control | None = None
        self._area: Control | None = None
        self._takes_several = False
        self.feed(text)

    def form(self, action: str) -> Form:
        """The form that is sent to ``action``."""
        return next(each for each in self.forms if each.action == action)

    def handle_starttag(self, tag: str, found: list[tuple[str, str | None]]) -> None:
        attributes = dict(found)
        if tag not in VOID:
            self._open.append((tag, attributes))
        if attributes.get("id"):
            self.texts[str(attributes["id"])] = ""
        if attributes.get("role") == "alert":
            self.alerts.append("")
        if tag == "form":
            self._form = Form(attributes.get("action") or "", (attributes.get("method") or "get").lower())
            self.forms.append(self._form)
        elif self._form is not None and tag in {"input", "textarea", "select"} and attributes.get("name"):
            self._add(self._form, tag, attributes)
        elif self._form is not None and tag == "option" and self._select is not None:
            value, is_on = attributes.get("value") or "", "selected" in attributes
            self._form.controls.append(
                Control(self._select.name, "select", value, is_on, self._select.described_by, self._select.is_invalid)
            )

    def _add(self, form: Form, tag: str, attributes: dict[str, str | None]) -> None:
        kind = (attributes.get("type") or "text") if tag == "input" else tag
        around = next((each for tag_, each in reversed(self._open) if tag_ == "fieldset"), {})
        described = f"{attributes.get('aria-describedby') or ''} {around.get('aria-describedby') or ''}".split()
        is_on = "checked" in attributes if kind in {"checkbox", "radio"} else True
        value = attributes.get("value") or ("on" if kind == "checkbox" else "")
        invalid = attributes.get("aria-invalid") == "true"
        control = Control(str(attributes["name"]), kind, value, is_on, described, invalid)
        if tag == "select":
            self._select, self._takes_several = control, "multiple" in attributes
        else:
            form.controls.append(control)
            self._area = control if tag == "textarea" else None

    def handle_endtag(self, tag: str) -> None:
        while self._open:
            closed, _ = self._open.pop()
            if closed == tag:
                break
        if tag == "form":
            self._form = None
        elif tag == "select":
            self._end_select()
        elif tag == "textarea":
            self._area = None

    def _end_select(self) -> None:
        """What a browser sends of a list of which nothing was chosen: its first choice."""
        if self._form is not None and self._select is not None:
            options = self._form.named(self._select.name)
            if options and not any(each.is_on for each in options) and not self._takes_several:
                options[0].is_on = True
        self._select = None

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self._area.value += data
        for _, attributes in self._open:
            if attributes.get("id"):
                self.texts[str(attributes["id"])] += data
        if any(attributes.get("role") == "alert" for _, attributes in self._open):
            self.alerts[-1] += data
