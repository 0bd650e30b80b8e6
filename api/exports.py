"""The export: the whole result of a filter as CSV or NDJSON, streamed.

Rows are read by a cursor of the database and written out as they come: memory does not grow with their number, and
all of them stand as they did at one moment.

Invariant: no cell that a person could have written begins like a formula; a row holds what the listing would show.
Who takes nothing is cut: an export holds a connection to the database and one of few places.
"""

import asyncio
import csv
import io
import logging
import re
import unicodedata
from collections import Counter as Tally
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request
from psycopg.rows import dict_row
from pydantic import Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Send

from adapters.accesses import Access, What, recording
from adapters.command_handler import UnavailableError
from api.access import QUERY_PROBLEMS, needs, require
from api.as_of import AsOf, look_back
from api.listing import BarParameters, ConversationView, filter_of, sort_of
from api.queries import Position, fetch, reading, wait_for
from domain.permissions import Caller, Permission
from projections.listing_query import Page, Sort, pages
from projections.scopes import shown
from projections.sql import Sql

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

COLUMNS = tuple(ConversationView.model_fields)
"""The columns of a CSV, in order: those of the listing."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What a spreadsheet takes for the beginning of a formula, or drops before it looks."""
_UNSEEN = " \u00a0\u200b\u200c\u200d\u2060\ufeff"
_AFTER_A_SEPARATOR = re.compile(rf"([;\t\r\n][{_UNSEEN}]*)(?=[=+@\uff1d\uff0b\uff20-])")
BETWEEN = " | "
"""What stands between the values of a list in one cell."""
Format = Literal["csv", "ndjson"]
Row = dict[str, Any]
Rows = list[Row]
AT_ONCE, AT_ONCE_PER_WORKSPACE = 3, 2
ROWS_AT_ONCE = 500
SEND_SECONDS = 30.0
"""How long a reader may take for `SENT_AT_ONCE` before they are given up, and what the export holds is let go."""
SENT_AT_ONCE = 65_536
_LIMITS = "set local statement_timeout = '60s'; set local idle_in_transaction_session_timeout = '60s'"
"""For the sort that may come before the first row, and for a client that reads slowly."""


class TooManyExportsError(UnavailableError):
    """As many exports as this process allows are under way."""


class ExportParameters(BarParameters):
    """What to export, in which order and form."""

    format: Format = "csv"
    sort: Annotated[
        Sort | None, Field(description="else by the only period of the bar that is given, or by latest activity")
    ] = None
    order: Literal["desc", "asc"] = "desc"
    at_least: Annotated[
        Position | None, Field(description="wait, briefly, until the listing has this position of a command's answer")
    ] = None
    as_of: AsOf = None


_CONTENT: dict[str, Any] = {
    "text/csv": {
        "schema": {"type": "string"},
        "example": f"{','.join(COLUMNS[:4])}\r\n0190a000-0000-7000-8000-000000000001,2026000001,whatsapp,pending\r\n",
    },
    "application/x-ndjson": {"schema": {"type": "string"}},
}


@router.get(
    "/export",
    summary="Export conversations",
    response_class=StreamingResponse,
    responses=QUERY_PROBLEMS | {200: {"description": "The rows, as they are found", "content": _CONTENT}},
)
async def export_conversations(
    request: Request,
    caller: Annotated[Caller, needs(Permission.EXPORT)],
    wanted: Annotated[ExportParameters, Query()],
) -> Response:
    """All conversations that you may see and export and that fit the filters: the columns of the listing, in its order.

    In CSV (UTF-8, RFC 4180) the values of a list stand in one cell, with ` | ` between them, and attributes as JSON.
    A text that begins like a formula (`=`, `+`, `-`, `@`, tab, line end), or would behind a `;`, has an apostrophe
    there. NDJSON holds one conversation a line, exactly as the listing shows it. That you export is recorded. An export
    that breaks off has not sent its last chunk; one of which nothing is taken for half a minute does.
    """
    require(caller, Permission.VIEW)
    asked = Page(
        filter=filter_of(wanted),
        sort=sort_of(wanted, wanted.sort),
        descending=wanted.order == "desc",
        limit=None,
        permission=Permission.EXPORT,
        now=datetime.now(UTC),
        as_of=wanted.as_of,
    )
    await look_back(request, caller, wanted.as_of)
    await wait_for(request, "listing", wanted.at_least)
    return await exported(
        *(request, caller, "conversas", wanted.format, COLUMNS, pages(caller, asked)), lambda row: shown(row, caller)
    )


async def exported(
    request: Request,
    caller: Caller,
    name: str,
    format: Format,
    columns: Sequence[str],
    statements: Sequence[Sql],
    show: Callable[[Row], Row],
) -> Response:
    """The rows of ``statements``, one after the other, as ``show`` has them: a file that is written as it is read.

    That the caller takes them along is recorded before.
    """
    await fetch(request, caller, *recording(Access(caller, What.EXPORT, request.state.request_id)))
    write = partial(_as_csv, columns) if format == "csv" else _as_ndjson
    written = _written(request, caller, statements, lambda rows: write([show(row) for row in rows]))
    first = await anext(written)  # what goes wrong before the first rows is still answered with a problem
    headings = f"{','.join(columns)}\r\n".encode() if format == "csv" else b""
    media_type = "text/csv; charset=utf-8" if format == "csv" else "application/x-ndjson"
    file = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}.{format}"
    headers = {"Content-Disposition": f'attachment; filename="{file}"'}
    return Export(_stream(headings + first, written), 200, headers, media_type)


class Export(StreamingResponse):
    """A response that ends where its reader takes nothing."""

    async def stream_response(self, send: Send) -> None:
        """Send the parts, each within its time."""

        async def in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        try:
            await super().stream_response(in_time)
        except TimeoutError:
            log.warning("an export was broken off: nothing was taken of it for %s s", SEND_SECONDS)
        finally:
            await cast("AsyncGenerator[bytes]", self.body_iterator).aclose()


async def _stream(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(rest):
        yield first
        async for part in rest:
            for start in range(0, len(part), SENT_AT_ONCE):
                yield part[start : start + SENT_AT_ONCE]


async def _written(
    request: Request, caller: Caller, statements: Sequence[Sql], write: Callable[[Rows], bytes]
) -> AsyncGenerator[bytes]:
    """The rows, so many at a time; a first part comes always, if need be an empty one."""
    async with _one_of_few(caller.workspace_id), reading(request, caller) as connection:
        await connection.execute(_LIMITS)
        found = 0
        for statement in statements:
            async with connection.cursor("export", row_factory=dict_row) as cursor:
                await cursor.execute(*statement)
                while rows := await cursor.fetchmany(ROWS_AT_ONCE):
                    found += len(rows)
                    yield write(rows)
        if not found:
            yield b""


_under_way: Tally[UUID] = Tally()


@asynccontextmanager
async def _one_of_few(workspace_id: UUID) -> AsyncIterator[None]:
    """Exports hold a connection for long: enough must be left for everybody else, and for other workspaces' exports."""
    if _under_way[workspace_id] >= AT_ONCE_PER_WORKSPACE or _under_way.total() >= AT_ONCE:
        raise TooManyExportsError("Too many exports are under way here; come again when one is done.")
    _under_way[workspace_id] += 1
    try:
        yield
    finally:
        _under_way[workspace_id] -= 1


def _as_ndjson(rows: Rows) -> bytes:
    return b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS) for row in rows)


def _as_csv(columns: Sequence[str], rows: Rows) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(
        [cell(row[column]) for column in columns] for row in rows
    )
    return text.getvalue().encode()


def cell(value: Any) -> Any:
    """``value`` as a cell of a CSV: text that begins like a formula is given an apostrophe, numbers are not."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case int() | float():
            return value
        case datetime():
            return value.isoformat()
        case list():
            return _harmless(BETWEEN.join(str(each) for each in value))
        case dict():
            return orjson.dumps(value).decode() if value else ""
        case _:
            return _harmless(str(value))


def _harmless(text: str) -> str:
    """``text`` with an apostrophe before whatever a spreadsheet may take for a formula.

    That is its beginning, also behind blanks or as a look-alike character, and what follows a `;` or tab: where those
    separate cells, as in Brazil, a part of a text begins one.
    """
    bare = unicodedata.normalize("NFKC", text).lstrip(_UNSEEN)
    if text.startswith(FORMULA) or bare.startswith(FORMULA):
        text = f"'{text}"
    return _AFTER_A_SEPARATOR.sub(r"\1'", text)
