"""Nobody reads history or personal data without the permission and a record of the access: every route that reads.

Invariant: a route that answers with anything but what became of a command, and is on neither list, fails here; and so
does one that is said to show nobody and has a field for what a contact is known by.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any
from uuid import UUID, uuid4

import pytest
from streams_rig import Listener

from adapters import accesses as accesses_
from adapters.accesses import Lately
from api import demo
from api.app import create_app
from api.settings import Settings
from domain.events import (
    Actor,
    ActorKind,
    AttributePersonal,
    ContactDetails,
    FinalizedPersonal,
    MessagePersonal,
    NotePersonal,
    OpenedPersonal,
)
from domain.permissions import Caller, Permission, Scope

Client = Any
PERMISSIONS = ("view", "view-contact", "read-history", "export", "verify-history", "manage-directory", "manage-tokens")
AS_OF = "as_of=2026-01-01T00:00:00Z"
BY_NAME = {"filter": {"field": "contact.name", "operator": "contains", "value": "maria"}}
BY_STATUS = {"filter": {"field": "status", "operator": "is", "value": "pending"}}
IN_BULK = {"action": "add-label", "parameters": {"label": "vip"}, "dry_run": True}

RECORDED: tuple[tuple[str, Any, str, str], ...] = (
    ("GET /v1/conversations", None, "view", "listing"),
    ("POST /v1/conversations/search", BY_STATUS, "view", "listing"),
    ("GET /v1/conversations/{id}", None, "view", "listing"),
    ("GET /v1/conversations?q=maria", None, "view", "search"),
    ("GET /v1/conversations?q=maria&sort=finalized_at", None, "view", "search"),
    ("POST /v1/conversations/search", BY_NAME, "view", "search"),
    ("GET /v1/conversations/counts?q=maria", None, "view", "search"),
    ("POST /v1/conversations/counts", BY_NAME, "view", "search"),
    ("GET /v1/metrics?q=maria", None, "view", "search"),
    ("POST /v1/metrics/search", BY_NAME, "view", "search"),
    ("POST /v1/bulk", IN_BULK | {"on": BY_NAME}, "view", "search"),
    ("GET /v1/conversations/stream", None, "view", "stream"),
    ("GET /v1/conversations/{id}/messages", None, "view", "messages"),
    ("GET /v1/conversations/{id}/history", None, "read-history", "history"),
    ("GET /v1/conversations/{id}?version=1", None, "read-history", "history"),
    ("GET /v1/conversations/{id}/stream", None, "view", "stream"),
    (f"GET /v1/conversations?{AS_OF}", None, "read-history", "history"),
    (f"GET /v1/conversations/counts?{AS_OF}", None, "read-history", "history"),
    ("GET /v1/conversations/export", None, "export", "export"),
    ("GET /v1/contacts", None, "view-contact", "contact"),
    ("GET /v1/contacts/{id}", None, "view-contact", "contact"),
    ("GET /v1/contacts/{id}/timeline", None, "view-contact", "contact"),
    ("GET /v1/history", None, "read-history", "history"),
    ("GET /v1/history/export", None, "export", "export"),
    ("GET /v1/events", None, "read-history", "history"),
    ("GET /v1/events/stream", None, "read-history", "stream"),
)
"""What is asked, the permission without which it is refused, and as what it is recorded."""
HASHES = "hashes and numbers"
NUMBERS = "numbers, unless they are of those whom a name is looked for"
DIRECTORY = "the directory, not what was done or a contact"
ONES_OWN = "one's own work"
NOT_RECORDED = {
    "GET /v1/conversations/counts": NUMBERS,
    "POST /v1/conversations/counts": NUMBERS,
    "GET /v1/metrics": NUMBERS,
    "POST /v1/metrics/search": NUMBERS,
    "GET /v1/conversations/{id}/episodes": "durations and who served",
    "GET /v1/conversations/suggestions": "labels and bots that are in use, not where",
    "GET /v1/accesses": "the record itself",
    **dict.fromkeys(("POST /v1/bulk", "GET /v1/bulk", "GET /v1/bulk/{id}", "GET /v1/bulk/{id}/results"), ONES_OWN),
    **dict.fromkeys(("POST /v1/bulk/{id}/cancel", "PUT /v1/presence", "POST /v1/tokens"), ONES_OWN),
    **dict.fromkeys(("GET /v1/checkpoint", "GET /v1/proofs/inclusion", "GET /v1/proofs/consistency"), HASHES),
    **dict.fromkeys((f"GET /v1/{name}" for name in ("agents", "sectors", "roles", "tokens", "me")), DIRECTORY),
    **dict.fromkeys((f"GET /v1/{name}" for name in ("presence", "transfer-targets", "identities")), DIRECTORY),
    **dict.fromkeys(("GET /v1/attributes", "GET /v1/views"), DIRECTORY),
}
KNOWN_BY = {
    field
    for model in (ContactDetails, MessagePersonal, NotePersonal, OpenedPersonal, FinalizedPersonal, AttributePersonal)
    for field in model.model_fields
} - {"name", "before", "after"}
"""What says something of a contact, as events call it; a name is also what sectors have, and rows call it otherwise."""
OF_OTHERS = {"GET /v1/identities": {"subject"}}
"""What is called like it: whom an issuer knows an agent as."""
IN_ROWS = {"contact_name", "contact_phones", "contact_emails", "contact_attributes"}


# Every route is on a list


def reading(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The routes that answer with something, and with what."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for status, answer in operation["responses"].items():
                schemas = [each.get("schema", {}) for each in answer.get("content", {}).values()]
                told = [each for each in schemas if not each.get("$ref", "").endswith("/CommandAnswer")]
                if status.startswith("2") and path.startswith("/v1") and told:
                    yield f"{method.upper()} {path}", {"any": told}


def fields(document: dict[str, Any], schema: Any, seen: frozenset[str] = frozenset()) -> set[str]:
    """The names of all fields that an answer of ``schema`` may have."""
    if isinstance(schema, list):
        return {name for each in schema for name in fields(document, each, seen)}
    if not isinstance(schema, dict):
        return set()
    found = set(schema["properties"]) if isinstance(schema.get("properties"), dict) else set()
    name = schema.get("$ref", "").rpartition("/")[2]
    if name and name not in seen:
        found |= fields(document, document["components"]["schemas"][name], seen | {name})
    return found | {name for each in schema.values() for name in fields(document, each, seen)}


def recorded_routes() -> set[str]:
    return {route.partition("?")[0] for route, *_ in RECORDED}


def troubles(document: dict[str, Any], not_recorded: set[str]) -> list[str]:
    found = []
    for route, answer in reading(document):
        if route not in recorded_routes() | not_recorded:
            found.append(f"{route} is on no list")
        told = fields(document, answer) & (KNOWN_BY | IN_ROWS) - OF_OTHERS.get(route, set())
        if route in not_recorded - recorded_routes() and told:
            found.append(f"{route} tells {sorted(told)}")
    return sorted(found)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Settings(), "postgresql://nowhere").openapi()


def test_every_route_that_reads_is_recorded_or_says_why_not(document: dict[str, Any]) -> None:
    assert troubles(document, set(NOT_RECORDED)) == []
    known = {route for route, _ in reading(document)}
    assert recorded_routes() | NOT_RECORDED.keys() <= known, "what is listed is there"


def test_canary_a_new_route_and_one_that_is_said_to_show_nobody_are_found(document: dict[str, Any]) -> None:
    more = deepcopy(document)
    more["paths"]["/v1/people"] = {"get": more["paths"]["/v1/contacts/{id}"]["get"]}
    assert troubles(more, set(NOT_RECORDED)) == ["GET /v1/people is on no list"]
    [told] = troubles(more, {*NOT_RECORDED, "GET /v1/people"})
    assert told.startswith("GET /v1/people tells ['attributes', 'emails'")


# Every route does what its list says


@pytest.fixture(scope="module")
def told(open_conversation: Callable[..., Any]) -> Any:
    conversation = open_conversation()
    conversation.do("messages", {"direction": "received", "text": "Bom dia!"})
    conversation.history()
    return conversation


@pytest.fixture(scope="module")
def roles(api: Client) -> Callable[[str | None], str]:
    """A role with all permissions to read but one."""
    made: dict[str | None, str] = {}

    def make(without: str | None) -> str:
        if without not in made:
            grants = {name: "all" for name in (*PERMISSIONS, "label") if name != without}
            made[without] = f"reads-{uuid4().hex[:8]}"
            api.ok("PUT", f"/v1/roles/{made[without]}", {"grants": grants})
        return made[without]

    return make


@pytest.fixture(scope="module")
def holding(caller: Callable[..., Client], roles: Callable[[str | None], str]) -> Callable[..., Client]:
    """Somebody new with all permissions to read but one."""
    return lambda without=None: caller("integration", f"reader-{uuid4().hex[:8]}", roles(without))


def accesses(api: Client, who: Client) -> list[dict[str, Any]]:
    return list(api.items("/v1/accesses", actor=who.read("/v1/me")["actor"]["id"], limit=500))


@pytest.mark.parametrize(("route", "body", "permission", "what"), RECORDED)
def test_who_reads_it_has_the_permission_and_is_recorded_and_who_has_not_is_refused(
    api: Client, told: Any, holding: Callable[..., Client], route: str, body: Any, permission: str, what: str
) -> None:
    method, _, path = route.partition(" ")
    address = path.replace("{id}", str(demo.CONTACT) if "/contacts/" in path else told.id)
    without, reader = holding(permission), holding()
    assert without.send_json(method, address, body).status_code in {403, 404}
    assert accesses(api, without) == []
    if address.endswith("/stream"):
        with Listener(reader, address) as stream:
            assert stream.status == 200
            stream.next()
        [recorded] = accesses(api, reader)
    else:
        answer = reader.send_json(method, address, body)
        assert answer.is_success, answer.text
        [recorded] = accesses(api, reader)
        assert recorded["request_id"] == answer.headers["request-id"]
    assert recorded["what"] == what


def test_canary_what_is_not_recorded_is_not_found(api: Client, holding: Callable[..., Client]) -> None:
    reader = holding()
    assert reader.get("/v1/conversations/counts").status_code == 200
    assert accesses(api, reader) == []


def test_one_record_stands_for_what_is_seen_of_the_listing_for_some_time(
    api: Client, told: Any, holding: Callable[..., Client]
) -> None:
    reader = holding()
    for _ in range(3):
        reader.read("/v1/conversations")
        reader.read(told.path)
        reader.read("/v1/conversations", q="maria")
    recorded = accesses(api, reader)
    assert sorted(each["what"] for each in recorded) == ["listing", "search", "search", "search"]


def test_who_sees_only_their_own_leaves_no_record(api: Client, caller: Callable[..., Client]) -> None:
    role = f"own-{uuid4().hex[:8]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": {"view": "own"}})
    reader = caller("integration", role, role)
    reader.read("/v1/conversations")
    assert accesses(api, reader) == []


def test_a_record_stands_for_its_reader_and_its_time_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def somebody(id_: str, workspace: int = 1, scope: Scope = Scope.ALL) -> Caller:
        return Caller(UUID(int=workspace), Actor(kind=ActorKind.AGENT, id=id_), {Permission.VIEW: scope})

    lately, ana = Lately(), somebody("ana")
    first = lately.of_rows(ana, uuid4())
    assert first is not None
    assert lately.of_rows(ana, uuid4()) is not None, "until it is recorded"
    lately.note(first)
    assert lately.of_rows(ana, uuid4()) is None
    assert lately.of_rows(somebody("bia"), uuid4()) is not None
    assert lately.of_rows(somebody("ana", workspace=2), uuid4()) is not None
    assert lately.of_rows(somebody("own", scope=Scope.OWN), uuid4()) is None
    monkeypatch.setattr(accesses_, "LISTING_MINUTES", 0)
    brief = Lately()
    brief.note(first)
    assert brief.of_rows(ana, uuid4()) is not None
