"""What all queries over HTTP share: the pool, cursors, waiting for a position, the shapes of answers.

Invariant: a cursor holds only what the page before it showed; it grants nothing.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import monotonic
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from psycopg import AsyncConnection
from psycopg.rows import dict_row
from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from adapters.accesses import Access, Lately, What, statement
from adapters.command_handler import UnavailableError
from domain.permissions import Caller
from projections.filters import EVERYTHING, Filter, looks_for_somebody

MAX_POSITION = 2**63 - 1
Position = Annotated[int, Field(ge=0, le=MAX_POSITION)]


def _written_out(value: Any) -> Any:
    """``value``, if it is no bare number: seconds and milliseconds since 1970 are told apart by guessing only."""
    if isinstance(value, str) and not value[:5].endswith("-"):
        raise PydanticCustomError("moment", "expected a date and time with a time zone, such as 2026-11-22T10:00:00Z")
    return value


Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_written_out),
    Field(description="RFC 3339 with a zone; a period holds its start and not its end"),
]
Listed = Annotated[
    int | None,
    Field(description="all of the log up to this position is in the answer, and maybe more; null with `as_of`"),
]
Limit = Annotated[int, Query(ge=1, le=500, description="rows on a page")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next` of the page before")]
AtLeast = Annotated[
    Position | None,
    Query(description="wait, briefly, until the read model has this position of a command's answer"),
]
WAIT_SECONDS = 3.0
_LISTED = "select position from projection_positions where name = 'listing'"
_ENTER = "select set_config('conversas.workspace', %s, true)"


class CommandAnswer(BaseModel):
    """What became of a command."""

    id: UUID
    version: Annotated[int, Field(description="the aggregate's version after it; also the ETag")]
    position: Annotated[int, Field(description="ask queries for `at_least` this to see the effect")]
    events: Annotated[int, Field(description="how many events it caused; 0: it was already so")]
    replayed: Annotated[bool, Field(description="the answer given before under the same idempotency key")]
    status: Annotated[str | None, Field(description="a conversation's status after it")] = None
    warnings: Annotated[list[str], Field(description="done all the same: `target-offline`; absent where none")] = []


class ReadModelBehindError(UnavailableError):
    """The read model has not yet reached the position asked for."""


async def fetch(
    request: Request, caller: Caller, query: str, values: Sequence[Any], access: Access | None = None
) -> list[dict[str, Any]]:
    """The rows of ``query``, of the caller's workspace only: row-level security sees to it; ``access`` is recorded."""
    [rows] = await _fetch_all(request, caller, [(query, values)], access)
    return rows


async def fetch_listed(
    request: Request, caller: Caller, query: str, values: Sequence[Any], access: Access | None = None
) -> tuple[list[dict[str, Any]], int]:
    """As `fetch`, and the position that the listing had just before: all up to it is in what was found there."""
    [[listed], rows] = await _fetch_all(request, caller, [(_LISTED, ()), (query, values)], access)
    return rows, listed["position"]


async def _fetch_all(
    request: Request, caller: Caller, queries: Sequence[tuple[str, Sequence[Any]]], access: Access | None
) -> list[list[dict[str, Any]]]:
    """The rows of each query, one after the other in one round trip."""
    async with request.app.state.pool.connection() as connection:
        cursors = [connection.cursor(row_factory=dict_row) for _ in queries]
        async with connection.pipeline(), connection.transaction():
            await connection.execute(_ENTER, (str(caller.workspace_id),))
            if access is not None:
                await connection.execute(*statement(access))
            for cursor, query in zip(cursors, queries, strict=True):
                await cursor.execute(*query)
        found = [await cursor.fetchall() for cursor in cursors]
    if access is not None:
        request.app.state.lately.note(access)
    return found


def of_rows(request: Request, caller: Caller, wanted: Filter = EVERYTHING) -> Access | None:
    """That ``caller`` reads rows of the listing by ``wanted``; None where nothing is to be recorded any more."""
    lately: Lately = request.app.state.lately
    return of_search(request, caller, wanted) or lately.of_rows(caller, request.state.request_id)


def of_search(request: Request, caller: Caller, wanted: Filter) -> Access | None:
    """That ``caller`` looks for contacts by ``wanted``; None where it names nobody."""
    return Access(caller, What.SEARCH, request.state.request_id) if looks_for_somebody(wanted) else None


@asynccontextmanager
async def reading(request: Request, caller: Caller) -> AsyncIterator[AsyncConnection[Any]]:
    """A transaction that sees the caller's workspace only, for what takes more than one statement."""
    async with request.app.state.pool.connection() as connection, connection.transaction():
        await connection.execute(_ENTER, (str(caller.workspace_id),))
        yield connection


async def fetch_status(request: Request, query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """The rows of ``query`` on how far the log and its read models are; does not wait behind searches."""
    async with request.app.state.quick_pool.connection() as connection:
        cursor = connection.cursor(row_factory=dict_row)
        await cursor.execute(query, values)
        rows: list[dict[str, Any]] = await cursor.fetchall()
        return rows


async def wait_for(request: Request, read_model: str, position: int | None) -> None:
    """Return once ``read_model`` has ``position``.

    Raises `ReadModelBehindError` after 3 seconds, and at once the error for a position that the log has not reached.
    """
    if position is None:
        return
    deadline, pause = monotonic() + WAIT_SECONDS, 0.005
    query = "select position, (select max(position) from events) as head from projection_positions where name = %s"
    while True:
        [state] = await fetch_status(request, query, (read_model,))
        if state["position"] >= position:
            return
        if position > (state["head"] or 0):
            raise invalid("at_least", "is beyond the end of the log; give the position of a command's answer")
        if monotonic() > deadline:
            msg = f"The listing has not reached position {position} yet; try again in a moment."
            raise ReadModelBehindError(msg)
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.1)


async def wait_until_recorded(request: Request, read_model: str, moment: datetime) -> None:
    """Return once ``read_model`` has all that was recorded up to ``moment``: times of recording never go back.

    Raises `ReadModelBehindError` after 3 seconds.
    """
    query = """
        select (select recorded_at from events where position > m.position order by position limit 1) as following
        from projection_positions m where name = %s"""
    deadline, pause = monotonic() + WAIT_SECONDS, 0.005
    while True:
        [state] = await fetch_status(request, query, (read_model,))
        if state["following"] is None or state["following"] > moment:
            return
        if monotonic() > deadline:
            raise ReadModelBehindError("The listing does not reach up to this moment yet; try again shortly.")
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.1)


def encode_cursor(*parts: Any) -> str:
    """An opaque cursor of ``parts``."""
    return base64.urlsafe_b64encode(orjson.dumps(parts)).decode().rstrip("=")


def decode_cursor(cursor: str | None, *types: type) -> list[Any] | None:
    """The parts of ``cursor``, of ``types``; None where there is no cursor."""
    if cursor is None:
        return None
    try:
        parts = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        return [UUID(part) if type_ is UUID else _is(part, type_) for part, type_ in zip(parts, types, strict=True)]
    except (binascii.Error, ValueError, TypeError, AttributeError):
        raise invalid("cursor", "is not one of ours; start again without it") from None


def _is(part: Any, type_: type) -> Any:
    if type(part) is not type_ or (isinstance(part, int) and not 0 <= part <= MAX_POSITION):
        raise ValueError(part)
    return part


def invalid(parameter: str, message: str, place: str = "query") -> RequestValidationError:
    """The error for a parameter that is well-formed and yet wrong."""
    return RequestValidationError([{"loc": (place, parameter), "type": "invalid", "msg": message}])


def as_json(body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """``body`` as a JSON response; UUIDs and times as text."""
    return Response(orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS), 200, headers, "application/json")
