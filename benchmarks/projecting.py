"""How fast read models catch up with the real log and are rebuilt from it: by a process on one core.

PostgreSQL may use the other cores; what it costs there is printed beside.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial

import psutil
import psycopg

from adapters.event_log import EventLog
from adapters.projector import READ_MODELS, Projector
from adapters.rebuild import rebuild
from benchmarks.measuring import Bench, Sample, Stopwatch, goal, in_new_process, middle, table
from benchmarks.real_log import real_log
from benchmarks.workload import keys
from projections.read_model import ReadModel

BATCH = 2_000
NAMES = [model.name for model in READ_MODELS]


def _on_one_core(postmaster: int, work: Callable[[], int]) -> Sample:
    """``work``, which returns how many events it took in, in a process that may use one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    watch = Stopwatch(psutil.Process(postmaster))
    return watch.sample(work())


def _read(conninfo: str) -> int:
    position = 0
    with EventLog(conninfo, keys=keys(conninfo)) as log:
        while events := log.read(position, BATCH):
            position = events[-1].position
    return position


def _named(names: Sequence[str]) -> list[ReadModel]:
    """Names go to another process, read models do not."""
    return [model for model in READ_MODELS if model.name in names]


def _catch_up(conninfo: str, names: Sequence[str]) -> int:
    with closing(Projector(conninfo, _named(names), keys=keys(conninfo))) as projector:
        projector.catch_up()
    return _read_position(conninfo, names)


def _rebuild(conninfo: str, name: str) -> int:
    return rebuild(conninfo, _named([name])[0], keys=keys(conninfo))


def _read_position(conninfo: str, names: Sequence[str]) -> int:
    """How far all of the read models have come."""
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "select min(position) from projection_positions where halted is null and name = any(%s)",
            (list(names),),
        ).fetchone()
    assert row is not None
    return int(row[0])


def _empty(conninfo: str) -> None:
    """Let the read models start anew."""
    tables = ", ".join(table for model in READ_MODELS for table in model.tables)
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f"truncate {tables}".encode())
        connection.execute("update projection_positions set position = 0")
        connection.execute("checkpoint")


def run(bench: Bench) -> None:
    """Measure, print the table and say whether the goal is met."""
    conninfo = real_log(bench).conninfo
    together: list[Sample] = []
    reading: list[Sample] = []
    for _ in bench.rounds(3):
        reading.append(_measure(bench, partial(_read, conninfo)))
        together.append(_measure(bench, partial(_catch_up, conninfo, NAMES)))
    samples = {
        "reading and decoding the log": reading,
        "**catch-up, all read models**": together,
        **{f"catch-up, {name} alone": [_measure(bench, partial(_catch_up, conninfo, [name]))] for name in NAMES},
        **{f"rebuild, {name}": [_measure(bench, partial(_rebuild, conninfo, name))] for name in NAMES},
    }
    count = reading[0].count
    table(
        f"Projector on one core: the {count:,} events of the real log",
        ("", "events/s", "/ reading", "CPU µs/event, projector", "CPU µs/event, PostgreSQL", "events per CPU second"),
        [
            (
                *(name, sample.rate, sample.rate / middle(reading).rate),
                *(sample.cpu_microseconds, sample.postgres_cpu_microseconds, 1e6 / sample.cpu_microseconds),
            )
            for name, sample in ((name, middle(rounds)) for name, rounds in samples.items())
        ],
    )
    goal("catch-up of all read models, events/s", middle(together).rate, 10_000)


def _measure(bench: Bench, work: Callable[[], int]) -> Sample:
    """A round in a new process; read models that catch up start empty."""
    _empty(real_log(bench).conninfo)
    return in_new_process(_on_one_core, bench.postmaster.pid, work)
