"""What is in the log is in it for ever: one stored sample of every topic ever shipped still reads and writes the same.

Invariant: a line of `golden_events.json` is never edited or removed; a new topic adds one. Each is the topic and the
very bytes that were stored.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from domain.events import (
    EVENTS,
    ActorKind,
    AttributeTarget,
    AttributeType,
    Event,
    FinalizationCause,
    MessageKind,
    Presence,
    Priority,
    Surface,
)
from domain.permissions import Permission, Scope

FILE = Path(__file__).with_name("golden_events.json")
STORED_FOR_EVER = (
    "is stored for ever and may not change. Leave '{topic}' as it is, add a new class with the next version in its "
    "TOPIC and an upcaster that carries the old one forward, and add a sample of the new one to golden_events.json."
)
WORDS: dict[type[StrEnum], str] = {
    ActorKind: "agent bot contact system integration",
    AttributeTarget: "contact conversation",
    AttributeType: "text number link list date checkbox",
    FinalizationCause: "bot inactivity automation contact import",
    MessageKind: "text image audio video document location contact_card template other",
    Permission: "view reply assume transfer finalize-from-inbox finalize-from-listing reopen label export view-contact "
    "edit-contact erase-contact read-history verify-history manage-directory manage-tokens",
    Presence: "online away offline",
    Priority: "low normal high urgent",
    Scope: "own sector all",
    Surface: "inbox listing bulk bot channel automation api import",
}
"""Every word that an event or its envelope may have been stored with."""


def samples() -> dict[str, str]:
    """Topic to the bytes that were stored, as text; a topic that stands there twice is an error."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(pairs) == len(dict(pairs)), "a topic has two samples"
        return dict(pairs)

    golden: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"), object_pairs_hook=once)
    return golden


GOLDEN = samples()


@pytest.mark.parametrize("topic", GOLDEN)
def test_a_stored_event_still_reads_and_writes_the_same_bytes(topic: str) -> None:
    never = STORED_FOR_EVER.format(topic=topic)
    assert topic in EVENTS, f"The topic was removed or renamed, but it {never}"
    try:
        event = EVENTS[topic].model_validate_json(GOLDEN[topic])
    except ValidationError as refused:
        pytest.fail(f"A stored event cannot be read any more. Its shape {never}\n{refused}")
    assert event.model_dump_json() == GOLDEN[topic], f"A stored event is written differently now. Its shape {never}"


@pytest.mark.parametrize("topic", EVENTS)
def test_every_topic_has_a_sample(topic: str) -> None:
    event_class = EVENTS[topic]
    assert topic in GOLDEN, f"Add a sample of {event_class.__name__} ('{topic}') to {FILE.name} before it ships."


def unset(value: Any, path: str = "") -> list[str]:
    """The fields below ``value`` in which a sample says nothing, so that a change of them would go unseen."""
    if isinstance(value, Event | BaseModel):
        parts = {f"{path}.{name}": getattr(value, name) for name in type(value).model_fields}
        missing = [f"{path}.{name}" for name in set(type(value).model_fields) - value.model_fields_set]
        return missing + [place for where, part in parts.items() for place in unset(part, where)]
    return [path] if value is None or value in ((), {}, []) else []


@pytest.mark.parametrize("topic", GOLDEN)
def test_a_sample_fills_every_field(topic: str) -> None:
    # An owner is never a bot and an agent at once: the two of a transfer fill all three between them.
    never_at_once = {".source.agent_id", ".target.bot"}
    assert set(unset(EVENTS[topic].model_validate_json(GOLDEN[topic]))) <= never_at_once


@pytest.mark.parametrize("kind", WORDS, ids=lambda kind: kind.__name__)
def test_no_word_that_was_ever_stored_is_forgotten(kind: type[StrEnum]) -> None:
    forgotten = set(WORDS[kind].split()) - {word.value for word in kind}
    assert not forgotten, f"{kind.__name__} {sorted(forgotten)} stands in stored events and must stay readable"
    new = {word.value for word in kind} - set(WORDS[kind].split())
    assert not new, f"Add {sorted(new)} to WORDS here: from its first event on it is stored for ever"
