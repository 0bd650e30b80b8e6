"""Signing in to the pages at an outside issuer: in a real browser, and as an attacker would.

Invariant: every attack is refused, never answered 5xx, and leaves nobody signed in. Each canary weakens one place, and
then an attack gets through: so the attack does test that place.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import jwt
import pytest
import uvicorn
from oidc_issuer import AUDIENCE
from oidc_sign_in_issuer import CLIENT_ID, CLIENT_SECRET, SignInIssuer
from playwright.sync_api import expect
from sign_in_attacks import ATTACKS, ATTEMPT, CALLBACK, SESSION, SESSION_KEY, Browser, Story

from adapters import oidc, oidc_sign_in
from adapters.identity import Identity
from adapters.oidc_sign_in import SignIn
from api import settings
from api.app import create_app
from api.pages import oidc_sign_in as pages
from api.pages import page as page_module
from api.sessions import Sessions
from api.settings import Settings

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
SAID = {
    "pt": {
        "enter": "Entrar com 127.0.0.1",
        "leave": "Sair",
        "title": "Entrar",
        "unknown": "não está vinculado",
        "again": "Comece de novo",
    },
    "en": {
        "enter": "Sign in with 127.0.0.1",
        "leave": "Sign out",
        "title": "Sign in",
        "unknown": "nobody here is linked",
        "again": "Begin again",
    },
}


@pytest.fixture(scope="module")
def issuer() -> Iterator[SignInIssuer]:
    with SignInIssuer() as found:
        yield found


@pytest.fixture(autouse=True)
def _well(issuer: SignInIssuer) -> None:
    issuer.forget()


@pytest.fixture(scope="module")
def told(issuer: SignInIssuer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the service is told of the issuer."""
    secret = tmp_path_factory.mktemp("oidc") / "secret"
    secret.write_text(f"{CLIENT_SECRET}\n")
    named = {"OIDC_CLIENT_ID": CLIENT_ID, "OIDC_CLIENT_SECRET_FILE": str(secret), "OIDC_AUDIENCE": AUDIENCE}
    return named | {"OIDC_ISSUER": issuer.url, "SESSION_KEY": SESSION_KEY}


@pytest.fixture(scope="module")
def service(start_service: Any, issuer: SignInIssuer, told: dict[str, str]) -> Iterator[Any]:
    with start_service(**told) as running:
        issuer.redirect_uri = running.url + CALLBACK
        yield running


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=30) as found:
        yield found


class Directory:
    """The workspace's admin, who links people."""

    def __init__(self, client: httpx.Client, issuer: SignInIssuer) -> None:
        self._client, self._issuer = client, issuer

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        answer = self._client.request(method, f"/v1/{path}", headers=headers, json=body)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def link(self, subject: str) -> str:
        agent = str(self.ask("POST", "agents", {"name": "Íris", "role": "supervisor"})["id"])
        body = {"issuer": self._issuer.url, "subject": subject, "role": "supervisor"}
        self.ask("PUT", f"agents/{agent}/identity", body)
        while not any(each["subject"] == subject for each in self.ask("GET", "identities")["items"]):
            time.sleep(0.02)
        return agent

    def unlink(self, subject: str) -> None:
        [listed] = [each for each in self.ask("GET", "identities")["items"] if each["subject"] == subject]
        self.ask("DELETE", f"identities/{listed['id']}")


@pytest.fixture(scope="module")
def directory(client: httpx.Client, issuer: SignInIssuer) -> Directory:
    found = Directory(client, issuer)
    found.link(issuer.subject)
    return found


@pytest.fixture
def story(client: httpx.Client, issuer: SignInIssuer, directory: Directory) -> Story:
    return Story(client, issuer)


# In a browser


@pytest.mark.parametrize("language", ["pt", "en"])
def test_somebody_signs_in_at_the_issuer_and_out_of_both(
    visit: Any, issuer: SignInIssuer, directory: Directory, language: str
) -> None:
    said, guest = SAID[language], visit(language, others=(issuer.url,))
    page = guest.go("/history?event=view-saved.v1")
    guest.check()
    page.get_by_role("link", name=said["enter"]).click()
    expect(page).to_have_title("Issuer")
    page.get_by_role("link", name="It is me").click()
    expect(page).to_have_url(re.compile(r"/history\?event=view-saved\.v1$"))
    cookies = {each["name"]: each for each in guest.context.cookies()}
    assert not any(name.startswith(ATTEMPT) for name in cookies)
    cookie = cookies[SESSION]
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Lax")
    page.get_by_role("button", name=said["leave"]).click()
    expect(page.locator("h1")).to_have_text("Bye")
    asked = parse_qs(page.locator("p").inner_text().partition("?")[2])
    assert asked == {"client_id": [CLIENT_ID], "post_logout_redirect_uri": [f"{guest.url}/sign-in"]}
    guest.go("/")
    expect(page).to_have_title(re.compile(said["title"]))


@pytest.mark.parametrize("language", ["pt", "en"])
def test_who_is_not_linked_is_told_what_to_ask_for_and_who_brings_nonsense_to_begin_again(
    visit: Any, issuer: SignInIssuer, directory: Directory, language: str
) -> None:
    said, guest, before = SAID[language], visit(language, others=(issuer.url,)), issuer.subject
    issuer.subject = "<b>nobody</b> here"
    try:
        page = guest.go("/sign-in")
        page.get_by_role("link", name=said["enter"]).click()
        page.get_by_role("link", name="It is me").click()
        expect(page.locator("main")).to_contain_text(said["unknown"])
        expect(page.locator("main")).to_contain_text("<b>nobody</b> here")
        guest.check()
    finally:
        issuer.subject = before
    guest.go(f"{CALLBACK}?code=x&state=y")
    expect(page.get_by_role("alert")).to_contain_text(said["again"])
    guest.check()


# Attacks


def refused(attack: str, story: Story) -> bool:
    """Whether the attack is answered as one, and nobody is in."""
    answer = ATTACKS[attack](story)
    for _ in range(12):
        if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
            break
        time.sleep(1)  # the issuer did not answer in time, on a machine as busy as this: it is asked again in a while
        answer = ATTACKS[attack](story)
    assert answer.status_code < 500, answer.text
    assert "<script>alert" not in answer.text
    return answer.status_code in {303, 403, 405, 422} and not story.victim.is_in()


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_signs_nobody_in(story: Story, attack: str) -> None:
    assert refused(attack, story)


def test_there_are_attacks_enough_and_who_is_honest_gets_in(story: Story) -> None:
    assert len(ATTACKS) >= 50
    browser = story.signed_in()
    assert browser.is_in()
    assert not any(name.startswith(ATTEMPT) for name in browser.cookies)


@pytest.mark.parametrize(
    "address", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\nb", "/" + "x" * 3_000]
)
def test_one_comes_back_to_this_site_only(story: Story, address: str) -> None:
    brought = story.issuer.approve(story.victim.begin(address))
    assert story.back(brought).headers["location"] == "/"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80@127.0.0.1", "127.0.0.1"])
def test_the_address_to_come_back_to_is_the_setting_s(story: Story, host: str, service: Any) -> None:
    headers = {"Host": host, "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "https"}
    answer = story.client.get("/sign-in/oidc?redirect_uri=https://evil.example", headers=headers)
    assert "evil" not in answer.headers["location"]
    asked = parse_qs(urlsplit(answer.headers["location"]).query)
    assert asked["redirect_uri"] == [service.url + CALLBACK]


def test_a_sign_in_is_each_time_another_and_its_cookie_tells_no_secret(story: Story) -> None:
    seen: list[str] = []
    for _ in range(3):
        asked = parse_qs(urlsplit(story.victim.begin()).query)
        secrets = [asked[name][0] for name in ("state", "nonce", "code_challenge")]
        assert all(len(each) == 43 for each in secrets)
        seen += secrets
        cookie = story.victim.cookies[story.victim.attempt]
        claims = jwt.decode(cookie, options={"verify_signature": False})
        assert not any(each in str(claims) for each in secrets)
    assert len(set(seen)) == 9


def test_an_address_of_any_letters_leaves_a_cookie_that_browsers_keep(story: Story) -> None:
    for address in ("/?q=" + "é" * 900, "/?q=" + '"' * 1_900, "/?q=" + "x" * 1_900):
        story.victim.begin(address)
        name = story.victim.attempt
        assert len(f"{name}={story.victim.cookies[name]}") <= 4_096 - 100


def test_two_who_began_side_by_side_both_come_back_to_where_they_were(story: Story) -> None:
    first, second = (story.issuer.approve(story.victim.begin(path)) for path in ("/overview", "/history"))
    assert story.back(first).headers["location"] == "/overview"
    assert story.back(first).status_code == 422, "each of them once"
    assert story.back(second).headers["location"] == "/history"
    assert story.victim.is_in()
    assert not any(name.startswith(ATTEMPT) for name in story.victim.cookies)


def test_however_many_are_begun_their_cookies_stay_short_and_the_latest_hold(story: Story) -> None:
    for number in range(40):
        latest = story.victim.begin(f"/?q={number}{'x' * 300}")
    held = [name for name in story.victim.cookies if name.startswith(ATTEMPT)]
    assert len(held) > 2
    assert len("; ".join(f"{name}={story.victim.cookies[name]}" for name in held)) <= 4_096
    assert story.back(story.issuer.approve(latest)).status_code == 303


def test_who_signs_in_anew_leaves_no_session_behind(story: Story) -> None:
    browser = story.signed_in()
    thief = stolen(browser)
    brought = story.brought(browser)
    assert browser.get(CALLBACK, **brought).status_code == 303
    assert gone(thief)
    assert browser.is_in()


def test_a_session_ends_with_the_id_token(story: Story) -> None:
    browser = story.signed_in()
    claims = jwt.decode(browser.cookies[SESSION], options={"verify_signature": False})
    assert claims["exp"] <= int(jwt.decode(story.issuer.token(), options={"verify_signature": False})["exp"])


def gone(browser: Browser) -> bool:
    """Whether a session's cookie opens nothing within 5 s, neither pages nor the API."""

    def opens() -> bool:
        headers = {"Cookie": f"{SESSION}={browser.cookies[SESSION]}", "Sec-Fetch-Site": "same-origin"}
        return browser.is_in() or browser.client.get("/v1/me", headers=headers).status_code == 200

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not opens():
            return True
        time.sleep(0.05)
    return False


def stolen(browser: Browser) -> Browser:
    """Another browser with a copy of the session's cookie."""
    thief = Browser(browser.client)
    thief.cookies |= {SESSION: browser.cookies[SESSION]}
    assert thief.is_in()
    return thief


def test_a_stolen_cookie_opens_nothing_once_they_have_signed_out(story: Story) -> None:
    browser, other = story.signed_in(), story.signed_in()
    thief = stolen(browser)
    assert browser.send("POST", "/sign-out").status_code == 200
    assert SESSION not in browser.cookies
    assert gone(thief)
    assert other.is_in()


def test_a_live_stream_ends_when_they_sign_out(story: Story) -> None:
    browser = story.signed_in()
    headers = {"Cookie": f"{SESSION}={browser.cookies[SESSION]}", "Sec-Fetch-Site": "same-origin"}
    with browser.client.stream("GET", "/v1/conversations/stream", headers=headers) as stream:
        browser.send("POST", "/sign-out")
        assert "unauthenticated" in "".join(stream.iter_text())


def test_a_session_by_access_token_is_signed_out_as_well(story: Story) -> None:
    browser = Browser(story.client)
    browser.send("POST", "/sign-in", data={"token": ADMIN_TOKEN})
    thief = stolen(browser)
    assert browser.send("POST", "/sign-out").headers["location"] == "/sign-in"
    assert gone(thief)


def told_who_comes_again(story: Story) -> int:
    """The status that a new sign-in is answered with, once it is known who they are."""
    deadline = time.monotonic() + 10
    while True:
        browser = Browser(story.client)
        status = browser.get(CALLBACK, **story.brought(browser)).status_code
        if status != 503 or time.monotonic() > deadline:  # nobody is let in on rights that may be of before
            return status
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["unlinked", "left"])
def test_a_session_ends_when_its_agent_is_no_more(story: Story, directory: Directory, how: str) -> None:
    before, story.issuer.subject = story.issuer.subject, uuid4().hex
    try:
        agent = directory.link(story.issuer.subject)
        browser = story.signed_in()
        assert browser.is_in()
        if how == "unlinked":
            directory.unlink(story.issuer.subject)
        else:
            directory.ask("DELETE", f"agents/{agent}")
        assert gone(browser)
        assert told_who_comes_again(story) == 403
    finally:
        story.issuer.subject = before


def test_an_issuer_that_is_away_is_said_to_be(story: Story) -> None:
    brought = story.brought()
    story.issuer.mode = "down"
    answer = story.back(brought)
    assert answer.status_code == 503
    assert SESSION not in story.victim.cookies


# Without the settings; and wrong ones


def test_without_a_client_id_there_is_no_such_way_in(service: Any) -> None:
    with weak(service, {}) as found:
        assert "sign-in/oidc" not in found.get("/sign-in").text
        assert found.get("/sign-in/oidc").status_code == 404
        assert found.get(CALLBACK).status_code == 404


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({}, "OIDC_CLIENT_ID"),
        ({"OIDC_ISSUER": "https://x.example"}, "OIDC_CLIENT_ID"),
        ({"PUBLIC_URL": "https://x.example"}, "OIDC_CLIENT_ID"),
        (
            {
                "OIDC_ISSUER": "https://x.example",
                "PUBLIC_URL": "https://y.example",
                "OIDC_CLIENT_SECRET_FILE": "/nowhere",
            },
            "OIDC_CLIENT_SECRET_FILE",
        ),
        ({"PUBLIC_URL": "http://y.example", "OIDC_ISSUER": "https://x.example"}, "PUBLIC_URL"),
    ],
)
def test_a_setting_that_cannot_work_ends_the_program_with_its_name(
    variables: dict[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (variables | {"OIDC_CLIENT_ID": "x"}).items():
        monkeypatch.setenv(f"CONVERSAS_{name}", value)
    with pytest.raises(SystemExit, match=f"CONVERSAS_{named}:"):
        settings.load()


# Canaries


@contextmanager
def weak(service: Any, told: dict[str, str]) -> Iterator[httpx.Client]:
    """The application served by this process, to be weakened."""
    named = {name.lower(): value for name, value in told.items()}
    found = Settings(database_url=service.database_url, public_url=service.url, token_cache_seconds=0, **named)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        app = create_app(found, service.database_url)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_level="error"))
        serving = threading.Thread(target=server.run, args=([listener],))
        serving.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            serving.join()


@pytest.fixture(scope="module")
def patched(service: Any, told: dict[str, str]) -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch, weak(service, told) as found:
        patch.setattr(oidc, "FETCH_SECONDS", 30.0)
        patch.setattr(oidc, "PAUSE_SECONDS", 0.2)
        yield found


def nothing(*_: Any, **__: Any) -> None:
    pass


async def always(*_: Any) -> bool:
    return True


async def whoever_says(self: SignIn, secrets: Any, brought: Any, *, named: Any = SignIn.named) -> Any:
    return await named(self, secrets, {**brought, "iss": self._trust.issuer})


WEAK: dict[str, tuple[Any, str, Any]] = {
    "nonce of another sign-in": (oidc_sign_in, "_check", nothing),
    "beside another access token": (oidc_sign_in, "_check", nothing),
    "state changed": (pages, "_is_of", lambda *_: True),
    "cookie and answer once more": (Identity, "end", always),
    "from another issuer": (SignIn, "named", whoever_says),
    "the attacker's code": (Sessions, "derived", lambda _, __, purpose: f"{purpose:x<43}"),
}


@pytest.mark.parametrize("attack", WEAK)
def test_canary_a_service_that_is_weak_in_one_place_lets_an_attack_through(
    story: Story, patched: httpx.Client, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(attack, Story(patched, story.issuer))
    monkeypatch.setattr(*WEAK[attack])
    story.issuer.forget()
    assert not refused(attack, Story(patched, story.issuer))


def test_canary_a_sign_out_that_only_forgets_and_an_address_that_is_not_looked_at(
    story: Story, patched: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Identity, "end", always)
    weak_story = Story(patched, story.issuer)
    browser = weak_story.signed_in()
    thief = stolen(browser)
    browser.send("POST", "/sign-out")
    assert thief.is_in()
    monkeypatch.setattr(page_module, "ours", partial(str))
    brought = weak_story.issuer.approve(weak_story.victim.begin("https://evil.example"))
    assert weak_story.back(brought).headers["location"] == "https://evil.example"
