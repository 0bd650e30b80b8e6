"""Whatever is sent, the answer is a documented problem with a stable code, and what is refused changes nothing.

Invariant: the log's head after a refused request is the head before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest

from api import demo
from api.problems import STATUS, TITLES, status_of
from domain.errors import DomainError

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api, Conversation

SECTOR, OTHER_SECTOR = str(demo.SECTOR), str(demo.OTHER_SECTOR)
AGENT, OTHER_AGENT, CONTACT = str(demo.AGENT), str(demo.OTHER_AGENT), str(demo.CONTACT)
NOBODY = "00000000-0000-4000-8000-000000000000"
MAX_BODY_BYTES = 1_000_000
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Route:
    """A route that carries a command, with a body that it takes and the kind of each field."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def url(self, id_: str) -> str:
        """The path, filled in."""
        return self.path.format(id=id_, sector_id=SECTOR, label="vip", name="analista", target="contact", key="plano")


C = "/v1/conversations"
MESSAGE_KINDS = {
    "message_id": "uuid?",
    "text": "text",
    "kind": "enum",
    "attachments": "attachments",
    "author": "actor?",
}
DETAILS = {"name": "name?", "phones": "phones", "emails": "emails", "attributes": "attributes"}
VIEW_KINDS = {
    "name": "name",
    "shared": "flag",
    "filter": "filter",
    "sort": "enum",
    "order": "enum",
    "columns": "columns",
}
OPENING = {"id": "uuid?", "protocol": "protocol?", "channel": "slug", "contact_id": "uuid", "sector_id": "uuid?"}
ROUTES = [
    Route(
        "POST",
        C,
        {"channel": "whatsapp", "contact_id": CONTACT},
        OPENING | {"agent_id": "uuid?", "subject": "line?"},
        ("channel", "contact_id"),
    ),
    Route(
        "POST",
        C + "/{id}/messages",
        {"direction": "sent", "text": "x"},
        {"direction": "enum"} | MESSAGE_KINDS,
        ("direction",),
    ),
    Route("POST", C + "/{id}/notes", {"text": "x"}, {"text": "text", "message_id": "uuid?"}, ("text",)),
    Route("POST", C + "/{id}/handoff-to-bot", {"bot": "triagem"}, {"bot": "slug", "reason": "line"}, ("bot",)),
    Route("POST", C + "/{id}/handoff-from-bot", {}, {"sector_id": "uuid?", "reason": "line"}),
    Route("POST", C + "/{id}/pending", {"reason": "released"}, {"sector_id": "uuid?", "reason": "line"}),
    Route("POST", C + "/{id}/assume", {"agent_id": AGENT}, {"agent_id": "uuid?"}),
    Route(
        "POST",
        C + "/{id}/transfer",
        {"sector_id": OTHER_SECTOR},
        {"sector_id": "uuid", "agent_id": "uuid?", "reason": "line"},
        ("sector_id",),  # or an agent
    ),
    Route(
        "POST",
        C + "/{id}/finalize",
        {"surface": "listing"},
        {"surface": "enum", "outcome": "line", "comment": "text?", "cause": "enum"},
        ("surface",),
    ),
    Route("POST", C + "/{id}/reopen", {}, {"agent_id": "uuid?", "reason": "line"}),
    Route("POST", C + "/{id}/labels", {"label": "vip"}, {"label": "slug"}, ("label",)),
    Route("DELETE", C + "/{id}/labels/{label}"),
    Route("POST", C + "/{id}/priority", {"priority": "high"}, {"priority": "enum"}, ("priority",)),
    Route(
        "POST", C + "/{id}/attributes", {"key": "a", "value": 1}, {"key": "slug", "value": "value"}, ("key", "value")
    ),
    Route("POST", C + "/{id}/contact", {"contact_id": CONTACT}, {"contact_id": "uuid"}, ("contact_id",)),
    Route("POST", "/v1/contacts", {"name": "Rita"}, {"id": "uuid?"} | DETAILS),
    Route("PUT", "/v1/contacts/{id}", {"name": "Rita"}, DETAILS),
    Route("POST", "/v1/contacts/{id}/erase"),
    Route(
        "PUT",
        "/v1/attributes/{target}/{key}",
        {"label": "Plano", "type": "text"},
        {"label": "name", "type": "enum", "options": "options"},
        ("label", "type"),
    ),
    Route("DELETE", "/v1/attributes/{target}/{key}"),
    Route("POST", "/v1/views", {"name": "x"}, {"id": "uuid?"} | VIEW_KINDS, ("name",)),
    Route("PUT", "/v1/views/{id}", {"name": "x"}, VIEW_KINDS, ("name",)),
    Route("DELETE", "/v1/views/{id}"),
    Route("POST", "/v1/sectors", {"name": "Financeiro"}, {"id": "uuid?", "name": "name"}, ("name",)),
    Route("PUT", "/v1/sectors/{id}/name", {"name": "Financeiro"}, {"name": "name"}, ("name",)),
    Route("DELETE", "/v1/sectors/{id}"),
    Route("POST", "/v1/agents", {"name": "Caio"}, {"id": "uuid?", "name": "name", "role": "slug"}, ("name",)),
    Route("PUT", "/v1/agents/{id}/role", {"role": "supervisor"}, {"role": "slug"}, ("role",)),
    Route("PUT", "/v1/agents/{id}/sectors/{sector_id}"),
    Route("DELETE", "/v1/agents/{id}/sectors/{sector_id}"),
    Route("DELETE", "/v1/agents/{id}"),
    Route("PUT", "/v1/roles/{name}", {"grants": {"view": "all"}}, {"grants": "grants"}, ("grants",)),
    Route(
        "POST",
        "/v1/tokens",
        {"name": "x", "actor": {"kind": "integration", "id": "x"}, "role": "agent"},
        {"name": "name", "actor": "actor", "role": "slug", "expires_at": "moment?", "grants": "grants?"},
        ("name", "actor", "role"),
    ),
    Route("DELETE", "/v1/tokens/{id}"),
    Route(
        "PUT",
        "/v1/agents/{id}/identity",
        {"issuer": "https://login.example.com", "subject": "x", "role": "agent"},
        {"issuer": "issuer", "subject": "subject", "role": "slug"},
        ("issuer", "subject", "role"),
    ),
    Route("DELETE", "/v1/identities/{id}"),
]
WITH_BODY = [route for route in ROUTES if route.body is not None]
WITH_ID = [route for route in ROUTES if "{id}" in route.path]

# What no field takes, and what a field of each kind does not take.

HUGE_INT = 10**400
SURROGATE = "\ud800"
RTL = "\u202e\u2066gnissim"
LONG = "a" * 10_000
TREE: Any = {}
for _ in range(100):
    TREE = {"a": [TREE]}
NEVER: list[Any] = [TREE, {"$ne": 1}, [[[]]], {SURROGATE: 1}]
NO_TEXT: list[Any] = [*NEVER, 7, 1.5, True, HUGE_INT, float("nan"), float("inf"), SURROGATE, "a\0b", "\0"]
SLUG = [*NO_TEXT, "", " ", "UPPER", "two words", "-x", ".x", "a\n", "é", "a\u0300", RTL, "a" * 65, LONG, "'; drop"]
UUID_ = [*NO_TEXT, "", "x", NOBODY + "0", NOBODY[:-1], NOBODY[:-1] + "g", RTL, LONG, "\u0660" * 32]
BAD: dict[str, list[Any]] = {
    "uuid": [*UUID_, None],
    "uuid?": UUID_,
    "slug": [*SLUG, None],
    "enum": [*NO_TEXT, "", "x", "Sent", LONG, RTL],
    "line": [*NO_TEXT, "a" * 501, LONG, None],
    "line?": [*NO_TEXT, "a" * 501, LONG],
    "text": [*NO_TEXT, "a" * 65_537, None],
    "text?": [*NO_TEXT, "a" * 65_537],
    "name": [*NO_TEXT, "", "a" * 201, LONG, None],
    "name?": [*NO_TEXT, "", "a" * 201, LONG],
    "protocol?": [*NO_TEXT, "", "a" * 65, LONG],
    "value": [
        *NEVER,
        float("nan"),
        float("inf"),
        -float("inf"),
        SURROGATE,
        "a\0",
        "a" * 501,
        [1],
        ["a\0"],
        [None],
        [["x"]],
        ["a" * 501],
        {"a": 1},
    ],
    "attributes": [
        *NO_TEXT,
        None,
        [],
        {"UPPER": 1},
        {"": 1},
        {"a" * 65: 1},
        {"a\0": 1},
        {RTL: 1},
        {"a": {"b": 1}},
        {"a": float("nan")},
        {"a": "\0"},
        {"a": SURROGATE},
        {f"a{number}": 1 for number in range(101)},
    ],
    "options": [*NO_TEXT, None, {}, [""], [1], [None], ["a\0"], ["a" * 201], [["x"]], ["x"] * 201],
    "flag": [*NEVER, None, 0, 1, 1.0, "true", "yes", "", "\0", SURROGATE, LONG],
    "filter": [
        *NO_TEXT,
        None,
        [],
        {},
        {"field": "status"},
        {"field": "nothing", "operator": "is", "value": "x"},
        {"field": "status", "operator": "is", "value": "a\0"},
        {"field": "status", "operator": "before", "value": "pending"},
        {"field": "priority", "operator": "is", "value": 1},
        {"field": "status", "operator": "is", "value": "pending", "more": 1},
        {"and": {}},
        {"and": [], "or": []},
        {"not": []},
        {"and": [{"field": "status", "operator": "is", "value": "pending"}] * 51},
    ],
    "columns": [*NO_TEXT, None, {}, ["x"], [1], [None], ["protocol\0"], ["workspace_id"], ["protocol"] * 101],
    "phones": [
        *NO_TEXT,
        None,
        [""],
        ["abc"],
        ["1"],
        ["+55 11 9\0"],
        ["1" * 33],
        ["\u0661\u0662\u0663\u0664"],
        ["123"] * 21,
    ],
    "emails": [
        *NO_TEXT,
        None,
        [""],
        ["x"],
        ["@"],
        ["a b@c"],
        ["a@b\0"],
        ["a" * 251 + "@b.c"],
        [SURROGATE + "@b"],
        ["a@b"] * 21,
    ],
    "actor?": [*NO_TEXT, {}, {"kind": "bot"}, {"kind": "alien", "id": "x"}, {"kind": "bot", "id": ""}],
    "grants": [
        *NO_TEXT,
        None,
        [],
        {"view": "al"},
        {"fly": "all"},
        {"view": None},
        {"view": ["all"]},
        {"": "all"},
        {"view\0": "all"},
    ],
    "grants?": [*NO_TEXT, [], {"view": "al"}, {"fly": "all"}, {"view": None}, {"": "all"}, {"view\0": "all"}],
    "issuer": [*NO_TEXT, None, "", "x", "ftp://x.example", "https://", "https://x\n", "https://x y", RTL, LONG],
    "subject": [*NO_TEXT, None, "", " ", " x", "x ", "x\n", "é", "x" * 256, LONG, RTL],
    "moment?": [
        *NO_TEXT,
        "",
        "soon",
        "2026-11-22T10:00:00",  # no time zone
        "2026-13-45T10:00:00Z",
        "2026-11-22T10:00:00+99:99",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        1e300,
    ],
}
BAD["actor"] = [
    *BAD["actor?"],
    None,
    {"kind": "bot", "id": "x", "more": 1},
    {"kind": "bot", "id": "a" * 101},
    {"kind": "bot", "id": "\0"},
]
FILE = {"name": "a", "media_type": "image/png", "size_bytes": 1, "url": "https://x.example/a", "sha256": "0" * 64}
BAD["attachments"] = [
    *NO_TEXT,
    None,
    [FILE] * 51,
    [FILE | {"more": 1}],
    *([{key: value for key, value in FILE.items() if key != missing}] for missing in FILE),
    *(
        [FILE | {"url": url}]
        for url in ("", "x", "javascript:alert(1)", "file:///etc/passwd", "http://x/" + "a" * 2_000, "http://[")
    ),
    *([FILE | {"sha256": digest}] for digest in ("", "0" * 63, "G" * 64, "A" * 64)),
    *([FILE | {"media_type": type_}] for type_ in ("", "png", "a/b/c", "a/" + "b" * 127)),
    *([FILE | {"size_bytes": size}] for size in (-1, "many", 1.5, None)),
    [FILE | {"name": "a\0"}],
]

COERCED: list[tuple[str, dict[str, Any]]] = [
    ("attributes", {"key": "k", "value": "0" * 501}),  # a text over its limit, which is stored as the number 0
    ("attributes", {"key": "k", "value": ["x"] * 100_000}),  # a list without a limit, for ever in every row and fold
    ("messages", {"direction": "received", "attachments": [FILE | {"size_bytes": False}]}),
    ("messages", {"direction": "received", "attachments": [FILE | {"size_bytes": "7"}]}),
]
"""What the domain's values still take and should not."""

NO_JSON: list[bytes] = [
    b"{",
    b"}",
    b"'x'",
    b"\xff\xfe{}",
    b'{"text": "\xff"}',
    b'{"text": "a',
    b"{}{}",
    b'{"text": "\x01"}',
    b"[" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"text": ' + b"9" * 5_000 + b"}",
]
NO_OBJECT: list[bytes] = [
    *(b'{"name": ' + b"[" * depth + b"]" * depth + b"}" for depth in (200, 900, 1_000, 5_000)),
    *(b'{"name": ' + b'{"a": ' * depth + b"1" + b"}" * depth + b"}" for depth in (200, 900, 1_000, 5_000)),
    b"",
    b"null",
    b"true",
    b"1",
    b'"text"',
    b"[]",
    b"[{}]",
    b"NaN",
]


def check_problem(response: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    """The answer is a problem document with this status and code."""
    assert response.status_code == status, (response.status_code, response.text[:500])
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["title"] == TITLES[status]
    assert problem["type"] == f"/problems/{problem['code']}"
    assert problem["detail"]
    assert len(response.content) < 20_000
    assert "Traceback" not in response.text
    if code is not None:
        assert problem["code"] == code, problem
    return problem


@contextmanager
def nothing_changes(api: Api) -> Iterator[None]:
    """The log's head is the same afterwards."""
    before = api.log_head()
    yield
    assert api.log_head() == before


@pytest.fixture(scope="module")
def target(a_conversation: Callable[[str], Conversation], api: Api) -> Iterator[dict[str, str]]:
    """Ids for the paths of each kind of route; nothing may ever happen to them."""
    conversation = a_conversation("in_progress")
    before = (conversation.view(), conversation.history())
    token = api.read("/v1/tokens")["items"][0]["id"]
    ids = {"conversations": conversation.id, "contacts": CONTACT, "sectors": SECTOR, "agents": AGENT, "tokens": token}
    yield ids | {"views": str(demo.VIEW), "identities": str(demo.SPARE_IDENTITY)}
    assert (conversation.view(), conversation.history()) == before


def url_of(route: Route, target: dict[str, str]) -> str:
    return route.url(target.get(route.path.split("/")[2], NOBODY))


READING = {"POST /v1/conversations/search", "POST /v1/conversations/counts", "POST /v1/metrics/search"}
"""Queries whose filter is too long for an address: see `tests/acceptance/test_listing.py`."""
JOBS = {"POST /v1/bulk", "POST /v1/bulk/{id}/cancel"}
"""No commands of their own: see `tests/acceptance/test_bulk.py`."""
HEARTBEATS = {"PUT /v1/presence"}
"""No events: see `tests/acceptance/test_presence.py`."""


def test_every_route_that_changes_something_is_tried_here(api: Api) -> None:
    document = api.read("/openapi.json")
    commands = (
        {
            f"{method.upper()} {path}"
            for path, operations in document["paths"].items()
            for method in operations
            if method != "get"
        }
        - READING
        - JOBS
        - HEARTBEATS
    )
    assert commands == {str(route) for route in ROUTES}
    for route in WITH_BODY:
        body = document["paths"][route.path][route.method.lower()]["requestBody"]["content"]["application/json"]
        name = body["schema"]["$ref"].rsplit("/", 1)[1]
        assert set(document["components"]["schemas"][name]["properties"]) == set(route.kinds), route


# Bodies


@pytest.mark.parametrize("route", WITH_BODY, ids=str)
def test_a_required_field_that_is_missing_is_named(api: Api, target: dict[str, str], route: Route) -> None:
    assert route.body is not None
    with nothing_changes(api):
        for name in route.required:
            body = {key: value for key, value in route.body.items() if key != name}
            problem = check_problem(api.send_json(route.method, url_of(route, target), body), 422, "invalid-request")
            assert problem["errors"]
            assert name in str(problem["errors"]), problem


@pytest.mark.parametrize("route", WITH_BODY, ids=str)
def test_an_unknown_field_is_refused_and_never_dropped(api: Api, target: dict[str, str], route: Route) -> None:
    assert route.body is not None
    with nothing_changes(api):
        for name in ("unknown", "workspace_id", "", "a\0", SURROGATE, RTL, LONG, "__proto__", "__class__"):
            body = route.body | {name: 1}
            check_problem(api.send_json(route.method, url_of(route, target), body), 422, "invalid-request")


@pytest.mark.parametrize("route", WITH_BODY, ids=str)
def test_a_field_of_another_type_huge_or_hostile_is_refused(api: Api, target: dict[str, str], route: Route) -> None:
    assert route.body is not None
    with nothing_changes(api):
        for name, kind in route.kinds.items():
            for value in BAD[kind]:
                answer = api.send_json(route.method, url_of(route, target), route.body | {name: value})
                assert answer.status_code == 422, (name, repr(value)[:100], answer.status_code, answer.text[:300])
                check_problem(answer, 422, "invalid-request")


@pytest.mark.parametrize("route", WITH_BODY, ids=str)
def test_what_is_no_json_object_is_refused(api: Api, target: dict[str, str], route: Route) -> None:
    with nothing_changes(api):
        for content in [*NO_JSON, *NO_OBJECT]:
            answer = api.request(route.method, url_of(route, target), content=content, headers=JSON)
            assert answer.status_code == 422, (content[:50], answer.status_code, answer.text[:300])
            check_problem(answer, 422, "invalid-request")


@pytest.mark.parametrize("route", WITH_BODY, ids=str)
def test_a_body_that_does_not_say_it_is_json_is_refused(api: Api, target: dict[str, str], route: Route) -> None:
    content = json.dumps(route.body).encode()
    with nothing_changes(api):
        for type_ in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/xml",
            "x",
            "",
        ):
            answer = api.request(route.method, url_of(route, target), content=content, headers={"Content-Type": type_})
            check_problem(answer, 415, "unsupported-media-type")
        answer = api.request(route.method, url_of(route, target), content=content)
        check_problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_body_over_the_limit_is_too_large(api: Api, target: dict[str, str], route: Route) -> None:
    announced = b'{"text": "' + b"x" * MAX_BODY_BYTES + b'"}'

    def unannounced() -> Iterator[bytes]:
        for start in range(0, len(announced), 100_000):
            yield announced[start : start + 100_000]

    with nothing_changes(api):
        for content in (announced, unannounced()):
            answer = api.request(route.method, url_of(route, target), content=content, headers=JSON)
            check_problem(answer, 413, "too-large")


def test_a_body_of_just_the_limit_is_read(api: Api, target: dict[str, str]) -> None:
    frame = b'{"text": ""}'
    content = frame[:-2] + b"x" * (MAX_BODY_BYTES - len(frame)) + frame[-2:]
    with nothing_changes(api):
        answer = api.request("POST", f"{C}/{target['conversations']}/notes", content=content, headers=JSON)
        check_problem(answer, 422, "invalid-request")


HOSTILE_BUT_LEGAL = [
    "'; drop table events; --",
    '"}]}, {"text": "x',
    "%s %(x)s {} ${jndi:ldap://x}",
    "<script>alert(1)</script>",
    '=cmd|" /C calc"!A0',
    "\u202e\u2066right to left\u2069\u202c",
    "\u200b\ufeff\u2028\u2029",
    "".join(map(chr, range(1, 32))) + "\x7f\x85",
    "e\u0301\u00e9 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0010ffff \ufffe",
    "z" + "\u0300" * 1_000,
    "\\u0000 \\ud800 \\",
    "\r\n\r\nHTTP/1.1 200 OK\r\n",
    "x" * 65_536,
    "\U0001f600" * 65_536,
]


def test_text_that_is_hostile_and_yet_legal_comes_back_as_it_was(
    api: Api, open_conversation: Callable[..., Conversation]
) -> None:
    conversation = open_conversation()
    for text in HOSTILE_BUT_LEGAL:
        conversation.do("messages", {"direction": "received", "text": text})
    assert [message["text"] for message in conversation.messages()] == HOSTILE_BUT_LEGAL
    lines = [text[:200] for text in HOSTILE_BUT_LEGAL]
    for text in lines:
        name = text[:200]
        contact = api.ok("POST", "/v1/contacts", {"name": name, "attributes": {"a": text, "b": [text]}})["id"]
        opened = open_conversation(contact_id=contact, subject=text)
        opened.do("attributes", {"key": "k", "value": text})
        opened.do("finalize", {"surface": "inbox", "outcome": text})
        view = opened.view()
        assert (view["contact_name"], view["subject"], view["outcome"]) == (name, text, text)
        assert view["attributes"] == {"k": text}
        assert view["contact_attributes"] == {"a": text, "b": [text]}
        if any(character.isalnum() for character in name):  # else there is no word to find it by
            found = api.read("/v1/conversations", q=name, limit=500)["items"]
            assert opened.id in [row["id"] for row in found]


NUMBERS = [0, -1, 2**53 - 1, 1 - 2**53, 0.1, -0.5, 1e-300, 1e25, -1e25, 1.7976931348623157e308]


def test_numbers_are_kept_and_read(api: Api, open_conversation: Callable[..., Conversation]) -> None:
    conversation = open_conversation()
    for index, number in enumerate(NUMBERS):
        conversation.do("attributes", {"key": f"n{index}", "value": number})
    view = conversation.view()
    for index, number in enumerate(NUMBERS):
        # JSON knows one kind of number: what went in as 1e25 may come out as its 26 digits.
        assert type(number)(view["attributes"][f"n{index}"]) == number
    assert view in api.read("/v1/conversations", limit=500)["items"]


@pytest.mark.parametrize(
    "number",
    [10**400, 2**53 + 1, -(2**53) - 1, 2**63 - 1, 10**30 + 1],
    ids=lambda number: str(number)[:20],
)
def test_a_whole_number_beyond_what_readers_of_json_get_right_is_refused_or_kept_but_never_changed(
    api: Api, open_conversation: Callable[..., Conversation], number: int
) -> None:
    conversation = open_conversation()
    answer = conversation.ask("attributes", {"key": "n", "value": number})
    if answer.is_success:
        conversation.answer = answer.json()
        assert conversation.view()["attributes"] == {"n": number}
        assert api.read("/v1/conversations")["items"]
    else:
        check_problem(answer, 422, "invalid-request")


def test_a_size_beyond_all_measure_is_refused_or_kept_and_can_be_read(
    api: Api, open_conversation: Callable[..., Conversation]
) -> None:
    conversation = open_conversation()
    size = 10**30
    answer = conversation.ask("messages", {"direction": "received", "attachments": [FILE | {"size_bytes": size}]})
    if answer.is_success:
        assert conversation.messages()[0]["attachments"][0]["size_bytes"] == size
    else:
        check_problem(answer, 422, "invalid-request")


@pytest.mark.parametrize(("what", "body"), COERCED, ids=["digits", "list", "false", "text"])
def test_what_is_no_number_is_not_taken_for_one(
    api: Api, open_conversation: Callable[..., Conversation], what: str, body: dict[str, Any]
) -> None:
    conversation = open_conversation()
    with nothing_changes(api):
        check_problem(conversation.ask(what, body), 422, "invalid-request")


# Paths


@pytest.mark.parametrize("route", WITH_ID, ids=str)
def test_a_path_without_a_uuid_is_refused(api: Api, route: Route) -> None:
    with nothing_changes(api):
        for id_ in (
            "x",
            "0",
            "%00",
            "%ff",
            "null",
            "%20",
            NOBODY[:-1],
            NOBODY + "0",
            "%ED%A0%80",
            "a" * 10_000,
            "%27--",
        ):
            answer = api.send_json(route.method, route.url(id_), route.body)
            check_problem(answer, 422, "invalid-request")
        for id_ in ("", "a/b", f"{NOBODY}/"):
            answer = api.send_json(route.method, route.url(id_), route.body)
            assert answer.status_code in {404, 405}, (id_, answer.status_code)
            check_problem(answer, answer.status_code, None)


@pytest.mark.parametrize("path", ["labels/{}", "../roles/{}"])
def test_a_path_without_a_slug_is_refused(api: Api, target: dict[str, str], path: str) -> None:
    method = "DELETE" if "labels" in path else "PUT"
    base = f"{C}/{target['conversations']}/labels/" if "labels" in path else "/v1/roles/"
    with nothing_changes(api):
        for name in ("UPPER", "%00", "%ff", "%0a", "a%0a", "a%20b", "a" * 65, "a" * 10_000, "%E2%80%AE", "-x"):
            answer = api.send_json(method, base + name, {"grants": {}} if method == "PUT" else None)
            check_problem(answer, 422, "invalid-request")


@pytest.mark.parametrize("route", WITH_ID, ids=str)
def test_what_does_not_exist_is_not_found(api: Api, route: Route) -> None:
    codes = {
        "conversations": "conversation",
        "contacts": "contact",
        "sectors": "sector",
        "agents": "agent",
        "tokens": "token",
        "identities": "identity",
        "views": "view",
    }
    with nothing_changes(api):
        answer = api.send_json(route.method, route.url(NOBODY), route.body)
        check_problem(answer, 404, f"{codes[route.path.split('/')[2]]}-not-found")


@pytest.mark.parametrize("route", [route for route in WITH_ID if route.path.startswith(C)], ids=str)
def test_an_id_of_something_else_is_refused(api: Api, route: Route) -> None:
    with nothing_changes(api):
        for id_ in (CONTACT, SECTOR, AGENT, str(demo.WORKSPACE)):
            answer = api.send_json(route.method, route.url(id_), route.body)
            assert answer.status_code in {404, 409}, answer.text
            check_problem(answer, answer.status_code, None)


def test_a_path_or_method_that_is_not_there_is_a_problem_too(api: Api) -> None:
    for path in ("/v1", "/v1/nothing", "/v2/conversations", "/v1/conversations/", "/" + "a" * 10_000):
        check_problem(api.get(path), 404, "not-found")
    for method, path in (("PUT", C), ("PATCH", f"{C}/{NOBODY}"), ("GET", f"{C}/{NOBODY}/assume"), ("TRACE", C)):
        answer = api.request(method, path)
        check_problem(answer, 405, "method-not-allowed")
        assert answer.headers["allow"]


# Headers


BAD_HEADERS: list[tuple[str, bytes]] = [
    *(
        ("If-Match", value)
        for value in (b"x", b"", b'"x"', b'"-1"', b'"1.5"', b'"1", "2"', b'"' + b"9" * 19 + b'"', b"\xb2", b'"1"x')
    ),
    *(
        ("Idempotency-Key", value)
        for value in (b"", b"two words", b"k" * 201, b"\xc3\xa9", b"\xff", b"a\tb", b"k" * 10_000)
    ),
    *(("Surface", value) for value in (b"", b"import", b"bulk", b"INBOX", b"x", b"inbox,api", b"\xff", b"a" * 10_000)),
    *(("Correlation-Id", value) for value in (b"x", b"1", NOBODY.encode() + b"0", b"\xff", b"a" * 10_000)),
    *(("Causation-Id", value) for value in (b"", b"two words", b"c" * 201, b"\xff")),
]


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_a_header_that_says_nothing_sensible_is_refused(api: Api, target: dict[str, str], route: Route) -> None:
    content = json.dumps(route.body).encode() if route.body is not None else b""
    with nothing_changes(api):
        for name, value in BAD_HEADERS:
            if name == "Surface" and route.path.endswith("/finalize"):
                continue  # its body says where from
            headers = [(name.encode(), value), (b"Content-Type", b"application/json")]
            answer = api.request(route.method, url_of(route, target), content=content, headers=headers)
            assert answer.status_code == 422, (name, value[:50], answer.status_code, answer.text[:300])
            problem = check_problem(answer, 422, "invalid-request")
            assert ["header", name.lower()] in [error["in"] for error in problem["errors"]]


BAD_TOKENS = [
    b"",
    b"Bearer",
    b"Bearer x",
    b"Basic YWRtaW46YWRtaW4=",
    b"Bearer cvs_wrong",
    b"Bearer \xff\xfe",
    b"Bearer a b",
    b"Bearer " + b"a" * 10_000,
    b"bearer null",
    b"Bearer ' or 1=1 --",
]


def test_every_route_needs_a_token(api: Api, connect: Callable[[str | None], Api], target: dict[str, str]) -> None:
    nobody, tried = connect(None), 0
    document = api.read("/openapi.json")
    with nothing_changes(api):
        for path, operations in document["paths"].items():
            if not path.startswith("/v1/"):
                continue
            for method, operation in operations.items():
                url = Route(method, path).url(target["conversations"])
                content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
                answer = nobody.send_json(method.upper(), url, content.get("example"))
                check_problem(answer, 401, "unauthenticated")
                assert answer.headers["www-authenticate"] == "Bearer"
                for token in BAD_TOKENS:
                    answer = nobody.request(
                        method.upper(),
                        url,
                        content=json.dumps(content.get("example", {})).encode() if content else None,
                        headers=[(b"Authorization", token), (b"Content-Type", b"application/json")],
                    )
                    check_problem(answer, 401, "unauthenticated")
                answer = nobody.request(method.upper(), url, content=b"{", headers=JSON)
                check_problem(answer, 401, "unauthenticated")
                tried += 1
    assert tried >= 40


def test_a_token_does_not_count_in_the_query_or_in_a_cookie(api: Api, connect: Callable[[str | None], Api]) -> None:
    nobody = connect(None)
    token = api.headers["authorization"].split()[1]
    for answer in (
        nobody.get("/v1/me", params={"token": token, "access_token": token}),
        nobody.get("/v1/me", headers={"Cookie": f"token={token}", "X-Api-Key": token}),
    ):
        check_problem(answer, 401, "unauthenticated")


# Queries


LISTING_NONSENSE: dict[str, list[str]] = {
    "status": ["x", "", "PENDING", "\0", "pending,finalized"],
    "channel": ["", "UPPER", "\0", "a" * 65, RTL],
    "sector": ["", "x", NOBODY + "0", "\0"],
    "agent": ["", "x", "null"],
    "bot": ["", "a b"],
    "label": ["", "\0", "é"],
    "opened_from": ["", "x", "2026-11-22", "2026-11-22T10:00:00", "2026-13-01T00:00:00Z", "1e400", "NaN"],
    "finalized_until": ["", "x", "2026-11-22T10:00:00+99:00"],
    "q": ["a\0", "a" * 501],
    "sort": ["", "x", "id", "opened_at desc", "1; drop table listing"],
    "order": ["", "x", "DESC"],
    "limit": ["", "0", "-1", "501", "x", "1.5", "9" * 40],
    "cursor": ["", "x", "W10", "!!!", "é", "a" * 501, "bnVsbA", "e30", "WzEsMiwzLDRd", "/w", "\0"],
    "at_least": ["", "-1", "x", "9" * 40, "1.5"],
    "unknown": ["1"],
    "Status": ["pending"],
}


@pytest.mark.parametrize("name", LISTING_NONSENSE)
def test_a_query_that_says_nothing_sensible_is_refused(api: Api, name: str) -> None:
    for value in LISTING_NONSENSE[name]:
        answer = api.get(C, params={name: value})
        assert answer.status_code == 422, (value, answer.status_code, answer.text[:300])
        problem = check_problem(answer, 422, "invalid-request")
        assert name in str(problem["errors"]) or name == "cursor"


@pytest.mark.parametrize(
    "path", ["/v1/history", "/v1/events", f"{C}/{demo.CONVERSATION}/messages", f"{C}/{demo.CONVERSATION}/history"]
)
def test_other_queries_refuse_nonsense_too(api: Api, path: str) -> None:
    asked = {"limit": ["0", "x", "9" * 40]}
    if path == "/v1/events":
        asked["after"] = ["-1", "x", str(2**63), "9" * 40, ""]
    else:
        asked["cursor"] = ["x", "W10", "WyJ4Il0", "Wy0xXQ", "WzFlNDAwXQ", "WzkyMjMzNzIwMzY4NTQ3NzU4MDhd", "W3RydWVd"]
    if path == "/v1/history":
        asked |= {
            "event": ["\0", "A"],
            "surface": ["x"],
            "sector": ["x"],
            "stream": ["x"],
            "actor": ["a\0"],
            "more": ["1"],
        }
        asked |= {"occurred_from": ["x", "2026-11-22"]}
    for name, values in asked.items():
        for value in values:
            answer = api.get(path, params={name: value})
            assert answer.status_code == 422, (name, value, answer.status_code, answer.text[:300])
            check_problem(answer, 422, "invalid-request")


FIRST_PAGE_AT = "2026-01-01T10:00:00+00:00"
"""The moment of the first page, which a cursor keeps."""


def test_a_forged_cursor_is_refused_or_grants_nothing(api: Api) -> None:
    import base64  # noqa: PLC0415  # only this test forges

    def forge(*parts: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")

    times = [
        "99999-13-45 10:00:00+00",
        "2026-13-45 10:00:00+00",
        "2026-01-01 99:00:00+00",
        "3",
        "",
        "now",
        "x' or 1=1 --",
    ]
    times += [
        "2026-01-01 10:00:00+99:99",
        "0000-01-01 00:00:00+00",
        "2026-01-01 10:00:00+00 BC",
        "\u0662\u0660\u0662\u0666-01-01 10:00:00+00",
    ]
    for time in times:
        for order in ("asc", "desc"):
            cursor = forge("last_activity_at", order, time, NOBODY, FIRST_PAGE_AT)
            check_problem(api.get(C, params={"cursor": cursor, "order": order}), 422, "invalid-request")
    for rank in ("infinity", "4", "-1", "2026-01-01 10:00:00+00", "", "9" * 30):
        cursor = forge("priority", "desc", rank, NOBODY, FIRST_PAGE_AT)
        check_problem(api.get(C, params={"cursor": cursor, "sort": "priority"}), 422, "invalid-request")
    for parts in (
        ("last_activity_at",),
        ("last_activity_at", "desc", "2026-01-01 10:00:00+00", "x", FIRST_PAGE_AT),
        ("last_activity_at", "desc", "2026-01-01 10:00:00+00", NOBODY),
        ("last_activity_at", "desc", "2026-01-01 10:00:00+00", NOBODY, "now"),
        ("last_activity_at", "desc", "infinity", NOBODY, FIRST_PAGE_AT),
        (1, 2, 3, 4, 5),
        ({}, [], None, True, 1.5),
    ):
        check_problem(api.get(C, params={"cursor": forge(*parts)}), 422, "invalid-request")
    for time in ("2026-01-01 10:00:00+00", "2026-01-01 10:00:00.5+00"):
        harmless = forge("last_activity_at", "desc", time, NOBODY, FIRST_PAGE_AT)
        assert api.get(C, params={"cursor": harmless}).status_code == 200


def test_times_at_the_ends_of_the_calendar_are_times(api: Api) -> None:
    for name in ("opened_from", "opened_until", "finalized_from"):
        for time in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1970-01-01T00:00:00Z"):
            assert api.get(C, params={name: time, "limit": 1}).status_code == 200


# Out of order


@dataclass(frozen=True)
class Refusal:
    """In a state, what is asked and the code with which it is refused."""

    state: str
    what: str
    body: dict[str, Any]
    code: str
    status: int = 409


FINALIZED, WITH_BOT = "conversation-already-finalized", "conversation-with-bot"
REFUSALS = [
    Refusal("finalized", "handoff-to-bot", {"bot": "triagem"}, FINALIZED),
    Refusal("finalized", "handoff-from-bot", {}, FINALIZED),
    Refusal("finalized", "pending", {}, FINALIZED),
    Refusal("finalized", "assume", {"agent_id": OTHER_AGENT}, FINALIZED),
    Refusal("finalized", "assume", {"agent_id": AGENT}, FINALIZED),
    Refusal("finalized", "transfer", {"sector_id": OTHER_SECTOR}, FINALIZED),
    Refusal(
        "finalized", "messages", {"direction": "sent", "author": {"kind": "bot", "id": "triagem"}}, "bot-not-in-charge"
    ),
    Refusal("finalized", "reopen", {"agent_id": NOBODY}, "agent-not-found", 404),
    Refusal("with_bot", "handoff-to-bot", {"bot": "outro"}, WITH_BOT),
    Refusal("with_bot", "pending", {}, WITH_BOT),
    Refusal("with_bot", "pending", {"sector_id": OTHER_SECTOR}, WITH_BOT),
    Refusal("with_bot", "handoff-from-bot", {"sector_id": NOBODY}, "sector-not-found", 404),
    Refusal(
        "with_bot", "messages", {"direction": "sent", "author": {"kind": "bot", "id": "outro"}}, "bot-not-in-charge"
    ),
    Refusal("pending", "handoff-from-bot", {"sector_id": OTHER_SECTOR}, "conversation-not-with-bot"),
    Refusal("pending", "pending", {"sector_id": OTHER_SECTOR}, "conversation-already-pending"),
    Refusal("pending", "assume", {"agent_id": NOBODY}, "agent-not-found", 404),
    Refusal("pending", "transfer", {"sector_id": NOBODY}, "sector-not-found", 404),
    Refusal("pending", "transfer", {"agent_id": NOBODY}, "agent-not-found", 404),
    Refusal("pending", "transfer", {"agent_id": AGENT, "sector_id": OTHER_SECTOR}, "agent-not-in-sector"),
    Refusal("pending", "contact", {"contact_id": NOBODY}, "contact-not-found", 404),
    Refusal(
        "pending", "messages", {"direction": "sent", "author": {"kind": "bot", "id": "triagem"}}, "bot-not-in-charge"
    ),
    Refusal("pending", "finalize", {"surface": "automation"}, "invalid-command", 422),
    Refusal("pending", "finalize", {"surface": "listing", "cause": "bot"}, "invalid-command", 422),
    Refusal("in_progress", "handoff-from-bot", {}, "conversation-not-with-bot"),
    Refusal("in_progress", "assume", {"agent_id": OTHER_AGENT}, "conversation-already-assumed"),
    Refusal("in_progress", "transfer", {"agent_id": AGENT, "sector_id": OTHER_SECTOR}, "agent-not-in-sector"),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: f"{refusal.state}-{refusal.what}-{refusal.code}")
def test_a_command_out_of_order_is_refused_by_its_rule(
    api: Api, integration: Api, a_conversation: Callable[[str], Conversation], refusal: Refusal
) -> None:
    conversation = a_conversation(refusal.state)
    # An integration speaks for others; only it and the system may end a conversation without a person.
    by = integration if {"author", "agent_id"} & set(refusal.body) or "automation" in refusal.body.values() else api
    with nothing_changes(api):
        for _ in range(2):
            answer = conversation.ask(refusal.what, refusal.body, by=by)
            check_problem(answer, refusal.status, refusal.code)
    view = conversation.view()
    assert (view["status"], view["version"]) == (refusal.state, conversation.answer["version"])


def test_a_closed_sector_and_an_agent_who_left_are_refused(
    api: Api, integration: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    sector = api.ok("POST", "/v1/sectors", {"name": "Fechado"})["id"]
    agent = api.ok("POST", "/v1/agents", {"name": "De saída"})["id"]
    api.ok("DELETE", f"/v1/sectors/{sector}")
    api.ok("DELETE", f"/v1/agents/{agent}")
    open_with = {"channel": "phone", "contact_id": CONTACT}
    path = f"{C}/{{}}"
    pending, with_bot = (path.format(a_conversation(state).id) for state in ("pending", "with_bot"))
    in_progress, finalized = (path.format(a_conversation(state).id) for state in ("in_progress", "finalized"))
    asks: list[tuple[str, str, dict[str, Any], str]] = [
        ("POST", C, open_with | {"sector_id": sector}, "sector-inactive"),
        ("POST", C, open_with | {"agent_id": agent}, "agent-inactive"),
        ("POST", f"{pending}/transfer", {"sector_id": sector}, "sector-inactive"),
        ("POST", f"{pending}/transfer", {"agent_id": agent}, "agent-inactive"),
        ("POST", f"{pending}/assume", {"agent_id": agent}, "agent-inactive"),
        ("POST", f"{with_bot}/handoff-from-bot", {"sector_id": sector}, "sector-inactive"),
        ("POST", f"{in_progress}/pending", {"sector_id": sector}, "sector-inactive"),
        ("POST", f"{finalized}/reopen", {"agent_id": agent}, "agent-inactive"),
    ]
    with nothing_changes(api):
        for method, url, body, code in asks:
            answer = integration.send_json(method, url, body)
            assert (answer.status_code, answer.json()["code"]) == (409, code), (url, body)
        check_problem(api.send_json("PUT", f"/v1/agents/{AGENT}/sectors/{sector}", None), 409, "sector-inactive")
        check_problem(api.send_json("PUT", f"/v1/agents/{AGENT}/sectors/{NOBODY}", None), 404, "sector-not-found")


def test_opening_is_refused_where_it_names_what_is_not_there_or_an_id_that_is_taken(
    api: Api, integration: Api, a_conversation: Callable[[str], Conversation]
) -> None:
    taken = a_conversation("pending")
    open_with = {"channel": "phone", "contact_id": CONTACT}
    asks: list[tuple[dict[str, Any], int, str]] = [
        ({"contact_id": NOBODY}, 404, "contact-not-found"),
        ({"contact_id": SECTOR}, 404, "contact-not-found"),
        ({"sector_id": NOBODY}, 404, "sector-not-found"),
        ({"sector_id": AGENT}, 404, "sector-not-found"),
        ({"agent_id": NOBODY}, 404, "agent-not-found"),
        ({"agent_id": AGENT, "sector_id": OTHER_SECTOR}, 409, "agent-not-in-sector"),
        ({"id": taken.id}, 409, "already-exists"),
        ({"id": CONTACT}, 409, "already-exists"),
        ({"id": SECTOR}, 409, "already-exists"),
    ]
    with nothing_changes(api):
        for more, status, code in asks:
            check_problem(integration.send_json("POST", C, open_with | more), status, code)
        for path, body in (
            ("/v1/contacts", {"id": CONTACT, "name": "Outra"}),
            ("/v1/contacts", {"id": SECTOR, "name": "Outra"}),
            ("/v1/sectors", {"id": SECTOR, "name": "Outro"}),
            ("/v1/sectors", {"id": AGENT, "name": "Outro"}),
            ("/v1/agents", {"id": AGENT, "name": "Outra"}),
            ("/v1/agents", {"id": CONTACT, "name": "Outra"}),
        ):
            check_problem(api.send_json("POST", path, body), 409, "already-exists")


def test_roles_must_exist_built_in_ones_stay_and_nobody_grants_more_than_they_have(
    api: Api, caller: Callable[..., Api]
) -> None:
    actor = {"kind": "integration", "id": "x"}
    asks: list[tuple[str, str, dict[str, Any], int, str]] = [
        ("POST", "/v1/tokens", {"name": "x", "actor": actor, "role": "no-such-role"}, 404, "role-not-found"),
        ("POST", "/v1/agents", {"name": "x", "role": "no-such-role"}, 404, "role-not-found"),
        ("PUT", f"/v1/agents/{OTHER_AGENT}/role", {"role": "no-such-role"}, 404, "role-not-found"),
        *(("PUT", f"/v1/roles/{role}", {"grants": {}}, 409, "role-built-in") for role in ("admin", "agent", "auditor")),
    ]
    with nothing_changes(api):
        for method, path, body, status, code in asks:
            check_problem(api.send_json(method, path, body), status, code)
    api.ok(
        "PUT", "/v1/roles/porteiro", {"grants": {"manage-tokens": "all", "manage-directory": "all", "view": "sector"}}
    )
    doorkeeper = caller("integration", "porteiro", "porteiro")
    with nothing_changes(api):
        for method, path, body in (
            ("POST", "/v1/tokens", {"name": "x", "actor": actor, "role": "admin"}),
            ("POST", "/v1/agents", {"name": "x", "role": "agent"}),
            ("PUT", f"/v1/agents/{OTHER_AGENT}/role", {"role": "auditor"}),
            ("PUT", "/v1/roles/mais", {"grants": {"view": "all"}}),
            ("PUT", "/v1/roles/mais", {"grants": {"export": "own"}}),
        ):
            check_problem(doorkeeper.send_json(method, path, body), 403, "permission-denied")
    assert doorkeeper.ok("PUT", "/v1/roles/menos", {"grants": {"view": "own"}})["events"] == 1


def test_a_token_that_is_no_agents_says_who_assumes(integration: Api, api: Api, target: dict[str, str]) -> None:
    with nothing_changes(api):
        answer = integration.send_json("POST", f"{C}/{target['conversations']}/assume", {})
        check_problem(answer, 422, "invalid-command")


@pytest.mark.parametrize("route", ROUTES, ids=str)
def test_who_was_granted_nothing_changes_nothing(
    api: Api, caller: Callable[..., Api], target: dict[str, str], route: Route
) -> None:
    api.ok("PUT", "/v1/roles/nothing", {"grants": {}})
    nobody = caller("integration", "ninguem", "nothing")
    with nothing_changes(api):
        answer = nobody.send_json(route.method, url_of(route, target), route.body)
        # What they may not even see does not exist; the rest they may not do.
        expected = (
            (404, "conversation-not-found")
            if "{id}" in route.path and route.path.startswith(C)
            else (403, "permission-denied")
        )
        check_problem(answer, *expected)


# The table of errors


def all_errors(cls: type[DomainError] = DomainError) -> list[type[DomainError]]:
    return [leaf for sub in cls.__subclasses__() for leaf in (sub, *all_errors(sub))]


def test_every_domain_error_has_a_row_in_the_table_of_statuses() -> None:
    errors = all_errors()
    assert len(errors) > 20
    for cls in errors:
        assert any(base in STATUS for base in cls.__mro__), cls
        error = cls(1, 2) if cls.__name__ == "VersionConflictError" else cls()
        assert status_of(error) in {403, 404, 409, 412, 422}
        assert status_of(error) in TITLES
        assert error.detail
    assert set(STATUS) <= set(errors)


def test_every_domain_error_has_a_code_of_its_own() -> None:
    codes = [cls.code for cls in all_errors()]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_after_all_this_the_service_is_as_ready_as_before(api: Api) -> None:
    ready = api.read("/readyz")
    assert (ready["ready"], ready["reason"]) == (True, None)
    assert ready["projections"]
    assert not any(projection["halted"] for projection in ready["projections"].values())
    assert uuid4().hex not in str(ready)
