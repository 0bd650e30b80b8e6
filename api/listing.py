"""The listing over HTTP: find conversations, count them.

Invariant: every query is limited to what the caller may see; what lies outside is 404.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.responses import Response

from api.access import COMMAND_PROBLEMS, QUERY_PROBLEMS, needs
from api.as_of import AsOf, look_back
from api.queries import (
    Listed,
    Moment,
    Position,
    as_json,
    decode_cursor,
    encode_cursor,
    fetch_listed,
    invalid,
    of_rows,
    of_search,
    wait_for,
)
from domain.events import (
    FinalizationCause,
    Line,
    Priority,
    Slug,
    Status,
)
from domain.permissions import Caller, Permission
from projections.filters import (
    ATTRIBUTES,
    EVERYTHING,
    FIELDS,
    FILTER,
    MOST_CONDITIONS,
    MOST_LEVELS,
    OPERATORS,
    Condition,
    Filter,
    Kind,
    Operator,
    all_of,
)
from projections.listing_query import COUNTED_TO, NULLABLE, NUMERIC, Page, Sort, counts, pages
from projections.scopes import shown

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])


def _example(body: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"content": {"application/json": {"example": body}}}}


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
    position: Listed


_LONGEST_FILTER = 4_000
"""Characters of a filter in an address: a server reads no more than 64 KiB of one; a search's body holds more."""


class BarParameters(BaseModel):
    """The filter bar: what is given must hold; several values of one filter are alternatives."""

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
    q: Annotated[
        Line | None,
        Field(description="beginnings of words of the contact's name; or the beginning of a protocol, e-mail or phone"),
    ] = None
    filter: Annotated[
        str | None,
        Field(
            max_length=_LONGEST_FILTER,
            description="more conditions, as JSON: see `POST /v1/conversations/search`, which also takes longer ones",
        ),
    ] = None


class Paging(BaseModel):
    """The order of the rows, and which of them."""

    model_config = ConfigDict(extra="forbid")

    sort: Annotated[
        Sort | None, Field(description="else by the only period of the bar that is given, or by latest activity")
    ] = None
    order: Literal["desc", "asc"] = "desc"
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str | None, Field(max_length=500, description="`next` of the page before")] = None
    at_least: Annotated[
        Position | None, Field(description="wait, briefly, until the listing has this position of a command's answer")
    ] = None
    as_of: AsOf = None


class ListingParameters(Paging, BarParameters):
    """The filter bar, sort and page."""


class Search(Paging):
    """A filter, sort and page."""

    filter: Filter = EVERYTHING


ToldElsewhere = Annotated[
    Filter, WithJsonSchema({"type": "object", "description": "the grammar of POST /v1/conversations/search"})
]
"""A filter whose grammar the document does not spell out once more: it is long, and slows the document's readers."""


def filter_of(parameters: BarParameters) -> Filter:
    """The bar and the further filter of a query string, as one filter.

    Raises `RequestValidationError` for a further filter that is none, with the place in it.
    """
    found = [*_bar(parameters)]
    if parameters.filter is not None:
        try:
            found.append(FILTER.validate_json(parameters.filter))
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_context=False, include_input=False)
            raise RequestValidationError([{**e, "loc": ("query", "filter", *e["loc"])} for e in wrong]) from None
    return all_of(found)


def sort_of(bar: BarParameters, wanted: Sort | None) -> Sort:
    """The sort that is wanted; else that of the only period that is given, whose rows stand side by side in it."""
    periods = {
        Sort.OPENED: bar.opened_from or bar.opened_until,
        Sort.LAST_ACTIVITY: bar.last_activity_from or bar.last_activity_until,
        Sort.FINALIZED: bar.finalized_from or bar.finalized_until,
    }
    given = [sort for sort, at in periods.items() if at is not None]
    return wanted or (given[0] if len(given) == 1 else Sort.LAST_ACTIVITY)


def _bar(bar: BarParameters) -> Iterator[Filter]:
    for name in ("status", "channel", "sector", "agent", "bot", "label"):
        if values := getattr(bar, name):
            yield Condition(field=name, operator=Operator.IN, value=values)
    for name in ("opened", "last_activity", "finalized"):
        for end, operator in (("from", Operator.AFTER), ("until", Operator.BEFORE)):
            if (at := getattr(bar, f"{name}_{end}")) is not None:
                yield Condition(field=name, operator=operator, value=at)
    if bar.q is not None and bar.q.strip():
        yield Condition(field="text", operator=Operator.CONTAINS, value=bar.q)


def _grammar() -> str:
    """The table of fields and operators, in words."""
    fields = {kind: [f"`{name}`" for name in FIELDS if FIELDS[name] is kind] for kind in Kind}
    fields[Kind.ATTRIBUTE] = [f"`{prefix}KEY`" for prefix in ATTRIBUTES]
    rows = [
        f"| {', '.join(fields[kind])} | {kind.value} | {', '.join(f'`{each}`' for each in operators)} |"
        for kind, operators in OPERATORS.items()
    ]
    return "\n".join(
        (
            (
                "The conversations that you may see and that fit a filter: a condition, or conditions nested with"
                f" `and`, `or` and `not`, up to {MOST_CONDITIONS} of them on {MOST_LEVELS} levels."
            ),
            "",
            "| fields | hold | operators |",
            "|---|---|---|",
            *rows,
            "",
            (
                "`in` and `not_in` take a list of values, `between` one of two, `is_set` and `is_not_set` none,"
                " `in_last_days` and `more_than_days_ago` a number of days. A moment or date belongs to what is after"
                " it: `between` two of them holds the first and not the second; between two numbers holds both. Where"
                " nothing is set, `is_not`, `not_in` and `not_contains` hold, and `not` always is the exact opposite."
                " `contains` and `starts_with` look past case and accents; phones are compared by their digits."
                " Of fields with several values, one must fit. Actors are `kind:id`. A contact whom you may not see"
                " has no details to compare."
            ),
        )
    )


_GRAMMAR = _grammar()
Viewer = Annotated[Caller, needs(Permission.VIEW)]


@router.get("", summary="List conversations", response_model=ConversationPage, responses=QUERY_PROBLEMS)
async def list_conversations(
    request: Request, caller: Viewer, wanted: Annotated[ListingParameters, Query()]
) -> Response:
    """The conversations that you may see and that fit the filters; several values of one filter are alternatives."""
    return await _page(request, caller, filter_of(wanted), wanted, "query", sort_of(wanted, wanted.sort))


@router.post(
    "/search",
    summary="Search conversations",
    description=_GRAMMAR,
    response_model=ConversationPage,
    responses=COMMAND_PROBLEMS,
    openapi_extra=_example(
        {
            "filter": {
                "and": [
                    {"field": "status", "operator": "in", "value": ["pending", "in_progress"]},
                    {"not": {"field": "contact.name", "operator": "starts_with", "value": "joao"}},
                    {
                        "or": [
                            {"field": "waiting_seconds", "operator": "less", "value": 3600},
                            {"field": "label", "operator": "is", "value": "troca"},
                        ]
                    },
                ]
            },
            "sort": "waiting",
        }
    ),
)
async def search_conversations(request: Request, caller: Viewer, wanted: Search) -> Response:
    """The conversations that you may see and that fit a filter."""
    return await _page(request, caller, wanted.filter, wanted, "body", wanted.sort or Sort.LAST_ACTIVITY)


async def _page(request: Request, caller: Caller, filter_: Filter, wanted: Paging, place: str, sort: Sort) -> Response:
    await look_back(request, caller, wanted.as_of, place)
    after, now = _resumed(wanted, place, sort)
    await wait_for(request, "listing", wanted.at_least)
    rows: list[dict[str, Any]] = []
    positions: list[int] = []
    asked = Page(
        filter=filter_,
        sort=sort,
        descending=wanted.order == "desc",
        after=after,
        limit=wanted.limit + 1,  # to tell whether more follow
        now=now,
        as_of=wanted.as_of,
    )
    access = of_rows(request, caller, filter_) if wanted.as_of is None else None  # that they look back is recorded
    for statement in pages(caller, asked):
        found, listed = await fetch_listed(request, caller, *statement, access)
        rows += found
        positions.append(listed)
        access = None
        if len(rows) > wanted.limit:
            break
    more, rows = len(rows) > wanted.limit, rows[: wanted.limit]
    cursor = None
    if more:
        last = rows[-1]
        cursor = encode_cursor(sort, _order(wanted), last["sort_value"] or "", last["id"], now.isoformat())
    position = min(positions) if wanted.as_of is None else None
    return as_json({"items": [shown(row, caller) for row in rows], "next": cursor, "position": position})


def _order(wanted: Paging) -> str:
    """What the pages of one walk have in common, besides the sort."""
    return wanted.order if wanted.as_of is None else f"{wanted.order} {wanted.as_of.astimezone(UTC).isoformat()}"


def _resumed(wanted: Paging, place: str, sort: Sort) -> tuple[tuple[str | None, UUID] | None, datetime]:
    """Where the page begins, and the moment from which days and waits are counted: that of the first page."""
    present = wanted.as_of or datetime.now(UTC)
    parts = decode_cursor(wanted.cursor, str, str, str, UUID, str)
    if parts is None:
        return None, present
    sorted_by, order, value, id_, moment = parts
    if (sorted_by, order) != (sort, _order(wanted)):
        raise invalid("cursor", "belongs to another sort or moment; start again without it", place)
    now = _moment(moment)
    if now is None or now > present + _SKEW or not _is_sort_value(sort, value):
        raise invalid("cursor", "is not one of ours; start again without it", place)
    return (value or None, id_), now


_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?\+00")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?(e[+-][0-9]{1,2})?")
_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC)
_SKEW = timedelta(minutes=1)
"""How far ahead the clock of the process may be that served the page before."""


def _is_sort_value(sort: Sort, value: str) -> bool:
    """Whether PostgreSQL would print a value of ``sort`` like this, so that it can also read it."""
    if not value:
        return sort in NULLABLE
    if sort is Sort.PRIORITY:
        return value in {"0", "1", "2", "3"}
    if sort in NUMERIC:
        return _NUMBER.fullmatch(value) is not None
    try:
        return _TIME.fullmatch(value) is not None and datetime.fromisoformat(value) is not None
    except ValueError:
        return False


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None and found >= _EARLIEST else None


class Count(BaseModel):
    """How many; with ``more`` there are more than that."""

    count: int
    more: bool


class Counts(BaseModel):
    """How many conversations fit: the filter in each status, whatever status the bar asks for, and in total."""

    total: Annotated[Count, Field(description="with the bar's statuses")]
    statuses: Annotated[dict[Status, Count], Field(description="without the bar's statuses")]
    position: Listed


class Counting(BaseModel):
    """How exactly to count, and when."""

    model_config = ConfigDict(extra="forbid")

    exact: Annotated[bool, Field(description=f"also what goes beyond {COUNTED_TO:,}, however long it takes")] = False
    at_least: Annotated[
        Position | None, Field(description="wait, briefly, until the listing has this position of a command's answer")
    ] = None
    as_of: AsOf = None


class CountsParameters(Counting, BarParameters):
    """The filter bar, and how exactly to count."""


class CountsSearch(Counting):
    """A filter, and how exactly to count."""

    filter: ToldElsewhere = EVERYTHING


@router.get("/counts", summary="Count conversations", response_model=Counts, responses=QUERY_PROBLEMS)
async def count_conversations(
    request: Request, caller: Viewer, wanted: Annotated[CountsParameters, Query()]
) -> Response:
    """How many you may see that fit the filters: per status and in total."""
    found = filter_of(wanted.model_copy(update={"status": []}))
    await look_back(request, caller, wanted.as_of)
    return await _counts(request, caller, found, wanted, wanted.status or list(Status))


@router.post(
    "/counts",
    summary="Count conversations by a filter that nests",
    response_model=Counts,
    responses=COMMAND_PROBLEMS,
    openapi_extra=_example({"filter": {"field": "label", "operator": "is", "value": "troca"}}),
)
async def count_found(request: Request, caller: Viewer, wanted: CountsSearch) -> Response:
    """How many you may see that fit a filter, which may nest: per status and in total."""
    await look_back(request, caller, wanted.as_of, "body")
    return await _counts(request, caller, wanted.filter, wanted, list(Status))


async def _counts(
    request: Request, caller: Caller, filter_: Filter, wanted: Counting, statuses: list[Status]
) -> Response:
    await wait_for(request, "listing", wanted.at_least)
    access = of_search(request, caller, filter_) if wanted.as_of is None else None
    statement = counts(caller, filter_, exact=wanted.exact, as_of=wanted.as_of)
    rows, position = await fetch_listed(request, caller, *statement, access)
    found = dict.fromkeys((status.value for status in Status), 0) | {row["status"]: row["count"] for row in rows}
    total = sum(found[status] for status in set(statuses))
    per_status = {status: told(count, exact=wanted.exact) for status, count in found.items()}
    listed = position if wanted.as_of is None else None
    return as_json({"total": told(total, exact=wanted.exact), "statuses": per_status, "position": listed})


def told(count: int, *, exact: bool) -> dict[str, Any]:
    """A count as it is shown: beyond `COUNTED_TO` that there are more, unless it is to be ``exact``."""
    more = count > COUNTED_TO and not exact
    return {"count": COUNTED_TO if more else count, "more": more}
