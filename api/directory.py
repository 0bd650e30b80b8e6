"""The directory over HTTP: sectors, agents, roles, access tokens, and who the caller is.

Invariant: a token's secret is shown once, in the answer that issues it, and stored nowhere.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request
from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, Strict
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from uuid_utils.compat import uuid7

from adapters.identity import digest, new_secret
from api import demo
from api.access import QUERY_PROBLEMS, Authenticated, Commands, answer, command_route, needs
from api.queries import CommandAnswer, as_json, fetch
from domain.commands import (
    ChangeAgentRole,
    Command,
    CreateSector,
    DeactivateAgent,
    DeactivateSector,
    DefineRole,
    IssueToken,
    JoinSector,
    LeaveSector,
    RegisterAgent,
    RenameSector,
    RevokeToken,
    role_id,
)
from domain.events import Actor, ActorKind, Fact, Name, Slug
from domain.permissions import BUILT_IN_ROLES, Caller, Permission, Scope

router = APIRouter(prefix="/v1", tags=["directory"])
SectorId = Annotated[UUID, Path(examples=[demo.SECTOR])]
AgentId = Annotated[UUID, Path(examples=[demo.AGENT])]
SpareSectorId = Annotated[UUID, Path(examples=[demo.SPARE_SECTOR])]
SpareAgentId = Annotated[UUID, Path(examples=[demo.SPARE_AGENT])]
TokenId = Annotated[UUID, Path(examples=[demo.SPARE_TOKEN])]
RoleName = Annotated[Slug, Path(examples=["analista"])]


class NewSector(Fact):
    """A team to set up."""

    id: UUID | None = None
    name: Name


class NewAgent(Fact):
    """A person inside."""

    id: UUID | None = None
    name: Name
    role: Slug = "agent"


class RoleGrants(Fact):
    """What a role grants, and how far."""

    grants: dict[Permission, Scope]


def _storable(moment: datetime) -> datetime:
    """``moment``, if it can be told in every time zone: near both ends of the calendar it cannot."""
    if not _FIRST_MOMENT <= moment <= _LAST_MOMENT:
        raise PydanticCustomError("out_of_range", "expected a time between the years 1970 and 9999")
    return moment


_FIRST_MOMENT, _LAST_MOMENT = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC)


class Holder(Actor):
    """Whose token it is."""

    kind: Literal[ActorKind.AGENT, ActorKind.BOT, ActorKind.INTEGRATION]


class NewToken(Fact):
    """An access token to issue: for an agent (actor kind agent, their id), a bot or an integration."""

    name: Name
    actor: Holder
    role: Slug
    expires_at: Annotated[AwareDatetime, Strict(), AfterValidator(_storable)] | None = None
    grants: Annotated[
        dict[Permission, Scope] | None, Field(description="what it may do of what its role grants; absent: all of it")
    ] = None


class IssuedToken(CommandAnswer):
    """The token; its secret is never shown again."""

    secret: str


class SectorView(BaseModel):
    """A sector."""

    id: UUID
    name: str
    active: bool


class AgentView(BaseModel):
    """An agent and the sectors they serve in."""

    id: UUID
    name: str
    role: str
    active: bool
    sectors: list[UUID]


class TokenView(BaseModel):
    """An access token, without its secret."""

    id: UUID
    name: str
    actor_kind: str
    actor_id: str
    role: str
    issued_at: datetime
    expires_at: datetime | None
    revoked: bool
    grants: Annotated[
        dict[Permission, Scope] | None, Field(description="what it was narrowed to; null: it may do what its role may")
    ]
    last_used_at: Annotated[datetime | None, Field(description="to the minute; null: never")]


class Me(BaseModel):
    """Who you are here and what you may do."""

    workspace_id: UUID
    actor: Actor
    sectors: list[UUID]
    grants: dict[Permission, Scope]


_TOKEN_EXAMPLE = {"name": "Canal WhatsApp", "actor": {"kind": "integration", "id": "whatsapp"}, "role": "integration"}


def _without_id(body: Fact, cls: type[Command]) -> Command:
    return cls(**body.model_dump(exclude={"id"}))


@command_route(router, "/sectors", "Create a sector", status=201, example={"name": "Financeiro"})
async def create_sector(body: NewSector, commands: Commands) -> Response:
    """Set up a team that serves."""
    return answer(await commands.execute(_without_id(body, CreateSector), body.id or uuid7()), 201, "/v1/sectors")


@command_route(router, "/sectors/{id}/name", "Rename a sector", method="PUT", example={"name": "Suporte técnico"})
async def rename_sector(id: SectorId, body: RenameSector, commands: Commands) -> Response:
    """Call it something else."""
    return answer(await commands.execute(body, id))


@command_route(router, "/sectors/{id}", "Close a sector", method="DELETE")
async def deactivate_sector(id: SpareSectorId, commands: Commands) -> Response:
    """It takes no conversations any more; its past stays."""
    return answer(await commands.execute(DeactivateSector(), id))


@command_route(router, "/agents", "Register an agent", status=201, example={"name": "Caio Lima", "role": "agent"})
async def register_agent(body: NewAgent, commands: Commands) -> Response:
    """Let a person inside serve."""
    return answer(await commands.execute(_without_id(body, RegisterAgent), body.id or uuid7()), 201, "/v1/agents")


@command_route(router, "/agents/{id}/role", "Change an agent's role", method="PUT", example={"role": "supervisor"})
async def change_agent_role(id: SpareAgentId, body: ChangeAgentRole, commands: Commands) -> Response:
    """Change what they may do."""
    return answer(await commands.execute(body, id))


@command_route(router, "/agents/{id}/sectors/{sector_id}", "Let an agent join a sector", method="PUT")
async def join_sector(id: AgentId, sector_id: SectorId, commands: Commands) -> Response:
    """From now on they serve in the sector."""
    return answer(await commands.execute(JoinSector(sector_id=sector_id), id))


@command_route(router, "/agents/{id}/sectors/{sector_id}", "Take an agent out of a sector", method="DELETE")
async def leave_sector(id: AgentId, sector_id: SectorId, commands: Commands) -> Response:
    """From now on they no longer serve in the sector."""
    return answer(await commands.execute(LeaveSector(sector_id=sector_id), id))


@command_route(router, "/agents/{id}", "Deactivate an agent", method="DELETE")
async def deactivate_agent(id: SpareAgentId, commands: Commands) -> Response:
    """They left: their tokens stop working and nothing can be handed to them."""
    return answer(await commands.execute(DeactivateAgent(), id))


@command_route(
    router, "/roles/{name}", "Define a role", method="PUT", example={"grants": {"view": "all", "export": "all"}}
)
async def define_role(name: RoleName, body: RoleGrants, commands: Commands) -> Response:
    """Say what a role of your own may do; nobody may grant more than they were granted."""
    return answer(await commands.execute(DefineRole(name=name, grants=body.grants), role_id(name)))


@command_route(router, "/tokens", "Issue an access token", status=201, model=IssuedToken, example=_TOKEN_EXAMPLE)
async def issue_token(body: NewToken, commands: Commands) -> Response:
    """Make an access token; keep the secret, it is shown only now.

    A request repeated under the same Idempotency-Key gets the same id without the secret: revoke it and issue another.
    """
    secret = new_secret()
    command = IssueToken(
        name=body.name,
        secret_sha256=digest(secret.encode()),
        actor=body.actor,
        role=body.role,
        expires_at=body.expires_at,
        grants=body.grants,
        asked_at=datetime.now(UTC),
    )
    outcome = await commands.execute(command, uuid7())
    response = answer(outcome, 201, "/v1/tokens")
    shown = orjson.loads(response.body) | {"secret": "" if outcome.replayed else secret}
    return Response(orjson.dumps(shown), 201, {"ETag": response.headers["etag"]}, "application/json")


@command_route(router, "/tokens/{id}", "Revoke an access token", method="DELETE")
async def revoke_token(id: TokenId, commands: Commands) -> Response:
    """It stops working, everywhere within CONVERSAS_TOKEN_CACHE_SECONDS (2 by default, 5 at most)."""
    return answer(await commands.execute(RevokeToken(), id))


async def _list(request: Request, caller: Caller, table: str, view: type[BaseModel]) -> Response:
    columns = ", ".join(view.model_fields)
    query = f"select {columns} from {table} where workspace_id = %s order by name, id"
    return as_json({"items": await fetch(request, caller, query, (caller.workspace_id,))})


class Sectors(BaseModel):
    """All sectors, by name."""

    items: list[SectorView]


class Agents(BaseModel):
    """All agents, by name."""

    items: list[AgentView]


class Tokens(BaseModel):
    """All access tokens, by name."""

    items: list[TokenView]


class Roles(BaseModel):
    """What each role grants."""

    items: dict[str, dict[Permission, Scope]]


@router.get("/sectors", summary="List the sectors", response_model=Sectors, responses=QUERY_PROBLEMS)
async def list_sectors(request: Request, caller: Annotated[Caller, needs(Permission.VIEW)]) -> Response:
    """Every sector of the workspace."""
    return await _list(request, caller, "sectors", SectorView)


@router.get("/agents", summary="List the agents", response_model=Agents, responses=QUERY_PROBLEMS)
async def list_agents(request: Request, caller: Annotated[Caller, needs(Permission.VIEW)]) -> Response:
    """Every agent of the workspace."""
    return await _list(request, caller, "agents", AgentView)


@router.get("/tokens", summary="List the access tokens", response_model=Tokens, responses=QUERY_PROBLEMS)
async def list_tokens(request: Request, caller: Annotated[Caller, needs(Permission.MANAGE_TOKENS)]) -> Response:
    """Every access token of the workspace, revoked ones too; never a secret."""
    tokens = (
        "(select t.*, u.last_used_at from tokens t"
        " left join token_uses u on u.workspace_id = t.workspace_id and u.token_id = t.id) tokens"
    )
    return await _list(request, caller, tokens, TokenView)


@router.get("/roles", summary="List the roles", response_model=Roles, responses=QUERY_PROBLEMS)
async def list_roles(request: Request, caller: Annotated[Caller, needs(Permission.MANAGE_DIRECTORY)]) -> Response:
    """The built-in roles and those of the workspace."""
    own = await fetch(request, caller, "select name, grants from roles where workspace_id = %s", (caller.workspace_id,))
    return as_json({"items": dict(BUILT_IN_ROLES) | {row["name"]: row["grants"] for row in own}})


@router.get("/me", summary="Who am I?", response_model=Me, responses=QUERY_PROBLEMS)
async def me(caller: Authenticated) -> Response:
    """Who you are here and what you may do."""
    return as_json(
        {
            "workspace_id": caller.workspace_id,
            "actor": caller.actor.model_dump(mode="json"),
            "sectors": sorted(caller.sectors),
            "grants": caller.grants,
        }
    )
