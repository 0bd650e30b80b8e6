"""To whom a conversation can be transferred: sectors with their queues, agents with their presence.

Invariant: it lists exactly the targets that the command `transfer` accepts; of what lies outside the caller's scope
nothing is counted.
"""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.access import QUERY_PROBLEMS, needs
from api.queries import Position, as_json, decode_cursor, encode_cursor, fetch, wait_for
from domain.events import Line, Presence
from domain.permissions import Caller, Permission, Scope
from projections.scopes import visible
from projections.search_words import words

router = APIRouter(prefix="/v1", tags=["directory"])


class TargetView(BaseModel):
    """A sector or an agent."""

    kind: Literal["sector", "agent"]
    id: UUID
    name: str
    sectors: Annotated[list[UUID], Field(description="of an agent: where they serve")]
    presence: Annotated[Presence | None, Field(description="of an agent")]
    online: Annotated[int | None, Field(description="of a sector: how many of its agents are online")]
    queue: Annotated[
        int | None,
        Field(
            description="a sector's pending, an agent's in progress, of those that you may see; null: not yours to see"
        ),
    ]


class TargetPage(BaseModel):
    """Sectors, then agents, by name; ``next`` is the cursor of the next page."""

    items: list[TargetView]
    next: str | None


class TargetParameters(BaseModel):
    """Which targets."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[Line | None, Field(description="beginnings of words of the name, accents or not")] = None
    sector: Annotated[UUID | None, Field(description="this one and the agents who serve in it")] = None
    limit: Annotated[int, Field(ge=1, le=1_000)] = 200
    cursor: Annotated[str | None, Field(max_length=500, description="`next` of the page before")] = None
    at_least: Position | None = None


_SECTORS = "select id, name from sectors where workspace_id = %s and active"
_AGENTS = """
select agents.id, name, sectors, coalesce(presence.status, 'offline') as presence from agents
left join presence on presence.workspace_id = agents.workspace_id and presence.agent_id = agents.id
and presence.expires_at > now() where agents.workspace_id = %s and active"""


@router.get("/transfer-targets", summary="List transfer targets", response_model=TargetPage, responses=QUERY_PROBLEMS)
async def list_transfer_targets(
    request: Request,
    caller: Annotated[Caller, needs(Permission.TRANSFER)],
    wanted: Annotated[TargetParameters, Query()],
) -> Response:
    """Every sector and agent that a conversation can be given to, and how busy they are."""
    after = decode_cursor(wanted.cursor, int, str, UUID)
    await wait_for(request, "directory", wanted.at_least)
    targets = await _targets(request, caller)
    asked = words(wanted.q or "")
    found = [
        target
        for target in sorted(targets, key=_place)
        if _is_called(target["name"], asked)
        and (wanted.sector is None or wanted.sector in (target["id"], *target["sectors"]))
        and (after is None or _place(target) > (after[0], after[1], after[2]))
    ]
    page = found[: wanted.limit]
    more = len(found) > wanted.limit
    return as_json({"items": page, "next": encode_cursor(*_place(page[-1])) if more else None})


async def _targets(request: Request, caller: Caller) -> list[dict[str, Any]]:
    sectors = await fetch(request, caller, _SECTORS, (caller.workspace_id,))
    agents = await fetch(request, caller, _AGENTS, (caller.workspace_id,))
    pending = await _counted(request, caller, "pending", "sector_id")
    in_progress = await _counted(request, caller, "in_progress", "agent_id")
    online = [sector for agent in agents if agent["presence"] == "online" for sector in agent["sectors"]]
    scope = caller.scope(Permission.VIEW)
    found: list[dict[str, Any]] = []
    for sector in sectors:
        queue = pending.get(sector["id"], 0) if _sees_any(scope, caller.sectors & {sector["id"]}) else None
        target = {"kind": "sector", "sectors": [], "presence": None, "queue": queue} | sector
        found.append(target | {"online": online.count(sector["id"])})
    for agent in agents:
        theirs = caller.sectors.intersection(agent["sectors"])
        is_seen = agent["id"] in in_progress or agent["id"] == caller.agent_id or _sees_any(scope, theirs)
        queue = in_progress.get(agent["id"], 0) if is_seen and scope is not None else None
        found.append({"kind": "agent", "online": None, "queue": queue} | agent)
    return found


async def _counted(
    request: Request, caller: Caller, status: str, column: Literal["sector_id", "agent_id"]
) -> dict[UUID, int]:
    """How many conversations in ``status`` the caller may see, by ``column``: open ones only, which are few."""
    conditions = [*visible(caller), ("status = %s", [status])]
    where = " and ".join(text for text, _ in conditions)
    values = [value for _, some in conditions for value in some]
    statement = f"select {column} as whose, count(*) as many from listing where {where} group by {column}"
    return {row["whose"]: row["many"] for row in await fetch(request, caller, statement, values)}


def _sees_any(scope: Scope | None, sectors: frozenset[UUID]) -> bool:
    """Whether what is in ``sectors``, which the caller serves in, is seen; else no number is told, not even 0."""
    return scope is Scope.ALL or (scope is Scope.SECTOR and bool(sectors))


def _is_called(name: str, asked: list[str]) -> bool:
    """Whether each of the words asked for begins a word of ``name``."""
    its = words(name)
    return all(any(word.startswith(beginning) for word in its) for beginning in asked)


def _place(target: dict[str, Any]) -> tuple[int, str, UUID]:
    """Sectors before agents, then by name."""
    return int(target["kind"] == "agent"), " ".join(words(target["name"])), target["id"]
