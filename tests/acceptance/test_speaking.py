"""Who speaks for whom, keys and messages of others, a bot that was taken over.

Invariant: nobody speaks as another kind of participant, and no refusal tells of what is out of sight.
"""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from api import demo

Client = Any
RECEIVED = {"direction": "received", "text": "Oi"}


def narrowed(api: Client, connect: Callable[..., Client], kind: str, id_: str, grants: dict[str, str]) -> Client:
    """A token of an integration's role that was narrowed to ``grants``."""
    body = {"name": "x", "actor": {"kind": kind, "id": id_}, "role": "integration", "grants": grants}
    client = connect(api.ok("POST", "/v1/tokens", body)["secret"])
    for _ in range(600):
        if client.get("/v1/me").status_code == 200:
            break
    return client


def refused(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


@pytest.mark.parametrize("state", ["in_progress", "finalized"])
def test_neither_agents_nor_bots_speak_as_the_contact(
    api: Client, bia: Client, bot: Client, integration: Client, a_conversation: Any, state: str
) -> None:
    conversation = a_conversation(state)
    before = api.log_head()
    for client in (api, bia, bot):
        assert refused(conversation.ask("messages", RECEIVED, by=client)) == (403, "permission-denied")
    assert api.log_head() == before
    conversation.do("messages", RECEIVED, by=integration)
    assert conversation.view()["status"] != "finalized"


@pytest.mark.parametrize("surface", ["bot", "channel", "automation"])
def test_an_agent_acts_from_no_programs_surface(
    api: Client, bia: Client, integration: Client, a_conversation_in_progress: Any, surface: str
) -> None:
    before = api.log_head()
    for client in (api, bia):
        answer = a_conversation_in_progress.ask("labels", {"label": "x"}, by=client, surface=surface)
        assert refused(answer) == (403, "permission-denied")
    assert api.log_head() == before
    a_conversation_in_progress.do("labels", {"label": "x"}, by=integration, surface=surface)
    assert a_conversation_in_progress.history()[-1]["surface"] == surface


def test_a_bot_ends_and_reopens_only_with_the_permission_for_it(
    api: Client, connect: Callable[..., Client], a_conversation_with_bot: Any
) -> None:
    writer = narrowed(api, connect, "bot", "triagem", {"view": "all", "reply": "all"})
    ending = {"surface": "bot", "cause": "bot"}
    a_conversation_with_bot.do("messages", {"direction": "sent", "text": "Oi"}, by=writer)
    assert refused(a_conversation_with_bot.ask("finalize", ending, by=writer)) == (403, "permission-denied")
    a_conversation_with_bot.do("finalize", {"surface": "listing"})
    assert refused(a_conversation_with_bot.ask("reopen", {}, by=writer)) == (403, "permission-denied")
    assert refused(a_conversation_with_bot.ask("messages", RECEIVED, by=writer)) == (403, "permission-denied")


def test_a_bot_that_was_taken_over_is_told_so(
    api: Client, connect: Callable[..., Client], bia: Client, a_conversation_with_bot: Any, open_conversation: Any
) -> None:
    bot = narrowed(api, connect, "bot", "triagem", {"view": "own", "reply": "own"})
    message = {"direction": "sent", "text": "Oi"}
    a_conversation_with_bot.do("messages", message, by=bot)
    a_conversation_with_bot.do("assume", by=bia)
    head = api.log_head()
    assert refused(a_conversation_with_bot.ask("messages", message, by=bot)) == (409, "bot-not-in-charge")
    assert refused(a_conversation_with_bot.ask("notes", {"text": "x"}, by=bot)) == (404, "conversation-not-found")
    at_least = {"at_least": a_conversation_with_bot.answer["position"]}
    assert bot.get(a_conversation_with_bot.path, params=at_least).status_code == 404
    never_its = open_conversation()
    assert refused(never_its.ask("messages", message, by=bot)) == (404, "conversation-not-found")
    assert api.log_head() == head + 1


def test_anothers_idempotency_key_is_another_key(api: Client, bia: Client, open_conversation: Any) -> None:
    key, hidden = uuid4().hex, open_conversation(sector_id=str(demo.OTHER_SECTOR))
    hidden.do("labels", {"label": "x"}, idempotency_key=key)
    for body in ({"label": "x"}, {"label": "y"}):
        answer = hidden.ask("labels", body, by=bia, idempotency_key=key)
        assert refused(answer) == (404, "conversation-not-found")
    mine = open_conversation()
    assert mine.do("labels", {"label": "x"}, by=bia, idempotency_key=key)["replayed"] is False
    assert refused(mine.ask("labels", {"label": "y"}, by=bia, idempotency_key=key)) == (422, "idempotency-key-reused")


def test_a_message_id_of_a_conversation_out_of_sight_tells_nothing(
    api: Client, bia: Client, connect: Callable[..., Client], open_conversation: Any
) -> None:
    hidden = open_conversation(sector_id=str(demo.OTHER_SECTOR))
    body = {"direction": "sent", "message_id": str(uuid4()), "text": "segredo"}
    hidden.do("messages", body)
    for asked in (body, body | {"text": "x"}, body | {"message_id": str(uuid4())}):
        assert refused(hidden.ask("messages", asked, by=bia)) == (404, "conversation-not-found")
    seen = open_conversation()
    seen.do("messages", body)
    viewer = narrowed(api, connect, "integration", "viewer", {"view": "all"})
    assert refused(seen.ask("messages", body, by=viewer)) == (403, "permission-denied")
    assert refused(seen.ask("messages", body, by=bia)) == (422, "idempotency-key-reused")


def test_a_true_repeat_is_answered_though_it_took_the_conversation_out_of_sight(
    bia: Client, a_pending_conversation: Any
) -> None:
    key, away = uuid4().hex, {"sector_id": str(demo.OTHER_SECTOR)}
    first = a_pending_conversation.do("transfer", away, by=bia, idempotency_key=key)
    assert refused(a_pending_conversation.ask("transfer", away, by=bia)) == (404, "conversation-not-found")
    assert a_pending_conversation.do("transfer", away, by=bia, idempotency_key=key) == first | {"replayed": True}
    other = a_pending_conversation.ask("transfer", away | {"reason": "x"}, by=bia, idempotency_key=key)
    assert refused(other) == (404, "conversation-not-found")
