"""Saved views over HTTP: filters of the listing that are kept under a name, for oneself or for the workspace.

Invariant: a private view is there for its owner only; a filter is kept only if the listing would take it.
"""

from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response
from uuid_utils.compat import uuid7

from api import demo
from api.access import QUERY_PROBLEMS, Commands, answer, command_route, needs
from api.listing import ConversationView, ToldElsewhere
from api.queries import AtLeast, as_json, fetch, wait_for
from domain.commands import ChangeView, RemoveView, SaveView
from domain.events import Actor, Fact, Flag, Name, ViewContents
from domain.permissions import Caller, Permission, Scope
from projections.filters import EVERYTHING, FILTER, Filter, looks_at_the_contact
from projections.listing_query import Sort

router = APIRouter(prefix="/v1/views", tags=["views"])
ViewId = Annotated[UUID, Path(examples=[demo.VIEW])]
SpareViewId = Annotated[UUID, Path(examples=[demo.SPARE_VIEW])]
_COLUMNS = tuple(ConversationView.model_fields)


LONGEST_FILTER = 60_000


def _not_too_long(filter_: Filter) -> Filter:
    if len(FILTER.dump_json(filter_, by_alias=True)) > LONGEST_FILTER:
        raise PydanticCustomError("too_long", f"a filter that is kept has {LONGEST_FILTER:,} bytes of JSON at most")
    return filter_


def _each_once(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(columns))


class ViewForm(Fact):
    """What a view shows, and to whom; no ``columns``: the usual ones."""

    name: Name
    shared: Annotated[Flag, Field(description="with the workspace; else it is there for you only")] = False
    filter: Annotated[ToldElsewhere, AfterValidator(_not_too_long)] = EVERYTHING
    sort: Sort = Sort.LAST_ACTIVITY
    order: Literal["desc", "asc"] = "desc"
    columns: Annotated[
        tuple[Literal[_COLUMNS], ...],  # type: ignore[valid-type]
        Field(max_length=100),
        AfterValidator(_each_once),
    ] = ()


class NewView(ViewForm):
    """A view to keep."""

    id: Annotated[UUID | None, Field(description="chosen by the client, so that a repeat is recognised")] = None


class SavedView(BaseModel):
    """A view; whether it is yours to change is told by its owner."""

    id: UUID
    owner: Actor
    shared: bool
    name: str
    filter: dict[str, Any]
    sort: str
    order: Literal["desc", "asc"]
    columns: list[str]
    version: int


class Views(BaseModel):
    """Your own views and those shared with the workspace, by name."""

    items: list[SavedView]


_EXAMPLE = {
    "name": "Pendentes há muito",
    "shared": True,
    "filter": {"and": [{"field": "status", "operator": "is", "value": "pending"}]},
    "sort": "waiting_since",
    "order": "asc",
    "columns": ["protocol", "contact_name", "waiting_since"],
}


@router.get("", summary="List the saved views", response_model=Views, responses=QUERY_PROBLEMS)
async def list_views(
    request: Request, caller: Annotated[Caller, needs(Permission.VIEW)], at_least: AtLeast = None
) -> Response:
    """Your own views and those shared with the workspace, by name; none that look for contacts whom you may not view.

    Without `view-contact` that is every shared view on a contact's details or with a text; where `view-contact` ends at
    your sectors or at what is your own, every one with a text, name, phone or e-mail.
    """
    await wait_for(request, "directory", at_least)
    rows = await fetch(
        request,
        caller,
        "select id, owner_kind, owner_id, shared, name, filter, sort, descending, columns, version from views"
        " where workspace_id = %s and (shared or (owner_kind, owner_id) = (%s, %s)) order by name, id",
        [caller.workspace_id, caller.actor.kind.value, caller.actor.id],
    )
    return as_json({"items": [view for row in rows if _is_theirs_to_read(caller, view := _view(row))]})


_IDENTIFYING = {"text", "contact.name", "contact.phone", "contact.email"}


def _is_theirs_to_read(caller: Caller, view: dict[str, Any]) -> bool:
    """Whether the view is the caller's own, or its filter names no contact whom they may not view.

    Where their permission ends somewhere, whom a name or number belongs to is not known; attributes are everybody's.
    """
    if view["owner"] == {"kind": caller.actor.kind.value, "id": caller.actor.id}:
        return True
    asked = _fields(view["filter"])
    match caller.scope(Permission.VIEW_CONTACT):
        case Scope.ALL:
            return True
        case None:
            return not any(field == "text" or looks_at_the_contact(field) for field in asked)
        case _:
            return not asked & _IDENTIFYING


def _fields(filter_: dict[str, Any]) -> set[str]:
    """The fields that a stored filter looks at, whatever else the grammar was when it was stored."""
    match filter_:
        case {"and": list(each)} | {"or": list(each)}:
            return {name for one in each for name in _fields(one)}
        case {"not": dict(inner)}:
            return _fields(inner)
        case _:
            return {filter_["field"]}


def _view(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "owner": {"kind": row["owner_kind"], "id": row["owner_id"]},
        "shared": row["shared"],
        "name": row["name"],
        "filter": orjson.loads(row["filter"]),
        "sort": row["sort"],
        "order": "desc" if row["descending"] else "asc",
        "columns": row["columns"],
        "version": row["version"],
    }


def _details(body: ViewForm) -> dict[str, Any]:
    """What the commands take, the filter as JSON text."""
    text = FILTER.dump_json(body.filter, by_alias=True).decode()
    return {
        "contents": ViewContents(name=body.name, filter=text),
        "shared": body.shared,
        "sort": body.sort.value,
        "descending": body.order == "desc",
        "columns": body.columns,
    }


@command_route(router, "", "Save a view", status=201, example=_EXAMPLE)
async def save_view(body: NewView, commands: Commands) -> Response:
    """Keep a filter with its sort and columns; it is yours, for yourself or shared with the workspace."""
    command = SaveView(owner=commands.caller.actor, **_details(body))
    return answer(await commands.execute(command, body.id or uuid7()), 201, "/v1/views")


@command_route(router, "/{id}", "Replace a view", method="PUT", example=_EXAMPLE)
async def change_view(id: ViewId, body: ViewForm, commands: Commands) -> Response:
    """Replace what it shows, and to whom. Another's shared view: only with `manage-directory`."""
    return answer(await commands.execute(ChangeView(**_details(body)), id))


@command_route(router, "/{id}", "Remove a view", method="DELETE")
async def remove_view(id: SpareViewId, commands: Commands) -> Response:
    """Keep it no longer. Another's shared view: only with `manage-directory`."""
    return answer(await commands.execute(RemoveView(), id))
