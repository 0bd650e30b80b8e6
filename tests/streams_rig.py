"""What the tests of streams share: a service with settings of their own, and listeners to event streams."""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import httpx
import pytest
import running_service

ROOT = Path(__file__).parents[1]
TOKEN = "cvs_streams-tests-admin"
serving = partial(running_service.serving, token=TOKEN)
"""A service with settings of its own, whose admin has `TOKEN`."""


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
