"""Reading the log: in order, in batches, never past a gap; and the statement by which rows get into it.

Invariant: whoever has read position N has read all below N, because positions are given under the append lock and
are dense.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, Self
from uuid import UUID

import psycopg

from adapters import sealing
from adapters.codec import decode
from adapters.contact_keys import Ciphers, KeyMissingError, Keys, Person
from adapters.postgres import LIMITS, LOG_CHANNEL, Role, connect
from domain.envelope import Metadata, RecordedEvent, Stream, StreamType
from domain.events import Actor, ActorKind, ContactReassigned, ConversationOpened, Surface


class EventRow(NamedTuple):
    """A row of the log, as it is stored."""

    position: int
    workspace_id: UUID
    stream_type: str
    stream_id: UUID
    version: int
    topic: str
    data: bytes
    actor_kind: str
    actor_id: str
    surface: str
    occurred_at: datetime
    recorded_at: datetime
    request_id: UUID
    correlation_id: UUID
    causation_id: str | None
    schema_version: int


COLUMNS = ", ".join(EventRow._fields)
HEAD = """
select coalesce(max(position), 0), greatest(clock_timestamp(), max(recorded_at))
from (select position, recorded_at from events order by position desc limit 1) last"""
"""The last position, and the time at which what comes next is recorded, for who holds the append lock.

Times of recording never go back, whatever the clock does: who asks how things stood at one asks for a position.
"""
COPY_TYPES = (
    *("int8", "uuid", "text", "uuid", "int8", "text", "bytea", "text", "text", "text"),
    *("timestamptz", "timestamptz", "uuid", "uuid", "text", "int2"),
)


def event_row(_: Any) -> Callable[[Sequence[Any]], EventRow]:
    """A psycopg row factory for `EventRow`."""
    return EventRow._make


def append(cursor: psycopg.Cursor[Any], rows: Sequence[EventRow]) -> None:
    """Put ``rows`` into the log in one statement; the caller's transaction holds the append lock.

    COPY in binary form: of all ways to insert it costs the server and this process the least per row
    (``make bench``).
    """
    with cursor.copy(f"copy events ({COLUMNS}) from stdin (format binary)") as copy:
        copy.set_types(COPY_TYPES)
        for row in rows:
            copy.write_row(row)


_STREAM_TYPES = {type_.value: type_ for type_ in StreamType}
_SURFACES = {surface.value: surface for surface in Surface}


@lru_cache(maxsize=10_000)
def _actor(kind: str, id_: str) -> Actor:
    return Actor.model_construct(kind=ActorKind(kind), id=id_)


def people_of(rows: Iterable[EventRow]) -> set[Person]:
    """Whose keys it takes to read ``rows``."""
    return {(row.workspace_id, sealing.contact_of(row.data)) for row in rows if sealing.is_sealed(row.data)}


def shown(rows: Iterable[EventRow]) -> list[EventRow]:
    """Those of ``rows`` of which read models and folded states show what is personal."""
    return [row for row in rows if row.topic in sealing.CLEAR_IN_READ_MODELS]


def in_clear(row: EventRow, ciphers: Ciphers) -> EventRow:
    """The row as it was decided; what is sealed with a key that was destroyed says nothing.

    Raises `KeyMissingError` where ``ciphers`` do not say what became of the key.
    """
    if not sealing.is_sealed(row.data):
        return row
    person = (row.workspace_id, sealing.contact_of(row.data))
    if person not in ciphers:
        msg = f"there never was a key of contact {person[1]}: the keys' database does not belong to this log"
        raise KeyMissingError(msg)
    cipher = ciphers[person]
    if cipher is None:
        return row._replace(data=sealing.blank(row.topic, row.data))
    place = sealing.place_of(row.workspace_id, row.stream_id, row.version, row.topic)
    return row._replace(data=sealing.unseal(row.data, cipher, place))


def opened(row: EventRow, ciphers: Ciphers) -> RecordedEvent:
    """The stored row as an event in its envelope, in clear; it says where that is not possible any more."""
    clear = in_clear(row, ciphers)
    event = recorded(clear)
    erased = clear is not row and ciphers[row.workspace_id, sealing.contact_of(row.data)] is None
    return replace(event, erased=True) if erased else event


def readable(row: EventRow, ciphers: Ciphers | None) -> RecordedEvent:
    """The stored row as an event in its envelope; with ``ciphers``, what read models and states show is in clear."""
    return recorded(row if ciphers is None or row.topic not in sealing.CLEAR_IN_READ_MODELS else in_clear(row, ciphers))


def recorded(row: EventRow) -> RecordedEvent:
    """The stored row as an event in its envelope; what is sealed of it says nothing."""
    return RecordedEvent(
        position=row.position,
        stream=Stream(row.workspace_id, _STREAM_TYPES[row.stream_type], row.stream_id),
        version=row.version,
        event=decode(row.topic, row.data),
        metadata=Metadata(
            actor=_actor(row.actor_kind, row.actor_id),
            surface=_SURFACES[row.surface],
            occurred_at=row.occurred_at,
            request_id=row.request_id,
            correlation_id=row.correlation_id,
            causation_id=row.causation_id,
        ),
        recorded_at=row.recorded_at,
    )


class EventLog:
    """The log, for one reading thread: a connection that is opened when needed and again after a failure.

    With ``keys``, what read models and folded states show is read in clear; nothing personal is without them.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        application: str = "conversas-reader",
        role: Role | None = None,
        keys: Keys | None = None,
    ) -> None:
        self._conninfo = conninfo
        self._keys = keys
        self._application = application
        self._settings = LIMITS | ({"role": role.value} if role else {})
        self._connection: psycopg.Connection | None = None

    def read(self, after: int, limit: int) -> list[RecordedEvent]:
        """Up to ``limit`` events after position ``after``, in order.

        Raises `psycopg.OperationalError` when the database is gone; the next call connects again.
        """
        return self.recorded(self.read_rows(after, limit))

    def recorded(self, rows: Sequence[EventRow]) -> list[RecordedEvent]:
        """``rows`` as events in their envelopes."""
        ciphers = self.ciphers(rows)
        return [readable(row, ciphers) for row in rows]

    def ciphers(self, rows: Iterable[EventRow]) -> Ciphers | None:
        """The keys with which ``rows`` are `readable`."""
        return None if self._keys is None else self._keys.find(people_of(shown(rows)))

    def read_rows(self, after: int, limit: int) -> list[EventRow]:
        """As `read`, undecoded."""
        query = f"select {COLUMNS} from events where position > %s order by position limit %s"
        with self.connection().cursor(row_factory=event_row, binary=True) as cursor:
            return cursor.execute(query, (after, limit)).fetchall()

    def rows_at(self, positions: Sequence[int]) -> list[EventRow]:
        """The events at ``positions``, those that the log has, in order, undecoded."""
        query = f"select {COLUMNS} from events where position = any(%s) order by position"
        with self.connection().cursor(row_factory=event_row, binary=True) as cursor:
            return cursor.execute(query, (list(positions),)).fetchall()

    def places(self, after: int, limit: int) -> list[tuple[int, str, UUID]]:
        """Position, stream type and stream of up to ``limit`` events after position ``after``, in order."""
        query = "select position, stream_type, stream_id from events where position > %s order by position limit %s"
        with self.connection().cursor(binary=True) as cursor:
            return cursor.execute(query, (after, limit)).fetchall()

    def read_streams(self, wanted: Mapping[tuple[UUID, UUID], int]) -> Iterator[RecordedEvent]:
        """The events of each stream (workspace, id) up to the version beside it, in order; not all at once."""
        columns = ", ".join(f"events.{column}" for column in EventRow._fields)
        query = (
            f"select {columns} from unnest(%s::uuid[], %s::uuid[], %s::int8[]) as wanted (w, i, v)"
            " join events on workspace_id = w and stream_id = i and version <= v order by stream_id, version"
        )
        values = ([key[0] for key in wanted], [key[1] for key in wanted], list(wanted.values()))
        connection = self.connection()
        with connection.transaction(), connection.cursor("streams", row_factory=event_row) as cursor:
            cursor.itersize = 2_000
            for row in cursor.execute(query, values, binary=True):
                yield recorded(row)

    def conversations_of(self, workspace_id: UUID, contact_id: UUID, through: int) -> list[tuple[UUID, UUID]]:
        """The conversations (workspace, id) that are with a contact as of position ``through``.

        Looks through all that opens a conversation or gives it to another contact: for rare questions.
        """
        query = f"""
            with naming as (
                select distinct stream_id from events
                where workspace_id = %s and topic = any(%s) and position <= %s and position(%s::bytea in data) > 0
            )
            select distinct on (stream_id) {COLUMNS} from events join naming using (stream_id)
            where workspace_id = %s and topic = any(%s) and position <= %s order by stream_id, version desc"""
        asked = (workspace_id, [ConversationOpened.TOPIC, ContactReassigned.TOPIC], through)
        with self.connection().cursor(row_factory=event_row, binary=True) as cursor:
            rows = cursor.execute(query, (*asked, str(contact_id).encode(), *asked)).fetchall()
        found = [(row.stream_id, decode(row.topic, row.data)) for row in rows]
        return [
            (workspace_id, id_)
            for id_, event in found
            if (isinstance(event, ConversationOpened) and event.contact_id == contact_id)
            or (isinstance(event, ContactReassigned) and event.after == contact_id)
        ]

    def head(self) -> int:
        """The last position; 0 for an empty log."""
        with self.connection().cursor() as cursor:
            row = cursor.execute("select coalesce(max(position), 0) from events").fetchone()
        assert row is not None
        return int(row[0])

    def connection(self) -> psycopg.Connection:
        """The reader's connection, opened anew where it was lost."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._conninfo, self._settings, application=self._application)
            self._connection.execute(f"listen {LOG_CHANNEL}")
        return self._connection

    def wait(self, timeout_seconds: float) -> None:
        """Return when something was appended (a hint) or after ``timeout_seconds``."""
        for _ in self.connection().notifies(timeout=timeout_seconds, stop_after=1):
            pass

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
