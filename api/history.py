"""The history over HTTP: who did what, from where and when, across conversations; and the log itself, in order.

Invariant: no personal data: ids and the facts around them.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from adapters.accesses import Access, What, recording
from adapters.event_log import COLUMNS as EVENT_COLUMNS
from adapters.event_log import EventRow, recorded
from api.access import QUERY_PROBLEMS, needs
from api.queries import Moment, Position, as_json, decode_cursor, encode_cursor, fetch, fetch_status, wait_for
from api.sentences import DEFAULT_ZONE, Lang, Names, Speech, Zone, names_for, sentence, speech_of
from domain.envelope import RecordedEvent, StreamType
from domain.errors import PermissionDeniedError
from domain.events import EVENTS, UNPUBLISHED, Actor, ActorKind, Line, Status, Surface
from domain.permissions import Caller, Permission, Scope
from projections.history import BEFORE, SHOWN
from projections.scopes import within_reach
from projections.sql import Sql

router = APIRouter(prefix="/v1", tags=["history"])


_SAID = "Finalizada por Davi Rocha, pela listagem, em 22/11/2026 às 14:03, resultado: resolvida"


class Stood(BaseModel):
    """How a conversation stood."""

    status: Status
    sector_id: UUID | None
    agent_id: UUID | None
    bot: str | None
    contact_id: UUID | None


class HistoryEntry(BaseModel):
    """An event, and how the conversation stood before and after it."""

    sentence: Annotated[str, Field(description="what happened, in words: who, from where, when", examples=[_SAID])]
    position: int
    stream_type: StreamType
    stream_id: UUID
    version: int
    topic: str
    actor: Actor
    surface: Surface
    occurred_at: datetime
    recorded_at: datetime
    request_id: UUID
    correlation_id: UUID
    causation_id: str | None
    status: str | None
    sector_id: UUID | None
    agent_id: UUID | None
    bot: str | None
    contact_id: UUID | None
    details: dict[str, Any]
    before: Annotated[
        Stood | None, Field(description="null: it was not there yet, it is no conversation, or on a contact's timeline")
    ]


class HistoryPage(BaseModel):
    """A page of the history; ``next`` is the cursor of the next one."""

    items: list[HistoryEntry]
    next: str | None


class HistoryFilter(BaseModel):
    """What to look for; all that is given must hold."""

    model_config = ConfigDict(extra="forbid")

    actor: Annotated[Line | None, Field(description="the actor's id")] = None
    actor_kind: ActorKind | None = None
    event: Annotated[Literal[tuple(EVENTS)] | None, Field(description="an event's topic")] = None  # type: ignore[valid-type]
    surface: Surface | None = None
    status: Annotated[Status | None, Field(description="of the conversation after the event")] = None
    sector: Annotated[UUID | None, Field(description="that the conversation was in after the event")] = None
    agent: Annotated[UUID | None, Field(description="whom the conversation was with after the event")] = None
    bot: Annotated[Line | None, Field(description="the bot that the conversation was with after the event")] = None
    status_before: Annotated[Status | None, Field(description="of the conversation before the event")] = None
    sector_before: Annotated[UUID | None, Field(description="that it was in before the event")] = None
    agent_before: Annotated[UUID | None, Field(description="whom it was with before the event")] = None
    bot_before: Annotated[Line | None, Field(description="the bot that it was with before the event")] = None
    contact: Annotated[UUID | None, Field(description="as on their timeline: their events, their conversations'")] = (
        None
    )
    stream: Annotated[UUID | None, Field(description="a conversation, contact, agent …")] = None
    occurred_from: Moment | None = None
    occurred_until: Moment | None = None
    recorded_from: Moment | None = None
    recorded_until: Moment | None = None
    request_id: UUID | None = None
    correlation_id: UUID | None = None
    causation_id: Annotated[Line | None, Field(description="of what caused it, as the client said")] = None
    lang: Lang = None
    tz: Zone = DEFAULT_ZONE
    at_least: Position | None = None


class HistoryParameters(HistoryFilter):
    """What to look for, and which page of it."""

    limit: Annotated[int, Field(ge=1, le=500)] = 100
    cursor: Annotated[str | None, Field(max_length=500, description="`next` of the page before")] = None


@router.get("/history", summary="Search the history", response_model=HistoryPage, responses=QUERY_PROBLEMS)
async def search_history(
    request: Request,
    caller: Annotated[Caller, needs(Permission.READ_HISTORY)],
    wanted: Annotated[HistoryParameters, Query()],
) -> Response:
    """Events across conversations, newest first; only of what you may see. That you looked is recorded."""
    before = decode_cursor(wanted.cursor, int)
    speech = speech_of(request, wanted.lang, wanted.tz)
    await wait_for(request, "history", wanted.at_least)
    conditions = found_by(caller, wanted) + ([("position < %s", before)] if before else [])
    query, values = rows_of(conditions)
    statement = recording(
        Access(caller, What.HISTORY, request.state.request_id), f"{query} limit %s", [*values, wanted.limit + 1]
    )
    rows = await fetch(request, caller, *statement)
    more = len(rows) > wanted.limit
    items = await in_words(request, caller, rows[: wanted.limit], speech)
    return as_json({"items": items, "next": encode_cursor(items[-1]["position"]) if more else None})


def found_by(caller: Caller, wanted: HistoryFilter) -> list[Sql]:
    """The conditions on `history` for what ``wanted`` asks for and ``caller`` may read."""
    workspace = [caller.workspace_id]
    conditions: list[Sql] = [("workspace_id = %s", workspace)]
    for condition, value in (
        ("actor_id = %s", wanted.actor),
        ("actor_kind = %s", wanted.actor_kind),
        ("topic = %s", wanted.event),
        ("surface = %s", wanted.surface),
        ("status = %s", wanted.status),
        ("sector_id = %s", wanted.sector),
        ("agent_id = %s", wanted.agent),
        ("bot = %s", wanted.bot),
        (f"exists (select from {BEFORE} and b.status = %s)", wanted.status_before),
        (f"exists (select from {BEFORE} and b.sector_id = %s)", wanted.sector_before),
        (f"exists (select from {BEFORE} and b.agent_id = %s)", wanted.agent_before),
        (f"exists (select from {BEFORE} and b.bot = %s)", wanted.bot_before),
        ("stream_id = %s", wanted.stream),
        ("occurred_at >= %s", wanted.occurred_from),
        ("occurred_at < %s", wanted.occurred_until),
        ("request_id = %s", wanted.request_id),
        ("correlation_id = %s", wanted.correlation_id),
        ("causation_id = %s", wanted.causation_id),
    ):
        if value is not None:
            conditions.append((condition, [value]))
    if wanted.contact is not None:
        theirs = "select position from timeline where workspace_id = %s and contact_id = %s"
        conditions.append((f"position in ({theirs})", [*workspace, wanted.contact]))
    # Times of recording follow positions, in whose order the rows are wanted.
    for sign, order, at in ((">=", "asc", wanted.recorded_from), ("<", "desc", wanted.recorded_until)):
        if at is not None:
            edge = f"select position from history where workspace_id = %s and recorded_at {sign} %s"
            edge = f"{edge} order by recorded_at {order}, position {order} limit 1"
            conditions.append((f"position {sign.replace('<', '<=')} ({edge})", [*workspace, at]))
    return conditions + within_reach(caller, "stream_id", Permission.VIEW, Permission.READ_HISTORY)


def rows_of(conditions: Sequence[Sql]) -> Sql:
    """The statement for the rows that ``conditions`` hold for, newest first."""
    where = " and ".join(text for text, _ in conditions)
    values = [value for _, some in conditions for value in some]
    return f"select {SHOWN} from history where {where} order by position desc", values


async def in_words(
    request: Request, caller: Caller, rows: Sequence[dict[str, Any]], speech: Speech
) -> list[dict[str, Any]]:
    """Rows of the history as clients see them, with a sentence each."""
    names = await names_for(request, caller, rows) if rows else {}
    return [entry(row, names, speech) for row in rows]


def entry(row: dict[str, Any], names: Names, speech: Speech) -> dict[str, Any]:
    """A row of the history as clients see it."""
    hidden = {"workspace_id", "actor_kind", "actor_id"}
    shown = {key: value for key, value in row.items() if key not in hidden}
    actor = {"kind": row["actor_kind"], "id": row["actor_id"]}
    return {"sentence": sentence(row, names, speech), "before": None} | shown | {"actor": actor}


class EventView(BaseModel):
    """An event in its envelope, without personal data; the same that is published."""

    id: str
    position: int
    stream_type: StreamType
    stream_id: UUID
    version: int
    topic: str
    actor: Actor
    surface: Surface
    occurred_at: datetime
    recorded_at: datetime
    request_id: UUID
    correlation_id: UUID
    causation_id: str | None
    data: dict[str, Any]


class EventPage(BaseModel):
    """Events in the log's order; go on with ``after=next``."""

    items: list[EventView]
    next: Annotated[int, Field(description="read on after this position, now or later")]


class EventParameters(BaseModel):
    """Which part of the log."""

    model_config = ConfigDict(extra="forbid")

    after: Annotated[Position, Field(description="the last position that you have")] = 0
    limit: Annotated[int, Field(ge=1, le=1_000)] = 100


SCANNED = 10_000
"""Positions looked at for one page, at most, so that a small workspace in a large log costs no more."""


@router.get("/events", summary="Read the log", response_model=EventPage, responses=QUERY_PROBLEMS)
async def read_events(
    request: Request,
    caller: Annotated[Caller, needs(Permission.READ_HISTORY, Scope.ALL)],
    wanted: Annotated[EventParameters, Query()],
) -> Response:
    """Every event of the workspace after a position, in order: for consumers without Kafka. That you read is recorded.

    A page may be short or empty although more follow; ``next`` always goes on where it ended.
    """
    require_all(caller)
    after, limit = wanted.after, wanted.limit
    # The head first: what is appended after this look belongs to the next page.
    head = await fetch_status(request, "select coalesce(max(position), 0) as head from events")
    end = min(after + SCANNED, head[0]["head"])
    statement = recording(
        Access(caller, What.HISTORY, request.state.request_id),
        f"select {EVENT_COLUMNS} from events"
        " where position > %s and position <= %s and workspace_id = %s order by position limit %s",
        (after, end, caller.workspace_id, limit),
    )
    rows = await fetch(request, caller, *statement)
    items = [event_view(recorded(EventRow(**row))) for row in rows]
    going_on = items[-1]["position"] if len(items) == limit else max(after, end)
    return as_json({"items": items, "next": going_on})


def require_all(caller: Caller) -> None:
    """Refuse who does not see all conversations: the log has no other order than that of all."""
    if caller.scope(Permission.VIEW) is not Scope.ALL:
        raise PermissionDeniedError(f"This needs the permission '{Permission.VIEW}' in the scope '{Scope.ALL}'.")


def event_view(event: RecordedEvent) -> dict[str, Any]:
    """An event as clients see it."""
    return {
        "id": event.id,
        "position": event.position,
        "stream_type": event.stream.type,
        "stream_id": event.stream.id,
        "version": event.version,
        "topic": event.event.TOPIC,
        "actor": event.metadata.actor.model_dump(mode="json"),
        "surface": event.metadata.surface,
        "occurred_at": event.metadata.occurred_at,
        "recorded_at": event.recorded_at,
        "request_id": event.metadata.request_id,
        "correlation_id": event.metadata.correlation_id,
        "causation_id": event.metadata.causation_id,
        "data": event.event.model_dump(mode="json", exclude=UNPUBLISHED),
    }
