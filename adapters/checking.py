"""Checking the live read models against the log: each is folded anew beside the live one, and compared row by row.

Invariant: both sides stand at one position, whoever writes meanwhile; nothing is changed, and nothing is left behind.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import dict_row

from adapters.event_log import EventLog
from adapters.postgres import LIMITS, connect
from adapters.projector import BATCH_SIZE, shape
from adapters.shares import held, read_shares
from projections.read_model import ReadModel

SHOWN = 20
"""Differences that are listed of each table; all are counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not as the log has it."""

    place: str
    """The log, a read model, or a table."""
    what: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of checking one read model."""

    position: int
    rows: int
    differences: Sequence[Difference]
    """No more than `SHOWN` of each table."""


def gaps(log: EventLog) -> Iterator[Difference]:
    """What is missing in the log: positions, or versions of a stream."""
    found = log.connection().execute("select count(*), coalesce(max(position), 0) from events").fetchone()
    count, head = found or (0, 0)
    if count != head:
        yield Difference("the log", f"has {count:,} events up to position {head:,}")
    query = """
        select workspace_id, stream_id, count(*), max(version) from events
        group by 1, 2 having count(*) <> max(version) order by 1, 2 limit %s"""
    for workspace_id, stream_id, number, version in log.connection().execute(query, (SHOWN,)):
        yield Difference("the log", f"has {number} of {version} versions of {stream_id} in workspace {workspace_id}")


def check(
    conninfo: str,
    log: EventLog,
    model: ReadModel,
    progress: Callable[[int, int], None] = lambda _position, _head: None,
    *,
    batch_size: int = BATCH_SIZE,
) -> Checked:
    """Fold the log into temporary tables of ``model``, up to where the live ones are, and compare.

    The live position, shares and rows are those of one snapshot, so nobody need stop. ``progress`` is told the
    position reached and where it goes.
    """
    settings = LIMITS | {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
    with connect(conninfo, settings, application="conversas-check") as connection:
        connection.execute(_temporary(model.ddl).encode())
        position = _fold(connection, log, model, (0, _place(connection, model)[0]), progress, batch_size)
        with connection.transaction():
            connection.execute("set transaction isolation level repeatable read")
            end, trouble = _place(connection, model)
            if trouble:
                return Checked(end, 0, [Difference(model.name, trouble)])
            if end < position:
                return Checked(end, 0, [Difference(model.name, "has gone back meanwhile; check again")])
            _fold(connection, log, model, (position, end), progress, batch_size)
            _fold_ahead(connection, log, model, end, batch_size)
            rows, differences = 0, list[Difference]()
            for table in model.tables:
                count, found = _compare(connection, table)
                rows += count
                differences += found
            return Checked(end, rows, differences)


def _temporary(ddl: str) -> str:
    """The statements for tables of this session only, found before all others; without indexes but those of keys."""
    statements = (statement.strip() for statement in ddl.split(";\n"))
    return ";\n".join(
        each.replace("create table ", "create temporary table ") for each in statements if "create table " in each
    )


def _place(connection: psycopg.Connection, model: ReadModel) -> tuple[int, str | None]:
    """The live position, and what keeps the model from being compared."""
    row = connection.execute(
        "select position, shape, halted from projection_positions where name = %s", (model.name,)
    ).fetchone()
    if row is None or row[1] != shape(model):
        return 0, f"is of another version of the program; run: conversas rebuild {model.name}"
    return int(row[0]), f"is halted: {row[2]}" if row[2] else None


def _fold(
    connection: psycopg.Connection,
    log: EventLog,
    model: ReadModel,
    period: tuple[int, int],
    progress: Callable[[int, int], None],
    batch_size: int,
) -> int:
    """Apply the events after the first position of ``period`` up to the second; where that ended."""
    position, end = period
    while position < end and (events := log.read(position, min(batch_size, end - position))):
        with connection.transaction():
            model.apply(connection, events)
        position = events[-1].position
        progress(position, end)
    return position


def _fold_ahead(
    connection: psycopg.Connection, log: EventLog, model: ReadModel, position: int, batch_size: int
) -> None:
    """Apply what live rows hold beyond their model's ``position``, as it came through Kafka."""
    shares = read_shares(connection, model)
    last = max((share.position for share in shares.values()), default=0)
    while position < last and (events := log.read(position, min(batch_size, last - position))):
        position = events[-1].position
        model.apply(connection, held(events, shares))


def _compare(connection: psycopg.Connection, table: str) -> tuple[int, list[Difference]]:
    """How many rows the live table has, and in what it differs from the temporary one."""
    live, anew = f"public.{table}", f"pg_temp.{table}"
    columns = [
        name
        for (name,) in connection.execute(
            "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"
            " order by attnum",
            (live,),
        )
    ]
    listed = ", ".join(columns)
    [(count,)] = connection.execute(f"select count(*) from {live}".encode()).fetchall()
    sides: list[list[dict[str, Any]]] = []
    total = 0
    for one, other in ((live, anew), (anew, live)):
        only = f"select {listed} from {one} except all select {listed} from {other}"
        [(number,)] = connection.execute(f"select count(*) from ({only}) _".encode()).fetchall()
        total += number
        with connection.cursor(row_factory=dict_row) as cursor:
            query = f"select * from ({only}) _ order by {', '.join(columns[:3])} limit {SHOWN}"
            sides.append(cursor.execute(query.encode()).fetchall())
    found = [Difference(table, what) for what in _told(columns[:3], *sides)]
    if total and len(found) >= SHOWN:
        found = [*found[:SHOWN], Difference(table, f"differs in {total:,} rows, counted on both sides")]
    return count, found


def _told(key: Sequence[str], live: list[dict[str, Any]], anew: list[dict[str, Any]]) -> Iterator[str]:
    """Each difference by its row's first columns and the names of others: values may be personal."""
    expected = {tuple(str(row[name]) for name in key): row for row in anew}
    for row in live:
        other = expected.pop(tuple(str(row[name]) for name in key), None)
        if other is None:
            yield f"has {_named(key, row)}, which the log does not give"
        else:
            names = ", ".join(name for name in row if row[name] != other[name])
            yield f"has {_named(key, row)} otherwise than the log: {names}"
    for row in expected.values():
        yield f"lacks {_named(key, row)}"


_KEYS = ("id", "position", "episode", "until", "level", "number")
"""What columns end with that say which row it is, and nothing of a person."""


def _named(key: Sequence[str], row: dict[str, Any]) -> str:
    return " ".join(f"{name}={row[name]}" for name in key if name.endswith(_KEYS))
