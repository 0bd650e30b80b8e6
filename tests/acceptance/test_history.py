"""The history as a client sees it: in words, by every filter, as a file, of what is in reach, and recorded."""

import csv
import io
import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api import demo

Client = Any
Conversation = Any


@pytest.fixture(scope="module")
def correlation() -> str:
    return str(uuid4())


@pytest.fixture(scope="module")
def told(api: Client, open_conversation: Callable[..., Conversation], correlation: str) -> Conversation:
    conversation = open_conversation()
    conversation.do("transfer", {"sector_id": str(demo.SECTOR), "agent_id": str(demo.AGENT)})
    conversation.do(
        "labels", {"label": "=vip".strip("=")}, correlation_id=correlation, causation_id=f"by-{correlation}"
    )
    conversation.do("finalize", {"surface": "listing", "outcome": "=2+3"})
    conversation.history()
    return conversation


def test_each_entry_is_a_sentence_in_the_language_and_zone_asked_for(api: Client, told: Conversation) -> None:
    path = f"{told.path}/history"
    entry = api.items(path)[-1]
    agent = {each["id"]: each["name"] for each in api.read("/v1/agents")["items"]}[str(demo.AGENT)]
    at = datetime.fromisoformat(entry["recorded_at"])
    here = (at - timedelta(hours=3)).strftime("em %d/%m/%Y às %H:%M")
    assert entry["sentence"].startswith("Finalizada por ")
    assert entry["sentence"].endswith(f", pela listagem, {here}, resultado: =2+3")
    transfer = api.items(path)[1]["sentence"]
    assert f" para {agent} (Suporte) (estava offline) por " in transfer
    assert api.items(path, lang="en", tz="UTC")[-1]["sentence"].startswith("Finalized by ")
    assert api.get(path, headers={"Accept-Language": "en"}).json()["items"][-1]["sentence"].startswith("Finalized")
    assert api.items("/v1/history", stream=told.id, tz="UTC")[0]["sentence"].endswith(
        f", {at.strftime('em %d/%m/%Y às %H:%M')}, resultado: =2+3"
    )
    timeline = api.items(f"/v1/contacts/{demo.CONTACT}/timeline", lang="en", limit=500)
    assert all(each["sentence"] for each in timeline)


def test_every_filter_finds_what_it_says_and_nothing_else(api: Client, told: Conversation, correlation: str) -> None:
    everything = api.items("/v1/history", limit=500)
    mine = told.history()
    first, last = mine[0], mine[-1]
    label = next(entry for entry in mine if entry["topic"] == "label-added.v1")
    contact, bot = str(demo.CONTACT), "triagem"
    by_version = {(entry["stream_id"], entry["version"]): entry for entry in everything}
    nothing = dict.fromkeys(("status", "sector_id", "agent_id", "bot", "contact_id"))

    def stood_before(entry: dict[str, Any]) -> dict[str, Any]:
        earlier = by_version.get((entry["stream_id"], entry["version"] - 1), nothing)
        return {name: earlier[name] for name in nothing}

    theirs = {entry["position"] for entry in api.items(f"/v1/contacts/{contact}/timeline", limit=500)}
    cases: list[tuple[dict[str, str], Callable[[dict[str, Any]], bool]]] = [
        ({"actor_kind": first["actor"]["kind"]}, lambda e: e["actor"]["kind"] == first["actor"]["kind"]),
        ({"actor": first["actor"]["id"]}, lambda e: e["actor"]["id"] == first["actor"]["id"]),
        ({"status": "finalized"}, lambda e: e["status"] == "finalized"),
        ({"sector": str(demo.SECTOR)}, lambda e: e["sector_id"] == str(demo.SECTOR)),
        ({"agent": str(demo.AGENT)}, lambda e: e["agent_id"] == str(demo.AGENT)),
        ({"bot": bot}, lambda e: e["bot"] == bot),
        ({"status_before": "pending"}, lambda e: stood_before(e)["status"] == "pending"),
        ({"sector_before": str(demo.SECTOR)}, lambda e: stood_before(e)["sector_id"] == str(demo.SECTOR)),
        ({"agent_before": str(demo.AGENT)}, lambda e: stood_before(e)["agent_id"] == str(demo.AGENT)),
        ({"bot_before": bot}, lambda e: stood_before(e)["bot"] == bot),
        ({"contact": contact}, lambda e: e["position"] in theirs),
        ({"surface": "listing"}, lambda e: e["surface"] == "listing"),
        ({"request_id": label["request_id"]}, lambda e: e["request_id"] == label["request_id"]),
        ({"correlation_id": correlation}, lambda e: e["correlation_id"] == correlation),
        ({"causation_id": f"by-{correlation}"}, lambda e: e["causation_id"] == f"by-{correlation}"),
        ({"recorded_from": label["recorded_at"]}, lambda e: e["recorded_at"] >= label["recorded_at"]),
        ({"recorded_until": label["recorded_at"]}, lambda e: e["recorded_at"] < label["recorded_at"]),
        ({"occurred_from": last["occurred_at"]}, lambda e: e["occurred_at"] >= last["occurred_at"]),
    ]
    newest = everything[0]["position"]
    assert [e["before"] and e["before"]["status"] for e in mine] == [None, *(e["status"] for e in mine[:-1])]
    assert all((e["before"] or nothing) == stood_before(e) for e in everything)
    for parameters, holds in cases:
        found = [e for e in api.items("/v1/history", limit=500, **parameters) if e["position"] <= newest]
        expected = [entry for entry in everything if holds(entry)]
        assert 0 < len(expected) < len(everything), parameters
        assert found == expected, parameters
    assert api.items("/v1/history", recorded_from="2100-01-01T00:00:00Z") == []
    assert api.items("/v1/history", recorded_until="2000-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    "parameters",
    [{"tz": "America/Nowhere"}, {"tz": "../etc/passwd"}, {"lang": "fr"}, {"agents": "x"}, {"request_id": "1"}],
)
@pytest.mark.parametrize("path", ["/v1/history", "/v1/history/export"])
def test_a_parameter_that_is_none_is_told(api: Client, path: str, parameters: dict[str, str]) -> None:
    answer = api.get(path, params=parameters)
    assert (answer.status_code, answer.json()["errors"][0]["in"][-1]) == (422, next(iter(parameters)))


def export(api: Client, **query: str) -> httpx.Response:
    """An export, once those before it have given their places back."""
    deadline = time.monotonic() + 60
    while (answer := api.get("/v1/history/export", params=query)).status_code == 503 and time.monotonic() < deadline:
        pass
    assert answer.is_success, answer.text
    return answer


def test_it_is_exported_as_it_is_shown_with_formulas_defused(api: Client, told: Conversation) -> None:
    listed = api.items("/v1/history", stream=told.id)
    lines = export(api, stream=told.id, format="ndjson").text.strip().split("\n")
    assert [json.loads(line) for line in lines] == listed
    answer = export(api, stream=told.id, lang="en")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert [row["position"] for row in rows] == [str(entry["position"]) for entry in listed]
    assert rows[0]["sentence"].startswith("Finalized by ")
    assert json.loads(rows[0]["details"]) == listed[0]["details"]
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())
    many = export(api, format="ndjson").text.strip().split("\n")
    positions = [json.loads(line)["position"] for line in many]
    assert positions == sorted(positions, reverse=True)
    assert len(positions) > 20


def someone(api: Client, caller: Callable[..., Client], **grants: str) -> Client:
    role, serves = f"r-{uuid4().hex[:8]}", "sector" in grants.values()
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {name.replace("_", "-"): scope for name, scope in grants.items()}})
    agent = api.ok("POST", "/v1/agents", {"name": "Alguém", "role": role})["id"]
    if serves:
        api.ok("PUT", f"/v1/agents/{agent}/sectors/{demo.OTHER_SECTOR}")
    return caller("agent", agent, role)


def test_what_is_not_seen_has_no_history(
    api: Client, caller: Callable[..., Client], told: Conversation, open_conversation: Callable[..., Conversation]
) -> None:
    seen = open_conversation(sector_id=str(demo.OTHER_SECTOR))
    seen.history()
    half = someone(api, caller, view="sector", read_history="all", export="all")
    blind = someone(api, caller, read_history="all", export="all")
    assert half.items("/v1/history", stream=told.id) == blind.items("/v1/history", stream=told.id) == []
    assert len(half.items("/v1/history", stream=seen.id)) == 1
    assert blind.items("/v1/history") == []
    assert {entry["stream_type"] for entry in half.items("/v1/history", limit=500)} == {"conversation"}
    assert blind.get("/v1/history/export", params={"format": "ndjson"}).text == ""
    for path in ("/v1/events", "/v1/events/stream"):
        assert half.get(path).status_code == blind.get(path).status_code == 403
    api.items(f"{told.path}/messages")
    assert half.items("/v1/accesses", conversation=told.id) == []


def test_an_export_of_the_history_needs_both_permissions_on_the_conversation(
    api: Client, caller: Callable[..., Client], told: Conversation
) -> None:
    for grants in ({"view": "all", "read_history": "all"}, {"view": "all", "export": "all"}):
        answer = someone(api, caller, **grants).get("/v1/history/export")
        assert (answer.status_code, answer.json()["code"]) == (403, "permission-denied")
    near = someone(api, caller, view="all", read_history="all", export="sector")
    assert near.items("/v1/history", stream=told.id)
    assert near.get("/v1/history/export", params={"stream": told.id, "format": "ndjson"}).text == ""


def test_a_timeline_tells_those_without_the_history_only_what_they_see_anyhow(
    api: Client, caller: Callable[..., Client], told: Conversation
) -> None:
    path = f"/v1/contacts/{demo.CONTACT}/timeline"
    without = someone(api, caller, view="all", view_contact="all")
    topics = {e["topic"] for e in without.items(path, limit=500) if e["stream_id"] == told.id}
    assert topics == {"conversation-opened.v1", "conversation-finalized-from-listing.v1"}
    whole = {e["topic"] for e in api.items(path, limit=500) if e["stream_id"] == told.id}
    assert whole == {entry["topic"] for entry in told.history()} > topics
