"""The history: one row per event, so that who did what, from where and when can be searched across conversations.

What an event says of a person stays out of it: the row holds ids and the facts around them; texts are read from the
log. For conversations a row also says how it stood after the event; how it stood before is the row before.

Invariant: exactly one row per event of the log, at the event's position.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never, cast
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from domain.conversation import ConversationEvent
from domain.envelope import RecordedEvent, StreamType
from domain.events import (
    UNPUBLISHED,
    AttributeSet,
    ContactReassigned,
    ConversationAssumed,
    ConversationFinalizedAutomatically,
    ConversationFinalizedFromInbox,
    ConversationFinalizedFromListing,
    ConversationHandedOffByBot,
    ConversationHandedOffToBot,
    ConversationMarkedPending,
    ConversationOpened,
    ConversationReopened,
    ConversationTransferred,
    LabelAdded,
    LabelRemoved,
    MessageReceived,
    MessageSent,
    NoteAdded,
    Owner,
    PriorityChanged,
    Status,
)
from projections import timeline

DDL = """
create table history (
    position       bigint      not null primary key,
    workspace_id   uuid        not null,
    stream_type    text        not null,
    stream_id      uuid        not null,
    version        bigint      not null,
    topic          text        not null,
    actor_kind     text        not null,
    actor_id       text        not null,
    surface        text        not null,
    occurred_at    timestamptz not null,
    recorded_at    timestamptz not null,
    request_id     uuid        not null,
    correlation_id uuid        not null,
    causation_id   text,
    status         text,                 -- of the conversation after the event
    sector_id      uuid,
    agent_id       uuid,
    bot            text,
    contact_id     uuid,                 -- whom the conversation is with after the event
    details        jsonb       not null, -- the event without its personal part
    unique (workspace_id, stream_id, version)
);
create index on history (workspace_id, occurred_at, position);
create index on history (workspace_id, actor_id, position);
create index on history (workspace_id, topic, position);
create index on history (workspace_id, recorded_at, position);
create index on history (workspace_id, surface, position);
create index on history (workspace_id, sector_id, position) where sector_id is not null;
create index on history (workspace_id, agent_id, position) where agent_id is not null;
create index on history (workspace_id, bot, position) where bot is not null;
create index on history (request_id);
create index on history (correlation_id);
"""

COLUMNS = (
    *("position", "workspace_id", "stream_type", "stream_id", "version", "topic", "actor_kind", "actor_id", "surface"),
    *("occurred_at", "recorded_at", "request_id", "correlation_id", "causation_id"),
    *("status", "sector_id", "agent_id", "bot", "contact_id", "details"),
)
STANDING = ("status", "sector_id", "agent_id", "bot", "contact_id")
BEFORE = """history b where b.workspace_id = history.workspace_id and b.stream_id = history.stream_id
and b.version = history.version - 1 and b.status is not null"""
"""The event before one of a conversation, whose row says how it stood."""
SHOWN = f"""{", ".join(COLUMNS)}, (
    select json_build_object({", ".join(f"'{name}', b.{name}" for name in STANDING)}) from {BEFORE}) as before"""
"""What is asked of `history` for who is told of it."""
_TYPES = (
    *("int8", "uuid", "text", "uuid", "int8", "text", "text", "text", "text", "timestamptz", "timestamptz"),
    *("uuid", "uuid", "text", "text", "uuid", "uuid", "text", "uuid", "jsonb"),
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How a conversation stands: its status, who answers for it, and whom it is with (None: it was not asked)."""

    status: str
    owner: Owner
    contact_id: UUID | None = None


class History:
    """The read model of events, and of the contacts that they belong to."""

    name = "history"
    tables: tuple[str, ...] = ("history", "timeline")
    ddl = DDL + timeline.DDL

    def apply(self, connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
        """Add a row for each of ``events``."""
        standings = _load_standings(connection, events)
        entries: list[timeline.Entry] = []
        with connection.cursor().copy(f"copy history ({', '.join(COLUMNS)}) from stdin (format binary)") as copy:
            copy.set_types(_TYPES)
            for recorded in events:
                stream, metadata = recorded.stream, recorded.metadata
                standing = None
                if stream.type is StreamType.CONVERSATION:
                    key = (stream.workspace_id, stream.id)
                    standing = stand(standings.get(key), cast("ConversationEvent", recorded.event))
                    standings[key] = standing
                entries += timeline.entries(recorded, standing.contact_id if standing else None)
                copy.write_row(
                    (
                        recorded.position,
                        stream.workspace_id,
                        stream.type.value,
                        stream.id,
                        recorded.version,
                        recorded.event.TOPIC,
                        metadata.actor.kind.value,
                        metadata.actor.id,
                        metadata.surface.value,
                        metadata.occurred_at,
                        recorded.recorded_at,
                        metadata.request_id,
                        metadata.correlation_id,
                        metadata.causation_id,
                        standing and standing.status,
                        standing and standing.owner.sector_id,
                        standing and standing.owner.agent_id,
                        standing and standing.owner.bot,
                        standing and standing.contact_id,
                        Jsonb(recorded.event.model_dump(mode="json", exclude=UNPUBLISHED)),
                    )
                )
        timeline.save(connection, entries, events)


def stand(before: Standing | None, event: ConversationEvent) -> Standing:
    """How the conversation stands after ``event``."""
    if isinstance(event, ConversationOpened):
        return _held(Owner(sector_id=event.sector_id, agent_id=event.agent_id), event.contact_id)
    assert before is not None, "the log holds an event before the one that opens the conversation"
    match event:
        case ConversationHandedOffToBot():
            return _held(Owner(sector_id=before.owner.sector_id, bot=event.bot), before.contact_id)
        case ConversationHandedOffByBot() | ConversationMarkedPending():
            return _held(Owner(sector_id=event.sector_id), before.contact_id)
        case ConversationAssumed():
            return _held(Owner(sector_id=before.owner.sector_id, agent_id=event.agent_id), before.contact_id)
        case ConversationTransferred():
            return _held(event.target, before.contact_id)
        case (
            ConversationFinalizedFromInbox() | ConversationFinalizedFromListing() | ConversationFinalizedAutomatically()
        ):
            return replace(before, status=Status.FINALIZED.value)
        case ConversationReopened():
            return _held(Owner(sector_id=event.sector_id, agent_id=event.agent_id), before.contact_id)
        case ContactReassigned():
            return replace(before, contact_id=event.after)
        case (
            MessageReceived()
            | MessageSent()
            | NoteAdded()
            | LabelAdded()
            | LabelRemoved()
            | PriorityChanged()
            | AttributeSet()
        ):
            return before
        case _:
            assert_never(event)


def _held(owner: Owner, contact_id: UUID | None) -> Standing:
    if owner.bot is not None:
        return Standing(Status.WITH_BOT.value, owner, contact_id)
    status = Status.PENDING if owner.agent_id is None else Status.IN_PROGRESS
    return Standing(status.value, owner, contact_id)


def _load_standings(
    connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]
) -> dict[tuple[UUID, UUID], Standing]:
    """How the conversations that ``events`` are about stood before; those opened by them are left out."""
    keys = {
        (recorded.stream.workspace_id, recorded.stream.id)
        for recorded in events
        if recorded.stream.type is StreamType.CONVERSATION
    } - {
        (recorded.stream.workspace_id, recorded.stream.id)
        for recorded in events
        if isinstance(recorded.event, ConversationOpened)
    }
    cursor = connection.execute(
        "select w, i, last.status, last.sector_id, last.agent_id, last.bot, last.contact_id"
        " from unnest(%s::uuid[], %s::uuid[]) as wanted (w, i) cross join lateral ("
        " select status, sector_id, agent_id, bot, contact_id from history where workspace_id = w and stream_id = i"
        " order by version desc limit 1) last",
        ([key[0] for key in keys], [key[1] for key in keys]),
        prepare=True,
    )
    return {
        (workspace_id, id_): Standing(status, Owner(sector_id=sector_id, agent_id=agent_id, bot=bot), contact_id)
        for workspace_id, id_, status, sector_id, agent_id, bot, contact_id in cursor
    }
