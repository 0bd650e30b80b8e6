"""Signing in with an access token, out again, and choosing the language.

Invariant: the token itself is kept nowhere: not in the cookie, not in the page that says it was wrong. Who signed out
has, and so has who signed in anew: a copy of the cookie opens nothing any more.
"""

from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from starlette.responses import Response

from adapters.identity import Identity
from api.access import MOST_TOKEN_BYTES
from api.languages import LANGUAGES
from api.pages.page import LANGUAGE_COOKIE, LONGEST_NEXT, Anybody, Page, link, page_router, with_headers
from api.pages.texts import N_
from api.sessions import COOKIE, Session, Sessions, cookie_session

if TYPE_CHECKING:
    from adapters.oidc_sign_in import SignIn

router = page_router()
_YEAR_SECONDS = 31_536_000
_UNKNOWN_TOKEN = N_("This token is not known here, has expired, or was revoked.")
_NO_TOKEN = N_("Paste your access token.")


@router.get("/sign-in")
async def sign_in_form(page: Anybody, next: Annotated[str, Query(max_length=LONGEST_NEXT)] = "/") -> Response:
    """Ask for a token."""
    return ask_who(page, next)


def ask_who(page: Page, next_: str, mistake: str = "", *, status: int = 200, problem: str = "") -> Response:
    """The form: with what is wrong with the token, or why nobody was signed in elsewhere."""
    sign_in: SignIn | None = page.request.app.state.sign_in
    elsewhere = sign_in and link(f"{sign_in.client.home}/sign-in/oidc", {"next": next_})
    host = sign_in and sign_in.host
    return page.render(
        "sign_in.html", status, next=next_, mistake=mistake, problem=problem, elsewhere=elsewhere, host=host
    )


@router.post("/sign-in")
async def sign_in(page: Anybody) -> Response:
    """Begin a session of whoever holds the token."""
    secret = str(page.form.get("token", "")).strip().encode(errors="replace")
    next_ = str(page.form.get("next", "/"))
    identity: Identity = page.request.app.state.identity
    found = await identity.found(secret) if 0 < len(secret) <= MOST_TOKEN_BYTES else None
    if found is None or found[0].token_id is None:
        return ask_who(page, next_, page.text(_UNKNOWN_TOKEN if secret else _NO_TOKEN), status=422)
    caller, until = found
    sessions: Sessions = page.request.app.state.sessions
    return await begun(page, sessions.begin(caller.workspace_id, found[0].token_id, until), next_)


async def begun(page: Page, session: Session, next_: str) -> Response:
    """On to where they wanted to go, with the session's cookie; the one that it takes the place of is over."""
    sessions: Sessions = page.request.app.state.sessions
    if (before := cookie_session(page.request)) is not None:
        identity: Identity = page.request.app.state.identity
        await identity.end(before.id, before.expires_at)
    answer = page.go_to(next_)
    answer.set_cookie(
        COOKIE, sessions.sealed(session), expires=session.expires_at, secure=True, httponly=True, samesite="lax"
    )
    return answer


@router.post("/sign-out")
async def sign_out(page: Anybody) -> Response:
    """End the session, everywhere; at the issuer as well, where they signed in there and it can be asked for."""
    session, ending = cookie_session(page.request), None
    if session is not None:
        identity: Identity = page.request.app.state.identity
        await identity.end(session.id, session.expires_at)
        sign_in: SignIn | None = page.request.app.state.sign_in
        ending = await sign_in.ending() if sign_in is not None and session.is_outside else None
    page.session = page.caller = None
    answer = page.render("signed_out.html", ending=ending) if ending else page.go_to("/sign-in")
    answer.delete_cookie(COOKIE, secure=True, httponly=True, samesite="lax")
    return with_headers(answer, {"Clear-Site-Data": '"cache"'})


@router.post("/language")
async def choose_language(page: Anybody) -> Response:
    """Speak it from now on."""
    chosen = next((each for each in LANGUAGES if each == page.form.get("language")), page.language)
    answer = page.go_to(str(page.form.get("next", "/")))
    answer.set_cookie(LANGUAGE_COOKIE, chosen, max_age=_YEAR_SECONDS, secure=True, httponly=True, samesite="lax")
    return answer
