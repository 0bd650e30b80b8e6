"""Signing in at an outside issuer: away to it, and back with what it says.

Invariant: nobody is signed in but by an answer to what this browser began, once, a few minutes ago at most; and then as
the agent to whom what the issuer says is linked.
"""

import hmac
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

from fastapi import Query
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from adapters.command_handler import UnavailableError
from adapters.identity import Identity
from api.pages.page import HEADERS, LONGEST_NEXT, Anybody, Page, page_router
from api.pages.sign_in import ask_who, begun
from api.pages.texts import N_
from api.sessions import ATTEMPT_COOKIE, ATTEMPT_LIFE, Attempt, Sessions

if TYPE_CHECKING:
    from adapters.oidc_sign_in import Secrets, SignIn

router = page_router()
LONGEST = 3_800
"""The longest value of a cookie: browsers keep none that is, with its name and all, larger than 4,096 bytes.

Those of all sign-ins under way are together no longer either: servers in between take no more than twice as much.
"""
_NOT_BEGUN = N_("This sign-in was not begun in this browser, took too long, or was used already. Begin again.")
_DECLINED = N_("You were not signed in there. Try again, or ask whoever runs it.")
_UNPROVEN = N_("What came back does not prove who you are. Begin again; if that does not help, tell an administrator.")
_AWAY = N_("It cannot be reached for the moment. Try again in a few seconds, or use an access token.")


@router.get("/sign-in/oidc")
async def go_away(page: Anybody, next: Annotated[str, Query(max_length=LONGEST_NEXT)] = "/") -> Response:
    """Send the browser to the issuer."""
    sign_in, sessions = _sign_in(page), _sessions(page)
    attempt = sessions.attempt(next)
    if len(sealed := sessions.sealed_attempt(attempt)) > LONGEST:
        attempt = sessions.attempt("/")
        sealed = sessions.sealed_attempt(attempt)
    try:
        address = await sign_in.address(_secrets(sessions, attempt))
    except UnavailableError:
        return ask_who(page, next, status=503, problem=page.text(_AWAY))
    answer = RedirectResponse(address, 303, HEADERS)
    life = int(ATTEMPT_LIFE.total_seconds())
    answer.set_cookie(attempt.cookie, sealed, max_age=life, secure=True, httponly=True, samesite="lax")
    length = len(sealed)
    for name in _under_way(page):
        length += len(page.request.cookies[name])
        if length > LONGEST:
            _forget(answer, name)
    return answer


@router.get("/sign-in/oidc/callback")
async def come_back(page: Anybody) -> Response:
    """Begin a session of whom the issuer says it is."""
    sign_in, sessions = _sign_in(page), _sessions(page)
    brought = dict(page.request.query_params)
    for name, attempt in _under_way(page).items():
        if _is_of(_secrets(sessions, attempt), brought):
            answer = await _answer(page, sign_in, attempt, brought)
            _forget(answer, name)
            return answer
    return ask_who(page, "/", status=422, problem=page.text(_NOT_BEGUN))


async def _answer(page: Page, sign_in: "SignIn", attempt: Attempt, brought: dict[str, str]) -> Response:
    sessions = _sessions(page)
    identity: Identity = page.request.app.state.identity
    is_once = len(brought) == len(page.request.query_params.multi_items())  # two readers might take different ones
    if not is_once or not await identity.end(attempt.id, attempt.expires_at):
        return ask_who(page, attempt.next, status=422, problem=page.text(_NOT_BEGUN))
    if "error" in brought:
        return ask_who(page, attempt.next, status=403, problem=page.text(_DECLINED))
    try:
        found = await sign_in.named(_secrets(sessions, attempt), brought)
    except UnavailableError:
        return ask_who(page, attempt.next, status=503, problem=page.text(_AWAY))
    if found is None:
        return ask_who(page, attempt.next, status=403, problem=page.text(_UNPROVEN))
    caller = await identity.of_identity(found.named)
    if caller is None or caller.token_id is None:
        return page.render("not_linked.html", 403, named=found.named, host=sign_in.host)
    until = datetime.fromtimestamp(found.claims["exp"], UTC)
    return await begun(page, sessions.begin(caller.workspace_id, caller.token_id, until, is_outside=True), attempt.next)


def _under_way(page: Page) -> dict[str, Attempt]:
    """What this browser began, latest first, by the names of the cookies."""
    held = {name: value for name, value in page.request.cookies.items() if name.startswith(ATTEMPT_COOKIE)}
    opened = ((name, _sessions(page).opened_attempt(value)) for name, value in held.items())
    found = [(name, attempt) for name, attempt in opened if attempt is not None]
    found.sort(key=lambda each: each[1].expires_at)
    return dict(reversed(found))


def _forget(answer: Response, cookie: str) -> None:
    answer.delete_cookie(cookie, secure=True, httponly=True, samesite="lax")


def _is_of(secrets: "Secrets", brought: dict[str, str]) -> bool:
    return hmac.compare_digest(secrets.state.encode(), brought.get("state", "").encode())


def _secrets(sessions: Sessions, attempt: Attempt) -> "Secrets":
    from adapters.oidc_sign_in import Secrets  # noqa: PLC0415  # cryptography that most need not load

    return Secrets(*(sessions.derived(attempt, purpose) for purpose in ("state", "nonce", "verifier")))


def _sign_in(page: Page) -> "SignIn":
    found: SignIn | None = page.request.app.state.sign_in
    if found is None:
        raise HTTPException(404)
    return found


def _sessions(page: Page) -> Sessions:
    found: Sessions = page.request.app.state.sessions
    return found
