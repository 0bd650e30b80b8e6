"""Bulk actions over HTTP: start one on ids or on all that matches, watch it, cancel it, read what became of each.

Invariant: a job is its caller's; to everybody else it does not exist, but for those who manage the whole directory.
"""

import hashlib
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid5

import orjson
from fastapi import APIRouter, Body, Header, Path, Query, Request
from pydantic import BaseModel, Discriminator, Field, Tag
from starlette.responses import Response
from uuid_utils.compat import uuid7

from adapters import bulk
from api import demo
from api.access import COMMAND_PROBLEMS, QUERY_PROBLEMS, needs, require
from api.conversations import Assumption
from api.listing import ToldElsewhere
from api.queries import (
    MAX_POSITION,
    AtLeast,
    Cursor,
    Limit,
    as_json,
    decode_cursor,
    encode_cursor,
    fetch,
    of_search,
    reading,
    wait_for,
)
from domain.commands import (
    AddLabel,
    Assume,
    ChangePriority,
    ConversationCommand,
    Finalize,
    MarkPending,
    RemoveLabel,
    Reopen,
    Transfer,
)
from domain.decider import required_permission
from domain.errors import AlreadyExistsError, BulkJobNotFoundError, IdempotencyKeyReusedError, InvalidCommandError
from domain.events import Fact, Flag, Line, Surface, Text
from domain.permissions import Caller, Permission

router = APIRouter(prefix="/v1/bulk", tags=["bulk"])
MOST_IDS = 10_000
JobId = Annotated[UUID, Path(description="the bulk action's id", examples=[demo.BULK_JOB])]


class OnIds(Fact):
    """These conversations."""

    ids: Annotated[tuple[UUID, ...], Field(min_length=1, max_length=MOST_IDS)]


class OnFilter(Fact):
    """All conversations within your scope that match as it starts."""

    filter: ToldElsewhere


def _chosen_by(on: Any) -> str:
    return "filter" if isinstance(on, OnFilter) or (isinstance(on, dict) and "ids" not in on) else "ids"


class Ending(Fact):
    """How they end; it counts as from the listing."""

    outcome: Line = ""
    comment: Text | None = None


class _Many(Fact):
    """What all bulk actions have."""

    id: Annotated[UUID | None, Field(description="chosen by the client, so that a repeat is recognised")] = None
    on: Annotated[Annotated[OnIds, Tag("ids")] | Annotated[OnFilter, Tag("filter")], Discriminator(_chosen_by)]
    dry_run: Annotated[Flag, Field(description="decide only: count what would change, and change nothing")] = False


class FinalizeMany(_Many):
    """End them."""

    action: Literal["finalize"]
    parameters: Ending = Ending()


class TransferMany(_Many):
    """Give them to a sector's queue, or to an agent."""

    action: Literal["transfer"]
    parameters: Transfer


class AssumeMany(_Many):
    """Take them; an integration says who does."""

    action: Literal["assume"]
    parameters: Assumption = Assumption()


class ReopenMany(_Many):
    """Go on with them."""

    action: Literal["reopen"]
    parameters: Reopen = Reopen()


class AddLabelToMany(_Many):
    """Put a label on them."""

    action: Literal["add-label"]
    parameters: AddLabel


class RemoveLabelFromMany(_Many):
    """Take a label off them."""

    action: Literal["remove-label"]
    parameters: RemoveLabel


class ChangePriorityOfMany(_Many):
    """Make them more or less urgent."""

    action: Literal["change-priority"]
    parameters: ChangePriority


class MarkManyPending(_Many):
    """Let them go back to the queue."""

    action: Literal["mark-pending"]
    parameters: MarkPending = MarkPending()


Many = Annotated[
    FinalizeMany
    | TransferMany
    | AssumeMany
    | ReopenMany
    | AddLabelToMany
    | RemoveLabelFromMany
    | ChangePriorityOfMany
    | MarkManyPending,
    Field(discriminator="action"),
]

State = Literal["waiting", "running", "done", "cancelled", "stopped"]


class JobView(BaseModel):
    """A bulk action and how far it is."""

    id: UUID
    action: str
    parameters: dict[str, Any]
    dry_run: bool
    by: Annotated[str, Field(description="who started it, as kind:id")]
    state: State
    reason: Annotated[str | None, Field(description="why it stopped: a stable code")]
    total: int
    done: int
    changed: Annotated[int, Field(description="in a dry run: would be changed")]
    already: Annotated[int, Field(description="it was already so")]
    refused: int
    failed: int
    cancelled: Annotated[int, Field(description="never had their turn, because it was cancelled or stopped")]
    per_second: Annotated[float | None, Field(description="conversations per second since it began")]
    position: Annotated[int, Field(description="ask queries for `at_least` this to see what it did so far")]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class JobPage(BaseModel):
    """A page of bulk actions, newest first; ``next`` is the cursor of the next one."""

    items: list[JobView]
    next: str | None


Result = Literal["waiting", "changed", "already", "refused", "failed", "cancelled"]


class ResultView(BaseModel):
    """What became of one conversation."""

    number: int
    conversation_id: UUID
    outcome: Result
    code: Annotated[str | None, Field(description="why it was refused or failed: a stable code")]
    version: int | None
    position: int | None


class ResultPage(BaseModel):
    """A page of results, in the order of their turns; ``next`` is the cursor of the next one."""

    items: list[ResultView]
    next: str | None


_EXAMPLE = {
    "id": str(demo.BULK_JOB),
    "action": "finalize",
    "parameters": {"outcome": "resolvida"},
    "on": {"filter": {"field": "status", "operator": "is", "value": "pending"}},
    "dry_run": True,
}


@router.post(
    "",
    summary="Act on many conversations",
    status_code=202,
    response_model=JobView,
    responses=COMMAND_PROBLEMS,
    openapi_extra={"requestBody": {"content": {"application/json": {"example": _EXAMPLE}}}},
)
async def start_bulk_action(
    body: Annotated[Many, Body()],
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern="^[!-~]{1,200}$",
            description="The same job is given again; another one under it is refused.",
        ),
    ] = None,
    at_least: AtLeast = None,
) -> Response:
    """Start an action on up to 10,000 ids, or on all that match a filter now.

    Each conversation is decided on its own, with the rights you have when its turn comes; one that is refused leaves
    the others alone. The same `Idempotency-Key` (or `id`) gives the same job again.
    """
    command = _command(body, caller)
    require(caller, required_permission(command))
    await wait_for(request, "listing", at_least)
    actor = f"{caller.actor.kind}:{caller.actor.id}"
    wanted = bulk.Wanted(
        id=body.id or (uuid5(caller.workspace_id, f"{actor} {key}") if key else uuid7()),
        action=body.action,
        command=command,
        on=body.on.ids if isinstance(body.on, OnIds) else body.on.filter,
        dry_run=body.dry_run,
        request_id=request.state.request_id,
        fingerprint=hashlib.sha256(f"{actor} {body.model_dump_json()}".encode()).digest(),
    )
    if isinstance(body.on, OnFilter) and (access := of_search(request, caller, body.on.filter)) is not None:
        await fetch(request, caller, "select 1", (), access)
    async with reading(request, caller) as connection:
        is_there = await bulk.start(connection, caller, wanted)
    if not is_there:
        raise IdempotencyKeyReusedError if body.id is None else AlreadyExistsError
    request.app.state.bulk.wake()
    location = {"Location": f"/v1/bulk/{wanted.id}"}
    return Response(orjson.dumps(await _job(request, caller, wanted.id)), 202, location, "application/json")


def _command(body: Many, caller: Caller) -> ConversationCommand:
    match body:
        case FinalizeMany(parameters=ending):
            return Finalize(surface=Surface.LISTING, outcome=ending.outcome, comment=ending.comment)
        case AssumeMany(parameters=assumption):
            agent_id = assumption.agent_id or caller.agent_id
            if agent_id is None:
                raise InvalidCommandError("This token is no agent's: say which agent assumes them, in 'agent_id'.")
            return Assume(agent_id=agent_id)
        case _:
            return body.parameters


async def _job(request: Request, caller: Caller, id_: UUID) -> dict[str, Any]:
    rows = await fetch(request, caller, *bulk.jobs(caller, id_))
    if not rows:
        raise BulkJobNotFoundError
    return _view(rows[0])


def _view(row: dict[str, Any]) -> dict[str, Any]:
    done = sum(row[outcome] for outcome in ("changed", "already", "refused", "failed"))
    seconds = float(row.pop("seconds") or 0)
    del row["number"]
    given = {name: value for name, value in row.pop("command").items() if name != "surface"}
    return row | {
        "parameters": given,
        "by": f"{row.pop('actor_kind')}:{row.pop('actor_id')}",
        "done": done,
        "cancelled": row["total"] - done if row["state"] in {"cancelled", "stopped"} else 0,
        "per_second": round(done / seconds, 1) if seconds > 0 else None,
    }


@router.get("", summary="List bulk actions", response_model=JobPage, responses=QUERY_PROBLEMS)
async def list_bulk_actions(
    request: Request, caller: Annotated[Caller, needs(Permission.VIEW)], limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Your bulk actions, newest first; with `manage-directory` for all of the workspace, everybody's."""
    before = decode_cursor(cursor, int) or [MAX_POSITION]
    statement, values = bulk.jobs(caller)
    statement += " and number < %s order by number desc limit %s"
    rows = await fetch(request, caller, statement, [*values, *before, limit + 1])
    following = encode_cursor(rows[limit - 1]["number"]) if len(rows) > limit else None
    return as_json({"items": [_view(row) for row in rows[:limit]], "next": following})


@router.get("/{id}", summary="Get a bulk action", response_model=JobView, responses=QUERY_PROBLEMS)
async def get_bulk_action(id: JobId, request: Request, caller: Annotated[Caller, needs(Permission.VIEW)]) -> Response:
    """How far it is."""
    return as_json(await _job(request, caller, id))


@router.get(
    "/{id}/results", summary="Read a bulk action's results", response_model=ResultPage, responses=QUERY_PROBLEMS
)
async def get_bulk_results(
    id: JobId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    outcome: Annotated[list[Literal["changed", "already", "refused", "failed"]], Query(max_length=4)] = [],  # noqa: B006  # read only, as everywhere in FastAPI
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """What became of each conversation, in the order of their turns."""
    after = decode_cursor(cursor, int) or [0]
    job = await _job(request, caller, id)
    waiting = "cancelled" if job["state"] in {"cancelled", "stopped"} else "waiting"
    rows = await fetch(
        request,
        caller,
        "select number, conversation_id, coalesce(outcome, %s) as outcome, code, version, position from bulk_items"
        " where workspace_id = %s and job_id = %s and number > %s"
        + (" and outcome = any(%s)" if outcome else "")
        + " order by number limit %s",
        [waiting, caller.workspace_id, id, *after, *([outcome] if outcome else []), limit + 1],
    )
    more = len(rows) > limit
    return as_json({"items": rows[:limit], "next": encode_cursor(rows[limit - 1]["number"]) if more else None})


@router.post("/{id}/cancel", summary="Cancel a bulk action", response_model=JobView, responses=COMMAND_PROBLEMS)
async def cancel_bulk_action(
    id: JobId, request: Request, caller: Annotated[Caller, needs(Permission.VIEW)]
) -> Response:
    """End it where it stands: once this is answered, it changes nothing more. One that is over stays as it is."""
    await _job(request, caller, id)
    async with reading(request, caller) as connection:
        await bulk.cancel(connection, caller, id)
    return as_json(await _job(request, caller, id))
