"""What every page has: who signed in, in which language and zone; asking the API; rendering; errors; forms.

Invariant: nothing is shown to who has not signed in, and nothing is changed but by a form of ours: another site's
request, or a form without the session's token, is refused before a page's own code runs.
"""

import asyncio
import gzip
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from uuid import NAMESPACE_URL, uuid4, uuid5

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.datastructures import FormData, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from adapters.identity import Identity
from api import problems
from api.access import BODY_SECONDS
from api.languages import LANGUAGES, Language, language_of, translations
from api.pages import statics
from api.pages.asking import Query, RefusedError, ask
from api.pages.formats import Formats, zone_named
from api.pages.texts import COME_AGAIN, N_, REFUSALS, STATUSES, WHAT_WENT_WRONG
from api.problems import UnauthenticatedError
from api.sessions import Session, Sessions, cookie_session
from domain.permissions import Caller, Permission, may

log = logging.getLogger(__name__)

LANGUAGE_COOKIE, ZONE_COOKIE = "__Host-conversas-language", "conversas-zone"
FORM_TOKEN = "form-token"  # noqa: S105  # the name of a field
MOST_FIELDS = 12_000
_FORMS = "application/x-www-form-urlencoded"
"""How our forms are sent. Nothing else is read: in other ways a form may say in which encoding it is, UTF-7 as well."""
LONGEST_NEXT = 20_000
"""The longest address to go on to after signing in."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
    "Vary": "Cookie, Accept-Language, Accept-Encoding",
}
NAVIGATION: tuple[tuple[str, str, Permission], ...] = (
    ("/", N_("Conversations"), Permission.VIEW),
    ("/overview", N_("Overview"), Permission.VIEW),
    ("/history", N_("History"), Permission.READ_HISTORY),
    ("/contacts", N_("Contacts"), Permission.VIEW_CONTACT),
)
"""Address, name and what it takes to see it; a page below an address belongs to it."""


_SEND_ONCE_MORE = N_("Wait a few seconds, then send this page once more: what you typed stays, and is done once.")
_OF_THE_LISTING = ("/conversations/", "/filter", "/views", "/bulk")


class OtherSiteError(Exception):
    """A form that is none of ours, or of another session."""


@dataclass
class Page:
    """One request for a page."""

    request: Request
    language: Language
    session: Session | None = None
    caller: Caller | None = None
    form: FormData = field(default_factory=FormData)
    _version: int | None = None
    """At which version what a form is about turned out to be."""

    @cached_property
    def formats(self) -> Formats:
        """How times and numbers are shown."""
        return Formats(self.language, zone_named(self.request.cookies.get(ZONE_COOKIE)))

    def text(self, message: str, **values: Any) -> str:
        """``message`` in the page's language."""
        said = translations(self.language).gettext(message)
        return said % values if values else said

    def may(self, permission: Permission) -> bool:
        """Whether whoever signed in was granted ``permission``, however far it reaches."""
        return self.caller is not None and may(self.caller, permission)

    async def get(self, path: str, query: Query = ()) -> Any:
        """What the API answers to a query; raises `RefusedError`."""
        return await ask(self.request, self._signed_in, "GET", path, query)

    async def send(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """What the API answers to a command, which counts as from the listing unless ``Surface`` says otherwise.

        However often a form is sent, it happens once; and only to what the form showed.
        """
        surface = {"Surface": "listing"} if path.startswith("/v1/conversations/") else {}
        sent = surface | self._as_the_form_was(method, path, body) | headers
        try:
            return await ask(self.request, self._signed_in, method, path, body=body, headers=sent)
        except RefusedError as error:
            self._version = error.problem.get("version")
            raise

    def _as_the_form_was(self, method: str, path: str, body: Any) -> dict[str, str]:
        """The version that the form showed, and a key that is the same whenever it is sent with the same contents."""
        version, once = (str(self.form.get(name, "")) for name in ("version", "once"))
        found = {"If-Match": f'"{version}"'} if version else {}
        if version or once:
            said = orjson.dumps([str(self._signed_in.token_id), version, once, method, path, body])
            found["Idempotency-Key"] = str(uuid5(NAMESPACE_URL, said.decode()))
        return found

    @property
    def _signed_in(self) -> Session:
        if self.session is None:
            raise UnauthenticatedError
        return self.session

    def render(self, template: str, status: int = 200, **context: Any) -> Response:
        """A page made of ``template``."""
        html = _environment(self.language).get_template(template).render(page=self, f=self.formats, **context).encode()
        headers = HEADERS
        if statics.takes_gzip(self.request):
            html, headers = gzip.compress(html, 1, mtime=0), HEADERS | {"Content-Encoding": "gzip"}
        return Response(html, status, headers, "text/html; charset=utf-8")

    def go_to(self, address: str) -> Response:
        """On to another page of ours."""
        return RedirectResponse(ours(address), 303, HEADERS)

    # What the templates ask

    @property
    def form_field(self) -> Markup:
        """What every form that changes something contains."""
        sessions: Sessions = self.request.app.state.sessions
        token = sessions.form_token(self.session) if self.session else ""
        return Markup('<input type="hidden" name="{}" value="{}">').format(FORM_TOKEN, token)

    def form_of(self, version: int | str) -> Markup:
        """As `form_field`, for acting on what is shown at ``version``; after a conflict, at the one that it told of."""
        hidden = Markup('{}<input type="hidden" name="version" value="{}">')
        return hidden.format(self.form_field, self._version or version)

    @property
    def form_once(self) -> Markup:
        """As `form_field`, for making something that has no version yet."""
        return Markup('{}<input type="hidden" name="once" value="{}">').format(self.form_field, uuid4())

    @property
    def navigation(self) -> list[dict[str, Any]]:
        """Where one can go."""
        here = self.request.url.path
        first = here == "/" or here.startswith(_OF_THE_LISTING)
        return [
            {
                "address": address,
                "name": name,
                "current": first if address == "/" else here.startswith(address),
            }
            for address, name, permission in NAVIGATION
            if self.may(permission)
        ]

    @property
    def other_languages(self) -> list[Language]:
        """The languages that it could be in as well."""
        return [language for language in LANGUAGES if language != self.language]

    @property
    def here(self) -> str:
        """The address of this page, for coming back to it."""
        if self.request.method != "GET" or self.request.url.path.startswith("/sign-in/"):
            return "/"
        return self.request.url.path + (f"?{self.request.url.query}" if self.request.url.query else "")


def ours(address: str) -> str:
    """``address``, if it is one of this site; else the first page's."""
    is_ours = address.startswith("/") and not address.startswith("//") and "\\" not in address
    return address if is_ours and address.isprintable() else "/"


def link(path: str, query: Query = ()) -> str:
    """An address with a query."""
    written = urlencode(query, doseq=True, quote_via=quote)
    return f"{path}?{written}" if written else path


@cache
def _environment(language: Language) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    environment.install_gettext_translations(translations(language), newstyle=True)  # type: ignore[attr-defined]
    environment.globals |= {"static": statics.address, "link": link, "_": _speaker(language)}
    environment.policies["ext.i18n.trimmed"] = True
    return environment


def _speaker(language: Language) -> Callable[..., Markup]:
    """As Jinja's own ``_``, at a tenth of its cost: a page says some hundred short texts that hold no values."""
    gettext = translations(language).gettext

    @lru_cache(maxsize=2_000)
    def plain(message: str) -> Markup:
        return Markup(gettext(message)) % {}  # noqa: S704  # as Jinja has it: translations are ours

    def say(message: str, **values: Any) -> Markup:
        return Markup(gettext(message)) % values if values else plain(message)  # noqa: S704  # the same

    return say


# From a request to a page


def language_for(request: Request) -> Language:
    """The language that was chosen, else the one that the browser asks for."""
    chosen = request.cookies.get(LANGUAGE_COOKIE)
    return next((each for each in LANGUAGES if each == chosen), language_of(request.headers.get("accept-language")))


async def anybody(request: Request) -> Page:
    """A page that needs nobody to have signed in; who they are is known where they have."""
    session = cookie_session(request)
    identity: Identity = request.app.state.identity
    caller = await identity.of_session(session.workspace_id, session.token_id, session.id) if session else None
    page = Page(request, language_for(request), session if caller else None, caller)
    type_ = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method != "GET" and type_ == _FORMS:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                page.form = await request.form(max_fields=MOST_FIELDS)
        except TimeoutError:
            raise HTTPException(408) from None
    return page


async def signed_in(page: Annotated[Page, Depends(anybody)]) -> Page:
    """A page for who has signed in; what changes something brings the session's token along."""
    if page.session is None:
        raise UnauthenticatedError
    if page.request.method != "GET":
        sessions: Sessions = page.request.app.state.sessions
        given = str(page.form.get(FORM_TOKEN, ""))
        if not sessions.is_form_token(page.session, given):
            raise OtherSiteError
    return page


Anybody = Annotated[Page, Depends(anybody)]
Here = Annotated[Page, Depends(signed_in)]
"""What a page's handler takes."""


class PageRoute(APIRoute):
    """A route that answers errors with a page, and takes forms from this site only."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What is run for a request."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                if request.method != "GET" and not _from_this_site(request):
                    raise OtherSiteError  # noqa: TRY301  # one place tells what went wrong
                return await handle(request)
            except Exception as error:  # noqa: BLE001  # every class of error has its page, a bug as well
                return await error_page(request, error)

        return handler


def _from_this_site(request: Request) -> bool:
    """Browsers say where a request comes from; one that says nothing at all is none that another site made."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    origin, host = request.headers.get("origin"), request.headers.get("host")
    return origin is None or origin in {f"http://{host}", f"https://{host}"}


def page_router() -> APIRouter:
    """A router for pages: they are no part of the API's description."""
    return APIRouter(route_class=PageRoute, include_in_schema=False)


# Errors


async def error_page(request: Request, error: Exception) -> Response:
    """What went wrong, as a page; who has not signed in is asked to."""
    if isinstance(error, UnauthenticatedError) or (isinstance(error, RefusedError) and error.status == 401):
        if request.method == "GET":
            page = Page(request, language_for(request))
            return page.go_to(link("/sign-in", {"next": page.here if len(page.here) <= LONGEST_NEXT else "/"}))
        status, code = 401, "unauthenticated"
    elif isinstance(error, OtherSiteError):
        status, code = 403, "other-site"
    elif isinstance(error, RefusedError):
        status, code = error.status, error.code
    else:
        answer = await problems.answer_to(request, error)
        status, code = answer.status_code, orjson.loads(bytes(answer.body)).get("code", "")
    try:
        page = await anybody(request) if request.method == "GET" else Page(request, language_for(request))
    except Exception as again:  # noqa: BLE001  # it is told of the first error, with or without who asks
        log.info("an error's page without who asked: %s", again)
        page = Page(request, language_for(request))
    title, detail = page.text(STATUSES.get(status, WHAT_WENT_WRONG)), refusal(page, code)
    if request.method != "GET" and code in COME_AGAIN:
        detail = page.text(_SEND_ONCE_MORE)
    answer = page.render("error.html", status, title=title, number=status, detail=detail)
    if status == 503:
        answer.headers["Retry-After"] = "3"
    return answer


def refusal(page: Page, code: str) -> str:
    """Why the API refused, in the page's language; nothing where the title says it all."""
    return page.text(REFUSALS[code]) if code in REFUSALS else ""


def is_for_people(request: Request) -> bool:
    """Whether an address that is not there was asked for by somebody at a browser, not by a client of the API."""
    accepted = request.headers.get("accept", "")
    return "text/html" in accepted and not request.url.path.startswith("/v1/")


def with_headers(answer: Response, headers: Mapping[str, str]) -> Response:
    """``answer`` with more headers."""
    MutableHeaders(raw=answer.raw_headers).update(headers)
    return answer
