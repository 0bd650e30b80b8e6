"""`conversas replay`: the log, or one conversation, folded up to any version, position or moment of recording."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from contact_keyring import keys_of
from databases import load_demo, new_database, prepare

from adapters.codec import encode_state
from adapters.contact_keys import beside
from adapters.event_log import EventLog
from adapters.replay import history_of, summarize, tell
from api import demo
from domain.conversation import Conversation
from domain.decider import DECIDERS, State
from domain.envelope import RecordedEvent, Stream, StreamType

ROOT = Path(__file__).parents[2]
CONVERSATION = Stream(demo.WORKSPACE, StreamType.CONVERSATION, demo.CONVERSATION)


@pytest.fixture(scope="module")
def told(postgres_url: str) -> Iterator[str]:
    """A database with the demo, and nothing projected."""
    with new_database(postgres_url) as database:
        prepare(database)
        load_demo(database, "cvs_replaying")
        yield database


@pytest.fixture
def log(told: str) -> Iterator[EventLog]:
    with closing(keys_of(told)) as keys, EventLog(told, keys=keys) as log:
        yield log


@pytest.fixture
def events(log: EventLog) -> list[RecordedEvent]:
    found = log.read(0, 100_000)
    assert len(found) > 20
    return found


def of_conversation(events: list[RecordedEvent]) -> list[RecordedEvent]:
    return [each for each in events if each.stream == CONVERSATION]


def naive(events: list[RecordedEvent]) -> tuple[int, object]:
    """How many events there are, and the state that they come to, as it is printed."""
    state: State | None = None
    for each in events:
        state = DECIDERS[StreamType.CONVERSATION].evolve(state, each.event)
    return len(events), json.loads(encode_state(StreamType.CONVERSATION, state))


def run(told: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CONVERSAS_DATABASE_URL": told, "CONVERSAS_LOG_LEVEL": "error", "COLUMNS": "200"}
    environment["CONVERSAS_KEYS_DATABASE_URL"] = beside(told)
    command = [sys.executable, "-m", "api", "replay", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_version_that_it_does_not_have_is_told(told: str, events: list[RecordedEvent]) -> None:
    last = of_conversation(events)[-1].version
    refused = run(told, str(demo.CONVERSATION), "--version", str(last + 1))
    assert (refused.returncode, refused.stdout) == (1, "")
    assert f"It has no version {last + 1} up to there: the last one is {last}." in refused.stderr


def test_a_conversation_folds_up_to_any_version_position_and_moment(log: EventLog, events: list[RecordedEvent]) -> None:
    key, theirs = (demo.WORKSPACE, demo.CONVERSATION), of_conversation(events)
    for number, last in enumerate(theirs, start=1):
        at_once = [each for each in theirs if each.recorded_at <= last.recorded_at]
        for limits, expected in (
            ({"version": last.version}, theirs[:number]),
            ({"position": last.position}, theirs[:number]),
            ({"as_of": last.recorded_at}, at_once),
        ):
            found = tell(history_of(log, key, **limits))
            assert (found["version"], found["state"]) == naive(expected)
    before = theirs[0].position - 1
    assert history_of(log, key, position=before) == []


def test_the_whole_log_folds_up_to_any_position_and_moment(log: EventLog, events: list[RecordedEvent]) -> None:
    for last in events[:: len(events) // 7]:
        for limits, expected in (
            ({"position": last.position}, [each for each in events if each.position <= last.position]),
            ({"as_of": last.recorded_at}, [each for each in events if each.recorded_at <= last.recorded_at]),
        ):
            summary = summarize(log, lambda *_: None, **limits)
            states: dict[Stream, State] = {}
            for each in expected:
                states[each.stream] = DECIDERS[each.stream.type].evolve(states.get(each.stream), each.event)
            conversations = [state for state in states.values() if isinstance(state, Conversation)]
            assert (summary.events, summary.position) == (len(expected), expected[-1].position)
            assert summary.topics == Counter(each.event.TOPIC for each in expected)
            assert summary.streams == Counter(stream.type.value for stream in states)
            assert summary.statuses == Counter(state.status.value for state in conversations)


def test_on_the_command_line(told: str, events: list[RecordedEvent]) -> None:
    theirs = of_conversation(events)
    answer = run(told, str(demo.CONVERSATION), "--version", "2")
    assert answer.returncode == 0, answer.stderr
    printed = json.loads(answer.stdout)
    assert (printed["version"], printed["state"]) == naive(theirs[:2])
    answer = run(told, "--position", str(theirs[1].position))
    assert answer.returncode == 0, answer.stderr
    assert f"{theirs[1].position} events up to position {theirs[1].position}" in answer.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["00000000-0000-0000-0000-00000000dead"], "There is no such stream in the workspace demo."),
        ([str(demo.CONVERSATION), "--as-of", "2001-01-01T00:00:00"], "It begins only at position"),
        (["--version", "2"], "--version goes with a conversation"),
        (["--check", "--position", "2"], "--check goes alone"),
    ],
)
def test_what_cannot_be_replayed_is_told(told: str, arguments: list[str], said: str) -> None:
    answer = run(told, *arguments)
    assert answer.returncode == 1
    assert said in answer.stderr
    assert answer.stdout == ""
