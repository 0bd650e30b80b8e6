"""Replaying: the state that the log's events fold to, of one stream or of all, up to any moment.

Invariant: nothing but the log is read; what this gives is what every read model must agree with.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson

from adapters.codec import encode_state
from adapters.event_log import COLUMNS, EventLog, event_row
from domain.conversation import Conversation
from domain.decider import DECIDERS, State
from domain.envelope import RecordedEvent, Stream

BATCH_SIZE = 2_000


@dataclass(slots=True)
class Summary:
    """What a replay of the log came to."""

    events: int = 0
    position: int = 0
    streams: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    topics: Counter[str] = field(default_factory=Counter)


def history_of(
    log: EventLog,
    key: tuple[UUID, UUID],
    *,
    version: int | None = None,
    position: int | None = None,
    as_of: datetime | None = None,
) -> list[RecordedEvent]:
    """The events of the stream ``key`` (workspace, id), up to a version, position or moment of recording."""
    query = f"select {COLUMNS} from events where workspace_id = %s and stream_id = %s"
    values: list[Any] = list(key)
    for condition, value in (("version <= %s", version), ("position <= %s", position), ("recorded_at <= %s", as_of)):
        if value is not None:
            query, values = f"{query} and {condition}", [*values, value]
    with log.connection().cursor(row_factory=event_row, binary=True) as cursor:
        return log.recorded(cursor.execute(f"{query} order by version", values).fetchall())


def tell(events: list[RecordedEvent]) -> dict[str, Any]:
    """What a stream's ``events`` fold to, and how far they go."""
    if not events:
        return {"state": None, "version": 0}
    last = events[-1]
    state = DECIDERS[last.stream.type].fold([recorded.event for recorded in events])
    return {
        "stream": f"{last.stream.type}:{last.stream.id}",
        "version": last.version,
        "position": last.position,
        "recorded_at": last.recorded_at.isoformat(),
        "state": orjson.loads(encode_state(last.stream.type, state)),
    }


def summarize(
    log: EventLog,
    progress: Callable[[int, int], None],
    *,
    position: int | None = None,
    as_of: datetime | None = None,
) -> Summary:
    """Fold the whole log up to a position or moment of recording, and count what there is.

    Memory grows with the number of streams, not of events.
    """
    states: dict[Stream, State] = {}
    summary = Summary()
    head = min(log.head(), position) if position is not None else log.head()
    for event in _all(log, head):
        if as_of is not None and event.recorded_at > as_of:
            break
        states[event.stream] = DECIDERS[event.stream.type].evolve(states.get(event.stream), event.event)
        summary.topics[event.event.TOPIC] += 1
        summary.position = event.position
        if event.position % BATCH_SIZE == 0:
            progress(event.position, head)
    progress(summary.position, head)
    summary.events = summary.topics.total()
    summary.streams = Counter(stream.type.value for stream in states)
    summary.statuses = Counter(state.status.value for state in states.values() if isinstance(state, Conversation))
    return summary


def _all(log: EventLog, head: int) -> Iterator[RecordedEvent]:
    position = 0
    while position < head and (batch := log.read(position, min(BATCH_SIZE, head - position))):
        yield from batch
        position = batch[-1].position
