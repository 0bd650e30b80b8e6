"""The service-desk log (`shared/data/README.md`) as conversations: what a row of a case means here.

Invariant: every row of a case leaves at least one event whose causation id is the row's id, and what a row becomes
depends on nothing but the rows of its case up to it.

The reading, precise enough to be written again by somebody else. ``?`` and the empty string are "not known".

Rows
    A line of the file is a row; quoted fields may not span lines. Rows of a case are taken in the order of
    ``sys_mod_count``, equal ones as they stand in the file. A row's id is ``NUMBER/SYS_MOD_COUNT``; the second row of
    a case with the same count gets ``.2`` behind it, the third ``.3``. Rejected (line number and reason): a line with
    another number of columns than the header, a NUL, invalid UTF-8; no ``number``, or one above 64 characters;
    a ``sys_mod_count`` or ``reopen_count`` that is no number; a ``sys_updated_at`` or a known ``opened_at`` that is no
    time, or lies in the future; a value read here above 200 characters. Where the rows of a case do not stand
    together in the file, the file is grouped in memory first; where they do, memory holds one case.

People
    Sector: ``assignment_group``. Agent: ``assigned_to``, role ``agent``; where both are known in a row the agent joins
    the sector. Contact: ``caller_id`` of the first row; an unknown one is a contact of that case alone, "unknown
    caller", because a shared one would put strangers into one timeline. Each is registered by the first row of the
    file that has it, at that row's time (first row of a case: at the opening).
    Actor: the agent ``assigned_to`` of the row where known, else (and for what is automatic) the system.
    ``sys_updated_by`` is no agent of ours and stands in notes only.

First row
    Opened at ``opened_at`` (unknown: the row's time); channel: ``contact_type`` in lower case, runs of other characters
    than ``a-z0-9._-`` replaced by ``-`` (not known: ``unknown``); protocol: ``number``; sector: ``assignment_group``
    where known. Then step 3 at the row's time.

Every other row, in this order, each at the row's time
    1. Reopened, where the conversation is finalized and either ``reopen_count`` grew or ``incident_state`` is Active,
       New or Awaiting ….
    2. Transferred, where ``assignment_group`` is known and is not the conversation's sector (``?`` is "not known", so
       the sector stays the last known one and ``X, ?, X`` is no transfer; ``?, X`` at the first X is one), or where
       ``assigned_to`` went from one known person in the row before to another. One transfer, whichever of the two or
       both. To the agent (within the group, or the conversation's sector) where the person changed so or holds the
       conversation already; else to the sector's queue. While the conversation is finalized no transfer is possible:
       the row is noted with the refusal, and a group that still differs at the reopening is made up for there.
    3. What ``incident_state`` says, so that after every row our status is that of the row:
       Active, ``assigned_to`` known: assumed by them, where they do not hold it already.
       Active, not known: marked pending with the reason "released", where somebody holds it.
       New, Awaiting …: marked pending with the state as reason, where somebody holds it (also just after a transfer
       to a person: the case was handed to them, it still waits).
       Resolved: finalized, where it is not: from the inbox where the row has an ``assigned_to``, else from the
       listing; outcome: ``closed_code`` where known.
       Closed: finalized automatically (cause ``import``), where it is not finalized already.
       Anything else (``-100``): nothing; the status stays.

Notes
    A row that yields none of these, or of which a change was refused, is noted: the columns that differ from the
    row before with both values (all columns but ``number``, ``sys_mod_count``, ``sys_updated_at``,
    ``sys_updated_by``), who updated it, and what was refused with its code.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from operator import attrgetter
from uuid import UUID

from adapters.importers.loading import Change, Lines, source_id
from adapters.importers.report import Rejected
from adapters.importers.servicenow_rows import Row, header_of, rows_by_case
from domain.commands import (
    AddNote,
    Assume,
    Command,
    CreateSector,
    Finalize,
    FinalizeAutomatically,
    JoinSector,
    MarkPending,
    OpenConversation,
    RegisterAgent,
    RegisterContact,
    Reopen,
    Transfer,
)
from domain.contact import Contact
from domain.conversation import Command as ConversationCommand
from domain.conversation import Conversation, decide
from domain.decider import DECIDERS
from domain.directory import Agent, Known, Sector
from domain.envelope import Stream, StreamType
from domain.errors import DomainError
from domain.events import Actor, ActorKind, ContactDetails, FinalizationCause, Status, Surface

SOURCE = "servicenow"
SYSTEM = Actor(kind=ActorKind.SYSTEM, id=SOURCE)
NOTED_VALUE_LIMIT = 200
REOPENING_STATES = re.compile("Active|New|Awaiting .*")
WAITING_STATES = re.compile("New|Awaiting .*")
NOT_A_CHANGE = {"number", "sys_mod_count", "sys_updated_at", "sys_updated_by"}
PEOPLE_KINDS: dict[type[Command], str] = {
    RegisterContact: "contact-registered",
    CreateSector: "sector-created",
    RegisterAgent: "agent-registered",
    JoinSector: "sector-joined",
}


def read(lines: Lines, workspace_id: UUID, now: datetime) -> Iterator[Change | Rejected]:
    """The changes of every case, in the file's order of cases; times after ``now`` are rejected.

    Raises `ImportStoppedError` where the first line does not name the columns that are needed.
    """
    header = header_of(lines)
    cases = _Cases(workspace_id, header)
    for item in rows_by_case(lines, header, now):
        if isinstance(item, Rejected):
            yield item
        else:
            yield from cases.changes(item)


class _Cases:
    """Cases to changes. Remembers who is known already: it grows with people and groups, not with rows."""

    def __init__(self, workspace_id: UUID, header: Sequence[str]) -> None:
        self.workspace_id = workspace_id
        self._noted_columns = [(index, name) for index, name in enumerate(header) if name not in NOT_A_CHANGE]
        self._sectors: dict[UUID, Sector] = {}
        self._agents: dict[UUID, Agent] = {}
        self._contacts: dict[UUID, Contact] = {}
        self.known = Known(contacts=self._contacts, sectors=self._sectors, agents=self._agents)
        self._ids: dict[tuple[str, str], UUID] = {}

    def changes(self, rows: list[Row]) -> Iterator[Change]:
        """The changes of one case, whose ``rows`` may be in disorder."""
        rows.sort(key=attrgetter("count"))
        before, repeated = None, 1
        case = _Case(self, rows[0].number)
        for row in rows:
            repeated = repeated + 1 if before is not None and before.count == row.count else 1
            row.id = f"{row.number}/{row.count}" + (f".{repeated}" if repeated > 1 else "")
            yield from case.changes(before, row)
            before = row

    def id(self, kind: str, name: str) -> UUID:
        """The id of the sector, agent or contact that the log calls ``name``."""
        id_ = self._ids.get((kind, name))
        if id_ is None:
            id_ = self._ids[kind, name] = source_id(self.workspace_id, SOURCE, kind, name)
        return id_

    def contact(self, row: Row, when: datetime) -> Iterator[Change]:
        """Make the caller of a case known, at its first row."""
        name, id_ = row.caller or "unknown caller", self.contact_id(row)
        if id_ not in self._contacts:
            details = ContactDetails(name=name)
            self._contacts[id_] = Contact(id=id_, details=details)
            command = RegisterContact(contact_id=id_, details=details)
            yield self._person(row, when, Stream(self.workspace_id, StreamType.CONTACT, id_), command, name)

    def contact_id(self, row: Row) -> UUID:
        """The contact of a case; an unknown caller is one of their own."""
        return self.id("contact", row.caller or f"unknown of {row.number}")

    def people(self, row: Row, when: datetime) -> Iterator[Change]:
        """Make the group and the assignee of a row known, and the one a member of the other."""
        if row.group:
            yield from self._sector(row, when)
        if row.person:
            yield from self._agent(row, when)
        if row.group and row.person:
            yield from self.member(row, when, self.id("sector", row.group))

    def note(self, before: Row | None, row: Row, author: Actor, refused: str) -> AddNote:
        """What stays of a row that yielded nothing else, or of which something was ``refused``."""
        what = "the first row of its case" if before is None else self._compared(before, row)
        return AddNote(
            message_id=source_id(self.workspace_id, SOURCE, "note", f"{row.id}:{refused}"),
            author=author,
            text=f"{row.id}, {row.updated_by or 'updated by nobody known'}: {what}."
            + (f" Refused: {refused}." if refused else ""),
        )

    def _compared(self, before: Row, row: Row) -> str:
        """The columns that differ from the row before, with both values."""
        old, new = before.values, row.values
        changed = [
            f"{name} ({old[index][:NOTED_VALUE_LIMIT]} → {new[index][:NOTED_VALUE_LIMIT]})"
            for index, name in self._noted_columns
            if old[index] != new[index]
        ]
        return ", ".join(changed) or "no column changed but its counter, time and updater"

    def _sector(self, row: Row, when: datetime) -> Iterator[Change]:
        id_ = self.id("sector", row.group)
        if id_ not in self._sectors:
            self._sectors[id_] = Sector(name=row.group)
            stream = Stream(self.workspace_id, StreamType.SECTOR, id_)
            yield self._person(row, when, stream, CreateSector(name=row.group), row.group)

    def _agent(self, row: Row, when: datetime) -> Iterator[Change]:
        id_ = self.id("agent", row.person)
        if id_ not in self._agents:
            self._agents[id_] = Agent(name=row.person, role="agent")
            stream = Stream(self.workspace_id, StreamType.AGENT, id_)
            yield self._person(row, when, stream, RegisterAgent(name=row.person), row.person)

    def member(self, row: Row, when: datetime, sector_id: UUID) -> Iterator[Change]:
        """Make the assignee of a row a member of a sector."""
        id_ = self.id("agent", row.person)
        agent = self._agents[id_]
        if sector_id not in agent.sectors:
            self._agents[id_] = replace(agent, sectors=(*agent.sectors, sector_id))
            stream = Stream(self.workspace_id, StreamType.AGENT, id_)
            yield self._person(row, when, stream, JoinSector(sector_id=sector_id), str(sector_id))

    def _person(self, row: Row, when: datetime, stream: Stream, command: Command, name: str) -> Change:
        kind = PEOPLE_KINDS[type(command)]
        return Change(
            line=row.line,
            kind=kind,
            key=f"{kind}:{stream.id}:{name}" if isinstance(command, JoinSector) else f"{kind}:{stream.id}",
            fingerprint=hashlib.sha256(name.encode()).digest(),
            stream=stream,
            command=command,
            actor=SYSTEM,
            occurred_at=when,
            causation_id=row.id,
        )


class _Case:
    """One case, folded as the conversation that it becomes: the domain's own rules say what a row yields."""

    def __init__(self, cases: _Cases, number: str) -> None:
        self._cases = cases
        self._stream = Stream(
            cases.workspace_id,
            StreamType.CONVERSATION,
            source_id(cases.workspace_id, SOURCE, "conversation", number),
        )
        self._state: Conversation | None = None
        self._row: Row
        self._before: Row | None = None
        self._actor = SYSTEM
        self._fingerprint = b""
        self._changed = 0
        self._refused: list[str] = []

    def changes(self, before: Row | None, row: Row) -> Iterator[Change]:
        """What ``row`` became after ``before``: at least one change of the conversation."""
        cases = self._cases
        self._before, self._row, self._changed, self._refused = before, row, 0, []
        self._fingerprint = hashlib.sha256("\x1f".join(row.values).encode()).digest()
        self._actor = Actor(kind=ActorKind.AGENT, id=str(cases.id("agent", row.person))) if row.person else SYSTEM
        yield from cases.people(row, row.opened_at if before is None else row.when)
        if before is None:
            yield from self._open()
        else:
            yield from self._reopen(before)
            yield from self._transfer(before)
        yield from self._follow_state()
        if self._refused or not self._changed:
            refused = "; ".join(self._refused)
            note = self._cases.note(before, row, self._actor, refused)
            yield replace(self._change("refused" if refused else "noted", note), refused=refused)

    def _open(self) -> Iterator[Change]:
        row, cases = self._row, self._cases
        yield from cases.contact(row, row.opened_at)
        command = OpenConversation(
            protocol=row.number,
            channel=_slug(row.channel),
            contact_id=cases.contact_id(row),
            sector_id=cases.id("sector", row.group) if row.group else None,
        )
        yield from self._attempt("opened", command, when=row.opened_at)

    def _reopen(self, before: Row) -> Iterator[Change]:
        row = self._row
        grew = row.reopenings > before.reopenings
        if grew or (self._conversation.status is Status.FINALIZED and REOPENING_STATES.fullmatch(row.state)):
            yield from self._attempt("reopened", Reopen(reason=row.state))

    def _transfer(self, before: Row) -> Iterator[Change]:
        row, state = self._row, self._conversation
        person_changed = row.person != before.person and bool(row.person and before.person)
        sector_id = self._cases.id("sector", row.group) if row.group else state.owner.sector_id
        moved = sector_id != state.owner.sector_id
        if state.status is Status.FINALIZED:
            moved = moved and row.group != before.group
        if not (moved or person_changed):
            return
        agent_id = self._cases.id("agent", row.person) if row.person else None
        if not person_changed and agent_id != state.owner.agent_id:
            agent_id = None
        if agent_id is not None and sector_id is not None:
            yield from self._cases.member(row, row.when, sector_id)
        yield from self._attempt("transferred", Transfer(sector_id=sector_id, agent_id=agent_id))

    def _follow_state(self) -> Iterator[Change]:
        """Bring the conversation's status to the row's."""
        row, state = self._row, self._conversation
        held = state.status is Status.IN_PROGRESS
        if row.state == "Active" and row.person:
            yield from self._attempt("assumed", Assume(agent_id=self._cases.id("agent", row.person)))
        elif row.state == "Active" and held:
            yield from self._attempt("marked-pending", MarkPending(reason="released"))
        elif WAITING_STATES.fullmatch(row.state) and held:
            yield from self._attempt("marked-pending", MarkPending(reason=row.state))
        elif row.state == "Resolved":
            surface = Surface.INBOX if row.person else Surface.LISTING
            yield from self._attempt(f"finalized-from-{surface}", Finalize(surface=surface, outcome=row.outcome))
        elif row.state == "Closed":
            command = FinalizeAutomatically(cause=FinalizationCause.IMPORT)
            yield from self._attempt("finalized-automatically", command, actor=SYSTEM)

    def _attempt(
        self, kind: str, command: ConversationCommand, *, when: datetime | None = None, actor: Actor | None = None
    ) -> Iterator[Change]:
        """Record ``command`` where the rules accept it; remember why where they do not."""
        try:
            events = decide(command, self._state, self._cases.known)
        except DomainError as error:
            self._refused.append(f"{kind}: {error.code}")
            return
        self._state = DECIDERS[StreamType.CONVERSATION].fold(events, self._state)
        if events:
            yield self._change(kind, command, when=when, actor=actor)

    @property
    def _conversation(self) -> Conversation:
        assert self._state is not None, "the first row of a case opens it"
        return self._state

    def _change(
        self, kind: str, command: Command, *, when: datetime | None = None, actor: Actor | None = None
    ) -> Change:
        self._changed += 1
        is_note = isinstance(command, AddNote)
        actor = actor or self._actor
        return Change(
            line=self._row.line,
            kind=kind,
            key=f"{self._row.id}:{kind}",
            fingerprint=self._fingerprint,
            stream=self._stream,
            command=command,
            actor=actor,
            occurred_at=when or self._row.when,
            causation_id=self._row.id,
            trace=None if is_note else partial(self._cases.note, self._before, self._row, actor),
        )


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).lstrip("._-")[:64].rstrip("-") or "unknown"
