"""The listing over HTTP: every filter, sort and page, checked against a naive reading of the same rows; and its scope.

Invariant: what lies outside a caller's scope does not exist for them, whichever route they try.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from api import demo

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api, Conversation

Row = dict[str, Any]
EVERYTHING = 40


@dataclass(frozen=True)
class Room:
    """A workspace whose rows are all known."""

    api: Api
    sectors: list[str]
    agents: list[str]
    contacts: list[str]
    rows: list[Row]
    """The listing's rows, one by one through GET /v1/conversations/{id}, oldest first."""


CONTACTS = [
    {"name": "Zoé Ação 100%_ok", "phones": ["+55 (11) 98765-4321"], "emails": ["zoe@example.com"]},
    {"name": "Bruno Lima", "phones": ["021 3333 4444", "+55 21 97777-0000"], "emails": ["b.lima@x.org", "bruno@x.org"]},
    {"name": None, "phones": [], "emails": []},
]


@pytest.fixture(scope="module")
def room(workspace: Callable[[str], Api]) -> Room:
    """40 conversations, spread over everything that the bar filters by."""
    api = workspace("filters")
    sectors = [api.ok("POST", "/v1/sectors", {"name": f"Setor {number}"})["id"] for number in range(3)]
    agents = [api.ok("POST", "/v1/agents", {"name": f"Agente {number}"})["id"] for number in range(2)]
    for agent, sector in itertools.product(agents, sectors[:2]):
        api.ok("PUT", f"/v1/agents/{agent}/sectors/{sector}")
    contacts = [api.ok("POST", "/v1/contacts", contact)["id"] for contact in CONTACTS]
    ids = []
    position = 0
    for number in range(EVERYTHING):
        body = {
            "channel": ("whatsapp", "webchat", "phone")[number % 3],
            "contact_id": contacts[number % 3 if number % 4 else 0],
            "protocol": f"2026{number % 2}-{number:03d}",
        }
        if number % 5:
            body["sector_id"] = sectors[number % 5 % 3]
        id_ = api.ok("POST", "/v1/conversations", body)["id"]
        ids.append(id_)
        position = _shape(api, f"/v1/conversations/{id_}", number, agents)
    rows = [api.read(f"/v1/conversations/{id_}", at_least=position) for id_ in ids]
    return Room(api, sectors, agents, contacts, rows)


def _shape(api: Api, path: str, number: int, agents: list[str]) -> int:
    """Give the conversation a status, priority and labels that follow from its number; the last position."""
    asks: list[tuple[str, Row]] = [("priority", {"priority": ("low", "normal", "high", "urgent")[number % 4]})]
    asks += [
        ("labels", {"label": label}) for label, every in (("vip", 3), ("troca", 4), ("nova", 7)) if number % every == 0
    ]
    match number % 6:
        case 1:
            asks.append(("handoff-to-bot", {"bot": ("triagem", "vendas")[number % 4 // 2]}))
        case 2 | 3:
            asks.append(("assume", {"agent_id": agents[number % 2]}))
        case 4:
            asks += [("assume", {"agent_id": agents[0]}), ("finalize", {"surface": "listing", "outcome": "ok"})]
        case 5:
            asks.append(("finalize", {"surface": "automation", "cause": "inactivity"}))
    return [api.ok("POST", f"{path}/{what}", body) for what, body in asks][-1]["position"]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def middle(rows: list[Row], column: str) -> str:
    """A time that splits the rows which have one."""
    times = sorted(row[column] for row in rows if row[column])
    return str(times[len(times) // 2])


Filter = tuple[dict[str, Any], Callable[[Row], bool]]


def within(column: str, start: str | None = None, end: str | None = None) -> Callable[[Row], bool]:
    def holds(row: Row) -> bool:
        at = row[column] and moment(row[column])
        return bool(at) and (start is None or at >= moment(start)) and (end is None or at < moment(end))

    return holds


def filters(room: Room) -> dict[str, Filter]:
    """Each filter of the bar with its naive meaning."""
    sectors, agents = room.sectors, room.agents
    found: dict[str, Filter] = {
        "no filter": ({}, lambda _: True),
        "a status": ({"status": "pending"}, lambda row: row["status"] == "pending"),
        "statuses": (
            {"status": ["with_bot", "finalized"]},
            lambda row: row["status"] in {"with_bot", "finalized"},
        ),
        "a channel": ({"channel": "phone"}, lambda row: row["channel"] == "phone"),
        "channels": ({"channel": ["phone", "webchat", "none"]}, lambda row: row["channel"] in {"phone", "webchat"}),
        "a sector": ({"sector": sectors[1]}, lambda row: row["sector_id"] == sectors[1]),
        "sectors": ({"sector": sectors[:2]}, lambda row: row["sector_id"] in sectors[:2]),
        "an agent": ({"agent": agents[0]}, lambda row: row["agent_id"] == agents[0]),
        "agents": ({"agent": agents}, lambda row: row["agent_id"] in agents),
        "a bot": ({"bot": "triagem"}, lambda row: row["bot"] == "triagem"),
        "a label": ({"label": "vip"}, lambda row: "vip" in row["labels"]),
        "labels": ({"label": ["nova", "troca"]}, lambda row: bool({"nova", "troca"} & set(row["labels"]))),
        "nobody's sector": ({"sector": str(uuid4())}, lambda _: False),
        "a name": ({"q": "bruno"}, lambda row: row["contact_name"] == "Bruno Lima"),
        "a protocol": ({"q": "20261-"}, lambda row: row["protocol"].startswith("20261-")),
    }
    for column in ("opened", "last_activity", "finalized"):
        at = middle(room.rows, f"{column}_at")
        found[f"{column} from"] = ({f"{column}_from": at}, within(f"{column}_at", start=at))
        found[f"{column} until"] = ({f"{column}_until": at}, within(f"{column}_at", end=at))
    return found


FILTERS = (
    *("no filter", "a status", "statuses", "a channel", "channels", "a sector", "sectors", "an agent", "agents"),
    *("a bot", "a label", "labels", "nobody's sector", "a name", "a protocol", "opened from", "opened until"),
    *("last_activity from", "last_activity until", "finalized from", "finalized until"),
)


def ids(rows: list[Row]) -> list[str]:
    return [row["id"] for row in rows]


def test_the_rows_of_the_listing_are_those_of_the_single_conversations(room: Room) -> None:
    listed = room.api.items("/v1/conversations", limit=500)
    assert sorted(listed, key=lambda row: row["id"]) == sorted(room.rows, key=lambda row: row["id"])
    assert len(listed) == EVERYTHING


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_what_a_naive_reading_finds(room: Room, name: str) -> None:
    known = filters(room)
    assert set(known) == set(FILTERS)
    parameters, holds = known[name]
    expected = {row["id"] for row in room.rows if holds(row)}
    found = ids(room.api.items("/v1/conversations", **parameters))
    assert len(found) == len(set(found))
    assert set(found) == expected
    trivial = {"no filter", "nobody's sector"}
    assert name in trivial or 0 < len(expected) < EVERYTHING, "the filter tells nothing apart"


@pytest.mark.parametrize("name", FILTERS)
def test_two_filters_must_both_hold(room: Room, name: str) -> None:
    known = filters(room)
    first, holds_first = known[name]
    for other, (second, holds_second) in known.items():
        if set(first) & set(second):
            continue  # the same filter twice is one filter with several values
        expected = {row["id"] for row in room.rows if holds_first(row) and holds_second(row)}
        found = ids(room.api.items("/v1/conversations", limit=500, **first, **second))
        assert set(found) == expected, (name, other)
        assert len(found) == len(expected), (name, other)


def test_a_period_holds_its_start_and_not_its_end(room: Room) -> None:
    for column in ("opened", "last_activity", "finalized"):
        row = next(row for row in room.rows if row[f"{column}_at"])
        at = row[f"{column}_at"]
        assert row["id"] in ids(room.api.items("/v1/conversations", **{f"{column}_from": at}))
        assert row["id"] not in ids(room.api.items("/v1/conversations", **{f"{column}_until": at}))
        nothing = {f"{column}_from": at, f"{column}_until": at}
        assert room.api.items("/v1/conversations", **nothing) == []


def test_a_period_in_another_time_zone_is_the_same_period(room: Room) -> None:
    at = moment(middle(room.rows, "opened_at"))
    utc = ids(room.api.items("/v1/conversations", opened_from=at.astimezone(UTC).isoformat()))
    offset = datetime.fromisoformat("2026-01-01T00:00:00-03:00").tzinfo
    assert ids(room.api.items("/v1/conversations", opened_from=at.astimezone(offset).isoformat())) == utc


# Sorting and pages

SORTS = (
    *("last_activity_at", "opened_at", "finalized_at", "episode_started_at", "waiting_since", "unanswered_since"),
    *("first_response_seconds", "resolution_seconds", "priority"),
)
RANKS = {"low": 0, "normal": 1, "high": 2, "urgent": 3}


def sorted_naively(rows: list[Row], sort: str, order: str) -> list[str]:
    """By value, then id, both in the order asked for; what has no value comes last, either way."""

    def value(row: Row) -> Any:
        if sort == "priority":
            return RANKS[row["priority"]]
        return row[sort] if sort.endswith("_seconds") else moment(row[sort])

    with_value = [row for row in rows if row[sort] is not None]
    without = [row for row in rows if row[sort] is None]
    descending = order == "desc"
    with_value.sort(key=lambda row: (value(row), UUID(row["id"])), reverse=descending)
    without.sort(key=lambda row: UUID(row["id"]), reverse=descending)
    return ids(with_value + without)


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_goes_both_ways_on_one_page_and_on_many(room: Room, sort: str, order: str) -> None:
    expected = sorted_naively(room.rows, sort, order)
    for limit in (500, EVERYTHING, EVERYTHING - 1, 7, 1):
        found = ids(room.api.items("/v1/conversations", sort=sort, order=order, limit=limit))
        assert found == expected, limit


def test_sort_filter_and_pages_go_together(room: Room) -> None:
    rows = [row for row in room.rows if row["channel"] == "whatsapp"]
    found = ids(room.api.items("/v1/conversations", channel="whatsapp", sort="priority", order="asc", limit=3))
    assert found == sorted_naively(rows, "priority", "asc")


def test_without_a_sort_the_latest_activity_comes_first_fifty_at_a_time(room: Room) -> None:
    page = room.api.read("/v1/conversations")
    assert ids(page["items"]) == sorted_naively(room.rows, "last_activity_at", "desc")
    assert page["next"] is None


def test_a_page_holds_as_many_as_asked_for(room: Room) -> None:
    page = room.api.read("/v1/conversations", limit=11)
    assert (len(page["items"]), page["next"] is None) == (11, False)
    page = room.api.read("/v1/conversations", limit=EVERYTHING)
    assert (len(page["items"]), page["next"]) == (EVERYTHING, None)


def test_a_cursor_belongs_to_its_sort_and_order(room: Room) -> None:
    cursor = room.api.read("/v1/conversations", limit=5, sort="opened_at")["next"]
    for other in ({"sort": "priority"}, {"sort": "opened_at", "order": "asc"}, {}):
        refused = room.api.get("/v1/conversations", params={"cursor": cursor, **other})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request")


def test_pages_visit_each_row_once_while_rows_change(api: Api, open_conversation: Callable[..., Conversation]) -> None:
    channel = f"c-{uuid4().hex[:12]}"
    conversations = [open_conversation(channel=channel) for _ in range(30)]
    conversations[-1].view()
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for step in itertools.count():
        page = api.read("/v1/conversations", channel=channel, sort="opened_at", order="asc", limit=4, **cursor)
        seen += ids(page["items"])
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
        # Between the pages, rows before, on and after the page change: labels, activity, status.
        for conversation in (conversations[step], conversations[step * 4 % 30], conversations[29 - step]):
            conversation.do("labels", {"label": f"l{step}"})
            conversation.do("messages", {"direction": "received", "text": "oi"})
        newest = conversations[29 - step]
        newest.do("finalize", {"surface": "listing"})
        newest.view()
    assert seen == [conversation.id for conversation in conversations]


def test_pages_by_latest_activity_miss_nothing_that_stays_where_it_is(
    api: Api, open_conversation: Callable[..., Conversation]
) -> None:
    channel = f"c-{uuid4().hex[:12]}"
    conversations = [open_conversation(channel=channel) for _ in range(24)]
    conversations[-1].view()
    moved: set[str] = set()
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for step in itertools.count():
        page = api.read("/v1/conversations", channel=channel, limit=4, **cursor)
        seen += ids(page["items"])
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
        conversation = conversations[step * 3]  # from the far end: it jumps ahead of the cursor, to the first page
        conversation.do("messages", {"direction": "received", "text": "oi"})
        conversation.view()
        moved.add(conversation.id)
    assert len(seen) == len(set(seen)), "a row came twice"
    assert {conversation.id for conversation in conversations} - set(seen) <= moved


def test_messages_and_history_come_in_pages_too(an_opened_conversation: Conversation, api: Api) -> None:
    conversation = an_opened_conversation
    for number in range(7):
        conversation.do("notes", {"text": str(number)})
    for limit in (1, 3, 7, 8, 500):
        position = conversation.answer["position"]
        messages = api.items(f"{conversation.path}/messages", limit=limit, at_least=position)
        assert [message["text"] for message in messages] == [str(number) for number in range(7)]
        history = api.items(f"{conversation.path}/history", limit=limit, at_least=position)
        assert [entry["version"] for entry in history] == list(range(1, 9))
        for until in (1, 4, 8, 100):
            backwards = {"limit": limit, "order": "desc", "version": until}
            messages = api.items(f"{conversation.path}/messages", **backwards)
            assert [message["version"] for message in messages] == list(range(min(until, 8), 1, -1))
            history = api.items(f"{conversation.path}/history", **backwards)
            assert [entry["version"] for entry in history] == list(range(min(until, 8), 0, -1))


@pytest.mark.parametrize(
    ("path", "highest"),
    [
        ("/v1/conversations", 500),
        (f"/v1/conversations/{demo.CONVERSATION}/messages", 500),
        (f"/v1/conversations/{demo.CONVERSATION}/history", 500),
        ("/v1/history", 500),
        ("/v1/events", 1_000),
    ],
)
def test_limits_are_kept(api: Api, path: str, highest: int) -> None:
    for limit in (1, highest):
        assert len(api.read(path, limit=limit)["items"]) <= limit
    for limit in (0, -1, highest + 1, "many", 10**30):
        refused = api.get(path, params={"limit": limit})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request"), limit


# The text box


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("20260-012", lambda row: row["protocol"] == "20260-012"),
        ("20260-0", lambda row: row["protocol"].startswith("20260-0")),
        ("012", lambda row: row["protocol"].endswith("-012")),
        ("0-012", None),  # the beginnings of words are searched for, and nothing else
        ("BRUNO", lambda row: row["contact_name"] == "Bruno Lima"),
        ("br Li", lambda row: row["contact_name"] == "Bruno Lima"),
        ("lima bruno", lambda row: row["contact_name"] == "Bruno Lima"),
        ("runo", None),
        ("zoe acao", lambda row: row["contact_name"] == CONTACTS[0]["name"]),
        ("zoe 20260", None),  # words are all of the name, or the text begins something else
        ("zoé", lambda row: row["contact_name"] == CONTACTS[0]["name"]),
        ("ZOÉ AÇÃO", lambda row: row["contact_name"] == CONTACTS[0]["name"]),
        ("  bruno  ", lambda row: row["contact_name"] == "Bruno Lima"),
        ("100%_ok", lambda row: row["contact_name"] == CONTACTS[0]["name"]),
        ("l%ma", None),  # no wildcards
        ("%%%", None),
        ("98765-4321", lambda row: row["contact_phones"] == CONTACTS[0]["phones"]),
        ("987654321", lambda row: row["contact_phones"] == CONTACTS[0]["phones"]),
        ("+55 (11) 9", lambda row: row["contact_phones"] == CONTACTS[0]["phones"]),
        ("33334444", lambda row: row["contact_phones"] == CONTACTS[1]["phones"]),
        ("(21) 97777", lambda row: row["contact_phones"] == CONTACTS[1]["phones"]),
        ("zoe@", lambda row: row["contact_emails"] == CONTACTS[0]["emails"]),
        ("BRUNO@X.ORG", lambda row: row["contact_emails"] == CONTACTS[1]["emails"]),
        ("example.com", lambda row: row["contact_emails"] == CONTACTS[0]["emails"]),
        ("nobody at all", None),
        ("'; drop table listing; --", None),
        ("\\", None),
        ("\u202eorb", None),
    ],
)
def test_the_text_box_searches_protocol_name_phone_and_email(
    room: Room, text: str, found: Callable[[Row], bool] | None
) -> None:
    expected = {row["id"] for row in room.rows if found and found(row)}
    assert bool(expected) is (found is not None)
    assert set(ids(room.api.items("/v1/conversations", q=text))) == expected


def test_the_text_box_looks_for_a_phones_digits_anywhere_in_it(room: Room) -> None:
    for digits in ("5511", "4321", "1198"):
        rows = [
            row
            for row in room.rows
            if any(digits in re.sub(r"\D", "", phone) for phone in row["contact_phones"])
            or row["protocol"].startswith(digits)
        ]
        assert rows
        assert set(ids(room.api.items("/v1/conversations", q=digits))) == set(ids(rows))


# The history


def test_the_history_is_searched_by_actor_event_surface_sector_stream_and_period(
    api: Api, bia: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    conversation = a_conversation("pending")
    conversation.do("assume", {}, by=bia, surface="inbox")
    conversation.do("finalize", {"surface": "inbox"}, by=bia)
    position = conversation.answer["position"]
    everything = api.items("/v1/history", at_least=position, limit=500)
    assert [entry["position"] for entry in everything] == sorted(
        (entry["position"] for entry in everything), reverse=True
    )
    at = everything[len(everything) // 2]["occurred_at"]
    agent, sector = str(demo.AGENT), str(demo.SECTOR)
    asked: list[tuple[Row, Callable[[Row], bool]]] = [
        ({"actor": agent}, lambda entry: entry["actor"]["id"] == agent),
        ({"event": "conversation-opened.v1"}, lambda entry: entry["topic"] == "conversation-opened.v1"),
        ({"surface": "inbox"}, lambda entry: entry["surface"] == "inbox"),
        ({"sector": sector}, lambda entry: entry["sector_id"] == sector),
        ({"stream": conversation.id}, lambda entry: entry["stream_id"] == conversation.id),
        ({"occurred_from": at}, lambda entry: moment(entry["occurred_at"]) >= moment(at)),
        ({"occurred_until": at}, lambda entry: moment(entry["occurred_at"]) < moment(at)),
    ]
    for parameters, holds in asked:
        expected = [entry for entry in everything if holds(entry)]
        assert 0 < len(expected) < len(everything), parameters
        assert api.items("/v1/history", limit=50, **parameters) == expected, parameters
    for (first, holds_first), (second, holds_second) in itertools.combinations(asked, 2):
        expected = [entry for entry in everything if holds_first(entry) and holds_second(entry)]
        assert api.items("/v1/history", limit=500, **first, **second) == expected, (first, second)


# Scope


def routes_of(conversation: Conversation) -> list[str]:
    return [conversation.path, f"{conversation.path}/messages", f"{conversation.path}/history"]


def test_an_agent_sees_their_sectors_and_their_own_and_nothing_else(
    api: Api, bia: Api, davi: Api, open_conversation: Callable[..., Conversation]
) -> None:
    channel = f"c-{uuid4().hex[:12]}"
    in_support = open_conversation(channel=channel)
    in_sales = open_conversation(channel=channel, sector_id=str(demo.OTHER_SECTOR))
    nowhere = open_conversation(channel=channel, sector_id=None)
    bias_own = open_conversation(by=bia, channel=channel, sector_id=None, agent_id=str(demo.AGENT))
    bias_own.view(by=bia)
    expected = {
        bia: {in_support.id, bias_own.id},
        davi: {in_support.id, in_sales.id},
        api: {in_support.id, in_sales.id, nowhere.id, bias_own.id},
    }
    for who, seen in expected.items():
        assert set(ids(who.items("/v1/conversations", channel=channel))) == seen
        assert set(ids(who.items("/v1/conversations", channel=channel, limit=1, sort="priority"))) == seen
        assert set(ids(who.items("/v1/conversations", channel=channel, sector=str(demo.OTHER_SECTOR)))) == (
            {in_sales.id} & seen
        )
        for conversation in (in_support, in_sales, nowhere, bias_own):
            there = conversation.id in seen
            assert who.get(conversation.path).status_code == (200 if there else 404)
            assert who.get(f"{conversation.path}/messages").status_code == (200 if there else 404)
            refused = conversation.ask("labels", {"label": "x"}, by=who)
            assert refused.status_code == (200 if there else 404)
            if not there:
                assert refused.json()["code"] == "conversation-not-found"


def test_what_moves_out_of_an_agents_sectors_is_gone_for_them(
    bia: Api, davi: Api, a_pending_conversation: Conversation
) -> None:
    conversation = a_pending_conversation
    assert conversation.view(by=bia)["status"] == "pending"
    conversation.do("transfer", {"sector_id": str(demo.OTHER_SECTOR)}, by=bia)
    conversation.view()
    for path in routes_of(conversation)[:2]:
        refused = bia.get(path)
        assert (refused.status_code, refused.json()["code"]) == (404, "conversation-not-found")
    assert conversation.view(by=davi)["sector_id"] == str(demo.OTHER_SECTOR)


def test_a_history_in_scope_of_the_sectors_is_that_of_visible_conversations_only(
    api: Api, caller: Callable[..., Api], open_conversation: Callable[..., Conversation]
) -> None:
    role = f"chefia-{uuid4().hex[:8]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "sector", "read-history": "sector"}})
    agent = api.ok("POST", "/v1/agents", {"name": "Chefe", "role": role})["id"]
    api.ok("PUT", f"/v1/agents/{agent}/sectors/{demo.SECTOR}")
    chief = caller("agent", agent, role)
    seen, unseen = open_conversation(), open_conversation(sector_id=str(demo.OTHER_SECTOR))
    unseen.view()
    unseen.messages()
    assert chief.read("/v1/me")["sectors"] == [str(demo.SECTOR)]
    assert [entry["topic"] for entry in seen.history(by=chief)] == ["conversation-opened.v1"]
    for path in routes_of(unseen):
        assert chief.get(path).status_code == 404, path
    assert chief.items("/v1/history", stream=unseen.id, at_least=unseen.answer["position"]) == []
    assert len(chief.items("/v1/history", stream=seen.id)) == 1
    everything = chief.items("/v1/history", limit=500)
    assert everything
    visible = set(ids(chief.items("/v1/conversations", limit=500)))
    assert {entry["stream_id"] for entry in everything} <= visible
    refused = chief.get("/v1/events")
    assert (refused.status_code, refused.json()["code"]) == (403, "permission-denied")
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "sector", "read-history": "all"}})
    for _ in range(600):
        if chief.read("/v1/me")["grants"]["read-history"] == "all":
            break
        time.sleep(0.05)
    for path in ("/v1/history", "/v1/accesses"):
        assert unseen.id not in chief.get(path, params={"limit": 500}).text, "what one reads is no more than one sees"


def test_who_may_not_read_the_history_is_told_so(bia: Api, a_pending_conversation: Conversation) -> None:
    for path in (f"{a_pending_conversation.path}/history", "/v1/history", "/v1/events"):
        refused = bia.get(path)
        assert (refused.status_code, refused.json()["code"]) == (403, "permission-denied")
        assert "read-history" in refused.json()["detail"]


def test_an_auditor_reads_everything_and_changes_nothing(
    api: Api, caller: Callable[..., Api], a_pending_conversation: Conversation
) -> None:
    auditor, conversation = caller("integration", "auditoria", "auditor"), a_pending_conversation
    assert conversation.view(by=auditor) == conversation.view()
    assert conversation.history(by=auditor) == conversation.history()
    head = api.log_head()
    for what, body in (
        ("assume", {"agent_id": str(demo.AGENT)}),
        ("notes", {"text": "x"}),
        ("labels", {"label": "x"}),
        ("finalize", {"surface": "listing"}),
        ("transfer", {"sector_id": str(demo.OTHER_SECTOR)}),
    ):
        refused = conversation.ask(what, body, by=auditor)
        assert (refused.status_code, refused.json()["code"]) == (403, "permission-denied"), what
    assert api.log_head() == head


def test_no_route_shows_anything_of_another_workspace(
    api: Api, stranger: Api, a_pending_conversation: Conversation
) -> None:
    conversation = a_pending_conversation
    conversation.do("labels", {"label": "segredo"})
    protocol = conversation.view()["protocol"]
    token = api.read("/v1/tokens")["items"][0]["id"]
    ids_of_ours = {"id": conversation.id, "sector_id": str(demo.SECTOR), "label": "segredo", "name": "admin"}
    head = api.log_head()
    document = stranger.read("/openapi.json")
    tried = 0
    for path, operations in document["paths"].items():
        if not path.startswith("/v1/") or "{" not in path or "{name}" in path or "{key}" in path:
            continue
        kind = path.split("/")[2]
        id_ = {"contacts": str(demo.CONTACT), "sectors": str(demo.SECTOR), "agents": str(demo.AGENT), "tokens": token}
        id_["views"] = str(demo.VIEW)
        url = path.format(**ids_of_ours | {"id": id_.get(kind, conversation.id)})
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            body = {"agent_id": str(demo.AGENT)} if path.endswith("/assume") else content.get("example")
            refused = stranger.send_json(method.upper(), url, body)
            assert refused.status_code == 404, (method, url, refused.text)
            assert refused.json()["code"].endswith("not-found")
            assert protocol not in refused.text
            tried += 1
    assert tried > 25
    assert api.log_head() == head

    for path in ("/v1/conversations", "/v1/history", "/v1/events", "/v1/sectors", "/v1/agents", "/v1/tokens"):
        text = stranger.get(path).text
        for ours in (conversation.id, protocol, str(demo.SECTOR), str(demo.AGENT), str(demo.WORKSPACE), "Ana Souza"):
            assert ours not in text, path
    for parameters in ({"q": protocol}, {"q": "Ana"}, {"sector": str(demo.SECTOR)}, {"label": "segredo"}):
        assert stranger.items("/v1/conversations", **parameters) == []
    for parameters in ({"stream": conversation.id}, {"actor": str(demo.ADMIN)}, {"sector": str(demo.SECTOR)}):
        assert stranger.items("/v1/history", **parameters) == []
    position = conversation.answer["position"]
    assert stranger.read("/v1/events", after=position - 1)["items"] == []


def test_names_of_another_workspace_in_a_body_do_not_exist(stranger: Api, api: Api) -> None:
    contact = stranger.ok("POST", "/v1/contacts", {"name": "De lá"})["id"]
    conversation = stranger.ok("POST", "/v1/conversations", {"channel": "email", "contact_id": contact})["id"]
    head = api.log_head()
    open_with = {"channel": "email", "contact_id": contact}
    asks: list[tuple[str, Row, str]] = [
        ("/v1/conversations", open_with | {"contact_id": str(demo.CONTACT)}, "contact-not-found"),
        ("/v1/conversations", open_with | {"sector_id": str(demo.SECTOR)}, "sector-not-found"),
        ("/v1/conversations", open_with | {"agent_id": str(demo.AGENT)}, "agent-not-found"),
        (f"/v1/conversations/{conversation}/transfer", {"sector_id": str(demo.SECTOR)}, "sector-not-found"),
        (f"/v1/conversations/{conversation}/transfer", {"agent_id": str(demo.AGENT)}, "agent-not-found"),
        (f"/v1/conversations/{conversation}/assume", {"agent_id": str(demo.AGENT)}, "agent-not-found"),
        (f"/v1/conversations/{conversation}/contact", {"contact_id": str(demo.CONTACT)}, "contact-not-found"),
    ]
    for path, body, code in asks:
        refused = stranger.send_json("POST", path, body)
        assert (refused.status_code, refused.json()["code"]) == (404, code), (path, body)
    assert api.log_head() == head


def test_the_same_ids_in_two_workspaces_are_two_conversations(
    api: Api, stranger: Api, a_pending_conversation: Conversation
) -> None:
    conversation = a_pending_conversation
    contact = stranger.ok("POST", "/v1/contacts", {"id": str(demo.CONTACT), "name": "Outra Ana"})["id"]
    body = {"id": conversation.id, "channel": "email", "contact_id": contact}
    answer = stranger.ok("POST", "/v1/conversations", body, idempotency_key="same-key")
    assert (answer["id"], answer["version"]) == (conversation.id, 1)
    theirs = stranger.read(conversation.path, at_least=answer["position"])
    assert (theirs["channel"], theirs["contact_name"], theirs["version"]) == ("email", "Outra Ana", 1)
    ours = api.read(conversation.path, at_least=answer["position"])
    assert (ours["channel"], ours["contact_name"]) == ("whatsapp", "Ana Souza")
    assert len(stranger.read(f"{conversation.path}/messages")["items"]) == 0


# Reading one's own writes


def test_listing_and_counts_tell_the_position_that_they_show(api: Api, a_pending_conversation: Conversation) -> None:
    position = a_pending_conversation.do("notes", {"text": "x"})["position"]
    for path in ("/v1/conversations", "/v1/conversations/counts"):
        assert position <= api.read(path, at_least=position)["position"] <= api.log_head()
        assert api.read(path, as_of=datetime.now(UTC).isoformat())["position"] is None
    for path in ("/v1/conversations/search", "/v1/conversations/counts"):
        assert api.ok("POST", path, {"at_least": position})["position"] >= position


def test_a_position_beyond_the_log_is_told_at_once(api: Api) -> None:
    answer = api.get("/v1/conversations", params={"at_least": api.log_head() + 1_000_000})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")


def test_every_route_refuses_a_query_parameter_that_it_does_not_have(api: Api) -> None:
    let_through, before = [], api.log_head()
    for path, operations in api.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            where = path
            for parameter in operation.get("parameters", []):
                example = parameter["schema"].get("examples", [str(uuid4())])[0]
                where = where.replace(f"{{{parameter['name']}}}", str(example))
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            if not path.startswith("/v1/"):
                continue
            answer = api.send_json(method.upper(), f"{where}?limitt=1&limitt=2", body)
            named = answer.status_code == 422 and '"in":["query","limitt"]' in answer.text
            if not named:
                let_through.append((method, path, answer.status_code))
    assert let_through == []
    assert api.log_head() == before


def test_the_page_before_may_come_from_a_process_whose_clock_is_ahead(api: Api, an_opened_conversation: Any) -> None:
    an_opened_conversation.view()

    def cursor(ahead: timedelta) -> str:
        now = datetime.now(UTC)
        parts = ("last_activity_at", "desc", f"{now:%Y-%m-%d %H:%M:%S}+00", str(uuid4()), (now + ahead).isoformat())
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")

    assert api.get("/v1/conversations", params={"cursor": cursor(timedelta(seconds=30))}).status_code == 200
    assert api.get("/v1/conversations", params={"cursor": cursor(timedelta(hours=1))}).status_code == 422
