"""Identities over HTTP: which agents they are whom an outside issuer (OpenID Connect) signs in.

Invariant: linking hands out the agent's role, so that nobody links whoever would get more than they have themselves.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel
from starlette.responses import Response

from api import demo
from api.access import QUERY_PROBLEMS, Commands, answer, command_route, needs
from api.queries import as_json, fetch
from domain.commands import LinkIdentity, UnlinkIdentity, identity_id
from domain.events import Fact, Issuer, Slug, Subject
from domain.permissions import Caller, Permission

router = APIRouter(prefix="/v1", tags=["directory"])
AgentId = Annotated[UUID, Path(examples=[demo.AGENT])]
IdentityId = Annotated[UUID, Path(examples=[demo.SPARE_IDENTITY])]


class NewIdentity(Fact):
    """Somebody as their issuer knows them, and the agent's role, which they get."""

    issuer: Issuer
    subject: Subject
    role: Slug


class IdentityView(BaseModel):
    """Somebody as their issuer knows them, and the agent they are here."""

    id: UUID
    issuer: str
    subject: str
    agent_id: UUID
    linked_at: datetime
    last_used_at: datetime | None


class Identities(BaseModel):
    """All linked identities, by issuer and subject."""

    items: list[IdentityView]


_EXAMPLE = {"issuer": demo.ISSUER, "subject": "bia.nunes", "role": "agent"}


@command_route(router, "/agents/{id}/identity", "Link an identity to an agent", method="PUT", example=_EXAMPLE)
async def link_identity(id: AgentId, body: NewIdentity, commands: Commands) -> Response:
    """Whoever the issuer signs in as this subject is the agent from now on; the answer's id is the identity's.

    The role is the agent's present one: what is handed out here.
    """
    command = LinkIdentity(agent_id=id, **body.model_dump())
    return answer(await commands.execute(command, identity_id(body.issuer, body.subject)))


@command_route(router, "/identities/{id}", "Unlink an identity", method="DELETE")
async def unlink_identity(id: IdentityId, commands: Commands) -> Response:
    """Whoever is signed in so gets in no more, within CONVERSAS_TOKEN_CACHE_SECONDS (2 by default, 5 at most)."""
    return answer(await commands.execute(UnlinkIdentity(), id))


@router.get("/identities", summary="List the identities", response_model=Identities, responses=QUERY_PROBLEMS)
async def list_identities(request: Request, caller: Annotated[Caller, needs(Permission.MANAGE_DIRECTORY)]) -> Response:
    """Every identity that is linked to an agent of the workspace."""
    query = (
        "select i.id, i.issuer, i.subject, i.agent_id, i.linked_at, u.last_used_at from identities i"
        " left join token_uses u on u.workspace_id = i.workspace_id and u.token_id = i.id"
        " where i.workspace_id = %s order by i.issuer, i.subject"
    )
    return as_json({"items": await fetch(request, caller, query, (caller.workspace_id,))})
