"""What holds for every page, whatever stands in it: texts are texts, layout holds, nobody is kept out, light or dark.

The pages of the world in `hostile_world` are gone through once; the canaries walk pages of a service with one fault.
"""

from __future__ import annotations

import re
from typing import Any

import hostile_world
import pytest
from campaign import CAMPAIGN, SLOW_CANARY, only_in_campaigns
from hostile_world import World
from playwright.sync_api import expect

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
PAGES = tuple(World(None, dict.fromkeys(hostile_world.KINDS, ""), dict.fromkeys(hostile_world.KINDS, "")).pages())
ALIKE = {f"{page}: {kind}" for page in ("conversation", "contact") for kind in hostile_world.KINDS if kind != "markup"}
SHOWN = "() => document.querySelector('main').textContent"
LOOKS = [(phone, dark) for dark in (False, True) for phone in (False, True)]


@pytest.fixture(scope="module")
def world(workspace: Any) -> World:
    return hostile_world.make(workspace("hostile"))


def token_of(client: Any) -> str:
    return str(client.headers["authorization"]).removeprefix("Bearer ")


def look_for(guest: Any, texts: tuple[str, ...]) -> None:
    """Each text stands in the page as text, and none of them did anything."""
    page = guest.page
    assert page.evaluate("document.title") != "owned"
    assert page.locator("[data-owned], main script, main style, main svg, main img[src='x'], iframe").count() == 0
    shown = page.evaluate(SHOWN)
    for text in texts:
        assert re.sub(r"\s+", " ", text).strip() in re.sub(r"\s+", " ", shown), (guest.page.url, text[:40])


def see(guest: Any, name: str, world: World) -> None:
    address, texts = world.pages()[name]
    guest.go(address)
    look_for(guest, texts)


@pytest.fixture(scope="module")
def guests(long_visit: Any, world: World) -> dict[tuple[str, bool], Any]:
    """Who looks at the pages, by language and whether they are signed in."""
    token = token_of(world.admin)
    return {
        (language, known): long_visit(language, token if known else None)
        for language in ("pt", "en")
        for known in (True, False)
    }


@pytest.mark.parametrize("name", PAGES)
def test_hostile_texts_are_texts_on_every_page_and_nobody_is_kept_out(guests: Any, world: World, name: str) -> None:
    for language in ("pt", "en") if CAMPAIGN else ("pt", "en")[PAGES.index(name) % 2 :][:1]:
        guest = guests[language, name != "sign-in"]
        see(guest, name, world)
        guest.check_inline()
        guest.check_forms()
        for phone, dark in LOOKS:
            guest.look_at(phone=phone, dark=dark)
            guest.check_width()
            # Light on a desk is what the other tests look at; what differs in texts only is looked at once.
            if CAMPAIGN or (dark and phone and name not in ALIKE):
                guest.check_access()
            elif dark and name not in ALIKE:
                guest.check_access("color-contrast", "target-size", "scrollable-region-focusable")
        guest.look_at(phone=True, dark=False)
        guest.page.evaluate("document.querySelectorAll('details:not(.menu)').forEach((each) => (each.open = true))")
        guest.check_width()
        assert guest.complaints == []


@pytest.mark.faults
@only_in_campaigns(SLOW_CANARY)
def test_canary_a_template_that_does_not_escape_is_found(visit: Any, world: World, broken: str) -> None:
    guest = visit("pt", token_of(world.admin), url=broken, extra_http_headers={"Break": "unescaped"})
    with pytest.raises(AssertionError):
        see(guest, "conversation: markup", world)
    with pytest.raises(AssertionError):
        see(guest, "transfer", world)
    assert any("asked another host" in each for each in guest.complaints)
    guest.complaints.clear()


def test_canary_each_check_fails_on_a_page_with_its_fault(visit: Any, broken: str) -> None:
    guest = visit("en", ADMIN_TOKEN, url=broken)
    guest.look_at(phone=True, dark=False)
    said = {"console": "broken", "host": "asked another host", "inline": "Content Security Policy"}
    checks = {"inline": guest.check_inline, "handler": guest.check_inline, "style": guest.check_inline}
    checks |= {"native": guest.check_forms, "axe": guest.check_access, "wide": guest.check_width}
    for fault in said | checks:
        guest.page.set_extra_http_headers({"Break": fault})
        guest.go("/views")
        if fault in checks:
            with pytest.raises(AssertionError):
                checks[fault]()
        if fault in said:
            assert any(said[fault] in each for each in guest.complaints), guest.complaints
        guest.complaints.clear()


def test_canary_too_little_contrast_is_found_in_the_light_and_in_the_dark(visit: Any, broken: str) -> None:
    guest = visit("en", ADMIN_TOKEN, url=broken)
    for fault in ("pale", "dark"):
        guest.page.set_extra_http_headers({"Break": fault})
        guest.go("/views")
        guest.look_at(phone=True, dark=fault == "dark")
        with pytest.raises(AssertionError, match="color-contrast"):
            guest.check_access("color-contrast")
        guest.look_at(phone=True, dark=fault != "dark")
        guest.check_access("color-contrast")


def test_the_newest_of_many_messages_are_seen_first_and_the_earlier_ones_by_a_link(
    visit: Any, open_conversation: Any
) -> None:
    conversation = open_conversation()
    for number in range(110):
        conversation.do("notes", {"text": f"nota {number}"})
    conversation.view()
    guest = visit("en", ADMIN_TOKEN)
    page = guest.go(f"/conversations/{conversation.id}")
    expect(page.get_by_text("nota 109", exact=True)).to_be_in_viewport()
    expect(page.locator("#messages .message")).to_have_count(100)
    expect(page.locator("#history li")).to_have_count(100)
    assert page.locator("#messages .text").first.text_content() == "nota 10"
    expect(page.locator(".live")).to_be_visible()
    page.locator("#log").hover()
    page.mouse.wheel(0, -100_000)
    expect(page.get_by_role("link", name="Earlier messages")).to_be_in_viewport()
    conversation.do("notes", {"text": "enquanto se lê"})
    expect(page.get_by_text("enquanto se lê", exact=True)).to_have_count(1)
    expect(page.get_by_role("link", name="Earlier messages")).to_be_in_viewport()
    page.get_by_role("link", name="Earlier messages").click()
    expect(page.get_by_text("nota 0", exact=True)).to_have_count(1)
    expect(page.locator(".live")).to_have_count(0)
    page.get_by_role("link", name="To the newest").click()
    expect(page.get_by_text("enquanto se lê", exact=True)).to_be_in_viewport()
    page.get_by_role("link", name="What happened before").click()
    expect(page.locator("#v-1")).to_have_count(1)
    guest.go(f"/conversations/{conversation.id}?version=3")
    expect(page.locator("#messages .message")).to_have_count(2)
    expect(page.locator("#v-3 [aria-current]")).to_have_count(1)


def test_the_server_stops_and_starts_again_and_the_page_says_so_and_goes_on(
    visit: Any, serving: Any, open_conversation: Any
) -> None:
    conversation = open_conversation(channel="parada", subject="Antes")
    conversation.view()
    with serving() as url:
        guest = visit("en", ADMIN_TOKEN, url=url)
        page = guest.go("/?channel=parada")
        expect(page.locator(f"#c-{conversation.id}")).to_be_visible()
        other = guest.context.new_page()
        other.goto(f"{url}/conversations/{conversation.id}")
        expect(other.locator(".live")).to_be_visible()
        other.locator("#label").fill("meio escrita")
    meanwhile = open_conversation(channel="parada", subject="Enquanto parada")
    conversation.do("notes", {"text": "escrita enquanto parada"})
    page.bring_to_front()
    page.locator("#menu-sector summary").click()
    page.get_by_role("checkbox", name="Suporte").check()  # asked while nobody answers
    expect(page.locator("#gone")).to_contain_text("cannot be reached")
    other.bring_to_front()
    other.locator("#label").press("Enter")
    expect(other.locator("#gone")).to_contain_text("cannot be reached")
    with serving(port=int(url.rsplit(":", 1)[1])):
        expect(other.locator("#gone")).to_contain_text("is back")
        expect(other.get_by_text("escrita enquanto parada")).to_be_visible()
        expect(other.locator("#label")).to_have_value("meio escrita")
        expect(other.locator(".live")).to_be_visible()
        page.bring_to_front()
        expect(page.locator(f"#c-{meanwhile.id}")).to_be_visible()
        expect(page).to_have_url(re.compile("sector="))
        open_conversation(channel="parada", subject="Depois").view()
        expect(page.locator("#rows tbody tr")).to_have_count(3)
        for each in (page, other):
            expect(each.locator("#gone")).not_to_have_class(re.compile("shown"))
