"""The history as a file: all events that fit a search, in CSV or NDJSON, streamed.

Invariant: as for exports of the listing; no personal data.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse

from api.access import QUERY_PROBLEMS, needs, require
from api.exports import Format, exported
from api.history import HistoryEntry, HistoryFilter, entry, found_by, rows_of
from api.queries import wait_for
from api.sentences import names_for, speech_of
from domain.permissions import Caller, Permission
from projections.scopes import visible

router = APIRouter(prefix="/v1", tags=["history"])

COLUMNS = tuple(HistoryEntry.model_fields)
_CONTENT: dict[str, Any] = {
    "text/csv": {"schema": {"type": "string"}, "example": f"{','.join(COLUMNS[:4])}\r\n"},
    "application/x-ndjson": {"schema": {"type": "string"}},
}


class HistoryExportParameters(HistoryFilter):
    """What to export, and in which form."""

    format: Format = "csv"


@router.get(
    "/history/export",
    summary="Export the history",
    response_class=StreamingResponse,
    responses=QUERY_PROBLEMS | {200: {"description": "The events, newest first", "content": _CONTENT}},
)
async def export_history(
    request: Request,
    caller: Annotated[Caller, needs(Permission.EXPORT)],
    wanted: Annotated[HistoryExportParameters, Query()],
) -> Response:
    """All events that `GET /v1/history` finds, as it shows them, of conversations that you may export.

    CSV and NDJSON are written as for conversations: details stand in a cell as JSON. That you export is recorded.
    """
    require(caller, Permission.READ_HISTORY)
    speech = speech_of(request, wanted.lang, wanted.tz)
    await wait_for(request, "history", wanted.at_least)
    conditions = found_by(caller, wanted)
    if exportable := visible(caller, Permission.EXPORT)[1:]:
        text = " and ".join(condition for condition, _ in exportable)
        values = [value for _, some in exportable for value in some]
        conditions.append((f"stream_id in (select id from listing where {text})", values))
    names = await names_for(request, caller, None)
    return await exported(
        *(request, caller, "historico", wanted.format, COLUMNS, [rows_of(conditions)]),
        lambda row: entry(row, names, speech),
    )
