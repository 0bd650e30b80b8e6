"""Metrics per episode over HTTP: right after reopenings and transfers, and totals over any filter and period."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from api import demo

Client = Any


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


def episodes(conversation: Any, **parameters: Any) -> list[dict[str, Any]]:
    return conversation.api.items(
        f"{conversation.path}/episodes", at_least=conversation.answer["position"], **parameters
    )


def times(conversation: Any) -> dict[int, datetime]:
    """When each event happened, by version."""
    return {entry["version"]: at(entry["occurred_at"]) for entry in conversation.history()}


def a_label(api: Client, conversations: list[Any]) -> str:
    label = f"m-{uuid4().hex[:10]}"
    for conversation in conversations:
        conversation.do("labels", {"label": label})
    return label


def test_each_episode_has_its_own_waits_responses_transfers_and_end(
    api: Client, bia: Client, davi: Client, bot: Client, an_opened_conversation: Any
) -> None:
    it = an_opened_conversation  # version 1
    it.do("messages", {"direction": "received", "text": "oi"})  # 2
    it.do("handoff-to-bot", {"bot": "triagem"})  # 3
    it.do("messages", {"direction": "sent", "text": "olá"}, by=bot)  # 4: no agent's
    it.do("handoff-from-bot", {"sector_id": str(demo.SECTOR)})  # 5
    it.do("assume", by=bia)  # 6
    it.do("transfer", {"sector_id": str(demo.OTHER_SECTOR)}, by=bia)  # 7
    it.do("assume", by=davi)  # 8
    it.do("messages", {"direction": "sent", "text": "pois não"}, by=davi)  # 9
    it.do("finalize", {"surface": "inbox", "outcome": "vendida"}, by=davi)  # 10
    it.do("messages", {"direction": "received", "text": "mais uma coisa"})  # 11: reopened, 12: received
    it.do("assume", by=davi)  # 13
    it.do("finalize", {"surface": "listing", "outcome": "resolvida"})  # 14
    it.do("reopen", {"reason": "voltou"}, by=davi)  # 15
    when = times(it)

    def seconds(start: int, end: int) -> Any:
        return pytest.approx((when[end] - when[start]).total_seconds(), abs=1e-5)

    first, second, third = episodes(it)
    assert [found["episode"] for found in (first, second, third)] == [1, 2, 3]
    assert [at(found["started_at"]) for found in (first, second, third)] == [when[1], when[11], when[15]]
    # The first: waited in two sectors and not with the bot; the bot's answer is no first response.
    assert first["waiting_seconds"] == pytest.approx(
        sum((when[end] - when[start]).total_seconds() for start, end in ((1, 3), (5, 6), (7, 8))), abs=1e-5
    )
    assert (first["first_response_seconds"], first["resolution_seconds"]) == (seconds(1, 9), seconds(1, 10))
    assert (first["transfers"], first["messages_received"], first["messages_sent"]) == (1, 1, 2)
    assert (first["first_sector_id"], first["sector_id"]) == (str(demo.SECTOR), str(demo.OTHER_SECTOR))
    assert (first["first_agent_id"], first["agent_id"]) == (str(demo.AGENT), str(demo.OTHER_AGENT))
    assert (first["finalized_from"], first["finalized_by"]) == ("inbox", f"agent:{demo.OTHER_AGENT}")
    assert (first["finalized_surface"], first["outcome"], first["status"]) == ("inbox", "vendida", "finalized")
    assert (at(first["finalized_at"]), at(first["reopened_at"])) == (when[10], when[11])
    # The second: nothing of the first is carried over.
    assert (second["waiting_seconds"], second["resolution_seconds"]) == (seconds(11, 13), seconds(11, 14))
    assert (second["first_response_seconds"], second["transfers"]) == (None, 0)
    assert (second["messages_received"], second["messages_sent"]) == (1, 0)
    assert (second["finalized_from"], second["finalized_by"]) == ("listing", f"agent:{demo.ADMIN}")
    assert second["first_agent_id"] == str(demo.OTHER_AGENT)
    # The third goes on.
    assert (third["status"], third["finalized_at"], third["outcome"]) == ("pending", None, None)
    assert (at(third["waiting_since"]), third["waiting_seconds"], third["resolution_seconds"]) == (when[15], 0, None)
    assert third["opened_by"] == f"agent:{demo.OTHER_AGENT}"
    # The last one is what the listing shows.
    view = it.view()
    shared = set(third) & set(view) - {"transfers", "messages_received", "messages_sent", "opened_by"}
    assert {name: third[name] for name in shared} == {name: view[name] for name in shared}
    assert len(shared) > 12


def test_an_end_without_a_person_says_its_cause(a_pending_conversation: Any, bot: Client) -> None:
    a_pending_conversation.do("finalize", {"surface": "bot", "cause": "inactivity"}, by=bot)
    [episode] = episodes(a_pending_conversation)
    assert (episode["finalized_from"], episode["finalized_cause"]) == ("automatically", "inactivity")
    assert (episode["finalized_surface"], episode["outcome"]) == ("bot", None)
    assert episode["finalized_by"] == "bot:triagem"


def test_episodes_come_in_pages(a_finalized_conversation: Any) -> None:
    for _ in range(4):
        a_finalized_conversation.do("reopen", {})
        a_finalized_conversation.do("finalize", {"surface": "listing"})
    assert [found["episode"] for found in episodes(a_finalized_conversation, limit=2)] == [1, 2, 3, 4, 5]


def test_episodes_out_of_sight_do_not_exist(
    bia: Client, stranger: Client, open_conversation: Callable[..., Any]
) -> None:
    elsewhere = open_conversation(sector_id=str(demo.OTHER_SECTOR))
    episodes(elsewhere)
    for client in (bia, stranger):
        for path in (elsewhere.path, f"/v1/conversations/{uuid4()}"):
            answer = client.get(f"{path}/episodes")
            assert (answer.status_code, answer.json()["code"]) == (404, "conversation-not-found")


def total(api: Client, **parameters: Any) -> dict[str, Any]:
    found = api.read("/v1/metrics", **parameters)
    [item] = found["items"]
    assert found["more"] is False
    return dict(item)


def test_totals_are_those_of_the_episodes(api: Client, bia: Client, a_conversation: Callable[[str], Any]) -> None:
    made = [a_conversation(state) for state in ("finalized", "finalized", "in_progress", "pending", "with_bot")]
    made[0].do("reopen", {})
    made[0].do("assume", by=bia)
    made[0].do("messages", {"direction": "sent", "text": "pronto"}, by=bia)
    made[0].do("finalize", {"surface": "inbox"}, by=bia)
    label = a_label(api, made)
    rows = [row for conversation in made for row in episodes(conversation)]
    found = total(api, label=label, at_least=made[-1].answer["position"])
    assert (found["group"], found["episodes"], len(rows)) == ({}, 6, 6)
    assert (found["opened"], found["reopened"], found["finalized"], found["returned"]) == (5, 1, 3, 1)
    for name in ("transfers", "messages_received", "messages_sent"):
        assert found[name] == sum(row[name] for row in rows)
    for name in ("first_response_seconds", "resolution_seconds"):
        values = sorted(row[name] for row in rows if row[name] is not None)
        spread = found[name]
        assert (spread["count"], spread["average"]) == (len(values), pytest.approx(sum(values) / len(values)))
        assert values[0] <= spread["median"] <= spread["p90"] <= values[-1]
    assert found["resolution_seconds"]["count"] == 3
    ended = sum(row["waiting_seconds"] for row in rows)
    assert found["waiting_seconds"]["count"] == 6
    assert found["waiting_seconds"]["average"] * 6 > ended  # the one that is pending waits on
    assert found["waiting_seconds"]["average"] * 6 < ended + 60


def test_totals_are_told_apart_by_up_to_three_properties(api: Client, a_conversation: Callable[[str], Any]) -> None:
    made = [a_conversation(state) for state in ("finalized", "finalized", "in_progress", "pending")]
    query = {"label": a_label(api, made), "at_least": made[-1].answer["position"]}
    by_from = api.read("/v1/metrics", **query, group_by=["finalized_from"])["items"]
    assert [(item["group"], item["episodes"]) for item in by_from] == [
        ({"finalized_from": "listing"}, 2),
        ({"finalized_from": None}, 2),
    ]
    by_both = api.read("/v1/metrics", **query, group_by=["status", "agent"])["items"]
    assert {(item["group"]["status"], item["group"]["agent"]): item["episodes"] for item in by_both} == {
        ("finalized", str(demo.AGENT)): 2,
        ("in_progress", str(demo.AGENT)): 1,
        ("pending", None): 1,
    }
    days = api.read("/v1/metrics", **query, group_by=["day"], time_zone="Pacific/Kiritimati")["items"]
    started = at(made[0].view()["opened_at"]) + timedelta(hours=14)
    assert [item["group"]["day"] for item in days] == [started.date().isoformat()]


def test_a_period_is_over_starts_or_ends_and_holds_its_start_only(
    api: Client, a_conversation: Callable[[str], Any]
) -> None:
    made = [a_conversation("finalized"), a_conversation("pending")]
    label = a_label(api, made)
    query = {"label": label, "at_least": made[-1].answer["position"]}
    opened, ended = made[0].view()["opened_at"], made[0].view()["finalized_at"]
    assert total(api, **query, period_from=opened)["episodes"] == 2
    assert total(api, **query, period_until=opened)["episodes"] == 0
    assert total(api, **query, period="finalized", period_from=ended)["episodes"] == 1
    assert total(api, **query, period="finalized", period_until=ended)["episodes"] == 0
    assert total(api, **query, period="finalized")["episodes"] == 1


def test_the_same_filter_gives_the_same_totals_in_query_string_and_body(
    api: Client, a_conversation: Callable[[str], Any]
) -> None:
    made = [a_conversation(state) for state in ("finalized", "in_progress", "pending")]
    label = a_label(api, made)
    found = api.read("/v1/metrics", label=label, status="finalized", at_least=made[-1].answer["position"])["items"]
    filter_ = {
        "and": [
            {"field": "label", "operator": "is", "value": label},
            {"not": {"field": "status", "operator": "in", "value": ["pending", "in_progress"]}},
        ]
    }
    assert api.ok("POST", "/v1/metrics/search", {"filter": filter_})["items"] == found
    assert found[0]["episodes"] == 1


def test_only_what_is_in_scope_counts(
    api: Client, bia: Client, stranger: Client, caller: Callable[..., Client], open_conversation: Callable[..., Any]
) -> None:
    made = [open_conversation(), open_conversation(sector_id=str(demo.OTHER_SECTOR))]
    label = a_label(api, made)
    query = {"label": label, "at_least": made[-1].answer["position"]}
    assert [total(client, **query)["episodes"] for client in (api, bia, stranger)] == [2, 1, 0]
    role = f"r-{uuid4().hex[:12]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"read-history": "all", "export": "all"}})
    blind = caller("integration", f"i-{uuid4().hex[:8]}", role)
    assert blind.get("/v1/metrics").status_code == 403
    assert blind.send_json("POST", "/v1/metrics/search", {}).status_code == 403


@pytest.mark.parametrize(
    "parameters",
    [
        {"group_by": ["status", "channel", "sector", "agent"]},
        {"group_by": ["status", "status"]},
        {"group_by": ["contact_id; drop table episodes"]},
        {"time_zone": "Mars/Olympus_Mons"},
        {"time_zone": "localtime"},
        {"time_zone": "UTC'; select 1"},
        {"period": "whenever"},
        {"period_from": "yesterday"},
        {"period_from": "0"},
        {"unknown": "x"},
        {"filter": '{"field": "nothing", "operator": "is", "value": 1}'},
        {"at_least": 10**15},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_its_place(api: Client, parameters: dict[str, Any]) -> None:
    answer = api.get("/v1/metrics", params=parameters)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    assert answer.json()["errors"][0]["in"][:2] == ["query", next(iter(parameters))]
    body = {name: value for name, value in parameters.items() if name != "filter"}
    assert len(body) == 0 or api.send_json("POST", "/v1/metrics/search", body).status_code == 422


def test_a_bot_that_was_taken_over_is_told_so(
    bot: Client, bia: Client, a_conversation_with_bot: Any, an_opened_conversation: Any
) -> None:
    message = {"direction": "sent", "text": "Posso ajudar?"}
    it = a_conversation_with_bot
    it.do("messages", message, by=bot)
    it.do("assume", by=bia)
    before = len(it.messages())
    for _ in range(2):
        answer = it.ask("messages", message, by=bot)
        assert (answer.status_code, answer.json()["code"]) == (409, "bot-not-in-charge")
        assert "taken over" in answer.json()["detail"]
    assert len(it.messages()) == before
    it.do("handoff-to-bot", {"bot": "triagem"}, by=bia)
    it.do("messages", message, by=bot)  # handed back
    assert an_opened_conversation.ask("messages", message, by=bot).json()["code"] == "bot-not-in-charge"
