"""Nested conditions as a form, and back: what is typed becomes a filter of the API's grammar, or is told what is wrong.

A form's fields are named by their place: `0` is the outermost group, `0.2` its third part, `0.2.field` what that part
compares. So the whole form is in the address, and works without a script.

Invariant: a filter that was made into a form and back is the same filter to the API; nothing typed is lost.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import QueryParams

from api.pages.filter_fields import DAYS, SEVERAL, input_of, operators_of
from api.pages.formats import Formats
from api.pages.texts import N_
from projections.filters import ATTRIBUTES, FILTER, MOST_CONDITIONS, MOST_LEVELS, Operator

JOINS = {"and": N_("all of these hold"), "or": N_("at least one holds"), "nor": N_("none of these holds")}
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,14})([.,][0-9]{1,15})?")
_PLACE = re.compile(r"0(\.[0-9]{1,3}){0,8}")
_SECONDS = 60
_LIKE = {Operator.CONTAINS, Operator.NOT_CONTAINS, Operator.STARTS_WITH}
WORDS = {"true": True, "false": False}
MISTAKES = {
    "value": N_("Fill in a value."),
    "moment": N_("A date and a time, such as 2026-12-31 14:30."),
    "number": N_("A number, please."),
    "days": N_("A whole number of days, please."),
    "key": N_("The attribute's key: lower-case letters, digits, '-', '_' and '.'."),
    "id": N_("This is no id."),
    "other": N_("This value does not fit here."),
    "deep": N_("Conditions nest up to 8 levels deep."),
    "many": N_("Up to 50 conditions are possible."),
}


@dataclass
class Part:
    """A condition as typed, or a group of parts."""

    place: str
    join: str = ""
    """Of a group: how its parts hold together; of a condition: empty."""
    parts: list["Part"] = field(default_factory=list)
    name: str = "status"
    key: str = ""
    operator: str = "is"
    values: list[str] = field(default_factory=list)
    mistake: str = ""

    @property
    def typed(self) -> str:
        """With what the value is typed."""
        return input_of(self.name, self.operator)

    @property
    def operators(self) -> dict[str, str]:
        """What its field can be compared by."""
        return operators_of(self.name)

    @property
    def is_between(self) -> bool:
        """Whether it takes two values."""
        return self.operator == Operator.BETWEEN

    def all(self) -> Iterator["Part"]:
        """This part and all below."""
        yield self
        for part in self.parts:
            yield from part.all()


# From the address


def form_of(given: QueryParams) -> Part:
    """What the form holds; an empty group where there is none."""
    places = {match[0] for name in given if (match := _PLACE.match(name))}
    return _part(given, "0", places) or Part("0", "and")


def _part(given: QueryParams, place: str, places: set[str]) -> Part | None:
    join = given.get(f"{place}.join", "")
    if join in JOINS:
        below = sorted(
            (each for each in places if _is_below(each, place)), key=lambda each: int(each.rsplit(".", 1)[1])
        )
        parts = [_part(given, each, places) for each in below]
        return Part(place, join, [part for part in parts if part is not None])
    name = given.get(f"{place}.field")
    if name is None:
        return None
    part = Part(place, name=name, key=given.get(f"{place}.key", ""), operator=given.get(f"{place}.operator", ""))
    part.values = given.getlist(f"{place}.value")
    if part.operator not in part.operators:
        part.operator = next(iter(part.operators))
    return part


def _is_below(place: str, above: str) -> bool:
    return place.startswith(f"{above}.") and place.count(".") == above.count(".") + 1


def act(root: Part, action: str) -> None:
    """Do what a button says: `add:PLACE`, `group:PLACE` or `remove:PLACE`."""
    what, _, place = action.partition(":")
    target = next((part for part in root.all() if part.place == place), None)
    if target is None:
        return
    next_place = max((int(part.place.rsplit(".", 1)[1]) for part in target.parts), default=-1) + 1
    if what == "add" and target.join:
        target.parts.append(Part(f"{place}.{next_place}"))
    elif what == "group" and target.join:
        inner = f"{place}.{next_place}"
        target.parts.append(Part(inner, "or" if target.join == "and" else "and", [Part(f"{inner}.0")]))
    elif what == "remove":
        for part in root.all():
            part.parts = [each for each in part.parts if each is not target]


# To a filter


def filter_of_form(root: Part, formats: Formats) -> Any | None:
    """The filter in JSON's terms; None where something is wrong, which its parts then tell."""
    if sum(not part.join for part in root.all()) > MOST_CONDITIONS:
        root.mistake = MISTAKES["many"]
        return None
    found = _json(root, formats)
    if any(part.mistake for part in root.all()):
        return None
    try:
        FILTER.validate_python(found)
    except ValidationError:
        root.mistake = MISTAKES["deep"]
        return None
    return found


def _json(part: Part, formats: Formats) -> dict[str, Any]:
    if not part.join:
        return _condition(part, formats)
    below = [_json(each, formats) for each in part.parts]
    if part.join == "nor":
        return {"not": below[0] if len(below) == 1 else {"or": below}}
    return {part.join: below}


def _condition(part: Part, formats: Formats) -> dict[str, Any]:
    name = part.name + part.key.strip() if part.name in ATTRIBUTES else part.name
    found: dict[str, Any] = {"field": name, "operator": part.operator}
    try:
        if part.typed != "none":
            found["value"] = _value(part, formats)
        FILTER.validate_python(found)
    except _WrongError as wrong:
        part.mistake = MISTAKES[wrong.args[0]]
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        part.mistake = MISTAKES["key" if "field" in place else "id" if "UUID" in str(error) else "other"]
    return found


class _WrongError(Exception):
    pass


def _value(part: Part, formats: Formats) -> Any:
    texts = part.values
    if part.typed in {"texts", "numbers"}:
        texts = [each for text in texts for each in text.splitlines()]
    texts = [text for text in texts if text.strip()]
    if len(texts) < (2 if part.is_between else 1):
        raise _WrongError("value")
    values = [_one(part, text, formats) for text in texts]
    if part.operator in SEVERAL:
        return values
    return values[:2] if part.is_between else values[0]


def _one(part: Part, text: str, formats: Formats) -> Any:
    if part.operator in DAYS:
        text = text.strip()
        if not text.isdecimal() or len(text) > 6:
            raise _WrongError("days")
        return int(text)
    match part.typed:
        case "moment":
            at = formats.typed(text)
            if at is None:
                raise _WrongError("moment")
            return at.isoformat()
        case "number" | "numbers" | "minutes":
            number = _number(text)
            is_duration = part.name.endswith("_seconds")
            return number * _SECONDS if is_duration else number
        case "flag":
            return text == "true"
        case _ if part.name in ATTRIBUTES:
            return _of_attribute(part, text)
        case _:
            return text


def _of_attribute(part: Part, text: str) -> Any:
    """A number, true or false where it reads like one: attributes are compared by the type of the value."""
    if part.operator in _LIKE:
        return text
    if text in WORDS:
        return WORDS[text]
    if part.operator in {Operator.GREATER, Operator.LESS} or NUMBER.fullmatch(text):
        return _number(text)
    return text[1:-1] if _is_quoted(text) else text


def _is_quoted(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def _number(text: str) -> int | float:
    text = text.strip()
    if not NUMBER.fullmatch(text):
        raise _WrongError("number")
    number = float(text.replace(",", "."))
    return int(number) if number.is_integer() else number


# From a filter


def form_of_filter(filter_: Mapping[str, Any], formats: Formats, place: str = "0") -> Part:
    """The form that makes ``filter_``, which is valid; the outermost part is a group."""
    if place == "0" and not {"and", "or", "not"} & filter_.keys():
        filter_ = {"and": [filter_]}
    if "not" in filter_:
        inner = filter_["not"]
        below = inner.get("or", [inner])
        return Part(place, "nor", [form_of_filter(each, formats, f"{place}.{n}") for n, each in enumerate(below)])
    for join in ("and", "or"):
        if join in filter_:
            below = filter_[join]
            return Part(place, join, [form_of_filter(each, formats, f"{place}.{n}") for n, each in enumerate(below)])
    return _typed_condition(filter_, formats, place)


def _typed_condition(condition: Mapping[str, Any], formats: Formats, place: str) -> Part:
    name, operator, value = condition["field"], condition["operator"], condition.get("value")
    base = next((prefix for prefix in ATTRIBUTES if name.startswith(prefix)), name)
    part = Part(place, name=base, key=name.removeprefix(base) if base != name else "", operator=operator)
    values = [] if value is None else value if isinstance(value, list) else [value]
    part.values = [_text(part, each, formats) for each in values]
    if part.typed in {"texts", "numbers"}:
        part.values = ["\n".join(part.values)]
    return part


def _text(part: Part, value: Any, formats: Formats) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if part.typed == "moment":
        return formats.local(value)
    if part.name.endswith("_seconds") and part.operator not in DAYS:
        return f"{value / _SECONDS:.15g}"
    if isinstance(value, float):
        return f"{value:.15g}"
    text = str(value)
    if part.name not in ATTRIBUTES or not isinstance(value, str) or part.operator in _LIKE:
        return text
    return f'"{text}"' if text in WORDS or NUMBER.fullmatch(text) or _is_quoted(text) else text


assert MOST_LEVELS == 8
