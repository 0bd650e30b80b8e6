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
    page.wait_for_function("sessionStorage.getItem('listing')?.includes('status=pending')")
    page.get_by_role("button", name=said["sign out"]).click()
    expect(page).to_have_title(re.compile(said["sign in"]))
    page.wait_for_function("sessionStorage.length === 0")  # what they looked at is theirs
    guest.go("/")
    expect(page).to_have_title(re.compile(said["sign in"]))


@pytest.mark.parametrize("scripts", [True, False], ids=["with scripts", "without"])
def test_mistakes_are_told_in_the_pages_language_whatever_the_browser_speaks(
    visit: Any, a_conversation: Any, scripts: bool
) -> None:
    conversation, guest = a_conversation("pending"), visit("en", java_script_enabled=scripts)
    page = guest.go("/sign-in")
    page.get_by_role("button", name="Português").click()
    page.get_by_role("button", name="Entrar").click()
    expect(page.locator("#token-mistake")).to_have_text("Cole o seu token de acesso.")
    guest.sign_in(ADMIN_TOKEN)
    guest.go(f"/conversations/{conversation.id}")
    page.get_by_role("button", name="Adicionar").click()
    expect(page.locator("#label-mistake")).to_contain_text("letras minúsculas")
    page.get_by_role("link", name="Transferir").click()
    page.get_by_label("Motivo").fill("troca")
    page.get_by_role("button", name="Transferir").click()
    expect(page.locator("#target-mistake")).to_have_text("Escolha um setor ou um atendente.")
    expect(page.get_by_label("Motivo")).to_have_value("troca")
    guest.go("/history")
    if not scripts:
        page.locator("#occurred_from").fill("23/11")
        page.get_by_role("button", name="Buscar").click()
        expect(page.locator("#occurred_from-mistake")).to_contain_text("Informe data e hora")
        expect(page.locator("#occurred_from")).to_have_value("23/11")


def test_a_date_that_is_given_by_half_is_told_beside_it_and_stays(visit: Any) -> None:
    guest, half = visit("en", ADMIN_TOKEN), "document.activeElement.validity.badInput"
    page = guest.go("/history")
    page.get_by_role("button", name="Português").click()
    expect(page.locator("html[lang=pt-BR] #occurred_from")).to_have_attribute("type", "datetime-local")
    page.locator("#occurred_from").press_sequentially("11")
    page.keyboard.press("Enter")
    expect(page.locator("#half-occurred_from")).to_contain_text("Incompleto")
    expect(page.locator("#occurred_from")).to_have_attribute("aria-describedby", "half-occurred_from")
    assert page.evaluate(half)
    guest.check()
    page.keyboard.type("232025")
    page.keyboard.press("ArrowRight")
    page.keyboard.type("0230PM")
    expect(page.locator("#half-occurred_from")).to_have_count(0)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("occurred_from=2025-11-23T14%3A30"))
    guest.go("/")
    page.locator("#menu-period summary").click()
    page.locator("#bar-opened_from").press_sequentially("11")
    page.locator("#menu-period summary").focus()
    expect(page.locator("#half-bar-opened_from")).to_be_visible()
    page.locator("#bar-opened_until").fill("2020-01-01T00:00")
    expect(page.locator(".none")).to_be_visible()
    expect(page.locator("#half-bar-opened_from")).to_be_visible()
    page.locator("#bar-opened_from").focus()
    assert page.evaluate(half)


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
