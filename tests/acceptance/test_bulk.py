"""Bulk actions over HTTP: one action on many conversations, each decided on its own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from api import demo

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.acceptance.conftest import Api, Conversation

UNKNOWN = "conversation-not-found"
OVER = {"done", "cancelled", "stopped"}


def on(*conversations: Conversation) -> dict[str, Any]:
    return {"ids": [conversation.id for conversation in conversations]}


def condition(field: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": "is", "value": value}


def label() -> str:
    """A label that nothing else bears."""
    return f"l{uuid4().hex[:12]}"


def long_list(*conversations: Conversation) -> dict[str, Any]:
    """These conversations, and before them so many that are not there that their turn comes late."""
    return {"ids": [*(str(uuid4()) for _ in range(9_900)), *(conversation.id for conversation in conversations)]}


def start(api: Api, action: str, on: dict[str, Any], parameters: Any = None, **more: Any) -> dict[str, Any]:
    body = {"action": action, "on": on, **more} | ({} if parameters is None else {"parameters": parameters})
    return api.ok("POST", "/v1/bulk", body)


def finished(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    """The job once it is over."""
    deadline = time.monotonic() + 30
    while (found := api.read(f"/v1/bulk/{job['id']}"))["state"] not in OVER:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def run(api: Api, action: str, on: dict[str, Any], parameters: Any = None, **more: Any) -> dict[str, Any]:
    return finished(api, start(api, action, on, parameters, **more))


def results(api: Api, job: dict[str, Any], **parameters: Any) -> dict[str, dict[str, Any]]:
    return {row["conversation_id"]: row for row in api.items(f"/v1/bulk/{job['id']}/results", **parameters)}


def outcomes(api: Api, job: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {id_: (row["outcome"], row["code"]) for id_, row in results(api, job).items()}


def last_event(conversation: Conversation, job: dict[str, Any]) -> dict[str, Any]:
    history = conversation.api.items(f"{conversation.path}/history", at_least=job["position"])
    return history[-1]


# Every action


@pytest.mark.parametrize(
    ("action", "parameters", "state", "topic", "status"),
    [
        ("finalize", {"outcome": "resolvida", "comment": "Feito."}, "pending", "finalized-from-listing", "finalized"),
        ("finalize", None, "with_bot", "finalized-from-listing", "finalized"),
        ("transfer", {"sector_id": str(demo.OTHER_SECTOR)}, "in_progress", "transferred", "pending"),
        (
            "transfer",
            {"agent_id": str(demo.AGENT), "reason": "folga"},
            "pending",
            "transferred",
            "in_progress",
        ),
        ("assume", None, "pending", "assumed", "in_progress"),
        ("reopen", {"reason": "engano"}, "finalized", "reopened", "pending"),
        ("add-label", {"label": "urgente"}, "pending", "label-added", "pending"),
        ("change-priority", {"priority": "high"}, "finalized", "priority-changed", "finalized"),
        ("mark-pending", None, "in_progress", "marked-pending", "pending"),
    ],
)
def test_an_action_changes_each_conversation_with_an_event_of_its_own_and_the_surface_bulk(
    api: Api,
    a_conversation: Callable[[str], Conversation],
    action: str,
    parameters: Any,
    state: str,
    topic: str,
    status: str,
) -> None:
    three = [a_conversation(state) for _ in range(3)]
    job = run(api, action, on(*three), parameters)
    assert (job["state"], job["total"], job["done"], job["changed"]) == ("done", 3, 3, 3)
    found = results(api, job)
    for conversation in three:
        event = last_event(conversation, job)
        assert event["topic"].removeprefix("conversation-") == f"{topic}.v1"
        assert (event["surface"], event["actor"]) == ("bulk", {"kind": "agent", "id": str(demo.ADMIN)})
        assert event["correlation_id"] == job["id"]
        row = found[conversation.id]
        assert (row["outcome"], row["version"], row["position"]) == ("changed", event["version"], event["position"])
        assert api.read(conversation.path, at_least=job["position"])["status"] == status


def test_a_label_is_taken_off_many(api: Api, a_conversation: Callable[[str], Conversation]) -> None:
    one, other = a_conversation("pending"), a_conversation("pending")
    one.do("labels", {"label": "vip"})
    job = run(api, "remove-label", on(one, other), {"label": "vip"})
    assert outcomes(api, job) == {one.id: ("changed", None), other.id: ("already", None)}
    assert last_event(one, job)["surface"] == "bulk"


def test_what_was_finalized_in_bulk_was_finalized_from_the_listing(
    api: Api, a_pending_conversation: Conversation
) -> None:
    job = run(api, "finalize", on(a_pending_conversation), {"outcome": "resolvida"})
    row = api.read(a_pending_conversation.path, at_least=job["position"])
    assert (row["finalized_from"], row["outcome"]) == ("listing", "resolvida")


def test_each_is_decided_on_its_own_and_a_refusal_leaves_the_others_alone(
    api: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    pending, bot, done = a_conversation("in_progress"), a_conversation("with_bot"), a_conversation("finalized")
    waiting, nowhere = a_conversation("pending"), str(uuid4())
    ids = on(pending, bot, done, waiting)["ids"]
    job = run(api, "mark-pending", {"ids": [*ids, nowhere]})
    assert outcomes(api, job) == {
        pending.id: ("changed", None),
        bot.id: ("refused", "conversation-with-bot"),
        done.id: ("refused", "conversation-already-finalized"),
        waiting.id: ("already", None),
        nowhere: ("refused", UNKNOWN),
    }
    tally = {name: job[name] for name in ("total", "done", "changed", "already", "refused", "failed", "cancelled")}
    assert tally == {"total": 5, "done": 5, "changed": 1, "already": 1, "refused": 3, "failed": 0, "cancelled": 0}
    assert job["per_second"] > 0
    assert set(results(api, job, outcome="refused")) == {bot.id, done.id, nowhere}


def test_an_id_that_is_named_twice_counts_once(api: Api, a_pending_conversation: Conversation) -> None:
    job = run(api, "finalize", on(a_pending_conversation, a_pending_conversation))
    assert (job["total"], job["changed"]) == (1, 1)


# On everything that matches


def test_a_filter_chooses_what_matches_when_the_action_starts(
    open_conversation: Callable[..., Conversation], api: Api
) -> None:
    name = label()
    chosen = [open_conversation(api) for _ in range(3)]
    for conversation in chosen:
        conversation.do("labels", {"label": name})
    open_conversation(api)
    body = {"action": "finalize", "on": {"filter": condition("label", name)}}
    job = api.ok("POST", f"/v1/bulk?at_least={chosen[-1].answer['position']}", body)
    assert job["total"] == 3
    late = open_conversation(api)
    late.do("labels", {"label": name})
    assert finished(api, job)["changed"] == 3
    assert set(results(api, job)) == {conversation.id for conversation in chosen}
    assert late.view()["status"] == "pending"


def test_nothing_matches_and_nothing_is_done(api: Api) -> None:
    job = run(api, "finalize", {"filter": condition("label", label())})
    assert (job["state"], job["total"], job["done"]) == ("done", 0, 0)


# Dry run


def test_a_dry_run_tells_what_would_happen_and_changes_nothing(
    api: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    one, other, done = a_conversation("pending"), a_conversation("in_progress"), a_conversation("finalized")
    bot = a_conversation("with_bot")
    head = api.log_head()
    job = run(api, "mark-pending", on(one, other, done, bot), dry_run=True)
    assert outcomes(api, job) == {
        one.id: ("already", None),
        other.id: ("changed", None),
        done.id: ("refused", "conversation-already-finalized"),
        bot.id: ("refused", "conversation-with-bot"),
    }
    assert (job["dry_run"], job["changed"], job["already"], job["refused"]) == (True, 1, 1, 2)
    assert api.log_head() == head
    assert other.view()["status"] == "in_progress"
    assert run(api, "mark-pending", on(one, other, done, bot))["changed"] == 1


# Who may


def test_what_is_out_of_the_callers_scope_is_not_there_for_a_bulk_action(
    open_conversation: Callable[..., Conversation], api: Api, bia: Api
) -> None:
    hers, not_hers = open_conversation(api), open_conversation(api, sector_id=str(demo.OTHER_SECTOR))
    job = run(bia, "add-label", on(hers, not_hers), {"label": "vip"})
    assert outcomes(bia, job) == {hers.id: ("changed", None), not_hers.id: ("refused", UNKNOWN)}
    assert not_hers.view()["labels"] == []


def test_a_filter_matches_within_the_callers_scope_only(
    open_conversation: Callable[..., Conversation], api: Api, bia: Api
) -> None:
    name = label()
    hers, not_hers = open_conversation(api), open_conversation(api, sector_id=str(demo.OTHER_SECTOR))
    for conversation in (hers, not_hers):
        conversation.do("labels", {"label": name})
    body = {"action": "add-label", "parameters": {"label": "vip"}, "on": {"filter": condition("label", name)}}
    job = finished(bia, bia.ok("POST", f"/v1/bulk?at_least={not_hers.answer['position']}", body))
    assert outcomes(bia, job) == {hers.id: ("changed", None)}


def test_nothing_of_another_workspace_is_touched_or_told(
    api: Api, stranger: Api, a_pending_conversation: Conversation
) -> None:
    secret = a_pending_conversation.view()["protocol"]
    head = api.log_head()
    job = run(stranger, "finalize", on(a_pending_conversation))
    assert outcomes(stranger, job) == {a_pending_conversation.id: ("refused", UNKNOWN)}
    assert run(stranger, "finalize", {"filter": condition("protocol", secret)})["total"] == 0
    assert api.log_head() == head
    theirs = run(api, "add-label", on(a_pending_conversation), {"label": "vip"})
    for path in ("", "/results"):
        answer = stranger.get(f"/v1/bulk/{theirs['id']}{path}")
        assert answer.status_code == 404
        assert secret not in answer.text
        assert a_pending_conversation.id not in answer.text
    assert stranger.send_json("POST", f"/v1/bulk/{theirs['id']}/cancel", None).status_code == 404
    assert theirs["id"] not in {row["id"] for row in stranger.items("/v1/bulk")}


def test_finalizing_in_bulk_needs_the_permission_to_finalize_from_the_listing(
    bia: Api, a_pending_conversation: Conversation
) -> None:
    before = bia.items("/v1/bulk")
    refused = bia.send_json("POST", "/v1/bulk", {"action": "finalize", "on": on(a_pending_conversation)})
    assert (refused.status_code, refused.json()["code"]) == (403, "permission-denied")
    assert "finalize-from-listing" in refused.json()["detail"]
    assert bia.items("/v1/bulk") == before


def test_a_job_is_its_callers_and_those_who_manage_everything_see_it(
    api: Api, bia: Api, davi: Api, a_pending_conversation: Conversation
) -> None:
    job = run(bia, "add-label", on(a_pending_conversation), {"label": "vip"})
    assert job["by"] == f"agent:{demo.AGENT}"
    for path in ("", "/results"):
        assert davi.get(f"/v1/bulk/{job['id']}{path}").status_code == 404
    refused = davi.send_json("POST", f"/v1/bulk/{job['id']}/cancel", None)
    assert (refused.status_code, refused.json()["code"]) == (404, "bulk-job-not-found")
    assert job["id"] not in {row["id"] for row in davi.items("/v1/bulk")}
    assert api.read(f"/v1/bulk/{job['id']}") == bia.read(f"/v1/bulk/{job['id']}")
    assert job["id"] in {row["id"] for row in api.items("/v1/bulk")}


def test_somebody_who_lost_a_permission_on_the_way_is_refused_what_is_left(
    api: Api, caller: Callable[..., Api], a_pending_conversation: Conversation
) -> None:
    agent = api.ok("POST", "/v1/agents", {"name": "Gil", "role": "supervisor"})["id"]
    gil = caller("agent", agent, "supervisor")
    job = start(gil, "finalize", long_list(a_pending_conversation))
    api.ok("PUT", f"/v1/agents/{agent}/role", {"role": "auditor"})
    assert finished(api, job)["state"] == "done"
    assert outcomes(api, job)[a_pending_conversation.id] == ("refused", "permission-denied")
    assert a_pending_conversation.view()["status"] == "pending"


def test_a_revoked_token_stops_its_jobs(
    api: Api, connect: Callable[[str], Api], a_pending_conversation: Conversation
) -> None:
    body = {"name": "robot", "actor": {"kind": "integration", "id": "robot"}, "role": "admin"}
    token = api.ok("POST", "/v1/tokens", body)
    robot = connect(token["secret"])
    while robot.get("/v1/me").status_code != 200:
        time.sleep(0.02)
    job = start(robot, "finalize", long_list(a_pending_conversation))
    api.ok("DELETE", f"/v1/tokens/{token['id']}")
    job = finished(api, job)
    assert (job["state"], job["reason"]) == ("stopped", "token-not-valid")
    assert 0 < job["cancelled"] == job["total"] - job["done"]
    assert outcomes(api, job)[a_pending_conversation.id] == ("cancelled", None)
    assert a_pending_conversation.view()["status"] == "pending"


# Cancelling


def test_once_a_cancel_is_answered_nothing_more_changes(api: Api, a_pending_conversation: Conversation) -> None:
    job = start(api, "finalize", long_list(a_pending_conversation))
    cancelled = api.ok("POST", f"/v1/bulk/{job['id']}/cancel")
    assert cancelled["state"] == "cancelled"
    assert 0 < cancelled["cancelled"] == cancelled["total"] - cancelled["done"]
    assert outcomes(api, job)[a_pending_conversation.id] == ("cancelled", None)
    assert api.ok("POST", f"/v1/bulk/{job['id']}/cancel") == cancelled
    other = run(api, "add-label", on(a_pending_conversation), {"label": "vip"})
    assert api.read(f"/v1/bulk/{job['id']}") == cancelled
    assert api.read(a_pending_conversation.path, at_least=other["position"])["status"] == "pending"


def test_what_is_over_cannot_be_cancelled_and_stays_as_it_is(api: Api, a_pending_conversation: Conversation) -> None:
    job = run(api, "finalize", on(a_pending_conversation))
    assert api.ok("POST", f"/v1/bulk/{job['id']}/cancel") == job


def test_a_small_job_does_not_wait_for_a_large_one(api: Api, a_pending_conversation: Conversation) -> None:
    large = start(api, "finalize", long_list())
    run(api, "add-label", on(a_pending_conversation), {"label": "vip"})
    assert api.read(f"/v1/bulk/{large['id']}")["state"] != "done"
    api.ok("POST", f"/v1/bulk/{large['id']}/cancel")


# Asked twice


def test_the_same_idempotency_key_gives_the_same_job(api: Api, a_pending_conversation: Conversation) -> None:
    body = {"action": "finalize", "on": on(a_pending_conversation)}
    key = uuid4().hex
    first = api.send_json("POST", "/v1/bulk", body, idempotency_key=key)
    job = finished(api, first.json())
    assert first.headers["Location"] == f"/v1/bulk/{job['id']}"
    head = api.log_head()
    again = api.send_json("POST", "/v1/bulk", body, idempotency_key=key)
    assert (again.status_code, again.json()) == (202, job)
    assert api.log_head() == head
    other = api.send_json("POST", "/v1/bulk", body | {"dry_run": True}, idempotency_key=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency-key-reused")


def test_the_same_key_from_many_at_once_starts_one_job(api: Api, a_pending_conversation: Conversation) -> None:
    body = {"action": "add-label", "parameters": {"label": "vip"}, "on": on(a_pending_conversation)}
    key = uuid4().hex
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.send_json("POST", "/v1/bulk", body, idempotency_key=key), range(8)))
    assert {answer.status_code for answer in answers} == {202}
    [id_] = {answer.json()["id"] for answer in answers}
    assert finished(api, {"id": id_})["changed"] == 1


def test_the_same_key_of_somebody_else_is_another_job(api: Api, bia: Api, a_pending_conversation: Conversation) -> None:
    body = {"action": "add-label", "parameters": {"label": "vip"}, "on": on(a_pending_conversation)}
    key = uuid4().hex
    mine = api.send_json("POST", "/v1/bulk", body, idempotency_key=key).json()
    hers = bia.send_json("POST", "/v1/bulk", body, idempotency_key=key).json()
    assert mine["id"] != hers["id"]


def test_an_id_of_ones_own_choice_is_taken_once(api: Api, bia: Api, a_pending_conversation: Conversation) -> None:
    body = {"id": str(uuid4()), "action": "add-label", "parameters": {"label": "vip"}}
    body["on"] = on(a_pending_conversation)
    first = api.ok("POST", "/v1/bulk", body)
    assert first["id"] == body["id"]
    assert api.ok("POST", "/v1/bulk", body)["id"] == body["id"]
    for by, other in ((api, body | {"dry_run": True}), (bia, body)):
        refused = by.send_json("POST", "/v1/bulk", other)
        assert (refused.status_code, refused.json()["code"]) == (409, "already-exists")


# Bad input, pages


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"action": "finalize"},
        {"action": "finalize", "on": {}},
        {"action": "finalize", "on": {"ids": []}},
        {"action": "finalize", "on": {"ids": ["x"]}},
        {"action": "finalize", "on": {"ids": [str(UUID(int=number)) for number in range(10_001)]}},
        {"action": "finalize", "on": {"filter": condition("nonsense", 1)}},
        {"action": "finalize", "on": {"filter": condition("status", "nonsense")}},
        {"action": "finalize", "on": {"ids": [str(UUID(int=1))], "filter": condition("status", "pending")}},
        {"action": "erase", "on": {"ids": [str(UUID(int=1))]}},
        {"action": "transfer", "on": {"ids": [str(UUID(int=1))]}},
        {"action": "transfer", "parameters": {}, "on": {"ids": [str(UUID(int=1))]}},
        {"action": "add-label", "parameters": {"label": "É isso"}, "on": {"ids": [str(UUID(int=1))]}},
        {"action": "finalize", "parameters": {"surface": "inbox"}, "on": {"ids": [str(UUID(int=1))]}},
        {"action": "finalize", "on": {"ids": [str(UUID(int=1))]}, "dry_run": "perhaps"},
    ],
    ids=lambda body: str(body)[:60],
)
def test_what_does_not_fit_the_description_is_refused_and_starts_nothing(api: Api, body: Any) -> None:
    before = api.read("/v1/bulk", limit=1)
    refused = api.send_json("POST", "/v1/bulk", body)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")
    assert api.read("/v1/bulk", limit=1) == before


def test_an_integration_says_which_agent_assumes(integration: Api, a_pending_conversation: Conversation) -> None:
    refused = integration.send_json("POST", "/v1/bulk", {"action": "assume", "on": on(a_pending_conversation)})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid-command")
    job = run(integration, "assume", on(a_pending_conversation), {"agent_id": str(demo.AGENT)})
    assert job["changed"] == 1


def test_jobs_and_results_come_in_pages(api: Api, a_conversation: Callable[[str], Conversation]) -> None:
    five = [a_conversation("pending") for _ in range(5)]
    some = [run(api, "add-label", on(*five), {"label": f"n{number}"})["id"] for number in range(3)]
    assert [row["id"] for row in api.items("/v1/bulk", limit=2)][:3] == some[::-1]
    rows = api.items(f"/v1/bulk/{some[0]}/results", limit=2)
    assert [row["number"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["conversation_id"] for row in rows] == [conversation.id for conversation in five]


def test_a_comment_is_not_kept_with_the_job_once_it_is_over(api: Api, a_pending_conversation: Conversation) -> None:
    job = run(api, "finalize", on(a_pending_conversation), {"outcome": "resolvida", "comment": "Ligou chorando."})
    assert job["parameters"] == {"outcome": "resolvida"}
