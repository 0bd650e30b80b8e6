"""The export of a whole listing: rows per second, and what memory the server takes for it. A contender of `listing`."""

from contextlib import closing
from threading import Event, Thread
from time import perf_counter
from uuid import UUID, uuid4

import httpx
import psutil

from adapters.command_handler import CommandHandler
from adapters.identity import digest
from adapters.projector import Projector
from benchmarks.http_commands import TOKEN, server
from benchmarks.workload import keys, request, write
from domain.commands import IssueToken
from domain.events import Actor, ActorKind

FORMATS = ("csv", "ndjson")


def issue_token(conninfo: str, workspace_id: UUID) -> None:
    """Let `TOKEN` do everything in the workspace."""
    actor = Actor(kind=ActorKind.INTEGRATION, id="bench")
    issue = IssueToken(name="bench", secret_sha256=digest(TOKEN.encode()), actor=actor, role="admin")
    with (
        closing(CommandHandler(conninfo, keys(conninfo))) as handler,
        closing(Projector(conninfo, keys=keys(conninfo))) as projector,
    ):
        write(handler, [request(issue, uuid4(), workspace_id)])
        projector.catch_up()


def measure(conninfo: str, workspace_id: UUID) -> list[tuple[str, int, float, float, float]]:
    """Per format: rows, rows per second, MiB that the server had before, and at most meanwhile."""
    issue_token(conninfo, workspace_id)
    found = []
    with server(conninfo) as (port, process):
        for name in FORMATS:
            _export(port, name, most=1_000)
            before, peak, done = _mebibytes(process), [0.0], Event()

            def watch(peak: list[float] = peak, done: Event = done) -> None:
                while not done.wait(0.05):
                    peak[0] = max(peak[0], _mebibytes(process))

            watching = Thread(target=watch)
            watching.start()
            started = perf_counter()
            rows = _export(port, name)
            seconds = perf_counter() - started
            done.set()
            watching.join()
            found.append((name, rows, rows / seconds, before, peak[0]))
    return found


def _export(port: int, name: str, most: int | None = None) -> int:
    """How many lines came, the heading included; only about ``most`` of them are waited for."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    lines = 0
    url = f"http://127.0.0.1:{port}/v1/conversations/export"
    with httpx.stream("GET", url, params={"format": name}, headers=headers, timeout=600) as answer:
        answer.raise_for_status()
        for part in answer.iter_raw():
            lines += part.count(b"\n")
            if most is not None and lines > most:
                break
    return lines


def _mebibytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 2**20)
