"""What a page of the listing costs, for every filter, first page and last, at 100,000 and 1,000,000 conversations.

Each is timed as the API asks: under row-level security, over one connection, rows read. The baseline is the bare lookup
of one row by its key, in the same rounds.
"""

import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
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
BAR_GOAL, ADVANCED_GOAL, FLAT_GOAL = 10.0, 50.0, 2.0
Statement = tuple[str, list[Any]]
Json = dict[str, Any]


def run(bench: Bench) -> None:
    """Fill, measure and print, size by size."""
    conninfo, workspace_id, present = fill(bench)
    medians: dict[str, list[_Cost]] = {}
    exports = []
    for size in QUICK_SIZES if bench.is_quick else SIZES:
        grow(conninfo, workspace_id, max(size, present))
        with closing(_Reader(conninfo, workspace_id)) as reader:
            for name, cost in _measure(reader, size, rounds=5 if bench.is_quick else 40).items():
                medians.setdefault(name, []).append(cost)
        exports += exporting.measure(conninfo, workspace_id)
    table(
        "Export of the whole listing over HTTP, and the server's resident memory",
        ("", "rows", "rows/s", "before MiB", "at most MiB"),
        exports,
    )
    table(
        f"Listing: growth of a page's median from {SIZES[0]:,} to {SIZES[-1]:,} conversations",
        ("", "x lookup, smaller", "x lookup, larger", "growth", "rows, smaller", "rows, larger"),
        [
            (name, costs[0].first, costs[-1].first, costs[-1].first / costs[0].first, costs[0].rows, costs[-1].rows)
            for name, costs in medians.items()
        ],
    )
    full = {name: costs for name, costs in medians.items() if min(cost.rows for cost in costs) == PAGE}
    grown = {name: costs[-1].first / costs[0].first for name, costs in full.items()}
    deeper = {name: costs[-1].deep / costs[-1].first for name, costs in medians.items() if costs[-1].deep is not None}
    for what, found in (("from the smaller to the larger", grown), ("from the first page to the far one", deeper)):
        over = ", ".join(f"{name} {ratio:.1f}" for name, ratio in found.items() if ratio > FLAT_GOAL) or "none"
        print(
            f"- goal: flat {what}, where pages are full ≤ {FLAT_GOAL:g} times: median {median(found.values()):.2f},"
            f" worst {max(found.values()):.2f} of {len(found)}; over: {over}",
            flush=True,
        )


@dataclass(frozen=True, slots=True)
class _Cost:
    """Medians of a filter, as multiples of the lookup's."""

    rows: int
    """That the first page has."""
    first: float
    deep: float | None
    """None: nothing is found that far."""


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


def _measure(reader: _Reader, size: int, rounds: int) -> dict[str, _Cost]:
    """Print the tables of one size; what each filter costs."""
    lookups: list[float] = []
    found: dict[str, dict[str, list[float]]] = {}
    kinds = {"bar": BAR, "pair": PAIRS, "advanced": ADVANCED}
    for kind, filters in kinds.items():
        for name, make in filters.items():
            found[f"{kind}: {name}"] = {"rows": [], "first": [], "deep": [], "count": []}
            rows_, first, deep, count = found[f"{kind}: {name}"].values()
            cursor = None
            for number in range(rounds):
                wanted = FILTER.validate_python(make(reader))
                lookups.append(_seconds(reader, _lookup(reader)))
                statement = pages(reader.caller, Page(wanted, _sort(name), limit=PAGE))[0]
                first.append(_seconds(reader, statement))
                if number < 5:
                    rows_.append(len(reader.fetch(statement)))
                    count.append(_seconds(reader, counts(reader.caller, wanted)))
                if number % (20 if kind == "pair" else 10) == 0:
                    cursor = _far_cursor(reader, wanted, _sort(name))
                    of_cursor = wanted
                if cursor is not None:
                    page = Page(of_cursor, _sort(name), after=cursor, limit=PAGE)
                    deep.append(_seconds(reader, pages(reader.caller, page)[0]))
    lookup = median(lookups)
    rows = [
        (
            name,
            median(times["rows"]),
            *_times(times["first"], lookup),
            *_times(times["deep"], lookup),
            *_times(times["count"], lookup)[:1],
        )
        for name, times in found.items()
    ]
    columns = ("", "rows", "p50 ms", "p99 ms", "x lookup", "deep p50 ms", "deep p99 ms", "x lookup", "counts p50 ms")
    table(f"Listing of {size:,}: a page of {PAGE}; lookup of one row: p50 {lookup * 1e3:.2f} ms", columns, rows)
    _compare_with_page_numbers(reader, size, lookup)
    costs = {
        name: _Cost(
            round(median(times["rows"])),
            median(times["first"]) / lookup,
            median(times["deep"]) / lookup if times["deep"] else None,
        )
        for name, times in found.items()
    }
    # Of its two pages the one that costs more counts.
    ratios = {name: max(cost.first, cost.deep or 0.0) for name, cost in costs.items()}
    advanced = {name for name in ratios if name.startswith("advanced")}
    for kind, names, goal in (
        ("bar filters and their pairs", ratios.keys() - advanced, BAR_GOAL),
        ("advanced filters", advanced, ADVANCED_GOAL),
    ):
        slow = {name: ratio for name, ratio in ratios.items() if name in names and ratio > goal}
        over = ", ".join(f"{name} {ratio:.0f}" for name, ratio in slow.items()) or "none"
        print(f"- goal: {kind} ≤ {goal:g} x lookup: {len(names) - len(slow)} of {len(names)}; over: {over}", flush=True)
    return costs


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
