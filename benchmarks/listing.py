"""What a page of the listing costs, for every filter, first page and last, at 100,000 and 1,000,000 conversations.

Each is timed as the API asks: under row-level security, over one connection, rows read. The baseline is the bare lookup
of one row by its key, in the same rounds.
"""

import random
from collections.abc import Callable
from contextlib import closing
from statistics import median, quantiles
from time import perf_counter
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row

from adapters.postgres import QUERY_LIMITS, Role, connect
from benchmarks import exporting
from benchmarks.many_conversations import fill, grow
from benchmarks.measuring import Bench, table
from domain.events import Actor, ActorKind
from domain.permissions import BUILT_IN_ROLES, Caller
from projections.filter_sql import where
from projections.filters import FILTER
from projections.listing_query import Page, Sort, counts, pages

SIZES = (100_000, 1_000_000)
QUICK_SIZES = (5_000, 20_000)
PAGE = 50
DEEP_PAGE = 10_000
BAR_GOAL, ADVANCED_GOAL = 10.0, 50.0
Statement = tuple[str, list[Any]]
Json = dict[str, Any]


def run(bench: Bench) -> None:
    """Fill, measure and print, size by size."""
    conninfo, workspace_id, present = fill(bench)
    medians: dict[str, list[float]] = {}
    exports = []
    for size in QUICK_SIZES if bench.is_quick else SIZES:
        grow(conninfo, workspace_id, max(size, present))
        with closing(_Reader(conninfo, workspace_id)) as reader:
            for name, ratio in _measure(reader, size, rounds=5 if bench.is_quick else 40).items():
                medians.setdefault(name, []).append(ratio)
        exports += exporting.measure(conninfo, workspace_id)
    table(
        "Export of the whole listing over HTTP, and the server's resident memory",
        ("", "rows", "rows/s", "before MiB", "at most MiB"),
        exports,
    )
    table(
        f"Listing: growth of a page's median from {SIZES[0]:,} to {SIZES[-1]:,} conversations",
        ("", "x lookup, smaller", "x lookup, larger", "growth"),
        [(name, first, last, last / first) for name, (first, last) in medians.items()],
    )


class _Reader:
    """A connection as the API's, and values to filter by, taken from the rows."""

    def __init__(self, conninfo: str, workspace_id: UUID) -> None:
        settings = QUERY_LIMITS | {"role": Role.READER.value}
        self.caller = Caller(
            workspace_id, Actor(kind=ActorKind.INTEGRATION, id="bench"), BUILT_IN_ROLES["supervisor"], None, frozenset()
        )
        self._connection = connect(conninfo, settings, application="conversas-bench")
        self._random = random.Random(1)
        self.rows = self.fetch(("select * from listing tablesample system (1) limit 2000", []))

    def fetch(self, statement: Statement) -> list[dict[str, Any]]:
        """As `api.queries.fetch`."""
        with self._connection.cursor(row_factory=dict_row) as cursor:
            with self._connection.pipeline():
                self._connection.execute(
                    "select set_config('conversas.workspace', %s, %s)", (str(self.caller.workspace_id), False)
                )
                cursor.execute(statement[0], statement[1])
            return cursor.fetchall()

    def value(self, column: str) -> Any:
        """A value that some row has in ``column``."""
        values = [row[column] for row in self.rows if row[column] not in (None, [], {})]
        value = self._random.choice(values)
        return self._random.choice(value) if isinstance(value, list) else value

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


def _is(field: str, column: str, operator: str = "is") -> Callable[[_Reader], Json]:
    return lambda reader: {"field": field, "operator": operator, "value": _json(reader.value(column))}


def _json(value: Any) -> Any:
    return (
        value
        if isinstance(value, str | int | float)
        else value.isoformat()
        if hasattr(value, "isoformat")
        else str(value)
    )


def _and(*filters: Callable[[_Reader], Json]) -> Callable[[_Reader], Json]:
    return lambda reader: {"and": [each(reader) for each in filters]}


def _fixed(field: str, operator: str, value: Any = None) -> Callable[[_Reader], Json]:
    condition = {"field": field, "operator": operator} | ({} if value is None else {"value": value})
    return lambda _: condition


def _since(field: str, column: str) -> Callable[[_Reader], Json]:
    return lambda reader: {"field": field, "operator": "before", "value": reader.value(column).isoformat()}


def _name(reader: _Reader) -> Json:
    return {"field": "text", "operator": "contains", "value": str(reader.value("contact_name"))}


def _protocol(reader: _Reader) -> Json:
    return {"field": "text", "operator": "contains", "value": str(reader.value("protocol"))}


def _digits(reader: _Reader) -> Json:
    return {"field": "text", "operator": "contains", "value": str(reader.value("contact_phones"))[-8:]}


NOTHING: Callable[[_Reader], Json] = lambda _: {"and": []}  # noqa: E731
BAR: dict[str, Callable[[_Reader], Json]] = {
    "no filter": NOTHING,
    "status": _is("status", "status"),
    "channel": _is("channel", "channel"),
    "sector": _is("sector", "sector_id"),
    "agent": _is("agent", "agent_id"),
    "label": _is("label", "labels"),
    "opened until": _since("opened", "opened_at"),
    "last activity until": _since("last_activity", "last_activity_at"),
    "finalized until": _since("finalized", "finalized_at"),
    "text: name": _name,
    "text: protocol": _protocol,
    "text: phone digits": _digits,
}
PAIRS: dict[str, Callable[[_Reader], Json]] = {
    f"{one} + {other}": _and(BAR[one], BAR[other])
    for index, one in enumerate(BAR)
    for other in list(BAR)[index + 1 :]
    if one != "no filter"
}
ADVANCED: dict[str, Callable[[_Reader], Json]] = {
    "finalized from listing": _fixed("finalized_from", "is", "listing"),
    "finalized by": _is("finalized_by", "finalized_by"),
    "was ever in sector": _is("ever_in_sector", "sectors"),
    "was ever with agent": _is("ever_with_agent", "agents"),
    "5 transfers or more": _fixed("transfers", "greater", 4),
    "reopened": _fixed("reopenings", "greater", 0),
    "waited a day or more": _fixed("waiting_seconds", "greater", 86_400),
    "resolved within an hour": _fixed("resolution_seconds", "less", 3_600),
    "unanswered": lambda _: {"field": "unanswered", "operator": "is", "value": True},
    "not unread": _fixed("unread", "is", 0),
    "priority high or urgent": _fixed("priority", "in", ["high", "urgent"]),
    "opened by": _is("opened_by", "opened_by"),
    "name contains": _is("contact.name", "contact_name", "contains"),
    "not in sector, or high": lambda reader: {
        "or": [{"not": _is("sector", "sector_id")(reader)}, _fixed("priority", "is", "high")(reader)]
    },
}


def _sort(name: str) -> Sort:
    """The time that is filtered by, as the API has it where no sort is asked for."""
    return (
        Sort.FINALIZED if "finalized until" in name else Sort.OPENED if "opened until" in name else Sort.LAST_ACTIVITY
    )


def _measure(reader: _Reader, size: int, rounds: int) -> dict[str, float]:
    """Print the tables of one size; each filter's median, as a multiple of the lookup's."""
    lookups: list[float] = []
    found: dict[str, dict[str, list[float]]] = {}
    kinds = {"bar": BAR, "pair": PAIRS, "advanced": ADVANCED}
    for kind, filters in kinds.items():
        for name, make in filters.items():
            found[f"{kind}: {name}"] = {"first": [], "deep": [], "count": []}
            first, deep, count = found[f"{kind}: {name}"].values()
            cursor = None
            for number in range(rounds):
                wanted = FILTER.validate_python(make(reader))
                lookups.append(_seconds(reader, _lookup(reader)))
                first.append(_seconds(reader, pages(reader.caller, Page(wanted, _sort(name)))[0]))
                if number < 5 and kind != "pair":
                    count.append(_seconds(reader, counts(reader.caller, wanted)))
                if kind == "pair":
                    continue
                if number % 10 == 0:
                    cursor = _far_cursor(reader, wanted, _sort(name))
                if cursor is not None:
                    deep.append(_seconds(reader, pages(reader.caller, Page(wanted, _sort(name), after=cursor))[0]))
    lookup = median(lookups)
    rows = [
        (name, *_times(times["first"], lookup), *_times(times["deep"], lookup), *_times(times["count"], lookup)[:1])
        for name, times in found.items()
    ]
    columns = ("", "p50 ms", "p99 ms", "x lookup", "deep p50 ms", "deep p99 ms", "x lookup", "counts p50 ms")
    table(f"Listing of {size:,}: a page of {PAGE}; lookup of one row: p50 {lookup * 1e3:.2f} ms", columns, rows)
    _compare_with_page_numbers(reader, size, lookup)
    # Of its two pages the one that costs more counts.
    ratios = {
        name: max(median(times[at]) for at in ("first", "deep") if times[at]) / lookup for name, times in found.items()
    }
    slow = {name: ratio for name, ratio in ratios.items() if not name.startswith("advanced") and ratio > BAR_GOAL}
    print(
        f"- goal: bar filters and their pairs ≤ {BAR_GOAL:g} x lookup: {len(ratios) - len(ADVANCED) - len(slow)} of"
        f" {len(ratios) - len(ADVANCED)}; over: {', '.join(f'{n} {r:.0f}' for n, r in slow.items()) or 'none'}"
    )
    slow = {name: ratio for name, ratio in ratios.items() if name.startswith("advanced") and ratio > ADVANCED_GOAL}
    print(
        f"- goal: advanced filters ≤ {ADVANCED_GOAL:g} x lookup: {len(ADVANCED) - len(slow)} of {len(ADVANCED)};"
        f" over: {', '.join(f'{n} {r:.0f}' for n, r in slow.items()) or 'none'}",
        flush=True,
    )
    return ratios


def _times(seconds: list[float], lookup: float) -> tuple[float | None, float | None, float | None]:
    if not seconds:
        return None, None, None
    p99 = quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]
    return median(seconds) * 1e3, p99 * 1e3, median(seconds) / lookup


def _lookup(reader: _Reader) -> Statement:
    return "select * from listing where workspace_id = %s and id = %s", [reader.caller.workspace_id, reader.value("id")]


def _seconds(reader: _Reader, statement: Statement) -> float:
    started = perf_counter()
    reader.fetch(statement)
    return perf_counter() - started


def _far_cursor(reader: _Reader, wanted: Any, sort: Sort) -> tuple[str, UUID] | None:
    """Where page 10,000 begins, or the last page of fewer."""
    text, values = where(reader.caller, wanted)
    [found] = reader.fetch((f"select count(*) as count from listing where {text}", values))
    skip = min(DEEP_PAGE * PAGE, found["count"]) - PAGE - 1
    if skip < PAGE:
        return None
    at = sort.value
    query = f"select {at}::text as at, id from listing where {text} order by {at} desc nulls last, id desc"
    [row] = reader.fetch((f"{query} offset %s limit 1", [*values, skip]))
    return row["at"], row["id"]


def _compare_with_page_numbers(reader: _Reader, size: int, lookup: float) -> None:
    """What a listing with page numbers asks on the same table: the page by OFFSET, and three counts."""
    caller = reader.caller
    rows = []
    for name, page in (("page 1", 1), ("last page", min(DEEP_PAGE, size // PAGE))):
        seconds = []
        for _ in range(3):
            started = perf_counter()
            reader.fetch(
                (
                    "select * from listing where workspace_id = %s order by last_activity_at desc limit %s offset %s",
                    [caller.workspace_id, PAGE, (page - 1) * PAGE],
                )
            )
            for condition in ("true", "status = 'pending'", "status = 'finalized'"):
                query = f"select count(*) from listing where workspace_id = %s and {condition}"
                reader.fetch((query, [caller.workspace_id]))
            seconds.append(perf_counter() - started)
        rows.append((name, median(seconds) * 1e3, median(seconds) / lookup))
    table(f"The same table of {size:,}, asked by page number with three COUNTs", ("", "p50 ms", "x lookup"), rows)
