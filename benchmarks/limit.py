"""What PostgreSQL itself allows: the same rows, nothing decided or read, over one connection, a commit per batch."""

from collections.abc import Callable, Sequence
from itertools import cycle
from time import monotonic

import psycopg

from adapters.event_log import COLUMNS, COPY_TYPES, EventRow
from benchmarks.measuring import Bench, Sample, Stopwatch

Insert = Callable[[psycopg.Connection, Sequence[EventRow]], None]
ROWS_PREPARED_PER_SECOND = 100_000
ARRAYS = ", ".join(f"%s::{type_}[]" for type_ in COPY_TYPES)


class Limit:
    """A table with the log's columns and indexes, to be filled with rows like ``rows``."""

    def __init__(self, bench: Bench, conninfo: str, seconds: float, rows: Sequence[EventRow]) -> None:
        self._bench = bench
        self._seconds = seconds
        self._rows = rows
        self._connection = psycopg.connect(conninfo)
        self._connection.execute("create table plain (like events including all)")
        self._connection.commit()

    def round(self, insert: Insert, rows_per_commit: int) -> Sample:
        """Insert for some seconds; the table is empty at the start."""
        self._connection.execute("truncate plain")
        self._connection.commit()
        warm_up, *batches = self._batches(rows_per_commit)
        insert(self._connection, warm_up)
        self._connection.commit()
        count, watch, deadline = 0, Stopwatch(self._bench.postmaster), monotonic() + self._seconds
        for batch in batches:
            insert(self._connection, batch)
            self._connection.commit()
            count += len(batch)
            if monotonic() > deadline:
                break
        return watch.sample(count)

    def _batches(self, size: int) -> list[list[EventRow]]:
        count, width = int(ROWS_PREPARED_PER_SECOND * self._seconds), len(self._rows)
        rows = [
            EventRow._make((number, *row[1:4], number // width + 1, *row[5:]))
            for number, row in zip(range(1, count + 1), cycle(self._rows), strict=False)
        ]
        return [rows[start : start + size] for start in range(0, count, size)]

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


def _values(connection: psycopg.Connection, rows: Sequence[EventRow]) -> None:
    places = ", ".join([f"({', '.join(['%s'] * len(COPY_TYPES))})"] * len(rows))
    values = [value for row in rows for value in row]
    connection.execute(f"insert into plain ({COLUMNS}) values {places}".encode(), values, prepare=True)


def _arrays(connection: psycopg.Connection, rows: Sequence[EventRow]) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    query = f"insert into plain ({COLUMNS}) select * from unnest({ARRAYS})"
    connection.execute(query.encode(), columns, prepare=True)


def _copy(connection: psycopg.Connection, rows: Sequence[EventRow]) -> None:
    with connection.cursor().copy(f"copy plain ({COLUMNS}) from stdin (format binary)") as copy:
        copy.set_types(COPY_TYPES)
        for row in rows:
            copy.write_row(row)


INSERT = "multi-row INSERT"
LIMITS: dict[str, Insert] = {INSERT: _values, "INSERT from arrays": _arrays, "COPY": _copy}
"""Ways to put rows into a table; the first is what is usually meant by batched INSERT."""
