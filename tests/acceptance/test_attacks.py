"""Attacks on tokens: whoever holds none of ours, or holds one in the wrong way, is refused and changes nothing.

Invariant: every attack is answered 401 (or 4xx where it is no HTTP any more), never 5xx. Each canary weakens the
verifier in one place, and then an attack gets through: so the attack does test that place.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import jwt
import pytest
from forged_tokens import FORGED
from oidc_issuer import AUDIENCE, SUBJECT, Issuer

from adapters import oidc
from adapters.oidc import Keys, Trust, Verifier
from api import demo
from domain.permissions import BUILT_IN_ROLES

Client = Any
ADMIN_TOKEN = "cvs_acceptance-tests-admin"


@dataclass(frozen=True)
class Target:
    """A service that takes our own tokens and the issuer's, and tokens that worked once or work elsewhere."""

    issuer: Issuer
    admin: Client
    secrets: dict[str, str]
    ids: dict[str, str]

    @property
    def address(self) -> tuple[str, int]:
        where = urlsplit(str(self.admin.base_url))
        return str(where.hostname), int(where.port or 80)


@pytest.fixture(scope="module")
def target(start_service: Any, connect: Any) -> Iterator[Target]:
    with Issuer() as issuer, start_service(**issuer.settings) as service:
        admin = type(connect(None))(service.url, ADMIN_TOKEN)
        link = {"issuer": issuer.url, "subject": SUBJECT, "role": "agent"}
        admin.ok("PUT", f"/v1/agents/{demo.AGENT}/identity", link)
        secrets, ids = {"elsewhere": service.new_workspace("elsewhere")}, {}
        leaver = admin.ok("POST", "/v1/agents", {"name": "Vai Embora", "role": "agent"})["id"]
        for name, actor, more in (
            ("genuine", {"kind": "integration", "id": "x"}, {}),
            ("revoked", {"kind": "integration", "id": "x"}, {}),
            ("of an agent who left", {"kind": "agent", "id": leaver}, {}),
            ("expired", {"kind": "integration", "id": "x"}, {"expires_at": (datetime.now(UTC) + timedelta(seconds=1))}),
        ):
            body = {"name": name, "actor": actor, "role": "agent" if actor["kind"] == "agent" else "admin", **more}
            issued = admin.ok("POST", "/v1/tokens", json.loads(json.dumps(body, default=datetime.isoformat)))
            secrets[name], ids[name] = issued["secret"], issued["id"]
        admin.ok("DELETE", f"/v1/tokens/{ids['revoked']}")
        head = admin.ok("DELETE", f"/v1/agents/{leaver}")["position"]
        behind = {"at_least": head}
        admin.read("/v1/history", **behind)
        yield Target(issuer, admin, secrets, ids)
        admin.close()


def raw(target: Target, request: bytes) -> tuple[int, bytes]:
    """Status and text of the answer to a request sent as it is."""
    with socket.create_connection(target.address, timeout=10) as connection:
        connection.sendall(request)
        connection.settimeout(10)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
    return int(answer.split(b" ", 2)[1]), answer


def attempt(target: Target, *lines: bytes, path: str = "") -> Iterator[tuple[int, bytes]]:
    """A query and a command, each with these header lines."""
    body = b'{"name": "intruder"}'
    for first in (f"GET /v1/me{path} HTTP/1.1", f"POST /v1/sectors{path} HTTP/1.1"):
        rest = [b"Host: x", b"Connection: close", b"Content-Type: application/json", *lines]
        sent = body if first.startswith("POST") else b""
        rest.append(b"Content-Length: %d" % len(sent))
        yield raw(target, b"\r\n".join([first.encode(), *rest, b"", sent]))


def check_refused(target: Target, *lines: bytes, path: str = "", statuses: frozenset[int] = frozenset({401})) -> None:
    before = target.admin.log_head()
    for status, answer in attempt(target, *lines, path=path):
        assert status in statuses, answer
        if status == 401:
            assert b'"code":"unauthenticated"' in answer
            assert b"www-authenticate: Bearer" in answer
    assert target.admin.log_head() == before


def bearing(token: str) -> bytes:
    return f"Authorization: Bearer {token}".encode()


def test_those_who_may_get_in(target: Target) -> None:
    """Else everything below would be refused for a reason of its own."""
    genuine = (target.issuer.token(), target.issuer.token("ES256"), target.issuer.token(aud=[AUDIENCE]))
    for token in genuine:
        assert [status for status, _ in attempt(target, bearing(token))] == [200, 403]
    for name in ("genuine", "elsewhere"):
        assert [status for status, _ in attempt(target, bearing(target.secrets[name]))] == [200, 201]
    in_other_letters = b"authorization: bEARER " + genuine[0].encode()
    assert [status for status, _ in attempt(target, in_other_letters)] == [200, 403]


@pytest.mark.parametrize("attack", FORGED)
def test_a_forged_token_is_refused(target: Target, attack: str) -> None:
    statuses = frozenset({401} if len(FORGED[attack](target.issuer)) < 16_000 else {400, 401, 431})
    check_refused(target, bearing(FORGED[attack](target.issuer)), statuses=statuses)


def _flipped(text: str, place: int) -> str:
    return text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]


OWN: dict[str, Callable[[Target], str]] = {
    "a revoked one": lambda target: target.secrets["revoked"],
    "an expired one": lambda target: target.secrets["expired"],
    "one of an agent who left": lambda target: target.secrets["of an agent who left"],
    "the last character missing": lambda target: target.secrets["genuine"][:-1],
    "half of it": lambda target: target.secrets["genuine"][:25],
    "a character more": lambda target: target.secrets["genuine"] + "A",
    "the last character changed": lambda target: _flipped(target.secrets["genuine"], -1),
    "a character in the middle changed": lambda target: _flipped(target.secrets["genuine"], 20),
    "in capitals": lambda target: target.secrets["genuine"].upper(),
    "without its prefix": lambda target: target.secrets["genuine"].removeprefix("cvs_"),
    "twice in a row": lambda target: target.secrets["genuine"] * 2,
    "backwards": lambda target: target.secrets["genuine"][::-1],
    "the prefix alone": lambda _: "cvs_",
    "the hash under which it is stored": lambda target: hashlib.sha256(target.secrets["genuine"].encode()).hexdigest(),
    "the token's id": lambda target: target.ids["genuine"],
    "the hash of the demo's token that nobody has": lambda _: "0" * 64,
    "in base64": lambda target: base64.b64encode(target.secrets["genuine"].encode()).decode(),
    "percent-encoded": lambda target: quote(target.secrets["genuine"].replace("_", "%5F")),
    "with a NUL in percent code": lambda target: target.secrets["genuine"] + "%00",
    "in quotes": lambda target: f'"{target.secrets["genuine"]}"',
    "with a colon": lambda target: target.secrets["genuine"] + ":",
    "with a comma": lambda target: target.secrets["genuine"] + ",",
    "two of them": lambda target: f"{target.secrets['genuine']} {target.secrets['elsewhere']}",
    "as the signature of a token": lambda target: ".".join(
        [*target.issuer.token().split(".")[:2], target.secrets["genuine"].removeprefix("cvs_")]
    ),
    "random bits": lambda _: "cvs_" + base64.urlsafe_b64encode(bytes(range(32))).decode().rstrip("="),
    "null": lambda _: "null",
    "undefined": lambda _: "undefined",
    "SQL that is always true": lambda _: "' or '1'='1",
    "SQL that finds them all": lambda _: "x' union select secret_sha256 from tokens --",
    "a pattern": lambda _: "cvs_%",
    "a path": lambda _: "../../../etc/passwd",
    "a template": lambda _: "{{7*7}}${7*7}",
    "9,000 characters": lambda _: "A" * 9_000,
}


@pytest.mark.parametrize("attack", OWN)
def test_what_resembles_a_token_of_ours_is_refused(target: Target, attack: str) -> None:
    check_refused(target, bearing(OWN[attack](target)))


SENT: dict[str, Callable[[bytes], list[bytes]]] = {
    "not at all": lambda _: [],
    "empty": lambda _: [b"Authorization:"],
    "a scheme alone": lambda _: [b"Authorization: Bearer"],
    "a scheme and a blank": lambda _: [b"Authorization: Bearer "],
    "a scheme and blanks": lambda _: [b"Authorization: Bearer      "],
    "without a scheme": lambda token: [b"Authorization: " + token],
    "under the scheme Token": lambda token: [b"Authorization: Token " + token],
    "under the scheme Basic": lambda token: [b"Authorization: Basic " + base64.b64encode(b"x:" + token)],
    "under the scheme Digest": lambda token: [b'Authorization: Digest username="' + token + b'"'],
    "under a scheme that begins like ours": lambda token: [b"Authorization: Bearers " + token],
    "under a scheme in other letters": lambda token: ["Authorization: \u0412\u0435\u0430rer ".encode() + token],
    "without a blank": lambda token: [b"Authorization: Bearer" + token],
    "after a tab": lambda token: [b"Authorization: Bearer\t" + token],
    "after a colon": lambda token: [b"Authorization: Bearer: " + token],
    "as a parameter of the scheme": lambda token: [b"Authorization: Bearer token=" + token],
    "after the scheme twice": lambda token: [b"Authorization: Bearer Bearer " + token],
    "before another in one header": lambda token: [b"Authorization: Bearer " + token + b", Bearer x"],
    "in two headers, a wrong one last": lambda token: [b"Authorization: Bearer " + token, b"Authorization: Bearer x"],
    "in two headers, a wrong one first": lambda token: [b"Authorization: Bearer x", b"Authorization: Bearer " + token],
    "in two headers, the same": lambda token: [b"Authorization: Bearer " + token] * 2,
    "beside another scheme": lambda token: [b"Authorization: Basic eDp4", b"authorization: Bearer " + token],
    "in a header with an underscore": lambda token: [b"Authorization_: Bearer " + token],
    "in Proxy-Authorization": lambda token: [b"Proxy-Authorization: Bearer " + token],
    "in X-Authorization": lambda token: [b"X-Authorization: Bearer " + token],
    "in X-Api-Key": lambda token: [b"X-Api-Key: " + token],
    "in a cookie": lambda token: [b"Cookie: token=" + token + b"; access_token=" + token],
    "with a byte that is no UTF-8": lambda token: [b"Authorization: Bearer " + token + b"\xff\xfe"],
    "with letters that look alike": lambda token: [b"Authorization: Bearer " + token[:-1] + "\u0430".encode()],
}


@pytest.mark.parametrize("attack", SENT)
def test_a_token_that_is_not_sent_as_it_should_is_refused(target: Target, attack: str) -> None:
    for token in (target.secrets["genuine"], target.issuer.token()):
        check_refused(target, *SENT[attack](token.encode()))


BROKEN: dict[str, Callable[[bytes], list[bytes]]] = {
    "with a NUL": lambda token: [b"Authorization: Bearer " + token + b"\0"],
    "after a line feed": lambda token: [b"Authorization: Bearer x\nX: y" + token],
    "folded over two lines": lambda token: [b"Authorization: Bearer\r\n " + token + b"x"],
    "with a control character": lambda token: [b"Authorization: Bearer " + token + b"\x07"],
    "behind a blank in the header's name": lambda token: [b"Authorization : Bearer " + token],
    "with 200,000 characters": lambda token: [b"Authorization: Bearer " + token + b"A" * 200_000],
}


@pytest.mark.parametrize("attack", BROKEN)
def test_what_is_no_header_any_more_gets_nobody_in(target: Target, attack: str) -> None:
    lines = BROKEN[attack](target.secrets["genuine"].encode())
    check_refused(target, *lines, statuses=frozenset({400, 401, 431}))


@pytest.mark.parametrize("name", ["access_token", "token", "authorization", "bearer_token"])
def test_a_token_in_the_address_is_refused(target: Target, name: str) -> None:
    check_refused(target, path=f"?{name}={target.secrets['genuine']}")


def test_a_token_of_another_workspace_reaches_nothing_of_ours(target: Target) -> None:
    stranger = type(target.admin)(str(target.admin.base_url), target.secrets["elsewhere"])
    before = target.admin.log_head()
    for method, path, body in (
        ("GET", f"/v1/conversations/{demo.CONVERSATION}", None),
        ("POST", f"/v1/conversations/{demo.CONVERSATION}/labels", {"label": "x"}),
        ("DELETE", f"/v1/tokens/{target.ids['genuine']}", None),
        ("DELETE", f"/v1/identities/{demo.SPARE_IDENTITY}", None),
        ("PUT", f"/v1/agents/{demo.AGENT}/role", {"role": "admin"}),
        ("PUT", f"/v1/agents/{demo.AGENT}/identity", {"issuer": "https://x.example", "subject": "x", "role": "agent"}),
    ):
        assert stranger.send_json(method, path, body).status_code == 404, path
    assert target.admin.log_head() == before
    stranger.close()


def test_a_token_that_claims_rights_gets_the_directory_s(target: Target) -> None:
    boast = {"role": "admin", "roles": ["admin"], "scope": "manage-tokens", "grants": {"manage-tokens": "all"}}
    client = type(target.admin)(str(target.admin.base_url), target.issuer.token(**boast))
    assert client.read("/v1/me")["grants"] == BUILT_IN_ROLES["agent"]
    assert client.get("/v1/tokens").status_code == 403
    assert client.send_json("POST", "/v1/sectors", {"name": "intruder"}).status_code == 403
    client.close()


def test_after_all_attacks_the_service_works(target: Target) -> None:
    assert target.admin.get("/readyz").json()["ready"]


def test_there_are_at_least_sixty_attacks() -> None:
    assert len(FORGED) + len(OWN) + len(SENT) + len(BROKEN) >= 200


# Canaries: the same forged tokens before a verifier that is weak in one place


async def accepted_by(verifier_class: type[Verifier], issuer: Issuer, trust: Trust) -> set[str]:
    """The attacks that get through; those on who it is, and where, are decided in the directory."""
    async with Keys(trust) as keys:
        verifier = verifier_class(trust, keys)
        assert await verifier.named(issuer.token().encode()) is not None
        through = {attack for attack in FORGED if await _through(verifier, FORGED[attack](issuer))}
    return through - DECIDED_IN_THE_DIRECTORY


async def _through(verifier: Verifier, token: str) -> bool:
    try:
        return await verifier.named(token.encode()) is not None
    except (KeyError, TypeError, ValueError):
        assert type(verifier) is not Verifier, "it must refuse whatever comes, never break"
        return False


DECIDED_IN_THE_DIRECTORY = {
    "of somebody unknown here",
    "of a name with a blank more",
    "of a name with SQL in it",
    "for an unknown workspace",
    "for a workspace where it is nobody",
    "for a workspace with SQL in it",
}


class AnyAlgorithm(Verifier):
    """Does what the token's header says, as libraries once did."""

    def _chosen(self, header: dict[str, Any]) -> tuple[str, str]:
        super()._chosen({**header, "alg": "RS256"})
        return str(header["alg"]), header["kid"]

    def _check_signature(self, token: bytes, key: jwt.PyJWK | None, algorithm: str) -> None:
        signed, _, signature = token.rpartition(b".")
        if algorithm.lower() == "none":
            return
        if algorithm.startswith("HS"):
            digest = hmac.digest(ISSUERS[-1].public_pem, signed, f"sha{algorithm[2:]}")
            if base64.urlsafe_b64encode(digest).rstrip(b"=") == signature:
                return
        super()._check_signature(token, key, algorithm)


ISSUERS: list[Issuer] = []


class AnyAudience(Verifier):
    def _check_signature(self, token: bytes, key: jwt.PyJWK | None, algorithm: str) -> None:
        claims = json.loads(oidc._decoded(token.split(b".")[1]))
        weak = Verifier(replace(self._trust, audience=claims.get("aud", "")), self._keys)
        weak._check_signature(token, key, algorithm)

    def _checked(self, claims: dict[str, Any]) -> oidc.Named:
        return super()._checked({**claims, "aud": self._trust.audience})


class AnyIssuer(Verifier):
    def _check_signature(self, token: bytes, key: jwt.PyJWK | None, algorithm: str) -> None:
        claims = json.loads(oidc._decoded(token.split(b".")[1]))
        weak = Verifier(replace(self._trust, issuer=claims.get("iss", "")), self._keys)
        weak._check_signature(token, key, algorithm)


class AnyType(Verifier):
    def _chosen(self, header: dict[str, Any]) -> tuple[str, str]:
        return super()._chosen({**header, "typ": "at+jwt"})


class AnyTime(Verifier):
    def _check_signature(self, token: bytes, key: jwt.PyJWK | None, algorithm: str) -> None:
        weak = Verifier(replace(self._trust, leeway_seconds=10**9), self._keys)
        weak._check_signature(token, key, algorithm)


class AnyLife(Verifier):
    def _checked(self, claims: dict[str, Any]) -> oidc.Named:
        return super()._checked({**claims, "exp": claims["iat"] + 60})


class AnyKey(Verifier):
    """Takes the key that a token brings along."""

    async def named(self, token: bytes) -> oidc.Named | None:
        try:
            header, _ = self._parts(token)
        except oidc._RefusedError:
            return None
        if not isinstance(header.get("jwk"), dict):
            return await super().named(token)
        own = Keys(self._trust)
        own._keys = {(header.get("kid", ""), "RS256"): jwt.PyJWK(header["jwk"], "RS256")}
        own._fetched_at = float("inf")
        return await Verifier(self._trust, own).named(token)


class NoSignature(Verifier):
    def _check_signature(self, token: bytes, key: jwt.PyJWK | None, algorithm: str) -> None:
        """Believe it."""


WEAK: dict[type[Verifier], str] = {
    AnyAlgorithm: "HS256 with the public key as its secret",
    AnyAudience: "for another audience",
    AnyIssuer: "of another issuer",
    AnyType: "of the type JWT, as an ID token",
    AnyTime: "expired an hour ago",
    AnyLife: "valid for a year",
    AnyKey: "its own key embedded (jwk)",
    NoSignature: "signed by a foreign RSA key under a known id",
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as found:
        ISSUERS.append(found)
        yield found


def trusting(issuer: Issuer, **more: Any) -> Trust:
    return Trust(issuer=issuer.url, audience=AUDIENCE, jwks_url=f"{issuer.url}/keys", **more)


def test_the_verifier_itself_lets_none_through(issuer: Issuer) -> None:
    assert asyncio.run(accepted_by(Verifier, issuer, trusting(issuer))) == set()


@pytest.mark.parametrize("weak", WEAK, ids=lambda weak: weak.__name__)
def test_canary_a_verifier_that_is_weak_in_one_place_lets_an_attack_through(
    issuer: Issuer, weak: type[Verifier]
) -> None:
    through = asyncio.run(accepted_by(weak, issuer, trusting(issuer)))
    assert WEAK[weak] in through
    assert weak is not AnyAlgorithm or "alg none before a genuine signature" in through


def test_canary_a_lenient_reader_of_json_lets_an_attack_through(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_once", dict)
    assert "a name twice in the claims" in asyncio.run(accepted_by(Verifier, issuer, trusting(issuer)))


def test_a_new_token_is_never_like_an_old_one(target: Target) -> None:
    body = {"name": "x", "actor": {"kind": "integration", "id": uuid4().hex}, "role": "agent"}
    found = [target.admin.ok("POST", "/v1/tokens", body)["secret"] for _ in range(20)]
    assert len(set(found)) == 20
    assert all(len(base64.urlsafe_b64decode(secret.removeprefix("cvs_") + "=")) * 8 == 256 for secret in found)
