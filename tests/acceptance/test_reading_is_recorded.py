"""Nobody reads history or personal data without the permission and a record of the access: every route that reads.

Invariant: a route that reads and is on neither list fails here, so whoever adds one says which it is.
"""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from streams_rig import Listener

from api import demo
from api.app import create_app
from api.settings import Settings

Client = Any
PERMISSIONS = ("view", "view-contact", "read-history", "export", "verify-history", "manage-directory", "manage-tokens")
AS_OF = "as_of=2026-01-01T00:00:00Z"

RECORDED: dict[str, tuple[str, str]] = {
    "/v1/conversations/{id}/messages": ("view", "messages"),
    "/v1/conversations/{id}/history": ("read-history", "history"),
    "/v1/conversations/{id}?version=1": ("read-history", "history"),
    "/v1/conversations/{id}/stream": ("view", "stream"),
    f"/v1/conversations?{AS_OF}": ("read-history", "history"),
    f"/v1/conversations/counts?{AS_OF}": ("read-history", "history"),
    "/v1/conversations/export": ("export", "export"),
    "/v1/contacts": ("view-contact", "contact"),
    "/v1/contacts/{id}": ("view-contact", "contact"),
    "/v1/contacts/{id}/timeline": ("view-contact", "contact"),
    "/v1/history": ("read-history", "history"),
    "/v1/history/export": ("export", "export"),
    "/v1/events": ("read-history", "history"),
    "/v1/events/stream": ("read-history", "stream"),
}
"""The permission without which it is refused, and as what it is recorded."""
WORK = "what everybody works with; shows of a contact only what view-contact grants, and nothing of the past"
HASHES = "hashes and numbers"
DIRECTORY = "the directory, not what was done or a contact"
NOT_RECORDED = {
    "/v1/conversations": WORK,
    "/v1/conversations/{id}": WORK,
    "/v1/conversations/counts": WORK,
    "/v1/conversations/stream": WORK,
    "/v1/conversations/{id}/episodes": "durations and who served, as in the listing",
    "/v1/metrics": "totals",
    "/v1/accesses": "the record itself",
    "/v1/bulk": "one's own work in progress",
    "/v1/bulk/{id}": "one's own work in progress",
    "/v1/bulk/{id}/results": "one's own work in progress",
    "/v1/checkpoint": HASHES,
    "/v1/proofs/inclusion": HASHES,
    "/v1/proofs/consistency": HASHES,
    **dict.fromkeys(("/v1/agents", "/v1/sectors", "/v1/roles", "/v1/tokens", "/v1/me", "/v1/presence"), DIRECTORY),
    **dict.fromkeys(("/v1/transfer-targets", "/v1/identities", "/v1/attributes"), DIRECTORY),
    **dict.fromkeys(("/v1/views", "/v1/views/{id}"), "one's own, or shared with all"),
}


def test_every_route_that_reads_is_recorded_or_says_why_not() -> None:
    document = create_app(Settings(), "postgresql://nowhere").openapi()
    reading = {path for path, methods in document["paths"].items() if path.startswith("/v1") and "get" in methods}
    assert sorted(reading - {path.partition("?")[0] for path in RECORDED} - NOT_RECORDED.keys()) == []


@pytest.fixture(scope="module")
def told(open_conversation: Callable[..., Any]) -> Any:
    conversation = open_conversation()
    conversation.do("messages", {"direction": "received", "text": "Bom dia!"})
    conversation.history()
    return conversation


@pytest.fixture(scope="module")
def holding(api: Client, caller: Callable[..., Client]) -> Callable[..., Client]:
    """Somebody with all permissions to read but one."""
    made: dict[str | None, Client] = {}

    def make(without: str | None) -> Client:
        if without not in made:
            role = f"reads-{uuid4().hex[:8]}"
            grants = {name: "all" for name in PERMISSIONS if name != without}
            api.ok("PUT", f"/v1/roles/{role}", {"grants": grants})
            made[without] = caller("integration", role, role)
        return made[without]

    return make


def accesses(api: Client, who: Client) -> list[dict[str, Any]]:
    return list(api.items("/v1/accesses", actor=who.read("/v1/me")["actor"]["id"], limit=500))


@pytest.mark.parametrize("path", RECORDED)
def test_who_reads_it_has_the_permission_and_is_recorded_and_who_has_not_is_refused(
    api: Client, told: Any, holding: Callable[..., Client], path: str
) -> None:
    permission, what = RECORDED[path]
    address = path.replace("{id}", str(demo.CONTACT) if "/contacts/" in path else told.id)
    without, reader = holding(permission), holding(None)
    before = len(accesses(api, without))
    assert without.get(address).status_code in {403, 404}
    assert len(accesses(api, without)) == before
    if address.endswith("/stream"):
        with Listener(reader, address) as stream:
            assert stream.status == 200
            stream.next()
        assert accesses(api, reader)[0]["what"] == what
    else:
        answer = reader.get(address)
        assert answer.status_code == 200, answer.text
        recorded = {each["request_id"]: each["what"] for each in accesses(api, reader)}
        assert recorded[answer.headers["request-id"]] == what
