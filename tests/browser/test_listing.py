"""The listing in a real browser: find, watch, choose, keep and act, as a supervisor does.

Each test has a channel of its own, so that others' conversations do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from api import demo

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
SAID = {
    "pt": {
        "pending": "Pendente",
        "try": "Simular antes",
        "do": "Executar agora",
        "done": "Concluída",
        "apply": "Aplicar",
    },
    "en": {"pending": "Pending", "try": "Try it first", "do": "Do it now", "done": "Done", "apply": "Apply"},
}
_numbers = count(1)


@pytest.fixture
def channel() -> str:
    """A channel that no other test has."""
    return f"canal-{next(_numbers)}"


@pytest.fixture
def opened(api: Any, channel: str) -> Callable[..., Any]:
    """Open a conversation in the test's channel; ``opened(name="…")`` with a contact of their own."""

    def open_one(name: str | None = None, **body: Any) -> Any:
        wanted: dict[str, Any] = {"channel": channel, "contact_id": str(demo.CONTACT), "sector_id": str(demo.SECTOR)}
        if name is not None:
            wanted["contact_id"] = api.ok("POST", "/v1/contacts", {"name": name})["id"]
        answer = api.ok("POST", "/v1/conversations", wanted | body)
        api.read("/v1/conversations", channel=channel, at_least=answer["position"])
        return answer["id"]

    return open_one


def row(page: Any, id_: str) -> Any:
    return page.locator(f"#c-{id_}")


def rows(page: Any) -> Any:
    return page.locator("#rows tbody tr")


@pytest.mark.parametrize("language", ["pt", "en"])
def test_the_listing_tells_each_conversations_status_and_how_many_there_are(
    visit: Any, api: Any, opened: Any, channel: str, language: str
) -> None:
    waiting, done = opened(subject="Espera"), opened(subject="Pronta")
    api.ok("POST", f"/v1/conversations/{done}/finalize", {"surface": "inbox"})
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}")
    expect(row(page, waiting).locator(".status")).to_have_text(SAID[language]["pending"])
    expect(page.locator("#tab-pending .tally")).to_have_text("1")
    guest.check()
    page.locator("#tab-finalized").click()
    expect(rows(page)).to_have_count(1)
    expect(row(page, done)).to_contain_text("Pronta")
    expect(page).to_have_url(re.compile(f"status=finalized&channel={channel}"))
    page.locator("#q").press_sequentially("ninguém", delay=5)
    expect(page.locator(".none")).to_be_visible()
    page.go_back()
    expect(row(page, done)).to_contain_text("Pronta")
    expect(page.locator("#q")).to_have_value("")
    page.go_back()
    expect(rows(page)).to_have_count(2)
    assert len(page.content().encode()) < 200_000


def test_filters_apply_as_they_are_set_and_the_address_shows_the_same_to_whoever_opens_it(
    visit: Any, opened: Any, channel: str
) -> None:
    ana, zoe = opened(), opened(name="Zoé Única")
    guest = visit("pt", ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}")
    expect(rows(page)).to_have_count(2)
    page.locator("#q").press_sequentially("zoe")
    expect(rows(page)).to_have_count(1)
    expect(row(page, zoe)).to_be_visible()
    expect(page.locator("#q")).to_be_focused()
    page.locator("#menu-sector summary").click()
    page.get_by_role("checkbox", name="Suporte").check()
    expect(page).to_have_url(re.compile("sector="))
    page.locator("#menu-period summary").click()
    page.locator("#bar-opened_from").fill("2020-01-01T08:30")
    expect(page).to_have_url(re.compile(r"opened_from=2020-01-01T08%3A30%3A00-03%3A00"))
    expect(page.locator(".chip")).to_have_count(4)
    guest.check()
    other = visit("pt", ADMIN_TOKEN, timezone_id="Asia/Tokyo").go(page.url.removeprefix(guest.url))
    expect(rows(other)).to_have_count(1)
    expect(other.locator("#bar-opened_from")).to_have_value("2020-01-01T20:30")
    expect(other.locator("#q")).to_have_value("zoe")
    page.locator(".chip", has_text="zoe").get_by_role("link").click()
    expect(row(page, ana)).to_be_visible()


@pytest.mark.parametrize(("language", "said"), [("pt", "Letras minúsculas"), ("en", "Lower-case letters")])
def test_bad_input_is_told_beside_its_field_and_stays_as_typed(visit: Any, language: str, said: str) -> None:
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go("/?label=Duas+Palavras&opened_from=ontem&q=fica")
    expect(page.locator("#mistake-label")).to_contain_text(said)
    expect(page.locator("#bar-label")).to_have_value("Duas Palavras")
    expect(page.locator("#bar-opened_from")).to_have_value("ontem")
    expect(page.locator("#q")).to_have_value("fica")
    assert page.locator("#mistake-opened_from").count() == 1
    guest.check()
    page = guest.go("/history?occurred_from=ontem")
    expect(page.locator("#occurred_from")).to_have_value("ontem")


def test_what_another_client_does_shows_up_in_its_place_without_moving_what_one_is_at(
    visit: Any, api: Any, opened: Any, channel: str
) -> None:
    first, second = opened(subject="Primeira"), opened(subject="Segunda")
    page = visit("pt", ADMIN_TOKEN).go(f"/?channel={channel}&status=pending")
    row(page, first).get_by_role("checkbox").check()
    page.locator("#bulk-action").select_option("reopen")
    row(page, first).get_by_role("link").first.focus()
    third = opened(subject="Terceira")
    expect(rows(page).first).to_contain_text("Terceira")
    expect(page.locator("#tab-pending .tally")).to_have_text("3")
    api.ok("POST", f"/v1/conversations/{second}/finalize", {"surface": "inbox"})
    expect(row(page, second)).to_have_count(0)
    expect(page.locator("#tab-finalized .tally")).to_have_text("1")
    api.ok("POST", f"/v1/conversations/{first}/messages", {"direction": "sent", "text": "Ainda aqui"})
    expect(rows(page).first).to_contain_text("Primeira")
    expect(row(page, first).get_by_role("checkbox")).to_be_checked()
    expect(row(page, first).get_by_role("link").first).to_be_focused()
    expect(row(page, third)).to_be_visible()
    expect(page.locator("#bulk-action")).to_have_value("reopen")


def test_who_may_not_see_a_conversation_is_not_shown_it_when_it_changes(
    visit: Any, api: Any, bia: Any, opened: Any, channel: str
) -> None:
    token = bia.headers["authorization"].removeprefix("Bearer ")
    page = visit("pt", token).go(f"/?channel={channel}")
    expect(page.locator(".none")).to_be_visible()
    elsewhere = opened(sector_id=str(demo.OTHER_SECTOR))
    hers = opened()
    expect(row(page, hers)).to_be_visible()
    expect(row(page, elsewhere)).to_have_count(0)
    expect(page.locator("#tab-pending .tally")).to_have_text("1")
    api.ok("POST", f"/v1/conversations/{hers}/transfer", {"sector_id": str(demo.OTHER_SECTOR)})
    expect(row(page, hers)).to_have_count(0)


def test_the_listing_is_shown_as_it_stood_at_a_past_moment(visit: Any, api: Any, opened: Any, channel: str) -> None:
    id_ = opened()
    then = api.items(f"/v1/conversations/{id_}/history")[-1]["recorded_at"]
    done = api.ok("POST", f"/v1/conversations/{id_}/finalize", {"surface": "listing"})
    api.read("/v1/conversations", at_least=done["position"])
    guest = visit("pt", ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}&as_of={quote(then)}")
    expect(row(page, id_).locator(".status")).to_have_text("Pendente")
    expect(page.locator("#tab-pending .tally")).to_have_text("1")
    expect(page.locator("#bulk")).to_have_count(0)
    guest.check()
    page.get_by_role("link", name="Voltar ao momento atual").click()
    expect(row(page, id_).locator(".status")).to_have_text("Finalizada")
    page.locator("#menu-as-of summary").click()
    page.locator("#bar-as_of").fill("2999-01-01T00:00")
    expect(page.locator("#mistake-as_of")).to_be_visible()


HOSTILE = ("<script>alert(1)</script>", "\u202etrevni", "👩‍👩‍👧‍👦" * 10, "x" * 200, "'\"><img src=x onerror=alert(1)>")


def test_hostile_texts_are_shown_as_text_and_break_nothing(visit: Any, opened: Any, channel: str) -> None:
    ids = [opened(name=text, subject=text + "%(n)s{{7*7}}") for text in HOSTILE]
    guest = visit("pt", ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}&q=" + quote("<b>&"))
    expect(page.locator("#q")).to_have_value("<b>&")
    guest.go(f"/?channel={channel}")
    for id_, text in zip(ids, HOSTILE, strict=True):
        assert row(page, id_).locator(".c-contact_name").text_content().strip() == text
        assert row(page, id_).locator(".c-subject").text_content().strip() == text + "%(n)s{{7*7}}"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    guest.check()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    guest.check()


def test_columns_and_order_are_chosen_and_in_the_address(visit: Any, opened: Any, channel: str) -> None:
    older, newer = opened(), opened()
    guest = visit("en", ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}")
    page.locator("#menu-columns summary").click()
    columns = page.locator("#columns")
    columns.get_by_role("checkbox", name="Subject").uncheck()
    columns.get_by_role("checkbox", name="Opened", exact=True).check()
    guest.check()
    columns.get_by_role("button").click()
    expect(page.get_by_role("columnheader", name="Subject")).to_have_count(0)
    page.get_by_role("columnheader", name="Opened").get_by_role("link").click()
    expect(page.get_by_role("columnheader", name="Opened")).to_have_attribute("aria-sort", "descending")
    expect(rows(page).first).to_have_id(f"c-{newer}")
    page.get_by_role("columnheader", name="Opened").get_by_role("link").click()
    expect(rows(page).first).to_have_id(f"c-{older}")
    expect(page.get_by_role("columnheader", name="Opened")).to_have_attribute("aria-sort", "ascending")
    page.reload()
    expect(rows(page).first).to_have_id(f"c-{older}")
    expect(page.get_by_role("columnheader", name="Subject")).to_have_count(0)


def test_pages_follow_each_other(visit: Any, opened: Any, channel: str) -> None:
    ids = [opened() for _ in range(3)]
    page = visit("en", ADMIN_TOKEN).go(f"/?channel={channel}&limit=2")
    expect(rows(page)).to_have_count(2)
    page.get_by_role("link", name="Next page").click()
    expect(rows(page)).to_have_count(1)
    expect(row(page, ids[0])).to_be_visible()
    page.get_by_role("link", name="First page").click()
    expect(row(page, ids[2])).to_be_visible()


@pytest.mark.parametrize("language", ["pt", "en"])
def test_conditions_nest_in_a_form_that_tells_how_many_fit(
    visit: Any, api: Any, opened: Any, channel: str, language: str
) -> None:
    one, other = opened(subject="Troca de cor"), opened(subject="Boleto")
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go(f"/filter?channel={channel}")
    page.locator("[name='0.0.field']").select_option("subject")
    expect(page.locator("[name='0.0.operator'] option[value='contains']")).to_have_count(1)
    page.locator("[name='0.0.operator']").select_option("contains")
    page.locator("[name='0.0.value']").fill("troca")
    expect(page.locator("#fits")).to_contain_text("1 ")
    page.locator("#group-0").click()
    page.locator("[name='0.1.join']").select_option("nor")
    page.locator("[name='0.1.0.field']").select_option("opened")
    page.locator("[name='0.1.0.operator']").select_option("in_last_days")
    expect(page.locator("[name='0.1.0.value']")).to_have_attribute("inputmode", "decimal")
    page.locator("[name='0.1.0.value']").fill("x")
    guest.check()
    page.get_by_role("button", name=SAID[language]["apply"], exact=True).last.click()
    expect(page.locator(".condition .mistake")).to_have_count(1)
    expect(page.locator("[name='0.1.0.value']")).to_have_value("x")
    guest.check()
    page.locator("[name='0.1.0.value']").fill("1")
    page.locator("[name='0.1.join']").select_option("or")
    page.get_by_role("button", name=SAID[language]["apply"], exact=True).last.click()
    expect(row(page, one)).to_be_visible()
    expect(row(page, other)).to_have_count(0)
    page.locator("#bar a[href^='/filter']").click()
    expect(page.locator("[name='0.0.value']")).to_have_value("troca")


def test_a_view_is_kept_offered_and_removed(visit: Any, opened: Any, channel: str) -> None:
    opened()
    guest = visit("pt", ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}&columns=protocol&columns=status&sort=opened_at")
    page.locator("#menu-views summary").click()
    page.locator("#save-view").click()
    page.get_by_role("button", name="Salvar").click()
    expect(page.locator("#name-mistake")).to_contain_text("De 1 a 200 caracteres")
    guest.check()
    page.get_by_label("Nome").fill(f"Visão <{channel}>")
    page.get_by_role("button", name="Salvar").click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#menu-views .item:target")).to_have_text(f"Visão <{channel}>")
    expect(page.locator("#menu-views .item:target")).to_be_visible()
    guest.go("/")
    page.locator("#menu-views summary").click()
    page.get_by_role("link", name=f"Visão <{channel}>").click()
    expect(rows(page)).to_have_count(1)
    expect(page.locator("#rows th[scope=col]")).to_have_count(2)
    guest.go("/views")
    guest.check()
    page.get_by_role("button", name=f"Remover: Visão <{channel}>").click()
    expect(page.get_by_role("link", name=f"Visão <{channel}>")).to_have_count(0)


@pytest.mark.parametrize("language", ["pt", "en"])
def test_many_are_finalized_after_a_trial_and_it_counts_as_from_the_listing(
    visit: Any, api: Any, opened: Any, channel: str, language: str
) -> None:
    ids, said = [opened() for _ in range(3)], SAID[language]
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}")
    for id_ in ids[:2]:
        row(page, id_).get_by_role("checkbox").check()
    page.locator("#bulk button").click()
    page.locator("#outcome").fill("x" * 501)
    page.get_by_role("button", name=said["try"]).click()
    expect(page.locator("#mistake-outcome")).to_be_visible()
    expect(page.locator("#outcome")).to_have_value("x" * 501)
    guest.check()
    page.locator("#outcome").fill("resolvida")
    page.get_by_role("button", name=said["try"]).click()
    expect(page.locator("#state")).to_contain_text(said["done"])
    expect(page.locator("#n-changed")).to_have_text("2")
    guest.check()
    assert api.read("/v1/conversations", channel=channel, status="pending")["items"][2]
    page.get_by_role("button", name=said["do"]).click()
    expect(page.locator(".tag")).to_have_count(0)
    expect(page.locator("#state")).to_contain_text(said["done"])
    expect(page.locator("#n-changed")).to_have_text("2")
    position = max(each["position"] for each in api.read("/v1/bulk", limit=1)["items"])
    found = api.read("/v1/conversations", channel=channel, status="finalized", at_least=position)["items"]
    assert {each["id"] for each in found} == set(ids[:2])
    assert {(each["finalized_from"], each["outcome"]) for each in found} == {("listing", "resolvida")}


def test_all_that_fit_the_filters_are_acted_on(visit: Any, api: Any, opened: Any, channel: str) -> None:
    for _ in range(3):
        opened()
    page = visit("en", ADMIN_TOKEN).go(f"/?channel={channel}&limit=1")
    page.locator("#select-page").check()
    page.locator("#select-all").check()
    page.locator("#bulk-action").select_option("add-label")
    page.locator("#bulk button").click()
    page.locator("#new-label").fill("todas")
    page.get_by_role("button", name="Do it now").click()
    expect(page.locator("#n-changed")).to_have_text("3")
    page.get_by_role("link", name="Back to the listing").click()
    expect(page).to_have_url(re.compile(f"channel={channel}"))


def test_what_is_shown_is_exported_as_a_file(visit: Any, opened: Any, channel: str) -> None:
    opened(subject="Exportada")
    page = visit("en", ADMIN_TOKEN).go(f"/?channel={channel}")
    page.locator("#menu-export summary").click()
    with page.expect_download() as downloading:
        page.get_by_role("link", name="CSV").click()
    text = downloading.value.path().read_text()
    assert len(text.splitlines()) == 2
    assert "Exportada" in text


@pytest.mark.parametrize(("language", "said"), [("pt", "não responde"), ("en", "cannot be reached")])
def test_the_server_gone_is_told_and_the_page_recovers_by_itself(
    visit: Any, opened: Any, channel: str, language: str, said: str
) -> None:
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go(f"/?channel={channel}")
    expect(page.locator(".none")).to_be_visible()
    guest.context.set_offline(True)
    expect(page.locator("#gone")).to_contain_text(said)
    guest.check()
    page.locator("#q").fill("ana")
    while_gone = opened()
    expect(row(page, while_gone)).to_have_count(0)
    guest.context.set_offline(False)
    expect(page.locator("#gone")).not_to_have_class("shown")
    expect(page.locator("#q")).to_have_value("ana")
    expect(row(page, while_gone)).to_be_visible()


def test_without_scripts_everything_works_by_links_and_forms(visit: Any, api: Any, opened: Any, channel: str) -> None:
    one, other = opened(subject="Sem script"), opened()
    page = visit("en", ADMIN_TOKEN, java_script_enabled=False).go("/")
    page.locator("#q").fill("ana")
    page.locator("#menu-period summary").click()
    page.locator("#bar-opened_from").fill("2020-01-01T08:30")
    page.get_by_role("button", name="Filter", exact=True).click()
    expect(page).to_have_url(re.compile(r"/\?q=ana&opened_from=2020-01-01T08%3A30%3A00-03%3A00$"))
    page.goto(page.url.split("?")[0] + f"filter?channel={channel}")
    page.locator("[name='0.0.field']").select_option("subject")
    page.get_by_role("button", name="Update").click()
    page.locator("[name='0.0.value']").fill("Sem script")
    page.get_by_role("button", name="Add a condition").click()
    expect(page.locator("[name='0.0.value']")).to_have_value("Sem script")
    page.locator("[name='0.1.value']").select_option("pending")
    page.get_by_role("button", name="Apply").last.click()
    expect(rows(page)).to_have_count(1)
    row(page, one).get_by_role("checkbox").check()
    page.locator("#bulk-action").select_option("change-priority")
    page.locator("#bulk button").click()
    page.locator("#priority").select_option("urgent")
    page.get_by_role("button", name="Do it now").click()
    expect(page.locator("#state")).to_contain_text("Done")
    assert api.read(f"/v1/conversations/{one}")["priority"] == "urgent"
    assert api.read(f"/v1/conversations/{other}")["priority"] == "normal"
