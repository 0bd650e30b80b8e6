"""Commands of one transaction, decided one after another: on what was read for them, into what is to be written.

Invariant: nothing is read or written here; a request that is refused leaves the batch as it was.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from adapters import codec, sealing
from adapters.contact_keys import Ciphers, KeyMissingError, Person
from adapters.event_log import EventRow
from adapters.sealing import Cipher
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


Key = tuple[UUID, UUID]
"""Workspace and stream id: whatever its kind, an id is taken once in a workspace."""


@dataclass(slots=True)
class Folded:
    """A stream's folded state, as of ``version``; its type is None while there is no such stream."""

    type: StreamType | None = None
    version: int = 0
    state: State | None = None
    known_until: int = -1
    """The position up to which the log certainly holds no more of it; -1: it was never read."""


@dataclass(slots=True)
class Batch:
    """What one transaction has read and is going to write."""

    head: int
    now: datetime
    folded: dict[Key, Folded]
    answered: dict[tuple[UUID, str], tuple[bytes, dict[str, Any]]]
    ciphers: dict[Person, Cipher | None] | None
    """The keys of those who may be written about, None for who is erased; None: nothing is said of anybody."""
    erased: list[Person] = field(default_factory=list)
    rows: list[EventRow] = field(default_factory=list)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    snapshots: list[Key] = field(default_factory=list)


def touched(request: Request) -> Iterable[Key]:
    """The stream that ``request`` writes and those it only reads."""
    workspace_id = request.stream.workspace_id
    yield workspace_id, request.stream.id
    for _, id_ in request.command.names():
        yield workspace_id, id_


_SAYING = (OpenConversation, Finalize, ReceiveMessage, SendMessage, AddNote, SetAttribute)
"""Commands on a conversation that may say something of its contact."""


def written_about(requests: Sequence[Request], folded: Mapping[Key, Folded]) -> tuple[set[Person], set[Person]]:
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


def decide(request: Request, batch: Batch) -> Answer:
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


def _is_same(request: Request, fingerprint: bytes, saved: Mapping[str, Any], batch: Batch) -> bool:
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


def _would_be(request: Request, events: Sequence[Event], batch: Batch) -> Outcome:
    """The outcome of a dry run: the stream as it stands, and how many events there would be."""
    folded = batch.folded[request.stream.workspace_id, request.stream.id]
    status = getattr(folded.state, "status", None)
    position = batch.head + len(batch.rows)
    warnings = warnings_of(events)
    return Outcome(request.stream.id, folded.version, position, len(events), status, dry_run=True, warnings=warnings)


def _again(request: Request, fingerprint: bytes, saved: dict[str, Any], batch: Batch) -> Answer:
    """The answer given before; from now on under all keys of ``request``."""
    given = saved | {"stream_id": UUID(saved["stream_id"]), "warnings": tuple(saved.get("warnings", ()))}
    _remember(request, saved, fingerprint, batch)
    return Outcome(**{name: given[name] for name in given if name not in {"contact", "by"}}, replayed=True)


def _remember(request: Request, saved: dict[str, Any], fingerprint: bytes, batch: Batch) -> None:
    workspace_id = request.stream.workspace_id
    for key in request.keys:
        if (workspace_id, key) not in batch.answered:
            batch.answered[workspace_id, key] = (fingerprint, saved)
            row = {"workspace_id": workspace_id, "key": key, "answer": saved}
            batch.outcomes.append(row | {"fingerprint": fingerprint.hex()})


def _events(request: Request, batch: Batch, *, is_reused: bool) -> list[Event]:
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


def _known(request: Request, batch: Batch) -> Known:
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


def _append_events(request: Request, events: list[Event], batch: Batch) -> Outcome:
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
        batch.folded[key] = Folded(stream.type, version, state)
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


def snapshot(key: Key, batch: Batch) -> dict[str, Any] | None:
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
        data = cipher.seal(data, place_of_snapshot(key, folded.version))
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


def place_of_snapshot(key: Key, version: int) -> bytes:
    """What the seal of a snapshot is bound to."""
    return sealing.place_of(*key, version, "snapshot")
