"""Contacts over HTTP: found by what one remembers of them, typed attributes, and everything that happened with one.

Invariant: whose permission does not reach all of the workspace finds, reads and changes only whom a conversation within
its reach is with; what they may not see leaves no trace in what they get.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from api import demo

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api, Conversation

OTHER_SECTOR = str(demo.OTHER_SECTOR)
Caller = Callable[..., "Api"]
Open = Callable[..., "Conversation"]


def someone(api: Api, caller: Caller, grants: dict[str, str], *, agent: str | None = None) -> Api:
    """An integration, or an agent, with a role that grants just that."""
    role = f"r-{uuid4().hex}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": grants})
    if agent is None:
        return caller("integration", role, role)
    id_ = api.ok("POST", "/v1/agents", {"name": agent, "role": role})["id"]
    return caller("agent", id_, role)


def registered(api: Api, **details: Any) -> str:
    answer = api.ok("POST", "/v1/contacts", details)
    api.read("/v1/contacts", at_least=answer["position"])
    return str(answer["id"])


def found(by: Api, text: str | None = None, **parameters: Any) -> list[str]:
    asked = parameters | ({} if text is None else {"q": text})
    return [row["id"] for row in by.items("/v1/contacts", **asked)]


# Finding


@pytest.fixture(scope="module")
def zelia(api: Api) -> str:
    return registered(
        api, name="Zélia Gonçalves Ávila", phones=["+55 (71) 93456-7812"], emails=["zelia.avila@exemplo.com.br"]
    )


@pytest.mark.parametrize(
    "text",
    [
        *("Zélia", "zelia", "ZELIA", "zel", "goncalves", "avi zel", "zelia.avila@exemplo.com.br", "zelia.avila@exe"),
        *("+55 (71) 93456-7812", "5571934567812", "934567812", "93456-7812", "7812", "(71) 93456"),
    ],
)
def test_a_contact_is_found_by_the_beginnings_of_words_and_by_digits(api: Api, zelia: str, text: str) -> None:
    assert found(api, text) == [zelia]


@pytest.mark.parametrize("text", ["élia", "zelia maria", "93456-7813", "xyz@exemplo", "' or 1=1 --", ":*", "!!", "\\"])
def test_a_contact_is_not_found_by_anything_else(api: Api, zelia: str, text: str) -> None:
    assert zelia not in found(api, text)


def test_a_changed_contact_is_found_by_what_it_is_now(api: Api) -> None:
    id_ = registered(api, name="Quirino Antigo", phones=["+55 62 95555-1234"])
    answer = api.ok("PUT", f"/v1/contacts/{id_}", {"name": "Quirino Moderno"})
    assert found(api, "quirino moderno", at_least=answer["position"]) == [id_]
    assert found(api, "antigo") == []
    assert found(api, "955551234") == []


def test_all_contacts_come_by_name_page_by_page_each_once(api: Api) -> None:
    names = ["Ábaco Um", "abaco dois", "ÁBACO  três", "Ábaco Um"]
    ids = [registered(api, name=name) for name in names]
    nameless = registered(api, phones=["+55 11 90000-0001"])
    everyone = found(api, limit=2)
    assert sorted(everyone) == sorted(found(api, limit=500))
    assert len(everyone) == len(set(everyone))
    order = [id_ for id_ in everyone if id_ in ids]
    assert order == [ids[1], ids[2], *sorted((ids[0], ids[3]))]
    assert everyone.index(nameless) > max(everyone.index(id_) for id_ in ids)
    assert found(api, "abaco", limit=1) == order


def test_a_contact_of_another_workspace_is_not_found(api: Api, service: Any, connect: Callable[..., Api]) -> None:
    stranger = connect(service.new_workspace(f"w-{uuid4().hex[:8]}"))
    theirs = registered(stranger, name="Hipólita Única", phones=["+55 11 97777-0001"])
    assert found(stranger, "hipolita") == [theirs]
    assert found(stranger) == [theirs]
    assert found(api, "hipolita") == []
    assert theirs not in found(api, limit=500)


@pytest.mark.parametrize(
    "cursor", ["x", "W10", "WyIAIiwieCJd", "WyJcdTAwMDAiLCIwMDAwMDAwMC0wMDAwLTQwMDAtODAwMC0wMDAwMDAwMDAwMDAiXQ"]
)
def test_a_cursor_that_is_not_ours_is_refused(api: Api, cursor: str) -> None:
    assert api.get("/v1/contacts", params={"cursor": cursor}).status_code == 422


# Scope


def test_an_agent_finds_and_reads_only_whom_a_conversation_within_reach_is_with(
    api: Api, bia: Api, davi: Api, open_conversation: Open
) -> None:
    with_both, with_vendas, with_nobody = (registered(api, name=f"Escopo {n}") for n in ("um", "dois", "três"))
    open_conversation(contact_id=with_both)
    open_conversation(contact_id=with_vendas, sector_id=OTHER_SECTOR).view()
    assert set(found(api, "escopo")) == {with_both, with_vendas, with_nobody}
    assert set(found(davi, "escopo")) == {with_both, with_vendas}
    assert found(bia, "escopo") == [with_both]
    for id_, statuses in ((with_both, (200, 200)), (with_vendas, (404, 200)), (with_nobody, (404, 404))):
        for path in (f"/v1/contacts/{id_}", f"/v1/contacts/{id_}/timeline"):
            assert (bia.get(path).status_code, davi.get(path).status_code) == statuses


def test_an_agent_changes_only_whom_a_conversation_within_reach_is_with(
    api: Api, bia: Api, davi: Api, open_conversation: Open
) -> None:
    contact = registered(api, name="Edita Depois")
    path = f"/v1/contacts/{contact}"
    head = api.log_head()
    for agent in (bia, davi):
        refused = agent.send_json("PUT", path, {"name": "Outra"})
        assert (refused.status_code, refused.json()["code"]) == (404, "contact-not-found")
    assert api.log_head() == head
    open_conversation(contact_id=contact, sector_id=OTHER_SECTOR).view()
    assert bia.send_json("PUT", path, {"name": "Outra"}).status_code == 404
    assert davi.send_json("PUT", path, {"name": "Edita Agora"}).status_code == 200


def test_without_the_permission_nobody_is_found_read_or_told_of(api: Api, caller: Caller, zelia: str) -> None:
    blind = someone(api, caller, {"view": "all", "read-history": "all"})
    for path in ("/v1/contacts", f"/v1/contacts/{zelia}", f"/v1/contacts/{zelia}/timeline"):
        assert blind.get(path).status_code == 403


# Attributes


@pytest.fixture
def key(api: Api) -> str:
    return f"k{uuid4().hex[:8]}"


def defined(api: Api, target: str, key: str, type_: str, **more: Any) -> dict[str, Any]:
    return api.ok("PUT", f"/v1/attributes/{target}/{key}", {"label": "Rótulo", "type": type_} | more)


VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "text": (["x", ""], [1, True, ["x"]]),
    "number": ([1, -1.5], ["1", True, ["1"]]),
    "link": (["https://example.com/x"], ["example.com", "javascript:alert(1)", 1]),
    "list": (["ouro", ["ouro", "prata"]], ["bronze", ["bronze"], ["ouro", "ouro"], 1]),
    "date": (["2026-11-22"], ["22/11/2026", "2026-02-30", 20261122]),
    "checkbox": ([True, False], [1, 0, "true"]),
}


@pytest.mark.parametrize("type_", VALUES)
def test_a_value_of_a_defined_attribute_fits_its_type(
    api: Api, key: str, type_: str, an_opened_conversation: Conversation
) -> None:
    options = {"options": ["ouro", "prata"]} if type_ == "list" else {}
    for target in ("contact", "conversation"):
        defined(api, target, key, type_, **options)
    contact = registered(api, name="Com atributos")
    fitting, wrong = VALUES[type_]
    for value in fitting:
        answer = api.ok("PUT", f"/v1/contacts/{contact}", {"attributes": {key: value}})
        shown = api.read(f"/v1/contacts/{contact}", at_least=answer["position"])["attributes"]
        assert (shown, type(shown[key])) == ({key: value}, type(value))
        an_opened_conversation.do("attributes", {"key": key, "value": value})
        assert an_opened_conversation.view()["attributes"] == {key: value}
    head = api.log_head()
    for value in wrong:
        for answer in (
            api.send_json("PUT", f"/v1/contacts/{contact}", {"attributes": {key: value}}),
            api.send_json("POST", "/v1/contacts", {"attributes": {key: value}}),
            an_opened_conversation.ask("attributes", {"key": key, "value": value}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (409, "attribute-of-wrong-type"), value
    assert api.log_head() == head


def test_what_nobody_defined_takes_any_value_also_after_it_was_retired(api: Api, key: str) -> None:
    contact = registered(api, name="Livre", attributes={key: ["x"]})
    defined(api, "contact", key, "number")
    assert api.send_json("PUT", f"/v1/contacts/{contact}", {"attributes": {key: "dois"}}).status_code == 409
    # what was there before the definition may stay
    assert api.ok("PUT", f"/v1/contacts/{contact}", {"name": "Ainda livre", "attributes": {key: ["x"]}})["events"] == 1
    api.ok("DELETE", f"/v1/attributes/contact/{key}")
    api.ok("PUT", f"/v1/contacts/{contact}", {"attributes": {key: "dois"}})


def test_definitions_are_listed_replaced_and_retired(api: Api, bia: Api, key: str) -> None:
    first = defined(api, "contact", key, "list", options=["a"])
    second = defined(api, "contact", key, "list", options=["a", "b"])
    assert (first["version"], second["version"]) == (1, 2)
    assert defined(api, "contact", key, "list", options=["a", "b"])["events"] == 0
    shown = bia.read("/v1/attributes", at_least=second["position"])["items"]
    [mine] = [each for each in shown if each["key"] == key]
    assert mine == {
        "id": second["id"],
        "target": "contact",
        "key": key,
        "type": "list",
        "label": "Rótulo",
        "options": ["a", "b"],
        "version": 2,
    }
    gone = api.ok("DELETE", f"/v1/attributes/contact/{key}")
    assert api.ok("DELETE", f"/v1/attributes/contact/{key}")["events"] == 0
    assert key not in [each["key"] for each in api.read("/v1/attributes", at_least=gone["position"])["items"]]
    missing = api.send_json("DELETE", f"/v1/attributes/conversation/{key}", None)
    assert (missing.status_code, missing.json()["code"]) == (404, "attribute-not-found")


def test_only_whoever_manages_the_directory_defines_attributes(api: Api, bia: Api, caller: Caller, key: str) -> None:
    body = {"label": "x", "type": "text"}
    assert bia.send_json("PUT", f"/v1/attributes/contact/{key}", body).status_code == 403
    assert bia.send_json("DELETE", f"/v1/attributes/contact/{key}", None).status_code == 403
    assert (
        someone(api, caller, {"manage-directory": "all"})
        .send_json("PUT", f"/v1/attributes/contact/{key}", body)
        .is_success
    )


@pytest.mark.parametrize(
    "body",
    [
        {"label": "x", "type": "list"},
        {"label": "x", "type": "list", "options": ["a", "a"]},
        {"label": "x", "type": "text", "options": ["a"]},
    ],
)
def test_options_belong_to_lists(api: Api, key: str, body: dict[str, Any]) -> None:
    answer = api.send_json("PUT", f"/v1/attributes/contact/{key}", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-command")


# Timeline


def timeline(by: Api, contact: str, **parameters: Any) -> list[dict[str, Any]]:
    return by.items(f"/v1/contacts/{contact}/timeline", **parameters)


def topics(entries: list[dict[str, Any]]) -> list[str]:
    return [entry["topic"].removesuffix(".v1") for entry in entries]


def test_the_timeline_tells_all_that_happened_with_a_contact_newest_first(api: Api, open_conversation: Open) -> None:
    contact = registered(api, name="Tempo Linha")
    first = open_conversation(contact_id=contact)
    second = open_conversation(contact_id=contact, channel="phone")
    first.do("messages", {"direction": "received", "text": "segredo da mensagem"})
    second.do("labels", {"label": "vip"})
    api.ok("PUT", f"/v1/contacts/{contact}", {"name": "Tempo Novo"})
    first.do("finalize", {"surface": "listing", "outcome": "ok"})
    entries = timeline(api, contact, at_least=first.answer["position"], limit=2)
    assert topics(entries) == [
        "conversation-finalized-from-listing",
        "contact-details-changed",
        "label-added",
        "message-received",
        "conversation-opened",
        "conversation-opened",
        "contact-registered",
    ]
    shown = {(entry["stream_id"], entry["protocol"], entry["channel"]) for entry in entries}
    assert shown == {
        (contact, None, None),
        (first.id, first.view()["protocol"], first.view()["channel"]),
        (second.id, second.view()["protocol"], "phone"),
    }
    assert all(name not in str(entries) for name in ("segredo", "Tempo Linha", "Tempo Novo"))
    assert [entry["position"] for entry in timeline(api, contact, limit=500)] == [e["position"] for e in entries]


def test_a_conversation_takes_its_past_along_to_its_new_contact_and_the_other_keeps_where_it_went(
    api: Api, open_conversation: Open
) -> None:
    wrong, right = registered(api, name="Errada"), registered(api, name="Certa")
    conversation = open_conversation(contact_id=wrong)
    conversation.do("labels", {"label": "vip"})
    for contact, other in ((right, wrong), (wrong, right), (right, wrong)):
        conversation.do("contact", {"contact_id": contact})
        conversation.do("priority", {"priority": "high" if contact == right else "low"})
        whole = topics(timeline(api, contact, at_least=conversation.answer["position"]))
        assert whole[-3:] == ["label-added", "conversation-opened", "contact-registered"]
        assert whole[0] == "priority-changed"
        assert len(whole) == len(conversation.history()) + 1
        left = topics(timeline(api, other))
        assert set(left) == {"contact-reassigned", "contact-registered"}


def test_the_timeline_leaves_out_conversations_that_one_may_not_see(
    api: Api, bia: Api, caller: Caller, open_conversation: Open
) -> None:
    contact = registered(api, name="Dois Setores")
    here = open_conversation(contact_id=contact)
    there = open_conversation(contact_id=contact, sector_id=OTHER_SECTOR)
    there.do("labels", {"label": "segredo"})
    there.view()
    entries = timeline(bia, contact, at_least=there.answer["position"], limit=1)
    assert [entry["stream_id"] for entry in entries] == [here.id, contact]
    for text in (there.id, there.view()["protocol"], "segredo", OTHER_SECTOR):
        assert text not in str(entries)
    contacts_only = someone(api, caller, {"view-contact": "all"})
    assert topics(timeline(contacts_only, contact)) == ["contact-registered"]
    assert len(timeline(api, contact)) == 4


@pytest.mark.parametrize("cursor", ["x", "W10", "WyIyMDI2IiwxXQ", "WyJ4IiwxXQ", "WyIyMDI2LTAxLTAxVDAwOjAwOjAwIiwxXQ"])
def test_a_cursor_of_the_timeline_that_is_not_ours_is_refused(api: Api, zelia: str, cursor: str) -> None:
    assert api.get(f"/v1/contacts/{zelia}/timeline", params={"cursor": cursor}).status_code == 422


def test_an_agent_opens_with_whom_they_find_or_registered_and_with_nobody_else(
    api: Api, bia: Api, open_conversation: Callable[..., Any]
) -> None:
    elses = api.ok("POST", "/v1/contacts", {"name": "De Vendas"})["id"]
    open_conversation(contact_id=elses, sector_id=str(demo.OTHER_SECTOR))
    nobodys = api.ok("POST", "/v1/contacts", {"name": "De ninguém ainda"})["id"]
    hers = open_conversation(by=bia)
    head = api.log_head()
    for contact in (elses, nobodys, str(uuid4())):
        opening = {"channel": "phone", "contact_id": contact, "sector_id": str(demo.SECTOR)}
        for path, body in (("/v1/conversations", opening), (f"{hers.path}/contact", {"contact_id": contact})):
            refused = bia.send_json("POST", path, body)
            assert (refused.status_code, refused.json()["code"]) == (404, "contact-not-found")
    for name in ("De Vendas", "Outro nome"):
        refused = bia.send_json("POST", "/v1/contacts", {"id": elses, "name": name})
        assert (refused.status_code, refused.json()["code"]) == (409, "already-exists")
    assert api.log_head() == head
    new = {"id": str(uuid4()), "name": "Nova"}
    assert [bia.ok("POST", "/v1/contacts", new)["events"] for _ in range(2)] == [1, 0]
    opened = open_conversation(by=bia, contact_id=new["id"])
    assert opened.view(by=bia)["contact_name"] == "Nova"
    hers.do("contact", {"contact_id": new["id"]}, by=bia)
    found = bia.items("/v1/contacts", q="nova", at_least=hers.answer["position"])
    assert new["id"] in [contact["id"] for contact in found]
    with_found = open_conversation(by=bia, contact_id=str(demo.CONTACT), id=str(uuid4()))
    assert with_found.do("contact", {"contact_id": str(demo.CONTACT)}, by=bia)["events"] == 0
