"""Our log as the `eventsourcing` library sees it, so that its applications, logs and projections run on our store.

Invariant: what the library appends takes the append lock like all that is appended, so that its notification ids are
our dense positions; and a transaction whose COMMIT was not answered is looked up, never guessed.

An `Application` uses it with ``PERSISTENCE_MODULE=adapters.recorder``, ``CONVERSAS_DATABASE_URL`` and
``CONVERSAS_WORKSPACE_ID`` in its environment.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from time import monotonic, sleep
from typing import Any, ClassVar, Final, TypeVar, cast
from uuid import UUID, uuid4

import psycopg
from eventsourcing import persistence
from eventsourcing.domain import DomainEventProtocol, TAggregateID
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    Mapper,
    MapperDeserialisationError,
    Notification,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    Tracking,
    TrackingRecorder,
    Transcoder,
)
from eventsourcing.utils import Environment, EnvType, resolve_topic, strtobool
from psycopg.rows import args_row
from psycopg_pool import ConnectionPool

from adapters import codec, sealing
from adapters.event_log import HEAD, EventLog, EventRow, append
from adapters.postgres import APPEND_LOCK, LOG_CHANNEL, MIGRATION_LOCK, WRITER_LIMITS, Role, pipelined, with_settings
from domain.decider import DECIDERS, State
from domain.envelope import SCHEMA_VERSION, Metadata, StreamType
from domain.events import EVENTS, Actor, ActorKind, Event, Surface

log = logging.getLogger(__name__)
Result = TypeVar("Result")

LIBRARY: Final = Actor(kind=ActorKind.SYSTEM, id="eventsourcing")
"""Who is said to have caused what the library appends without saying who."""


# Connections

_ERRORS = (
    (psycopg.InterfaceError, persistence.InterfaceError),
    (psycopg.OperationalError, persistence.OperationalError),
    (psycopg.DataError, persistence.DataError),
    (psycopg.IntegrityError, persistence.IntegrityError),
    (psycopg.InternalError, persistence.InternalError),
    (psycopg.ProgrammingError, persistence.ProgrammingError),
    (psycopg.NotSupportedError, persistence.NotSupportedError),
    (psycopg.DatabaseError, persistence.DatabaseError),
    (psycopg.Error, persistence.PersistenceError),
)


@contextmanager
def _library_errors() -> Iterator[None]:
    """Raise the driver's errors as those that the library's contract names."""
    try:
        yield
    except psycopg.Error as error:
        named = next(theirs for ours, theirs in _ERRORS if isinstance(error, ours))
        raise named(str(error)) from error


_AS_WRITER = f"set local role {Role.WRITER}"
_MARK = """
with gone as (delete from library_commits where at < now() - interval '1 hour')
insert into library_commits (id) values (%s)"""


class Database:
    """Connections that recorders share: pooled, each with time limits. Used by any number of threads."""

    def __init__(
        self,
        conninfo: str,
        *,
        settings: dict[str, str] = WRITER_LIMITS,
        connections: int = 8,
        patience_seconds: float = 30.0,
    ) -> None:
        self.conninfo = conninfo
        self.patience_seconds = patience_seconds
        self._pool = ConnectionPool(
            with_settings(conninfo, settings, "conversas-library"),
            kwargs={"autocommit": True},
            min_size=1,
            max_size=connections,
            timeout=min(10.0, patience_seconds),
            check=ConnectionPool.check_connection,
            open=True,
        )

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection]:
        """A connection for reading, each statement its own transaction."""
        with _library_errors(), self._pool.connection() as connection:
            yield connection

    def transact(self, work: Callable[[psycopg.Connection], Result]) -> Result:
        """What ``work`` returns, done in one transaction, at most once, also when the reply to COMMIT is lost.

        Where the connection breaks before the commit, ``work`` is called again in another transaction. Raises the
        library's `OperationalError` when a lock or statement takes too long, and when the database stays away.
        """
        deadline = monotonic() + self.patience_seconds
        while True:
            results: list[Result] = []
            marker = uuid4()
            with _library_errors(), self._pool.connection() as connection:
                try:
                    with connection.transaction():
                        connection.execute(_MARK, (marker,), prepare=True)
                        results.append(work(connection))
                    return results[0]
                except psycopg.OperationalError as error:
                    if not connection.broken:
                        raise
                    log.warning("database connection lost in a transaction: %s", error)
            if results and self._committed(marker, deadline):
                return results[0]
            if monotonic() > deadline:
                msg = "the database keeps going away; nothing was changed"
                raise persistence.OperationalError(msg)
            sleep(0.1)

    def _committed(self, marker: UUID, deadline: float) -> bool:
        """Whether the transaction that left ``marker`` has committed although its connection was lost.

        Leaving the same marker waits for a backend that is still at it, and fails if, and only if, it has committed.
        PostgreSQL's own record of transactions does not tell: after a crash it gives the same id to another one.
        """
        while True:
            try:
                with self._pool.connection() as connection:
                    return connection.execute(f"{_MARK} on conflict do nothing", (marker,)).rowcount == 0
            except psycopg.OperationalError as error:
                if monotonic() > deadline:
                    msg = "the outcome of a transaction is unknown; look before you repeat it"
                    raise persistence.OperationalError(msg) from error
            sleep(0.1)

    def close(self) -> None:
        """Close all connections that are not in use, and those in use when they come back."""
        self._pool.close()


# Events


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event of ours with its place in its stream: what the library calls a domain event."""

    originator_id: UUID
    originator_version: int
    event: Event


class EventMapper(Mapper[UUID]):
    """Our events to stored events and back: the topic is the event's, the state is byte for byte what we store.

    What other readers could not read is refused: events that are not ours, and a cipher or compressor of the library.
    """

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        """The stored form of a `StreamEvent`; anything else is a `TypeError`."""
        if not isinstance(domain_event, StreamEvent) or self.cipher or self.compressor:
            msg = f"the log takes plain `StreamEvent`s only, not {type(domain_event).__qualname__} or altered bytes"
            raise TypeError(msg)
        state = codec.encode(domain_event.event)
        return StoredEvent(domain_event.originator_id, domain_event.originator_version, domain_event.event.TOPIC, state)

    def to_domain_event(self, stored_event: StoredEvent) -> StreamEvent:
        """The event as a `StreamEvent`; `MapperDeserialisationError` where this program does not know it."""
        try:
            event = codec.decode(stored_event.topic, stored_event.state)
        except (codec.UnknownTopicError, ValueError) as error:
            msg = f"{stored_event.originator_id}:{stored_event.originator_version} cannot be read: {error}"
            raise MapperDeserialisationError(msg) from error
        return StreamEvent(_stream_id(stored_event), stored_event.originator_version, event)


def projector(
    stream_type: StreamType = StreamType.CONVERSATION,
) -> Callable[[State | None, Iterable[StreamEvent]], State | None]:
    """How our events fold, in the form of ``projector_func`` of the library's `Repository.get`."""
    fold = DECIDERS[stream_type].fold
    return lambda state, events: fold([event.event for event in events], state)


def _stream_id(event: StoredEvent) -> UUID:
    if not isinstance(event.originator_id, UUID):
        msg = f"streams are named by UUIDs, not by {event.originator_id!r}"
        raise persistence.DataError(msg)
    return event.originator_id


# Recorders

_LAST_OF_STREAMS = """
select wanted.id, e.version, e.stream_type
from unnest(%s::uuid[]) as wanted (id)
cross join lateral (
    select version, stream_type from events
    where workspace_id = %s and stream_id = wanted.id
    order by version desc limit 1) e"""


class _StreamReader(AggregateRecorder):
    """What both tables of streams have in common: how a stream is read."""

    TABLE: ClassVar[str]

    def __init__(self, database: Database, workspace_id: UUID) -> None:
        self.database = database
        self.workspace_id = workspace_id

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """The stream's events with versions in ``(gt, lte]``, at most ``limit``, the latest first if ``desc``."""
        given = (("version > %s", gt), ("version <= %s", lte))
        conditions = [(condition, value) for condition, value in given if value is not None]
        query = (
            f"select stream_id, version, topic, data from {self.TABLE} where workspace_id = %s and stream_id = %s"
            f"{''.join(f' and {condition}' for condition, _ in conditions)}"
            f" order by version {'desc' if desc else 'asc'} limit %s"
        )
        values = (self.workspace_id, originator_id, *(value for _, value in conditions), limit)
        with (
            self.database.connection() as connection,
            connection.cursor(binary=True, row_factory=args_row(StoredEvent)) as cursor,
        ):
            return cursor.execute(query.encode(), values, prepare=True).fetchall()


class SnapshotRecorder(_StreamReader):
    """The library's snapshots. They can be deleted at any time, so they are kept out of the log."""

    TABLE = "library_snapshots"

    def create_table(self) -> None:
        """Make the table where it does not exist, as the library's own recorders do."""
        statement = (
            f"create table if not exists {self.TABLE} (workspace_id uuid not null, stream_id uuid not null,"
            " version bigint not null, topic text not null, data bytea not null,"
            " primary key (workspace_id, stream_id, version))"
        )

        def create(connection: psycopg.Connection) -> None:
            connection.execute("select pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
            connection.execute(statement.encode())

        self.database.transact(create)

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> None:
        """Keep ``stored_events``; a version that is there already is an `IntegrityError`."""
        rows = [
            (self.workspace_id, _stream_id(event), event.originator_version, event.topic, event.state)
            for event in stored_events
        ]

        def insert(connection: psycopg.Connection) -> None:
            with connection.cursor() as cursor:
                cursor.executemany(f"insert into {self.TABLE} values (%s, %s, %s, %s, %s)".encode(), rows)

        self.database.transact(insert)


class Recorder(_StreamReader, ApplicationRecorder):
    """One workspace's events in the log. Positions are dense over all workspaces, so one alone may see gaps.

    New streams are of ``stream_type``. What says something of a contact is refused: the library has no keys to seal it
    with, and reads of what was sealed that it says nothing. Events of ours are held to the envelope's invariants
    (gapless versions from 1, one type per stream); topics that are not ours only to what the library asks, a unique
    version.
    """

    TABLE = "events"

    def __init__(
        self,
        database: Database,
        workspace_id: UUID,
        *,
        stream_type: StreamType = StreamType.CONVERSATION,
        actor: Actor = LIBRARY,
        surface: Surface = Surface.API,
    ) -> None:
        super().__init__(database, workspace_id)
        self.stream_type = stream_type
        self.actor = actor
        self.surface = surface

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        """Append ``stored_events``; their positions. ``metadata`` (a `Metadata`) says who and when.

        Raises `IntegrityError` where a version is taken, `DataError` where one says something of a contact, and
        `OperationalError` where the append lock cannot be had in time; then nothing was changed.
        """
        return self.database.transact(lambda connection: self.insert(connection, stored_events, **kwargs))

    def insert(self, connection: psycopg.Connection, stored_events: Sequence[StoredEvent], **kwargs: Any) -> list[int]:
        """As `insert_events`, in the transaction under way."""
        if not stored_events:
            return []
        for event in stored_events:
            if sealing.says_something(event.topic, event.state):
                which = f"{event.originator_id}:{event.originator_version}"
                raise persistence.DataError(f"{which} says something of a contact, and there is no key to seal it with")
        head, now = self._lock(connection)
        self._check_versions(connection, [event for event in stored_events if event.topic in EVENTS])
        request_id = uuid4()
        metadata: Metadata = kwargs.get("metadata") or Metadata(self.actor, self.surface, now, request_id, request_id)
        rows = [
            EventRow(
                position=position,
                workspace_id=self.workspace_id,
                stream_type=self.stream_type.value,
                stream_id=_stream_id(event),
                version=event.originator_version,
                topic=event.topic,
                data=event.state,
                actor_kind=metadata.actor.kind.value,
                actor_id=metadata.actor.id,
                surface=metadata.surface.value,
                occurred_at=metadata.occurred_at,
                recorded_at=now,
                request_id=metadata.request_id,
                correlation_id=metadata.correlation_id,
                causation_id=metadata.causation_id,
                schema_version=SCHEMA_VERSION,
            )
            for position, event in enumerate(stored_events, head + 1)
        ]
        with connection.cursor() as cursor:
            cursor.execute(_AS_WRITER)  # the tables' owner cannot COPY under row-level security
            append(cursor, rows)
            cursor.execute("reset role")
        return [row.position for row in rows]

    def _lock(self, connection: psycopg.Connection) -> tuple[int, datetime]:
        """Take the append lock; the last position under it, and the time."""
        with pipelined(connection):
            connection.execute(f"select pg_advisory_xact_lock({APPEND_LOCK})", prepare=True)
            connection.execute(f"notify {LOG_CHANNEL}", prepare=True)
            head = connection.execute(HEAD, prepare=True).fetchone()
        assert head is not None
        return head

    def _check_versions(self, connection: psycopg.Connection, ours: Sequence[StoredEvent]) -> None:
        if not ours:
            return
        ids = list({_stream_id(event) for event in ours})
        last: dict[UUID | str, tuple[int, str]] = {
            stream_id: (version, type_)
            for stream_id, version, type_ in connection.execute(
                _LAST_OF_STREAMS, (ids, self.workspace_id), prepare=True
            )
        }
        for event in ours:
            version, type_ = last.get(event.originator_id, (0, self.stream_type.value))
            if (event.originator_version, self.stream_type.value) != (version + 1, type_):
                msg = f"{type_} {event.originator_id} is at version {version}; {event.originator_version} does not fit"
                raise persistence.IntegrityError(msg)
            last[event.originator_id] = (version + 1, type_)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """The workspace's events from position ``start`` to ``stop``, in order, at most ``limit``."""
        after = 0 if start is None else start - inclusive_of_start
        with self.database.connection() as connection:
            return _notifications(connection, self.workspace_id, after, limit, stop, topics)

    def max_notification_id(self) -> int | None:
        """The position of the workspace's last event."""
        with self.database.connection() as connection:
            row = connection.execute(
                "select max(position) from events where workspace_id = %s", (self.workspace_id,)
            ).fetchone()
        return row[0] if row else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> "LogSubscription":
        """All of the workspace's events after position ``gt``, and what comes; blocks in between."""
        return LogSubscription(self, gt, topics)


def _notifications(
    connection: psycopg.Connection,
    workspace_id: UUID,
    after: int,
    limit: int,
    stop: int | None,
    topics: Sequence[str],
) -> list[Notification]:
    given = (("position <= %s", stop), ("topic = any(%s)", list(topics) or None))
    conditions = [(condition, value) for condition, value in given if value is not None]
    query = (
        "select stream_id, version, topic, data, position from events where workspace_id = %s and position > %s"
        f"{''.join(f' and {condition}' for condition, _ in conditions)} order by position limit %s"
    )
    values = (workspace_id, after, *(value for _, value in conditions), limit)
    with connection.cursor(binary=True, row_factory=args_row(Notification)) as cursor:
        return cursor.execute(query.encode(), values, prepare=True).fetchall()


class LogSubscription(Subscription[Recorder]):
    """Follows the log over a connection of its own. `stop` may be called by any thread, iteration by one at a time.

    What does not match is passed over once: the place in the log moves on with the log's head, not with the matches.
    """

    BATCH: ClassVar = 500
    POLL_SECONDS: ClassVar = 0.1
    """How long it waits for a hint before it looks for itself, or sees that it was stopped."""

    def __init__(self, recorder: Recorder, gt: int | None = None, topics: Sequence[str] = ()) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._log = EventLog(recorder.database.conninfo, application="conversas-subscription")
        self._position = gt or 0
        self._pending: deque[Notification] = deque()
        self._patience_ends = float("inf")
        self._iterating = Lock()

    def __next__(self) -> Notification:
        with self._iterating, _library_errors():
            while not self._has_been_stopped:
                if self._pending:
                    return self._pending.popleft()
                self._follow()
            self._log.close()
            raise StopIteration

    def _follow(self) -> None:
        """Read on, or wait where there is nothing new; a lost connection is opened again for as long as is patient."""
        try:
            head = self._log.head()
            if head > self._position:
                self._pull(head)
            else:
                self._log.wait(self.POLL_SECONDS)
        except psycopg.OperationalError as error:
            now = monotonic()
            self._patience_ends = min(self._patience_ends, now + self._recorder.database.patience_seconds)
            if now > self._patience_ends:
                raise
            log.warning("subscription lost its connection, trying again: %s", error)
            sleep(self.POLL_SECONDS)
        else:
            self._patience_ends = float("inf")

    def _pull(self, head: int) -> None:
        """Read a batch up to ``head``. All below it can be seen by now, for positions are given under a lock."""
        workspace_id, topics = self._recorder.workspace_id, self._topics
        found = _notifications(self._log.connection(), workspace_id, self._position, self.BATCH, head, topics)
        self._pending.extend(found)
        self._position = found[-1].id if len(found) == self.BATCH else head

    def stop(self) -> None:
        """End the iteration, within `POLL_SECONDS` where it waits."""
        super().stop()
        if self._iterating.acquire(blocking=False):  # else whoever iterates closes it
            try:
                self._log.close()
            finally:
                self._iterating.release()


class PositionRecorder(TrackingRecorder):
    """How far a projection of the library has read. A view that inherits this calls `track` beside its own changes:

    ``self.database.transact(lambda connection: (connection.execute(…), self.track(connection, tracking)))``
    """

    def __init__(self, database: Database, *, purpose: str = "library") -> None:
        self.database = database
        self.purpose = purpose
        """Keeps the positions of two projections of the same application apart."""

    def insert_tracking(self, tracking: Tracking) -> None:
        """Remember ``tracking``; an `IntegrityError` where that or more was remembered before."""
        self.database.transact(lambda connection: self.track(connection, tracking))

    def track(self, connection: psycopg.Connection, tracking: Tracking) -> None:
        """As `insert_tracking`, in the transaction under way."""
        moved = connection.execute(
            "insert into projection_positions as known (name, position) values (%s, %s)"
            " on conflict (name) do update set position = excluded.position where known.position < excluded.position",
            (self._name(tracking.application_name), tracking.notification_id),
            prepare=True,
        )
        if moved.rowcount == 0:
            msg = f"{self._name(tracking.application_name)} is at {tracking.notification_id} or beyond already"
            raise persistence.IntegrityError(msg)

    def max_tracking_id(self, application_name: str) -> int | None:
        """The position last remembered."""
        with self.database.connection() as connection:
            row = connection.execute(
                "select position from projection_positions where name = %s", (self._name(application_name),)
            ).fetchone()
        return row[0] if row else None

    def _name(self, application_name: str) -> str:
        return f"{self.purpose}/{application_name}"


class EventProcessRecorder(PositionRecorder, Recorder, ProcessRecorder):
    """Events and, in the same transaction, the position of the event that they follow from."""

    def __init__(self, database: Database, workspace_id: UUID, *, purpose: str = "library", **kwargs: Any) -> None:
        Recorder.__init__(self, database, workspace_id, **kwargs)
        PositionRecorder.__init__(self, database, purpose=purpose)

    def insert(self, connection: psycopg.Connection, stored_events: Sequence[StoredEvent], **kwargs: Any) -> list[int]:
        """As `Recorder.insert`, with ``tracking``."""
        if (tracking := kwargs.get("tracking")) is not None:
            self.track(connection, tracking)
        return super().insert(connection, stored_events, **kwargs)


class Factory(InfrastructureFactory[PositionRecorder]):
    """What the library's `Application` and `ProjectionRunner` make their parts with; settings come from ``env``.

    As everywhere in the library, a setting can be given for one application alone: ``<NAME>_CONVERSAS_WORKSPACE_ID``.
    """

    DATABASE_URL = "CONVERSAS_DATABASE_URL"
    WORKSPACE_ID = "CONVERSAS_WORKSPACE_ID"
    CREATE_TABLE = "CREATE_TABLE"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        self.database = Database(self._setting(self.DATABASE_URL))

    def _setting(self, key: str) -> str:
        if value := self.env.get(key):
            return value
        msg = f"set {key} in the environment of the application"
        raise OSError(msg)

    def _class(self, key: str, default: type[Result]) -> type[Result]:
        topic = self.env.get(key)
        return cast("type[Result]", resolve_topic(topic)) if topic else default

    def _workspace_id(self) -> UUID:
        return UUID(self._setting(self.WORKSPACE_ID))

    def mapper(
        self, transcoder: Transcoder | None = None, mapper_class: type[Mapper[TAggregateID]] | None = None
    ) -> Mapper[TAggregateID]:
        """An `EventMapper`, unless another class is given or named by ``MAPPER_TOPIC``."""
        if mapper_class is None:
            mapper_class = cast("type[Mapper[TAggregateID]]", self._class(self.MAPPER_TOPIC, EventMapper))
        return super().mapper(transcoder, mapper_class)

    def aggregate_recorder(self, purpose: str = "snapshots") -> SnapshotRecorder:
        """A place for snapshots: nothing but the log itself records events, whatever the ``purpose``."""
        del purpose
        recorder = SnapshotRecorder(self.database, self._workspace_id())
        if strtobool(self.env.get(self.CREATE_TABLE) or "yes"):
            recorder.create_table()
        return recorder

    def application_recorder(self) -> Recorder:
        """The log."""
        return self._class(self.APPLICATION_RECORDER_TOPIC, Recorder)(self.database, self._workspace_id())

    def tracking_recorder(self, tracking_recorder_class: type[PositionRecorder] | None = None) -> PositionRecorder:
        """Positions under the name of the projection, in a view of the class given or named by the environment."""
        recorder = tracking_recorder_class or self._class(self.TRACKING_RECORDER_TOPIC, PositionRecorder)
        return recorder(self.database, purpose=self.env.name or "library")

    def process_recorder(self) -> EventProcessRecorder:
        """The log and positions together."""
        recorder = self._class(self.PROCESS_RECORDER_TOPIC, EventProcessRecorder)
        return recorder(self.database, self._workspace_id(), purpose=self.env.name or "library")

    def close(self) -> None:
        """Close the connections of all recorders made here."""
        self.database.close()
