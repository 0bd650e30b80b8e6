"""A thousand open streams on one process: memory bounded, an update reaches all soon; a client that does not read harms
none.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

import httpx
import psutil
import pytest
from campaign import SLOW_CANARY, only_in_campaigns
from running_service import Service, wait_until
from streams_rig import TOKEN, serving

from api import demo

pytestmark = pytest.mark.faults

STREAMS = 1_000
FILTERS = 50
"""Streams of the listing are told by so many different filters: each is one look at the database per update."""
AT_ONCE = 50
"""Connections opened at a time: more would measure the opening."""
MOST_SECONDS = 3.0
"""An update has to reach all within one; a machine that does other things besides gets three."""
MOST_KB_PER_STREAM = 150
"""A stream is a request, two tasks and a socket, some 60 kB; what grew with the log would be far more."""


class Watcher:
    """A stream, open and read from within the test's event loop."""

    def __init__(self, url: str, path: str) -> None:
        self._where = urlsplit(url)
        self._path = path
        self.told: list[float] = []
        """When data came."""
        self.text = b""

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self._where.hostname, self._where.port)
        request = f"GET {self._path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
        self._writer.write(request.encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        await self._reader.readuntil(b"event: ready")
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while data := await self._reader.read(65_536):
            self.text += data
            if b"data:" in data:
                self.told.append(time.perf_counter())

    async def close(self) -> None:
        self._task.cancel()
        self._writer.close()


def paths(count: int) -> list[str]:
    """Streams of all kinds: the log, the listing under many filters, one conversation."""
    found = []
    for number in range(count):
        if number % 10 == 0:
            found.append("/v1/events/stream")
        elif number % 10 == 1:
            found.append(f"/v1/conversations/{demo.CONVERSATION}/stream")
        else:
            fits = f'{{"field": "unread", "operator": "less", "value": {1_000 + number % FILTERS}}}'
            found.append(f"/v1/conversations/stream?filter={quote(fits)}")
    return found


async def in_turn(watchers: list[Watcher], act: Callable[[Watcher], Awaitable[None]]) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(watcher: Watcher) -> None:
        async with gate:
            await act(watcher)

    await asyncio.gather(*map(one, watchers))


async def slowest_of(client: httpx.AsyncClient, watchers: list[Watcher]) -> float:
    """Seconds from sending a command until the last of ``watchers`` was told of it."""
    before = [len(watcher.told) for watcher in watchers]
    path = f"/v1/conversations/{demo.CONVERSATION}/messages"
    started = time.perf_counter()
    answer = await client.post(path, json={"direction": "sent", "text": "a todos"})
    answer.raise_for_status()
    while not all(len(watcher.told) > had for watcher, had in zip(watchers, before, strict=True)):
        assert time.perf_counter() - started < 30, "some were never told"
        await asyncio.sleep(0.01)
    slowest = max(watcher.told[had] for watcher, had in zip(watchers, before, strict=True)) - started
    await asyncio.sleep(0.5)
    return slowest


async def measure(running: Service) -> tuple[float, float, list[float]]:
    """MiB before and after the streams are open, and after many updates; the slowest telling of each update."""
    server = psutil.Process(running.server.pid)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    watchers = [Watcher(running.url, path) for path in paths(STREAMS)]
    async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=30) as client:
        (await client.get("/v1/conversations")).raise_for_status()
        before = server.memory_info().rss
        await in_turn(watchers, Watcher.open)
        slowest = [await slowest_of(client, watchers) for _ in range(5)]
        after = server.memory_info().rss
        await in_turn(watchers, Watcher.close)
    return before / 2**20, after / 2**20, slowest


def test_a_thousand_streams_fit_into_one_process_and_are_told_soon(
    postgres_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(postgres_url) as running:
        before, after, slowest = asyncio.run(measure(running))
        with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            assert client.get("/v1/conversations").status_code == 200
    each = (after - before) * 1024 / STREAMS
    with capsys.disabled():
        told = ", ".join(f"{seconds:.2f}" for seconds in slowest)
        sys.stdout.write(
            f"\n{STREAMS} streams: {before:.0f} MiB before, {after:.0f} MiB after ({each:.0f} kB each);"
            f" from the command to the last of them: {told} s\n"
        )
    assert each < MOST_KB_PER_STREAM
    assert sorted(slowest)[len(slowest) // 2] < MOST_SECONDS


UNREAD = 60
"""Streams whose clients read nothing."""
FLOOD = 200
"""Notes of 60,000 characters: 12 MB for each stream, of which the system's own buffers take 4 at most."""
MOST_MIB = 150
"""Kept for each of them it would be 480 MiB; what a queue and a chunk take is a twentieth of that."""
SMALL_QUEUES = "import adapters.live; adapters.live.Live.open_stream.__defaults__ = (20,)"
NO_LIMIT = """
import adapters.live
adapters.live.Live.open_stream.__defaults__ = (10**9,)
tell = adapters.live.Subscriber.tell
adapters.live.Subscriber.tell = lambda self, message: tell(self, bytes(bytearray(message)))
"""


def flooded(running: Service) -> tuple[float, list[socket.socket]]:
    """MiB that the server grows by while clients who read nothing are told more than they take."""
    where = urlsplit(running.url)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    path = f"/v1/conversations/{demo.CONVERSATION}"
    request = f"GET {path}/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    clients = []
    with httpx.Client(base_url=running.url, headers=headers, timeout=30) as client:
        for _ in range(UNREAD):
            sleeper = socket.socket()
            sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sleeper.connect((where.hostname or "", where.port or 0))
            sleeper.sendall(request)
            assert b" 200 " in sleeper.recv(500)
            clients.append(sleeper)
        server = psutil.Process(running.server.pid)
        before = server.memory_info().rss
        for number in range(FLOOD):
            client.post(f"{path}/notes", json={"text": f"{number}:" + "x" * 60_000}).raise_for_status()
        time.sleep(1)
        return (server.memory_info().rss - before) / 2**20, clients


def test_clients_that_do_not_read_are_dropped_and_cost_little(postgres_url: str) -> None:
    with serving(postgres_url, patch=SMALL_QUEUES) as running:
        grown, clients = flooded(running)
        clients[0].settimeout(20)
        text = b""
        while b"event: resync" not in text:
            data = clients[0].recv(65_536)
            assert data, "it ended without a hint to connect again"
            text = text[-100:] + data
        assert b'"slow"' in text + clients[0].recv(1_000)
        assert grown < MOST_MIB, grown
        for client in clients:
            client.close()
        wait_until(lambda: is_well(running), "the server is well")


def is_well(running: Service) -> bool:
    return httpx.get(f"{running.url}/readyz", timeout=5).status_code == 200


@only_in_campaigns(SLOW_CANARY)
def test_canary_without_a_limit_what_is_not_read_fills_the_memory(postgres_url: str) -> None:
    with serving(postgres_url, patch=NO_LIMIT) as running:
        grown, clients = flooded(running)
        for client in clients:
            client.close()
        assert grown >= MOST_MIB
