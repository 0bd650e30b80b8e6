"""Signing in with an access token, out again, and choosing the language.

Invariant: the token itself is kept nowhere: not in the cookie, not in the page that says it was wrong.
"""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from adapters.identity import Identity
from api.access import MOST_TOKEN_BYTES
from api.languages import LANGUAGES
from api.pages.page import LANGUAGE_COOKIE, Anybody, page_router, with_headers
from api.pages.texts import N_
from api.sessions import COOKIE, Sessions

router = page_router()
_YEAR_SECONDS = 31_536_000
_UNKNOWN_TOKEN = N_("This token is not known here, has expired, or was revoked.")
_NO_TOKEN = N_("Paste your access token.")


@router.get("/sign-in")
async def sign_in_form(page: Anybody, next: Annotated[str, Query(max_length=20_000)] = "/") -> Response:
    """Ask for a token."""
    return page.render("sign_in.html", next=next, mistake=None)


@router.post("/sign-in")
async def sign_in(page: Anybody) -> Response:
    """Begin a session of whoever holds the token."""
    secret = str(page.form.get("token", "")).strip().encode(errors="replace")
    next_ = str(page.form.get("next", "/"))
    identity: Identity = page.request.app.state.identity
    found = await identity.found(secret) if 0 < len(secret) <= MOST_TOKEN_BYTES else None
    if found is None or found[0].token_id is None:
        mistake = page.text(_UNKNOWN_TOKEN if secret else _NO_TOKEN)
        return page.render("sign_in.html", 422, next=next_, mistake=mistake)
    caller, until = found
    sessions: Sessions = page.request.app.state.sessions
    session = sessions.begin(caller.workspace_id, found[0].token_id, until)
    answer = page.go_to(next_)
    answer.set_cookie(
        COOKIE, sessions.sealed(session), expires=session.expires_at, secure=True, httponly=True, samesite="lax"
    )
    return answer


@router.post("/sign-out")
async def sign_out(page: Anybody) -> Response:
    """End the session in this browser."""
    answer = with_headers(page.go_to("/sign-in"), {"Clear-Site-Data": '"cache"'})
    answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="lax")
    return answer


@router.post("/language")
async def choose_language(page: Anybody) -> Response:
    """Speak it from now on."""
    chosen = next((each for each in LANGUAGES if each == page.form.get("language")), page.language)
    answer = page.go_to(str(page.form.get("next", "/")))
    answer.set_cookie(LANGUAGE_COOKIE, chosen, max_age=_YEAR_SECONDS, secure=True, httponly=True, samesite="lax")
    return answer
