"""`kill -9` at random moments under load: what was acknowledged is in the log once, and everything derived follows.

The external journal holds a line per acknowledged command, written before the next one is sent. Run as a program,
this file is a process of ours that is broken on purpose (the canaries).
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import httpx
import psycopg
import pytest
from rig import (
    CAMPAIGN,
    ROOT,
    SLOW_CANARY,
    Postgres,
    assert_live_equals_rebuilt,
    assert_projected,
    handling,
    only_in_campaigns,
    project_all,
    query,
    wait_until,
)

from adapters.command_handler import CommandHandler
from adapters.deciding import Answer, Request
from adapters.projector import Projector, lock_position, move_position
from api import demo
from projections.read_model import ReadModel

with warnings.catch_warnings():
    # kafka-python reads its schemas with importlib.resources.read_text, which Python 3.11 calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import KafkaConsumer, TopicPartition

pytestmark = [
    pytest.mark.faults,
    # kafka-python leaves each socket whose connect was refused to the garbage collector, without closing it.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

TOKEN = "cvs_fault-tests-admin"
CLIENTS = 6
KILLS = 210 if CAMPAIGN else 6
CRASHES = 20 if CAMPAIGN else 1


# Our processes, killed and started again


class Services:
    """API, projector and publisher as processes; what ends is started again at once."""

    def __init__(self, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], directory: Path) -> None:
        self._commands = commands
        self._environment = {**os.environ, **environment, "CONVERSAS_LOG_LEVEL": "warning"}
        self._directory = directory
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._tending = threading.Thread(target=self._tend)
        self.ended: list[str] = []
        """Who ended by themselves."""

    def __enter__(self) -> Self:
        for name in self._commands:
            self._start(name)
        self._tending.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._tending.join()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self, name: str) -> None:
        """`kill -9`, and a new process in its place."""
        with self._lock:
            process = self._processes[name]
            process.kill()
            process.wait()
            self._start(name)

    def _start(self, name: str) -> None:
        with (self._directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *self._commands[name]], cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )

    def _tend(self) -> None:
        while not self._done.wait(0.2):
            with self._lock:
                for name, process in self._processes.items():
                    if process.poll() is not None:
                        self.ended.append(name)
                        self._start(name)


def ours(*names: str) -> dict[str, Sequence[str]]:
    return {name: ("-m", "api", name) for name in names}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


# Load, with an external journal


class Client(threading.Thread):
    """Sends command after command; each again, under the same key, until it is acknowledged."""

    def __init__(self, number: int, url: str, journal: Path, stop: threading.Event) -> None:
        super().__init__(name=f"client-{number}")
        self._url = url
        self._journal = journal
        self._stop_sending = stop
        self._conversations: list[str] = []
        self.acknowledged = 0
        self.repeats = 0
        self.failure: str | None = None

    def run(self) -> None:
        """Send until told to stop; the last command is seen through."""
        with (
            httpx.Client(base_url=self._url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10) as http,
            self._journal.open("a") as journal,
        ):
            while not self._stop_sending.is_set() and self.failure is None:
                path, body = self._next()
                correlation_id = str(uuid4())
                answer = self._until_acknowledged(http, path, body, correlation_id)
                if answer is None:
                    return
                journal.write(json.dumps({"correlation_id": correlation_id, **answer}) + "\n")
                journal.flush()
                self.acknowledged += 1
                if path == "/v1/conversations":
                    self._conversations.append(answer["id"])
                time.sleep(random.uniform(0, 0.02))

    def _next(self) -> tuple[str, dict[str, Any]]:
        """A command that would be recorded again if it were carried out again."""
        if not self._conversations or random.random() < 0.1:
            return "/v1/conversations", {"channel": "whatsapp", "contact_id": str(demo.CONTACT)}
        id_ = random.choice(self._conversations)
        if random.random() < 0.2:
            return f"/v1/conversations/{id_}/notes", {"text": "n"}
        return f"/v1/conversations/{id_}/messages", {"direction": "sent", "text": "m"}

    def _until_acknowledged(
        self, http: httpx.Client, path: str, body: dict[str, Any], correlation_id: str
    ) -> dict[str, Any] | None:
        headers = {"Idempotency-Key": f"k-{correlation_id}", "Correlation-Id": correlation_id}
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                response = http.post(path, json=body, headers=headers)
            except httpx.TransportError:
                self.repeats += 1
                time.sleep(0.1)
                continue
            if response.is_success:
                answer: dict[str, Any] = response.json()
                return answer
            if response.status_code != 503:
                self.failure = f"{path}: {response.status_code} {response.text}"
                return None
            self.repeats += 1
            time.sleep(0.1)
        self.failure = f"{path}: not acknowledged in 60 s"
        return None


@contextmanager
def load(url: str, directory: Path) -> Iterator[list[Client]]:
    """Clients at work; at the end each has had its last command acknowledged, or failed."""
    stop = threading.Event()
    clients = [Client(number, url, directory / f"journal-{number}", stop) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        stop.set()
        for client in clients:
            client.join()


# What must hold at the end


def assert_acknowledged_once(conninfo: str, directory: Path) -> int:
    """Each acknowledged command is in the log, once, where its answer said; and no other command is."""
    journal = [json.loads(line) for path in directory.glob("journal-*") for line in path.read_text().splitlines()]
    rows = query(conninfo, "select correlation_id::text, count(*), max(position) from events group by 1")
    recorded = {correlation_id: (count, position) for correlation_id, count, position in rows}
    missing = [entry for entry in journal if entry["correlation_id"] not in recorded]
    assert not missing, f"{len(missing)} of {len(journal)} acknowledged commands are missing, such as {missing[0]}"
    for entry in journal:
        assert recorded.pop(entry["correlation_id"]) == (entry["events"], entry["position"]), f"doubled: {entry}"
    set_up = {str(demo._id(f"request:{key}")) for key in (None, *(f"demo:{number}" for number in range(100)))}
    assert recorded.keys() <= set_up, "in the log, and nobody asked for it"
    return len(journal)


def assert_published_once(conninfo: str, bootstrap: str, topic: str) -> int:
    """A `read_committed` consumer sees each conversation event once, and those of a conversation in order."""
    expected: dict[str, list[str]] = defaultdict(list)
    events = query(
        conninfo,
        "select stream_id::text, version from events where stream_type = 'conversation' order by position",
    )
    for id_, version in events:
        expected[id_].append(f"{id_}:{version}")
    seen: dict[str, list[str]] = defaultdict(list)
    count, deadline = 0, time.monotonic() + 60
    with closing(
        KafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
    ) as consumer:
        numbers = consumer.partitions_for_topic(topic) or set()
        consumer.assign([TopicPartition(topic, number) for number in numbers])
        quiet_since = time.monotonic()
        # Whatever comes too often would come in the second after the last one that is expected.
        while time.monotonic() < deadline and (count < len(events) or time.monotonic() < quiet_since + 1):
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    seen[record.key.decode()].append(dict(record.headers)["ce_id"].decode())
                    count += 1
                quiet_since = time.monotonic()
    assert count == len(events), f"{count} messages for {len(events)} events"
    assert seen == expected
    return count


@contextmanager
def service_under_load(
    commands: Mapping[str, Sequence[str]], conninfo: str, directory: Path, **more: str
) -> Iterator[tuple[Services, list[Client]]]:
    """The demo workspace, the processes, and clients at work."""
    with handling(conninfo) as handler:
        demo.load(handler, TOKEN)
    project_all(conninfo)
    port = free_port()
    environment = {"CONVERSAS_DATABASE_URL": conninfo, "CONVERSAS_PORT": str(port), **more}
    with Services(commands, environment, directory) as services:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: is_ready(url), "the API is ready", 120)
        with load(url, directory) as clients:
            yield services, clients
        assert [client.failure for client in clients if client.failure] == []
        assert_projected(conninfo)


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def kill_at_random(kills: int, kill: Callable[[str], object], victims: Sequence[str], longest_seconds: float) -> None:
    """`kill` random ``victims``, at random moments of their start and their work."""
    for _ in range(kills):
        time.sleep(random.uniform(0, longest_seconds))
        kill(random.choice(victims))
    time.sleep(1)


def kill_at_work(services: Services, victim: str, clients: Sequence[Client]) -> None:
    """`kill` one while commands are being acknowledged and it has had the time to start."""
    time.sleep(2 + random.random())  # of starting
    before = sum(client.acknowledged for client in clients)
    wait_until(lambda: sum(client.acknowledged for client in clients) > before + 20, "commands are acknowledged")
    services.kill(victim)


def report(what: str, started: float, commands: int, clients: Sequence[Client]) -> None:
    repeats = sum(client.repeats for client in clients)
    seconds = time.monotonic() - started
    print(f"{what}: {commands} commands acknowledged, {repeats} repeats, {seconds:.0f} s")  # noqa: T201  # pytest -s


# The tests


@pytest.mark.kafka
def test_kill_9_of_api_projector_and_publisher(database: str, kafka_bootstrap: str, tmp_path: Path) -> None:
    started = time.monotonic()
    names = ("serve", "project", "publish")
    prefix = f"kill-{uuid4()}"
    kafka = {
        "CONVERSAS_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
        "CONVERSAS_KAFKA_PARTITIONS": "4",
        "CONVERSAS_KAFKA_TOPIC_PREFIX": prefix,
    }
    with service_under_load(ours(*names), database, tmp_path, **kafka) as (services, clients):
        kill_at_random(KILLS, services.kill, names, 2)
        for client in clients:
            client._stop_sending.set()
        for client in clients:
            client.join()
        published = assert_published_once(database, kafka_bootstrap, f"{prefix}.events.v1")
    commands = assert_acknowledged_once(database, tmp_path)
    assert_live_equals_rebuilt(database)
    assert commands > 10 * KILLS
    report(f"{KILLS} kills, {published} events published", started, commands, clients)


def test_kill_9_of_postgresql(mortal_postgres: Postgres, tmp_path: Path) -> None:
    started = time.monotonic()
    conninfo = mortal_postgres.conninfo

    def kill(name: str) -> None:
        if name == "postgres":
            mortal_postgres.kill(random.choice([signal.SIGKILL, signal.SIGQUIT]))
            mortal_postgres.start()
        else:
            services.kill(name)

    with service_under_load(ours("serve", "project"), conninfo, tmp_path) as (services, clients):
        kill_at_random(CRASHES, kill, ["postgres"], 2)
        kill_at_random(CRASHES, kill, ["postgres", "serve", "project"], 2)
    commands = assert_acknowledged_once(conninfo, tmp_path)
    assert_live_equals_rebuilt(conninfo)
    report(f"{CRASHES}+ crashes of PostgreSQL", started, commands, clients)


# Canaries


class _Uncommitted:
    """A connection that does not commit."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        """Later."""


class AnswersBeforeCommit(CommandHandler):
    """Answers first and commits a moment after that."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._mutex = threading.Lock()
        self._late = False

    def _transact(self, requests: Sequence[Request], answers: list[Answer]) -> None:
        with self._mutex:
            super()._transact(requests, answers)
        if not self._late:
            self._late = True
            threading.Timer(0.3, self._commit_at_last).start()

    def _save(self, connection: psycopg.Connection, batch: Any) -> None:
        super()._save(_Uncommitted(connection), batch)

    def _commit_at_last(self) -> None:
        with self._mutex:
            self._late = False
            self._connected().commit()


class PositionApart(Projector):
    """Stores the position in a transaction of its own."""

    def advance(self, model: ReadModel, limit: int) -> bool:
        """Rows first, then the position."""
        connection = self._connected()
        with connection.transaction():
            position = self._positions[model.name] = lock_position(connection, model)
            if events := self._events(position, limit):
                model.apply(connection, events)
                position = events[-1].position
        if events:
            time.sleep(0.0 if model.name == "directory" else 0.4)
            move_position(connection, model, position)
        self._positions[model.name] = position
        return bool(events)


def rows_are_ahead(conninfo: str) -> bool:
    statement = """select max(h.position) > (select position from projection_positions where name = 'history')
                   from history h"""
    return bool(query(conninfo, statement)[0][0])


def broken(*names: str) -> dict[str, Sequence[str]]:
    return {name: (__file__, name) for name in names}


@only_in_campaigns(SLOW_CANARY)
def test_canary_an_api_that_answers_before_it_commits_is_caught(database: str, tmp_path: Path) -> None:
    def run() -> None:
        with service_under_load(broken("serve") | ours("project"), database, tmp_path) as (services, clients):
            kill_at_work(services, "serve", clients)
        assert_acknowledged_once(database, tmp_path)

    with pytest.raises(AssertionError, match=r"acknowledged commands are missing|conversation-not-found"):
        run()


@only_in_campaigns(SLOW_CANARY)
def test_canary_a_projector_that_stores_its_position_apart_is_caught(database: str, tmp_path: Path) -> None:
    def run() -> None:
        with service_under_load(ours("serve") | broken("project"), database, tmp_path) as (services, _):
            for _ in range(3):
                wait_until(lambda: rows_are_ahead(database), "rows are there and the position is not")
                services.kill("project")
        assert_live_equals_rebuilt(database)

    with pytest.raises(AssertionError, match=r"halted|UniqueViolation|differ between live and rebuilt"):
        run()


def program(name: str) -> None:
    """A process that is broken on purpose."""
    from api import __main__ as command_line  # noqa: PLC0415
    from api import app  # noqa: PLC0415
    from api.cli import serving  # noqa: PLC0415

    assert hasattr(app, "CommandHandler")
    assert hasattr(serving, "Projector")
    app.CommandHandler = AnswersBeforeCommit
    serving.Projector = PositionApart
    command_line.app([name])


if __name__ == "__main__":
    program(*sys.argv[1:])
