"""Watching: who may view a conversation reads it, live too, without becoming part of it; and it is recorded."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from streams_rig import Listener

from api import demo

Client = Any
BIA = str(demo.AGENT)


def accesses(api: Client, conversation: Any, **query: Any) -> list[tuple[str, str]]:
    """Who read what of the conversation, newest first."""
    return [
        (each["actor"]["id"], each["what"]) for each in api.items("/v1/accesses", conversation=conversation.id, **query)
    ]


def watch(client: Client, conversation: Any) -> Listener:
    listener = Listener(client, f"{conversation.path}/stream", at_least=conversation.answer["position"])
    assert (listener.status, listener.next().name) == (200, "ready")
    return listener


@pytest.fixture
def supervisor(caller: Callable[..., Client]) -> Client:
    return caller("integration", f"s-{uuid4().hex[:8]}", "supervisor")


def test_watching_leaves_the_conversation_as_it_is(supervisor: Client, a_conversation_in_progress: Any) -> None:
    before = a_conversation_in_progress.view()
    assert [each["text"] for each in supervisor.items(f"{a_conversation_in_progress.path}/messages")] == ["Bom dia!"]
    with watch(supervisor, a_conversation_in_progress) as watched:
        a_conversation_in_progress.do("messages", {"direction": "received", "text": "Oi?"})
        assert watched.until(lambda each: each.name == "message").data["text"] == "Oi?"
    after = a_conversation_in_progress.view()
    assert after["participants"] == before["participants"]
    assert (after["agent_id"], after["agents"], after["unread"]) == (BIA, before["agents"], before["unread"] + 1)
    assert after["version"] == before["version"] + 1


def test_what_is_read_is_recorded_before_it_is_told(
    api: Client, supervisor: Client, a_conversation_in_progress: Any
) -> None:
    conversation = a_conversation_in_progress
    conversation.view()
    me = supervisor.read("/v1/me")["actor"]["id"]
    answer = supervisor.get(f"{conversation.path}/messages")
    conversation.history(by=supervisor)
    watch(supervisor, conversation).close()
    assert accesses(api, conversation) == [(me, "stream"), (me, "history"), (me, "messages")]
    recorded = api.items("/v1/accesses", conversation=conversation.id, what="messages")
    assert [each["request_id"] for each in recorded] == [answer.headers["request-id"]]


def test_who_reads_of_a_contact_is_recorded(api: Client, supervisor: Client) -> None:
    me = supervisor.read("/v1/me")["actor"]["id"]
    contact = api.ok("POST", "/v1/contacts", {"name": "Lida por alguém"})
    supervisor.read(f"/v1/contacts/{contact['id']}", at_least=contact["position"])
    supervisor.read(f"/v1/contacts/{contact['id']}/timeline")
    found = api.items("/v1/accesses", contact=contact["id"])
    assert [(each["actor"]["id"], each["what"], each["conversation_id"]) for each in found] == [
        (me, "contact", None)
    ] * 2


def test_who_reads_their_own_is_not_recorded(api: Client, bia: Client, a_conversation_in_progress: Any) -> None:
    a_conversation_in_progress.view()
    a_conversation_in_progress.messages(by=bia)
    watch(bia, a_conversation_in_progress).close()
    assert accesses(api, a_conversation_in_progress) == []
    a_conversation_in_progress.do("pending", {"reason": "released"})
    a_conversation_in_progress.view()
    a_conversation_in_progress.messages(by=bia)
    assert accesses(api, a_conversation_in_progress) == [(BIA, "messages")]


def test_what_was_refused_is_no_access(api: Client, bia: Client, stranger: Client, open_conversation: Any) -> None:
    far = open_conversation(sector_id=str(demo.OTHER_SECTOR))
    far.view()
    for client in (bia, stranger):
        for what in ("messages", "stream", "history"):
            assert client.get(f"{far.path}/{what}").status_code in {403, 404}
    assert accesses(api, far) == []


def test_accesses_are_found_by_actor_conversation_and_period_page_by_page(
    api: Client, caller: Callable[..., Client], a_conversation_in_progress: Any
) -> None:
    conversation = a_conversation_in_progress
    conversation.view()
    readers = [f"r-{uuid4().hex[:8]}" for _ in range(2)]
    for reader in readers:
        client = caller("integration", reader, "supervisor")
        for _ in range(3):
            conversation.messages(by=client)
    assert accesses(api, conversation, limit=2) == [(reader, "messages") for reader in reversed(readers) for _ in "123"]
    assert accesses(api, conversation, actor=readers[0]) == [(readers[0], "messages")] * 3
    moments = [each["at"] for each in api.items("/v1/accesses", conversation=conversation.id)]
    assert moments == sorted(moments, reverse=True)
    assert len(accesses(api, conversation, at_from=moments[2])) == 3
    assert len(accesses(api, conversation, at_until=moments[2])) == 3


def test_accesses_are_for_auditors_of_the_workspace(
    api: Client, bia: Client, stranger: Client, supervisor: Client, a_conversation_in_progress: Any
) -> None:
    conversation = a_conversation_in_progress
    conversation.view()
    conversation.messages(by=supervisor)
    assert bia.get("/v1/accesses").status_code == 403
    assert accesses(stranger, conversation) == []
    assert conversation.id not in stranger.get("/v1/accesses").text


def test_accesses_out_of_scope_are_not_shown(
    api: Client, caller: Callable[..., Client], supervisor: Client, open_conversation: Any
) -> None:
    api.ok("PUT", "/v1/roles/auditor-do-setor", {"grants": {"view": "sector", "read-history": "sector"}})
    agent = api.ok("POST", "/v1/agents", {"name": "Nina", "role": "auditor-do-setor"})["id"]
    api.send_json("PUT", f"/v1/agents/{agent}/sectors/{demo.SECTOR}", None)
    nina = caller("agent", agent, "auditor-do-setor")
    near, far = open_conversation(), open_conversation(sector_id=str(demo.OTHER_SECTOR))
    for conversation in (near, far):
        conversation.view()
        conversation.messages(by=supervisor)
    assert len(accesses(nina, near)) == 1
    assert accesses(nina, far) == []
    assert far.id not in nina.get("/v1/accesses").text


@pytest.mark.parametrize("role", ["conversas_reader", "conversas_access", "conversas_writer", "conversas_projector"])
@pytest.mark.parametrize("statement", ["update accesses set what = 'x'", "delete from accesses", "truncate accesses"])
def test_a_recorded_access_stays_as_it_is(service: Any, role: str, statement: str) -> None:
    add = "insert into accesses (workspace_id, actor_kind, actor_id, what, request_id) values"
    add += " (gen_random_uuid(), 'agent', 'x', 'messages', gen_random_uuid())"
    refused = pytest.raises(psycopg.errors.InsufficientPrivilege)
    with psycopg.connect(service.database_url, options=f"-c role={role}") as connection, refused:
        connection.execute(statement.encode())
    with psycopg.connect(service.database_url) as owner:
        owner.execute(add.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute(statement.encode())
        owner.rollback()
