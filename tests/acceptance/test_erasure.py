"""Erasing a contact over HTTP: who may, what is left, and what may still be done with their conversations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api, Conversation

    Open = Callable[..., Conversation]
MAY_ERASE = {"agent": 403, "supervisor": 403, "auditor": 403, "integration": 403, "admin": 200}


def a_contact(api: Api, **details: Any) -> str:
    return str(api.ok("POST", "/v1/contacts", {"name": "Noêmia Prado", **details})["id"])


def test_only_who_may_erase_does_and_what_is_out_of_sight_is_not_there(
    api: Api, stranger: Api, caller: Callable[..., Api]
) -> None:
    contact = a_contact(api)
    for role, status in MAY_ERASE.items():
        who = caller("integration", f"erasing-{role}", role)
        before = api.log_head()
        answer = who.send_json("POST", f"/v1/contacts/{contact}/erase", {})
        assert answer.status_code == status, (role, answer.text)
        assert (api.log_head() > before) == (status == 200)
    gone = stranger.send_json("POST", f"/v1/contacts/{a_contact(api)}/erase", {})
    assert (gone.status_code, gone.json()["code"]) == (404, "contact-not-found")


def test_an_erased_contact_is_a_stub_and_their_conversations_go_on_without_words(
    api: Api, open_conversation: Open
) -> None:
    contact = a_contact(api, phones=["+55 21 3333-1234"])
    talk = open_conversation(contact_id=contact, subject="Meu endereço mudou")
    talk.do("messages", {"direction": "received", "text": "Rua das Flores, 12"}, idempotency_key=f"m-{contact}")
    talk.do("notes", {"text": "mora sozinha"})
    talk.do("attributes", {"key": "endereco", "value": "Rua das Flores"})
    history = talk.history()
    position = api.ok("POST", f"/v1/contacts/{contact}/erase", {})["position"]
    assert api.ok("POST", f"/v1/contacts/{contact}/erase", {})["events"] == 0, "it is already so"

    shown = api.read(f"/v1/contacts/{contact}", at_least=position)
    assert (shown["name"], shown["phones"], shown["attributes"], shown["erased"]) == (None, [], {}, True)
    row = api.read(talk.path, at_least=position)
    assert (row["contact_name"], row["subject"], row["attributes"]) == (None, None, {})
    assert [(each["text"], each["erased"]) for each in talk.messages()] == [("", True), ("", True)]
    assert not api.read("/v1/conversations", q="noemia prado", at_least=position)["items"]
    assert talk.history() == history, "what happened stays"
    assert "contact-erased.v1" in api.items(f"/v1/contacts/{contact}/timeline")[0].values()

    for what, body in (
        ("messages", {"direction": "received", "text": "oi"}),
        ("notes", {"text": "oi"}),
        ("attributes", {"key": "endereco", "value": "x"}),
        ("finalize", {"surface": "listing", "comment": "foi embora"}),
    ):
        refused = talk.ask(what, body)
        assert (what, refused.status_code, refused.json()["code"]) == (what, 409, "contact-already-erased")
    talk.do("labels", {"label": "lgpd"})
    talk.do("finalize", {"surface": "listing", "outcome": "encerrada"})
    again = talk.ask("messages", {"direction": "received", "text": "outra"}, idempotency_key=f"m-{contact}")
    assert again.json()["replayed"] is True, "the first answer, which says nothing of them"
    reopened = api.send_json("POST", "/v1/conversations", {"channel": "whatsapp", "contact_id": contact})
    assert reopened.json()["code"] == "contact-already-erased"


def test_what_was_said_with_a_former_contact_goes_with_them(api: Api, open_conversation: Open) -> None:
    first, second = a_contact(api), a_contact(api, name="Olavo Reis")
    talk = open_conversation(contact_id=first, subject="de Noêmia")
    talk.do("attributes", {"key": "a", "value": "de Noêmia"})
    talk.do("contact", {"contact_id": second})
    talk.do("attributes", {"key": "b", "value": "de Olavo"})
    position = api.ok("POST", f"/v1/contacts/{first}/erase", {})["position"]
    row = api.read(talk.path, at_least=position)
    assert (row["contact_name"], row["subject"], row["attributes"]) == ("Olavo Reis", None, {"b": "de Olavo"})
    talk.do("attributes", {"key": "a", "value": "de Olavo também"})
    assert talk.view()["attributes"] == {"a": "de Olavo também", "b": "de Olavo"}


@pytest.mark.parametrize("id_", ["nobody", "00000000-0000-0000-0000-00000000000"])
def test_a_wrong_id_is_told(api: Api, id_: str) -> None:
    assert api.send_json("POST", f"/v1/contacts/{id_}/erase", {}).status_code == 422
    unknown = api.send_json("POST", f"/v1/contacts/{uuid4()}/erase", {})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "contact-not-found")
