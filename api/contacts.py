"""Contacts over HTTP: find, register, replace details, read one and what happened with them.

Whose permission does not reach all of the workspace sees and changes those contacts only that a conversation within its
reach is with.

Invariant: a contact is seen only by those with `view-contact`; an event of a conversation, only by those who see that.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, cast
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from uuid_utils.compat import uuid7

from adapters.accesses import Access, What, recording
from api import demo
from api.access import QUERY_PROBLEMS, Commands, answer, command_route, needs
from api.history import HistoryEntry, in_words
from api.queries import (
    AtLeast,
    Cursor,
    Limit,
    Position,
    as_json,
    decode_cursor,
    encode_cursor,
    fetch,
    invalid,
    wait_for,
)
from api.sentences import Speaking
from domain.commands import ChangeContactDetails, EraseContact, RegisterContact
from domain.errors import ContactNotFoundError
from domain.events import ContactDetails, Line
from domain.permissions import Caller, Permission, Scope
from projections import timeline
from projections.contacts import found_by
from projections.history import COLUMNS as HISTORY_COLUMNS
from projections.scopes import visible

router = APIRouter(prefix="/v1/contacts", tags=["contacts"])
SpareContactId = Annotated[UUID, Path(description="the contact's id", examples=[demo.SPARE_CONTACT])]
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


class ContactPage(BaseModel):
    """A page of contacts; ``next`` is the cursor of the next one."""

    items: list[ContactView]
    next: str | None


class ContactParameters(BaseModel):
    """What to look for."""

    model_config = ConfigDict(extra="forbid")

    q: Annotated[
        Line | None,
        Field(description="beginnings of words of the name or of an e-mail, or digits in a row of a phone"),
    ] = None
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str | None, Field(max_length=500, description="`next` of the page before")] = None
    at_least: Annotated[
        Position | None, Field(description="wait, briefly, until contacts have this position of a command's answer")
    ] = None


class TimelineEntry(HistoryEntry):
    """An event, and the conversation that it belongs to; none of both: the contact's own."""

    protocol: str | None
    channel: str | None


class TimelinePage(BaseModel):
    """A page of the timeline; ``next`` is the cursor of the next one."""

    items: list[TimelineEntry]
    next: str | None


_COLUMNS = ", ".join(f"contacts.{column}" for column in ContactView.model_fields)


@router.get("", summary="Find contacts", response_model=ContactPage, responses=QUERY_PROBLEMS)
async def find_contacts(
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW_CONTACT)],
    wanted: Annotated[ContactParameters, Query()],
) -> Response:
    """The contacts that you may see, by name; erased ones are not among them. That you looked is recorded.

    With ``q``, those with a name that has all of its words, each as the beginning of one of theirs; or with an e-mail
    or phone that has it from the beginning of a word or from any digit on. Accents and punctuation do not count.
    """
    after = decode_cursor(wanted.cursor, str, UUID)
    if after is not None and "\0" in after[0]:
        raise invalid("cursor", "is not one of ours; start again without it")
    await wait_for(request, "listing", wanted.at_least)
    condition, values = _seen(caller)
    table, sought = found_by(caller.workspace_id, wanted.q)
    where, values = [condition, "not erased"], [*sought, *values]
    if after is not None:
        where.append("(name_key, contacts.id) > (%s, %s)")
        values += after
    query = (
        f"select {_COLUMNS}, name_key from {table} contacts where {' and '.join(where)} order by name_key, contacts.id"
    )
    access = Access(caller, What.CONTACT, request.state.request_id)
    rows = await fetch(request, caller, *recording(access, f"{query} limit %s", [*values, wanted.limit + 1]))
    items = rows[: wanted.limit]
    keys = [row.pop("name_key") for row in items]
    more = len(rows) > wanted.limit
    return as_json({"items": items, "next": encode_cursor(keys[-1], items[-1]["id"]) if more else None})


def _seen(caller: Caller) -> tuple[str, list[Any]]:
    """The condition on `contacts` for those that ``caller`` may see."""
    condition, values = "contacts.workspace_id = %s", [caller.workspace_id]
    if caller.scope(Permission.VIEW_CONTACT) is not Scope.ALL:
        conditions = visible(caller, Permission.VIEW_CONTACT)
        theirs = " and ".join(text for text, _ in conditions)
        condition += f" and exists (select from listing where contact_id = contacts.id and {theirs})"
        values += [value for _, some in conditions for value in some]
    return condition, values


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
    reached = await how_reached(commands, id_) if body.id else {}
    outcome = await commands.execute(RegisterContact(contact_id=id_, details=details, **reached), id_)
    return answer(outcome, 201, "/v1/contacts")


@command_route(
    router,
    "/{id}",
    "Replace a contact's details",
    method="PUT",
    example={"name": "Ana Souza", "phones": ["+55 11 98765-4321"], "attributes": {"plano": "ouro"}},
)
async def change_contact(id: ContactId, body: ContactDetails, commands: Commands) -> Response:
    """Replace all that is known of the contact.

    Where your permission does not reach all of the workspace, a conversation with the contact must be within its reach.
    """
    reached = await how_reached(commands, id, Permission.EDIT_CONTACT)
    command = ChangeContactDetails(details=body, through=reached.get("through"))
    return answer(await commands.execute(command, id))


@command_route(router, "/{id}/erase", "Erase a contact")
async def erase_contact(id: SpareContactId, commands: Commands) -> Response:
    """Forget the contact, everywhere and for good: names, phones, e-mails, attributes, texts and notes.

    What happened stays in the history, without what would tell whom it happened to; proofs of it still hold. Nothing
    personal can be recorded about them from now on. It cannot be undone.

    Where your permission does not reach all of the workspace, a conversation with the contact must be within its reach.
    """
    reached = await how_reached(commands, id, Permission.ERASE_CONTACT)
    return answer(await commands.execute(EraseContact(through=reached.get("through")), id))


async def how_reached(
    commands: Commands,
    contact_id: UUID,
    *permissions: Permission,
) -> dict[str, Any]:
    """How the caller's ``permissions`` (all on contacts unless given) reach the contact, for a command that names it.

    The conversation is a proposal: the command's rules look at it as it stands when they decide. Who registered the
    contact is the log's word, which never changes.
    """
    caller = commands.caller
    asked = permissions or (Permission.VIEW_CONTACT, Permission.EDIT_CONTACT)
    limited = [permission for permission in asked if caller.scope(permission) not in {None, Scope.ALL}]
    if not limited:
        return {}
    conditions = [condition for permission in limited for condition in visible(caller, permission)]
    theirs = " and ".join(text for text, _ in conditions)
    values = [value for _, some in conditions for value in some]
    query = (
        f"select (select id from listing where contact_id = %s and {theirs} order by last_activity_at desc limit 1)"
        " as through, exists (select from events where workspace_id = %s and stream_id = %s and version = 1"
        " and stream_type = 'contact' and actor_kind = %s and actor_id = %s) as registered"
    )
    whose = [caller.workspace_id, contact_id, caller.actor.kind.value, caller.actor.id]
    [row] = await fetch(commands.request, caller, query, [contact_id, *values, *whose])
    return row


@router.get("/{id}", summary="Get a contact", response_model=ContactView, responses=QUERY_PROBLEMS)
async def get_contact(
    id: ContactId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW_CONTACT)],
    at_least: AtLeast = None,
) -> Response:
    """What is known of the contact, its version as the ETag."""
    await wait_for(request, "listing", at_least)
    row = await _contact(request, caller, id)
    return as_json(row, {"ETag": f'"{row["version"]}"'})


async def _contact(request: Request, caller: Caller, id_: UUID) -> dict[str, Any]:
    condition, values = _seen(caller)
    query = f"select {_COLUMNS} from contacts where {condition} and contacts.id = %s"
    rows = await fetch(request, caller, query, [*values, id_])
    if not rows:
        raise ContactNotFoundError
    access = Access(caller, What.CONTACT, request.state.request_id, contact_id=id_)
    await fetch(request, caller, *recording(access))
    return rows[0]


@router.get(
    "/{id}/timeline", summary="Read a contact's timeline", response_model=TimelinePage, responses=QUERY_PROBLEMS
)
async def get_timeline(
    id: ContactId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW_CONTACT)],
    limit: Limit = 100,
    cursor: Cursor = None,
    at_least: AtLeast = None,
    *,
    speech: Speaking,
) -> Response:
    """Everything that happened with the contact, in all conversations that you may see, newest first.

    Of conversations whose history you may not read, only that they began, ended and went on, and that somebody wrote.

    A conversation that is reassigned takes its past along to its new contact; whom it was taken from keeps the
    reassignment.
    """
    before = _moment_and_position(decode_cursor(cursor, str, int))
    await wait_for(request, "listing", at_least)
    await wait_for(request, "history", at_least)
    await _contact(request, caller, id)
    page = timeline.Page(caller.workspace_id, id, HISTORY_COLUMNS, before, limit)
    history = visible(caller, Permission.READ_HISTORY)[1:]
    rows = await fetch(request, caller, *timeline.page(page, visible(caller), history))
    items = await in_words(request, caller, rows[:limit], speech)
    more = len(rows) > limit
    last = encode_cursor(items[-1]["occurred_at"].astimezone(UTC).isoformat(), items[-1]["position"]) if more else None
    return as_json({"items": items, "next": last})


def _moment_and_position(parts: Sequence[Any] | None) -> tuple[datetime, int] | None:
    if parts is None:
        return None
    try:
        moment = datetime.fromisoformat(parts[0])
    except ValueError:
        moment = None
    if moment is None or moment.utcoffset() != timedelta(0):
        raise invalid("cursor", "is not one of ours; start again without it")
    return moment, cast("int", parts[1])
