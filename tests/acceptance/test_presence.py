"""Presence: agents say that they are there, are forgotten when they say nothing, and transfers know of it."""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from api import demo

Client = Any
BIA, DAVI = str(demo.AGENT), str(demo.OTHER_AGENT)


def presence_of(api: Client, agent: str) -> str:
    [found] = [each["status"] for each in api.read("/v1/presence")["items"] if each["agent_id"] == agent]
    return str(found)


def transferred_to(agent: str, conversation: Any) -> dict[str, Any]:
    found: dict[str, Any] = conversation.do("transfer", {"agent_id": agent})
    return found


def recorded_presence(conversation: Any) -> str | None:
    found: str | None = conversation.history()[-1]["details"]["target_presence"]
    return found


def test_an_agent_of_whom_nothing_was_heard_is_offline(api: Client) -> None:
    agent = api.ok("POST", "/v1/agents", {"name": "Calada"})
    api.read("/v1/transfer-targets", at_least=agent["position"])
    assert presence_of(api, agent["id"]) == "offline"


def test_what_an_agent_says_is_seen_by_all_in_the_workspace(api: Client, bia: Client) -> None:
    for status in ("online", "away", "offline", "online"):
        answer = bia.ok("PUT", "/v1/presence", {"status": status})
        assert (answer["agent_id"], answer["status"]) == (BIA, status)
        assert presence_of(api, BIA) == status


def test_nobody_speaks_for_another_and_only_agents_are_present(api: Client, integration: Client, bot: Client) -> None:
    for client in (integration, bot):
        answer = client.send_json("PUT", "/v1/presence", {"status": "online"})
        assert (answer.status_code, answer.json()["code"]) == (403, "permission-denied")
    for body in ({"status": "online", "agent_id": BIA}, {"status": "busy"}, {}, {"status": None}, []):
        assert api.send_json("PUT", "/v1/presence", body).status_code == 422


def test_presence_does_not_cross_workspaces(stranger: Client, bia: Client) -> None:
    bia.ok("PUT", "/v1/presence", {"status": "online"})
    assert BIA not in stranger.get("/v1/presence").text


def test_presence_is_no_event(api: Client, bia: Client) -> None:
    head = api.log_head()
    bia.ok("PUT", "/v1/presence", {"status": "away"})
    assert api.log_head() == head


def test_a_transfer_to_someone_offline_is_done_warned_of_and_recorded_as_such(
    davi: Client, a_pending_conversation: Any
) -> None:
    davi.ok("PUT", "/v1/presence", {"status": "offline"})
    time.sleep(1.1)  # what commands are told is at most a second old
    answer = transferred_to(DAVI, a_pending_conversation)
    assert (answer["status"], answer["warnings"]) == ("in_progress", ["target-offline"])
    assert recorded_presence(a_pending_conversation) == "offline"


def test_the_warning_is_given_again_under_the_same_idempotency_key(davi: Client, a_pending_conversation: Any) -> None:
    davi.ok("PUT", "/v1/presence", {"status": "offline"})
    key, body = uuid4().hex, {"agent_id": DAVI}
    first = a_pending_conversation.do("transfer", body, idempotency_key=key)
    davi.ok("PUT", "/v1/presence", {"status": "online"})
    again = a_pending_conversation.do("transfer", body, idempotency_key=key)
    assert (again["replayed"], again["warnings"]) == (True, first["warnings"])


def test_a_transfer_to_someone_who_is_there_warns_of_nothing(bia: Client, a_pending_conversation: Any) -> None:
    for status in ("online", "away"):
        bia.ok("PUT", "/v1/presence", {"status": status})
        answer = transferred_to(BIA, a_pending_conversation)
        assert "warnings" not in answer
        assert recorded_presence(a_pending_conversation) == status
        a_pending_conversation.do("pending", {})


def test_a_transfer_to_a_sector_knows_no_presence(a_pending_conversation: Any) -> None:
    answer = a_pending_conversation.do("transfer", {"sector_id": str(demo.OTHER_SECTOR)})
    assert "warnings" not in answer
    assert recorded_presence(a_pending_conversation) is None


def test_an_open_stream_keeps_an_agent_online(api: Client, caller: Callable[..., Client]) -> None:
    agent = api.ok("POST", "/v1/agents", {"name": "Gil", "role": "agent"})["id"]
    gil = caller("agent", agent, "agent")
    assert presence_of(api, agent) == "offline"
    with gil.stream("GET", "/v1/conversations/stream") as stream:
        assert stream.status_code == 200
        assert presence_of(api, agent) == "online"
        gil.ok("PUT", "/v1/presence", {"status": "away"})
        assert presence_of(api, agent) == "away"
