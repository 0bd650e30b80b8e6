"""Sessions of the pages: who signed in, kept by their browser in a signed cookie.

A session names the access token that opened it, or an outside issuer's identity, and holds no secret: every request
looks that up anew, so that what is revoked, unlinked or signed out ends as fast as an access token does.

Invariant: without the key nobody makes a session. Beyond its end it opens nothing, and alone, it changes nothing:
by the cookie the API is only read, and only by pages of ours. A sign-in elsewhere is its browser's: what is sent along
is made of the id in its cookie, with the key.
"""

import base64
import hmac
import logging
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

import jwt
from starlette.requests import Request

from adapters.command_handler import UnavailableError
from api.settings import PREFIX, Settings

log = logging.getLogger(__name__)

COOKIE = "__Host-conversas-session"
IN_PROCESS = "conversas.session"
"""Where in a request's scope a page that asks the API says for which session; nobody outside can write there."""
LIFE = timedelta(hours=12)
_FILE = "session-key"
_AUDIENCE, _ALGORITHM = "conversas-pages", "HS256"
ATTEMPT_COOKIE = "__Host-conversas-sign-in-"
"""What the name of a sign-in's cookie begins with: each has one of its own, so that several can be under way."""
ATTEMPT_LIFE = timedelta(minutes=10)
_ATTEMPTS = "conversas-sign-in"
_NONCE = 32
"""Characters of a form token that differ each time."""


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody signed in."""

    workspace_id: UUID
    token_id: UUID
    id: str
    expires_at: datetime
    is_outside: bool = False
    """Whether they signed in at an outside issuer, where they may want to be signed out as well."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Somebody who is away signing in at an outside issuer."""

    id: str
    next: str
    """The address to go on to."""
    expires_at: datetime

    @property
    def cookie(self) -> str:
        """The name of its cookie."""
        return ATTEMPT_COOKIE + self.id[:8]


class Sessions:
    """Makes sessions, and tells ours from others."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _key(self) -> str:
        return session_key(self._settings)

    def begin(
        self, workspace_id: UUID, token_id: UUID, until: datetime | None = None, *, is_outside: bool = False
    ) -> Session:
        """A session of whoever holds the token; it ends with the token, where that does."""
        end = _now() + LIFE
        return Session(workspace_id, token_id, secrets.token_urlsafe(16), min(end, until or end), is_outside)

    def sealed(self, session: Session) -> str:
        """``session`` as the cookie's value."""
        claims = {
            "ws": str(session.workspace_id),
            "sub": str(session.token_id),
            "jti": session.id,
            "exp": session.expires_at,
            "out": session.is_outside,
        }
        return self._signed(_AUDIENCE, claims)

    def opened(self, value: str | None) -> Session | None:
        """The session in a cookie's ``value``; None where there is none, or none of ours, or it is over."""
        claims = self._read(_AUDIENCE, value)
        try:
            end = datetime.fromtimestamp(claims["exp"], UTC)
            return Session(UUID(claims["ws"]), UUID(claims["sub"]), claims["jti"], end, claims.get("out") is True)
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError):
            return None

    def attempt(self, next_: str) -> Attempt:
        """The beginning of a sign-in elsewhere."""
        return Attempt(secrets.token_urlsafe(16), next_, _now() + ATTEMPT_LIFE)

    def sealed_attempt(self, attempt: Attempt) -> str:
        """``attempt`` as the cookie's value."""
        return self._signed(_ATTEMPTS, {"jti": attempt.id, "exp": attempt.expires_at, "next": attempt.next})

    def opened_attempt(self, value: str | None) -> Attempt | None:
        """The attempt in a cookie's ``value``; None where there is none, or none of ours, or it took too long."""
        claims = self._read(_ATTEMPTS, value)
        try:
            return Attempt(claims["jti"], str(claims["next"]), datetime.fromtimestamp(claims["exp"], UTC))
        except (KeyError, ValueError, TypeError, OverflowError):
            return None

    def derived(self, attempt: Attempt, purpose: str) -> str:
        """A secret of ``attempt`` that only who has the key can know: another one for each purpose, 43 characters."""
        digest = hmac.digest(self._key.encode(), f"{_ATTEMPTS} {purpose} {attempt.id}".encode(), "sha256")
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    def _signed(self, audience: str, claims: dict[str, Any]) -> str:
        return jwt.encode(claims | {"aud": audience}, self._key, _ALGORITHM)

    def _read(self, audience: str, value: str | None) -> dict[str, Any]:
        """What we signed for ``audience``; nothing where we did not, or where it is over."""
        if not value:
            return {}
        required = ["exp", "jti", "aud"]
        try:
            return jwt.decode(value, self._key, [_ALGORITHM], audience=audience, options={"require": required})
        except jwt.InvalidTokenError:
            return {}

    def form_token(self, session: Session) -> str:
        """What each form brings along, so that it is a page of ours: no other site can know it.

        It is another one each time, so that the length of a compressed page tells nothing of it (BREACH,
        CVE-2013-3587); and good in every session of a token: a form that outlives its session can be sent after signing
        in again.
        """
        nonce = secrets.token_hex(_NONCE // 2)
        return nonce + self._form_digest(session, nonce)

    def is_form_token(self, session: Session, given: str) -> bool:
        """Whether ``given`` was made by `form_token` for the same access token."""
        nonce, digest = given[:_NONCE], given[_NONCE:]
        return hmac.compare_digest(digest.encode(), self._form_digest(session, nonce).encode())

    def _form_digest(self, session: Session, nonce: str) -> str:
        said = f"{session.workspace_id} {session.token_id} {nonce}"
        return hmac.new(self._key.encode(), said.encode(), "sha256").hexdigest()


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def session_of(request: Request) -> Session | None:
    """The session that a request to the API comes from: a page's own, in this process, or a reading by its scripts."""
    asked: Session | None = request.scope.get(IN_PROCESS)
    if asked is not None:
        return asked
    # Browsers say this themselves, and no page can make them say it: another site's requests are not same-origin.
    if request.method != "GET" or request.headers.get("sec-fetch-site") != "same-origin":
        return None
    return cookie_session(request)


def cookie_session(request: Request) -> Session | None:
    """The session whose cookie came with the request."""
    sessions: Sessions = request.app.state.sessions
    return sessions.opened(request.cookies.get(COOKIE))


def session_key(settings: Settings) -> str:
    """The key in force; the first time without one, a new one in the data directory, for this user to read only.

    Raises `UnavailableError` where it can neither be read nor made.
    """
    if settings.session_key is not None:
        return settings.session_key.get_secret_value()
    path = settings.data_directory / _FILE
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_name(f".{_FILE}.{secrets.token_hex(8)}")
            with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32))
            with suppress(FileExistsError):
                os.link(whole, path)  # never over a key that another process has just made
            whole.unlink()
        if key := path.read_text().strip():
            return key
        reason = "it is empty"
    except (OSError, UnicodeDecodeError) as error:
        reason = str(error)
    log.error("no session can be signed: %s or the file %s: %s", f"{PREFIX}SESSION_KEY", path, reason)
    raise UnavailableError("No key to sign sessions with is set up here; whoever runs this has to.")
