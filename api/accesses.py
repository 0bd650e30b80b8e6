"""Who read what that was not theirs, over HTTP.

Invariant: accesses to what lies outside the caller's scope are not shown.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from adapters.accesses import What
from api.access import QUERY_PROBLEMS, needs
from api.queries import Moment, as_json, decode_cursor, encode_cursor, fetch
from domain.events import Actor, Line
from domain.permissions import Caller, Permission
from projections.scopes import within_reach

router = APIRouter(prefix="/v1", tags=["history"])


class AccessView(BaseModel):
    """Somebody read something."""

    at: datetime
    actor: Actor
    what: What
    conversation_id: UUID | None
    contact_id: UUID | None
    request_id: UUID


class AccessPage(BaseModel):
    """A page of accesses; ``next`` is the cursor of the next one."""

    items: list[AccessView]
    next: str | None


class AccessParameters(BaseModel):
    """What to look for; all that is given must hold."""

    model_config = ConfigDict(extra="forbid")

    actor: Annotated[Line | None, Field(description="the id of who read")] = None
    what: What | None = None
    conversation: UUID | None = None
    contact: UUID | None = None
    at_from: Moment | None = None
    at_until: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 100
    cursor: Annotated[str | None, Field(max_length=500, description="`next` of the page before")] = None


@router.get("/accesses", summary="See who read what", response_model=AccessPage, responses=QUERY_PROBLEMS)
async def list_accesses(
    request: Request,
    caller: Annotated[Caller, needs(Permission.READ_HISTORY)],
    wanted: Annotated[AccessParameters, Query()],
) -> Response:
    """Who read messages, histories and contacts that were not theirs, or watched conversations; newest first."""
    before = decode_cursor(wanted.cursor, int)
    conditions: list[tuple[str, list[Any]]] = [("workspace_id = %s", [caller.workspace_id])]
    conditions += [
        (condition, [value])
        for condition, value in (
            ("actor_id = %s", wanted.actor),
            ("what = %s", wanted.what),
            ("conversation_id = %s", wanted.conversation),
            ("contact_id = %s", wanted.contact),
            ("at >= %s", wanted.at_from),
            ("at < %s", wanted.at_until),
            ("id < %s", before and before[0]),
        )
        if value is not None
    ]
    conditions += within_reach(caller, "conversation_id", Permission.VIEW, Permission.READ_HISTORY)
    rows = await fetch(
        request,
        caller,
        "select id, at, actor_kind, actor_id, what, conversation_id, contact_id, request_id from accesses"
        f" where {' and '.join(text for text, _ in conditions)} order by id desc limit %s",
        [*(value for _, some in conditions for value in some), wanted.limit + 1],
    )
    more = len(rows) > wanted.limit
    items = [
        {
            **{name: row[name] for name in ("at", "what", "conversation_id", "contact_id", "request_id")},
            "actor": {"kind": row["actor_kind"], "id": row["actor_id"]},
        }
        for row in rows[: wanted.limit]
    ]
    return as_json({"items": items, "next": encode_cursor(rows[wanted.limit - 1]["id"]) if more else None})
