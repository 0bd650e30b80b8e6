"""The listing's grammar over HTTP: nested filters, bad ones, counts, pages while rows move, exports, what is hidden.

What each filter finds is checked against a naive reading in `tests/property/test_listing_filters.py`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from api import demo, exports
from api.listing import ConversationView, told

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api, Conversation

Json = dict[str, Any]
STATUSES = ("with_bot", "pending", "in_progress", "finalized")


@dataclass(frozen=True)
class Room:
    """A workspace in which a bit of everything has happened."""

    api: Api
    position: int
    contacts: list[str]
    conversations: list[str]

    @property
    def everything(self) -> list[Json]:
        return self.api.items("/v1/conversations", limit=500)


@pytest.fixture(scope="module")
def room(workspace: Callable[[str], Api]) -> Room:
    api = workspace("grammar")
    people = [
        {"name": "=HYPERLINK(1)", "phones": ["+55 11 98765-4321"], "emails": ["=x@example.com"]},
        {"name": 'João "Jota"; Conceição, Jr.', "attributes": {"plano": "ouro", "idade": 41}},
        {"name": "-2+3", "attributes": {"nota": "@SUM(A1)"}},
    ]
    contacts = [api.ok("POST", "/v1/contacts", person)["id"] for person in people]
    sector = api.ok("POST", "/v1/sectors", {"name": "Suporte"})["id"]
    ids, position = [], 0
    for number in range(24):
        body = {"channel": ("whatsapp", "email")[number % 2], "contact_id": contacts[number % 3]}
        body |= {"protocol": f"2026-{number:04d}", "subject": ("\tTab", "=1+1", "Olá, \n mundo")[number % 3]}
        if number % 2:
            body["sector_id"] = sector
        id_ = api.ok("POST", "/v1/conversations", body)["id"]
        ids.append(id_)
        path = f"/v1/conversations/{id_}"
        asked = [("messages", {"direction": "received", "text": "oi"}), ("labels", {"label": f"l{number % 3}"})]
        match number % 4:
            case 1:
                asked.append(("handoff-to-bot", {"bot": "triagem"}))
            case 2:
                asked.append(("finalize", {"surface": "listing", "outcome": "+ok"}))
            case 3:
                asked.append(("attributes", {"key": "pedido", "value": ["a|b", "=c"]}))
        for what, sent in asked:
            position = api.ok("POST", f"{path}/{what}", sent)["position"]
    api.read("/v1/conversations", at_least=position)
    return Room(api, position, contacts, ids)


def ids(rows: list[Json]) -> list[str]:
    return [row["id"] for row in rows]


def searched(api: Api, body: Json) -> list[Json]:
    """All rows of a search, page by page."""
    rows: list[Json] = []
    cursor: Json = {}
    while True:
        page = api.ok("POST", "/v1/conversations/search", body | cursor)
        rows += page["items"]
        if page["next"] is None:
            return rows
        cursor = {"cursor": page["next"]}


# One grammar everywhere

NESTED: Json = {
    "and": [
        {
            "or": [
                {"field": "channel", "operator": "is", "value": "email"},
                {"not": {"field": "label", "operator": "is_set"}},
            ]
        },
        {
            "not": {
                "and": [
                    {"field": "status", "operator": "is", "value": "with_bot"},
                    {"field": "bot", "operator": "is_set"},
                ]
            }
        },
        {"field": "messages", "operator": "greater", "value": 0},
        {"field": "opened", "operator": "in_last_days", "value": 2},
    ]
}


def test_the_same_filter_finds_the_same_in_a_search_a_query_string_a_count_and_an_export(room: Room) -> None:
    expected = {row["id"] for row in room.everything if row["channel"] == "email" and row["status"] != "with_bot"}
    assert 0 < len(expected) < len(room.conversations)
    found = searched(room.api, {"filter": NESTED, "limit": 5})
    assert (set(ids(found)), len(found)) == (expected, len(expected))
    text = json.dumps(NESTED)
    assert set(ids(room.api.items("/v1/conversations", filter=text))) == expected
    assert room.api.ok("POST", "/v1/conversations/counts", {"filter": NESTED})["total"]["count"] == len(expected)
    assert room.api.read("/v1/conversations/counts", filter=text)["total"]["count"] == len(expected)
    exported = room.api.get("/v1/conversations/export", params={"filter": text, "format": "ndjson"})
    assert {json.loads(line)["id"] for line in exported.text.strip().split("\n")} == expected


def test_the_bar_and_a_filter_must_both_hold(room: Room) -> None:
    text = json.dumps({"field": "label", "operator": "is_not", "value": "l1"})
    found = room.api.items("/v1/conversations", channel="whatsapp", filter=text)
    expected = {row["id"] for row in room.everything if row["channel"] == "whatsapp" and "l1" not in row["labels"]}
    assert set(ids(found)) == expected
    assert expected


def test_a_search_without_a_filter_is_the_listing(room: Room) -> None:
    assert searched(room.api, {}) == room.everything
    assert searched(room.api, {"filter": {"and": []}}) == room.everything
    assert searched(room.api, {"filter": {"or": []}}) == []
    assert room.api.items("/v1/conversations", q="  ") == room.everything


def test_the_longest_wait_comes_first_and_pages_keep_the_moment(room: Room) -> None:
    rows = searched(room.api, {"sort": "waiting", "order": "desc", "limit": 5})
    assert sorted(ids(rows)) == sorted(room.conversations)
    waiting = [row for row in rows if row["waiting_since"]]
    assert [row["waiting_since"] for row in waiting] == sorted(row["waiting_since"] for row in waiting)
    shortest = searched(room.api, {"sort": "waiting", "order": "asc", "limit": 7})
    assert ids(shortest) == ids(rows)[::-1]


def test_without_a_sort_the_only_period_of_the_bar_is_the_order(room: Room) -> None:
    at = sorted(row["opened_at"] for row in room.everything)[3]
    for period, sort in (("opened", "opened_at"), ("finalized", "finalized_at"), ("last_activity", "last_activity_at")):
        for parameters in ({f"{period}_from": at}, {f"{period}_from": at, "channel": "whatsapp", "order": "asc"}):
            found = room.api.items("/v1/conversations", limit=4, **parameters)
            assert found
            assert found == room.api.items("/v1/conversations", sort=sort, **parameters)
            assert [row["id"] for row in exported(room.api, **parameters)] == ids(found)
    both = {"opened_from": at, "finalized_from": at}
    expected = room.api.items("/v1/conversations", sort="last_activity_at", **both)
    assert room.api.items("/v1/conversations", limit=2, **both) == expected


# What is wrong is told, with its place


def condition(field: str, operator: str, value: Any = None) -> Json:
    return {"field": field, "operator": operator, "value": value}


def nested(levels: int) -> Json:
    inner: Json = condition("status", "is", "pending")
    for _ in range(levels - 1):
        inner = {"not": inner}
    return inner


BAD: list[tuple[Any, list[str], str]] = [
    (condition("state", "is", "pending"), ["field"], "status"),
    (condition("attributes.", "is", 1), ["field"], "attributes.KEY"),
    (condition("contact.attributes.A b", "is", 1), ["field"], "attributes.KEY"),
    (condition("status", "is", "open"), ["value"], "with_bot, pending, in_progress, finalized"),
    (condition("status", "contains", "pend"), ["operator"], "is, is_not, in, not_in"),
    (condition("sector", "is", "Suporte"), ["value"], "UUID"),
    (condition("sector", "in", str(uuid4())), ["value"], "list"),
    (condition("sector", "in", []), ["value"], "1 to 200"),
    (condition("sector", "in", [str(uuid4())] * 201), ["value"], "1 to 200"),
    (condition("sector", "is_set", str(uuid4())), ["value"], "no value"),
    (condition("opened", "is", "2026-01-01T00:00:00Z"), ["operator"], "before, after, between"),
    (condition("opened", "before", "2026-01-01T00:00:00"), ["value"], "time zone"),
    (condition("opened", "before", 1767225600), ["value"], "time zone"),
    (condition("opened", "between", ["2026-01-01T00:00:00Z"]), ["value"], "two"),
    (condition("opened", "in_last_days", 0), ["value"], "from 1 to 36500"),
    (condition("opened", "in_last_days", 36_501), ["value"], "from 1 to 36500"),
    (condition("opened", "in_last_days", "7"), ["value"], "whole number"),
    (condition("transfers", "greater", 1.5), ["value"], "whole number"),
    (condition("transfers", "greater", True), ["value"], "whole number"),
    (condition("transfers", "greater", 2**60), ["value"], "whole number"),
    (condition("transfers", "is_set"), ["operator"], "greater, less, between"),
    (condition("waiting_seconds", "greater", -1), ["value"], "seconds"),
    (condition("waiting_seconds", "greater", 1e300), ["value"], "seconds"),
    (condition("unanswered", "is", "yes"), ["value"], "true or false"),
    (condition("priority", "greater", 2), ["value"], "low, normal, high, urgent"),
    (condition("text", "is", "ana"), ["operator"], "contains, not_contains"),
    (condition("text", "contains", ""), ["value"], "not empty"),
    (condition("text", "contains", "a\0"), ["value"], "text"),
    (condition("text", "contains", "\ud800"), ["value"], "text"),
    (condition("text", "contains", "a" * 501), ["value"], "500"),
    (condition("contact.phone", "contains", "abc"), ["value"], "digits"),
    (condition("contact.name", "greater", 1), ["operator"], "starts_with"),
    (condition("attributes.x", "before", "2026-02-30"), ["value"], "date"),
    (condition("attributes.x", "is", [1]), ["value"], "text"),
    (condition("attributes.x", "between", [1, "2026-01-01"]), ["value"], "one type"),
    (
        {"and": [condition("status", "is", "pending"), {"or": [condition("x", "is")]}]},
        ["and", "1", "or", "0", "field"],
        "",
    ),
    ({"not": {"and": [{"field": "status"}]}}, ["not", "and", "0", "operator"], ""),
    ({"and": [], "or": []}, ["or"], ""),
    ({"and": {}}, ["and"], ""),
    ({"field": "status", "operator": "is", "value": "pending", "of": 1}, ["of"], ""),
    ([], [], ""),
    ("status", [], ""),
    (None, [], ""),
    ({"and": [condition("status", "is", "pending")] * 51}, [], "50"),
    ({"and": [{"or": [condition("status", "is", "pending")] * 26}] * 2}, [], "50"),
    (nested(9), [], "8"),
    (nested(60), [], "8"),
]


@pytest.mark.parametrize(("wanted", "place", "says"), BAD)
def test_a_filter_that_is_none_is_refused_with_its_place_and_what_is_possible(
    room: Room, wanted: Any, place: list[str], says: str
) -> None:
    answers = [
        (["body", "filter"], room.api.send_json("POST", "/v1/conversations/search", {"filter": wanted})),
        (["body", "filter"], room.api.send_json("POST", "/v1/conversations/counts", {"filter": wanted})),
    ]
    text = json.dumps(wanted)
    if "ud800" not in text and len(text) <= 4_000:  # else it is no JSON to start with, or too long for an address
        parameters = {"filter": text}
        answers += [
            (["query", "filter"], room.api.get(path, params=parameters))
            for path in ("/v1/conversations", "/v1/conversations/counts", "/v1/conversations/export")
        ]
    for start, answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), answer.text
        error = answer.json()["errors"][0]
        assert error["in"] == [*start, *place]
        assert says in error["message"]


def test_eight_levels_and_fifty_conditions_are_within_the_limits(room: Room) -> None:
    fifty = {"or": [condition("protocol", "is", f"2026-{number:04d}") for number in range(50)]}
    assert len(searched(room.api, {"filter": fifty})) == len(room.conversations)
    pending = [row["id"] for row in room.everything if row["status"] == "pending"]
    assert len(ids(searched(room.api, {"filter": nested(7)}))) == len(pending)
    assert len(ids(searched(room.api, {"filter": nested(8)}))) == len(room.conversations) - len(pending)


def test_what_is_no_json_is_refused(room: Room) -> None:
    for text in ("", "{", "null{", "[" * 5_000, '{"field":' * 900, "NaN"):
        answer = room.api.get("/v1/conversations", params={"filter": text})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), text[:20]
    deep = room.api.send_json("POST", "/v1/conversations/search", None)
    assert deep.status_code == 422
    headers = {"Content-Type": "application/json"}
    for body in (b'{"filter":' + b'{"not":' * 3_000 + b"1" + b"}" * 3_001, b"[" * 100_000, b"\xff"):
        answer = room.api.post("/v1/conversations/search", content=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), body[:20]


@pytest.mark.parametrize(
    "text", ["'; drop table listing; --", "%s", "%(x)s", "\\", "$1", "a' || 'b", "':*", "& | !", "{}", "'pana':*"]
)
def test_values_stay_values(room: Room, text: str) -> None:
    for field, operators in (
        ("subject", ("is", "contains", "starts_with")),
        ("contact.email", ("is", "contains", "starts_with")),
        ("attributes.pedido", ("is", "contains", "starts_with")),
        ("text", ("contains",)),
    ):
        for operator in operators:
            found = searched(room.api, {"filter": condition(field, operator, text)})
            opposite = searched(room.api, {"filter": {"not": condition(field, operator, text)}})
            assert sorted(ids(found) + ids(opposite)) == sorted(room.conversations)


# Counts


def test_counts_are_told_per_status_and_for_the_bars_statuses(room: Room) -> None:
    rows = room.everything
    expected = {status: sum(row["status"] == status for row in rows) for status in STATUSES}
    for exact in ("false", "true"):
        counted = room.api.read("/v1/conversations/counts", exact=exact)
        assert counted["statuses"] == {status: {"count": n, "more": False} for status, n in expected.items()}
        assert counted["total"] == {"count": len(rows), "more": False}
        some = room.api.read("/v1/conversations/counts", status=["pending", "with_bot", "pending"], exact=exact)
        assert some["statuses"] == counted["statuses"]
        assert some["total"]["count"] == expected["pending"] + expected["with_bot"]
    narrowed = room.api.read("/v1/conversations/counts", channel="email", status="pending")
    assert narrowed["total"]["count"] == sum(row["channel"] == "email" and row["status"] == "pending" for row in rows)
    assert narrowed["statuses"]["with_bot"]["count"] == sum(
        row["channel"] == "email" and row["status"] == "with_bot" for row in rows
    )


def test_beyond_ten_thousand_a_count_says_that_there_are_more_unless_it_is_to_be_exact() -> None:
    assert told(10_000, exact=False) == {"count": 10_000, "more": False}
    assert told(10_001, exact=False) == {"count": 10_000, "more": True}
    assert told(40_004, exact=False) == {"count": 10_000, "more": True}
    assert told(40_004, exact=True) == {"count": 40_004, "more": False}


def test_counts_show_nothing_out_of_scope(
    api: Api, bia: Api, stranger: Api, open_conversation: Callable[..., Conversation]
) -> None:
    channel = f"c-{uuid4().hex[:12]}"
    open_conversation(channel=channel)
    open_conversation(channel=channel, sector_id=str(demo.OTHER_SECTOR)).view()
    for who, count in ((api, 2), (bia, 1), (stranger, 0)):
        assert who.read("/v1/conversations/counts", channel=channel)["total"]["count"] == count
        by_filter = {"filter": condition("channel", "is", channel)}
        assert who.ok("POST", "/v1/conversations/counts", by_filter)["total"]["count"] == count


# Pages while rows move


@pytest.mark.parametrize("sort", ["last_activity_at", "finalized_at", "waiting_since", "priority", "waiting"])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_rows_that_do_not_move_come_exactly_once_while_others_do(
    api: Api, open_conversation: Callable[..., Conversation], sort: str, order: str
) -> None:
    channel = f"c-{uuid4().hex[:12]}"
    conversations = [open_conversation(channel=channel) for _ in range(16)]
    for conversation in conversations[:5]:
        conversation.do("finalize", {"surface": "listing"})
    conversations[4].view()
    body = {"filter": condition("channel", "is", channel), "sort": sort, "order": order, "limit": 3}
    moved: set[str] = set()
    seen: list[str] = []
    cursor: Json = {}
    for step in range(100):
        page = api.ok("POST", "/v1/conversations/search", body | cursor)
        seen += ids(page["items"])
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
        mover = conversations[(step * 5) % 16 if step < 3 else 15]
        mover.do(
            "reopen" if mover in conversations[:5] and mover.id not in moved else "priority",
            {} if mover in conversations[:5] and mover.id not in moved else {"priority": ("high", "low")[step % 2]},
        )
        mover.view()
        moved.add(mover.id)
    still = [conversation.id for conversation in conversations if conversation.id not in moved]
    assert len(still) >= 10
    assert sorted(id_ for id_ in seen if id_ not in moved) == sorted(still)


def test_a_forged_cursor_is_refused(room: Room) -> None:
    def forged(*parts: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")

    id_, now = room.conversations[0], "2026-01-01T00:00:00+00:00"
    for sort, value, moment in (
        ("waiting", "1e999", now),
        ("waiting", "NaN", now),
        ("waiting", "", now),
        ("opened_at", "", now),
        ("opened_at", "infinity", now),
        ("opened_at", "2026-13-01 00:00:00+00", now),
        ("priority", "4", now),
        ("first_response_seconds", "'", now),
        ("opened_at", "2026-01-01 00:00:00+00", "9999-01-01T00:00:00+00:00"),
        ("opened_at", "2026-01-01 00:00:00+00", "0001-01-01T00:00:00+00:00"),
        ("opened_at", "2026-01-01 00:00:00+00", "2026-01-01T00:00:00"),
    ):
        cursor = forged(sort, "desc", value, id_, moment)
        refused = room.api.get("/v1/conversations", params={"sort": sort, "cursor": cursor})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-request"), (sort, value, moment)
    harmless = forged("waiting", "desc", "99999999999999999999", id_, now)
    assert room.api.get("/v1/conversations", params={"sort": "waiting", "cursor": harmless}).status_code == 200


# Exports


def exported(api: Api, **parameters: Any) -> list[dict[str, str]]:
    answer = api.get("/v1/conversations/export", params={"format": "csv", **parameters})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith('attachment; filename="conversas-')
    return list(csv.DictReader(io.StringIO(answer.content.decode(), newline="")))


def test_an_export_holds_the_whole_result_in_the_listings_columns_and_order(room: Room) -> None:
    rows = exported(room.api, sort="opened_at", order="asc")
    listed = room.api.items("/v1/conversations", sort="opened_at", order="asc", limit=5)
    assert list(rows[0]) == list(ConversationView.model_fields)
    assert [row["id"] for row in rows] == ids(listed)
    for row, view in zip(rows, listed, strict=True):
        assert row["status"] == view["status"]
        assert (row["transfers"], row["waiting_seconds"]) == (str(view["transfers"]), str(view["waiting_seconds"]))
        assert row["labels"] == " | ".join(view["labels"])
        assert json.loads(row["attributes"] or "{}") == view["attributes"]
    lines = room.api.get("/v1/conversations/export", params={"format": "ndjson", "sort": "opened_at", "order": "asc"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert [json.loads(line) for line in lines.content.splitlines()] == listed


def test_a_sort_with_gaps_exports_what_has_no_value_too(room: Room) -> None:
    for order in ("asc", "desc"):
        rows = exported(room.api, sort="finalized_at", order=order)
        assert [row["id"] for row in rows] == ids(room.api.items("/v1/conversations", sort="finalized_at", order=order))
        assert len(rows) == len(room.conversations)


def test_a_text_that_begins_like_a_formula_is_defused_and_nothing_else_is_touched(room: Room) -> None:
    rows = exported(room.api)
    text = {"=HYPERLINK(1)": "'=HYPERLINK(1)", "-2+3": "'-2+3", 'João "Jota"; Conceição, Jr.': None}
    assert {row["contact_name"] for row in rows} == {defused or name for name, defused in text.items()}
    assert {row["subject"] for row in rows} == {"'\tTab", "'=1+1", "Olá, \n mundo"}
    assert {row["outcome"] for row in rows} == {"", "'+ok"}
    assert {row["contact_phones"] for row in rows} == {"", "'+55 11 98765-4321"}
    assert {row["contact_emails"] for row in rows} == {"", "'=x@example.com"}
    beginnings = {value[:1] for row in rows for value in row.values()}
    assert not beginnings & set("=+-@\t\r\n")


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_every_beginning_of_a_formula_is_defused_in_text_and_lists_and_not_in_numbers(first: str) -> None:
    assert exports.cell(f"{first}1") == f"'{first}1"
    assert exports.cell([f"{first}1", "b"]) == f"'{first}1 | b"
    assert exports.cell(["b", f"{first}1"]) == f"b | {first}1"
    assert (exports.cell(-1), exports.cell(-1.5), exports.cell(None), exports.cell(value=True)) == (
        -1,
        -1.5,
        "",
        "true",
    )


def test_an_export_of_nothing_is_its_headings(room: Room) -> None:
    assert exported(room.api, channel="none") == []
    answer = room.api.get("/v1/conversations/export", params={"channel": "none"})
    assert answer.text == ",".join(ConversationView.model_fields) + "\r\n"
    assert room.api.get("/v1/conversations/export", params={"channel": "none", "format": "ndjson"}).text == ""


def test_an_export_needs_its_permission_and_holds_what_lies_within_its_scope(
    api: Api, bia: Api, stranger: Api, caller: Callable[..., Api], open_conversation: Callable[..., Conversation]
) -> None:
    refused = bia.get("/v1/conversations/export")
    assert (refused.status_code, refused.json()["code"]) == (403, "permission-denied")
    channel = f"c-{uuid4().hex[:12]}"
    ours, theirs = (
        open_conversation(channel=channel),
        open_conversation(channel=channel, sector_id=str(demo.OTHER_SECTOR)),
    )
    theirs.view()
    assert {row["id"] for row in exported(api, channel=channel)} == {ours.id, theirs.id}
    assert exported(stranger, channel=channel) == []
    grants = {"view": "all", "export": "sector", "view-contact": "own"}
    role = f"exporta-{uuid4().hex[:8]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": grants})
    agent = api.ok("POST", "/v1/agents", {"name": "Exporta", "role": role})["id"]
    api.ok("PUT", f"/v1/agents/{agent}/sectors/{demo.SECTOR}")
    some = exported(caller("agent", agent, role), channel=channel)
    assert [row["id"] for row in some] == [ours.id]
    assert {row["contact_name"] + row["contact_phones"] + row["contact_emails"] for row in some} == {""}
    only_export = f"so-{uuid4().hex[:8]}"
    api.ok("PUT", f"/v1/roles/{only_export}", {"grants": {"export": "all"}})
    assert caller("integration", "so-exporta", only_export).get("/v1/conversations/export").status_code == 403


def test_many_exports_one_after_another_leave_no_connection_behind(room: Room) -> None:
    for _ in range(12):
        with room.api.stream("GET", "/v1/conversations/export") as answer:
            assert answer.status_code == 200  # and go away without reading it
    assert len(exported(room.api)) == len(room.conversations)


# What may not be seen may not be searched


def test_a_contact_that_is_not_shown_cannot_be_found_out_by_any_condition(
    api: Api, caller: Callable[..., Api], open_conversation: Callable[..., Conversation]
) -> None:
    channel = f"c-{uuid4().hex[:12]}"
    name = f"Zulmira{uuid4().hex[:6]}"
    details = {
        "name": name,
        "phones": ["+55 11 90000-4711"],
        "emails": [f"{name}@x.org"],
        "attributes": {"plano": "ouro"},
    }
    contact = api.ok("POST", "/v1/contacts", details)["id"]
    open_conversation(channel=channel, contact_id=contact).view()
    role = f"sem-contato-{uuid4().hex[:8]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "all", "export": "all"}})
    blind = caller("integration", role, role)
    guesses = [
        condition("text", "contains", name),
        condition("text", "contains", "900004711"),
        condition("contact.name", "is", name),
        condition("contact.name", "starts_with", "zulmira"),
        condition("contact.name", "is_set"),
        condition("contact.phone", "contains", "4711"),
        condition("contact.email", "is", f"{name}@x.org"),
        condition("contact.attributes.plano", "is", "ouro"),
        condition("contact.attributes.plano", "is_set"),
    ]
    here = condition("channel", "is", channel)
    for guess in guesses:
        right = {"filter": {"and": [here, guess]}}
        assert len(searched(api, right)) == 1, guess
        assert searched(blind, right) == [], guess
        assert len(searched(blind, {"filter": {"and": [here, {"not": guess}]}})) == 1, guess
        assert blind.ok("POST", "/v1/conversations/counts", right)["total"]["count"] == 0, guess
        text = blind.get("/v1/conversations/export", params={"filter": json.dumps(right["filter"])}).text
        assert text.count("\r\n") == 1, guess


def test_a_contact_that_changes_is_found_by_its_new_words_and_not_by_the_old(
    api: Api, open_conversation: Callable[..., Conversation]
) -> None:
    old, new = f"velho{uuid4().hex[:6]}", f"nóvo{uuid4().hex[:6]}"
    contact = api.ok("POST", "/v1/contacts", {"name": old, "phones": ["+55 11 91234-0001"]})["id"]
    opened = open_conversation(contact_id=contact)
    opened.view()
    assert ids(api.items("/v1/conversations", q=old)) == [opened.id]
    changed = api.ok("PUT", f"/v1/contacts/{contact}", {"name": new, "emails": [f"{new.replace('ó', 'o')}@x.org"]})
    assert ids(api.items("/v1/conversations", q=new.replace("ó", "o").upper(), at_least=changed["position"])) == [
        opened.id
    ]
    assert api.items("/v1/conversations", q=old) == []
    protocol = opened.view()["protocol"]
    assert opened.id in ids(api.items("/v1/conversations", q=protocol))


@pytest.mark.parametrize("text", [" =1+1", "\u200b=1+1", "\uff1d1+1", "a;=1+1", "a; @SUM(1)", "a\t+1"])
def test_what_some_spreadsheets_take_for_a_formula_is_defused_as_well(text: str) -> None:
    defused = exports.cell(text)
    for part in re.split(r"[;\t]", defused):
        assert not unicodedata.normalize("NFKC", part).lstrip(" \u200b").startswith(("=", "+", "-", "@")), defused
    assert defused.replace("'", "") == text
