"""The episodes: one row per opening or reopening of a conversation, until it is finalized, with what is measured of it.

What happens after the end and before the next reopening still counts to the episode that ended, as in the listing.

Invariant: a row is a pure fold of its episode's events; the last one of a conversation agrees with its listing row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, assert_never, cast
from uuid import UUID

import psycopg

from domain.conversation import ConversationEvent
from domain.envelope import RecordedEvent, StreamType
from domain.events import (
    ActorKind,
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
from projections.history import Standing, stand

DDL = """
create table episodes (
    workspace_id           uuid        not null,
    conversation_id        uuid        not null,
    episode                integer     not null, -- 1: opened; from 2 on: reopened
    channel                text        not null,
    contact_id             uuid        not null,
    status                 text        not null,
    started_at             timestamptz not null,
    opened_by              text        not null, -- who opened or reopened it; actors are kind:id
    first_sector_id        uuid,
    first_agent_id         uuid,
    sector_id              uuid,                 -- the last ones: at its end, or now
    agent_id               uuid,
    bot                    text,
    waiting_since          timestamptz,          -- set while pending
    waiting_seconds        double precision not null, -- time spent pending, up to waiting_since
    first_response_seconds double precision,     -- until an agent first wrote
    resolution_seconds     double precision,
    transfers              integer     not null,
    messages_received      integer     not null,
    messages_sent          integer     not null,
    finalized_at           timestamptz,
    finalized_by           text,
    finalized_from         text,                 -- inbox, listing, automatically
    finalized_surface      text,                 -- as the envelope has it: bulk, for one
    finalized_cause        text,
    outcome                text,
    reopened_at            timestamptz,          -- when the next episode began
    primary key (workspace_id, conversation_id, episode)
);
create index on episodes (workspace_id, started_at);
create index on episodes (workspace_id, finalized_at);
"""


@dataclass(slots=True)
class EpisodeRow:
    """A row of the episodes; the fields are the table's columns, in order."""

    workspace_id: UUID
    conversation_id: UUID
    episode: int
    channel: str
    contact_id: UUID
    status: str
    started_at: datetime
    opened_by: str
    first_sector_id: UUID | None = None
    first_agent_id: UUID | None = None
    sector_id: UUID | None = None
    agent_id: UUID | None = None
    bot: str | None = None
    waiting_since: datetime | None = None
    waiting_seconds: float = 0.0
    first_response_seconds: float | None = None
    resolution_seconds: float | None = None
    transfers: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    finalized_at: datetime | None = None
    finalized_by: str | None = None
    finalized_from: str | None = None
    finalized_surface: str | None = None
    finalized_cause: str | None = None
    outcome: str | None = None
    reopened_at: datetime | None = None


COLUMNS = tuple(EpisodeRow.__slots__)
_values: Callable[[EpisodeRow], tuple[Any, ...]] = attrgetter(*COLUMNS)
_TYPES = (
    *("uuid", "uuid", "int4", "text", "uuid", "text", "timestamptz", "text", "uuid", "uuid", "uuid", "uuid", "text"),
    *("timestamptz", "float8", "float8", "float8", "int4", "int4", "int4"),
    *("timestamptz", "text", "text", "text", "text", "text", "timestamptz"),
)
_NOT_COUNTED = (NoteAdded, LabelAdded, LabelRemoved, PriorityChanged, AttributeSet)

Key = tuple[UUID, UUID]
"""Workspace and conversation."""


class Episodes:
    """The read model of episodes."""

    name = "episodes"
    tables: tuple[str, ...] = ("episodes",)
    ddl = DDL

    def apply(self, connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
        """Fold ``events`` into the last episodes of their conversations, and begin new ones."""
        about = [
            recorded
            for recorded in events
            if recorded.stream.type is StreamType.CONVERSATION and not isinstance(recorded.event, _NOT_COUNTED)
        ]
        if not about:
            return
        current = _load(connection, {(event.stream.workspace_id, event.stream.id) for event in about})
        changed: dict[tuple[Key, int], EpisodeRow] = {}
        for recorded in about:
            key = (recorded.stream.workspace_id, recorded.stream.id)
            event = cast("ConversationEvent", recorded.event)
            if isinstance(event, ConversationOpened):
                current[key] = opened(recorded, event)
            elif isinstance(event, ConversationReopened):
                before = current[key]
                before.reopened_at = recorded.metadata.occurred_at
                changed[key, before.episode] = before
                current[key] = reopened(recorded, event, before)
            row = current[key]
            fold(row, recorded, event)
            changed[key, row.episode] = row
        _save(connection, list(changed.values()))


def opened(recorded: RecordedEvent, event: ConversationOpened) -> EpisodeRow:
    """The row that a conversation's first episode starts with."""
    return EpisodeRow(
        workspace_id=recorded.stream.workspace_id,
        conversation_id=recorded.stream.id,
        episode=1,
        channel=event.channel,
        contact_id=event.contact_id,
        status="",
        started_at=recorded.metadata.occurred_at,
        opened_by=_actor(recorded),
    )


def reopened(recorded: RecordedEvent, event: ConversationReopened, before: EpisodeRow) -> EpisodeRow:
    """The row that the episode after ``before`` starts with: nothing is carried over but whom it is with, and how."""
    return EpisodeRow(
        workspace_id=before.workspace_id,
        conversation_id=before.conversation_id,
        episode=event.episode,
        channel=before.channel,
        contact_id=before.contact_id,
        status="",
        started_at=recorded.metadata.occurred_at,
        opened_by=_actor(recorded),
    )


def fold(row: EpisodeRow, recorded: RecordedEvent, event: ConversationEvent) -> None:
    """Change ``row`` by one event of its episode."""
    at = recorded.metadata.occurred_at
    _hold(row, stand(Standing(row.status, Owner(sector_id=row.sector_id, agent_id=row.agent_id, bot=row.bot)), event))
    _mind_the_wait(row, at)
    match event:
        case ConversationFinalizedFromInbox():
            _finalize(row, recorded, "inbox")
            row.outcome = event.outcome
        case ConversationFinalizedFromListing():
            _finalize(row, recorded, "listing")
            row.outcome = event.outcome
        case ConversationFinalizedAutomatically():
            _finalize(row, recorded, "automatically")
            row.finalized_cause = event.cause.value
        case ConversationTransferred():
            row.transfers += 1
        case MessageReceived():
            row.messages_received += 1
        case MessageSent():
            row.messages_sent += 1
            if event.author.kind is ActorKind.AGENT and row.first_response_seconds is None:
                row.first_response_seconds = _seconds(row.started_at, at)
        case ContactReassigned():
            row.contact_id = event.after
        case (
            ConversationOpened()
            | ConversationReopened()
            | ConversationHandedOffToBot()
            | ConversationHandedOffByBot()
            | ConversationMarkedPending()
            | ConversationAssumed()
            | NoteAdded()
            | LabelAdded()
            | LabelRemoved()
            | PriorityChanged()
            | AttributeSet()
        ):
            pass
        case _:
            assert_never(event)


def _hold(row: EpisodeRow, standing: Standing) -> None:
    owner = standing.owner
    row.status, row.sector_id, row.agent_id, row.bot = standing.status, owner.sector_id, owner.agent_id, owner.bot
    row.first_sector_id = row.first_sector_id or owner.sector_id
    row.first_agent_id = row.first_agent_id or owner.agent_id


def _mind_the_wait(row: EpisodeRow, at: datetime) -> None:
    if row.status == Status.PENDING.value:
        row.waiting_since = row.waiting_since or at
    elif row.waiting_since is not None:
        row.waiting_seconds += _seconds(row.waiting_since, at)
        row.waiting_since = None


def _finalize(row: EpisodeRow, recorded: RecordedEvent, where: str) -> None:
    at = recorded.metadata.occurred_at
    row.finalized_at, row.finalized_by, row.finalized_from = at, _actor(recorded), where
    row.finalized_surface = recorded.metadata.surface.value
    row.resolution_seconds = _seconds(row.started_at, at)


def _seconds(since: datetime, until: datetime) -> float:
    return max(0.0, (until - since).total_seconds())


def _actor(recorded: RecordedEvent) -> str:
    actor = recorded.metadata.actor
    return f"{actor.kind.value}:{actor.id}"


def _load(connection: psycopg.Connection[Any], keys: set[Key]) -> dict[Key, EpisodeRow]:
    """The last episodes of the conversations that have one."""
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            f"select {', '.join(f'last.{column}' for column in COLUMNS)}"
            " from unnest(%s::uuid[], %s::uuid[]) as wanted (w, i) cross join lateral ("
            " select * from episodes where workspace_id = w and conversation_id = i"
            " order by episode desc limit 1) last",
            ([key[0] for key in keys], [key[1] for key in keys]),
            prepare=True,
        )
        return {(row[0], row[1]): EpisodeRow(*row) for row in cursor}


def _save(connection: psycopg.Connection[Any], rows: Sequence[EpisodeRow]) -> None:
    """Put ``rows`` in the place of those with the same keys."""
    connection.execute(
        "delete from episodes using unnest(%s::uuid[], %s::uuid[], %s::int4[]) as gone (w, i, e)"
        " where workspace_id = w and conversation_id = i and episode = e",
        (
            [row.workspace_id for row in rows],
            [row.conversation_id for row in rows],
            [row.episode for row in rows],
        ),
        prepare=True,
    )
    with connection.cursor().copy(f"copy episodes ({', '.join(COLUMNS)}) from stdin (format binary)") as copy:
        copy.set_types(_TYPES)
        for row in rows:
            copy.write_row(_values(row))
