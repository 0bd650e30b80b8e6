"""`kill -9` in the middle of a bulk action: it goes on, and each conversation is changed exactly once.

Run as a program, this file is a server that is slow to write down results (so that a kill falls between the commit and
that), with or without the idempotency keys that make up for it (the canary).
"""

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from rig import CAMPAIGN, ROOT, SLOW_CANARY, handling, only_in_campaigns, project_all, query, wait_until

from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from adapters.event_log import EventLog
from api import demo
from domain.commands import Command, OpenConversation, Reopen
from domain.envelope import Stream
from domain.events import Surface
from domain.permissions import BUILT_IN_ROLES, Caller

pytestmark = pytest.mark.faults

TOKEN = "cvs_fault-tests-bulk-admin"
CONVERSATIONS = 100_000 if CAMPAIGN else 2_000
KILLS = 20 if CAMPAIGN else 3
ADMIN = Caller(demo.WORKSPACE, demo.ADMIN_ACTOR, BUILT_IN_ROLES["admin"], agent_id=demo.ADMIN)
FINALIZED = "conversation-finalized-from-listing.v1"


# Many conversations, and a server that is killed


def carry_out(handler: CommandHandler, commands: Sequence[tuple[UUID, Command]]) -> None:
    for start in range(0, len(commands), 500):
        asked = [
            Request(Stream(demo.WORKSPACE, command.STREAM, id_), command, ADMIN, Surface.API, id_, id_)
            for id_, command in commands[start : start + 500]
        ]
        refused = [answer for answer in handler.handle(asked) if isinstance(answer, Exception)]
        assert refused == []


def many_conversations(conninfo: str, count: int) -> list[UUID]:
    """So many pending conversations that bear no message, all in the listing."""
    ids = [UUID(int=2**100 + number) for number in range(count)]
    with handling(conninfo) as handler:
        demo.load(handler, TOKEN)
        opening = [
            (id_, OpenConversation(protocol=f"b{id_.int}", channel="bulk", contact_id=demo.CONTACT)) for id_ in ids
        ]
        carry_out(handler, opening)
    project_all(conninfo)
    return ids


class Server:
    """The API as a process that can be killed and started again."""

    def __init__(self, conninfo: str, command: Sequence[str], directory: Path, **settings: str) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as probe:
            port = probe.getsockname()[1]
        ours = {"DATABASE_URL": conninfo, "PORT": str(port), "LOG_LEVEL": "warning", **settings}
        self._environment = os.environ | {f"CONVERSAS_{name}": value for name, value in ours.items()}
        self._command = command
        self._directory = directory
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
        )

    def start(self) -> None:
        with (self._directory / "serve.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command], cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )
        wait_until(self._answers, f"the API answers: {self._directory / 'serve.log'}")

    def _answers(self) -> bool:
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def job(self, id_: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/bulk/{id_}").raise_for_status().json()
        return found


@contextmanager
def serving(conninfo: str, command: Sequence[str], directory: Path, **settings: str) -> Iterator[Server]:
    server = Server(conninfo, command, directory, **settings)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        server.http.close()


def finalize_all(server: Server) -> str:
    """The id of a job that finalizes everything in the channel `bulk`."""
    wanted = {"field": "channel", "operator": "is", "value": "bulk"}
    body = {"action": "finalize", "parameters": {"outcome": "resolvida"}, "on": {"filter": wanted}}
    return str(server.http.post("/v1/bulk", json=body).raise_for_status().json()["id"])


def finish(server: Server, id_: str, seconds: float = 600) -> dict[str, Any]:
    wait_until(lambda: server.job(id_)["state"] not in {"waiting", "running"}, "the bulk action is over", seconds)
    return server.job(id_)


def finalizations(conninfo: str) -> dict[UUID, list[str]]:
    """The surfaces from which each conversation was finalized."""
    rows = query(conninfo, "select stream_id, surface from events where topic = %s order by position", (FINALIZED,))
    found: dict[UUID, list[str]] = {}
    for id_, surface in rows:
        found.setdefault(id_, []).append(surface)
    return found


def assert_each_once(conninfo: str, ids: Sequence[UUID]) -> None:
    found = finalizations(conninfo)
    doubled = [id_ for id_ in ids if len(found.get(id_, [])) > 1]
    assert not doubled, f"{len(doubled)} of {len(ids)} conversations were finalized twice"
    assert {id_: found.get(id_) for id_ in ids} == {id_: ["bulk"] for id_ in ids}


# The tests


def test_killed_again_and_again_it_finalizes_each_conversation_exactly_once(database: str, tmp_path: Path) -> None:
    ids = many_conversations(database, CONVERSATIONS)
    started = time.monotonic()
    with serving(database, ("-m", "api", "serve"), tmp_path, BULK_CHUNK="50") as server:
        id_ = finalize_all(server)
        kills = 0
        for number in range(KILLS):
            enough = CONVERSATIONS * (number + 1) // (KILLS + 2)
            wait_until(lambda enough=enough: server.job(id_)["done"] >= enough, "it goes on", 300)
            time.sleep(random.uniform(0, 0.05))
            kills += server.job(id_)["state"] == "running"
            server.kill()
            server.start()
        job = finish(server, id_)
        seconds = time.monotonic() - started
        page = server.http.get(f"/v1/bulk/{id_}/results", params={"outcome": "changed", "limit": 500}).json()
    assert kills == KILLS, "it was over before it could be killed"
    assert (job["state"], job["total"], job["changed"], job["done"]) == ("done", len(ids), len(ids), len(ids))
    assert [row["number"] for row in page["items"]] == list(range(1, 501))
    assert_each_once(database, ids)
    print(f"{len(ids)} conversations, {kills} kills, {seconds:.1f} s, {job['per_second']} per second")  # noqa: T201  # pytest -s


def kill_between_commit_and_record(conninfo: str, mode: str, directory: Path, count: int = 300) -> None:
    """Kill it when conversations are finalized and that is not written down; they are reopened; it goes on."""
    ids = many_conversations(conninfo, count)
    with serving(conninfo, (__file__, mode), directory, BULK_CHUNK="100") as server:
        id_ = finalize_all(server)
        wait_until(lambda: len(finalizations(conninfo)) >= 200 + len(DEMO), "two turns are committed", 60)
        assert server.job(id_)["done"] == 100, "the second is not written down"
        server.kill()
        reopened = list(finalizations(conninfo).keys() - DEMO)
        with handling(conninfo) as handler:
            carry_out(handler, [(conversation, Reopen(reason="the customer wrote")) for conversation in reopened])
        server.start()
        job = finish(server, id_, 60)
    assert_each_once(conninfo, ids)
    assert (job["changed"], job["already"]) == (count, 0)
    with EventLog(conninfo) as log:
        last = {event.stream.id: event.event.TOPIC for event in log.read(0, 10_000)}
    assert {last[conversation] for conversation in reopened} == {"conversation-reopened.v1"}


DEMO = {demo._id("conversation:4")}
"""What the demo finalizes itself."""


def test_what_was_committed_and_not_written_down_is_not_done_again(database: str, tmp_path: Path) -> None:
    kill_between_commit_and_record(database, "slow", tmp_path)


@only_in_campaigns(SLOW_CANARY)
def test_canary_without_idempotency_keys_it_would_be_done_again(database: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="were finalized twice"):
        kill_between_commit_and_record(database, "slow-without-keys", tmp_path)


def test_two_processes_share_the_jobs_and_none_is_done_twice(database: str, tmp_path: Path) -> None:
    ids = many_conversations(database, 600)
    (tmp_path / "other").mkdir()
    command = ("-m", "api", "serve")
    with (
        serving(database, command, tmp_path, BULK_CHUNK="20") as server,
        serving(database, command, tmp_path / "other", BULK_CHUNK="20"),
    ):
        jobs = [finalize_all(server) for _ in range(4)]
        done = [finish(server, id_, 60) for id_ in jobs]
    assert sum(job["changed"] for job in done) == len(ids)
    assert sum(job["already"] for job in done) == 3 * len(ids)
    assert_each_once(database, ids)


def program(mode: str) -> None:
    """A server that is slow between the commit and writing down what came of it."""
    from adapters import bulk  # noqa: PLC0415
    from api import __main__ as command_line  # noqa: PLC0415

    record, request = bulk.BulkRunner._record, bulk.request

    async def slow(self: bulk.BulkRunner, *args: Any) -> None:
        await asyncio.sleep(1.0)
        await record(self, *args)

    bulk.BulkRunner._record = slow  # type: ignore[method-assign]
    if mode == "slow-without-keys":
        from dataclasses import replace  # noqa: PLC0415

        bulk.request = lambda *args: replace(request(*args), keys=())
    command_line.app(["serve"])


if __name__ == "__main__":
    program(*sys.argv[1:])
