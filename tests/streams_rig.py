"""What the tests of streams share: a service with settings of their own, and listeners to event streams."""

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import httpx
import psycopg
import pytest
from contact_keyring import keys_of
from psycopg.conninfo import make_conninfo

from adapters.command_handler import CommandHandler
from api import demo

ROOT = Path(__file__).parents[1]
TOKEN = "cvs_streams-tests-admin"


@dataclass(frozen=True)
class Running:
    """A running service on the demo workspace, whose admin has `TOKEN`."""

    url: str
    database_url: str
    server: subprocess.Popen[bytes]


@contextmanager
def serving(postgres_url: str, *, patch: str = "", **settings: str) -> Iterator[Running]:
    """API (after running ``patch``, for canaries) and projector as processes of their own, on a fresh database."""
    name = f"streams_{uuid4().hex[:8]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template template_conversas")
    database_url = make_conninfo(postgres_url, dbname=name)
    with closing(CommandHandler(database_url, keys_of(database_url))) as handler:
        demo.load(handler, TOKEN)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    ours = {"DATABASE_URL": database_url, "PORT": str(port), "LOG_LEVEL": "warning"} | settings
    environment = os.environ | {f"CONVERSAS_{key}": value for key, value in ours.items()}
    program = f"{patch}\nfrom api.__main__ import main\nmain()"
    processes = [
        subprocess.Popen([sys.executable, "-c", program, "serve"], cwd=ROOT, env=environment),
        subprocess.Popen([sys.executable, "-m", "api", "project"], cwd=ROOT, env=environment),
    ]
    try:
        running = Running(f"http://127.0.0.1:{port}", database_url, processes[0])
        wait_until(lambda: is_ready(running.url), "the service is ready", seconds=120)
        yield running
    finally:
        for process in processes:
            process.kill()
            process.wait()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)")


def is_ready(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/readyz", timeout=5).json()
    except httpx.TransportError:
        return False
    return bool(answer["ready"]) and not any(each["behind"] for each in answer["projections"].values())


def wait_until(look: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if look():
            return
        time.sleep(0.02)
    pytest.fail(f"{what}: not within {seconds} s")


@dataclass(frozen=True)
class Sent:
    """A server-sent event."""

    name: str
    data: Any
    id: str | None = None


class Listener:
    """One event stream, read by a thread of its own; `next` gives what came, in order."""

    def __init__(self, client: httpx.Client, path: str, *, headers: dict[str, str] | None = None, **query: Any) -> None:
        target = f"{path}?{urlencode(query, doseq=True)}"
        where = urlsplit(str(client.base_url))
        given = {"Host": where.netloc, "Authorization": client.headers["Authorization"]} | (headers or {})
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
        self._socket = socket.create_connection((where.hostname or "", where.port or 0), timeout=60)
        self._socket.sendall("\r\n".join(lines).encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers = dict(self._header_lines())
        self.comments = 0
        self.raw = b""
        """Everything that came."""
        self._came: queue.SimpleQueue[Sent | None] = queue.SimpleQueue()
        self._changes: dict[str, Any] = {}
        """What was told of each row last: that it is as it is may be told twice, and is passed over here."""
        if self.status == 200:
            threading.Thread(target=self._read, daemon=True).start()

    def _header_lines(self) -> Iterator[tuple[str, str]]:
        while line := self._file.readline().strip().decode():
            name, _, value = line.partition(":")
            yield name.lower(), value.strip()

    def _read(self) -> None:
        rest = b""
        with suppress(OSError, ValueError):
            while size := int(self._file.readline(), 16):
                chunk = self._file.read(size)
                self._file.readline()
                self.raw += chunk
                *blocks, rest = (rest + chunk).split(b"\n\n")
                for block in blocks:
                    self._take(block.decode())
        self._came.put(None)

    def _take(self, block: str) -> None:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        self.comments += not fields
        if fields:
            sent = Sent(fields["event"], json.loads(fields["data"]), fields.get("id"))
            if not self._is_said_again(sent):
                self._came.put(sent)

    def _is_said_again(self, sent: Sent) -> bool:
        if sent.name != "change":
            return False
        row = sent.data.get("row")
        told = row and {name: value for name, value in row.items() if name != "waiting_seconds"}
        known = self._changes.get(sent.data["id"], ())
        self._changes[sent.data["id"]] = told
        return bool(known == told)

    def next(self, seconds: float = 10) -> Sent:
        """The next event; the test fails where none comes in time or the stream has ended."""
        try:
            sent = self._came.get(timeout=seconds)
        except queue.Empty:
            pytest.fail(f"nothing came within {seconds} s")
        assert sent is not None, "the stream has ended"
        return sent

    def until(self, fits: Callable[[Sent], bool], seconds: float = 10) -> Sent:
        """The first event that fits, whatever comes before."""
        deadline = time.monotonic() + seconds
        while not fits(sent := self.next(max(0.01, deadline - time.monotonic()))):
            pass
        return sent

    def rest(self, seconds: float) -> list[Sent]:
        """What comes within ``seconds``, or until the stream ends."""
        deadline, found = time.monotonic() + seconds, []
        while (left := deadline - time.monotonic()) > 0:
            with suppress(queue.Empty):
                sent = self._came.get(timeout=left)
                if sent is None:
                    break
                found.append(sent)
        return found

    def ends(self, seconds: float) -> list[Sent]:
        """What comes until the stream ends, which must be within ``seconds``."""
        deadline, found = time.monotonic() + seconds, []
        while True:
            try:
                sent = self._came.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"the stream goes on after {seconds} s")
            if sent is None:
                return found
            found.append(sent)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
