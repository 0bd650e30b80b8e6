"""Writing the log: many commands, decided in order and appended in one transaction.

A transaction takes the append lock *before* it loads, so that nothing can change between deciding and appending, in
this process or another: there are no conflicts to retry, and positions are dense.

Invariant: a request is answered with an outcome only when its events are committed, and its events are appended at
most once, also when the reply to COMMIT is lost.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import orjson
import psycopg
from cachetools import LRUCache

from adapters import codec, sealing
from adapters.contact_keys import Ciphers, ContactKeys, KeyMissingError, Person, as_json
from adapters.event_log import COLUMNS, HEAD, EventRow, append, event_row, in_clear, people_of, shown
from adapters.postgres import APPEND_LOCK, LOG_CHANNEL, WRITER_LIMITS, Role, connect
from adapters.sealing import Cipher
from adapters.writer_keys import WriterKeys
from domain.commands import (
    AddNote,
    ChangeContactDetails,
    Command,
    Finalize,
    OpenConversation,
    ReassignContact,
    ReceiveMessage,
    RegisterContact,
    SendMessage,
    SetAttribute,
)
from domain.contact import Contact
from domain.conversation import Conversation
from domain.decider import DECIDERS, State, authorize, warnings_of
from domain.directory import Known
from domain.envelope import SCHEMA_VERSION, Stream, StreamType
from domain.errors import (
    AlreadyExistsError,
    ContactAlreadyErasedError,
    DomainError,
    IdempotencyKeyReusedError,
    PermissionDeniedError,
    VersionConflictError,
)
from domain.events import ContactErased, Event, Presence, Surface
from domain.permissions import Caller, acts_from

log = logging.getLogger(__name__)

SNAPSHOT_EVERY = 200
"""Events between two snapshots of a stream: at most so many are folded when a stream is loaded."""


class UnavailableError(Exception):
    """The log cannot be written now; nothing was changed."""


class OutcomeUnknownError(UnavailableError):
    """The database went away in the middle of a commit and did not come back in time to say whether it landed."""


@dataclass(frozen=True, slots=True)
class Request:
    """A command with everything that deciding and recording it needs."""

    stream: Stream
    command: Command
    caller: Caller
    surface: Surface
    request_id: UUID
    correlation_id: UUID
    causation_id: str | None = None
    occurred_at: datetime | None = None
    """None: now."""
    expected_version: int | None = None
    """Refuse unless the stream is at this version (`If-Match`)."""
    keys: tuple[str, ...] = ()
    """Idempotency keys: the first answer to any of them is given again."""
    fingerprint: bytes = b""
    """Digest of the request; a key that comes again with another one is refused."""
    presence: Mapping[UUID, Presence] | None = None
    """Who can be reached right now; None: not known."""
    dry_run: bool = False
    """Decide only: nothing is appended, and nothing remembered under a key."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request."""

    stream_id: UUID
    version: int
    """The stream's version after it."""
    position: int
    """A read model that has this position shows the effect."""
    events: int
    """How many events it caused; 0: it was already so."""
    status: str | None = None
    """A conversation's status after it."""
    replayed: bool = False
    """This is the answer given before under the same idempotency key."""
    dry_run: bool = False
    """Nothing was appended: so many events it would cause."""
    warnings: tuple[str, ...] = ()
    """Stable codes of what was done although somebody may want to know."""


Answer = Outcome | Exception


_AWAY = (
    psycopg.OperationalError,
    psycopg.errors.ReadOnlySqlTransaction,  # what was the primary is one no longer
    psycopg.errors.IdleInTransactionSessionTimeout,
)
"""Errors that say nothing of the commands: the database is away, or not what it was."""

Key = tuple[UUID, UUID]
"""Workspace and stream id: whatever its kind, an id is taken once in a workspace."""


@dataclass(slots=True)
class _Folded:
    """A stream's folded state, as of ``version``; its type is None while there is no such stream."""

    type: StreamType | None = None
    version: int = 0
    state: State | None = None
    known_until: int = -1
    """The position up to which the log certainly holds no more of it; -1: it was never read."""


@dataclass(slots=True)
class _Batch:
    """What one transaction has read and is going to write."""

    head: int
    now: datetime
    folded: dict[Key, _Folded]
    answered: dict[tuple[UUID, str], tuple[bytes, dict[str, Any]]]
    ciphers: dict[Person, Cipher | None] | None
    """The keys of those who may be written about, None for who is erased; None: nothing is said of anybody."""
    erased: list[Person] = field(default_factory=list)
    rows: list[EventRow] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[Key] = field(default_factory=list)


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
        self._cache: LRUCache[Key, _Folded] = LRUCache(maxsize=cached_states)
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
        answers.extend(_decide(request, batch) for request in requests)
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

    def _load(self, connection: psycopg.Connection, requests: Sequence[Request]) -> _Batch:
        """Take the append lock, then read what the requests touch, as far as it is not known already.

        One round trip; another where somebody else has appended since this handler's last transaction.
        """
        folded = {key: self._cache.get(key) or _Folded() for request in requests for key in _touched(request)}
        stale = {key for key, known in folded.items() if known.known_until < self._foreign_head}
        keys = {(request.stream.workspace_id, key) for request in requests for key in request.keys}
        asked = [{"workspace_id": workspace_id, "key": key} for workspace_id, key in keys]
        with connection.pipeline():
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
            ciphers = self._keys.ready(connection, *_written_about(requests, folded))
            told = {(key[0], UUID(answer["contact"])) for key, (_, answer) in answered.items() if "contact" in answer}
            ciphers |= self._keys.find(connection, told - ciphers.keys())
        return _Batch(head=position, now=now, folded=folded, answered=answered, ciphers=ciphers)

    def _catch_up(
        self,
        connection: psycopg.Connection,
        folded: dict[Key, _Folded],
        known: Iterable[Key],
        streams: "_Streams | tuple[()]",
    ) -> None:
        """As `_fold`, where others have appended: what was ``known`` is read on, and who they erased is forgotten."""
        with connection.pipeline():
            erased = self._keys.erased_after(connection, self._head) if self._keys and self._head else ()
            more = _read(connection, folded, known) if known else ()
        if self._keys and (gone := list(erased)):
            self._keys.forget_erased(gone)
            self._cache.clear()
            folded.update({key: _Folded() for key in folded})
            with connection.pipeline():
                streams, more = _read(connection, folded, folded.keys()), ()
        self._fold(connection, folded, *streams)
        self._fold(connection, folded, *more)

    def _fold(
        self,
        connection: psycopg.Connection,
        folded: dict[Key, _Folded],
        snapshots: Iterable[Any] = (),
        events: Iterable[EventRow] = (),
    ) -> None:
        """Take up what was read."""
        kept, rows = list(snapshots), list(events)
        people = people_of(shown(rows)) | {(row[0], contact_id) for row in kept if (contact_id := row[-1])}
        ciphers = self._keys.find(connection, people) if self._keys and people else {}
        for workspace_id, stream_id, stream_type, version, data, contact_id in kept:
            type_ = StreamType(stream_type)
            place = _place_of_snapshot((workspace_id, stream_id), version)
            clear = _cipher(ciphers, (workspace_id, contact_id)).open(bytes(data), place) if contact_id else data
            folded[workspace_id, stream_id] = _Folded(type_, version, codec.decode_state(type_, clear))
        for row in rows:
            key, type_ = (row.workspace_id, row.stream_id), StreamType(row.stream_type)
            readable = in_clear(row, ciphers) if row.topic in sealing.CLEAR_IN_READ_MODELS else row
            state = DECIDERS[type_].evolve(folded[key].state, codec.decode(row.topic, readable.data))
            folded[key] = _Folded(type_, row.version, state)

    def _save(self, connection: psycopg.Connection, batch: _Batch) -> None:
        """Append, remember outcomes and snapshots, and commit."""
        if batch.rows:
            with connection.cursor() as cursor:
                append(cursor, batch.rows)
            self._committing = batch.rows[-1]
        with connection.pipeline():
            if batch.outcomes:
                connection.execute(_SAVE_OUTCOMES, (_json(batch.outcomes),), prepare=True)
            if taken := [row for key in batch.snapshots if (row := _snapshot(key, batch))]:
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


def _read(connection: psycopg.Connection, folded: Mapping[Key, _Folded], keys: Iterable[Key]) -> "_Streams":
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


def _touched(request: Request) -> Iterable[Key]:
    """The stream that ``request`` writes and those it only reads."""
    workspace_id = request.stream.workspace_id
    yield workspace_id, request.stream.id
    for _, id_ in request.command.names():
        yield workspace_id, id_


_SAYING = (OpenConversation, Finalize, ReceiveMessage, SendMessage, AddNote, SetAttribute)
"""Commands on a conversation that may say something of its contact."""


def _written_about(requests: Sequence[Request], folded: Mapping[Key, _Folded]) -> tuple[set[Person], set[Person]]:
    """Whose keys ``requests`` may need: of contacts that the log knows, and of those whom they register."""
    known: set[Person] = set()
    new: set[Person] = set()
    for request in requests:
        command, (workspace_id, id_) = request.command, (request.stream.workspace_id, request.stream.id)
        state = folded[workspace_id, id_].state
        match command:
            case RegisterContact() if state is None:
                new.add((workspace_id, id_))
            case RegisterContact() | ChangeContactDetails() if isinstance(state, Contact):
                known.add((workspace_id, id_))
            case OpenConversation(contact_id=contact_id) | ReassignContact(contact_id=contact_id):
                contact = folded.get((workspace_id, contact_id))
                if contact is not None and isinstance(contact.state, Contact):
                    known.add((workspace_id, contact_id))
            case _ if isinstance(state, Contact) and request.keys:
                known.add((workspace_id, id_))
            case _:
                pass
        is_needed = isinstance(command, _SAYING) or request.keys
        if isinstance(state, Conversation) and (is_needed or state.attributes):
            known.add((workspace_id, state.contact_id))
    return known, new


def _decide(request: Request, batch: _Batch) -> Answer:
    """Decide one request on what ``batch`` holds, and put its events and outcome there."""
    workspace_id = request.stream.workspace_id
    earlier = next((found for key in request.keys if (found := batch.answered.get((workspace_id, key)))), None)
    if earlier is not None and _is_same(request, *earlier, batch):
        return _again(request, *earlier, batch)
    try:
        events = _events(request, batch, is_reused=earlier is not None)
        if request.dry_run:
            return _would_be(request, events, batch)
        outcome = _append_events(request, events, batch)
    except DomainError as error:
        return error
    except Exception as error:
        log.exception("deciding %s failed", type(request.command).__name__)
        return error
    saved: dict[str, Any] = {name: getattr(outcome, name) for name in ("version", "position", "events", "status")}
    if outcome.warnings:
        saved["warnings"] = outcome.warnings
    saved |= {"stream_id": str(outcome.stream_id)}
    contact_id = _contact_id(batch.folded[workspace_id, outcome.stream_id].state)
    cipher = batch.ciphers.get((workspace_id, contact_id)) if batch.ciphers and contact_id else None
    if cipher is None:
        _remember(request, saved, request.fingerprint, batch)
    elif request.keys:
        # What was asked may be guessed; once the contact is erased, no guess can be confirmed.
        whose = {"contact": str(contact_id), "by": _by(request)}
        _remember(request, saved | whose, cipher.digest(request.fingerprint), batch)
    return outcome


def _by(request: Request) -> str:
    return f"{request.caller.actor.kind.value}:{request.caller.actor.id}"


def _is_same(request: Request, fingerprint: bytes, saved: Mapping[str, Any], batch: _Batch) -> bool:
    """Whether ``request`` is the one that was answered; of an erased contact only by whom it was is known."""
    contact_id = saved.get("contact")
    if contact_id is None:
        return bytes(fingerprint) == request.fingerprint
    cipher = (batch.ciphers or {}).get((request.stream.workspace_id, UUID(contact_id)))
    if cipher is None:
        return bool(saved["by"] == _by(request))
    return bytes(fingerprint) == cipher.digest(request.fingerprint)


def _contact_id(state: State | None) -> UUID | None:
    """Whom a stream is about."""
    match state:
        case Contact(id=contact_id) | Conversation(contact_id=contact_id):
            return contact_id
        case _:
            return None


def _would_be(request: Request, events: Sequence[Event], batch: _Batch) -> Outcome:
    """The outcome of a dry run: the stream as it stands, and how many events there would be."""
    folded = batch.folded[request.stream.workspace_id, request.stream.id]
    status = getattr(folded.state, "status", None)
    position = batch.head + len(batch.rows)
    warnings = warnings_of(events)
    return Outcome(request.stream.id, folded.version, position, len(events), status, dry_run=True, warnings=warnings)


def _again(request: Request, fingerprint: bytes, saved: dict[str, Any], batch: _Batch) -> Answer:
    """The answer given before; from now on under all keys of ``request``."""
    given = saved | {"stream_id": UUID(saved["stream_id"]), "warnings": tuple(saved.get("warnings", ()))}
    _remember(request, saved, fingerprint, batch)
    return Outcome(**{name: given[name] for name in given if name not in {"contact", "by"}}, replayed=True)


def _remember(request: Request, saved: dict[str, Any], fingerprint: bytes, batch: _Batch) -> None:
    workspace_id = request.stream.workspace_id
    for key in request.keys:
        if (workspace_id, key) not in batch.answered:
            batch.answered[workspace_id, key] = (fingerprint, saved)
            row = {"workspace_id": workspace_id, "key": key, "answer": saved}
            batch.outcomes.append(row | {"fingerprint": fingerprint.hex()})


def _events(request: Request, batch: _Batch, *, is_reused: bool) -> list[Event]:
    """What the request causes; where its key came before with another (``is_reused``), only who may do it is told."""
    folded = batch.folded[request.stream.workspace_id, request.stream.id]
    is_other = folded.type not in {None, request.stream.type}
    state, version = (None, 0) if is_other else (folded.state, folded.version)
    known = _known(request, batch)
    authorize(request.command, state, request.caller, known)
    if not acts_from(request.caller, request.surface):
        msg = f"'{request.surface}' is no place where a person acts: name the inbox, the listing or the API."
        raise PermissionDeniedError(msg)
    if is_reused:
        raise IdempotencyKeyReusedError
    if request.expected_version is not None and request.expected_version != version:
        raise VersionConflictError(request.expected_version, version)
    events = DECIDERS[request.stream.type].decide(request.command, state, known)
    if events and is_other:
        raise AlreadyExistsError
    return events


def _known(request: Request, batch: _Batch) -> Known:
    known: dict[StreamType, dict[UUID, Any]] = {type_: {} for type_ in StreamType}
    for type_, id_ in request.command.names():
        folded = batch.folded[request.stream.workspace_id, id_]
        if folded.state is not None and folded.type is type_:
            known[type_][id_] = folded.state
    return Known(
        contacts=known[StreamType.CONTACT],
        sectors=known[StreamType.SECTOR],
        agents=known[StreamType.AGENT],
        roles=known[StreamType.ROLE],
        attributes=known[StreamType.ATTRIBUTE],
        conversations=known[StreamType.CONVERSATION],
        presence=request.presence,
    )


def _append_events(request: Request, events: list[Event], batch: _Batch) -> Outcome:
    stream = request.stream
    key = (stream.workspace_id, stream.id)
    folded = batch.folded[key]
    state, version = folded.state, folded.version
    evolve = DECIDERS[stream.type].evolve
    rows: list[EventRow] = []
    for event in events:
        state, version = evolve(state, event), version + 1
        rows.append(
            EventRow(
                position=batch.head + len(batch.rows) + len(rows) + 1,
                workspace_id=stream.workspace_id,
                stream_type=stream.type.value,
                stream_id=stream.id,
                version=version,
                topic=event.TOPIC,
                data=_stored(event, stream, version, batch.ciphers),
                actor_kind=request.caller.actor.kind.value,
                actor_id=request.caller.actor.id,
                surface=request.surface.value,
                # By the log's clock, where another one is ahead: nothing is recorded before it happened.
                occurred_at=min(request.occurred_at or batch.now, batch.now),
                recorded_at=batch.now,
                request_id=request.request_id,
                correlation_id=request.correlation_id,
                causation_id=request.causation_id,
                schema_version=SCHEMA_VERSION,
            )
        )
    batch.rows.extend(rows)
    if any(isinstance(event, ContactErased) for event in events):
        batch.erased.append(key)
        if batch.ciphers is not None:
            batch.ciphers[key] = None
    if rows:
        batch.folded[key] = _Folded(stream.type, version, state)
    if version // SNAPSHOT_EVERY > folded.version // SNAPSHOT_EVERY and key not in batch.snapshots:
        batch.snapshots.append(key)
    return Outcome(
        stream_id=stream.id,
        version=version,
        position=batch.head + len(batch.rows),
        events=len(events),
        status=getattr(state, "status", None),
        warnings=warnings_of(events),
    )


def _stored(event: Event, stream: Stream, version: int, ciphers: Ciphers | None) -> bytes:
    """The event as it is stored: what it says of a contact is sealed.

    Raises `ContactAlreadyErasedError` where it says something of a contact who is erased, and `KeyMissingError` where
    there are no keys: it is never stored in clear.
    """
    data = codec.encode(event)
    if not sealing.says_something(event.TOPIC, data):
        return data
    if ciphers is None:
        raise KeyMissingError("who writes has no keys of contacts, and what is said of them is not stored in clear")
    cipher = ciphers[stream.workspace_id, sealing.contact_of(data)]
    if cipher is None:
        raise ContactAlreadyErasedError
    return sealing.seal(data, cipher, sealing.place_of(stream.workspace_id, stream.id, version, event.TOPIC))


def _snapshot(key: Key, batch: _Batch) -> dict[str, Any] | None:
    """The row that keeps a folded state; None where it says something of several contacts, who go at different times.

    What says something of one is sealed with their key.
    """
    folded = batch.folded[key]
    assert folded.type is not None, "only a stream that is there is snapshotted"
    data = codec.encode_state(folded.type, folded.state)
    about = _said_of(folded.state) if batch.ciphers is not None else set()
    if about:
        cipher = batch.ciphers.get((key[0], next(iter(about)))) if batch.ciphers and len(about) == 1 else None
        if cipher is None:
            return None
        data = cipher.seal(data, _place_of_snapshot(key, folded.version))
    return {
        "workspace_id": key[0],
        "stream_id": key[1],
        "stream_type": folded.type,
        "version": folded.version,
        "state": data.hex(),
        "shape": codec.state_shape(folded.type),
        "contact_id": next(iter(about), None),
    }


def _said_of(state: State | None) -> set[UUID]:
    """The contacts of whom a state says something."""
    match state:
        case Contact(id=contact_id, erased=False):
            return {contact_id}
        case Conversation(attribute_contacts=contacts):
            return set(contacts.values())
        case _:
            return set()


def _place_of_snapshot(key: Key, version: int) -> bytes:
    return sealing.place_of(*key, version, "snapshot")


def _cipher(ciphers: Ciphers, person: Person) -> Cipher:
    cipher = ciphers.get(person)
    if cipher is None:
        raise KeyMissingError(f"the key of contact {person[1]} is gone, and a snapshot is still there")
    return cipher


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return orjson.dumps(rows).decode()
