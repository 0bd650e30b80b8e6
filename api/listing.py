"""The listing over HTTP: find conversations, read one, its messages and its history.

Invariant: every query is limited to what the caller may see; what lies outside is 404.
"""

import re
from datetime import datetime
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from adapters.codec import decode
from api import demo
from api.access import QUERY_PROBLEMS, needs
from api.history import HistoryPage, entry
from api.queries import (
    AtLeast,
    Cursor,
    Limit,
    Moment,
    Position,
    as_json,
    decode_cursor,
    encode_cursor,
    fetch,
    invalid,
    wait_for,
)
from domain.errors import ConversationNotFoundError, PermissionDeniedError
from domain.events import (
    Actor,
    FinalizationCause,
    Line,
    MessageKind,
    MessageReceived,
    MessageSent,
    NoteAdded,
    Priority,
    Slug,
    Status,
)
from domain.permissions import Caller, Permission, may
from projections.history import COLUMNS as HISTORY_COLUMNS
from projections.listing_query import Bar, Page, Sort, one, owner_of, page, shown

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])
ConversationId = Annotated[UUID, Path(description="the conversation's id", examples=[demo.CONVERSATION])]


class ConversationView(BaseModel):
    """A conversation as the listing shows it. Times are when things happened; durations are seconds per episode."""

    id: UUID
    protocol: str
    channel: str
    status: Status
    sector_id: UUID | None
    agent_id: UUID | None
    bot: str | None
    contact_id: UUID
    contact_name: str | None
    contact_phones: list[str]
    contact_emails: list[str]
    contact_attributes: dict[str, Any]
    subject: str | None
    priority: Priority
    labels: list[str]
    attributes: dict[str, Any]
    opened_at: datetime
    opened_by: str
    last_activity_at: datetime
    finalized_at: datetime | None
    finalized_from: Literal["inbox", "listing", "automatically"] | None
    finalized_by: str | None
    finalized_cause: FinalizationCause | None
    outcome: str | None
    episode: int
    episode_started_at: datetime
    waiting_since: datetime | None
    waiting_seconds: float
    first_response_seconds: float | None
    resolution_seconds: float | None
    unanswered_since: datetime | None
    unread: int
    sectors: list[UUID]
    agents: list[UUID]
    bots: list[str]
    participants: list[str]
    transfers: int
    reopenings: int
    messages_received: int
    messages_sent: int
    notes: int
    version: int
    position: int


class ConversationPage(BaseModel):
    """A page of the listing; ``next`` is the cursor of the next one."""

    items: list[ConversationView]
    next: str | None


class ListingParameters(BaseModel):
    """The filter bar, sort and page."""

    model_config = ConfigDict(extra="forbid")

    status: Annotated[list[Status], Field(max_length=4)] = []
    channel: Annotated[list[Slug], Field(max_length=50)] = []
    sector: Annotated[list[UUID], Field(max_length=200)] = []
    agent: Annotated[list[UUID], Field(max_length=200)] = []
    bot: Annotated[list[Slug], Field(max_length=50)] = []
    label: Annotated[list[Slug], Field(max_length=50)] = []
    opened_from: Moment | None = None
    opened_until: Moment | None = None
    last_activity_from: Moment | None = None
    last_activity_until: Moment | None = None
    finalized_from: Moment | None = None
    finalized_until: Moment | None = None
    q: Annotated[Line | None, Field(description="protocol, or the contact's name, phone or e-mail")] = None
    sort: Sort = Sort.LAST_ACTIVITY
    order: Literal["desc", "asc"] = "desc"
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str | None, Field(max_length=500, description="`next` of the page before")] = None
    at_least: Annotated[
        Position | None, Field(description="wait, briefly, until the listing has this position of a command's answer")
    ] = None


@router.get("", summary="List conversations", response_model=ConversationPage, responses=QUERY_PROBLEMS)
async def list_conversations(
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    wanted: Annotated[ListingParameters, Query()],
) -> Response:
    """The conversations that you may see and that fit the filters; several values of one filter are alternatives."""
    after = decode_cursor(wanted.cursor, str, str, str, UUID)
    if after is not None and after[:2] != [wanted.sort.value, wanted.order]:
        raise invalid("cursor", "belongs to another sort; start again without it")
    if after is not None and not _is_sort_value(wanted.sort, after[2]):
        raise invalid("cursor", "is not one of ours; start again without it")
    await wait_for(request, "listing", wanted.at_least)
    bar = Bar(
        **wanted.model_dump(exclude={"q", "sort", "order", "limit", "cursor", "at_least"}),
        text=wanted.q,
    )
    statement = page(
        caller,
        Page(
            bar=bar,
            sort=wanted.sort,
            descending=wanted.order == "desc",
            after=(after[2], after[3]) if after else None,
            limit=wanted.limit,
        ),
    )
    rows = await fetch(request, caller, *statement)
    more = len(rows) > wanted.limit
    rows = rows[: wanted.limit]
    cursor = encode_cursor(wanted.sort, wanted.order, rows[-1]["sort_value"], rows[-1]["id"]) if more else None
    return as_json({"items": [shown(row, caller) for row in rows], "next": cursor})


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?\+00")


def _is_sort_value(sort: Sort, value: str) -> bool:
    """Whether PostgreSQL would print a value of ``sort`` like this, so that it can also read it."""
    if sort is Sort.PRIORITY:
        return value in {"0", "1", "2", "3"}
    if value in {"infinity", "-infinity"}:
        return True
    try:
        return _TIME.fullmatch(value) is not None and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


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
) -> Response:
    """The conversation as the listing shows it, its version as the ETag."""
    await wait_for(request, "listing", at_least)
    row = await _visible(request, caller, id)
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


class MessagePage(BaseModel):
    """A page of messages, oldest first; ``next`` is the cursor of the next one."""

    items: list[MessageView]
    next: str | None


_DIRECTIONS = {MessageReceived.TOPIC: "received", MessageSent.TOPIC: "sent", NoteAdded.TOPIC: "note"}


@router.get("/{id}/messages", summary="Read its messages", response_model=MessagePage, responses=QUERY_PROBLEMS)
async def get_messages(
    id: ConversationId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """The conversation's messages and notes, oldest first."""
    await _visible(request, caller, id)
    after = decode_cursor(cursor, int) or [0]
    rows = await fetch(
        request,
        caller,
        "select version, topic, data, occurred_at, recorded_at from events where workspace_id = %s and stream_id = %s"
        " and version > %s and topic = any(%s) order by version limit %s",
        (caller.workspace_id, id, *after, list(_DIRECTIONS), limit + 1),
    )
    items = [_message(row) for row in rows[:limit]]
    more = len(rows) > limit
    return as_json({"items": items, "next": encode_cursor(items[-1]["version"]) if more else None})


def _message(row: dict[str, Any]) -> dict[str, Any]:
    event = cast("MessageReceived | MessageSent | NoteAdded", decode(row["topic"], row["data"]))
    said = event.personal.model_dump(mode="json")
    return {
        "version": row["version"],
        "direction": _DIRECTIONS[row["topic"]],
        "message_id": event.message_id,
        "author": event.author.model_dump(mode="json"),
        "kind": MessageKind.TEXT if isinstance(event, NoteAdded) else event.kind,
        "text": said["text"],
        "attachments": said.get("attachments", []),
        "occurred_at": row["occurred_at"],
        "recorded_at": row["recorded_at"],
    }


@router.get("/{id}/history", summary="Read its history", response_model=HistoryPage, responses=QUERY_PROBLEMS)
async def get_history(
    id: ConversationId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.READ_HISTORY)],
    limit: Limit = 100,
    cursor: Cursor = None,
    at_least: AtLeast = None,
) -> Response:
    """Everything that happened to the conversation, oldest first, and how it stood after each event."""
    await wait_for(request, "history", at_least)
    conversation = await _visible(request, caller, id)
    if not may(caller, Permission.READ_HISTORY, owner_of(conversation)):
        raise PermissionDeniedError(f"This needs the permission '{Permission.READ_HISTORY}' for this conversation.")
    after = decode_cursor(cursor, int) or [0]
    rows = await fetch(
        request,
        caller,
        f"select {', '.join(HISTORY_COLUMNS)} from history"
        " where workspace_id = %s and stream_id = %s and version > %s order by version limit %s",
        (caller.workspace_id, id, *after, limit + 1),
    )
    more = len(rows) > limit
    items = [entry(row) for row in rows[:limit]]
    return as_json({"items": items, "next": encode_cursor(items[-1]["version"]) if more else None})
