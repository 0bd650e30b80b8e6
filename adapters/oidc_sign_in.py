"""Signing in at an outside issuer (OpenID Connect, authorization code with PKCE): where a browser is sent, and whom
what it brings back names.

Invariant: what a browser brings back is believed only as far as the issuer says so itself, asked directly and under its
own signature, of this very sign-in. No request waits longer for the issuer than `FETCH_SECONDS`.
"""

import asyncio
import base64
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Self
from urllib.parse import quote_plus

import httpx

from adapters.command_handler import UnavailableError
from adapters.oidc import (
    FETCH_SECONDS,
    KEEP_SECONDS,
    PAUSE_SECONDS,
    REFRESH_SECONDS,
    Genuine,
    Trust,
    Verifier,
    address_in,
    discovered,
    json_at,
)

log = logging.getLogger(__name__)

MOST_EXCHANGES = 10
"""Connections to the issuer at a time; who finds none within a second is told to come again."""


@dataclass(frozen=True, slots=True)
class Client:
    """What we are to the issuer."""

    id: str
    secret: str | None
    """None: a public client, which PKCE alone protects."""
    home: str
    """Where browsers reach us, without a slash at the end."""

    @property
    def redirect_uri(self) -> str:
        """Where the issuer sends browsers back, and nowhere else."""
        return f"{self.home}/sign-in/oidc/callback"


@dataclass(frozen=True, slots=True)
class Secrets:
    """What a sign-in is recognised by: its state by us, nonce and verifier by what the issuer makes of them."""

    state: str
    nonce: str
    verifier: str


class _UnprovenError(Exception):
    """It proves nothing; the reason is for those who read the log."""


class SignIn:
    """Sends browsers to the issuer, and asks it about what they bring back."""

    def __init__(self, client: Client, trust: Trust, verifier: Verifier) -> None:
        self.client = client
        self.host = httpx.URL(trust.issuer).host
        self._trust = trust
        self._verifier = verifier
        limits = httpx.Limits(max_connections=MOST_EXCHANGES)
        self._http = httpx.AsyncClient(timeout=httpx.Timeout(FETCH_SECONDS, pool=1.0), limits=limits)
        self._document: dict[str, Any] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Nothing is asked yet."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close connections."""
        await self._http.aclose()

    async def address(self, secrets: Secrets) -> str:
        """Where to send the browser; raises `UnavailableError`."""
        challenge = hashlib.sha256(secrets.verifier.encode()).digest()
        asked = {
            "response_type": "code",
            "client_id": self.client.id,
            "redirect_uri": self.client.redirect_uri,
            "scope": "openid email" if self._trust.subject_claim == "email" else "openid",
            "state": secrets.state,
            "nonce": secrets.nonce,
            "code_challenge": _base64url(challenge),
            "code_challenge_method": "S256",
        }
        return await self._with_query("authorization_endpoint", asked)

    async def ending(self) -> str | None:
        """Where to send the browser to sign out there as well; None where there is no such address, or no answer."""
        try:
            if "end_session_endpoint" not in await self._discovered():
                return None
            back = {"client_id": self.client.id, "post_logout_redirect_uri": f"{self.client.home}/sign-in"}
            return await self._with_query("end_session_endpoint", back)
        except UnavailableError:
            return None

    async def named(self, secrets: Secrets, brought: Mapping[str, str]) -> Genuine | None:
        """Whom ``brought``, the parameters of the browser's way back, names; None where it proves nothing.

        Raises `UnavailableError`.
        """
        try:
            return await self._proven(secrets, brought)
        except _UnprovenError as error:
            log.info("a sign-in was refused: %s", error)
            return None

    async def _proven(self, secrets: Secrets, brought: Mapping[str, str]) -> Genuine:
        document = await self._discovered()
        tells_issuer = document.get("authorization_response_iss_parameter_supported") is True
        if brought.get("iss", None if tells_issuer else self._trust.issuer) != self._trust.issuer:
            raise _UnprovenError("it comes from another issuer, or does not say from which")
        try:
            told = await self._exchanged(document, brought.get("code", ""), secrets.verifier)
        except ValueError as error:
            raise _UnprovenError(f"the issuer gives nothing for the code: {error}") from None
        except (TimeoutError, httpx.HTTPError, httpx.InvalidURL) as error:
            log.warning("a code cannot be exchanged at %s: %s", self._trust.issuer, error or type(error).__name__)
            raise UnavailableError("the issuer cannot be reached; try again in a moment") from None
        found = await self._verifier.genuine(str(told.get("id_token")).encode(errors="replace"))
        if found is None:
            raise _UnprovenError("its ID token is not genuine")
        _check(secrets, found, told.get("access_token"), self.client.id)
        return found

    async def _exchanged(self, document: dict[str, Any], code: str, verifier: str) -> dict[str, Any]:
        """What the issuer gives for a code."""
        client = self.client
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": client.redirect_uri}
        form |= {"code_verifier": verifier, "client_id": client.id}
        auth = None
        if client.secret is not None:
            if "client_secret_basic" in document.get("token_endpoint_auth_methods_supported", ["client_secret_basic"]):
                del form["client_id"]
                auth = httpx.BasicAuth(quote_plus(client.id), quote_plus(client.secret))
            else:
                form["client_secret"] = client.secret
        async with asyncio.timeout(FETCH_SECONDS):
            url = address_in(document, "token_endpoint")
            return await json_at(self._http, url, "POST", data=form, auth=auth)

    async def _with_query(self, name: str, query: dict[str, str]) -> str:
        try:
            return str(httpx.URL(address_in(await self._discovered(), name)).copy_merge_params(query))
        except (ValueError, httpx.InvalidURL) as error:
            log.warning("nobody can sign in at %s: %s", self._trust.issuer, error)
            raise UnavailableError("the issuer does not say where to sign in") from None

    async def _discovered(self) -> dict[str, Any]:
        """The issuer's discovery document, a few minutes old at most; older where it cannot be fetched."""
        async with self._fetching:
            now = monotonic()
            if now - self._fetched_at > REFRESH_SECONDS and now - self._tried_at > PAUSE_SECONDS:
                self._tried_at = now
                try:
                    async with asyncio.timeout(FETCH_SECONDS):
                        self._document = await discovered(self._http, self._trust.issuer)
                    self._fetched_at = monotonic()
                except (TimeoutError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
                    log.warning("%s cannot be discovered: %s", self._trust.issuer, error or type(error).__name__)
        if monotonic() - self._fetched_at > KEEP_SECONDS:
            raise UnavailableError("the issuer cannot be reached; try again in a moment")
        return self._document


def _check(secrets: Secrets, found: Genuine, access_token: object, client_id: str) -> None:
    """Refuse a genuine ID token that is none of this sign-in, of us, or of this access token."""
    if found.claims.get("nonce") != secrets.nonce:
        raise _UnprovenError("its ID token was made for another sign-in")
    if found.claims.get("azp", client_id) != client_id:
        raise _UnprovenError("its ID token was given to another client")
    if "at_hash" in found.claims and found.claims["at_hash"] != _half_hash(str(access_token), found.algorithm):
        raise _UnprovenError("its ID token was made beside another access token")


def _half_hash(text: str, algorithm: str) -> str:
    """The left half of a hash, as `at_hash` has it: with the hash of the token's own signature."""
    digest = hashlib.new(f"sha{'512' if algorithm == 'EdDSA' else algorithm[-3:]}", text.encode()).digest()
    return _base64url(digest[: len(digest) // 2])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
