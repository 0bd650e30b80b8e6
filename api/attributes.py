"""Definitions of custom attributes over HTTP: which keys of contacts and conversations have a type.

Invariant: a key that is not listed takes any value.
"""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.access import QUERY_PROBLEMS, Commands, answer, command_route, needs
from api.queries import AtLeast, as_json, fetch, wait_for
from domain.commands import DefineAttribute, RetireAttribute, attribute_id
from domain.events import AttributeTarget, AttributeType, Fact, Name, Slug
from domain.permissions import Caller, Permission

router = APIRouter(prefix="/v1/attributes", tags=["attributes"])
Target = Annotated[AttributeTarget, Path(description="what it is an attribute of", examples=["contact"])]
Key = Annotated[Slug, Path(description="the attribute's key", examples=["plano"])]


class AttributeForm(Fact):
    """What values an attribute takes; ``options`` are those of a list, which needs some."""

    label: Name
    type: AttributeType
    options: Annotated[tuple[Name, ...], Field(max_length=200)] = ()


class AttributeView(BaseModel):
    """The definition of an attribute."""

    id: UUID
    target: AttributeTarget
    key: str
    type: AttributeType
    label: str
    options: list[str]
    version: int


class Attributes(BaseModel):
    """All definitions, by target and key."""

    items: list[AttributeView]


@router.get("", summary="List the attributes", response_model=Attributes, responses=QUERY_PROBLEMS)
async def list_attributes(
    request: Request, caller: Annotated[Caller, needs(Permission.VIEW)], at_least: AtLeast = None
) -> Response:
    """The attributes of contacts and conversations that have a type."""
    await wait_for(request, "directory", at_least)
    columns = ", ".join(AttributeView.model_fields)
    query = f"select {columns} from attribute_definitions where workspace_id = %s order by target, key"
    return as_json({"items": await fetch(request, caller, query, [caller.workspace_id])})


@command_route(
    router,
    "/{target}/{key}",
    "Define an attribute",
    method="PUT",
    example={"label": "Plano", "type": "list", "options": ["ouro", "prata"]},
)
async def define_attribute(target: Target, key: Key, body: AttributeForm, commands: Commands) -> Response:
    """From now on values must fit its type; those that were set before stay as they are."""
    command = DefineAttribute(target=target, key=key, **dict(body))
    return answer(await commands.execute(command, attribute_id(target, key)))


@command_route(router, "/{target}/{key}", "Retire an attribute", method="DELETE")
async def retire_attribute(target: Target, key: Key, commands: Commands) -> Response:
    """It takes any value again; those that were set stay as they are."""
    return answer(await commands.execute(RetireAttribute(), attribute_id(target, key)))
