"""Projecting: read the log in batches and move each read model on, rows and position in one transaction.

Invariant: a read model's rows are the fold of exactly the events up to its position, across `kill -9` and with any
number of projectors: the position's row is locked while they change.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from time import monotonic

import psycopg

from adapters.contact_keys import AWAY, NO_KEYS, ContactKeys
from adapters.event_log import EventLog, EventRow
from adapters.postgres import LIMITS, LISTING_CHANNEL, Role, connect
from adapters.shares import SHARED_MODELS, lock_shares, not_held
from domain.envelope import RecordedEvent
from domain.events import ContactErased
from projections.directory import Directory
from projections.episodes import Episodes
from projections.history import History
from projections.listing import Listing
from projections.read_model import ReadModel
from projections.tree import Tree

log = logging.getLogger(__name__)

READ_MODELS: tuple[ReadModel, ...] = (Directory(), Listing(), History(), Episodes(), Tree())
"""Every read model there is; the directory first, since access depends on it."""

BATCH_SIZE = 2_000
RETRY_SECONDS = 5.0
LANES = 2
"""Read models that move at once: while PostgreSQL works for one of them, this process folds for another."""


class StaleReadModelError(Exception):
    """The tables of a read model have another shape than this version of the program expects."""


def shape(model: ReadModel) -> str:
    """A digest of the read model's tables; another one asks for a rebuild."""
    return hashlib.sha256(model.ddl.encode()).hexdigest()[:16]


def create_missing(conninfo: str) -> None:
    """Create the tables of read models that have none yet, and keep the workspaces in all of them apart."""
    with connect(conninfo, autocommit=False) as connection:
        connection.execute("lock table projection_positions in exclusive mode")
        present = {name for (name,) in connection.execute("select name from projection_positions")}
        for model in (model for model in READ_MODELS if model.name not in present):
            for table in model.tables:  # it may be there after a restore, without what it held
                connection.execute(f"drop table if exists {table}".encode())
            connection.execute(model.ddl.encode())
            connection.execute(
                "insert into projection_positions (name, position, shape) values (%s, 0, %s)",
                (model.name, shape(model)),
            )
        for model in READ_MODELS:
            isolate(connection, model)
        connection.execute("select trust_operators()")


def stale(conninfo: str) -> list[ReadModel]:
    """The read models whose tables another version of the program made: they want a rebuild."""
    with connect(conninfo) as connection:
        rows = connection.execute("select name, shape from projection_positions").fetchall()
        shapes: dict[str, str | None] = dict(rows)
    return [model for model in READ_MODELS if shapes.get(model.name) != shape(model)]


def isolate(connection: psycopg.Connection, model: ReadModel, schema: str = "public") -> None:
    """Put the tables of ``model`` under row-level security, where they are not yet."""
    tables = connection.execute(
        "select oid::regclass::text from pg_class"
        " where relnamespace = %s::regnamespace and relname = any(%s) and not relforcerowsecurity",
        (schema, list(model.tables)),
    ).fetchall()
    for (table,) in tables:
        connection.execute(f"select isolate('{table}')".encode())
        connection.execute(f"grant select, insert, update, delete on {table} to {Role.PROJECTOR}".encode())
        if isinstance(model, Directory):
            connection.execute(f"grant select on {table} to {Role.ACCESS}".encode())


class Projector:
    """Moves read models on, one batch after another, several models at once. Used by one thread.

    With ``keys``, whose are destroyed before the erasures that it reads are projected; without them, a read model that
    is to show what is sealed halts. The tree shows nothing: it takes no keys to complete it.
    """

    def __init__(
        self,
        conninfo: str,
        models: Sequence[ReadModel] = READ_MODELS,
        *,
        keys: ContactKeys | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self._keys = keys
        found = keys or (None if all(isinstance(model, Tree) for model in models) else NO_KEYS)
        self._log = EventLog(conninfo, application="conversas-projector", role=Role.PROJECTOR, keys=found)
        self._conninfo = conninfo
        self._models = models
        self._batch_size = batch_size
        self._lanes = ThreadPoolExecutor(LANES, "project")
        self._lane = threading.local()
        self._connections: list[psycopg.Connection] = []
        self._reading = threading.Lock()
        self._batch: tuple[tuple[int, int], list[RecordedEvent]] = ((-1, 0), [])
        self._positions: dict[str, int] = {}
        self._retry_at: dict[str, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Project until ``stop`` is set; waits for new events, and for a database that went away to come back."""
        while not stop.is_set():
            try:
                if not self.advance_all():
                    self._log.wait(0.5)
            except AWAY as error:
                log.warning("connection lost, trying again: %s", error)
                self.discard_connections()
                stop.wait(1.0)

    def catch_up(self, progress: Callable[[int, int], None] = lambda _position, _head: None) -> list[str]:
        """Project until every read model that is not halted has all that the log held when this began.

        ``progress`` is told the lowest position and the log's head. Returns which are halted before that.
        """
        head = self._log.head()
        while self.advance_all():
            position = min(self._positions.values())
            progress(position, head)
            if position >= head:
                break
        return [model.name for model in self._models if self._positions.get(model.name, -1) < head]

    def advance_all(self) -> bool:
        """Move each read model on by one batch at most; whether any moved."""
        head = self._log.head()
        behind = [model for model in self._models if self._positions.get(model.name, -1) < head]
        moving = [self._lanes.submit(self._advance_or_halt, model) for model in behind]
        wait(moving)
        return sum(move.result() for move in moving) > 0

    def _advance_or_halt(self, model: ReadModel) -> bool:
        """Move ``model`` on; one that cannot digest an event stays before it, says so, and holds up no other."""
        if monotonic() < self._retry_at.get(model.name, 0.0):
            return False
        try:
            return self.advance(model, self._batch_size)
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            log.warning("projection %s failed on a batch, trying event by event: %s", model.name, error)
        before = self._positions.get(model.name)
        try:
            for _ in range(self._batch_size):
                if not self.advance(model, 1):
                    break
        except AWAY:
            raise
        except Exception as error:
            log.exception("projection %s is halted", model.name)
            self._halt(model, error)
        return self._positions.get(model.name) != before

    def advance(self, model: ReadModel, limit: int) -> bool:
        """Apply the next ``limit`` events to ``model`` in one transaction; whether there were any."""
        connection = self._connected()
        with connection.transaction():
            position, topic_id = lock_place(connection, model)
            self._positions[model.name] = position
            reached = self._apply_after(connection, model, position, limit, is_shared=topic_id is not None)
            if reached > position:
                move_position(connection, model, reached)
                if isinstance(model, Listing):
                    connection.execute(f"notify {LISTING_CHANNEL}", prepare=True)
        self._positions[model.name] = reached
        return reached > position

    def _apply_after(
        self, connection: psycopg.Connection, model: ReadModel, position: int, limit: int, *, is_shared: bool
    ) -> int:
        """Apply what follows on ``position``; the position that this reaches."""
        events = self._events(position, limit)
        if not events:
            return position
        if is_shared:  # or was: what came through Kafka is there already, and nothing more comes meanwhile
            due = not_held(events, lock_shares(connection, model))
            if due:
                SHARED_MODELS[model.name].apply(connection, due)
        else:
            model.apply(connection, events)
        return events[-1].position

    def _events(self, after: int, limit: int) -> list[RecordedEvent]:
        """The next events; models at the same position share what was read and decoded."""
        with self._reading:
            if self._batch[0] != (after, limit) or not self._batch[1]:
                self._batch = ((after, limit), self._opened(self._log.read_rows(after, limit)))
            return self._batch[1]

    def _opened(self, rows: Sequence[EventRow]) -> list[RecordedEvent]:
        """``rows`` as events, for who has the lock of `_reading`."""
        events = self._log.recorded(rows)
        if self._keys is not None:  # whoever erased them may have been killed before
            erased = [each.stream for each in events if isinstance(each.event, ContactErased)]
            self._keys.destroy([(stream.workspace_id, stream.id) for stream in erased])
        return events

    def _halt(self, model: ReadModel, error: Exception) -> None:
        self._retry_at[model.name] = monotonic() + RETRY_SECONDS
        # No more than this: it is shown to whoever asks whether we are ready. The log has the rest.
        reason = f"{type(error).__name__} at the event after position {self._positions.get(model.name)}"
        self._connected().execute(
            "update projection_positions set halted = %s where name = %s and position = %s",
            (reason, model.name, self._positions.get(model.name)),
        )

    def _connected(self) -> psycopg.Connection:
        """The connection of the present thread."""
        connection: psycopg.Connection | None = getattr(self._lane, "connection", None)
        if connection is None or connection.closed:
            # A commit that is lost in a crash is projected again, rows and position alike.
            settings = LIMITS | {"synchronous_commit": "off", "role": Role.PROJECTOR.value}
            connection = self._lane.connection = connect(self._conninfo, settings, application="conversas-projector")
            self._connections.append(connection)
        return connection

    def discard_connections(self) -> None:
        """Go on with new ones, from where the database says."""
        self._positions.clear()  # a crash may have set them back: ours are not waited for to be durable
        while self._connections:
            self._connections.pop().close()

    def close(self) -> None:
        """Give the connections back."""
        self._lanes.shutdown()
        self.discard_connections()
        self._log.close()
        if self._keys is not None:
            self._keys.close()


def lock_position(connection: psycopg.Connection, model: ReadModel) -> int:
    """The position of ``model``, which nobody else can move until this transaction ends."""
    return lock_place(connection, model)[0]


def lock_place(connection: psycopg.Connection, model: ReadModel) -> tuple[int, str | None]:
    """As `lock_position`, and the id of the topic through which the model is projected as well, if it ever was."""
    return _place(connection, model, "for update")


def read_place(connection: psycopg.Connection, model: ReadModel) -> tuple[int, str | None]:
    """As `lock_place`, but others may move the position on."""
    return _place(connection, model, "")


def _place(connection: psycopg.Connection, model: ReadModel, how: str) -> tuple[int, str | None]:
    row = connection.execute(
        f"select position, shape, topic_id from projection_positions where name = %s {how}",
        (model.name,),
        prepare=True,
    ).fetchone()
    if row is None or row[1] != shape(model):
        msg = f"the tables of '{model.name}' are not of this version; run: conversas rebuild {model.name}"
        raise StaleReadModelError(msg)
    return int(row[0]), row[2]


def move_position(connection: psycopg.Connection, model: ReadModel, position: int) -> None:
    """Note that ``model`` holds all events up to ``position``."""
    connection.execute(
        "update projection_positions set position = %s, halted = null where name = %s",
        (position, model.name),
        prepare=True,
    )
