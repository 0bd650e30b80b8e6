"""An open listing follows what others do, in its order and scope; and every story is done with the keyboard alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from campaign import SLOW_CANARY, only_in_campaigns
from playwright.sync_api import expect

from api import demo
from projections.listing_query import Sort

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
ORDER = "() => [...document.querySelectorAll('#rows tbody tr')].map((row) => row.id.slice(2))"
MOST_TABS = 150


def token_of(client: Any) -> str:
    return str(client.headers["authorization"]).removeprefix("Bearer ")


# Live

OPEN = ("pending", "in_progress")
WAITING = ("pending",)
"""Where it is sorted by how long they waited: those that still wait overtake those that no longer do, by time alone."""


def commands(chance: Random, api: Any, conversation: Any, status: str) -> Any:
    """Something that another client may do to it; the answer."""
    agent = chance.choice((demo.AGENT, demo.OTHER_AGENT))
    possible: dict[str, tuple[str, Any]] = {
        "note": ("notes", {"text": "x"}),
        "write": ("messages", {"direction": "sent", "text": "x"}),
        "ask": ("messages", {"direction": "received", "text": "x"}),
        "give": ("transfer", {"sector_id": str(demo.SECTOR), "agent_id": str(agent)}),
        "queue": ("transfer", {"sector_id": str(demo.SECTOR)}),
        "priority": ("priority", {"priority": chance.choice(("low", "normal", "high", "urgent"))}),
        "end": ("finalize", {"surface": "listing"}),
    }
    what, body = ("reopen", {}) if status == "finalized" else possible[chance.choice(sorted(possible))]
    return conversation.do(what, body)


def test_rows_appear_move_and_leave_as_others_act_under_every_sort(
    visit: Any, api: Any, open_conversation: Any
) -> None:
    channel, chance = "ordem", Random(4)
    conversations = [open_conversation(channel=channel) for _ in range(4)]
    page = visit("pt", ADMIN_TOKEN).go("/")
    moves = leaves = 0
    for number, sort in enumerate(Sort):
        order, statuses = ("desc", "asc")[number % 2], WAITING if sort is Sort.WAITING else OPEN
        wanted = {"channel": channel, "status": statuses, "sort": sort.value, "order": order}
        query = "&".join(f"status={each}" for each in statuses)
        page.goto(page.url.split("?")[0] + f"?channel={channel}&{query}&sort={sort.value}&order={order}")
        expect(page.locator("#rows")).to_be_visible()
        before = page.evaluate(ORDER)
        conversations.append(open_conversation(channel=channel))
        position = conversations[-1].answer["position"]
        for conversation in chance.sample(conversations, 3):
            conversation.view()
            position = commands(chance, api, conversation, conversation.view()["status"])["position"]
        expected = [each["id"] for each in api.read("/v1/conversations", at_least=position, **wanted)["items"]]
        page.wait_for_function(f"(expected) => JSON.stringify(({ORDER})()) === JSON.stringify(expected)", arg=expected)
        leaves += len(set(before) - set(expected))
        moves += [each for each in before if each in expected] != [each for each in expected if each in before]
    assert moves + leaves > 3, "too little happened to tell"


def watch_out_of_scope(visit: Any, api: Any, bia: Any, open_conversation: Any, channel: str, **options: Any) -> None:
    """Bia's open listing, while things happen in another sector: neither shown nor told to her browser."""
    guest = visit("pt", token_of(bia), **options)
    heard: list[str] = []
    session = guest.context.new_cdp_session(guest.page)
    session.send("Network.enable")
    session.on("Network.eventSourceMessageReceived", lambda told: heard.append(told["data"]))
    guest.page.on("response", lambda answer: "fragment" in answer.request.headers and heard.append(answer.text()))
    page = guest.go(f"/?channel={channel}")
    expect(page.locator(".none")).to_be_visible()
    elsewhere = open_conversation(channel=channel, sector_id=str(demo.OTHER_SECTOR), subject="Segredo de Vendas")
    elsewhere.do("messages", {"direction": "sent", "text": "x"})
    elsewhere.do("priority", {"priority": "urgent"})
    hers = open_conversation(channel=channel, subject="De Suporte")
    expect(page.locator(f"#c-{hers.id}")).to_be_visible()
    expect(page.locator("#tab-pending .tally")).to_have_text("1")
    hers.do("transfer", {"sector_id": str(demo.OTHER_SECTOR)})
    expect(page.locator(f"#c-{hers.id}")).to_have_count(0)
    hers.do("notes", {"text": "x"})
    fence = open_conversation(channel=channel)
    expect(page.locator(f"#c-{fence.id}")).to_be_visible()
    assert hers.id in "".join(heard), "nothing was heard at all"
    assert elsewhere.id not in "".join(heard) + page.content()


def test_what_is_out_of_scope_is_neither_shown_nor_told_to_an_open_listing(
    visit: Any, api: Any, bia: Any, open_conversation: Any
) -> None:
    watch_out_of_scope(visit, api, bia, open_conversation, "alcance")


@pytest.mark.faults
@only_in_campaigns(SLOW_CANARY)
def test_canary_a_listing_that_forgets_scopes_is_found(
    visit: Any, api: Any, bia: Any, open_conversation: Any, broken: str
) -> None:
    expect.set_options(timeout=3_000)
    try:
        with pytest.raises(AssertionError):
            watch_out_of_scope(visit, api, bia, open_conversation, "sem-alcance", url=broken)
    finally:
        expect.set_options(timeout=20_000)


def asked_when_ready(guest: Any, query: str) -> int:
    """How often an open listing asks for its rows anew when its stream tells that it is ready."""
    asked: list[str] = []
    ready: list[str] = []
    session = guest.context.new_cdp_session(guest.page)
    session.send("Network.enable")
    session.on("Network.eventSourceMessageReceived", lambda told: ready.append(told["eventName"]))
    guest.page.on("request", lambda request: "fragment" in request.headers and asked.append(request.url))
    page = guest.go(query)
    while "ready" not in ready:
        page.wait_for_timeout(20)
    page.evaluate("() => new Promise((done) => setTimeout(done, 100))")  # it would be asked for at once
    return len(asked)


def test_an_open_listing_asks_anew_when_its_stream_begins_only_if_more_has_happened_since(
    visit: Any, open_conversation: Any
) -> None:
    conversation = open_conversation(channel="fresca")
    conversation.view()
    guest = visit("pt", ADMIN_TOKEN)
    assert asked_when_ready(guest, "/?channel=fresca") == 0

    def as_of_before(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r'data-position="\d+"', 'data-position="1"', answer.text()))

    guest.page.route(re.compile(r"/\?channel="), as_of_before)
    assert asked_when_ready(guest, "/?channel=fresca") == 1


AWAY = """(away) => {
  Object.defineProperty(document, "hidden", { configurable: true, value: away });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_more_pages_are_open_than_a_browser_has_connections_and_one_that_nobody_sees_goes_on(
    visit: Any, open_conversation: Any
) -> None:
    """With a stream on each of six connections, nothing else would ever be answered."""
    guest, conversation = visit("pt", ADMIN_TOKEN), open_conversation()
    conversation.view()
    pages = [guest.page, *(guest.context.new_page() for _ in range(7))]
    for page in pages:
        page.goto(f"{guest.url}/conversations/{conversation.id}")
        expect(page.locator(".live")).to_be_visible()
        page.evaluate(AWAY, arg=True)
    conversation.do("notes", {"text": "enquanto ninguém olha"})
    expect(pages[0].get_by_text("enquanto ninguém olha")).to_have_count(1)
    assert pages[1].get_by_text("enquanto ninguém olha").count() == 0
    pages[0].close()
    expect(pages[1].get_by_text("enquanto ninguém olha")).to_have_count(1)
    pages[-1].evaluate(AWAY, arg=False)
    expect(pages[-1].get_by_text("enquanto ninguém olha")).to_have_count(1)


# The keyboard alone


FOCUS = """(selector) => document.activeElement.matches(selector)
  && getComputedStyle(document.activeElement).outlineStyle"""


class Keys:
    """Somebody who has no mouse."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def to(self, selector: str) -> None:
        """Tab until it has the focus, which must be seen."""
        self.page.locator(selector).first.wait_for(state="attached")
        for _ in range(MOST_TABS):
            outline = self.page.evaluate(FOCUS, selector)
            if outline:
                assert outline != "none", f"{selector} has the focus, and it is not seen"
                return
            self.page.keyboard.press("Tab")
        pytest.fail(f"{selector} is not reached by the keyboard")

    def press(self, selector: str, *keys: str) -> None:
        """Go there and press keys."""
        self.to(selector)
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, selector: str, text: str) -> None:
        """Go there and write."""
        self.to(selector)
        self.page.keyboard.type(text)


Start = Callable[[str], tuple[Any, Keys]]


@pytest.fixture
def start(visit: Any) -> Start:
    """Open an address, with nothing but keys from there on."""

    def begin(address: str) -> tuple[Any, Keys]:
        page = visit("en", ADMIN_TOKEN).go(address)
        return page, Keys(page)

    return begin


def test_by_keys_a_filter_is_set_many_are_chosen_and_finalized(start: Start, api: Any, open_conversation: Any) -> None:
    one, other = (open_conversation(channel="teclas", subject=f"Teclas {name}") for name in ("um", "dois"))
    other.view()
    page, keys = start("/?channel=teclas")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    keys.press(".skip", "Enter")
    expect(page.locator("main")).to_be_focused()
    page.evaluate("fetch('/healthz').then(() => null)")
    assert not [each for each in asked if each.endswith("/?channel=teclas")], (
        "it would take away what is typed meanwhile"
    )
    keys.type("#q", "ana")
    expect(page).to_have_url(re.compile("q=ana"))
    keys.press("#menu-sector summary", "Enter")
    keys.press(f"#bar [name=sector][value='{demo.SECTOR}']", "Space")
    expect(page).to_have_url(re.compile("sector="))
    keys.to(f"#bar [name=sector][value='{demo.SECTOR}']")
    page.keyboard.press("Escape")
    expect(page.locator("#menu-sector summary")).to_be_focused()
    expect(page.locator("#menu-sector")).not_to_have_attribute("open", "")
    for each in (other, one):
        keys.press(f"#c-{each.id} input", "Space")
    expect(page.locator("#selected")).to_have_text("2 selected")
    keys.to("#bulk-action")
    page.keyboard.type("Fin")
    keys.press("#bulk button", "Enter")
    expect(page).to_have_url(re.compile("/bulk/new"))
    keys.type("#outcome", "resolvida")
    keys.press("button[value=try]", "Enter")
    expect(page.locator("#n-changed")).to_have_text("2")
    keys.press("button[value=do]", "Enter")
    expect(page.locator("button[value=do]")).to_have_count(0)
    expect(page.locator("#n-changed")).to_have_text("2")
    keys.press("#job a.button", "Enter")
    expect(page.locator("#tab-finalized .tally")).to_have_text("2")
    row = api.read("/v1/conversations", channel="teclas", status="finalized")["items"][0]
    assert (row["finalized_from"], row["outcome"]) == ("listing", "resolvida")


def test_by_keys_a_conversation_is_transferred_and_finalized_in_dialogs(start: Start, open_conversation: Any) -> None:
    conversation = open_conversation()
    conversation.view()
    page, keys = start(f"/conversations/{conversation.id}")
    keys.press("a[href$='/transfer']", "Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(page.locator("a[href$='/transfer']")).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("davi")
    keys.press("dialog [name=target]", "ArrowDown")
    expect(dialog.locator("[name=target]:checked")).to_be_visible()
    keys.type("dialog [name=reason]", "por teclas")
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("Davi Rocha")
    keys.press("a[href$='/finalize']", "Enter")
    expect(dialog).to_be_visible()
    keys.type("dialog [name=outcome]", "resolvida")
    keys.press("dialog button.primary", "Enter")
    expect(page.locator("#head .status")).to_have_class("status finalized")


def test_by_keys_conditions_are_built(start: Start, open_conversation: Any) -> None:
    one, other = open_conversation(channel="grade", subject="Grade azul"), open_conversation(channel="grade")
    other.view()
    page, keys = start("/?channel=grade")
    keys.press("#bar a[href^='/filter']", "Enter")
    expect(page).to_have_url(re.compile("/filter"))
    keys.to("[name='0.0.field']")
    page.keyboard.type("Subj")
    expect(page.locator("[name='0.0.operator'] option[value=contains]")).to_have_count(1)
    keys.to("[name='0.0.operator']")
    page.keyboard.type("cont")
    keys.type("[name='0.0.value']", "azul")
    expect(page.locator("#fits")).to_contain_text("1 ")
    keys.press("#group-0", "Enter")
    expect(page.locator("[name='0.1.0.field']")).to_be_focused()
    keys.to("[name='0.1.0.value']")
    page.keyboard.type("Pend")
    keys.press(".foot button[value=apply]", "Enter")
    expect(page.locator(f"#c-{one.id}")).to_be_visible()
    listing = page.url
    keys.press(f"#c-{one.id} a.strong", "Enter")
    keys.press("[data-back]", "Enter")
    expect(page).to_have_url(listing)


def test_by_keys_the_past_of_a_conversation_is_gone_through(start: Start, a_conversation: Any) -> None:
    conversation = a_conversation("finalized")
    conversation.view()
    page, keys = start(f"/conversations/{conversation.id}")
    keys.press("#version", "ArrowLeft")
    expect(page).to_have_url(re.compile(r"version=\d+$"))
    expect(page.locator("#head .status")).not_to_have_class("status finalized")
    keys.press("#head .notice a", "Enter")
    expect(page.locator("#head .status")).to_have_class("status finalized")
