"""What must be true of the domain's classes as a whole, whoever adds one.

Invariant: names that are stored or sent are unique, written out, and independent of where a class lives.
"""

import ast
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from itertools import chain
from pathlib import Path
from typing import TypeVar

import pytest

from domain import commands, errors, events
from domain.commands import Command
from domain.decider import DECIDERS
from domain.envelope import StreamType
from domain.errors import DomainError
from domain.events import EVENTS, Event
from domain.permissions import Permission

Class = TypeVar("Class")

ROOT = Path(__file__).parents[2]
KEBAB = r"[a-z]+(-[a-z]+)*"


def below(kind: type[Class]) -> Iterator[type[Class]]:
    """All subclasses, however deep."""
    for sub in kind.__subclasses__():
        yield sub
        yield from below(sub)


EVENT_CLASSES = list(below(Event))
COMMANDS = [kind for kind in below(Command) if not kind.__subclasses__() and kind.__module__ == commands.__name__]
ERRORS = list(below(DomainError))


def repeated(names: Iterator[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def test_every_topic_is_unique_and_in_the_registry() -> None:
    assert repeated(event.TOPIC for event in EVENT_CLASSES) == []
    assert {event.TOPIC: event for event in EVENT_CLASSES} == EVENTS


def written_topics() -> dict[str, str]:
    """The topics that stand in the source as string literals, by the name of their class."""
    topics: dict[str, str] = {}
    classes = (node for node in ast.parse(inspect.getsource(events)).body if isinstance(node, ast.ClassDef))
    for node in classes:
        for line in node.body:
            match line:
                case ast.Assign(targets=[ast.Name(id="TOPIC")], value=ast.Constant(value=str(topic))):
                    topics[node.name] = topic
    return topics


@pytest.mark.parametrize("event", EVENT_CLASSES, ids=lambda event: event.__name__)
def test_a_topic_is_a_literal_in_kebab_case_with_a_version_and_not_made_from_where_the_class_lives(
    event: type[Event],
) -> None:
    assert written_topics()[event.__name__] == event.TOPIC
    assert re.fullmatch(rf"{KEBAB}\.v[1-9][0-9]*", event.TOPIC)


@pytest.mark.parametrize("event", EVENT_CLASSES, ids=lambda event: event.__name__)
def test_an_event_is_a_frozen_fact_that_knows_no_unknown_fields(event: type[Event]) -> None:
    assert event.model_config.get("frozen") is True
    assert event.model_config.get("extra") == "forbid"
    assert event.__doc__, "a sentence that says what happened"


@pytest.mark.parametrize("event", EVENT_CLASSES, ids=lambda event: event.__name__)
def test_a_fact_holds_nothing_of_the_envelope(event: type[Event]) -> None:
    envelope = {"workspace_id", "stream_id", "version", "position", "recorded_at", "occurred_at", "surface"}
    envelope |= {"request_id", "correlation_id", "causation_id", "schema_version"}
    assert set(event.model_fields) & envelope == set()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_command_names_its_permission_and_its_stream(command: type[Command]) -> None:
    assert isinstance(command.PERMISSION, Permission)
    assert isinstance(command.STREAM, StreamType)
    assert command.__doc__, "a sentence that says what is asked for"


def test_every_stream_type_has_a_decider() -> None:
    assert set(DECIDERS) == set(StreamType)
    assert {command.STREAM for command in COMMANDS} == set(StreamType)


def test_every_error_code_is_unique() -> None:
    assert repeated(error.code for error in ERRORS) == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_has_a_code_of_its_own_in_kebab_case_and_says_what_to_do(error: type[DomainError]) -> None:
    assert "code" in vars(error), "written in the class itself, never inherited"
    assert re.fullmatch(KEBAB, error.code)
    assert error.__doc__
    assert error.__module__ == errors.__name__


def test_errors_know_nothing_of_http() -> None:
    assert not any("status" in vars(error) or "status_code" in vars(error) for error in ERRORS)


def test_stored_words_are_lower_case() -> None:
    stored = [kind for kind in chain(vars(events).values(), (Permission,)) if isinstance(kind, type)]
    words = [str(word.value) for kind in stored if issubclass(kind, Enum) for word in kind]
    assert [word for word in words if not re.fullmatch(r"[a-z][a-z_-]*", word)] == []


def test_the_map_names_every_room() -> None:
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
    modules = [path for room in ("domain", "projections", "adapters", "api") for path in (ROOT / room).rglob("*.py")]
    missing = [path.relative_to(ROOT) for path in modules if path.name != "__init__.py" and path.name not in text]
    assert [path for path in missing if path.parts[:2] != ("adapters", "importers")] == []


def test_every_path_that_a_document_names_is_there() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {
        (document.name, path)
        for document in documents
        for path in re.findall(
            r"`((?:domain|projections|adapters|api|tests|benchmarks|docs)/[\w./-]*)`", document.read_text()
        )
    }
    assert named
    assert sorted((document, path) for document, path in named if not (ROOT / path).exists()) == []
