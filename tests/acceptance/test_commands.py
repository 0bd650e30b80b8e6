"""Every command travels the whole way: its answer, the listing, the history, the messages, the log.

Invariant: what one of them says of a change, all say.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from api import demo

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api, Conversation

SECTOR, OTHER_SECTOR = str(demo.SECTOR), str(demo.OTHER_SECTOR)
ADMIN, BIA, DAVI = str(demo.ADMIN), str(demo.AGENT), str(demo.OTHER_AGENT)
ANA, JOAO = str(demo.CONTACT), str(demo.OTHER_CONTACT)
BOT = "triagem"
CHANNEL = ("integration", "a-channel")


def check_travelled(
    conversation: Conversation,
    answer: dict[str, Any],
    *topics: str,
    shown: dict[str, Any],
    actor: tuple[str, str] = ("agent", ADMIN),
    surface: str = "api",
    version: int,
) -> None:
    """The last command caused ``topics``, from ``actor`` through ``surface``, and the listing shows ``shown``."""
    api = conversation.api
    position = answer["position"]
    expected = {"id": conversation.id, "events": len(topics), "version": version, "replayed": False}
    assert {key: answer[key] for key in expected} == expected

    view = conversation.view()
    assert {key: view[key] for key in shown} == shown
    assert (view["version"], view["position"]) == (version, position)
    assert view["status"] == answer["status"]

    history = conversation.history()[-len(topics) :]
    assert [entry["topic"] for entry in history] == list(topics)
    assert [entry["version"] for entry in history] == list(range(version - len(topics) + 1, version + 1))
    assert [entry["position"] for entry in history] == list(range(position - len(topics) + 1, position + 1))
    for entry in history:
        assert (entry["actor"]["kind"], entry["actor"]["id"]) == actor
        assert (entry["surface"], entry["stream_id"]) == (surface, conversation.id)
    assert history[-1]["status"] == view["status"]
    assert {key: history[-1][key] for key in ("sector_id", "agent_id", "bot")} == {
        key: view[key] for key in ("sector_id", "agent_id", "bot")
    }

    log = api.read("/v1/events", after=position - len(topics), limit=len(topics))
    assert log["next"] == position
    assert [event["id"] for event in log["items"]] == [f"{conversation.id}:{entry['version']}" for entry in history]
    shared = ("position", "topic", "actor", "surface", "occurred_at", "recorded_at", "request_id", "correlation_id")
    for event, entry in zip(log["items"], history, strict=True):
        assert {key: event[key] for key in shared} == {key: entry[key] for key in shared}
        assert event["data"] == entry["details"]
    found = api.read("/v1/history", stream=conversation.id, limit=len(topics), at_least=position)
    assert found["items"] == history[::-1]


LIFECYCLE: list[tuple[str, str, dict[str, Any], str, dict[str, Any]]] = [
    (
        "pending",
        "handoff-to-bot",
        {"bot": BOT, "reason": "fora do horário"},
        "conversation-handed-off-to-bot.v1",
        {"status": "with_bot", "bot": BOT, "agent_id": None, "sector_id": SECTOR, "bots": [BOT]},
    ),
    (
        "in_progress",
        "handoff-to-bot",
        {"bot": BOT},
        "conversation-handed-off-to-bot.v1",
        {"status": "with_bot", "bot": BOT, "agent_id": None, "sector_id": SECTOR},
    ),
    (
        "with_bot",
        "handoff-from-bot",
        {"sector_id": OTHER_SECTOR, "reason": "pediu uma pessoa"},
        "conversation-handed-off-by-bot.v1",
        {"status": "pending", "bot": None, "sector_id": OTHER_SECTOR, "sectors": [SECTOR, OTHER_SECTOR]},
    ),
    (
        "in_progress",
        "pending",
        {"reason": "waiting_contact"},
        "conversation-marked-pending.v1",
        {"status": "pending", "agent_id": None, "sector_id": SECTOR},
    ),
    (
        "pending",
        "assume",
        {},
        "conversation-assumed.v1",
        {"status": "in_progress", "agent_id": ADMIN, "sector_id": SECTOR, "waiting_since": None},
    ),
    (
        "with_bot",
        "assume",
        {},
        "conversation-assumed.v1",
        {"status": "in_progress", "agent_id": ADMIN, "bot": None, "sector_id": SECTOR},
    ),
    (
        "pending",
        "transfer",
        {"sector_id": OTHER_SECTOR, "reason": "quer comprar mais"},
        "conversation-transferred.v1",
        {"status": "pending", "sector_id": OTHER_SECTOR, "agent_id": None, "transfers": 1},
    ),
    (
        "in_progress",
        "transfer",
        {"agent_id": DAVI},
        "conversation-transferred.v1",
        {"status": "in_progress", "sector_id": SECTOR, "agent_id": DAVI, "transfers": 2, "agents": [BIA, DAVI]},
    ),
    (
        "with_bot",
        "transfer",
        {"sector_id": OTHER_SECTOR, "agent_id": DAVI},
        "conversation-transferred.v1",
        {"status": "in_progress", "sector_id": OTHER_SECTOR, "agent_id": DAVI, "bot": None, "transfers": 1},
    ),
    (
        "finalized",
        "reopen",
        {"reason": "o cliente voltou"},
        "conversation-reopened.v1",
        {"status": "pending", "sector_id": SECTOR, "episode": 2, "reopenings": 1, "outcome": None},
    ),
    (
        "finalized",
        "reopen",
        {"agent_id": ADMIN},
        "conversation-reopened.v1",
        {"status": "in_progress", "agent_id": ADMIN, "episode": 2, "finalized_at": None, "finalized_from": None},
    ),
    ("pending", "labels", {"label": "vip"}, "label-added.v1", {"labels": ["vip"], "status": "pending"}),
    ("finalized", "labels", {"label": "vip"}, "label-added.v1", {"labels": ["vip"], "status": "finalized"}),
    ("with_bot", "priority", {"priority": "urgent"}, "priority-changed.v1", {"priority": "urgent"}),
    (
        "pending",
        "attributes",
        {"key": "pedido", "value": "4711"},
        "attribute-set.v1",
        {"attributes": {"pedido": "4711"}},
    ),
    ("in_progress", "attributes", {"key": "vip", "value": True}, "attribute-set.v1", {"attributes": {"vip": True}}),
    (
        "pending",
        "contact",
        {"contact_id": JOAO},
        "contact-reassigned.v1",
        {"contact_id": JOAO, "contact_name": "João Pereira", "contact_phones": ["+55 31 91234-5678"]},
    ),
    ("with_bot", "notes", {"text": "Cliente antigo."}, "note-added.v1", {"notes": 1, "status": "with_bot"}),
    (
        "in_progress",
        "messages",
        {"direction": "received", "text": "Alô?"},
        "message-received.v1",
        {"messages_received": 2, "participants": [f"contact:{ANA}"]},
    ),
    (
        "in_progress",
        "messages",
        {"direction": "sent", "text": "Já vejo."},
        "message-sent.v1",
        {"messages_sent": 1, "unanswered_since": None, "unread": 0},
    ),
]


@pytest.mark.parametrize(
    ("state", "what", "body", "topic", "shown"), LIFECYCLE, ids=[f"{row[0]}-{row[1]}" for row in LIFECYCLE]
)
def test_a_command_is_seen_in_the_answer_the_listing_the_history_and_the_log(
    a_conversation: Callable[[str], Conversation],
    state: str,
    what: str,
    body: dict[str, Any],
    topic: str,
    shown: dict[str, Any],
) -> None:
    conversation = a_conversation(state)
    before = conversation.answer["version"]
    answer = conversation.do(what, body)
    actor = CHANNEL if body.get("direction") == "received" else ("agent", ADMIN)
    check_travelled(conversation, answer, topic, shown=shown, actor=actor, version=before + 1)


def test_opening_answers_where_it_is_and_shows_it_with_its_contact(
    api: Api, open_conversation: Callable[..., Conversation]
) -> None:
    id_ = str(uuid4())
    body = {"id": id_, "protocol": f"P-{id_[:8]}", "channel": "webchat", "contact_id": ANA, "subject": "Boleto"}
    response = api.send_json("POST", "/v1/conversations", body)
    assert (response.status_code, response.headers["etag"]) == (201, '"1"')
    assert response.headers["location"] == f"/v1/conversations/{id_}"
    conversation = open_conversation(**body | {"sector_id": None})  # the same again: already so
    assert (conversation.id, conversation.answer["events"]) == (id_, 0)
    shown = {"protocol": body["protocol"], "channel": "webchat", "contact_id": ANA, "contact_name": "Ana Souza"}
    shown |= {"subject": "Boleto", "sector_id": None, "status": "pending", "opened_by": f"agent:{ADMIN}", "episode": 1}
    conversation.answer = response.json()
    check_travelled(conversation, response.json(), "conversation-opened.v1", shown=shown, version=1)
    etag = api.get(response.headers["location"]).headers["etag"]
    assert etag == '"1"'


def test_an_agent_who_opens_one_for_themself_has_it_at_once(
    bia: Api, open_conversation: Callable[..., Conversation]
) -> None:
    conversation = open_conversation(by=bia, agent_id=BIA)
    view = conversation.view()
    assert (view["status"], view["agent_id"], view["opened_by"]) == ("in_progress", BIA, f"agent:{BIA}")


def test_one_made_up_protocol_is_a_day_and_twelve_digits(an_opened_conversation: Conversation) -> None:
    protocol = an_opened_conversation.view()["protocol"]
    assert len(protocol) == 20
    assert protocol.isdigit()


def test_every_version_and_position_moves_on_by_the_events_it_answers(a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    version, position = conversation.answer["version"], conversation.answer["position"]
    for what, body in (("labels", {"label": "a"}), ("assume", {}), ("notes", {"text": "x"}), ("pending", {})):
        response = conversation.ask(what, body)
        answer = response.json()
        version, position = version + 1, position + 1
        assert (answer["version"], answer["position"], answer["events"]) == (version, position, 1)
        assert response.headers["etag"] == f'"{version}"'


@pytest.mark.parametrize(
    ("surface", "topic", "role"),
    [
        ("inbox", "conversation-finalized-from-inbox.v1", "inbox"),
        ("listing", "conversation-finalized-from-listing.v1", "listing"),
    ],
)
@pytest.mark.parametrize("state", ["pending", "with_bot", "in_progress"])
def test_finalizing_tells_the_inbox_from_the_listing_for_ever(
    a_conversation: Callable[[str], Conversation], state: str, surface: str, topic: str, role: str
) -> None:
    conversation = a_conversation(state)
    before = conversation.answer["version"]
    body = {"surface": surface, "outcome": "resolvida", "comment": "Pedido reenviado."}
    answer = conversation.do("finalize", body)
    shown = {"status": "finalized", "finalized_from": role, "finalized_by": f"agent:{ADMIN}", "outcome": "resolvida"}
    check_travelled(conversation, answer, topic, shown=shown, surface=surface, version=before + 1)
    view = conversation.view()
    assert view["finalized_at"] is not None
    assert view["resolution_seconds"] >= 0
    # The other way of finalizing later changes nothing: it is finalized, and stays so from where it was.
    other = "listing" if surface == "inbox" else "inbox"
    assert conversation.do("finalize", {"surface": other})["events"] == 0
    assert conversation.view()["finalized_from"] == role


def test_finalizing_without_a_person_says_why(bot: Api, a_conversation_with_bot: Conversation) -> None:
    conversation = a_conversation_with_bot
    before = conversation.answer["version"]
    answer = conversation.do("finalize", {"surface": "bot", "cause": "bot"}, by=bot)
    shown = {"status": "finalized", "finalized_from": "automatically", "finalized_cause": "bot"}
    shown |= {"finalized_by": f"bot:{BOT}"}
    topic = "conversation-finalized-automatically.v1"
    check_travelled(conversation, answer, topic, shown=shown, actor=("bot", BOT), surface="bot", version=before + 1)


def test_from_the_inbox_and_from_the_listing_are_different_permissions(
    bia: Api, caller: Callable[..., Api], api: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    role = f"listing-only-{uuid4().hex[:8]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "all", "finalize-from-listing": "all"}})
    closer = caller("integration", "closer", role)
    for who, may, may_not in ((bia, "inbox", "listing"), (closer, "listing", "inbox")):
        conversation = a_conversation("in_progress")
        refused = conversation.ask("finalize", {"surface": may_not}, by=who)
        assert (refused.status_code, refused.json()["code"]) == (403, "permission-denied")
        assert f"finalize-from-{may_not}" in refused.json()["detail"]
        assert conversation.view()["status"] == "in_progress"
        assert conversation.do("finalize", {"surface": may}, by=who)["events"] == 1
        assert conversation.view()["finalized_from"] == may


def test_a_message_received_after_the_end_reopens_first(
    integration: Api, a_finalized_conversation: Conversation
) -> None:
    conversation = a_finalized_conversation
    before = conversation.answer["version"]
    answer = conversation.do("messages", {"direction": "received", "text": "Voltei"}, by=integration, surface="channel")
    check_travelled(
        conversation,
        answer,
        "conversation-reopened.v1",
        "message-received.v1",
        shown={"status": "pending", "episode": 2, "reopenings": 1, "sector_id": SECTOR, "unread": 1},
        actor=("integration", "whatsapp"),
        surface="channel",
        version=before + 2,
    )


def test_messages_and_notes_read_as_they_were_written(
    integration: Api, bot: Api, bia: Api, an_opened_conversation: Conversation
) -> None:
    conversation = an_opened_conversation
    file = {
        "name": "nota.pdf",
        "media_type": "application/pdf",
        "size_bytes": 12_345,
        "url": "https://files.example.com/nota.pdf?x=1",
        "sha256": "a" * 64,
    }
    ids = [str(uuid4()) for _ in range(4)]
    received = {"direction": "received", "message_id": ids[0], "kind": "document", "text": "Olá", "attachments": [file]}
    conversation.do("messages", received, by=integration)
    conversation.do("handoff-to-bot", {"bot": BOT}, by=integration)
    conversation.do("messages", {"direction": "sent", "message_id": ids[1], "text": "Sou a Triagem"}, by=bot)
    conversation.do("notes", {"message_id": ids[2], "text": "Cliente antigo"}, by=bia)
    conversation.do("messages", {"direction": "sent", "message_id": ids[3], "text": "Bom dia!"}, by=bia)
    messages = conversation.messages()
    assert [message["message_id"] for message in messages] == ids
    assert [message["direction"] for message in messages] == ["received", "sent", "note", "sent"]
    assert [(message["author"]["kind"], message["author"]["id"]) for message in messages] == [
        ("contact", ANA),
        ("bot", BOT),
        ("agent", BIA),
        ("agent", BIA),
    ]
    assert [message["text"] for message in messages] == ["Olá", "Sou a Triagem", "Cliente antigo", "Bom dia!"]
    assert (messages[0]["kind"], messages[0]["attachments"]) == ("document", [file])
    assert [message["version"] for message in messages] == [2, 4, 5, 6]
    pages = conversation.api.items(f"{conversation.path}/messages", limit=1)
    assert pages == messages


def test_texts_of_people_stay_out_of_history_and_log(a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    secret = f"segredo-{uuid4().hex}"
    start = conversation.answer["position"]
    conversation.do("messages", {"direction": "received", "text": secret})
    conversation.do("notes", {"text": secret})
    conversation.do("attributes", {"key": "cpf", "value": secret})
    conversation.do("finalize", {"surface": "listing", "comment": secret})
    assert any(message["text"] == secret for message in conversation.messages())
    assert secret not in str(conversation.history())
    assert secret not in str(conversation.api.read("/v1/events", after=start))


def test_the_surface_and_correlation_that_a_client_names_are_recorded(a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    correlation = str(uuid4())
    response = conversation.ask(
        "labels", {"label": "x"}, surface="inbox", correlation_id=correlation, causation_id="evt-17"
    )
    conversation.answer = response.json()
    entry = conversation.history()[-1]
    assert (entry["surface"], entry["correlation_id"], entry["causation_id"]) == ("inbox", correlation, "evt-17")
    assert entry["request_id"] == response.headers["request-id"]


def test_a_label_goes_as_it_came(api: Api, a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    conversation.do("labels", {"label": "vip"})
    conversation.do("labels", {"label": "troca"})
    assert conversation.view()["labels"] == ["troca", "vip"]
    conversation.answer = api.ok("DELETE", f"{conversation.path}/labels/vip")
    assert conversation.view()["labels"] == ["troca"]
    assert conversation.history()[-1]["details"] == {"label": "vip", "before": ["troca", "vip"], "after": ["troca"]}


# Asking again


NO_OPS: list[tuple[str, str, dict[str, Any]]] = [
    ("with_bot", "handoff-to-bot", {"bot": BOT}),
    ("pending", "handoff-from-bot", {}),
    ("pending", "pending", {}),
    ("pending", "pending", {"sector_id": SECTOR}),
    ("in_progress", "assume", {"agent_id": BIA}),
    ("in_progress", "transfer", {"agent_id": BIA}),
    ("pending", "transfer", {"sector_id": SECTOR}),
    ("finalized", "finalize", {"surface": "inbox"}),
    ("finalized", "finalize", {"surface": "automation", "cause": "inactivity"}),
    ("pending", "reopen", {}),
    ("in_progress", "reopen", {}),
    ("pending", "priority", {"priority": "normal"}),
    ("pending", "attributes", {"key": "nothing", "value": None}),
    ("pending", "contact", {"contact_id": ANA}),
]


@pytest.mark.parametrize(("state", "what", "body"), NO_OPS)
def test_asking_for_what_is_already_so_is_no_event_and_no_error(
    api: Api,
    a_conversation: Callable[[str], Conversation],
    integration: Api,
    state: str,
    what: str,
    body: dict[str, Any],
) -> None:
    conversation = a_conversation(state)
    before, head = dict(conversation.answer), api.log_head()
    by = integration if "agent_id" in body or "cause" in body else api
    answer = conversation.do(what, body, by=by)
    assert (answer["events"], answer["version"], answer["status"]) == (0, before["version"], before["status"])
    assert api.log_head() == head


def test_commands_repeated_word_for_word_add_nothing(api: Api, a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    for what, body in (
        ("labels", {"label": "a"}),
        ("priority", {"priority": "low"}),
        ("attributes", {"key": "k", "value": 1}),
    ):
        assert conversation.do(what, body)["events"] == 1
        assert conversation.do(what, body)["events"] == 0
    assert api.ok("DELETE", f"{conversation.path}/labels/a")["events"] == 1
    assert api.ok("DELETE", f"{conversation.path}/labels/a")["events"] == 0


def test_a_repeated_key_gets_the_first_answer_again(api: Api, a_pending_conversation: Conversation) -> None:
    conversation, key = a_pending_conversation, uuid4().hex
    first = conversation.ask("notes", {"text": "uma vez"}, idempotency_key=key)
    conversation.do("labels", {"label": "between"})
    head = api.log_head()
    again = conversation.ask("notes", {"text": "uma vez"}, idempotency_key=key)
    assert (again.status_code, again.headers["etag"]) == (200, first.headers["etag"])
    assert again.json() == first.json() | {"replayed": True}
    assert api.log_head() == head
    assert [message["text"] for message in conversation.messages()].count("uma vez") == 1


def test_a_repeated_key_opens_one_conversation(api: Api) -> None:
    body, key = {"channel": "whatsapp", "contact_id": ANA}, uuid4().hex
    first = api.ok("POST", "/v1/conversations", body, idempotency_key=key)
    again = api.send_json("POST", "/v1/conversations", body, idempotency_key=key)
    assert again.json() == first | {"replayed": True}
    assert again.headers["location"].endswith(first["id"])


def test_a_key_for_another_request_is_refused_and_changes_nothing(
    api: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    conversation, other, key = a_conversation("in_progress"), a_conversation("in_progress"), uuid4().hex
    conversation.do("notes", {"text": "a"}, idempotency_key=key)
    head = api.log_head()
    refusals = [
        conversation.ask("notes", {"text": "b"}, idempotency_key=key),
        conversation.ask("labels", {"label": "a"}, idempotency_key=key),
        other.ask("notes", {"text": "a"}, idempotency_key=key),
    ]
    for refused in refusals:
        assert (refused.status_code, refused.json()["code"]) == (422, "idempotency-key-reused")
        assert refused.headers["content-type"] == "application/problem+json"
    assert api.log_head() == head


def test_a_refusal_under_a_key_is_not_remembered(a_finalized_conversation: Conversation) -> None:
    conversation, key = a_finalized_conversation, uuid4().hex
    assert conversation.ask("assume", {}, idempotency_key=key).status_code == 409
    conversation.do("reopen", {})
    answer = conversation.do("assume", {}, idempotency_key=key)
    assert (answer["events"], answer["replayed"]) == (1, False)


def test_a_key_sent_many_times_at_once_is_one_command(api: Api, a_pending_conversation: Conversation) -> None:
    conversation, key = a_pending_conversation, uuid4().hex
    head = api.log_head()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: conversation.do("notes", {"text": "x"}, idempotency_key=key), range(16)))
    assert [answer["replayed"] for answer in answers].count(False) == 1
    assert len({(answer["version"], answer["position"]) for answer in answers}) == 1
    assert api.log_head() == head + 1


def test_a_repeated_message_is_recognised_even_long_after(api: Api, a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    body = {"direction": "received", "message_id": str(uuid4()), "text": "Oi"}
    first = conversation.do("messages", body)
    for number in range(3):
        conversation.do("messages", {"direction": "received", "text": f"mais {number}"})
    head = api.log_head()
    again = conversation.do("messages", body)
    assert again == first | {"replayed": True}
    refused = conversation.ask("messages", body | {"text": "outra"})
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency-key-reused")
    assert api.log_head() == head
    assert [message["text"] for message in conversation.messages()].count("Oi") == 1


# If-Match


def test_an_old_version_is_refused_with_the_current_one(api: Api, a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    old = conversation.answer["version"]
    current = conversation.do("labels", {"label": "x"})["version"]
    head = api.log_head()
    for stale in (f'"{old}"', f'"{current + 1}"', '"0"'):
        refused = conversation.ask("assume", {}, if_match=stale)
        problem = refused.json()
        assert (refused.status_code, problem["code"], problem["version"]) == (412, "version-conflict", current)
        assert refused.headers["etag"] == f'"{current}"'
    assert api.log_head() == head
    assert conversation.do("assume", {}, if_match=f'"{current}"')["version"] == current + 1


def test_of_many_with_the_same_version_one_wins(a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    etag = f'"{conversation.answer["version"]}"'
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda number: conversation.ask("labels", {"label": f"l{number}"}, if_match=etag), range(8))
        )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7


def test_the_etag_of_a_query_fits_if_match(api: Api, a_pending_conversation: Conversation) -> None:
    conversation = a_pending_conversation
    read = api.get(conversation.path, params={"at_least": conversation.answer["position"]})
    assert conversation.do("assume", {}, if_match=read.headers["etag"])["events"] == 1


# Who is in charge


def test_a_bot_that_was_taken_over_must_stop(bot: Api, bia: Api, a_conversation_with_bot: Conversation) -> None:
    conversation = a_conversation_with_bot
    hello = {"direction": "sent", "text": "Olá, sou a Triagem"}
    assert conversation.do("messages", hello, by=bot)["events"] == 1
    conversation.do("assume", {}, by=bia)
    refused = conversation.ask("messages", hello, by=bot)
    assert (refused.status_code, refused.json()["code"]) == (409, "bot-not-in-charge")
    conversation.do("handoff-to-bot", {"bot": "outro"}, by=bia)
    refused = conversation.ask("messages", hello, by=bot)
    assert (refused.status_code, refused.json()["code"]) == (409, "bot-not-in-charge")
    conversation.do("handoff-from-bot", {}, by=bia)
    conversation.do("handoff-to-bot", {"bot": BOT}, by=bia)
    assert conversation.do("messages", hello, by=bot)["events"] == 1


def test_a_race_for_a_conversation_has_one_winner(
    bia: Api, davi: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    for _ in range(5):
        conversation = a_conversation("pending")
        with ThreadPoolExecutor(2) as threads:
            asked = [threads.submit(conversation.ask, "assume", {}, by=who) for who in (bia, davi)]
        answers = [answer.result() for answer in asked]
        assert sorted(answer.status_code for answer in answers) == [200, 409]
        lost = next(answer for answer in answers if answer.status_code == 409)
        assert lost.json()["code"] == "conversation-already-assumed"
        winner = BIA if answers[0].status_code == 200 else DAVI
        conversation.answer = next(answer for answer in answers if answer.status_code == 200).json()
        assert conversation.view()["agent_id"] == winner


def test_an_agent_acts_in_their_own_name_only(bia: Api, a_conversation: Callable[[str], Conversation]) -> None:
    conversation = a_conversation("pending")
    asks = [
        ("assume", {"agent_id": DAVI}),
        ("messages", {"direction": "sent", "text": "x", "author": {"kind": "agent", "id": DAVI}}),
        ("finalize", {"surface": "automation", "cause": "inactivity"}),
    ]
    for what, body in asks:
        refused = conversation.ask(what, body, by=bia)
        assert (refused.status_code, refused.json()["code"]) == (403, "permission-denied"), what
    assert conversation.view()["status"] == "pending"


# Contacts and directory


def test_a_contact_is_registered_and_its_change_shows_in_the_listing(
    api: Api, open_conversation: Callable[..., Conversation]
) -> None:
    details = {"name": "Rita Prado", "phones": ["+55 21 99876-5432"], "emails": ["rita@example.com"]}
    response = api.send_json("POST", "/v1/contacts", details)
    contact = response.json()
    assert (response.status_code, response.headers["location"]) == (201, f"/v1/contacts/{contact['id']}")
    conversation = open_conversation(contact_id=contact["id"])
    assert conversation.view()["contact_name"] == "Rita Prado"
    changed = {"name": "Rita P. Lima", "phones": [], "attributes": {"plano": "ouro", "nota": 9.5, "vip": True}}
    answer = api.ok("PUT", f"/v1/contacts/{contact['id']}", changed)
    assert (answer["version"], answer["events"]) == (2, 1)
    read = api.get(f"/v1/contacts/{contact['id']}", params={"at_least": answer["position"]})
    assert read.headers["etag"] == '"2"'
    assert {key: read.json()[key] for key in changed} == changed
    view = api.read(conversation.path, at_least=answer["position"])
    assert (view["contact_name"], view["contact_emails"]) == ("Rita P. Lima", [])
    assert view["contact_attributes"] == changed["attributes"]
    assert api.ok("PUT", f"/v1/contacts/{contact['id']}", changed)["events"] == 0


def eventually(api: Api, path: str, id_: str, expected: dict[str, Any]) -> None:
    """The directory's lists take no position to wait for; the history, projected after it, does."""
    answer = {}
    for _ in range(200):
        answer = next((row for row in api.read(path)["items"] if row["id"] == id_), {})
        if {key: answer.get(key) for key in expected} == expected:
            return
    pytest.fail(f"{path} shows {answer}, not {expected}")


def test_sectors_agents_and_memberships_come_and_go(api: Api) -> None:
    sector = api.ok("POST", "/v1/sectors", {"name": "Financeiro"})["id"]
    eventually(api, "/v1/sectors", sector, {"name": "Financeiro", "active": True})
    api.ok("PUT", f"/v1/sectors/{sector}/name", {"name": "Finanças"})
    eventually(api, "/v1/sectors", sector, {"name": "Finanças", "active": True})
    agent = api.ok("POST", "/v1/agents", {"name": "Caio Lima"})["id"]
    eventually(api, "/v1/agents", agent, {"name": "Caio Lima", "role": "agent", "sectors": []})
    api.ok("PUT", f"/v1/agents/{agent}/sectors/{sector}")
    api.ok("PUT", f"/v1/agents/{agent}/role", {"role": "supervisor"})
    eventually(api, "/v1/agents", agent, {"role": "supervisor", "sectors": [sector]})
    api.ok("DELETE", f"/v1/agents/{agent}/sectors/{sector}")
    eventually(api, "/v1/agents", agent, {"sectors": []})
    api.ok("DELETE", f"/v1/sectors/{sector}")
    eventually(api, "/v1/sectors", sector, {"active": False})
    api.ok("DELETE", f"/v1/agents/{agent}")
    eventually(api, "/v1/agents", agent, {"active": False})


def test_a_deactivated_agents_token_stops_working_and_so_does_a_revoked_one(
    api: Api, caller: Callable[..., Api], connect: Callable[[str | None], Api]
) -> None:
    agent = api.ok("POST", "/v1/agents", {"name": "De Saída", "role": "supervisor"})["id"]
    client = caller("agent", agent, "supervisor")
    assert client.read("/v1/me")["grants"]["finalize-from-listing"] == "all"
    api.ok("DELETE", f"/v1/agents/{agent}")
    until_refused(client)
    issued = api.ok("POST", "/v1/tokens", {"name": "x", "actor": {"kind": "integration", "id": "x"}, "role": "auditor"})
    client = connect(issued["secret"])
    eventually(api, "/v1/tokens", issued["id"], {"revoked": False})
    assert client.get("/v1/me").status_code == 200
    assert issued["secret"] not in str(api.read("/v1/tokens"))
    assert issued["secret"] not in str(api.read("/v1/events", after=issued["position"] - 1))
    api.ok("DELETE", f"/v1/tokens/{issued['id']}")
    until_refused(client)


def until_refused(client: Api) -> None:
    for _ in range(2_000):
        answer = client.get("/v1/me")
        if answer.status_code == 401:
            assert answer.json()["code"] == "unauthenticated"
            return
    pytest.fail("the token still works")


def test_an_expired_token_does_not_work(api: Api, connect: Callable[[str | None], Api]) -> None:
    body = {"name": "x", "actor": {"kind": "integration", "id": "x"}, "role": "admin"}
    at = datetime.now(UTC) + timedelta(seconds=2)
    issued = api.ok("POST", "/v1/tokens", body | {"expires_at": at.isoformat()})
    eventually(api, "/v1/tokens", issued["id"], {"revoked": False})
    time.sleep(max(0, (at - datetime.now(UTC)).total_seconds()))
    assert connect(issued["secret"]).get("/v1/me").status_code == 401


def test_a_token_that_would_have_expired_already_is_not_issued(api: Api) -> None:
    body = {"name": "x", "actor": {"kind": "integration", "id": "x"}, "role": "admin"}
    head = api.log_head()
    for moment in ("2020-01-01T00:00:00Z", (datetime.now(UTC) - timedelta(seconds=1)).isoformat()):
        answer = api.send_json("POST", "/v1/tokens", body | {"expires_at": moment})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-command")
    assert api.log_head() == head


def test_a_role_of_ones_own_grants_what_it_says(api: Api, caller: Callable[..., Api]) -> None:
    role = f"role-{uuid4().hex[:8]}"
    grants = {"view": "all", "label": "all"}
    api.ok("PUT", f"/v1/roles/{role}", {"grants": grants})
    client = caller("integration", "labeller", role)
    assert client.read("/v1/me")["grants"] == grants
    assert api.read("/v1/roles")["items"][role] == grants


def test_me_tells_who_i_am(bia: Api) -> None:
    me = bia.read("/v1/me")
    assert (me["workspace_id"], me["actor"]) == (str(demo.WORKSPACE), {"kind": "agent", "id": BIA})
    assert me["sectors"] == [SECTOR]


# The whole story, read back from the log alone


def test_the_log_read_page_by_page_is_gapless_and_agrees_with_the_history(api: Api) -> None:
    events, after = [], 0
    while True:
        page = api.read("/v1/events", after=after, limit=37)
        if page["next"] == after:
            break
        events += page["items"]
        after = page["next"]
    assert after >= api.log_head() - 1
    positions = [event["position"] for event in events]
    assert positions == sorted(set(positions))
    versions: dict[str, int] = {}
    for event in events:
        assert event["version"] == versions.get(event["stream_id"], 0) + 1
        versions[event["stream_id"]] = event["version"]
        assert UUID(event["stream_id"])
    history = api.items("/v1/history", limit=211, at_least=positions[-1])
    assert [entry["position"] for entry in history] == positions[::-1]
