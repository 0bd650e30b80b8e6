"""Events appended per second: our store, the library's stock recorder, and the limit that PostgreSQL itself sets.

Every event is durable when its writer goes on. Ours goes the whole path, from the command over its decision to the
commit; the others only store.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import cycle
from time import monotonic
from uuid import uuid4

import uvloop
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg.conninfo import conninfo_to_dict

from adapters.command_handler import CommandHandler
from adapters.deciding import Answer, Request
from adapters.event_log import EventLog, EventRow
from adapters.writer import Writer
from benchmarks.limit import INSERT, LIMITS, Limit
from benchmarks.measuring import Bench, Sample, Stopwatch, goal, middle, ratio, table
from benchmarks.workload import conversations, keys, note
from domain.events import NoteAdded

WRITERS = (1, 8, 32, 64)
LARGE_BATCH = 500
NOTES_PER_CONVERSATION = 8
OURS, STOCK = "**ours**", "stock recorder"
COLUMNS = (
    *("writers", "", "rows per commit", "events/s", "/ stock", "/ multi-row INSERT"),
    *("CPU µs/event, client", "CPU µs/event, PostgreSQL"),
)
Samples = dict[tuple[int, str], list[Sample]]
"""The rounds by number of writers (for large batches: of rows) and contender."""


class _CountingHandler(CommandHandler):
    transactions = 0

    def handle(self, requests: Sequence[Request]) -> list[Answer]:
        self.transactions += 1
        return super().handle(requests)


async def _ours(bench: Bench, conninfo: str, seconds: float, writers: int) -> tuple[Sample, float]:
    """A round of tasks that each wait for an answer before the next command; also the rows per commit."""
    handler = _CountingHandler(conninfo, keys(conninfo))
    # The same notes again and again, never one twice in a row: preparing them is not the store's work.
    prepared = [[note(id_) for _ in range(NOTES_PER_CONVERSATION)] for id_ in conversations(handler, writers)]
    with closing(Writer(handler)) as writer:
        await asyncio.gather(*(writer.execute(requests[-1]) for requests in prepared))
        handler.transactions, watch, deadline = 0, Stopwatch(bench.postmaster), monotonic() + seconds
        counts = await asyncio.gather(*(_write(writer, requests, deadline) for requests in prepared))
        sample = watch.sample(sum(counts))
    return sample, sample.count / handler.transactions


async def _write(writer: Writer, requests: Sequence[Request], deadline: float) -> int:
    count = 0
    for request in cycle(requests):
        outcome = await writer.execute(request)
        count += outcome.events
        if monotonic() > deadline:
            break
    return count


@contextmanager
def _stock(bench: Bench, seconds: float, event: EventRow) -> Iterator[Callable[[int], Sample]]:
    """The library's recorder for PostgreSQL, with the connections that its factory gives it by default.

    More would change nothing: it locks the table for every commit.
    """
    info = conninfo_to_dict(bench.database())
    with PostgresDatastore(
        dbname=str(info["dbname"]),
        host=str(info["host"]),
        port=str(info.get("port", "")),
        user=str(info["user"]),
        password="",
        pool_size=5,
        max_overflow=10,
    ) as datastore:
        recorder = PostgresApplicationRecorder(datastore)
        recorder.create_table()

        def write(deadline: float) -> int:
            id_, version = uuid4(), 0
            while version == 0 or monotonic() < deadline:
                version += 1
                recorder.insert_events([StoredEvent(id_, version, event.topic, event.data)])
            return version

        def measure(writers: int) -> Sample:
            with ThreadPoolExecutor(writers) as executor:
                list(executor.map(write, [0.0] * writers))
                watch, deadline = Stopwatch(bench.postmaster), monotonic() + seconds
                return watch.sample(sum(executor.map(write, [deadline] * writers)))

        yield measure


def run(bench: Bench) -> None:
    """Measure, print the table and say whether the goals are met."""
    seconds = 0.2 if bench.is_quick else 0.3
    conninfo = bench.database()
    most = WRITERS[-1]
    uvloop.run(_ours(bench, conninfo, seconds, most))  # gives the rows that the others store
    with EventLog(conninfo) as log:
        rows = [row for row in log.read_rows(0, 10_000) if row.topic == NoteAdded.TOPIC][:most]
    samples: Samples = defaultdict(list)
    sizes = {LARGE_BATCH: float(LARGE_BATCH)}
    with closing(Limit(bench, conninfo, seconds, rows)) as limit, _stock(bench, seconds, rows[0]) as stock:
        for _ in bench.rounds(7):
            for writers in WRITERS:
                sample, sizes[writers] = uvloop.run(_ours(bench, conninfo, seconds, writers))
                samples[writers, OURS].append(sample)
                samples[writers, STOCK].append(stock(writers))
                for name in LIMITS if writers == most else (INSERT,):
                    samples[writers, name].append(limit.round(LIMITS[name], max(1, round(sizes[writers]))))
            for name, insert in LIMITS.items():
                samples[LARGE_BATCH, name].append(limit.round(insert, LARGE_BATCH))
    _report(samples, sizes, len(rows[0].data))
    bench.drop(conninfo)


def _report(samples: Samples, sizes: dict[int, float], data_bytes: int) -> None:
    lines = []
    for (writers, name), rounds in samples.items():
        stock, insert, typical = samples.get((writers, STOCK)), samples[writers, INSERT], middle(rounds)
        lines.append(
            (
                writers if stock else "",
                name,
                1 if name == STOCK else f"{sizes[writers]:.0f}",
                typical.rate,
                ratio(rounds, stock) if stock else None,
                ratio(rounds, insert),
                typical.cpu_microseconds,
                typical.postgres_cpu_microseconds,
            )
        )
    table(f"Store: durable events appended per second, {data_bytes} bytes of data each", COLUMNS, lines)
    most = WRITERS[-1]
    ours = samples[most, OURS]
    goal(f"ours / stock recorder at {most} writers", ratio(ours, samples[most, STOCK]), 10)
    goal(f"ours / multi-row INSERT at {most} writers", ratio(ours, samples[most, INSERT]), 0.8)
