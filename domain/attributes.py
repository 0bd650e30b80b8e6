"""Definitions of custom attributes of contacts and conversations: what values they take.

Invariant: a value that is set fits the definition that stands at that moment; what nobody has defined takes any value.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import assert_never
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from domain.commands import DefineAttribute, RetireAttribute, attribute_id
from domain.errors import AttributeNotFoundError, AttributeOfWrongTypeError, InvalidCommandError
from domain.events import (
    AttributeDefined,
    AttributeRetired,
    AttributeTarget,
    AttributeType,
    AttributeValue,
    Event,
    Url,
)

_URL: TypeAdapter[Url] = TypeAdapter(Url)
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_EXPECTED = {
    AttributeType.TEXT: "a text",
    AttributeType.NUMBER: "a number",
    AttributeType.LINK: "an address that begins with http:// or https://",
    AttributeType.LIST: "one of its options, or a list of some of them",
    AttributeType.DATE: "a date such as 2026-11-22",
    AttributeType.CHECKBOX: "true or false",
}


@dataclass(frozen=True, slots=True)
class Attribute:
    """A definition."""

    target: AttributeTarget
    key: str
    type: AttributeType
    label: str
    options: tuple[str, ...]
    retired: bool = False


def decide(command: DefineAttribute | RetireAttribute, state: Attribute | None) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    match command:
        case DefineAttribute():
            if (command.type is AttributeType.LIST) != bool(command.options):
                raise InvalidCommandError("A list needs options to choose from; nothing else has them.")
            if len(set(command.options)) != len(command.options):
                raise InvalidCommandError("An option stands there twice.")
            defined = AttributeDefined(**dict(command))
            return [] if state == evolve(None, defined) else [defined]
        case RetireAttribute():
            if state is None:
                raise AttributeNotFoundError
            return [] if state.retired else [AttributeRetired()]
        case _:
            assert_never(command)


def evolve(state: Attribute | None, event: AttributeDefined | AttributeRetired) -> Attribute:
    """The definition after ``event``."""
    match event:
        case AttributeDefined():
            return Attribute(
                target=event.target, key=event.key, type=event.type, label=event.label, options=event.options
            )
        case AttributeRetired():
            assert state is not None, "the log holds an event before the one that creates its stream"
            return replace(state, retired=True)
        case _:
            assert_never(event)


def check(
    definitions: Mapping[UUID, Attribute],
    target: AttributeTarget,
    before: Mapping[str, AttributeValue],
    after: Mapping[str, AttributeValue],
) -> None:
    """Refuse a value in ``after`` that is new and does not fit its definition.

    What stood there before may stay: it was right when it was set. Raises `AttributeOfWrongTypeError`.
    """
    for key, value in after.items():
        definition = definitions.get(attribute_id(target, key))
        if definition is None or definition.retired or fits(definition, value):
            continue
        if key in before and (before[key], type(before[key])) == (value, type(value)):
            continue
        raise AttributeOfWrongTypeError(f"The attribute '{key}' takes {_EXPECTED[definition.type]}.")


def fits(definition: Attribute, value: AttributeValue) -> bool:
    """Whether ``value`` is of the definition's type; nothing fits every type."""
    if value is None:
        return True
    match definition.type:
        case AttributeType.TEXT:
            return isinstance(value, str)
        case AttributeType.NUMBER:
            return isinstance(value, int | float) and not isinstance(value, bool)
        case AttributeType.LINK:
            return isinstance(value, str) and _is_link(value)
        case AttributeType.LIST:
            chosen = value if isinstance(value, list) else [value]
            return all(option in definition.options for option in chosen) and len(set(chosen)) == len(chosen)
        case AttributeType.DATE:
            return isinstance(value, str) and _is_date(value)
        case AttributeType.CHECKBOX:
            return isinstance(value, bool)
        case _:
            assert_never(definition.type)


def _is_link(text: str) -> bool:
    try:
        _URL.validate_python(text)
    except ValidationError:
        return False
    return text.lower().startswith(("http://", "https://"))


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
