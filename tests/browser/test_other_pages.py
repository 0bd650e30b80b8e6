"""One conversation and what is done to it; contacts; the history; the overview."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest
from playwright.sync_api import expect

from api import demo

ADMIN_TOKEN = "cvs_acceptance-tests-admin"
HOSTILE = "<img src=x onerror=alert(1)> \u202e\u0645\u0631 👩‍👩‍👧‍👦 {{ 7*7 }} " + "ñ" * 3_000
SAID = {
    "pt": {"live": "Ao vivo", "finalized": "Finalizada por Administradora, pela listagem"},
    "en": {"live": "Live", "finalized": "Finalized by Administradora, from the listing"},
}


def token_of(client: Any) -> str:
    return str(client.headers["authorization"]).removeprefix("Bearer ")


@pytest.mark.parametrize("language", ["pt", "en"])
def test_a_conversation_is_watched_live_with_its_history_beside_it(
    visit: Any, a_conversation: Any, language: str
) -> None:
    said, conversation = SAID[language], a_conversation("pending")
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go(f"/conversations/{conversation.id}")
    expect(page.locator(".live")).to_contain_text(said["live"])
    guest.check()
    page.locator("#label").fill("Half typed")
    conversation.do("messages", {"direction": "sent", "text": HOSTILE})
    expect(page.locator("#messages .text").last).to_have_text(HOSTILE)
    conversation.do("finalize", {"surface": "listing", "outcome": "resolvida"})
    expect(page.locator("#head .status")).to_have_class("status finalized")
    newest = page.locator("#history li").first
    expect(newest).to_contain_text(said["finalized"])
    expect(newest).to_contain_text("resolvida")
    expect(page.locator("#label")).to_have_value("Half typed")
    expect(page.locator("#version")).to_have_attribute("max", "4")
    guest.check()
    page.locator("#label").press("Enter")
    expect(page.locator("#label-mistake")).not_to_be_empty()
    expect(page.locator("#label")).to_have_value("Half typed")
    expect(page.locator(".live")).to_be_visible()
    conversation.do("reopen")
    expect(page.locator("#head .status")).to_have_class("status pending")


def test_a_history_that_is_behind_the_listing_is_asked_for_until_it_is_there(
    service: Any, visit: Any, a_conversation: Any
) -> None:
    conversation = a_conversation("pending")
    page = visit("en", ADMIN_TOKEN).go(f"/conversations/{conversation.id}")
    expect(page.locator(".live")).to_contain_text(SAID["en"]["live"])
    with psycopg.connect(service.database_url) as connection:
        connection.execute("select 1 from projection_positions where name = 'history' for update")
        conversation.do("finalize", {"surface": "listing", "outcome": "resolvida"})
        expect(page.locator("#head .status")).to_have_class("status finalized")
        expect(page.locator("#history li").first).not_to_contain_text("resolvida")
    expect(page.locator("#history li").first).to_contain_text("resolvida")


def test_it_is_shown_as_it_stood_at_any_version(visit: Any, a_conversation: Any) -> None:
    conversation = a_conversation("finalized")
    guest = visit("en", ADMIN_TOKEN)
    page = guest.go(f"/conversations/{conversation.id}")
    expect(page.locator("#head .status")).to_have_class("status finalized")
    page.locator("#version").fill("1")
    expect(page).to_have_url(re.compile(r"version=1$"))
    expect(page.locator("#head .status")).to_have_class("status pending")
    expect(page.locator("#messages .message")).to_have_count(0)
    expect(page.get_by_role("link", name="Finalize")).to_have_count(0)
    guest.check()
    page.get_by_role("link", name="Version 2").click()
    expect(page.locator("#messages .message")).to_have_count(1)
    page.get_by_role("link", name="Back to now").click()
    expect(page.locator("#head .status")).to_have_class("status finalized")


def test_a_transfer_is_made_in_a_dialog_that_warns_of_who_is_offline(visit: Any, a_conversation: Any) -> None:
    conversation = a_conversation("pending")
    guest = visit("en", ADMIN_TOKEN)
    page = guest.go(f"/conversations/{conversation.id}")
    page.get_by_role("link", name="Transfer").click()
    dialog = page.get_by_role("dialog", name="Transfer")
    expect(dialog.get_by_role("radio", name="Bia Nunes")).to_be_visible()
    guest.check()
    dialog.get_by_role("searchbox").fill("dávi")
    dialog.locator("ul:visible", has_text="Vendas").get_by_role("radio", name="Davi Rocha").check()
    expect(dialog.locator("li:visible", has_text="Bia")).to_have_count(0)
    expect(dialog.locator(".when-offline")).to_be_visible()
    dialog.get_by_label("Reason").fill("troca é com vendas")
    dialog.get_by_role("button", name="Transfer").click()
    expect(page.locator("#facts")).to_contain_text("Davi Rocha")
    newest = page.locator("#history li").first
    expect(newest).to_contain_text("offline")
    expect(newest).to_contain_text("troca é com vendas")
    view = conversation.view()
    assert (view["sector_id"], view["agent_id"]) == (str(demo.OTHER_SECTOR), str(demo.OTHER_AGENT))


def test_without_javascript_it_is_transferred_and_finalized_and_nothing_typed_is_lost(
    visit: Any, a_conversation: Any
) -> None:
    conversation = a_conversation("pending")
    guest = visit("pt", java_script_enabled=False)
    guest.sign_in(ADMIN_TOKEN)
    page = guest.go(f"/conversations/{conversation.id}")
    page.get_by_role("link", name="Transferir").click()
    page.get_by_role("searchbox").fill("bia")
    page.get_by_role("button", name="Buscar").click()
    page.get_by_role("radio", name="Bia Nunes").check()
    page.get_by_role("button", name="Transferir").click()
    expect(page.locator("#facts")).to_contain_text("Bia Nunes")
    page.locator("#label").fill("Não serve")
    page.get_by_role("button", name="Adicionar").click()
    expect(page.locator("#label")).to_have_value("Não serve")
    expect(page.locator("#label-mistake")).to_contain_text("letras minúsculas")
    page.get_by_role("link", name="Finalizar").click()
    page.get_by_label("Resultado").fill("x" * 501)
    page.get_by_label("Comentário").fill(HOSTILE)
    page.get_by_role("button", name="Finalizar").click()
    expect(page.locator("#outcome-mistake")).to_have_text("Texto longo demais.")
    expect(page.get_by_label("Comentário")).to_have_value(HOSTILE)
    page.get_by_label("Resultado").fill("resolvida")
    page.get_by_role("button", name="Finalizar").click()
    expect(page.locator("#head .status")).to_have_class("status finalized")
    page.get_by_role("button", name="Reabrir").click()
    expect(page.locator("#head .status")).to_have_class("status pending")
    finalized = conversation.history()[-2]
    assert (finalized["topic"], finalized["surface"]) == ("conversation-finalized-from-listing.v1", "listing")


def test_an_agent_is_offered_what_they_may_do(visit: Any, a_conversation: Any, bia: Any) -> None:
    conversation = a_conversation("pending")
    guest = visit("pt", token_of(bia))
    page = guest.go(f"/conversations/{conversation.id}")
    expect(page.locator("#history")).to_have_count(0)
    page.get_by_role("button", name="Assumir").click()
    expect(page.locator("#facts")).to_contain_text("Bia Nunes")
    expect(page.get_by_role("button", name="Assumir")).to_have_count(0)
    page.get_by_role("link", name="Finalizar").click()
    expect(page.get_by_role("dialog")).to_contain_text("pela caixa de entrada")
    page.get_by_role("dialog").get_by_role("button", name="Finalizar").click()
    expect(page.locator("#head .status")).to_have_class("status finalized")
    conversation.answer = {"position": 0}
    assert conversation.history()[-1]["topic"] == "conversation-finalized-from-inbox.v1"
    elsewhere = a_conversation("pending")
    elsewhere.do("transfer", {"sector_id": str(demo.OTHER_SECTOR)})
    guest.go(f"/conversations/{elsewhere.id}")
    expect(page.locator("h1")).to_contain_text("não existe")


@pytest.mark.parametrize("language", ["pt", "en"])
def test_a_contact_is_found_and_changed_and_nothing_typed_is_lost(visit: Any, api: Any, language: str) -> None:
    contact = api.ok("POST", "/v1/contacts", {"name": f"Zilda {language}", "phones": ["+55 11 90000-0001"]})
    api.ok("GET", f"/v1/contacts/{contact['id']}?at_least={contact['position']}")
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go("/contacts")
    guest.check()
    page.get_by_role("searchbox").fill(f"zilda {language}")
    page.locator("main form button").click()
    with guest.context.expect_page() as opened:
        page.locator("main table a").click()
    guest.page = page = opened.value
    expect(page.locator("h1")).to_have_text(f"Zilda {language}")
    guest.check()
    page.locator("a[href$='/edit']").click()
    page.locator("#emails").fill("not-an-address")
    page.locator("input[name=key]").first.fill("plano")
    page.locator("input[name=value]").first.fill(HOSTILE[:300])
    page.locator("main button.primary").click()
    expect(page.locator("#emails-mistake")).to_contain_text("ana@example.com")
    expect(page.locator("#emails")).to_have_value("not-an-address")
    expect(page.locator("input[name=value]").first).to_have_value(HOSTILE[:300])
    guest.check()
    page.locator("#emails").fill("zilda@example.com")
    page.locator("main button.primary").click()
    expect(page.locator(".facts").last).to_contain_text(HOSTILE[:40])
    expect(page.locator(".timeline li")).to_have_count(2)
    seen = api.read(f"/v1/contacts/{contact['id']}")
    assert (seen["phones"], seen["emails"]) == (["+55 11 90000-0001"], ["zilda@example.com"])


def test_what_somebody_else_changed_meanwhile_is_not_overwritten(visit: Any, api: Any) -> None:
    contact = api.ok("POST", "/v1/contacts", {"name": "Vera"})
    api.ok("GET", f"/v1/contacts/{contact['id']}?at_least={contact['position']}")
    guest = visit("en", ADMIN_TOKEN)
    page = guest.go(f"/contacts/{contact['id']}/edit")
    changed = api.ok("PUT", f"/v1/contacts/{contact['id']}", {"name": "Vera Lúcia"})
    page.locator("#name").fill("Verinha")
    page.locator("main button.primary").click()
    expect(page.get_by_role("alert")).to_contain_text("Somebody changed it")
    expect(page.locator("#name")).to_have_value("Verinha")
    assert api.read(f"/v1/contacts/{contact['id']}", at_least=changed["position"])["name"] == "Vera Lúcia"


@pytest.mark.parametrize("language", ["pt", "en"])
def test_the_overview_has_charts_and_their_numbers(visit: Any, a_conversation: Any, language: str) -> None:
    a_conversation("finalized").view()
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go("/overview?days=7")
    pictures = page.locator("main img")
    expect(pictures).to_have_count(5)
    for picture in pictures.all():
        assert picture.evaluate("each => each.decode().then(() => each.naturalWidth)") > 0
    page.locator("details summary").first.click()
    expect(page.locator("table").first).to_be_visible()
    guest.check()
    guest.look_at(phone=True, dark=False)
    guest.check_width()


@pytest.mark.parametrize("language", ["pt", "en"])
def test_an_auditor_searches_the_history_and_sees_its_checkpoint(
    visit: Any, a_conversation: Any, language: str
) -> None:
    conversation = a_conversation("finalized")
    conversation.history()
    guest = visit(language, ADMIN_TOKEN)
    page = guest.go("/history")
    expect(page.locator(".checkpoint code").first).to_have_text(re.compile(r"^[\w+/]{43}=$"))
    guest.check()
    page.locator("summary").first.click()
    page.locator("#stream").fill("not an id")
    page.locator("#event").select_option("conversation-finalized-from-listing.v1")
    page.locator("main button.primary").click()
    expect(page.locator("#stream-mistake")).not_to_be_empty()
    expect(page.locator("#stream")).to_have_value("not an id")
    guest.check()
    page.locator("#stream").fill(conversation.id)
    page.locator("main button.primary").click()
    rows = page.locator(".events li")
    expect(rows).to_have_count(1)
    expect(rows).to_contain_text(SAID[language]["finalized"])
    with page.expect_download() as downloading:
        page.get_by_role("link", name="NDJSON").click()
    [line] = downloading.value.path().read_text().splitlines()
    assert json.loads(line)["stream_id"] == conversation.id
    rows.get_by_role("link").first.click()
    expect(page.locator("#head .status")).to_have_class("status finalized")


def test_a_contact_is_erased_by_who_was_told_what_it_means(
    visit: Any, api: Any, open_conversation: Any, bia: Any
) -> None:
    contact = api.ok("POST", "/v1/contacts", {"name": "Olga Esquecida"})
    conversation = open_conversation(contact_id=contact["id"], subject="assunto de Olga")
    conversation.view()
    page = visit("pt", token_of(bia)).go(f"/contacts/{contact['id']}")
    expect(page.locator("h1")).to_have_text("Olga Esquecida")
    expect(page.get_by_role("link", name="Apagar")).to_have_count(0)
    guest = visit("pt", ADMIN_TOKEN)
    page = guest.go(f"/contacts/{contact['id']}")
    page.get_by_role("link", name="Apagar").click()
    guest.check()
    page.get_by_role("button", name="Apagar para sempre").click()
    expect(page.locator("#sure-mistake")).to_contain_text("nada foi apagado")
    page.get_by_role("checkbox").check()
    page.get_by_role("button", name="Apagar para sempre").click()
    expect(page.locator("h1")).to_have_text("Contato apagado")
    guest.check()
    guest.go(f"/conversations/{conversation.id}")
    expect(page.locator("main")).to_contain_text("Contato não exibido")
    assert "Olga" not in page.content()


def test_a_label_in_use_is_suggested_and_a_double_click_puts_it_on_once(visit: Any, a_conversation: Any) -> None:
    used, conversation = a_conversation("pending"), a_conversation("pending")
    used.do("labels", {"label": "em-uso"})
    used.view()
    guest = visit("pt", ADMIN_TOKEN)
    page = guest.go("/")
    page.locator("#menu-more summary").click()
    page.locator("#bar-label").fill("troca, ")
    expect(page.locator('#labels-in-use option[value="troca, em-uso"]')).to_have_count(1)
    guest.go(f"/conversations/{conversation.id}")
    page.locator("#label").focus()
    expect(page.locator('#labels-in-use option[value="em-uso"]')).to_have_count(1)
    page.locator("#label").fill("em-uso")
    page.get_by_role("button", name="Adicionar").dblclick()
    expect(page.locator("#labels .tag")).to_have_text(re.compile("em-uso"))
    expect(page.get_by_role("alert")).to_have_count(0)
    conversation.do("notes", {"text": "Já vi."})
    assert [each["topic"] for each in conversation.history()].count("label-added.v1") == 1
