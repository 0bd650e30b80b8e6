"""What all pages have: signing in and out, languages, errors, policies."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
SAID = {
    "pt": {"sign in": "Entrar", "wrong": "não é conhecido", "sign out": "Sair", "missing": "não existe"},
    "en": {"sign in": "Sign in", "wrong": "not known here", "sign out": "Sign out", "missing": "not there"},
}


@pytest.mark.parametrize("language", ["pt", "en"])
def test_somebody_signs_in_and_out_in_their_language(visit: Any, language: str) -> None:
    said, guest = SAID[language], visit(language)
    page = guest.go("/?status=pending")
    expect(page).to_have_title(re.compile(said["sign in"]))
    guest.check()
    page.get_by_role("textbox").fill("cvs_nobody-has-this")
    page.get_by_role("button", name=said["sign in"]).click()
    expect(page.locator("#token-mistake")).to_contain_text(said["wrong"])
    expect(page.locator("#token")).to_have_attribute("aria-invalid", "true")
    guest.check()
    page.get_by_role("textbox").fill(ADMIN_TOKEN)
    page.get_by_role("button", name=said["sign in"]).click()
    expect(page).to_have_url(re.compile(r"/\?status=pending$"))
    [cookie] = [each for each in guest.context.cookies() if each["name"] == "__Host-conversas-session"]
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Lax")
    assert ADMIN_TOKEN not in cookie["value"]
    page.get_by_role("button", name=said["sign out"]).click()
    expect(page).to_have_title(re.compile(said["sign in"]))
    guest.go("/")
    expect(page).to_have_title(re.compile(said["sign in"]))


def test_the_language_is_chosen_on_any_page_and_kept(visit: Any) -> None:
    guest = visit("en", ADMIN_TOKEN)
    page = guest.go("/?status=pending")
    page.get_by_role("button", name="Português").click()
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")
    expect(page).to_have_url(re.compile(r"/\?status=pending$"))
    guest.go("/sign-in")
    expect(page.locator("html")).to_have_attribute("lang", "pt-BR")


@pytest.mark.parametrize("language", ["pt", "en"])
def test_what_is_not_there_is_told_on_a_page(visit: Any, language: str) -> None:
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go("/nowhere")
    expect(page.locator("h1")).to_contain_text(SAID[language]["missing"])
    guest.check()


def test_a_form_that_another_site_sends_changes_nothing(service: Any) -> None:
    with httpx.Client(base_url=service.url) as client:
        origins = ("https://evil.example", "null", "http://[", f"{service.url}.evil.example", f"evil{service.url}")
        for headers in ({"Sec-Fetch-Site": "cross-site"}, *({"Origin": each} for each in origins)):
            answer = client.post("/sign-in", data={"token": ADMIN_TOKEN}, headers=headers)
            assert (answer.status_code, answer.headers.get("set-cookie")) == (403, None)
        answer = client.post("/sign-in", data={"token": ADMIN_TOKEN}, headers={"Sec-Fetch-Site": "same-origin"})
        assert answer.status_code == 303


def test_by_the_cookie_the_api_is_read_by_our_pages_only_and_nothing_is_changed(service: Any) -> None:
    with httpx.Client(base_url=service.url) as client:
        cookie = client.post("/sign-in", data={"token": ADMIN_TOKEN}).headers["set-cookie"].partition(";")[0]
        same, cross = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}, {"Cookie": cookie}
        assert client.get("/v1/me", headers=same).status_code == 200
        for site in ("cross-site", "same-site", "none"):
            assert client.get("/v1/me", headers=cross | {"Sec-Fetch-Site": site}).status_code == 401
        assert client.get("/v1/me", headers=cross).status_code == 401
        assert client.post("/v1/sectors", headers=same, json={"name": "Roubado"}).status_code == 401
        assert client.post("/v1/conversations/search", headers=same, json={}).status_code == 401
        tampered = {"Cookie": cookie[:-2] + ("AA" if cookie[-2:] != "AA" else "BB"), "Sec-Fetch-Site": "same-origin"}
        assert client.get("/v1/me", headers=tampered).status_code == 401


def test_a_revoked_token_ends_its_sessions(service: Any, api: Any, caller: Any) -> None:
    client_of = caller("integration", "somebody", "supervisor")
    secret = client_of.headers["authorization"].removeprefix("Bearer ")
    with httpx.Client(base_url=service.url) as client:
        cookie = client.post("/sign-in", data={"token": secret}).headers["set-cookie"].partition(";")[0]
        headers = {"Cookie": cookie, "Sec-Fetch-Site": "same-origin"}
        assert client.get("/", headers=headers).status_code == 200
        with client.stream("GET", "/v1/conversations/stream", headers=headers) as stream:
            [token] = [each for each in api.read("/v1/tokens")["items"] if each["actor_id"] == "somebody"]
            api.ok("DELETE", f"/v1/tokens/{token['id']}")
            assert "unauthenticated" in "".join(stream.iter_text())
        assert client.get("/", headers=headers).headers["location"].startswith("/sign-in")


@pytest.mark.parametrize("address", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\nb"])
def test_after_signing_in_one_stays_on_this_site(service: Any, address: str) -> None:
    answer = httpx.post(f"{service.url}/sign-in", data={"token": ADMIN_TOKEN, "next": address})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def in_parts(content: bytes, encoding: str) -> dict[str, Any]:
    """A form as forms with files are sent, which may name an encoding."""
    parts = b'--x\r\nContent-Disposition: form-data; name="next"\r\n\r\n' + content + b"\r\n--x--\r\n"
    return {"content": parts, "headers": {"Content-Type": f"multipart/form-data; boundary=x; charset={encoding}"}}


NONSENSE: dict[str, dict[str, Any]] = {
    "no address": {"data": {"next": "//[", "language": "pt", "token": ADMIN_TOKEN}},
    "half a character": in_parts(rb"/\ud800", "unicode_escape"),
    "a name that is none": in_parts(b"xn--\xff", "punycode"),
    "bytes that are no text": {"content": b"next=%ED%A0%80%FF&token=%FF&language=%00", "headers": FORM},
    "too many fields": {"content": b"a&" * 20_000, "headers": FORM},
    "no form at all": {"content": b"\x00", "headers": {"Content-Type": "application/json"}},
    "an origin that is none": {"headers": {"Origin": "http://["}},
    "a cookie that is none": {"headers": {"Cookie": "__Host-conversas-session=eyJhIjpb.é.\x01".encode("latin-1")}},
}


@pytest.mark.parametrize("path", ["/sign-in", "/sign-out", "/language", "/views"])
@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_refused_and_is_no_bug(service: Any, path: str, what: str) -> None:
    answer = httpx.post(service.url + path, **NONSENSE[what])
    assert answer.status_code < 500
    assert answer.headers.get("location", "/").startswith("/")


def session_of(client: httpx.Client, **headers: str) -> dict[str, str]:
    """Somebody signs in; what their browser sends from then on."""
    answer = client.post("/sign-in", data={"token": ADMIN_TOKEN}, headers=headers)
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0], "Sec-Fetch-Site": "same-origin"}


def test_who_signs_in_anew_leaves_no_session_behind(service: Any) -> None:
    with httpx.Client(base_url=service.url) as client:
        before, other = session_of(client), session_of(client)
        after = session_of(client, **before)
        told = [client.get("/v1/me", headers=each).status_code for each in (before, other, after)]
        assert told == [401, 200, 200]


def test_what_is_told_to_a_session_is_kept_nowhere(service: Any, api: Any) -> None:
    with httpx.Client(base_url=service.url) as client:
        theirs = session_of(client)
        for path in ("me", "contacts", "conversations", "conversations/export", "conversations/suggestions", "nowhere"):
            for headers in (theirs, {"Authorization": f"Bearer {ADMIN_TOKEN}"}, {}):
                answer = client.get(f"/v1/{path}", headers=headers)
                kept = [answer.headers.get_list(name) for name in ("cache-control", "x-content-type-options")]
                assert kept == [["no-store"], ["nosniff"]], path


def test_pages_and_their_files_are_sent_packed_to_who_can_unpack_them(service: Any) -> None:
    with httpx.Client(base_url=service.url) as client:
        theirs = session_of(client)
        sheet = re.search(r'href="(/static/[^"]+\.css)"', client.get("/sign-in").text)
        assert sheet is not None
        for path in ("/", "/sign-in", "/nowhere", sheet[1]):
            packed, plain = (
                client.get(path, headers={**theirs, "Accept-Encoding": given, "Accept": "text/html"})
                for given in ("gzip, deflate, br", "identity")
            )
            assert (packed.headers["content-encoding"], "content-encoding" in plain.headers) == ("gzip", False)
            assert int(packed.headers["content-length"]) < int(plain.headers["content-length"])
            assert len(packed.text) == len(plain.text) > 0
            assert "Accept-Encoding" in packed.headers["vary"]
        assert "content-encoding" not in client.get("/v1/me", headers=theirs).headers  # nothing of ours hides there


def test_an_address_too_long_to_come_back_to_is_forgotten(service: Any) -> None:
    with httpx.Client(base_url=service.url, follow_redirects=True) as client:
        answer = client.get("/", params={"q": "x" * 21_000})
        assert (answer.status_code, answer.url.query) == (200, b"next=%2F")


def test_every_answer_to_a_browser_says_what_the_page_may_do(service: Any) -> None:
    html = {"Accept": "text/html"}
    for path in ("/sign-in", "/", "/nowhere"):
        policy = httpx.get(service.url + path, headers=html).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    assert httpx.get(f"{service.url}/nowhere").headers["content-type"] == "application/problem+json"
    sheet = re.search(r'href="(/static/[^"]+\.css)"', httpx.get(f"{service.url}/sign-in").text)
    assert sheet is not None
    assert "immutable" in httpx.get(service.url + sheet[1]).headers["cache-control"]
    other = re.sub(r"/static/\w+/", "/static/0/", sheet[1])
    assert httpx.get(service.url + other).headers["cache-control"] == "no-cache"
