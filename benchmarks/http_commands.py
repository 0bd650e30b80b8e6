"""Commands per second over HTTP, against a POST of the same app that does nothing.

Each of the connections sends its next request when it has its answer. Every command's answer must be a success, and
every event is durable by then.
"""

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from statistics import quantiles
from time import monotonic, sleep
from typing import cast
from uuid import UUID

import psutil
import uvloop

from adapters.command_handler import CommandHandler
from adapters.projector import Projector
from api import demo
from api.settings import PREFIX
from api.supervisor import PARENT_VARIABLE
from benchmarks.measuring import Bench, Sample, Stopwatch, goal, middle, ratio, table
from benchmarks.workload import TEXT, keys, opening, write

CONNECTIONS = (64, 128)
"""At 64 a transaction carries half of what is under way, 32 commands, and part of each core waits for the other."""
TOKEN = "benchmark-token-of-the-demo"
NOTHING = "POST that does nothing"
START_SECONDS = 20
ANSWER_SECONDS = 30
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)

Requests = Callable[[UUID], Iterator[bytes]]
"""What a connection sends, one after the other, to the conversation that it has for itself."""


def _post(path: str, body: str, headers: str = "") -> bytes:
    lines = f"Host: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n{headers}"
    return f"POST {path} HTTP/1.1\r\n{lines}Content-Length: {len(body.encode())}\r\n\r\n{body}".encode()


NOTE = f'{{"text": "{TEXT}"}}'


def _nothing(id_: UUID) -> Iterator[bytes]:
    request = _post(f"/v1/conversations/{id_}/nothing", NOTE)
    while True:
        yield request


def _note(id_: UUID) -> Iterator[bytes]:
    request = _post(f"/v1/conversations/{id_}/notes", NOTE)
    while True:
        yield request


def _note_with_key(id_: UUID) -> Iterator[bytes]:
    run = os.urandom(4).hex()
    for number in count():
        yield _post(f"/v1/conversations/{id_}/notes", NOTE, f"Idempotency-Key: {id_}:{run}:{number}\r\n")


def _transfer(id_: UUID) -> Iterator[bytes]:
    requests = [
        _post(f"/v1/conversations/{id_}/transfer", f'{{"sector_id": "{sector}", "reason": "rodízio"}}')
        for sector in (demo.OTHER_SECTOR, demo.SECTOR)
    ]
    while True:
        yield from requests


CONTENDERS: dict[str, Requests] = {
    NOTHING: _nothing,
    "note": _note,
    "note with Idempotency-Key": _note_with_key,
    "transfer": _transfer,
}


class _Client(asyncio.Protocol):
    """One connection, kept alive, with one request at a time on its way."""

    def __init__(self, requests: Iterator[bytes], deadline: float, latencies: list[float]) -> None:
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._deadline = deadline
        self._latencies = latencies
        self._received = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def _send(self) -> None:
        self._sent = monotonic()
        self._transport.write(next(self._requests))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return
        now = monotonic()
        self._latencies.append(now - self._sent)
        if head[9:10] != b"2":
            self._fail(RuntimeError(f"the server answered: {self._received.decode()}"))
        elif now < self._deadline:
            self._received = b""
            self._send()
        else:
            self.finished.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self._fail(exc or RuntimeError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        self.finished.set_exception(error)
        self._transport.close()


async def _load(port: int, conversations: Sequence[UUID], requests: Requests, seconds: float) -> list[float]:
    """The latencies of all requests, in seconds."""
    latencies: list[float] = []
    deadline = monotonic() + seconds

    async def connection(id_: UUID) -> None:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: _Client(requests(id_), deadline, latencies), "127.0.0.1", port)
        await client.finished

    async with asyncio.timeout(seconds + ANSWER_SECONDS):
        await asyncio.gather(*map(connection, conversations))
    return latencies


@contextmanager
def server(conninfo: str) -> Iterator[tuple[int, psutil.Process]]:
    """The server's port and process."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, f"{PREFIX}DATABASE_URL": conninfo, PARENT_VARIABLE: str(os.getpid())}
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.http_server", str(port)], env=environment)
    try:
        deadline = monotonic() + START_SECONDS
        while not _listens(port):
            if process.poll() is not None or monotonic() > deadline:
                raise RuntimeError("the server did not start, see above")
            sleep(0.1)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _prepare(conninfo: str) -> list[UUID]:
    """The demo workspace and a conversation for each connection."""
    with (
        closing(CommandHandler(conninfo, keys(conninfo))) as handler,
        closing(Projector(conninfo, keys=keys(conninfo))) as projector,
    ):
        demo.load(handler, TOKEN)
        projector.catch_up()
        requests = [opening(demo.CONTACT, demo.WORKSPACE) for _ in range(max(CONNECTIONS))]
        write(handler, requests)
    return [request.stream.id for request in requests]


def run(bench: Bench) -> None:
    """Measure, print the table and say whether the goal is met."""
    seconds = 0.5 if bench.is_quick else 1.0
    conninfo = bench.database(read_models=True)
    conversations = _prepare(conninfo)
    with server(conninfo) as (port, process):
        uvloop.run(_load(port, conversations, _note, 0.5))
        for connections in CONNECTIONS:
            _measure(bench, port, process, conversations[:connections], seconds)
    bench.drop(conninfo)


def _measure(bench: Bench, port: int, process: psutil.Process, conversations: Sequence[UUID], seconds: float) -> None:
    samples: dict[str, list[Sample]] = defaultdict(list)
    latencies: dict[str, list[float]] = defaultdict(list)
    shares: dict[str, list[float]] = defaultdict(list)
    for _ in bench.rounds(7):
        for name, requests in CONTENDERS.items():
            loop_seconds, watch = _loop_cpu_seconds(process), Stopwatch(bench.postmaster, process)
            found = uvloop.run(_load(port, conversations, requests, seconds))
            samples[name].append(watch.sample(len(found)))
            shares[name].append((_loop_cpu_seconds(process) - loop_seconds) / len(found) * 1e6)
            latencies[name] += found
    worst = _report(len(conversations), samples, latencies, shares)
    if len(conversations) == max(CONNECTIONS):
        goal(f"slowest command / POST that does nothing, {len(conversations)} connections", worst, 0.6)


def _loop_cpu_seconds(process: psutil.Process) -> float:
    """CPU time of the thread that runs the event loop."""
    times = next(thread for thread in process.threads() if thread.id == process.pid)
    return float(times.user_time + times.system_time)


def _report(
    connections: int,
    samples: dict[str, list[Sample]],
    latencies: dict[str, list[float]],
    loop_microseconds: dict[str, list[float]],
) -> float:
    """Print the table; the ratio of the slowest command."""
    lines = []
    for name, rounds in samples.items():
        typical = middle(rounds)
        in_loop = loop_microseconds[name][rounds.index(typical)]
        percentiles = quantiles(latencies[name], n=100)
        lines.append(
            (
                *(name, typical.rate, ratio(rounds, samples[NOTHING]), percentiles[49] * 1e3, percentiles[98] * 1e3),
                *(in_loop, max(0.0, typical.cpu_microseconds - in_loop), typical.postgres_cpu_microseconds),
            )
        )
    table(
        f"HTTP: commands per second over {connections} connections, each waiting for its answer",
        (
            *("", "requests/s", "/ nothing", "p50 ms", "p99 ms", "CPU µs/request, event loop"),
            *("CPU µs/request, writer", "CPU µs/request, PostgreSQL"),
        ),
        lines,
    )
    return min(ratio(rounds, samples[NOTHING]) for name, rounds in samples.items() if name != NOTHING)
