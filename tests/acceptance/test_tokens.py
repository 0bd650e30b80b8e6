"""Access tokens: narrowed, used, revoked.

Invariant: a token does no more than its role and what it was narrowed to both grant, and nothing once it is revoked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from psycopg_pool import AsyncConnectionPool
from pydantic import ValidationError

from adapters import identity
from adapters.identity import Identity
from api import demo
from api.settings import Settings
from domain.permissions import BUILT_IN_ROLES, Caller

Client = Any


def issued(api: Client, role: str, grants: dict[str, str] | None = None) -> dict[str, Any]:
    body = {"name": "x", "actor": {"kind": "integration", "id": f"i-{uuid4().hex[:8]}"}, "role": role}
    found: dict[str, Any] = api.ok("POST", "/v1/tokens", body | ({} if grants is None else {"grants": grants}))
    return found


def working(connect: Callable[[str], Client], secret: str) -> Client:
    client, deadline = connect(secret), time.monotonic() + 10
    while client.get("/v1/me").status_code != 200:
        assert time.monotonic() < deadline
    return client


def listed(api: Client, id_: str) -> dict[str, Any]:
    """The token as it is listed, once the directory has it."""
    deadline = time.monotonic() + 15
    while True:
        found = [token for token in api.read("/v1/tokens")["items"] if token["id"] == id_]
        if found or time.monotonic() > deadline:
            return dict(found[0])
        time.sleep(0.05)


# Narrowed


def test_a_narrowed_token_does_no_more_than_it_was_narrowed_to(api: Client, connect: Callable[[str], Client]) -> None:
    token = issued(api, "supervisor", {"view": "all", "label": "own"})
    client = working(connect, token["secret"])
    assert client.read("/v1/me")["grants"] == {"view": "all", "label": "own"}
    assert client.get("/v1/conversations").status_code == 200
    assert client.get("/v1/history").status_code == 403
    path = f"/v1/conversations/{demo.CONVERSATION}"
    assert client.send_json("POST", f"{path}/transfer", {"sector_id": str(demo.SECTOR)}).status_code == 403
    assert client.send_json("POST", f"{path}/labels", {"label": "x"}).status_code == 403, "it is nobody's own"
    assert listed(api, token["id"])["grants"] == {"view": "all", "label": "own"}
    assert listed(api, issued(api, "supervisor")["id"])["grants"] is None


def test_a_token_narrowed_to_nothing_does_nothing(api: Client, connect: Callable[[str], Client]) -> None:
    client = working(connect, issued(api, "admin", {})["secret"])
    assert client.read("/v1/me")["grants"] == {}
    assert client.get("/v1/conversations").status_code == 403


def test_a_token_cannot_be_narrowed_to_more_than_its_role_grants(api: Client) -> None:
    for grants in ({"manage-tokens": "all"}, {"view": "all"}):
        body = {"name": "x", "actor": {"kind": "bot", "id": "x"}, "role": "agent", "grants": grants}
        answer = api.send_json("POST", "/v1/tokens", body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-command")


def test_narrowing_hands_nobody_what_they_do_not_have(api: Client, connect: Callable[[str], Client]) -> None:
    clerk = working(connect, issued(api, "admin", {"manage-tokens": "all", "view": "all"})["secret"])
    body = {"name": "x", "actor": {"kind": "bot", "id": "x"}, "role": "admin"}
    for grants in (None, {}, {"view": "all"}, {"export": "all"}):
        answer = clerk.send_json("POST", "/v1/tokens", body if grants is None else body | {"grants": grants})
        assert (answer.status_code, answer.json()["code"]) == (403, "permission-denied")


def test_a_role_that_is_made_smaller_makes_its_narrowed_tokens_smaller(
    api: Client, connect: Callable[[str], Client]
) -> None:
    role = f"r-{uuid4().hex[:12]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "all", "label": "all"}})
    client = working(connect, issued(api, role, {"view": "all"})["secret"])
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "own", "export": "all"}})
    deadline = time.monotonic() + 10
    while client.get("/v1/me").json().get("grants") != {"view": "own"}:
        assert time.monotonic() < deadline


def test_a_token_that_grants_nothing_gets_nothing_on_any_route(api: Client, connect: Callable[[str], Client]) -> None:
    """With the examples of the document, all of which the demo's admin may run: so this is that agent, narrowed."""
    body = {"name": "x", "actor": {"kind": "agent", "id": str(demo.ADMIN)}, "role": "admin", "grants": {}}
    client, before = working(connect, api.ok("POST", "/v1/tokens", body)["secret"]), api.log_head()
    document, let_in = api.get("/openapi.json").json(), []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = path
            for parameter in operation.get("parameters", []):
                example = parameter["schema"].get("examples", [str(uuid4())])[0]
                where = where.replace(f"{{{parameter['name']}}}", str(example))
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            if path.startswith("/v1/"):
                answer = client.send_json(method.upper(), where, body)
                if answer.status_code not in {403, 404}:
                    let_in.append((method, path, answer.status_code))
    assert let_in == [("get", "/v1/me", 200)]
    assert api.log_head() == before


# Last use


def test_the_last_use_of_a_token_is_shown_and_is_no_event(api: Client, connect: Callable[[str], Client]) -> None:
    token, idle = issued(api, "agent"), issued(api, "agent")
    assert listed(api, token["id"])["last_used_at"] is None
    client, before = working(connect, token["secret"]), api.log_head()
    deadline = time.monotonic() + 10
    while (first := listed(api, token["id"])["last_used_at"]) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(25):
        client.read("/v1/me")
        time.sleep(0.1)
    assert listed(api, token["id"])["last_used_at"] == first, "at most once a minute"
    assert listed(api, idle["id"])["last_used_at"] is None
    assert api.log_head() == before


# Revoked, everywhere


async def still_let_in(
    database_url: str, secret: str, revoke: Callable[[], object], *, cache_seconds: tuple[float, ...], wait: float
) -> list[bool]:
    """Whether other processes, which know the token, let it in after ``wait`` seconds; busy with it all the time."""
    async with AsyncConnectionPool(database_url, min_size=1, max_size=2, kwargs={"autocommit": True}) as pool:
        others = [Identity(pool, seconds) for seconds in cache_seconds]
        assert [await other.caller(secret.encode()) is not None for other in others] == [True] * len(others)
        await asyncio.to_thread(revoke)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            for other in others:
                await quietly(other, secret)
            await asyncio.sleep(0.05)
        return [await quietly(other, secret) is not None for other in others]


async def quietly(other: Identity, secret: str) -> Caller | None:
    try:
        return await other.caller(secret.encode())
    except identity.UnavailableError:
        return None


@pytest.fixture(params=["the token is revoked", "its agent is deactivated"])
def revoking(request: pytest.FixtureRequest, api: Client) -> tuple[str, Callable[[], object]]:
    if request.param == "the token is revoked":
        token = issued(api, "agent")
        return token["secret"], lambda: api.ok("DELETE", f"/v1/tokens/{token['id']}")
    agent = api.ok("POST", "/v1/agents", {"name": "Vai Embora", "role": "agent"})["id"]
    body = {"name": "x", "actor": {"kind": "agent", "id": agent}, "role": "agent"}
    return api.ok("POST", "/v1/tokens", body)["secret"], lambda: api.ok("DELETE", f"/v1/agents/{agent}")


def test_a_revocation_holds_everywhere_within_five_seconds(
    service: Any, connect: Callable[[str], Client], revoking: tuple[str, Callable[[], object]]
) -> None:
    """With the longest memory that can be set; the canary remembers for longer."""
    secret, revoke = revoking
    client = working(connect, secret)
    found = asyncio.run(still_let_in(service.database_url, secret, revoke, cache_seconds=(5.0, 60.0), wait=5.0))
    assert found == [False, True], "the second is the canary"
    assert client.get("/v1/me").status_code == 401


def test_no_longer_memory_can_be_set() -> None:
    assert Settings(token_cache_seconds=5)
    with pytest.raises(ValidationError):
        Settings(token_cache_seconds=5.1)


def test_canary_without_the_narrowing_the_token_could_do_all_that_its_role_may(
    service: Any, api: Client, connect: Callable[[str], Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issued(api, "supervisor", {"view": "own"})
    working(connect, token["secret"])

    async def holder() -> Caller | None:
        async with AsyncConnectionPool(service.database_url, min_size=1, kwargs={"autocommit": True}) as pool:
            return await Identity(pool, 0).holder(demo.WORKSPACE, UUID(token["id"]))

    narrow = asyncio.run(holder())
    monkeypatch.setattr(identity, "narrowed", lambda grants, _: grants)
    wide = asyncio.run(holder())
    assert narrow is not None
    assert wide is not None
    assert (dict(narrow.grants), dict(wide.grants)) == ({"view": "own"}, BUILT_IN_ROLES["supervisor"])
