"""Whether live, rebuilt and naive folds of a database's log agree, row for row."""

import gc
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from operator import itemgetter
from typing import Any
from uuid import UUID

import psycopg
from contact_keyring import keys_of
from naive_episodes import episodes
from naive_listing import owners_after_each, row
from psycopg.rows import dict_row

from adapters.event_log import EventLog
from adapters.projector import READ_MODELS
from adapters.rebuild import rebuild
from domain.decider import DECIDERS
from domain.envelope import RecordedEvent, Stream, StreamType
from domain.events import ContactReassigned, ConversationOpened
from projections import past


def all_events(database: str) -> list[RecordedEvent]:
    with closing(keys_of(database)) as keys, EventLog(database, keys=keys) as log:
        events, position = [], 0
        while batch := log.read(position, 5_000):
            events += batch
            position = batch[-1].position
    return events


def rows(database: str, table: str, order: str) -> list[dict[str, Any]]:
    with psycopg.connect(database, row_factory=dict_row) as connection:
        return connection.execute(f"select * from {table} order by {order}").fetchall()


def naive_rows(events: list[RecordedEvent]) -> Iterator[dict[str, Any]]:
    streams: dict[Stream, list[RecordedEvent]] = defaultdict(list)
    for event in events:
        streams[event.stream].append(event)
    contacts: dict[UUID, dict[UUID, Any]] = defaultdict(dict)
    for stream, theirs in streams.items():
        if stream.type is StreamType.CONTACT:
            details = DECIDERS[stream.type].fold([e.event for e in theirs]).details
            contacts[stream.workspace_id][stream.id] = details.model_dump(mode="json")
    for stream, theirs in streams.items():
        if stream.type is StreamType.CONVERSATION:
            yield row(theirs, contacts[stream.workspace_id])


def naive_past(events: list[RecordedEvent]) -> Iterator[tuple[dict[str, Any], datetime]]:
    """Each row as it was before something was recorded at a later time, and that time; contacts unknown."""
    streams: dict[Stream, list[RecordedEvent]] = defaultdict(list)
    for event in events:
        if event.stream.type is StreamType.CONVERSATION:
            streams[event.stream].append(event)
    nobody = defaultdict(lambda: {"name": None, "phones": [], "emails": [], "attributes": {}})
    for theirs in streams.values():
        for number, (event, following) in enumerate(pairwise(theirs), start=1):
            if following.recorded_at > event.recorded_at:
                yield row(theirs[:number], nobody), following.recorded_at


def past_of(found: dict[str, Any], until: datetime) -> dict[str, Any]:
    """The version that ``found`` leaves."""
    return {
        **{column: value for column, value in found.items() if column in past.COLUMNS},
        "until": until,
        "node": past.fork(found["recorded_at"], until),
    }


def naive_timeline(events: list[RecordedEvent]) -> Iterator[tuple[UUID, UUID, datetime, int]]:
    """Workspace, contact, time and position of every event that happened with a contact, read from the whole log."""
    contact_of: dict[Stream, UUID] = {}
    for event in events:
        if isinstance(event.event, ConversationOpened):
            contact_of[event.stream] = event.event.contact_id
        elif isinstance(event.event, ContactReassigned):
            contact_of[event.stream] = event.event.after
        elif event.stream.type is StreamType.CONTACT:
            contact_of[event.stream] = event.stream.id
    for event in events:
        if event.stream.type not in {StreamType.CONVERSATION, StreamType.CONTACT}:
            continue
        theirs = {contact_of[event.stream]}
        if isinstance(event.event, ContactReassigned):
            theirs.add(event.event.before)
        at = (event.metadata.occurred_at, event.position)
        yield from ((event.stream.workspace_id, contact, *at) for contact in theirs)


def check_that_all_agree(database: str) -> int:
    """Compare live, naive and rebuilt; the number of events."""
    gc.disable()  # the whole log is held here, and walking through it again and again takes most of the time
    try:
        return _compare(database)
    finally:
        gc.enable()


def _compare(database: str) -> int:
    events, of = all_events(database), itemgetter("workspace_id", "id")
    live = {model.name: [rows(database, table, "1, 2, 3") for table in model.tables] for model in READ_MODELS}
    naive = sorted(naive_rows(events), key=of)
    for found, expected in zip(live["listing"][0], naive, strict=True):
        assert found == expected
    versions = {(*of(found), found["until"]): found for found in live["listing"][2]}
    assert versions == {(*of(found), until): past_of(found, until) for found, until in naive_past(events)}
    history = live["history"][0]
    assert [found["position"] for found in history] == [event.position for event in events]
    by_stream: dict[Stream, list[RecordedEvent]] = defaultdict(list)
    for event in events:
        if event.stream.type is StreamType.CONVERSATION:
            by_stream[event.stream].append(event)
    after = {
        event.position: owner
        for theirs in by_stream.values()
        for event, owner in zip(theirs, owners_after_each(theirs), strict=True)
    }
    for found, event in zip(history, events, strict=True):
        assert (found["topic"], found["workspace_id"], found["stream_id"], found["version"]) == (
            event.event.TOPIC,
            event.stream.workspace_id,
            event.stream.id,
            event.version,
        )
        standing = (found["status"], found["sector_id"], found["agent_id"], found["bot"])
        assert standing == after.get(event.position, (None,) * 4)
        assert found["details"] == event.event.model_dump(mode="json", exclude={"personal"})
    entry = itemgetter("workspace_id", "contact_id", "occurred_at", "position")
    assert sorted(map(entry, live["history"][1])) == sorted(naive_timeline(events))
    expected_episodes = [row for theirs in by_stream.values() for row in episodes(theirs)]
    expected_episodes.sort(key=lambda row: (row["workspace_id"], row["conversation_id"], row["episode"]))
    assert live["episodes"][0] == expected_episodes
    with closing(keys_of(database)) as keys:
        for model in READ_MODELS:
            rebuild(database, model, keys=keys, batch_size=7_777)
    rebuilt = {model.name: [rows(database, table, "1, 2, 3") for table in model.tables] for model in READ_MODELS}
    assert rebuilt == live
    return len(events)
