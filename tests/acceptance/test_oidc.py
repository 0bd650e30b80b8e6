"""Tokens of an outside issuer: linked, let in with the directory's rights, let out again; and an issuer that fails.

Invariant: the issuer says who it is, the directory what they may do. An issuer that is gone, slow or mad keeps nobody
waiting who does not need it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from oidc_issuer import AUDIENCE, Issuer

from adapters import oidc
from adapters.oidc import Keys, KeysUnavailableError, Trust, Verifier
from api import demo, settings
from domain.permissions import BUILT_IN_ROLES

Client = Any
ADMIN_TOKEN = "cvs_acceptance-tests-admin"


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as found:
        yield found


@pytest.fixture(scope="module")
def client(issuer: Issuer, start_service: Any, connect: Any) -> Iterator[Callable[[str], Client]]:
    """A client of a service that trusts the issuer, whose keys it finds by discovery."""
    by_discovery = {name: value for name, value in issuer.settings.items() if name != "OIDC_JWKS_URL"}
    with start_service(**by_discovery) as service:
        kind, opened = type(connect(None)), []

        def make(token: str) -> Client:
            opened.append(kind(service.url, token))
            return opened[-1]

        yield make
        for each in opened:
            each.close()


@pytest.fixture(scope="module")
def admin(client: Callable[[str], Client]) -> Client:
    return client(ADMIN_TOKEN)


def until(look: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def person(admin: Client, client: Callable[[str], Client], issuer: Issuer) -> tuple[str, str, Client]:
    """An agent, the issuer's name for them, and their client, which gets in."""
    agent, subject = admin.ok("POST", "/v1/agents", {"name": "Íris", "role": "agent"})["id"], uuid4().hex
    body = {"issuer": issuer.url, "subject": subject, "role": "agent"}
    admin.ok("PUT", f"/v1/agents/{agent}/identity", body)
    found = client(issuer.token(sub=subject))
    until(lambda: bool(found.get("/v1/me").status_code == 200))
    return agent, subject, found


def test_whom_the_issuer_signs_in_is_the_linked_agent_with_the_directory_s_rights(
    admin: Client, person: tuple[str, str, Client]
) -> None:
    agent, _, found = person
    me = found.read("/v1/me")
    assert me["actor"] == {"kind": "agent", "id": agent}
    assert (me["grants"], me["sectors"]) == (BUILT_IN_ROLES["agent"], [])
    admin.ok("PUT", f"/v1/agents/{agent}/role", {"role": "supervisor"})
    admin.ok("PUT", f"/v1/agents/{agent}/sectors/{demo.SECTOR}")
    until(lambda: bool(found.get("/v1/me").json().get("grants") == BUILT_IN_ROLES["supervisor"]))
    until(lambda: bool(found.get("/v1/me").json().get("sectors") == [str(demo.SECTOR)]))


def test_what_they_do_is_in_the_history_under_the_agent_s_name(admin: Client, person: tuple[str, str, Client]) -> None:
    agent, _, found = person
    admin.ok("PUT", f"/v1/agents/{agent}/sectors/{demo.SECTOR}")
    until(lambda: bool(found.get("/v1/me").json().get("sectors") == [str(demo.SECTOR)]))
    path = f"/v1/conversations/{demo.CONVERSATION}"
    position = found.ok("POST", f"{path}/labels", {"label": f"l{uuid4().hex[:8]}"})["position"]
    entries = admin.read(f"{path}/history", at_least=position)["items"]
    assert any(agent in str(entry) for entry in entries)


def test_an_unlinked_identity_gets_in_no_more(admin: Client, person: tuple[str, str, Client], issuer: Issuer) -> None:
    _, subject, found = person
    [listed] = [each for each in admin.read("/v1/identities")["items"] if each["subject"] == subject]
    assert listed["issuer"] == issuer.url
    admin.ok("DELETE", f"/v1/identities/{listed['id']}")
    until(lambda: bool(found.get("/v1/me").status_code == 401), 5)
    assert admin.ok("DELETE", f"/v1/identities/{listed['id']}")["events"] == 0
    assert subject not in admin.get("/v1/identities").text


def test_an_agent_who_left_gets_in_no_more(admin: Client, person: tuple[str, str, Client]) -> None:
    agent, _, found = person
    admin.ok("DELETE", f"/v1/agents/{agent}")
    until(lambda: bool(found.get("/v1/me").status_code == 401), 5)


def test_an_identity_is_one_agent_s_until_it_is_unlinked(
    admin: Client, person: tuple[str, str, Client], issuer: Issuer
) -> None:
    agent, subject, _ = person
    body = {"issuer": issuer.url, "subject": subject, "role": "agent"}
    assert admin.ok("PUT", f"/v1/agents/{agent}/identity", body)["events"] == 0
    refused = admin.send_json("PUT", f"/v1/agents/{demo.OTHER_AGENT}/identity", body)
    assert (refused.status_code, refused.json()["code"]) == (409, "identity-linked")
    [id_] = [each["id"] for each in admin.read("/v1/identities")["items"] if each["subject"] == subject]
    admin.ok("DELETE", f"/v1/identities/{id_}")
    admin.ok("PUT", f"/v1/agents/{demo.OTHER_AGENT}/identity", body)


def test_nobody_links_an_identity_to_more_than_they_have(
    admin: Client, client: Callable[[str], Client], issuer: Issuer
) -> None:
    mine = {"issuer": issuer.url, "subject": "clerk"}
    actor = {"kind": "integration", "id": "clerk"}
    grants = {"manage-directory": "all", **BUILT_IN_ROLES["agent"]}
    issued = admin.ok("POST", "/v1/tokens", {"name": "x", "actor": actor, "role": "admin", "grants": grants})
    clerk = client(issued["secret"])
    until(lambda: bool(clerk.get("/v1/me").status_code == 200))
    path = f"/v1/agents/{demo.ADMIN}/identity"
    for role, status in (("admin", 403), ("agent", 403), ("no-such-role", 404)):
        assert clerk.send_json("PUT", path, mine | {"role": role}).status_code == status
    assert client(issuer.token(sub="clerk")).get("/v1/me").status_code == 401


def test_identities_are_the_directory_s_managers_business(person: tuple[str, str, Client]) -> None:
    _, _, found = person
    body = {"issuer": "https://x.example", "subject": "x", "role": "agent"}
    assert found.get("/v1/identities").status_code == 403
    assert found.send_json("PUT", f"/v1/agents/{demo.AGENT}/identity", body).status_code == 403
    assert found.send_json("DELETE", f"/v1/identities/{demo.SPARE_IDENTITY}", None).status_code == 403


def test_a_token_gets_in_until_it_expires(person: tuple[str, str, Client], client: Any, issuer: Issuer) -> None:
    """Also where the service remembers it: the memory ends with the token, give or take the leeway for clocks."""
    _, subject, _ = person
    now = int(time.time())
    found = client(issuer.token(sub=subject, iat=now - 60, nbf=now - 60, exp=now - 27))
    assert found.get("/v1/me").status_code == 200
    until(lambda: bool(found.get("/v1/me").status_code == 401), 6)


def test_the_last_use_of_an_identity_is_shown(admin: Client, person: tuple[str, str, Client]) -> None:
    _, subject, _ = person
    until(
        lambda: any(
            each["last_used_at"] for each in admin.read("/v1/identities")["items"] if each["subject"] == subject
        )
    )


# Settings


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OIDC_ISSUER": "https://login.example.com"}, "OIDC_AUDIENCE"),
        ({"OIDC_ISSUER": "http://login.example.com", "OIDC_AUDIENCE": "x"}, "OIDC_ISSUER"),
        ({"OIDC_ISSUER": "http://127.0.0.1:80@evil.example", "OIDC_AUDIENCE": "x"}, "OIDC_ISSUER"),
        ({"OIDC_ALGORITHMS": "HS256"}, "OIDC_ALGORITHMS"),
        ({"OIDC_ALGORITHMS": "RS256,none"}, "OIDC_ALGORITHMS"),
        ({"OIDC_TOKEN_TYPE": "any"}, "OIDC_TOKEN_TYPE"),
        ({"OIDC_LEEWAY_SECONDS": "3600"}, "OIDC_LEEWAY_SECONDS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_dangerous_setting_ends_the_program_with_its_name(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"CONVERSAS_{name}", value)
    with pytest.raises(SystemExit, match=f"CONVERSAS_{named}:"):
        settings.load()


# The issuer's keys


@pytest.fixture
def other() -> Iterator[Issuer]:
    with Issuer() as found:
        yield found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "PAUSE_SECONDS", 0.3)
    monkeypatch.setattr(oidc, "FETCH_SECONDS", 1.0)


def trusting(issuer: Issuer, **more: Any) -> Trust:
    return Trust(issuer=issuer.url, audience=AUDIENCE, **{"jwks_url": f"{issuer.url}/keys", **more})


def test_a_new_key_is_found_when_a_token_names_it_and_an_old_one_is_forgotten(other: Issuer, hasty: None) -> None:
    async def story() -> None:
        async with Keys(trusting(other)) as keys:
            verifier = Verifier(trusting(other), keys)
            old = other.token().encode()
            assert await verifier.named(old)
            other.keys = [other.jwk(other.rsa, "rsa-2")]
            await asyncio.sleep(0.4)
            assert await verifier.named(other.token(header={"kid": "rsa-2"}).encode())
            assert await verifier.named(old) is None

    asyncio.run(story())


def test_a_flood_of_unknown_key_ids_has_the_keys_fetched_hardly_ever(other: Issuer, hasty: None) -> None:
    async def flood() -> float:
        async with Keys(trusting(other)) as keys:
            verifier, started = Verifier(trusting(other), keys), time.monotonic()
            tokens = [other.token(header={"kid": f"k{number}"}).encode() for number in range(100)]
            for _ in range(5):
                assert await asyncio.gather(*map(verifier.named, tokens)) == [None] * len(tokens)
            return time.monotonic() - started

    seconds = asyncio.run(flood())
    assert other.asked <= 2 + seconds / 0.3


@pytest.mark.parametrize("mode", ["down", "slow", "drip", "moved", "huge", "nonsense"])
def test_an_issuer_that_fails_is_an_answer_and_never_a_wait(other: Issuer, hasty: None, mode: str) -> None:
    other.mode = mode

    async def ask() -> float:
        async with Keys(trusting(other)) as keys:
            verifier, started = Verifier(trusting(other), keys), time.monotonic()
            with pytest.raises(KeysUnavailableError):
                await verifier.named(other.token().encode())
            return time.monotonic() - started

    assert asyncio.run(ask()) < 2.5


def test_known_keys_go_on_working_while_the_issuer_is_down_but_not_for_ever(
    other: Issuer, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with Keys(trusting(other)) as keys:
            verifier, token = Verifier(trusting(other), keys), other.token().encode()
            assert await verifier.named(token)
            other.mode = "down"
            await asyncio.sleep(0.4)
            assert await verifier.named(other.token(header={"kid": "unknown"}).encode()) is None
            assert await verifier.named(token)
            monkeypatch.setattr(oidc, "KEEP_SECONDS", 0.3)
            with pytest.raises(KeysUnavailableError):
                await verifier.named(token)
            other.mode = "well"
            await asyncio.sleep(0.4)
            assert await verifier.named(token)

    asyncio.run(story())


def test_keys_that_are_not_for_this_are_not_used(other: Issuer) -> None:
    rsa, ec = other.rsa, other.ec
    other.keys = [
        other.jwk(rsa, "for-encryption", use="enc"),
        other.jwk(rsa, "for-another-algorithm", alg="RS512"),
        other.jwk(rsa, "twice"),
        other.jwk(rsa, "twice"),
        {"kty": "oct", "k": "AAAA", "kid": "a-secret", "alg": "RS256"},
        {"kty": "RSA", "n": "!", "e": "AQAB", "kid": "broken"},
        {"kty": "RSA", "kid": "half"},
        "no key",
        other.jwk(ec, "good"),
    ]

    async def found() -> list[str]:
        async with Keys(trusting(other)) as keys:
            await keys.find("good", "ES256")
            return sorted(f"{id_} {algorithm}" for id_, algorithm in keys._keys)

    assert asyncio.run(found()) == ["good ES256"]


@pytest.mark.parametrize("where", ["https://evil.example.com", "http://evil.example.com/keys", None, 1])
def test_discovery_of_another_issuer_or_an_unsafe_address_is_no_discovery(other: Issuer, where: object) -> None:
    document = {"issuer": other.url, "jwks_uri": where}
    if where == "https://evil.example.com":
        document = {"issuer": where, "jwks_uri": f"{other.url}/keys"}
    other.discovery = document

    async def ask() -> None:
        async with Keys(trusting(other, jwks_url=None)) as keys:
            with pytest.raises(KeysUnavailableError):
                await keys.find("rsa-1", "RS256")

    asyncio.run(ask())


def test_our_own_tokens_work_while_the_issuer_does_not(start_service: Any, connect: Any) -> None:
    with Issuer() as gone:
        foreign = gone.token()
    with start_service(**gone.settings) as service:
        kind = type(connect(None))
        with kind(service.url, ADMIN_TOKEN) as admin, kind(service.url, foreign) as person:
            assert admin.get("/v1/me").status_code == 200
            started = time.monotonic()
            answer = person.get("/v1/me")
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert answer.headers["retry-after"]
            assert time.monotonic() - started < 5


# What can be set otherwise


@pytest.mark.parametrize(
    ("more", "header", "claims"),
    [
        ({"token_type": "JWT"}, {"typ": "JWT"}, {}),
        ({}, {"typ": "application/at+jwt"}, {}),
        ({"not_before_required": False}, {}, {"nbf": None}),
        ({"workspace": "demo"}, {}, {"workspace": None}),
        ({"workspace_claim": "tenant"}, {}, {"tenant": "demo", "workspace": None}),
        ({"subject_claim": "email"}, {}, {"email": "248289761001", "email_verified": True, "sub": None}),
    ],
    ids=["type JWT", "type in full", "no beginning", "one workspace", "another claim", "by verified e-mail"],
)
def test_what_issuers_do_differently_can_be_set(
    issuer: Issuer, more: dict[str, Any], header: dict[str, Any], claims: dict[str, Any]
) -> None:
    async def named(trust: Trust) -> oidc.Named | None:
        async with Keys(trust) as keys:
            return await Verifier(trust, keys).named(issuer.token(header=header, **claims).encode())

    found = asyncio.run(named(trusting(issuer, **more)))
    assert found is not None
    assert (found.subject, found.workspace) == ("248289761001", "demo")
    if more:
        assert asyncio.run(named(trusting(issuer))) is None


def test_an_e_mail_address_that_is_not_verified_names_nobody(issuer: Issuer) -> None:
    async def named(**claims: Any) -> oidc.Named | None:
        trust = trusting(issuer, subject_claim="email")
        async with Keys(trust) as keys:
            return await Verifier(trust, keys).named(issuer.token(email="a@example.com", **claims).encode())

    for claims in ({}, {"email_verified": False}, {"email_verified": "true"}):
        assert asyncio.run(named(**claims)) is None
