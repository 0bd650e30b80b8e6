"""The pages in a real browser, on a service of their own with the demo workspace.

Invariant: one service and one browser per process; every test has a context (cookies, storage) of its own. Whatever a
test does, no page may ask another host for anything, or report an error or a breach of its policy on the console.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT, AxeResults
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from running_service import free_port, is_ready, wait_until

_SERVICE = Path(__file__).parents[1] / "acceptance" / "conftest.py"
_spec = importlib.util.spec_from_file_location("acceptance_service", _SERVICE)
assert _spec is not None
assert _spec.loader is not None
acceptance = importlib.util.module_from_spec(_spec)
sys.modules["acceptance_service"] = acceptance
_spec.loader.exec_module(acceptance)

if TYPE_CHECKING:
    Client = Any

service = acceptance.service
connect = acceptance.connect
api = acceptance.api
caller = acceptance.caller
bia = acceptance.bia
workspace = acceptance.workspace
open_conversation = acceptance.open_conversation
start_service = acceptance.start_service
a_conversation = acceptance.a_conversation
open_conversation = acceptance.open_conversation
ADMIN_TOKEN: str = acceptance.ADMIN_TOKEN
WAIT_SECONDS = 20
LANGUAGES = {"pt": "pt-BR", "en": "en-US"}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A real Chromium, without a window."""
    found = shutil.which("chromium")
    if found is None:
        reason = "Chromium is not here; install it, for example with: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=WAIT_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """Somebody at a browser."""

    def __init__(self, context: BrowserContext, url: str, others: tuple[str, ...]) -> None:
        self.context = context
        self.url = url
        self._hosts = {urlsplit(each).netloc for each in (url, *others)}
        self.complaints: list[str] = []
        context.set_default_timeout(WAIT_SECONDS * 1000)
        context.on("console", lambda message: self._hear(message.type, message.text))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.on("request", self._look)
        self.page: Page = context.new_page()

    def _hear(self, kind: str, text: str) -> None:
        # That a request failed or was refused is also written there: tests of errors cause it on purpose.
        if kind == "error" and "Failed to load resource" not in text and "net::ERR" not in text:
            self.complaints.append(text)

    def _look(self, request: Any) -> None:
        if urlsplit(request.url).netloc not in self._hosts:
            self.complaints.append(f"asked another host: {request.url}")

    def go(self, path: str) -> Page:
        """Open an address of the service."""
        self.page.goto(self.url + path)
        return self.page

    def sign_in(self, token: str) -> None:
        """Sign in as the form does, without looking at it: test_frame.py does."""
        answer = self.context.request.post(f"{self.url}/sign-in", form={"token": token}, max_redirects=0)
        assert answer.status == 303, answer.text()

    def check(self) -> None:
        """What holds for every page: axe finds nothing, no script or style stands in it, mistakes are told by us."""
        self.check_access()
        self.check_inline()
        self.check_forms()

    def check_access(self, *rules: str) -> None:
        """Axe finds nothing that keeps somebody out; by all of its rules unless some are named."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE_SCRIPT)
        options = {"resultTypes": ["violations"], "preload": False} | ({"runOnly": list(rules)} if rules else {})
        # All else that axe tells, of what is as it should be, costs more to bring here than to find out.
        found = self.page.evaluate("async (options) => [(await axe.run(options)).violations]", options)
        results = AxeResults({"violations": found[0]})
        assert results.violations_count == 0, results.generate_report()

    def check_inline(self) -> None:
        """No script or style stands in the page."""
        inline = self.page.evaluate(
            "[...document.querySelectorAll('script:not([src]), style, [style]')].map((each) => each.outerHTML)"
            ".concat([...document.querySelectorAll('*')].flatMap((each) => [...each.attributes]"
            ".filter(({name}) => name.startsWith('on')).map(({name}) => name)))"
        )
        assert inline == []

    def check_forms(self) -> None:
        """What is wrong in a form is told by us: none is checked by the browser, which speaks a language of its own."""
        checked = "[...document.forms].filter((each) => !each.noValidate).map((each) => each.outerHTML)"
        assert self.page.evaluate(checked) == []

    def check_width(self) -> None:
        """Nothing is beyond the window's edge."""
        wide = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{self.page.url} is {wide[0]} wide in a window of {wide[1]}"

    def look_at(self, *, phone: bool, dark: bool) -> None:
        """Turn to a phone, as narrow as WCAG 2.2 has it (1.4.10), or a desk; and to dark or light."""
        self.page.set_viewport_size({"width": 320 if phone else 1280, "height": 800})
        self.page.emulate_media(color_scheme="dark" if dark else "light")


Visiting = Callable[..., Visit]
Serving = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serving(service: Any) -> Serving:
    """One more process that serves the same data: ``with serving() as url``; another program, or port, may be named."""

    @contextmanager
    def serve(*program: str, port: int | None = None) -> Iterator[str]:
        port = port or free_port()
        settings = {"DATABASE_URL": service.database_url, "PORT": str(port), "LOG_LEVEL": "error"}
        environment = os.environ | {f"CONVERSAS_{name}": value for name, value in settings.items()}
        process = subprocess.Popen(
            [sys.executable, *(program or ("-m", "api", "serve"))],
            cwd=acceptance.ROOT,
            env=environment | {"PYTHONPATH": str(acceptance.ROOT)},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_ready(url), "it is served", seconds=120)
            yield url
        finally:
            process.kill()
            process.wait()

    return serve


@pytest.fixture(scope="session")
def broken(serving: Serving) -> Iterator[str]:
    """The address of the service with a fault, which the header `Break` of each request names: for canaries."""
    with serving("tests/broken_pages.py") as url:
        yield url


@contextmanager
def visiting(chromium: Browser, service: Any) -> Iterator[Visiting]:
    """Come with a browser that speaks a language; nobody may have complained by the end.

    ``others`` are the addresses of further hosts that they may go to.
    """
    visits: list[Visit] = []

    def come(
        language: str = "pt",
        token: str | None = None,
        *,
        url: str = service.url,
        others: tuple[str, ...] = (),
        **options: Any,
    ) -> Visit:
        # Colours that are on their way to others are not looked at.
        usual = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce"}
        options = usual | {"timezone_id": "America/Sao_Paulo"} | options
        visits.append(Visit(chromium.new_context(locale=LANGUAGES[language], **options), url, others))
        zone = {"name": "conversas-zone", "value": options["timezone_id"], "url": url}
        visits[-1].context.add_cookies([zone])  # as the form to sign in does
        if token is not None:
            visits[-1].sign_in(token)
        return visits[-1]

    yield come
    for each in visits:
        print("was at", each.page.url)  # noqa: T201  # shown where a test failed
        for page in each.context.pages:
            page.unroute_all(behavior="ignoreErrors")  # what a test answers itself may still be asked for
        each.context.close()
    assert [complaint for each in visits for complaint in each.complaints] == []


@pytest.fixture
def visit(chromium: Browser, service: Any) -> Iterator[Visiting]:
    """Come with a browser that speaks a language; ``visit("en", token)`` is signed in."""
    with visiting(chromium, service) as come:
        yield come


@pytest.fixture(scope="module")
def long_visit(chromium: Browser, service: Any) -> Iterator[Visiting]:
    """As `visit`, for all tests of a file: for looking at many pages."""
    with visiting(chromium, service) as come:
        yield come
