"""Sessions of the pages: who signed in, kept by their browser in a signed cookie.

A session names the access token that opened it and holds no secret: every request looks the token up anew, so that a
revoked one ends its sessions as soon as it ends anything else.

Invariant: without the key nobody makes a session. Beyond its end it opens nothing, and alone, it changes nothing:
by the cookie the API is only read, and only by pages of ours.
"""

import hmac
import logging
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
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


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody signed in."""

    workspace_id: UUID
    token_id: UUID
    id: str
    expires_at: datetime


class Sessions:
    """Makes sessions, and tells ours from others."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _key(self) -> str:
        return session_key(self._settings)

    def begin(self, workspace_id: UUID, token_id: UUID, until: datetime | None = None) -> Session:
        """A session of whoever holds the token; it ends with the token, where that does."""
        end = datetime.now(UTC).replace(microsecond=0) + LIFE
        return Session(workspace_id, token_id, secrets.token_urlsafe(16), min(end, until or end))

    def sealed(self, session: Session) -> str:
        """``session`` as the cookie's value."""
        claims = {
            "ws": str(session.workspace_id),
            "sub": str(session.token_id),
            "jti": session.id,
            "exp": session.expires_at,
            "aud": _AUDIENCE,
        }
        return jwt.encode(claims, self._key, _ALGORITHM)

    def opened(self, value: str | None) -> Session | None:
        """The session in a cookie's ``value``; None where there is none, or none of ours, or it is over."""
        if not value:
            return None
        try:
            claims = jwt.decode(
                value, self._key, [_ALGORITHM], audience=_AUDIENCE, options={"require": ["exp", "sub", "jti", "aud"]}
            )
            end = datetime.fromtimestamp(claims["exp"], UTC)
            return Session(UUID(claims["ws"]), UUID(claims["sub"]), claims["jti"], end)
        except (jwt.InvalidTokenError, KeyError, ValueError, TypeError, AttributeError):
            return None

    def form_token(self, session: Session) -> str:
        """What each form brings along, so that it is a page of ours: no other site can know it.

        It is the same in every session of a token: a form that outlives its session can be sent after signing in again.
        """
        return hmac.new(self._key.encode(), f"{session.workspace_id} {session.token_id}".encode(), "sha256").hexdigest()


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
