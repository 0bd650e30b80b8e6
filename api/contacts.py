"""Contacts over HTTP: register, replace details, read one.

Invariant: a contact is seen only by those with `view-contact`.
"""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response
from uuid_utils.compat import uuid7

from api import demo
from api.access import QUERY_PROBLEMS, Commands, answer, command_route, needs
from api.queries import AtLeast, as_json, fetch, wait_for
from domain.commands import ChangeContactDetails, RegisterContact
from domain.errors import ContactNotFoundError
from domain.events import ContactDetails
from domain.permissions import Caller, Permission, Scope
from projections.listing_query import visible

router = APIRouter(prefix="/v1/contacts", tags=["contacts"])
ContactId = Annotated[UUID, Path(description="the contact's id", examples=[demo.CONTACT])]


class Registration(ContactDetails):
    """A person outside."""

    id: Annotated[UUID | None, Field(description="chosen by the client, so that a repeat is recognised")] = None


class ContactView(BaseModel):
    """What is known of a contact."""

    id: UUID
    name: str | None
    phones: list[str]
    emails: list[str]
    attributes: dict[str, Any]
    registered_at: datetime
    erased: bool
    version: int
    position: int


@command_route(
    router,
    "",
    "Register a contact",
    status=201,
    example={"name": "Rita Prado", "phones": ["+55 21 99876-5432"], "emails": ["rita@example.com"]},
)
async def register_contact(body: Registration, commands: Commands) -> Response:
    """Make a person outside known."""
    id_ = body.id or uuid7()
    details = ContactDetails(**body.model_dump(exclude={"id"}))
    outcome = await commands.execute(RegisterContact(contact_id=id_, details=details), id_)
    return answer(outcome, 201, "/v1/contacts")


@command_route(
    router,
    "/{id}",
    "Replace a contact's details",
    method="PUT",
    example={"name": "Ana Souza", "phones": ["+55 11 98765-4321"], "attributes": {"plano": "ouro"}},
)
async def change_contact(id: ContactId, body: ContactDetails, commands: Commands) -> Response:
    """Replace all that is known of the contact."""
    return answer(await commands.execute(ChangeContactDetails(details=body), id))


@router.get("/{id}", summary="Get a contact", response_model=ContactView, responses=QUERY_PROBLEMS)
async def get_contact(
    id: ContactId, request: Request, caller: Annotated[Caller, needs(Permission.VIEW_CONTACT)], at_least: AtLeast = None
) -> Response:
    """What is known of the contact, its version as the ETag."""
    await wait_for(request, "listing", at_least)
    where, values = "workspace_id = %s and id = %s", [caller.workspace_id, id]
    if caller.scope(Permission.VIEW_CONTACT) is not Scope.ALL:
        conditions = visible(caller, Permission.VIEW_CONTACT)
        theirs = " and ".join(condition for condition, _ in conditions)
        where += f" and exists (select from listing where contact_id = %s and {theirs})"
        values += [id, *(value for _, some in conditions for value in some)]
    rows = await fetch(
        request, caller, f"select {', '.join(ContactView.model_fields)} from contacts where {where}", values
    )
    if not rows:
        raise ContactNotFoundError
    return as_json(rows[0], {"ETag": f'"{rows[0]["version"]}"'})
