"""What labels and bots there are, for whoever is about to type one.

Invariant: only what a conversation within the caller's scope has is told.
"""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.access import QUERY_PROBLEMS, needs
from api.queries import as_json, fetch
from domain.permissions import Caller, Permission
from projections.filter_sql import where
from projections.filters import EVERYTHING

router = APIRouter(prefix="/v1", tags=["conversations"])
LATEST, MOST = 2_000, 200
"""Of how many conversations, the latest ones, they are taken, and how many there are at most."""


class Suggestions(BaseModel):
    """What is in use, what is used most first."""

    labels: Annotated[list[str], Field(description=f"on the {LATEST:,} latest conversations; {MOST} at most")]
    bots: Annotated[list[str], Field(description="that ever had one of them; as many")]


@router.get(
    "/conversations/suggestions",
    summary="Labels and bots in use",
    response_model=Suggestions,
    responses=QUERY_PROBLEMS,
)
async def suggest(request: Request, caller: Annotated[Caller, needs(Permission.VIEW)]) -> Response:
    """Labels and bots of the conversations that you may see, for choosing one of them."""
    condition, values = where(caller, EVERYTHING)
    rows = await fetch(
        request,
        caller,
        "with latest as (select labels, bots from listing"
        f" where {condition} order by last_activity_at desc, id desc limit %s)"
        " (select 'labels' as kind, value from latest, unnest(labels) value group by value"
        " order by count(*) desc, value limit %s)"
        " union all (select 'bots', value from latest, unnest(bots) value group by value"
        " order by count(*) desc, value limit %s)",
        (*values, LATEST, MOST, MOST),
    )
    return as_json({kind: [row["value"] for row in rows if row["kind"] == kind] for kind in ("labels", "bots")})
