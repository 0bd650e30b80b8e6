"""Metrics per episode over HTTP: the episodes of one conversation, and totals over any filter and period.

Invariant: only conversations within the caller's scope count; the filter is the listing's own, compiled by it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import available_timezones

from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from api import demo
from api.access import COMMAND_PROBLEMS, QUERY_PROBLEMS, needs
from api.listing import BarParameters, ToldElsewhere, filter_of
from api.queries import (
    AtLeast,
    Cursor,
    Limit,
    Moment,
    Position,
    as_json,
    decode_cursor,
    encode_cursor,
    fetch,
    of_search,
    wait_for,
)
from domain.errors import ConversationNotFoundError
from domain.events import FinalizationCause, Status, Surface
from domain.permissions import Caller, Permission, Scope
from projections import episode_totals
from projections.episode_totals import COUNTS, MEASURES, MOST_GROUPS, GroupBy, Wanted, totals
from projections.filter_sql import where
from projections.filters import EVERYTHING, Filter
from projections.listing_query import one
from projections.sql import Sql

router = APIRouter(prefix="/v1", tags=["metrics"])
ConversationId = Annotated[UUID, Path(description="the conversation's id", examples=[demo.CONVERSATION])]
Viewer = Annotated[Caller, needs(Permission.VIEW)]


class EpisodeView(BaseModel):
    """From opening (or reopening) to finalizing. Durations are seconds; actors are kind:id."""

    episode: Annotated[int, Field(description="1: opened; from 2 on: reopened")]
    channel: str
    contact_id: UUID
    status: Annotated[Status, Field(description="at its end, or now")]
    started_at: datetime
    opened_by: Annotated[str, Field(description="who opened or reopened it")]
    first_sector_id: UUID | None
    first_agent_id: UUID | None
    sector_id: Annotated[UUID | None, Field(description="the last one: at its end, or now")]
    agent_id: UUID | None
    bot: str | None
    waiting_since: Annotated[datetime | None, Field(description="set while it is pending")]
    waiting_seconds: Annotated[float, Field(description="time spent pending, up to waiting_since")]
    first_response_seconds: Annotated[float | None, Field(description="until an agent first wrote")]
    resolution_seconds: Annotated[float | None, Field(description="until it was finalized")]
    transfers: int
    messages_received: int
    messages_sent: int
    finalized_at: datetime | None
    finalized_by: str | None
    finalized_from: Literal["inbox", "listing", "automatically"] | None
    finalized_surface: Annotated[Surface | None, Field(description="where that was done: bulk, for one")]
    finalized_cause: FinalizationCause | None
    outcome: str | None
    reopened_at: Annotated[datetime | None, Field(description="when the next episode began")]


class EpisodePage(BaseModel):
    """A page of episodes, the first one first; ``next`` is the cursor of the next page."""

    items: list[EpisodeView]
    next: str | None


@router.get(
    "/conversations/{id}/episodes", summary="Read its episodes", response_model=EpisodePage, responses=QUERY_PROBLEMS
)
async def get_episodes(
    id: ConversationId,
    request: Request,
    caller: Viewer,
    limit: Limit = 100,
    cursor: Cursor = None,
    at_least: AtLeast = None,
) -> Response:
    """The conversation's episodes and what is measured of each: waiting, first response, resolution, who ended it."""
    after = decode_cursor(cursor, int) or [0]
    await _wait_for_both(request, at_least)
    if not await fetch(request, caller, *one(caller, id)):
        raise ConversationNotFoundError
    rows = await fetch(
        request,
        caller,
        f"select {', '.join(EpisodeView.model_fields)} from episodes"
        " where workspace_id = %s and conversation_id = %s and episode > %s order by episode limit %s",
        (caller.workspace_id, id, *after, limit + 1),
    )
    more = len(rows) > limit
    items = rows[:limit]
    return as_json({"items": items, "next": encode_cursor(items[-1]["episode"]) if more else None})


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones() - {"localtime"})


def _known_zone(name: str) -> str:
    if name not in _time_zones():
        raise PydanticCustomError("time_zone", "expected the name of a time zone, such as America/Sao_Paulo")
    return name


TimeZone = Annotated[str, Field(max_length=64), AfterValidator(_known_zone)]


class Totalling(BaseModel):
    """Which episodes of the conversations that fit count, and told apart by what."""

    model_config = ConfigDict(extra="forbid")

    period: Annotated[
        episode_totals.Moment,
        Field(description="which moment of an episode must lie in the period, and decides on its day"),
    ] = episode_totals.Moment.STARTED
    period_from: Moment | None = None
    period_until: Moment | None = None
    group_by: Annotated[list[GroupBy], Field(max_length=3, description="up to three")] = []
    time_zone: Annotated[TimeZone, Field(description="whose days", examples=["America/Sao_Paulo"])] = "UTC"
    at_least: Annotated[
        Position | None, Field(description="wait, briefly, until this position of a command's answer is counted")
    ] = None


class TotalsParameters(Totalling, BarParameters):
    """The filter bar, period and groups."""


class TotalsSearch(Totalling):
    """A filter, period and groups."""

    filter: ToldElsewhere = EVERYTHING


class Spread(BaseModel):
    """How long it took, in seconds: of ``count`` episodes that have it; null where none has."""

    count: int
    average: float | None
    median: float | None
    p90: Annotated[float | None, Field(description="nine of ten took no longer")]


class Totals(BaseModel):
    """Of one group of episodes."""

    group: Annotated[dict[str, Any], Field(description="what its episodes have in common, by the names in group_by")]
    episodes: Annotated[int, Field(description="all of them: opened and reopened")]
    opened: Annotated[int, Field(description="a conversation's first")]
    reopened: Annotated[int, Field(description="those that began with a reopening")]
    finalized: Annotated[int, Field(description="those that have ended")]
    returned: Annotated[int, Field(description="those of them that were reopened after that")]
    transfers: int
    messages_received: int
    messages_sent: int
    waiting_seconds: Annotated[Spread, Field(description="pending; a wait that goes on counts up to now")]
    first_response_seconds: Annotated[Spread, Field(description="until an agent first wrote")]
    resolution_seconds: Annotated[Spread, Field(description="until it was finalized")]


class TotalsAnswer(BaseModel):
    """Totals per group, in the groups' order; one without groups."""

    items: list[Totals]
    more: Annotated[bool, Field(description=f"there are more than {MOST_GROUPS:,} groups: ask for less at a time")]


@router.get("/metrics", summary="Total the episodes", response_model=TotalsAnswer, responses=QUERY_PROBLEMS)
async def get_totals(request: Request, caller: Viewer, wanted: Annotated[TotalsParameters, Query()]) -> Response:
    """Counts and durations of the episodes of all conversations that you may see and that fit the filters."""
    return await _totals(request, caller, filter_of(wanted), wanted, "query")


@router.post(
    "/metrics/search",
    summary="Total the episodes by a filter that nests",
    response_model=TotalsAnswer,
    responses=COMMAND_PROBLEMS,
    openapi_extra={
        "requestBody": {
            "content": {
                "application/json": {
                    "example": {
                        "filter": {"not": {"field": "channel", "operator": "is", "value": "email"}},
                        "period": "started",
                        "period_from": "2026-01-01T00:00:00-03:00",
                        "group_by": ["sector", "day"],
                        "time_zone": "America/Sao_Paulo",
                    }
                }
            }
        }
    },
)
async def search_totals(request: Request, caller: Viewer, wanted: TotalsSearch) -> Response:
    """Counts and durations of the episodes of all conversations that you may see and that fit a filter."""
    return await _totals(request, caller, wanted.filter, wanted, "body")


async def _totals(request: Request, caller: Caller, filter_: Filter, wanted: Totalling, place: str) -> Response:
    if len(set(wanted.group_by)) < len(wanted.group_by):
        found = {"loc": (place, "group_by"), "type": "invalid", "msg": "names a group twice"}
        raise RequestValidationError([found])
    await _wait_for_both(request, wanted.at_least)
    asked = Wanted(
        group_by=wanted.group_by,
        moment=wanted.period,
        start=wanted.period_from,
        end=wanted.period_until,
        time_zone=wanted.time_zone,
        now=datetime.now(UTC),
    )
    statement = totals(caller.workspace_id, chosen(caller, filter_, asked.now), asked)
    rows = await fetch(request, caller, *statement, of_search(request, caller, filter_))
    items = [_shown(row, wanted.group_by) for row in rows[:MOST_GROUPS]]
    return as_json({"items": items, "more": len(rows) > MOST_GROUPS})


def chosen(caller: Caller, filter_: Filter, now: datetime) -> Sql | None:
    """The condition on `listing` for the conversations that count; None: all of the workspace's."""
    is_everything = filter_ == EVERYTHING and caller.scope(Permission.VIEW) is Scope.ALL
    return None if is_everything else where(caller, filter_, now=now)


def _shown(row: dict[str, Any], group_by: Sequence[GroupBy]) -> dict[str, Any]:
    view: dict[str, Any] = {"group": {group: row[f"group_{number}"] for number, group in enumerate(group_by, start=1)}}
    view |= {name: row[name] or 0 for name in COUNTS}
    for name in MEASURES:
        median, p90 = row[f"{name}_percentiles"] or (None, None)
        view[name] = {"count": row[f"{name}_count"], "average": row[f"{name}_average"], "median": median, "p90": p90}
    return view


async def _wait_for_both(request: Request, position: int | None) -> None:
    """Return once the listing, which decides on what is in scope, and the episodes have ``position``."""
    await wait_for(request, "listing", position)
    await wait_for(request, "episodes", position)
