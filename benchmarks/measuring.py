"""What every part measures with: a database of its own, a stopwatch that also reads CPU time, Markdown tables.

Invariant: a number is printed beside the baseline of the same run, and each contender's rounds alternate with the
others', so that what else the machine does hits all of them alike.
"""

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from typing import Any, TypeVar

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

from adapters import contact_keys
from adapters.master_keys import new_master_key
from adapters.postgres import embedded, migrate
from adapters.projector import create_missing

Result = TypeVar("Result")
SETTLING_SECONDS = 0.05
"""A backend whose connection was closed is gone by then, and its CPU time with the postmaster."""


@dataclass(slots=True, eq=False)
class Bench:
    """One run: the server to measure on, and how thorough to be."""

    url: str
    directory: Path
    """For files; gone after the run."""
    is_quick: bool
    postmaster: psutil.Process
    _databases: int = field(default=0)

    def database(self, *, read_models: bool = False) -> str:
        """The conninfo of a new, migrated database."""
        self._databases += 1
        name = f"bench_{self._databases}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
        conninfo = make_conninfo(self.url, dbname=name)
        migrate(conninfo)
        if read_models:
            create_missing(conninfo)
        return conninfo

    def drop(self, conninfo: str) -> None:
        """Drop a database, so that its vacuum and checkpoints do not burden the next part."""
        name = psycopg.conninfo.conninfo_to_dict(conninfo)["dbname"]
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())
            connection.execute("checkpoint")

    def rounds(self, full: int) -> range:
        """How often to repeat: ``full`` times, or once where it must be quick."""
        return range(1 if self.is_quick else full)


@contextmanager
def bench(directory: Path, *, is_quick: bool) -> Iterator[Bench]:
    """A run on an embedded PostgreSQL in ``directory``."""
    with embedded(directory / "pg") as url:
        os.environ["CONVERSAS_MASTER_KEYS"] = new_master_key()
        os.environ["CONVERSAS_KEYS_DATABASE_URL"] = make_conninfo(url, dbname="keys")
        contact_keys.prepare(make_conninfo(url, dbname="keys"), server=url)
        with psycopg.connect(url) as connection:
            postmaster = psutil.Process(psutil.Process(connection.info.backend_pid).ppid())
        yield Bench(url, directory, is_quick, postmaster)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round came to."""

    count: int
    seconds: float
    cpu_seconds: float
    """Of the measured process, all threads."""
    postgres_cpu_seconds: float

    @property
    def rate(self) -> float:
        """Per second."""
        return self.count / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """Of the measured process, for each."""
        return self.cpu_seconds / self.count * 1e6

    @property
    def postgres_cpu_microseconds(self) -> float:
        """Of all of PostgreSQL's processes, for each."""
        return self.postgres_cpu_seconds / self.count * 1e6


class Stopwatch:
    """Running since it was made."""

    def __init__(self, postmaster: psutil.Process, process: psutil.Process | None = None) -> None:
        self._postmaster = postmaster
        self._process = process or psutil.Process()
        self._postgres_cpu = _postgres_cpu_seconds(postmaster)
        self._cpu = _cpu_seconds(self._process)
        self._started = monotonic()

    def sample(self, count: int) -> Sample:
        """``count`` were done until now."""
        seconds, cpu_seconds = monotonic() - self._started, _cpu_seconds(self._process) - self._cpu
        sleep(SETTLING_SECONDS)
        return Sample(
            count=count,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            postgres_cpu_seconds=_postgres_cpu_seconds(self._postmaster) - self._postgres_cpu,
        )


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _postgres_cpu_seconds(postmaster: psutil.Process) -> float:
    """Of all backends that live, and (by way of the postmaster, which has waited for them) of those that ended."""
    times = postmaster.cpu_times()
    ended = float(times.user + times.system + times.children_user + times.children_system)
    return ended + sum(_nanoseconds(process.pid) for process in postmaster.children()) / 1e9


def _nanoseconds(pid: int) -> int:
    """CPU time of a process with one thread; `cpu_times` rounds to 10 ms, which is much for a backend of many."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])
    except OSError:
        return 0


def middle(samples: Sequence[Sample]) -> Sample:
    """The round with the median rate."""
    return sorted(samples, key=lambda sample: sample.rate)[len(samples) // 2]


def ratio(samples: Sequence[Sample], baseline: Sequence[Sample]) -> float:
    """How many times the baseline: the median over pairs of neighbouring rounds."""
    return median(one.rate / other.rate for one, other in zip(samples, baseline, strict=True))


def in_new_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """What ``function`` returns in a fresh process, whose memory and CPU time are its own."""
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sending, function, arguments), daemon=True)
    process.start()
    sending.close()
    try:
        result: Result = receiving.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{function.__qualname__} failed in its process, see above") from None
    process.join()
    return result


def _call(sending: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    sending.send(function(*arguments))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a Markdown table; the first column holds names, the others numbers."""
    print(f"\n### {title}\n")
    print(f"| {' | '.join(columns)} |")
    print(f"|---|{'---:|' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(_shown(value) for value in row)} |")
    print(flush=True)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def goal(what: str, reached: float, at_least: float) -> None:
    """Print whether a goal of the project is met."""
    verdict = "met" if reached >= at_least else "MISSED"
    print(f"- goal: {what} ≥ {at_least:,g}: {_shown(reached)}, {verdict}", flush=True)


def machine(conninfo: str) -> str:
    """One line on what all of it ran on."""
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(
            "select current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')"
        ).fetchone()
    assert row is not None
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, PostgreSQL {row[0]}"
        f" (fsync {row[1]}, synchronous_commit {row[2]}), {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load {load}"
    )
