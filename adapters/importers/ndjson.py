"""Our own format for past changes: one JSON object per line (`docs/IMPORT.md`).

Invariant: a line names everything by the source's own ids, so the same file means the same events in the same
workspace whenever it is read.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import assert_never
from uuid import UUID

from pydantic import ValidationError

from adapters.importers.loading import Change, Lines, source_id
from adapters.importers.ndjson_lines import (
    LINE,
    TYPES,
    AgentLine,
    AnyConversationLine,
    AnyLine,
    AssumeLine,
    AttributeLine,
    ChangeLine,
    ContactLine,
    ConversationLine,
    FinalizeAutomaticallyLine,
    FinalizeLine,
    HandOffFromBotLine,
    HandOffToBotLine,
    LabelAddLine,
    LabelRemoveLine,
    MessageReceivedLine,
    MessageSentLine,
    NoteLine,
    OpenLine,
    PendingLine,
    PriorityLine,
    ReopenLine,
    SectorLine,
    TransferLine,
)
from adapters.importers.report import Rejected
from domain import commands
from domain.commands import AddNote, Command
from domain.envelope import Stream, StreamType
from domain.events import Actor, ActorKind, ContactDetails

SOURCE = "ndjson"
QUOTED_LIMIT = 10_000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PLACE = re.compile(r" at line 1 (column \d+)$")
"""Where JSON is broken; its line is always the first, since it sees no other."""

NEVER_REFUSED = (MessageReceivedLine, NoteLine, LabelAddLine, LabelRemoveLine, PriorityLine, AttributeLine)
"""Where the conversation exists; and where it does not, no note can stand in for it."""


def read(lines: Lines, workspace_id: UUID, now: datetime) -> Iterator[Change | Rejected]:
    """The changes of every line, in the file's order; times after ``now`` are rejected."""
    changes = _Changes(workspace_id)
    for number, content in lines:
        if content is None:
            yield Rejected(number, "the line is too long")
            continue
        written = content.removeprefix(BYTE_ORDER_MARK) if number == 1 else content
        if not written.strip():
            continue
        try:
            line = LINE.validate_json(written)
            if line.occurred_at > now:
                yield Rejected(number, "occurred_at lies in the future")
                continue
            found = changes.of(number, line)
        except ValidationError as error:
            yield Rejected(number, _reason(error))
            continue
        yield from found


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong, without the value, which may be anything."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        return f"type: must be one of {', '.join(TYPES)}"
    # The path begins with the name of the type, which the line says itself.
    path = ".".join(str(part)[:64] for part in first["loc"][1:])
    if first["type"] == "extra_forbidden":
        return f"unknown field: {path}"
    message = PLACE.sub(r" at \1", first["msg"].removeprefix("Value error, "))
    return f"{path}: {message}" if path else message


class _Changes:
    """Validated lines to changes; all ids in the workspace are made of the source's."""

    def __init__(self, workspace_id: UUID) -> None:
        self._workspace_id = workspace_id

    def of(self, number: int, line: AnyLine) -> list[Change]:
        """The changes of a line; raises `ValidationError` where a command refuses its values."""
        match line:
            case ContactLine():
                return [self._contact(number, line)]
            case SectorLine():
                rename = commands.RenameSector(name=line.name)
                create = commands.CreateSector(name=line.name)
                return [self._change(number, line, StreamType.SECTOR, line.sector, create, rename)]
            case AgentLine():
                return self._agent(number, line)
            case _:
                command = self._command(line)
                note = None if isinstance(line, (*NEVER_REFUSED, OpenLine)) else self._note(line)
                return [self._change(number, line, StreamType.CONVERSATION, line.conversation, command, note)]

    def _contact(self, number: int, line: ContactLine) -> Change:
        details = ContactDetails(name=line.name, phones=line.phones, emails=line.emails, attributes=line.attributes)
        register = commands.RegisterContact(contact_id=self._id(StreamType.CONTACT, line.contact), details=details)
        change = commands.ChangeContactDetails(details=details)
        return self._change(number, line, StreamType.CONTACT, line.contact, register, change)

    def _agent(self, number: int, line: AgentLine) -> list[Change]:
        register = commands.RegisterAgent(name=line.name, role=line.role)
        role = commands.ChangeAgentRole(role=line.role)
        joins = []
        for sector in line.sectors:
            id_ = self._id(StreamType.SECTOR, sector)
            join = commands.JoinSector(sector_id=id_)
            part = f"{line.type}:{id_}"
            joins.append(self._change(number, line, StreamType.AGENT, line.agent, join, part=part))
        return [self._change(number, line, StreamType.AGENT, line.agent, register, role), *joins]

    def _command(self, line: AnyConversationLine) -> Command:
        match line:
            case OpenLine():
                return commands.OpenConversation(
                    protocol=line.protocol,
                    channel=line.channel,
                    contact_id=self._id(StreamType.CONTACT, line.contact),
                    sector_id=self._sector(line.sector),
                    agent_id=self._known_agent(line.agent),
                    subject=line.subject,
                )
            case MessageReceivedLine():
                return commands.ReceiveMessage(
                    message_id=self._message_id(line), kind=line.kind, text=line.text, attachments=line.attachments
                )
            case MessageSentLine():
                return commands.SendMessage(
                    message_id=self._message_id(line),
                    author=self._actor(line),
                    kind=line.kind,
                    text=line.text,
                    attachments=line.attachments,
                )
            case NoteLine():
                return AddNote(message_id=self._message_id(line), author=self._actor(line), text=line.text)
            case AssumeLine():
                return commands.Assume(agent_id=self._id(StreamType.AGENT, line.agent))
            case TransferLine():
                return commands.Transfer(
                    sector_id=self._sector(line.sector), agent_id=self._known_agent(line.agent), reason=line.reason
                )
            case PendingLine():
                return commands.MarkPending(sector_id=self._sector(line.sector), reason=line.reason)
            case HandOffToBotLine():
                return commands.HandOffToBot(bot=line.bot, reason=line.reason)
            case HandOffFromBotLine():
                return commands.HandOffFromBot(sector_id=self._sector(line.sector), reason=line.reason)
            case FinalizeLine():
                return commands.Finalize(surface=line.surface, outcome=line.outcome, comment=line.comment)
            case FinalizeAutomaticallyLine():
                return commands.FinalizeAutomatically(cause=line.cause)
            case ReopenLine():
                return commands.Reopen(agent_id=self._known_agent(line.agent), reason=line.reason)
            case LabelAddLine():
                return commands.AddLabel(label=line.label)
            case LabelRemoveLine():
                return commands.RemoveLabel(label=line.label)
            case PriorityLine():
                return commands.ChangePriority(priority=line.priority)
            case AttributeLine():
                return commands.SetAttribute(key=line.key, value=line.value)
            case _:
                assert_never(line)

    def _note(self, line: AnyConversationLine) -> AddNote:
        said = line.model_dump_json(exclude_unset=True)[:QUOTED_LIMIT]
        text = f"Not done by the import, because the conversation as it stood did not allow it: {said}"
        return AddNote(message_id=self._message_id(line), author=self._actor(line), text=text)

    def _change(
        self,
        number: int,
        line: AnyLine,
        type_: StreamType,
        stream: str,
        command: Command,
        otherwise: Command | None = None,
        *,
        part: str = "change",
    ) -> Change:
        return Change(
            line=number,
            kind=line.type if part == "change" else "sector-joined",
            key=f"{part}:{line.id}",
            fingerprint=hashlib.sha256(line.model_dump_json().encode()).digest(),
            stream=Stream(self._workspace_id, type_, self._id(type_, stream)),
            command=command,
            actor=self._actor(line),
            occurred_at=line.occurred_at,
            causation_id=line.id,
            otherwise=otherwise,
        )

    def _id(self, type_: StreamType, name: str) -> UUID:
        return source_id(self._workspace_id, SOURCE, type_, name)

    def _sector(self, name: str | None) -> UUID | None:
        return None if name is None else self._id(StreamType.SECTOR, name)

    def _known_agent(self, name: str | None) -> UUID | None:
        return None if name is None else self._id(StreamType.AGENT, name)

    def _message_id(self, line: ConversationLine) -> UUID:
        return source_id(self._workspace_id, SOURCE, "message", line.id)

    def _actor(self, line: ChangeLine) -> Actor:
        match line.actor.kind:
            case ActorKind.AGENT:
                return Actor(kind=line.actor.kind, id=str(self._id(StreamType.AGENT, line.actor.id)))
            case ActorKind.CONTACT:
                return Actor(kind=line.actor.kind, id=str(self._id(StreamType.CONTACT, line.actor.id)))
            case _:
                return Actor(kind=line.actor.kind, id=line.actor.id)
