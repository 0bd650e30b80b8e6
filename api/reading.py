"""One conversation over HTTP: as it is or stood, its messages and its history.

Invariant: every query is limited to what the caller may see; what lies outside is 404.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from adapters.accesses import What, of_conversation, recording
from adapters.event_log import COLUMNS, EventRow, opened, people_of
from api.access import QUERY_PROBLEMS, needs
from api.as_of import Then, Version, as_it_stood, readable_until
from api.conversations import ConversationId
from api.history import HistoryPage, in_words
from api.listing import ConversationView
from api.queries import (
    MAX_POSITION,
    AtLeast,
    Cursor,
    Limit,
    as_json,
    decode_cursor,
    encode_cursor,
    fetch,
    of_rows,
    wait_for,
)
from api.sentences import Speaking
from domain.envelope import RecordedEvent
from domain.errors import ConversationNotFoundError, PermissionDeniedError
from domain.events import Actor, MessageKind, MessageReceived, MessageSent, NoteAdded
from domain.permissions import Caller, Permission, may
from projections.history import SHOWN
from projections.listing_query import one
from projections.scopes import owner_of, shown

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])


async def _visible(request: Request, caller: Caller, id_: UUID) -> dict[str, Any]:
    rows = await fetch(request, caller, *one(caller, id_))
    if not rows:
        raise ConversationNotFoundError
    return rows[0]


@router.get("/{id}", summary="Get a conversation", response_model=ConversationView, responses=QUERY_PROBLEMS)
async def get_conversation(
    id: ConversationId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    at_least: AtLeast = None,
    version: Version = None,
    as_of: Then = None,
) -> Response:
    """The conversation as the listing shows it, its version as the ETag; or how it stood, for who may read its history.

    How it stood is folded from the log: with its subject and attributes of that time, and the contact's details of now.
    """
    await wait_for(request, "listing", at_least)
    row = await _visible(request, caller, id)
    if version is not None or as_of is not None:
        return as_json(shown(await as_it_stood(request, caller, row, version, as_of), caller))
    if of_conversation(caller, What.LISTING, request.state.request_id, id, owner_of(row)) is not None:
        access = of_rows(request, caller)
        if access is not None:
            await fetch(request, caller, "select 1", (), access)
    return as_json(shown(row, caller), {"ETag": f'"{row["version"]}"'})


class MessageView(BaseModel):
    """A message or note, from the log."""

    version: int
    direction: Literal["received", "sent", "note"]
    message_id: UUID
    author: Actor
    kind: MessageKind
    text: str
    attachments: list[dict[str, Any]]
    occurred_at: datetime
    recorded_at: datetime
    erased: Annotated[bool, Field(description="its contact was erased: nobody can read it any more")]


Order = Annotated[Literal["asc", "desc"], Query(description="oldest or newest first; the same on all pages")]
UpTo = Annotated[int | None, Query(ge=1, le=MAX_POSITION, description="nothing that came after this version")]


class MessagePage(BaseModel):
    """A page of messages, oldest first unless asked otherwise; ``next`` is the cursor of the next one."""

    items: list[MessageView]
    next: str | None


Written = MessageReceived | MessageSent | NoteAdded
_DIRECTIONS = {MessageReceived.TOPIC: "received", MessageSent.TOPIC: "sent", NoteAdded.TOPIC: "note"}


@router.get("/{id}/messages", summary="Read its messages", response_model=MessagePage, responses=QUERY_PROBLEMS)
async def get_messages(
    id: ConversationId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    limit: Limit = 100,
    cursor: Cursor = None,
    at_least: AtLeast = None,
    order: Order = "asc",
    version: UpTo = None,
) -> Response:
    """The conversation's messages and notes, oldest first unless asked otherwise."""
    await wait_for(request, "listing", at_least)
    conversation = await _visible(request, caller, id)
    access = of_conversation(caller, What.MESSAGES, request.state.request_id, id, owner_of(conversation))
    until = readable_until(caller, conversation, Permission.VIEW)
    walk, versions = _versions(order, cursor, min(until, version or until))
    statement = recording(
        access,
        f"select {COLUMNS} from events where workspace_id = %s and stream_id = %s and topic = any(%s) and {walk}",
        (caller.workspace_id, id, list(_DIRECTIONS), *versions, limit + 1),
    )
    rows = await fetch(request, caller, *statement)
    events = [EventRow(**row) for row in rows[:limit]]
    ciphers = await request.app.state.keys.find(people_of(events))
    items = [message_view(opened(event, ciphers)) for event in events]
    more = len(rows) > limit
    return as_json({"items": items, "next": encode_cursor(items[-1]["version"]) if more else None})


def _versions(order: str, cursor: str | None, until: int) -> tuple[str, tuple[int, int]]:
    """A condition on versions up to ``until`` that follow those of the page before, in their order; and its values."""
    resumed = decode_cursor(cursor, int)
    if order == "asc":
        return "version > %s and version <= %s order by version limit %s", (resumed[0] if resumed else 0, until)
    following = "version > %s and version <= %s order by version desc limit %s"
    return following, (0, min(until, resumed[0] - 1) if resumed else until)


def message_view(recorded: RecordedEvent) -> dict[str, Any]:
    """A message or note as clients see it."""
    event = cast("Written", recorded.event)
    said = event.personal.model_dump(mode="json")
    return {
        "version": recorded.version,
        "direction": _DIRECTIONS[event.TOPIC],
        "message_id": event.message_id,
        "author": event.author.model_dump(mode="json"),
        "kind": MessageKind.TEXT if isinstance(event, NoteAdded) else event.kind,
        "text": said["text"],
        "attachments": said.get("attachments", []),
        "occurred_at": recorded.metadata.occurred_at,
        "recorded_at": recorded.recorded_at,
        "erased": recorded.erased,
    }


@router.get("/{id}/history", summary="Read its history", response_model=HistoryPage, responses=QUERY_PROBLEMS)
async def get_history(  # noqa: PLR0913  # FastAPI reads them from here
    id: ConversationId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.READ_HISTORY)],
    limit: Limit = 100,
    cursor: Cursor = None,
    at_least: AtLeast = None,
    order: Order = "asc",
    version: UpTo = None,
    *,
    speech: Speaking,
) -> Response:
    """Everything that happened to it, oldest first unless asked otherwise, and how it stood after each event."""
    await wait_for(request, "history", at_least)
    await wait_for(request, "listing", at_least)
    conversation = await _visible(request, caller, id)
    if not may(caller, Permission.READ_HISTORY, owner_of(conversation)):
        raise PermissionDeniedError(f"This needs the permission '{Permission.READ_HISTORY}' for this conversation.")
    access = of_conversation(caller, What.HISTORY, request.state.request_id, id, owner_of(conversation))
    until = readable_until(caller, conversation, Permission.READ_HISTORY)
    walk, versions = _versions(order, cursor, min(until, version or until))
    statement = recording(
        access,
        f"select {SHOWN} from history where workspace_id = %s and stream_id = %s and {walk}",
        (caller.workspace_id, id, *versions, limit + 1),
    )
    rows = await fetch(request, caller, *statement)
    more = len(rows) > limit
    items = await in_words(request, caller, rows[:limit], speech)
    return as_json({"items": items, "next": encode_cursor(items[-1]["version"]) if more else None})
