"""Exports of which nothing is taken: cut, and what they hold is let go; a slow reader who takes something is not.

Invariant: readers are real sockets with a small window, on a real server in this process, so that its times are ours.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from uuid import UUID

import httpx
import pytest
from contact_keyring import keys_of
from databases import prepare, project
from in_process import carry_out, id_of

from adapters.command_handler import CommandHandler
from api import demo, exports
from api.app import create_app
from api.server import Server
from api.settings import Settings
from domain.commands import Command, OpenConversation, RegisterContact
from domain.events import ContactDetails

TOKEN = "cvs_slow-readers-tests-admin"
EXPORT = "/v1/conversations/export?format=ndjson"
CONVERSATIONS = 12


@pytest.fixture
def admin(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """The admin of the demo with ten megabytes to export, a row at a time."""
    prepare(database)
    contact = id_of("a long one")
    long = ContactDetails(name="Longa", attributes={f"a{number}": ["x" * 500] * 100 for number in range(16)})
    story: list[tuple[UUID, Command]] = [(contact, RegisterContact(contact_id=contact, details=long))]
    story += [
        (id_of(f"long {number}"), OpenConversation(protocol=str(number), channel="x", contact_id=contact))
        for number in range(CONVERSATIONS)
    ]
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler, TOKEN)
        carry_out(handler, demo.WORKSPACE, story)
    project(database)
    monkeypatch.setattr(exports, "ROWS_AT_ONCE", 1)
    with served(database) as url, httpx.Client(base_url=url, timeout=60) as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        yield client


@contextmanager
def served(database: str) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = Settings(database_url=database, port=port, log_level="error")
    server = Server(create_app(settings, database), settings)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def until(look: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begin(admin: httpx.Client) -> socket.socket:
    """A reader who has asked for the export and taken no more than its first bytes."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    reader.settimeout(60)
    reader.connect((admin.base_url.host, admin.base_url.port))
    reader.sendall(f"GET {EXPORT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    assert reader.recv(64).startswith(b"HTTP/1.1 200")
    return reader


def is_let_in(admin: httpx.Client) -> bool:
    return admin.get(EXPORT).status_code == 200


def rest_of(reader: socket.socket, pause: float = 0) -> bytes:
    """What comes until its last chunk or until the other side ends it."""
    found = b""
    while not found.endswith(b"\r\n0\r\n\r\n") and (part := reader.recv(262_144)):
        found += part
        time.sleep(pause)
    return found


def test_who_takes_nothing_is_cut_and_makes_room(admin: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "SEND_SECONDS", 0.5)
    with ExitStack() as stack:
        readers = [stack.enter_context(closing(begin(admin))) for _ in range(2)]
        until(lambda: is_let_in(admin))
        assert not rest_of(readers[0]).endswith(b"0\r\n\r\n"), "what breaks off does not look complete"
        assert admin.get("/readyz").json()["ready"]


def test_canary_without_the_limit_they_keep_everybody_out(admin: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "SEND_SECONDS", 600)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(closing(begin(admin)))
        with pytest.raises(AssertionError):
            until(lambda: is_let_in(admin), 3)
        refused = admin.get(EXPORT)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
    until(lambda: is_let_in(admin))  # who goes away makes room as well


def test_who_takes_a_little_at_a_time_gets_it_all(admin: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "SEND_SECONDS", 5)
    with closing(begin(admin)) as reader:
        assert rest_of(reader, pause=0.001).endswith(b"0\r\n\r\n")
