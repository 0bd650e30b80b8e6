"""Bearer tokens of an outside issuer (OpenID Connect): whether one is genuine, and whom it names.

What is trusted is set, never read from a token: issuer, audience, type, algorithms, and where the keys are. A token
chooses among those keys by their id and that is all; what it says of other keys (jwk, jku, x5c, x5u) is not looked at.

Invariant: rights are never a token's to give: it names somebody, the directory says what they may do. No request waits
longer for keys than `FETCH_SECONDS`, and no flood of tokens has them fetched more often than every `PAUSE_SECONDS`.
"""

import asyncio
import base64
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Any, NamedTuple, Self

import httpx
import jwt

from adapters import background
from adapters.command_handler import UnavailableError
from adapters.identity import is_compact

log = logging.getLogger(__name__)

MOST_BYTES = 8_192
"""The longest token; real ones have one or two thousand bytes."""
FETCH_SECONDS = 3.0
PAUSE_SECONDS = 10.0
"""Between two fetches, whatever asks for them."""
REFRESH_SECONDS = 300.0
KEEP_SECONDS = 3_600.0
"""How long keys are trusted that could not be fetched again."""
MOST_KEYS, MOST_KEY_BYTES = 100, 262_144
SHORTEST_RSA_BITS = 2_048

_KINDS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA", None)),
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "EdDSA": ("OKP", "Ed25519"),
}
ALGORITHMS = frozenset(_KINDS)
"""What may be allowed: public keys only. A secret shared with the issuer would let each side sign for the other."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What is asked of a token."""

    issuer: str
    audience: str
    jwks_url: str | None = None
    """Where the issuer's keys are; None: where its discovery document says."""
    algorithms: frozenset[str] = frozenset({"RS256", "ES256"})
    token_type: str = "at+jwt"  # noqa: S105  # a media type
    type_required: bool = True
    """Whether a token must say its type; ID tokens of many issuers say none."""
    subject_claim: str = "sub"
    workspace_claim: str = "workspace"
    workspace: str | None = None
    """The slug of the one workspace that all tokens are for; None: the claim names it."""
    leeway_seconds: int = 30
    longest_life_seconds: int = 86_400
    not_before_required: bool = True


class Named(NamedTuple):
    """Whom a genuine token names."""

    issuer: str
    subject: str
    workspace: str
    """The workspace's slug."""
    expires_at: datetime


class Genuine(NamedTuple):
    """A genuine token."""

    named: Named
    claims: dict[str, Any]
    algorithm: str


class KeysUnavailableError(UnavailableError):
    """The issuer's keys could not be fetched: whether a token is genuine cannot be told."""


class _RefusedError(Exception):
    """Not a genuine token; the reason is for those who read the log."""


class Keys:
    """The issuer's public keys: fetched in the background, replaced as a whole, forgotten when they grow old."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._keys: dict[tuple[str, str], jwt.PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to fetch them."""
        self._refreshing = asyncio.create_task(self._refresh())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop fetching."""
        await background.end(*filter(None, (self._refreshing, self._fetching)))

    async def find(self, key_id: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of this id for this algorithm; one that is unknown may be new, so that it is looked for once.

        Raises `KeysUnavailableError` where there are no keys that could be trusted any more.
        """
        found = self._keys.get((key_id, algorithm))
        if found is None or not self._fresh():
            await self._fetch_soon()
            if not self._fresh():
                raise KeysUnavailableError("the keys of the token issuer cannot be fetched; try again in a moment")
            found = self._keys.get((key_id, algorithm))
        return found

    def _fresh(self) -> bool:
        return monotonic() - self._fetched_at < KEEP_SECONDS

    async def _refresh(self) -> None:
        while True:
            await self._fetch_soon()
            await asyncio.sleep(REFRESH_SECONDS if monotonic() - self._fetched_at < REFRESH_SECONDS else PAUSE_SECONDS)

    async def _fetch_soon(self) -> None:
        """Fetch the keys, unless that was tried a moment ago; all who ask meanwhile wait for the same answer."""
        if self._fetching is None or self._fetching.done():
            if monotonic() - self._tried_at < PAUSE_SECONDS:
                return
            self._tried_at = monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.wait({self._fetching})

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS), httpx.AsyncClient(timeout=FETCH_SECONDS) as client:
                url = self._trust.jwks_url or await self._discover(client)
                self._keys = dict(_usable(await json_at(client, url), self._trust.algorithms))
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            log.warning("the keys of %s cannot be fetched: %s", self._trust.issuer, error or type(error).__name__)
        else:
            self._fetched_at = monotonic()

    async def _discover(self, client: httpx.AsyncClient) -> str:
        return address_in(await discovered(client, self._trust.issuer), "jwks_uri")


async def discovered(client: httpx.AsyncClient, issuer: str) -> dict[str, Any]:
    """The issuer's discovery document; raises `ValueError` where it is another issuer's."""
    document = await json_at(client, f"{issuer.rstrip('/')}/.well-known/openid-configuration")
    if document.get("issuer") != issuer:
        raise ValueError("its discovery document is another issuer's")
    return document


def address_in(document: dict[str, Any], name: str) -> str:
    """The address under ``name`` in a discovery document; raises `ValueError` where there is no safe one."""
    url = document.get(name)
    if not isinstance(url, str) or not is_safe(url):
        raise ValueError(f"its discovery document names no https address as {name}")
    return url


def is_safe(url: str) -> bool:
    """Whether what comes from ``url`` cannot be changed on the way: https, or this very machine."""
    parts = httpx.URL(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.host in {"127.0.0.1", "::1", "localhost"})


async def json_at(client: httpx.AsyncClient, url: str, method: str = "GET", **sent: Any) -> dict[str, Any]:
    """The JSON object at ``url`` itself: a redirection is an error.

    Raises `httpx.HTTPError` where nobody answers or something fails there, `ValueError` for any other answer.
    """
    body = b""
    async with client.stream(method, url, headers={"Accept": "application/json"}, **sent) as response:
        if response.is_server_error:
            response.raise_for_status()
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"{url} answers {response.status_code}")
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MOST_KEY_BYTES:
                raise ValueError(f"{url} answers with more than {MOST_KEY_BYTES} bytes")
    return _object(body)


def _usable(document: dict[str, Any], algorithms: frozenset[str]) -> Iterator[tuple[tuple[str, str], jwt.PyJWK]]:
    """The keys for signatures, by id and algorithm; an id that two keys share is nobody's."""
    listed = document.get("keys")
    if not isinstance(listed, list) or len(listed) > MOST_KEYS:
        raise ValueError(f"no list of at most {MOST_KEYS} keys")
    keys = [key for key in listed if isinstance(key, dict) and isinstance(key.get("kid"), str)]
    times = Counter(key["kid"] for key in keys)
    for key in keys:
        if times[key["kid"]] > 1 or key.get("use", "sig") != "sig":
            continue
        for algorithm in algorithms:
            if (key.get("kty"), key.get("crv")) == _KINDS[algorithm] and key.get("alg", algorithm) == algorithm:
                with suppress(jwt.PyJWTError, ValueError, TypeError):  # one broken key spoils none of the others
                    found = jwt.PyJWK(key, algorithm)
                    if getattr(found.key, "key_size", SHORTEST_RSA_BITS) >= SHORTEST_RSA_BITS or key["kty"] != "RSA":
                        yield (key["kid"], algorithm), found


class Verifier:
    """Tells genuine tokens from all others."""

    def __init__(self, trust: Trust, keys: Keys) -> None:
        self._trust = trust
        self._keys = keys

    async def named(self, token: bytes) -> Named | None:
        """Whom ``token`` names; None where it is not genuine, not for us, or not valid now.

        Raises `KeysUnavailableError`.
        """
        found = await self.genuine(token)
        return None if found is None else found.named

    async def genuine(self, token: bytes) -> Genuine | None:
        """As `named`, with all that the token says."""
        try:
            header, claims = self._parts(token)
            algorithm, key_id = self._chosen(header)
            self._check_signature(token, await self._keys.find(key_id, algorithm), algorithm)
            return Genuine(self._checked(claims), claims, algorithm)
        except _RefusedError as refused:
            log.debug("a token was refused: %s", refused)
            return None

    def _parts(self, token: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
        """Header and claims; both written in the one way in which they can be, so that all readers agree on them."""
        if len(token) > MOST_BYTES or not is_compact(token):
            raise _RefusedError("it is not a signed token in compact form, or too long")
        try:
            header, claims, _ = map(_decoded, token.split(b"."))
            return _object(header), _object(claims)
        except ValueError as error:
            raise _RefusedError(str(error)) from None

    def _chosen(self, header: dict[str, Any]) -> tuple[str, str]:
        """The algorithm, of those allowed, and the key's id."""
        algorithm, key_id, type_ = header.get("alg"), header.get("kid"), header.get("typ")
        if not isinstance(algorithm, str) or algorithm not in self._trust.algorithms:
            raise _RefusedError("its algorithm is not allowed")
        if not isinstance(key_id, str):
            raise _RefusedError("it names no key")
        if not self._is_of_type(type_):
            raise _RefusedError("it is of another type")
        if "crit" in header or "b64" in header:
            raise _RefusedError("it demands extensions that are not known here")
        return algorithm, key_id

    def _is_of_type(self, type_: object) -> bool:
        if type_ is None:
            return not self._trust.type_required
        wanted = self._trust.token_type.lower()
        return isinstance(type_, str) and type_.lower().removeprefix("application/") == wanted

    def _check_signature(self, token: bytes, key: jwt.PyJWK | None, algorithm: str) -> None:
        if key is None:
            raise _RefusedError("no key of the issuer has its key id")
        try:
            jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._trust.audience,
                issuer=self._trust.issuer,
                leeway=self._trust.leeway_seconds,
                options={"require": self._required(), "verify_sub": False, "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _RefusedError(str(error)) from None

    def _required(self) -> list[str]:
        always = ["exp", "iat", "iss", "aud", self._trust.subject_claim]
        return [*always, "nbf"] if self._trust.not_before_required else always

    def _checked(self, claims: dict[str, Any]) -> Named:
        """Whom the claims name, once they are as strict as the standard lets issuers be."""
        times = {name: claims[name] for name in ("exp", "iat", "nbf") if name in claims}
        if any(type(moment) is not int or moment < 0 for moment in times.values()):
            raise _RefusedError("a time is not a whole number of seconds")
        if not 0 < times["exp"] - times["iat"] <= self._trust.longest_life_seconds:
            raise _RefusedError("it is valid for longer than is allowed")
        if claims["aud"] not in (self._trust.audience, [self._trust.audience]):
            raise _RefusedError("it is for others as well, who could use it here")
        subject = claims[self._trust.subject_claim]
        if self._trust.subject_claim == "email" and claims.get("email_verified") is not True:
            raise _RefusedError("its e-mail address is not verified")
        workspace = self._trust.workspace or claims.get(self._trust.workspace_claim)
        if not isinstance(subject, str) or not subject or not isinstance(workspace, str):
            raise _RefusedError("it names nobody, or no workspace")
        if not (subject + workspace).isascii() or not (subject + workspace).isprintable():
            raise _RefusedError("a name in it cannot be one of ours")
        until = datetime.fromtimestamp(times["exp"] + self._trust.leeway_seconds, UTC)
        return Named(self._trust.issuer, subject, workspace, until)


def _decoded(part: bytes) -> bytes:
    decoded = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(decoded).rstrip(b"=") != part:
        raise ValueError("a part of it is not written as base64url has it")
    return decoded


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object in ``text``, without doubt: no name twice, no numbers that are none.

    Raises `ValueError`.
    """
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004  # a value of a text, not an argument's type
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")
