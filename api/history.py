"""The history over HTTP: who did what, from where and when, across conversations; and the log itself, in order.

Invariant: no personal data: ids and the facts around them.
"""

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from adapters.event_log import COLUMNS as EVENT_COLUMNS
from adapters.event_log import EventRow, recorded
from api.access import QUERY_PROBLEMS, needs
from api.queries import Moment, Position, as_json, decode_cursor, encode_cursor, fetch, fetch_status, wait_for
from domain.envelope import RecordedEvent, StreamType
from domain.events import EVENTS, UNPUBLISHED, Actor, Line, Surface
from domain.permissions import Caller, Permission, Scope
from projections.history import COLUMNS
from projections.listing_query import Sql, within_reach

router = APIRouter(prefix="/v1", tags=["history"])


class HistoryEntry(BaseModel):
    """An event and how the conversation stood after it."""

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


class HistoryPage(BaseModel):
    """A page of the history; ``next`` is the cursor of the next one."""

    items: list[HistoryEntry]
    next: str | None


class HistoryParameters(BaseModel):
    """What to look for; all that is given must hold."""

    model_config = ConfigDict(extra="forbid")

    actor: Annotated[Line | None, Field(description="the actor's id")] = None
    event: Annotated[Literal[tuple(EVENTS)] | None, Field(description="an event's topic")] = None  # type: ignore[valid-type]
    surface: Surface | None = None
    sector: UUID | None = None
    stream: Annotated[UUID | None, Field(description="a conversation, contact, agent …")] = None
    occurred_from: Moment | None = None
    occurred_until: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 100
    cursor: Annotated[str | None, Field(max_length=500, description="`next` of the page before")] = None
    at_least: Position | None = None


@router.get("/history", summary="Search the history", response_model=HistoryPage, responses=QUERY_PROBLEMS)
async def search_history(
    request: Request,
    caller: Annotated[Caller, needs(Permission.READ_HISTORY)],
    wanted: Annotated[HistoryParameters, Query()],
) -> Response:
    """Events across conversations, newest first; only of what you may see."""
    before = decode_cursor(wanted.cursor, int)
    await wait_for(request, "history", wanted.at_least)
    conditions: list[Sql] = [("workspace_id = %s", [caller.workspace_id])]
    for condition, value in (
        ("actor_id = %s", wanted.actor),
        ("topic = %s", wanted.event),
        ("surface = %s", wanted.surface),
        ("sector_id = %s", wanted.sector),
        ("stream_id = %s", wanted.stream),
        ("occurred_at >= %s", wanted.occurred_from),
        ("occurred_at < %s", wanted.occurred_until),
        ("position < %s", before and before[0]),
    ):
        if value is not None:
            conditions.append((condition, [value]))
    conditions += within_reach(caller, "stream_id", Permission.VIEW, Permission.READ_HISTORY)
    where = " and ".join(text for text, _ in conditions)
    rows = await fetch(
        request,
        caller,
        f"select {', '.join(COLUMNS)} from history where {where} order by position desc limit %s",
        [*(value for _, some in conditions for value in some), wanted.limit + 1],
    )
    more = len(rows) > wanted.limit
    items = [entry(row) for row in rows[: wanted.limit]]
    return as_json({"items": items, "next": encode_cursor(items[-1]["position"]) if more else None})


def entry(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the history as clients see it."""
    hidden = {"workspace_id", "actor_kind", "actor_id"}
    shown = {key: value for key, value in row.items() if key not in hidden}
    return shown | {"actor": {"kind": row["actor_kind"], "id": row["actor_id"]}}


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
    """Every event of the workspace after a position, in order: for consumers without Kafka.

    A page may be short or empty although more follow; ``next`` always goes on where it ended.
    """
    after, limit = wanted.after, wanted.limit
    # The head first: what is appended after this look belongs to the next page.
    head = await fetch_status(request, "select coalesce(max(position), 0) as head from events")
    end = min(after + SCANNED, head[0]["head"])
    rows = await fetch(
        request,
        caller,
        f"select {EVENT_COLUMNS} from events"
        " where position > %s and position <= %s and workspace_id = %s order by position limit %s",
        (after, end, caller.workspace_id, limit),
    )
    items = [event_view(recorded(EventRow(**row))) for row in rows]
    going_on = items[-1]["position"] if len(items) == limit else max(after, end)
    return as_json({"items": items, "next": going_on})


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
