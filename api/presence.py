"""Presence over HTTP: agents say that they are there, and see who else is.

Invariant: an agent speaks for themself only.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from adapters.presence import Presences
from api.access import COMMAND_PROBLEMS, QUERY_PROBLEMS, needs
from api.queries import as_json, fetch
from domain.errors import PermissionDeniedError
from domain.events import Fact, Presence
from domain.permissions import Caller, Permission

router = APIRouter(prefix="/v1/presence", tags=["directory"])


class Heartbeat(Fact):
    """How you can be reached; say it again before it expires."""

    status: Presence


class PresenceView(BaseModel):
    """An agent's presence."""

    agent_id: UUID
    status: Presence
    expires_at: Annotated[datetime | None, Field(description="offline from then on, unless heard of again")]


class Everyone(BaseModel):
    """The presence of every active agent, by name."""

    items: list[PresenceView]


_EXAMPLE = {"requestBody": {"content": {"application/json": {"example": {"status": "online"}}}}}


@router.put(
    "",
    summary="Say that you are there",
    response_model=PresenceView,
    responses=COMMAND_PROBLEMS,
    openapi_extra=_EXAMPLE,
)
async def say(
    body: Annotated[Heartbeat, Body()], request: Request, caller: Annotated[Caller, needs(Permission.VIEW)]
) -> Response:
    """A heartbeat, with an agent's own token. An open event stream is one too: it goes on with what was said last."""
    if caller.agent_id is None:
        raise PermissionDeniedError("This token is no agent's: only agents are present.")
    presences: Presences = request.app.state.presences
    expires_at = await presences.say(caller.workspace_id, caller.agent_id, body.status)
    return as_json({"agent_id": caller.agent_id, "status": body.status, "expires_at": expires_at})


@router.get("", summary="See who is there", response_model=Everyone, responses=QUERY_PROBLEMS)
async def who_is_there(request: Request, caller: Annotated[Caller, needs(Permission.VIEW)]) -> Response:
    """Every active agent, online, away or offline."""
    rows = await fetch(
        request,
        caller,
        "select agents.id as agent_id, coalesce(presence.status, 'offline') as status, presence.expires_at from agents"
        " left join presence on presence.workspace_id = agents.workspace_id and presence.agent_id = agents.id"
        " and presence.expires_at > now() where agents.workspace_id = %s and active order by name, agents.id",
        (caller.workspace_id,),
    )
    return as_json({"items": rows})
