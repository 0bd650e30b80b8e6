"""Writing the log: many commands, decided in order and appended in one transaction.

A transaction takes the append lock *before* it loads, so that nothing can change between deciding and appending, in
this process or another: there are no conflicts to retry, and positions are dense.

Invariant: a request is answered with an outcome only when its events are committed, and its events are appended at
most once, also when the reply to COMMIT is lost.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import orjson
import psycopg
from cachetools import LRUCache

from adapters import codec, sealing
from adapters.contact_keys import Ciphers, ContactKeys, KeyMissingError, Person, as_json
from adapters.deciding import (
    Answer,
    Batch,
    Folded,
    Key,
    Request,
    decide,
    place_of_snapshot,
    snapshot,
    touched,
    written_about,
)
from adapters.event_log import COLUMNS, HEAD, EventRow, append, event_row, in_clear, people_of, shown
from adapters.master_keys import MasterKeysAwayError
from adapters.postgres import APPEND_LOCK, LOG_CHANNEL, WRITER_LIMITS, Role, connect, pipelined
from adapters.sealing import Cipher
from adapters.writer_keys import WriterKeys
from domain.decider import DECIDERS
from domain.envelope import StreamType

log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The log cannot be written now; nothing was changed."""


class OutcomeUnknownError(UnavailableError):
    """The database went away in the middle of a commit and did not come back in time to say whether it landed."""


_AWAY = (
    psycopg.OperationalError,
    psycopg.errors.ReadOnlySqlTransaction,  # what was the primary is one no longer
    psycopg.errors.IdleInTransactionSessionTimeout,
)
"""Errors that say nothing of the commands: the database is away, or not what it was."""

# Rows go in as one JSON document each: far cheaper to write here than PostgreSQL's arrays, and as cheap to read there.
_LOAD_SNAPSHOTS = """
select s.workspace_id, s.stream_id, s.stream_type, s.version, s.state, s.contact_id
from json_to_recordset(%s) as wanted (workspace_id uuid, stream_id uuid)
join snapshots s using (workspace_id, stream_id) where s.shape = any(%s::text[])"""
_LOAD_EVENTS = f"""
select e.*
from json_to_recordset(%s) as wanted (workspace_id uuid, stream_id uuid, version bigint)
cross join lateral (
    select {COLUMNS} from events
    where workspace_id = wanted.workspace_id and stream_id = wanted.stream_id
      and version > coalesce(nullif(wanted.version, 0), (
          select s.version from snapshots s
          where s.workspace_id = wanted.workspace_id and s.stream_id = wanted.stream_id
            and s.shape = any(%s::text[])), 0)
    order by version) e"""
_LOAD_OUTCOMES = """
select o.workspace_id, o.key, o.fingerprint, o.answer
from json_to_recordset(%s) as wanted (workspace_id uuid, key text) join outcomes o using (workspace_id, key)"""
_SAVE_OUTCOMES = """
insert into outcomes select workspace_id, key, decode(fingerprint, 'hex'), answer
from json_to_recordset(%s) as saved (workspace_id uuid, key text, fingerprint text, answer jsonb)"""
_SAVE_SNAPSHOTS = """
insert into snapshots
select workspace_id, stream_id, stream_type, version, decode(state, 'hex'), shape, contact_id
from json_to_recordset(%s) as taken (
    workspace_id uuid, stream_id uuid, stream_type text, version bigint, state text, shape text, contact_id uuid)
on conflict (workspace_id, stream_id) do update
set version = excluded.version, state = excluded.state, shape = excluded.shape, stream_type = excluded.stream_type,
    contact_id = excluded.contact_id"""
_FORGET_SNAPSHOTS = """
delete from snapshots s using json_to_recordset(%s) as erased (workspace_id uuid, contact_id uuid)
where s.workspace_id = erased.workspace_id and s.contact_id = erased.contact_id"""


class CommandHandler:
    """Handles batches of requests over one connection. Used by one thread at a time.

    What says something of a contact is sealed with ``keys``, and without them (None) it is not recorded at all.
    """

    lock_statement = f"select pg_advisory_xact_lock({APPEND_LOCK})"

    def __init__(
        self,
        conninfo: str,
        keys: ContactKeys | None,
        *,
        cached_states: int = 20_000,
        patience_seconds: float = 30.0,
    ) -> None:
        self._keys = WriterKeys(keys, cached_states) if keys else None
        self._conninfo = conninfo
        self._connection: psycopg.Connection | None = None
        self._patience_seconds = patience_seconds
        self._cache: LRUCache[Key, Folded] = LRUCache(maxsize=cached_states)
        self._committing: EventRow | None = None
        self._erasing: list[Person] = []
        self._head = 0
        """Where the log ended after this handler's last transaction."""
        self._foreign_head = 0
        """Up to this position others may have appended; what is known only until an earlier one is read again."""

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        """Decide and append ``requests`` in order, in one transaction; an answer for each.

        A request that its rules refuse fails alone, with a `DomainError`. Where the batch as a whole fails for
        another reason than the database being away, each is tried on its own.
        """
        try:
            return self._attempt(requests)
        except UnavailableError as error:
            return [error for _ in requests]
        except Exception as error:
            self._discard_connection()
            if len(requests) == 1:
                log.exception("a command failed for no reason of its own")
                return [error]
            log.warning("a batch of %d failed (%s); trying each alone", len(requests), error)
            return [answer for request in requests for answer in self.handle([request])]

    def _attempt(self, requests: Sequence[Request]) -> list[Answer]:
        """Run the transaction until it is known to have committed or not to."""
        deadline = monotonic() + self._patience_seconds
        while True:
            self._committing, self._erasing = None, []
            answers: list[Answer] = []
            try:
                self._transact(requests, answers)
            except psycopg.errors.LockNotAvailable as error:
                self._discard_connection()
                msg = "another writer holds the append lock; try again in a moment"
                raise UnavailableError(msg) from error
            except MasterKeysAwayError as error:
                try:
                    self._connected().rollback()  # and keep the keys that are known: what needs no other goes on
                except psycopg.Error:
                    self._discard_connection()
                msg = f"{error}; nothing was changed"
                raise UnavailableError(msg) from error
            except _AWAY as error:
                self._discard_connection()
                if self._committing is not None and self._landed(self._committing, deadline):
                    self._destroy_keys()
                    return answers
                if monotonic() > deadline:
                    msg = "the database cannot be reached; nothing was changed"
                    raise UnavailableError(msg) from error
                log.warning("database connection lost, trying again: %s", error)
                sleep(0.1)
            else:
                self._destroy_keys()
                return answers

    def _destroy_keys(self) -> None:
        """Destroy the keys of whom the log has erased now. Whoever follows the log does so too, where this fails."""
        if not self._erasing or self._keys is None:
            return
        try:
            self._keys.destroy(self._erasing)
        except psycopg.Error:
            log.exception("keys of erased contacts are not destroyed yet; the projector will do it")
            self._discard_connection()

    def _transact(self, requests: Sequence[Request], answers: list[Answer]) -> None:
        """One transaction: lock, load, decide, append, commit. ``answers`` is complete before the commit is sent."""
        connection = self._connected()
        batch = self._load(connection, requests)
        answers.extend(decide(request, batch) for request in requests)
        self._erasing = batch.erased
        if batch.rows or batch.outcomes:
            self._save(connection, batch)
        else:
            connection.commit()  # psycopg forgets its prepared statements on ROLLBACK
        self._head = batch.head + len(batch.rows)
        for key, folded in batch.folded.items():
            folded.known_until = self._head
            self._cache[key] = folded
        if batch.erased:
            self._cache.clear()  # states hold what the erased can be known by

    def _load(self, connection: psycopg.Connection, requests: Sequence[Request]) -> Batch:
        """Take the append lock, then read what the requests touch, as far as it is not known already.

        One round trip; another where somebody else has appended since this handler's last transaction.
        """
        folded = {key: self._cache.get(key) or Folded() for request in requests for key in touched(request)}
        stale = {key for key, known in folded.items() if known.known_until < self._foreign_head}
        keys = {(request.stream.workspace_id, key) for request in requests for key in request.keys}
        asked = [{"workspace_id": workspace_id, "key": key} for workspace_id, key in keys]
        with pipelined(connection):
            connection.execute(self.lock_statement, prepare=True)
            head = connection.execute(HEAD, prepare=True)
            streams = _read(connection, folded, stale) if stale else ()
            outcomes = connection.execute(_LOAD_OUTCOMES, (_json(asked),), prepare=True) if asked else None
        position, now = head.fetchone() or (0, None)
        if position != self._head:
            self._foreign_head = position
            self._catch_up(connection, folded, folded.keys() - stale, streams)
        else:
            self._fold(connection, folded, *streams)
        answered = {(workspace_id, key): (print_, answer) for workspace_id, key, print_, answer in outcomes or ()}
        ciphers = None
        if self._keys is not None:
            ciphers = self._keys.ready(connection, *written_about(requests, folded))
            told = {(key[0], UUID(answer["contact"])) for key, (_, answer) in answered.items() if "contact" in answer}
            ciphers |= self._keys.find(connection, told - ciphers.keys())
        return Batch(head=position, now=now, folded=folded, answered=answered, ciphers=ciphers)

    def _catch_up(
        self,
        connection: psycopg.Connection,
        folded: dict[Key, Folded],
        known: Iterable[Key],
        streams: "_Streams | tuple[()]",
    ) -> None:
        """As `_fold`, where others have appended: what was ``known`` is read on, and who they erased is forgotten."""
        with pipelined(connection):
            erased = self._keys.erased_after(connection, self._head) if self._keys and self._head else ()
            more = _read(connection, folded, known) if known else ()
        if self._keys and (gone := list(erased)):
            self._keys.forget_erased(gone)
            self._cache.clear()
            folded.update({key: Folded() for key in folded})
            with pipelined(connection):
                streams, more = _read(connection, folded, folded.keys()), ()
        self._fold(connection, folded, *streams)
        self._fold(connection, folded, *more)

    def _fold(
        self,
        connection: psycopg.Connection,
        folded: dict[Key, Folded],
        snapshots: Iterable[Any] = (),
        events: Iterable[EventRow] = (),
    ) -> None:
        """Take up what was read."""
        kept, rows = list(snapshots), list(events)
        people = people_of(shown(rows)) | {(row[0], contact_id) for row in kept if (contact_id := row[-1])}
        ciphers = self._keys.find(connection, people) if self._keys and people else {}
        for workspace_id, stream_id, stream_type, version, data, contact_id in kept:
            type_ = StreamType(stream_type)
            place = place_of_snapshot((workspace_id, stream_id), version)
            clear = _cipher(ciphers, (workspace_id, contact_id)).open(bytes(data), place) if contact_id else data
            folded[workspace_id, stream_id] = Folded(type_, version, codec.decode_state(type_, clear))
        for row in rows:
            key, type_ = (row.workspace_id, row.stream_id), StreamType(row.stream_type)
            readable = in_clear(row, ciphers) if row.topic in sealing.CLEAR_IN_READ_MODELS else row
            state = DECIDERS[type_].evolve(folded[key].state, codec.decode(row.topic, readable.data))
            folded[key] = Folded(type_, row.version, state)

    def _save(self, connection: psycopg.Connection, batch: Batch) -> None:
        """Append, remember outcomes and snapshots, and commit."""
        if batch.rows:
            with connection.cursor() as cursor:
                append(cursor, batch.rows)
            self._committing = batch.rows[-1]
        with connection.pipeline():
            if batch.outcomes:
                connection.execute(_SAVE_OUTCOMES, (_json(batch.outcomes),), prepare=True)
            if taken := [row for key in batch.snapshots if (row := snapshot(key, batch))]:
                connection.execute(_SAVE_SNAPSHOTS, (_json(taken),), prepare=True)
            if batch.erased:
                connection.execute(_FORGET_SNAPSHOTS, (as_json(batch.erased),), prepare=True)
            if batch.rows:
                connection.execute(f"notify {LOG_CHANNEL}", prepare=True)
            connection.commit()

    def _landed(self, last: EventRow, deadline: float) -> bool:
        """Whether the transaction whose last event is ``last`` had committed when the connection was lost.

        Under the append lock its backend is certainly through, so the log's word is final. PostgreSQL's own record of
        transactions is not: after a crash it gives the id of one that was lost to another, which then "committed".
        """
        while True:
            try:
                connection = self._connected()
                connection.execute(self.lock_statement)
                row = connection.execute(
                    "select 1 from events where (position, workspace_id, stream_id, version, request_id, recorded_at)"
                    " = (%s, %s, %s, %s, %s, %s)",
                    (
                        *(last.position, last.workspace_id, last.stream_id, last.version),
                        *(last.request_id, last.recorded_at),
                    ),
                ).fetchone()
                connection.rollback()
            except psycopg.OperationalError as error:
                self._discard_connection()
                if monotonic() > deadline:
                    msg = "the outcome is unknown; repeat the request with the same Idempotency-Key to learn it"
                    raise OutcomeUnknownError(msg) from error
                sleep(0.2)
            else:
                return row is not None

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            settings = WRITER_LIMITS | {"role": Role.WRITER.value}
            self._connection = connect(self._conninfo, settings, application="conversas-writer", autocommit=False)
        return self._connection

    def _discard_connection(self) -> None:
        """Let go of the connection and of what was read over it: the database may be another when it comes back."""
        self._cache.clear()
        if self._keys is not None:
            self._keys.forget()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Give the connection back."""
        self._discard_connection()


def _read(connection: psycopg.Connection, folded: Mapping[Key, Folded], keys: Iterable[Key]) -> "_Streams":
    """Ask for what follows the folded states of ``keys`` in the log, and for snapshots where nothing is folded."""
    rows = [{"workspace_id": key[0], "stream_id": key[1], "version": folded[key].version} for key in keys]
    cold = [row for row in rows if row["version"] == 0]
    shapes = codec.state_shapes()
    snapshots = connection.cursor()
    snapshots.execute(_LOAD_SNAPSHOTS, (_json(cold), shapes), prepare=True)
    events = connection.cursor(row_factory=event_row, binary=True)
    events.execute(_LOAD_EVENTS, (_json(rows), shapes), prepare=True)
    return snapshots, events


_Streams = tuple[Iterable[Any], Iterable[EventRow]]
"""Snapshots and events, to be fetched once the pipeline is through."""


def _cipher(ciphers: Ciphers, person: Person) -> Cipher:
    cipher = ciphers.get(person)
    if cipher is None:
        raise KeyMissingError(f"the key of contact {person[1]} is gone, and a snapshot is still there")
    return cipher


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return orjson.dumps(rows).decode()
