"""A real service to talk to over HTTP, callers with tokens of their own, and conversations in every state.

Invariant: the service runs once, on the demo workspace; a test opens conversations of its own, so that none depends on
another. Nothing here or in these tests looks behind HTTP.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_service import Service, serving, wait_until

from api import demo

ROOT = Path(__file__).parents[2]
ADMIN_TOKEN = "cvs_acceptance-tests-admin"
BOT = "triagem"
WITHOUT_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody; reading whom a machine trusts takes a client longer than asking."""


class Api(httpx.Client):
    """An HTTP client that carries one access token."""

    def __init__(self, url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        super().__init__(base_url=url, headers=headers, timeout=30, verify=WITHOUT_TLS)

    def send_json(self, method: str, path: str, body: Any, **headers: str) -> httpx.Response:
        """``body`` as JSON, lone surrogates, NaN and all; ``if_match="3"`` is the header If-Match."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            named.setdefault("Content-Type", "application/json")
        return self.request(method, path, content=content, headers=named)

    def ok(self, method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        response = self.send_json(method, path, body, **headers)
        assert response.is_success, (method, path, response.status_code, response.text)
        found: dict[str, Any] = response.json()
        return found

    def read(self, path: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a query that must succeed; a read model that is behind is awaited, for a minute if need be."""
        deadline = time.monotonic() + 60
        while (response := self.get(path, params=parameters)).status_code == 503 and time.monotonic() < deadline:
            pass
        assert response.is_success, (path, parameters, response.status_code, response.text)
        found: dict[str, Any] = response.json()
        return found

    def items(self, path: str, **parameters: Any) -> list[dict[str, Any]]:
        """All rows of a query, page by page."""
        rows, cursor = [], {}
        while True:
            page = self.read(path, **parameters, **cursor)
            rows += page["items"]
            if page["next"] is None:
                return rows
            cursor = {"cursor": page["next"]}

    @cached_property
    def channel(self) -> Api:
        """An integration of the admin whose client this is: only such record what contacts write."""
        body = {"name": "channel", "actor": {"kind": "integration", "id": "a-channel"}, "role": "integration"}
        client = Api(str(self.base_url), self.ok("POST", "/v1/tokens", body)["secret"])
        wait_until(lambda: client.get("/v1/me").status_code == 200, "the channel's token works")
        return client

    def close(self) -> None:
        """Give all connections back."""
        if "channel" in self.__dict__:
            self.channel.close()
        super().close()

    def log_head(self) -> int:
        """The log's last position: it moves if, and only if, something changes."""
        lines = self.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith("conversas_log_head ")).split()[1]))


@dataclass
class Conversation:
    """A conversation, by what HTTP tells of it."""

    api: Api
    id: str
    answer: dict[str, Any] = field(default_factory=dict)
    """The last successful command's answer."""

    @property
    def path(self) -> str:
        return f"/v1/conversations/{self.id}"

    def ask(self, what: str, body: Any = None, *, by: Api | None = None, **headers: str) -> httpx.Response:
        """Send a command, whatever comes of it; what the contact wrote comes from their channel."""
        received = isinstance(body, dict) and body.get("direction") == "received"
        by = by or (self.api.channel if received else self.api)
        return by.send_json("POST", f"{self.path}/{what}", body, **headers)

    def do(self, what: str, body: Any = None, *, by: Api | None = None, **headers: str) -> dict[str, Any]:
        """Send a command that must succeed; its answer."""
        response = self.ask(what, {} if body is None else body, by=by, **headers)
        assert response.is_success, (what, response.status_code, response.text)
        self.answer = response.json()
        return self.answer

    def view(self, by: Api | None = None) -> dict[str, Any]:
        """How the listing shows it, last command included."""
        return (by or self.api).read(self.path, at_least=self.answer["position"])

    def history(self, by: Api | None = None) -> list[dict[str, Any]]:
        """Its history, last command included."""
        return (by or self.api).items(f"{self.path}/history", at_least=self.answer["position"])

    def messages(self, by: Api | None = None) -> list[dict[str, Any]]:
        """Its messages and notes, last command included."""
        return (by or self.api).items(f"{self.path}/messages", at_least=self.answer["position"])


@pytest.fixture(scope="session")
def service(postgres_url: str) -> Iterator[Service]:
    """API and projector as processes of their own, on a fresh database with the demo workspace."""
    with started(postgres_url) as running:
        yield running


@pytest.fixture(scope="session")
def start_service(postgres_url: str) -> Callable[..., AbstractContextManager[Service]]:
    """Another service with settings of its own: ``start_service(OIDC_ISSUER="https://…")``."""
    return partial(started, postgres_url)


started = partial(serving, token=ADMIN_TOKEN, TOKEN_CACHE_SECONDS="0.2")


@pytest.fixture(scope="session")
def connect(service: Service) -> Iterator[Callable[[str | None], Api]]:
    """A client for a token; None: without one."""
    with ExitStack() as stack:
        yield lambda token: stack.enter_context(Api(service.url, token))


@pytest.fixture(scope="session")
def api(connect: Callable[[str | None], Api]) -> Api:
    """The demo workspace's admin."""
    admin = connect(ADMIN_TOKEN)
    assert admin.channel, "made now: no test that counts events meets that of its token"
    return admin


@pytest.fixture(scope="session")
def caller(api: Api, connect: Callable[[str | None], Api]) -> Callable[..., Api]:
    """Somebody with a fresh token: ``caller("bot", "triagem", "integration")``; ``of`` is their workspace's admin."""

    def issue(kind: str, id_: str, role: str, *, of: Api = api) -> Api:
        body = {"name": f"{kind} {id_[:8]}", "actor": {"kind": kind, "id": id_}, "role": role}
        client = connect(of.ok("POST", "/v1/tokens", body)["secret"])
        wait_until(lambda: client.get("/v1/me").status_code == 200, "the token works")
        return client

    return issue


@pytest.fixture(scope="session")
def bia(caller: Callable[..., Api]) -> Api:
    """An agent who serves in Suporte only."""
    return caller("agent", str(demo.AGENT), "agent")


@pytest.fixture(scope="session")
def davi(caller: Callable[..., Api]) -> Api:
    """An agent who serves in Suporte and Vendas."""
    return caller("agent", str(demo.OTHER_AGENT), "agent")


@pytest.fixture(scope="session")
def bot(caller: Callable[..., Api]) -> Api:
    """The bot that answers first."""
    return caller("bot", BOT, "integration")


@pytest.fixture(scope="session")
def integration(caller: Callable[..., Api]) -> Api:
    """The WhatsApp channel."""
    return caller("integration", "whatsapp", "integration")


@pytest.fixture(scope="session")
def workspace(service: Service, connect: Callable[[str | None], Api]) -> Callable[[str], Api]:
    """The admin of a new workspace."""

    def make(slug: str) -> Api:
        client = connect(service.new_workspace(slug))
        wait_until(lambda: client.get("/v1/me").status_code == 200, "the token works")
        return client

    return make


@pytest.fixture(scope="session")
def stranger(workspace: Callable[[str], Api]) -> Api:
    """The admin of another workspace."""
    return workspace("elsewhere")


Scenario = Callable[[Api], Conversation]


def opened(api: Api, **body: Any) -> Conversation:
    """A conversation with Ana in Suporte, unless ``body`` says otherwise."""
    wanted = {"channel": "whatsapp", "contact_id": str(demo.CONTACT), "sector_id": str(demo.SECTOR)} | body
    answer = api.ok("POST", "/v1/conversations", wanted)
    return Conversation(api, answer["id"], answer)


def pending(api: Api) -> Conversation:
    """Waiting in Suporte's queue: the contact has written, nobody has answered."""
    conversation = opened(api)
    conversation.do("messages", {"direction": "received", "text": "Bom dia!"})
    return conversation


def with_bot(api: Api) -> Conversation:
    """A bot answers."""
    conversation = pending(api)
    conversation.do("handoff-to-bot", {"bot": BOT})
    return conversation


def in_progress(api: Api) -> Conversation:
    """Bia answers."""
    conversation = pending(api)
    conversation.do("transfer", {"sector_id": str(demo.SECTOR), "agent_id": str(demo.AGENT)})
    return conversation


def finalized(api: Api) -> Conversation:
    """Bia had it; it was ended from the listing."""
    conversation = in_progress(api)
    conversation.do("finalize", {"surface": "listing", "outcome": "resolvida"})
    return conversation


SCENARIOS: dict[str, Scenario] = {
    "pending": pending,
    "with_bot": with_bot,
    "in_progress": in_progress,
    "finalized": finalized,
}


@pytest.fixture(scope="session")
def open_conversation(api: Api) -> Callable[..., Conversation]:
    """Open a conversation, by the admin unless told otherwise."""
    return lambda by=api, **body: opened(by, **body)


@pytest.fixture(scope="session")
def a_conversation(api: Api) -> Callable[[str], Conversation]:
    """A fresh conversation in the state that is named."""
    return lambda state: SCENARIOS[state](api)


@pytest.fixture
def an_opened_conversation(api: Api) -> Conversation:
    """Nothing but opened."""
    return opened(api)


@pytest.fixture
def a_pending_conversation(api: Api) -> Conversation:
    """Opened, and the contact has written."""
    return pending(api)


@pytest.fixture
def a_conversation_with_bot(api: Api) -> Conversation:
    """Pending, then handed off to the bot."""
    return with_bot(api)


@pytest.fixture
def a_conversation_in_progress(api: Api) -> Conversation:
    """Pending, then given to Bia."""
    return in_progress(api)


@pytest.fixture
def a_finalized_conversation(api: Api) -> Conversation:
    """In progress, then ended from the listing."""
    return finalized(api)
