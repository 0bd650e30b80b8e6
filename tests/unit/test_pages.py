"""What must be true of all pages, whoever adds one."""

import asyncio
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from babel.messages.extract import extract_from_dir
from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request

from adapters.command_handler import UnavailableError
from api import languages
from api.app import create_app
from api.languages import translations
from api.pages import page as page_module
from api.pages.asking import RefusedError
from api.pages.formats import Formats
from api.pages.forms import said
from api.pages.listing_state import state_of
from api.pages.page import Here, Page, PageRoute, anybody, error_page, ours, page_router, signed_in
from api.pages.texts import REFUSALS
from api.sentences import Speech
from api.sessions import Sessions
from api.settings import Settings
from domain.errors import DomainError

ROOT = Path(__file__).parents[2]
FOR_ANYBODY = {"/sign-in", "/sign-in/oidc", "/sign-in/oidc/callback", "/sign-out", "/language"}
WORDS: dict[str, Any] = {"_": None, "N_": None, "gettext": None, "text": None, "ngettext": (1, 2)}


def messages() -> set[str]:
    """All texts of the pages, in English; of those that count, the singular."""
    methods = [("**.py", "python"), ("**.html", "jinja2.ext:babel_extract")]
    options = {"**.html": {"trimmed": "true", "newstyle_gettext": "true", "silent": "false"}}
    found = extract_from_dir(ROOT / "api" / "pages", methods, options, keywords=WORDS)
    return {message if isinstance(message, str) else message[0] for _, _, message, _, _ in found}


def untranslated(found: set[str]) -> list[str]:
    portuguese: Any = translations("pt")
    return sorted(message for message in found if not {message, (message, 0)} & portuguese._catalog.keys())


def test_every_text_of_the_pages_is_there_in_portuguese() -> None:
    found = messages()
    assert len(found) > 70
    assert untranslated(found) == []


def test_canary_a_text_that_nobody_translated_is_found() -> None:
    assert untranslated({"Sign in", "Nobody translated this"}) == ["Nobody translated this"]


def test_no_translation_is_left_over_from_a_text_that_is_gone() -> None:
    for name in ("page.po", "listing.po"):
        text = (languages._CATALOGUES / "pt" / "LC_MESSAGES" / name).read_text()
        there = {
            line.removeprefix('msgid "')[:-1].replace('\\"', '"') for line in text.splitlines() if 'msgid "' in line
        }
        assert there - messages() - {""} == set(), name


def below(kind: type[DomainError]) -> set[type[DomainError]]:
    return {kind}.union(*(below(sub) for sub in kind.__subclasses__()))


def test_every_refusal_is_told_in_peoples_words() -> None:
    assert {error.code for error in below(DomainError) if "code" in vars(error)} - REFUSALS.keys() == set()


def asks_for_a_session(dependant: Dependant) -> bool:
    return any(each.call is signed_in or asks_for_a_session(each) for each in dependant.dependencies)


def unguarded(app: FastAPI) -> set[str]:
    """Pages that nobody has to sign in for."""
    routes = [context.original_route for context in iter_route_contexts(app.routes)]
    pages = [route for route in routes if isinstance(route, PageRoute)]
    return {route.path for route in pages if not asks_for_a_session(route.dependant)}


def test_every_page_is_for_who_has_signed_in() -> None:
    assert unguarded(create_app(Settings(), "postgresql://nowhere")) == FOR_ANYBODY


def test_canary_a_page_that_forgets_is_found() -> None:
    router: APIRouter = page_router()

    @router.get("/open")
    async def open_to_all() -> None:
        """Ask for nobody."""

    @router.get("/closed")
    async def closed(page: Here) -> None:
        """Ask for a session."""

    app = FastAPI()
    app.include_router(router)
    assert unguarded(app) == {"/open"}


@pytest.mark.parametrize(
    ("address", "is_ours"),
    [
        *((address, True) for address in ("/", "/?q=a b", "/conversations/1", "/?next=https://x.example")),
        *((address, False) for address in ("", "x", "//x.example", "https://x.example", "/\\x.example", "/\t/x")),
        *((address, False) for address in ("//[", "https://[", "//℀.example", "/\ud800", "/\u202ex", "/\u2028")),
    ],
)
def test_only_addresses_of_this_site_are_gone_to(address: str, is_ours: bool) -> None:
    assert ours(address) == (address if is_ours else "/")


def test_filters_that_the_api_would_not_take_are_refused_before_they_are_kept() -> None:
    formats = Formats("pt", ZoneInfo("America/Sao_Paulo"))
    for query in ("label=N%C3%A3o!", "status=..", "opened_from=ontem", "filter=%5B", "sector=x"):
        with pytest.raises(RequestValidationError):
            state_of(QueryParams(query), formats).filter_json()


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59.999999-23:59"])
def test_a_moment_at_the_end_of_the_calendar_is_shown(moment: str) -> None:
    for zone in ("America/Sao_Paulo", "Asia/Tokyo"):
        formats = Formats("pt", ZoneInfo(zone))
        said_ = Speech("pt", ZoneInfo(zone)).when(datetime.fromisoformat(moment))
        for shown in (
            formats.exactly(moment),
            formats.date(moment),
            formats.moment(moment),
            formats.local(moment),
            said_,
        ):
            assert moment[:4].lstrip("0") in shown


def asked(method: str) -> Request:
    """A request whose body never comes."""
    app = FastAPI()
    app.state.sessions, app.state.identity = Sessions(Settings()), None
    headers = [(b"content-type", b"application/x-www-form-urlencoded"), (b"accept-language", b"en")]
    scope = {"type": "http", "method": method, "path": "/views", "query_string": b"", "headers": headers, "app": app}

    async def receive() -> Any:
        await asyncio.Event().wait()

    return Request(scope, receive)


def test_a_form_that_does_not_come_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "BODY_SECONDS", 0.01)
    with pytest.raises(HTTPException) as refused:
        asyncio.run(anybody(asked("POST")))
    assert refused.value.status_code == 408


def test_who_sent_a_form_is_not_told_that_it_is_sent_again_by_itself() -> None:
    away = UnavailableError("the database cannot be reached")
    pages = {method: asyncio.run(error_page(asked(method), away)).body.decode() for method in ("GET", "POST")}
    assert "by itself" in pages["GET"]
    assert "http-equiv" in pages["GET"]
    assert "once more" in pages["POST"]
    assert "http-equiv" not in pages["POST"]
    page = Page(asked("POST"), "en")
    assert "send it again" in said(page, RefusedError(503, {"code": "overloaded"}))


def test_no_template_holds_a_script_or_style_and_none_shows_a_text_unescaped() -> None:
    for path in (ROOT / "api" / "pages" / "templates").glob("*.html"):
        text = path.read_text()
        for forbidden in ("<style", " style=", " onclick", "|safe", "| safe", "autoescape false", "javascript:"):
            assert forbidden not in text, (path.name, forbidden)
        assert text.count("<script") == text.count('<script type="module" src='), path.name


FORM = re.compile(r"<form\b[^>]*>")
READ_BY_BROWSERS = re.compile(r'\btype="(?:date|datetime-local|month|week|time|number|email|url|color)"')


def checked_by_browsers(text: str) -> list[str]:
    """What would be told by a browser, in its own language, instead of by us; what it cannot read it would not send."""
    return [each for each in FORM.findall(text) if " novalidate" not in each] + READ_BY_BROWSERS.findall(text)


def test_no_form_is_checked_by_the_browser() -> None:
    texts = [path.read_text() for path in (ROOT / "api" / "pages" / "templates").glob("*.html")]
    assert sum(len(FORM.findall(text)) for text in texts) > 20
    assert [checked_by_browsers(text) for text in texts if checked_by_browsers(text)] == []
    for path in (ROOT / "api" / "pages" / "static").glob("*.js"):
        for maker in ("<form", '"form")', "reportValidity", "noValidate = false"):
            assert maker not in path.read_text(), path.name


def test_canary_a_form_that_the_browser_checks_is_found() -> None:
    assert checked_by_browsers('<form method="post" action="/views"><input type="date">') == [
        '<form method="post" action="/views">',
        'type="date"',
    ]
    assert checked_by_browsers('<form novalidate method="post" action="/views"><input data-picker="date">') == []


def test_pages_have_no_queries_of_their_own() -> None:
    for path in (ROOT / "api" / "pages").glob("*.py"):
        text = path.read_text()
        assert "select " not in text, path.name
        assert "psycopg" not in text, path.name
