"""A bulk action over HTTP: conversations per second, against the same commands put straight before a handler, and
what it does to somebody's commands meanwhile.

The person sends the next command when the one before is answered, as people do; every event is durable by then.
"""

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from statistics import quantiles
from time import monotonic, sleep
from typing import Any
from uuid import UUID

from adapters.command_handler import CommandHandler
from adapters.projector import Projector
from api import demo
from benchmarks.http_commands import TOKEN, server
from benchmarks.measuring import Bench, table
from benchmarks.workload import TEXT, keys, opening, request, write
from domain.commands import Finalize
from domain.events import Surface

CHUNK = 200
"""As `bulk_chunk` is set where nothing else is said."""
HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


def run(bench: Bench) -> None:
    """Measure and print the table."""
    count = 5_000 if bench.is_quick else 100_000
    conninfo = bench.database(read_models=True)
    baseline = count // 5
    with (
        closing(CommandHandler(conninfo, keys(conninfo))) as handler,
        closing(Projector(conninfo, keys=keys(conninfo))) as projector,
    ):
        demo.load(handler, TOKEN)
        ids = _conversations(handler, count + baseline)
        projector.catch_up()
        straight = _straight(handler, ids[count:])
        projector.catch_up()
    with server(conninfo) as (port, _):
        with _person(port) as alone:
            sleep(1 if bench.is_quick else 5)
        with _person(port) as meanwhile:
            job = _finalize(port)
    if job["changed"] != count:
        raise RuntimeError(f"not all were finalized: {job}")
    rows = [
        ("the same commands by a handler alone", baseline, straight, None, None, None),
        ("nobody acts in bulk", None, None, len(alone), *_percentiles(alone)),
        ("bulk finalize", count, job["per_second"], len(meanwhile), *_percentiles(meanwhile)),
    ]
    columns = ("", "conversations", "per second", "a person's commands", "their p50 ms", "their p99 ms")
    table(f"Bulk: {count:,} conversations that match a filter, finalized", columns, rows)
    bench.drop(conninfo)


def _conversations(handler: CommandHandler, count: int) -> list[UUID]:
    requests = [opening(demo.CONTACT, demo.WORKSPACE) for _ in range(count)]
    write(handler, requests)
    return [each.stream.id for each in requests]


def _straight(handler: CommandHandler, ids: Sequence[UUID]) -> float:
    """Conversations per second, as many in a transaction as in a bulk action's turn, each under a key."""
    command = Finalize(surface=Surface.LISTING, outcome="resolvida")
    requests = [replace(request(command, id_, demo.WORKSPACE), keys=(f"straight:{id_}",)) for id_ in ids]
    handler.close()  # and with it what it remembers: a bulk action is about conversations that nobody has just touched
    started = monotonic()
    for start in range(0, len(requests), CHUNK):
        handler.handle(requests[start : start + CHUNK])
    return len(ids) / (monotonic() - started)


def _finalize(port: int) -> dict[str, Any]:
    """The bulk action on all that is pending and not the demo's, once it is over."""
    wanted = {"field": "channel", "operator": "is", "value": "webchat"}
    unfinished = {"field": "status", "operator": "is", "value": "pending"}
    body = {"action": "finalize", "on": {"filter": {"and": [wanted, unfinished]}}}
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        job = _ask(connection, "POST", "/v1/bulk", body)
        while job["state"] in {"waiting", "running"}:
            sleep(0.2)
            job = _ask(connection, "GET", f"/v1/bulk/{job['id']}")
    return job


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> dict[str, Any]:
    connection.request(method, path, json.dumps(body) if body is not None else None, HEADERS)
    response = connection.getresponse()
    answer: dict[str, Any] = json.loads(response.read())
    if response.status >= 300:
        raise RuntimeError(f"{method} {path}: {response.status} {answer}")
    return answer


@contextmanager
def _person(port: int) -> Iterator[list[float]]:
    """Somebody who writes notes all the while; how long each took, in seconds."""
    latencies: list[float] = []
    over = threading.Event()

    def work() -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            while not over.wait(0.02):
                started = monotonic()
                _ask(connection, "POST", f"/v1/conversations/{demo.CONVERSATION}/notes", {"text": TEXT})
                latencies.append(monotonic() - started)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield latencies
    finally:
        over.set()
        thread.join()


def _percentiles(latencies: Sequence[float]) -> tuple[float, float]:
    found = quantiles(latencies, n=100)
    return found[49] * 1e3, found[98] * 1e3
