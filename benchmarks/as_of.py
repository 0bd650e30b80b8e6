"""What a page and the counts of the listing cost as of a random past moment, against the same ones of now.

The real log is folded as if each event had been recorded when it happened; the versions that this leaves are copied
with the conversations. Asked as the API asks: under row-level security, over one connection, rows read. First the
benchmark's filters of the listing, each at many moments; then any filter at any moment, drawn anew each time.
"""

import json
import random
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from statistics import median, quantiles
from typing import Any
from uuid import UUID

import psycopg

from adapters.event_log import EventLog
from adapters.postgres import connect
from benchmarks.listing import ADVANCED, BAR, PAGE, _Reader, _seconds, _sort
from benchmarks.many_conversations import drop_indexes, fill, grow
from benchmarks.measuring import Bench, table
from benchmarks.random_filters import some_filter
from projections import past, past_query
from projections.filters import FILTER
from projections.listing import Listing
from projections.listing_query import Page, counts, pages

SIZES = (100_000, 1_000_000)
QUICK_SIZES = (20_000,)
GOAL = 10.0
_SHIFTED = (
    *("until", "recorded_at", "opened_at", "last_activity_at", "finalized_at", "episode_started_at"),
    *("waiting_since", "waiting_from", "unanswered_since"),
)


def run(bench: Bench) -> None:
    """Fill, measure and print, size by size."""
    conninfo, workspace_id, present = fill(bench)
    _record_as_it_happened(conninfo, workspace_id)
    for size in QUICK_SIZES if bench.is_quick else SIZES:
        grow(conninfo, workspace_id, max(size, present))
        _copy_versions(conninfo)
        with closing(_Reader(conninfo, workspace_id)) as reader:
            _measure(reader, size, rounds=5 if bench.is_quick else 20)
            _measure_any(reader, size, draws=50 if bench.is_quick else 1_000)


def _record_as_it_happened(conninfo: str, workspace_id: UUID) -> None:
    model = Listing()
    with EventLog(conninfo) as log, connect(conninfo, autocommit=False) as connection:
        connection.execute(b"truncate listing, contacts, past")
        position, times = 0, dict[UUID, datetime]()
        while events := log.read(position, 2_000):
            told = []
            for event in events:
                at = max(times.get(event.stream.id, event.metadata.occurred_at), event.metadata.occurred_at)
                times[event.stream.id] = at
                told.append(replace(event, recorded_at=at))
            model.apply(connection, told)
            position = events[-1].position
        connection.execute(b"delete from past where workspace_id <> %s", (workspace_id,))
        connection.execute(b"create table versions as select * from past")


def _copy_versions(conninfo: str) -> None:
    """Give the copies of conversations that have come since the last time their versions."""
    columns = [column for column in (*past.COLUMNS, "until") if column not in {"id", *_SHIFTED}]
    shifted = ", ".join(f"{column} + later" for column in _SHIFTED)
    parted = "(extract(epoch from a)::bigint # extract(epoch from b)::bigint)"
    level = f"greatest(0, length(ltrim({parted}::bit(48)::text, '0')) - 1)"
    with connect(
        conninfo, {"timezone": "UTC", "synchronous_commit": "off", "maintenance_work_mem": "512MB"}, autocommit=False
    ) as connection:
        indexes = drop_indexes(connection, "past")
        connection.execute(
            f"insert into past (id, {', '.join(columns)}, {', '.join(_SHIFTED)}, node)"
            f" select copies.id, {', '.join(columns)}, {shifted}, ((extract(epoch from b)::bigint >> l) | 1) << l"
            " from copies join versions on versions.id = original,"
            " lateral (select date_trunc('second', recorded_at + later) as a,"
            f" date_trunc('second', until + later) as b) ends, lateral (select {level} as l) levels"
            " order by until + later".encode()
        )
        connection.execute(b"truncate copies")
        for statement in indexes:
            connection.execute(statement.encode())
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("vacuum (analyze) past")
        connection.execute("checkpoint")


def _measure(reader: _Reader, size: int, rounds: int) -> None:
    [past_] = reader.fetch(("select count(*) as n from past", []))
    rows: list[tuple[Any, ...]] = []
    held: list[int] = []
    for name, make in (BAR | ADVANCED).items():
        times: dict[str, list[float]] = {"now": [], "then": [], "counts now": [], "counts then": []}
        for _ in range(rounds):
            wanted = FILTER.validate_python(make(reader))
            as_of = reader.value("last_activity_at")  # so most of them lie where most happened
            page = Page(wanted, _sort(name), limit=PAGE)
            times["now"].append(_seconds(reader, pages(reader.caller, page)[0]))
            times["then"].append(_seconds(reader, pages(reader.caller, replace(page, as_of=as_of))[0]))
            times["counts now"].append(_seconds(reader, counts(reader.caller, wanted)))
            times["counts then"].append(_seconds(reader, counts(reader.caller, wanted, as_of=as_of)))
        text, values = past_query.held_at(as_of)
        held.append(reader.fetch((f"select count(*) as n from {text} listing", values))[0]["n"])
        rows.append((name, *_row(times["now"], times["then"]), *_row(times["counts now"], times["counts then"])))
    told = f"{size:,} conversations with {past_['n']:,} versions, of which {median(held):,.0f} held then"
    table(
        f"As of a random moment, among {told}",
        ("", "now p50 ms", "then p50 ms", "then p95 ms", "ratio", "counts now ms", "then", "p95", "ratio"),
        rows,
    )
    for what, column in (("page", 4), ("counts", 8)):
        ratios = {row[0]: row[column] for row in rows}
        over = ", ".join(f"{name} {ratio:.0f}" for name, ratio in ratios.items() if ratio > GOAL) or "none"
        print(
            f"- goal: {what} as of then < {GOAL:g} x now: median {median(ratios.values()):.1f}; over: {over}",
            flush=True,
        )


def _measure_any(reader: _Reader, size: int, draws: int) -> None:
    """Any filter at any moment, each asked once."""
    chance = random.Random(2)
    pairs: dict[str, list[tuple[float, float, str]]] = {"page": [], "counts": []}
    stopped = 0
    for _ in range(draws):
        given = some_filter(chance, reader.rows)
        wanted, as_of = FILTER.validate_python(given), reader.value("last_activity_at")
        page = Page(wanted, limit=PAGE)
        try:
            now, then = (_seconds(reader, pages(reader.caller, each)[0]) for each in (page, replace(page, as_of=as_of)))
            counted = _seconds(reader, counts(reader.caller, wanted))
            counted_then = _seconds(reader, counts(reader.caller, wanted, as_of=as_of))
        except psycopg.errors.QueryCanceled:  # as the API answers: too long
            stopped += 1
            continue
        pairs["page"].append((now, then, json.dumps(given)))
        pairs["counts"].append((counted, counted_then, json.dumps(given)))
    rows = []
    for what, found in pairs.items():
        ratios = sorted(then / now for now, then, _ in found)
        together = sum(then for _, then, _ in found) / sum(now for now, _, _ in found)
        tenth, last = quantiles(ratios, n=10)[8], quantiles((then for _, then, _ in found), n=100)[98]
        rows.append((what, together, median(ratios), tenth, sum(each > GOAL for each in ratios), last * 1e3))
    columns = ("", "all together", "ratio p50", "ratio p90", f"over {GOAL:g}", "then p99 ms")
    table(
        f"{draws:,} random filters and moments, among {size:,}; {stopped} stopped at the limit of time", columns, rows
    )
    for what, found in pairs.items():
        worst = sorted(found, key=lambda each: each[1] / each[0])[-5:]
        print(f"- furthest off, {what}: {'; '.join(f'{t * 1e3:.0f} ms for {n * 1e3:.1f}: {f}' for n, t, f in worst)}")


def _row(now: list[float], then: list[float]) -> tuple[float, float, float, float]:
    return median(now) * 1e3, median(then) * 1e3, quantiles(then, n=20)[18] * 1e3, median(then) / median(now)
