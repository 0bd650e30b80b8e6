"""Live streams: the log, the listing under a filter, one conversation; within scope, and no longer than the token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest
from campaign import SLOW_CANARY, only_in_campaigns
from running_service import wait_until
from streams_rig import TOKEN, Listener, Sent, serving

from api import demo

Client = Any
SUPORTE, VENDAS = str(demo.SECTOR), str(demo.OTHER_SECTOR)
BIA, DAVI = str(demo.AGENT), str(demo.OTHER_AGENT)
LISTING, LOG = "/v1/conversations/stream", "/v1/events/stream"
QUIET_SECONDS = 0.6
"""Far longer than an update takes to come: what has not come by then does not come."""


@contextmanager
def listening(client: Client, path: str, **query: Any) -> Iterator[Listener]:
    """A listener that has begun."""
    with Listener(client, path, **query) as listener:
        assert listener.status == 200
        assert listener.next().name == "ready"
        yield listener


@contextmanager
def listening_after(conversation: Any, client: Client, **query: Any) -> Iterator[Listener]:
    """A listener to the listing that is told nothing of what ``conversation`` was asked to do so far."""
    position, told = conversation.answer["position"], -1
    while told < position:
        with Listener(client, LISTING, **query) as listener:
            told = listener.next().data["position"]
            if told >= position:
                yield listener


def watching(client: Client, conversation: Any) -> AbstractContextManager[Listener]:
    """A listener to one conversation, its last command included."""
    return listening(client, f"{conversation.path}/stream", at_least=conversation.answer["position"])


def changes(sent: list[Sent]) -> list[tuple[str, str]]:
    """What was told of which row."""
    assert all(each.name == "change" for each in sent), sent
    return [(each.data["change"], each.data["id"]) for each in sent]


def message(direction: str = "received", text: str = "Olá") -> dict[str, str]:
    return {"direction": direction, "text": text}


# The log


def test_the_log_is_told_as_it_grows_with_the_same_envelope(api: Client, open_conversation: Any) -> None:
    with listening(api, LOG) as log:
        conversation = open_conversation()
        conversation.do("messages", message())
        position = conversation.answer["position"]
        sent = [log.until(lambda each: each.data["stream_id"] == conversation.id), log.next()]
        read = api.read("/v1/events", after=position - 2)["items"]
        assert [each.data for each in sent] == read
        assert [each.id for each in sent] == [str(position - 1), str(position)]


def test_the_log_is_told_from_any_position_without_gap_or_repetition(api: Client, open_conversation: Any) -> None:
    conversation = open_conversation()
    with Listener(api, LOG, after=0) as log:
        assert log.next() == Sent("ready", {"position": 0}, "0")
        for _ in range(3):
            conversation.do("notes", {"text": "x"})
        last = conversation.answer["position"]
        positions = [log.next().data["position"]]
        while positions[-1] < last:
            positions.append(log.next().data["position"])
    read, after = [], 0
    while after < last:
        page = api.read("/v1/events", after=after, limit=1000)
        read += [each["position"] for each in page["items"] if each["position"] <= last]
        after = page["next"]
    assert positions == read


def test_last_event_id_goes_on_where_the_stream_broke_off(api: Client, open_conversation: Any) -> None:
    conversation = open_conversation()
    position = conversation.answer["position"]
    conversation.do("notes", {"text": "meanwhile"})
    with Listener(api, LOG, headers={"Last-Event-ID": str(position)}, after=0) as log:
        log.next()
        assert log.next().data["position"] > position
    for wrong in ("x", "-1", "9" * 30, "1.5"):
        with Listener(api, LOG, headers={"Last-Event-ID": wrong}) as refused:
            assert refused.status == 422


def test_the_log_is_for_those_who_may_read_the_history_of_all(api: Client, bia: Client, stranger: Client) -> None:
    assert bia.get(LOG).status_code == 403
    with listening(stranger, LOG) as theirs:
        api.ok("POST", "/v1/sectors", {"name": "Só nosso"})
        assert theirs.rest(QUIET_SECONDS) == []


def test_the_log_needs_no_permission_beside_its_own_and_to_see_what_is_in_it(
    api: Client, caller: Callable[..., Client], open_conversation: Any
) -> None:
    api.ok("PUT", "/v1/roles/so-historico", {"grants": {"view": "all", "read-history": "all"}})
    with listening(caller("integration", "so-historico", "so-historico"), LOG) as log:
        conversation = open_conversation()
        assert log.until(lambda each: each.data["stream_id"] == conversation.id).data["version"] == 1


def test_the_log_says_nothing_personal(api: Client, open_conversation: Any) -> None:
    with listening(api, LOG) as log:
        conversation = open_conversation(subject="segredo-no-assunto")
        conversation.do("messages", message(text="segredo-na-mensagem"))
        last = conversation.answer["position"]
        log.until(lambda each: each.data["position"] == last)
        assert b"segredo" not in log.raw


# The listing


def test_a_row_comes_into_the_filter_changes_in_it_and_leaves(api: Client, open_conversation: Any) -> None:
    with listening(api, LISTING, status="pending", sector=VENDAS) as listing:
        conversation = open_conversation(sector_id=VENDAS)
        came = listing.next()
        assert changes([came]) == [("upsert", conversation.id)]
        conversation.do("messages", message())
        assert listing.next().data["row"] == conversation.view()
        conversation.do("transfer", {"agent_id": DAVI})
        assert listing.next() == Sent("change", {"id": conversation.id, "change": "leave"})
        conversation.do("notes", {"text": "not in the filter"})
        assert listing.rest(QUIET_SECONDS) == []
        conversation.do("pending", {"sector_id": VENDAS})
        assert changes([listing.next()]) == [("upsert", conversation.id)]


def test_a_row_that_never_fitted_is_never_told(api: Client, a_conversation_in_progress: Any) -> None:
    conversation = a_conversation_in_progress
    with listening_after(conversation, api, status="pending") as listing:
        conversation.do("messages", message())
        conversation.do("labels", {"label": "vip"})
        conversation.do("finalize", {"surface": "inbox", "outcome": "ok"})
        assert listing.rest(QUIET_SECONDS) == []


def test_a_row_that_was_there_before_the_stream_leaves(api: Client, a_pending_conversation: Any) -> None:
    conversation = a_pending_conversation
    conversation.do("labels", {"label": "urgente"})
    with (
        listening_after(conversation, api, status="pending") as by_status,
        listening(api, LISTING, label="urgente") as by_label,
        listening(api, LISTING, filter='{"field": "notes", "operator": "is", "value": 0}') as by_count,
    ):
        api.ok("DELETE", f"{conversation.path}/labels/urgente")
        assert changes([by_label.next()]) == [("leave", conversation.id)]
        conversation.do("notes", {"text": "one"})
        assert by_count.until(lambda each: each.data["change"] == "leave").data["id"] == conversation.id
        conversation.do("assume", {"agent_id": str(demo.ADMIN)})
        assert by_status.until(lambda each: each.data["change"] == "leave").data["id"] == conversation.id


def test_nested_filters_are_the_same_as_in_the_listing(api: Client, open_conversation: Any) -> None:
    nested = '{"and": [{"field": "priority", "operator": "greater", "value": "normal"}, {"not": '
    nested += '{"field": "channel", "operator": "is", "value": "email"}}]}'
    with listening(api, LISTING, filter=nested) as listing:
        mail, chat = open_conversation(channel="email"), open_conversation(channel="webchat")
        for conversation in (mail, chat):
            conversation.do("priority", {"priority": "urgent"})
        assert changes([listing.next()]) == [("upsert", chat.id)]
        assert listing.rest(QUIET_SECONDS) == []
    assert api.get(LISTING, params={"filter": '{"field": "nonsense"}'}).status_code == 422


def test_what_changes_of_a_contact_changes_its_rows(api: Client, open_conversation: Any) -> None:
    contact = api.ok("POST", "/v1/contacts", {"name": "Íris Lima"})["id"]
    conversation = open_conversation(contact_id=contact)
    with listening_after(conversation, api, q="iris") as listing:
        api.ok("PUT", f"/v1/contacts/{contact}", {"name": "Íris Melo"})
        sent = listing.next()
        assert (sent.data["change"], sent.data["row"]["contact_name"]) == ("upsert", "Íris Melo")
        api.ok("PUT", f"/v1/contacts/{contact}", {"name": "Rosa Melo"})
        assert changes([listing.next()]) == [("leave", conversation.id)]


SECRET = "segredo-fora-do-alcance"


def show_scope(api: Client, bia: Client) -> list[tuple[str, str]]:
    """What Bia, who serves in Suporte only, is told: of a conversation in Vendas, and of one that goes there."""
    with listening(bia, LISTING) as listing:
        contact, vendas = {"contact_id": str(demo.CONTACT)}, {"channel": "phone", "sector_id": VENDAS}
        far = api.ok("POST", "/v1/conversations", contact | vendas | {"subject": SECRET})["id"]
        api.ok("POST", f"/v1/conversations/{far}/messages", message("sent"))
        near = api.ok("POST", "/v1/conversations", contact | vendas | {"sector_id": SUPORTE})["id"]
        for sector in (VENDAS, SUPORTE):
            time.sleep(QUIET_SECONDS)
            api.ok("POST", f"/v1/conversations/{near}/transfer", {"sector_id": sector})
        api.ok("POST", f"/v1/conversations/{far}/notes", {"text": "x"})
        found = changes(listing.rest(2 * QUIET_SECONDS))
        assert SECRET.encode() not in listing.raw
    assert {id_ for _, id_ in found} == {near}
    return found


def test_what_is_out_of_scope_is_never_told_and_what_goes_there_leaves(api: Client, bia: Client) -> None:
    assert [change for change, _ in show_scope(api, bia)] == ["upsert", "leave", "upsert"]


def test_a_row_that_was_there_before_leaves_the_scope(bia: Client, a_pending_conversation: Any) -> None:
    has_messages = '{"field": "messages", "operator": "greater", "value": 0}'
    with listening_after(a_pending_conversation, bia, filter=has_messages) as listing:
        a_pending_conversation.do("transfer", {"sector_id": VENDAS})
        assert changes([listing.next()]) == [("leave", a_pending_conversation.id)]


def test_streams_of_another_workspace_hear_nothing(stranger: Client, open_conversation: Any) -> None:
    with listening(stranger, LISTING) as listing:
        open_conversation().do("messages", message())
        assert listing.rest(QUIET_SECONDS) == []


def test_contacts_are_shown_to_those_who_may_view_them(
    api: Client, caller: Callable[..., Client], open_conversation: Any
) -> None:
    api.ok("PUT", "/v1/roles/so-ve", {"grants": {"view": "all"}})
    blind = caller("integration", "so-ve", "so-ve")
    with listening(blind, LISTING) as theirs, listening(api, LISTING) as ours:
        conversation = open_conversation()
        assert ours.next().data["row"]["contact_name"] == "Ana Souza"
        row = theirs.next().data["row"]
        assert (row["id"], row["contact_name"], row["contact_phones"]) == (conversation.id, None, [])
        assert b"Ana" not in theirs.raw


def test_from_ready_on_nothing_is_missed(api: Client, open_conversation: Any) -> None:
    conversation = open_conversation()
    assert conversation.view()["notes"] == 0
    with Listener(api, LISTING) as listing:
        position = listing.next().data["position"]
        conversation.do("notes", {"text": "meanwhile"})
        if api.read(conversation.path, at_least=position)["notes"] == 0:
            listing.until(lambda each: each.data["row"]["notes"] == 1)


# One conversation


def test_a_conversation_is_told_as_it_goes_on(api: Client, a_conversation_in_progress: Any) -> None:
    conversation = a_conversation_in_progress
    with watching(api, conversation) as watched:
        conversation.do("messages", message(text="Ainda aí?"))
        conversation.do("labels", {"label": "vip"})
        conversation.do("notes", {"text": "uma nota"})
        sent = [watched.next() for _ in range(3)]
        assert [each.name for each in sent] == ["message", "event", "message"]
        assert [each.data for each in sent if each.name == "message"] == conversation.messages()[-2:]
        assert sent[1].data["topic"] == "label-added.v1"
        assert [each.id for each in sent] == [str(conversation.answer["version"] - back) for back in (2, 1, 0)]


def test_a_conversation_is_told_from_any_version(api: Client, a_conversation_in_progress: Any) -> None:
    conversation = a_conversation_in_progress
    for after, headers in ((0, {}), (5, {"Last-Event-ID": "0"})):
        with Listener(
            api, f"{conversation.path}/stream", after=after, headers=headers, at_least=conversation.answer["position"]
        ) as watched:
            assert watched.next() == Sent("ready", {"version": 0}, "0")
            told = [watched.next() for _ in range(conversation.answer["version"])]
            assert [int(each.id or 0) for each in told] == list(range(1, conversation.answer["version"] + 1))
            assert watched.rest(QUIET_SECONDS) == []


def test_who_may_not_read_the_history_is_told_messages_only(bia: Client, a_conversation_in_progress: Any) -> None:
    with watching(bia, a_conversation_in_progress) as watched:
        a_conversation_in_progress.do("labels", {"label": "vip"})
        a_conversation_in_progress.do("messages", message())
        assert watched.next().name == "message"


def test_whoever_watches_is_let_go_when_it_leaves_their_scope(bia: Client, a_pending_conversation: Any) -> None:
    with watching(bia, a_pending_conversation) as watched:
        a_pending_conversation.do("transfer", {"sector_id": VENDAS})
        a_pending_conversation.do("messages", message(text=SECRET))
        assert watched.ends(5) == [Sent("leave", {"reason": "out-of-scope"})]
        assert SECRET.encode() not in watched.raw
        position = a_pending_conversation.answer["position"]
    assert bia.get(f"{a_pending_conversation.path}/stream", params={"at_least": position}).status_code == 404


def test_a_conversation_out_of_scope_cannot_be_watched(bia: Client, stranger: Client, open_conversation: Any) -> None:
    far = open_conversation(sector_id=VENDAS)
    for client in (bia, stranger):
        answer = client.get(f"{far.path}/stream", params={"at_least": far.answer["position"]})
        assert (answer.status_code, answer.json()["code"]) == (404, "conversation-not-found")


# Tokens


@pytest.mark.parametrize("path", [LOG, LISTING])
def test_a_revoked_token_ends_its_streams_within_5_seconds(api: Client, connect: Any, path: str) -> None:
    body = {"name": "short", "actor": {"kind": "integration", "id": "x"}, "role": "supervisor"}
    issued = api.ok("POST", "/v1/tokens", body)
    client = connect(issued["secret"])
    wait_until(lambda: client.get("/v1/me").status_code == 200, "the token works")
    with listening(client, path) as stream:
        api.ok("DELETE", f"/v1/tokens/{issued['id']}")
        revoked = time.monotonic()
        assert stream.ends(5)[-1] == Sent("resync", {"reason": "unauthenticated"})
        assert time.monotonic() - revoked < 5


def test_an_expired_token_ends_its_streams_within_5_seconds(api: Client, connect: Any) -> None:
    expires_at = time.time() + 3
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires_at))
    body = {"name": "short", "actor": {"kind": "integration", "id": "x"}, "role": "supervisor", "expires_at": moment}
    client = connect(api.ok("POST", "/v1/tokens", body)["secret"])
    wait_until(lambda: client.get("/v1/me").status_code == 200, "the token works")
    with listening(client, LISTING) as stream:
        assert stream.ends(8)[-1] == Sent("resync", {"reason": "unauthenticated"})
        assert time.time() < expires_at + 5


def test_who_changes_sectors_starts_anew(api: Client, caller: Callable[..., Client]) -> None:
    agent = api.ok("POST", "/v1/agents", {"name": "Hugo", "role": "agent"})["id"]
    hugo = caller("agent", agent, "agent")
    with listening(hugo, LISTING) as stream:
        api.send_json("PUT", f"/v1/agents/{agent}/sectors/{SUPORTE}", None)
        assert stream.ends(5)[-1] == Sent("resync", {"reason": "rights-changed"})


def test_no_stream_without_a_valid_token(connect: Any) -> None:
    for path in (LOG, LISTING, f"/v1/conversations/{demo.CONVERSATION}/stream"):
        assert connect(None).get(path).status_code == 401
        assert connect("cvs_nonsense").get(path).status_code == 401


NO_SCOPE = """
import api.streams
api.streams.where = lambda caller, chosen: ("workspace_id = %s", [caller.workspace_id])
"""


@pytest.mark.faults
@only_in_campaigns(SLOW_CANARY)
def test_canary_without_the_scope_the_test_of_it_fails(postgres_url: str) -> None:
    with serving(postgres_url, patch=NO_SCOPE) as running:
        with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            body = {"name": "bia", "actor": {"kind": "agent", "id": BIA}, "role": "agent"}
            secret = client.post("/v1/tokens", json=body).json()["secret"]
        admin, bia = (Rough(running.url, token) for token in (TOKEN, secret))
        wait_until(lambda: bia.get("/v1/me").status_code == 200, "the token works")
        with pytest.raises(AssertionError):
            show_scope(admin, bia)
        admin.close()
        bia.close()


class Rough(httpx.Client):
    """As much of the acceptance tests' client as `show_scope` needs."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def ok(self, method: str, path: str, body: Any) -> Any:
        return self.request(method, path, json=body).raise_for_status().json()
