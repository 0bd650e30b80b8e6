"""What a hostile reviewer once got away with."""

import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil

from api import demo

Client = Any


def a_role(api: Client, grants: dict[str, str]) -> str:
    name = f"r-{uuid4().hex[:12]}"
    api.ok("PUT", f"/v1/roles/{name}", {"grants": grants})
    return name


def someone(api: Client, caller: Callable[..., Client], grants: dict[str, str]) -> Client:
    return caller("integration", f"i-{uuid4().hex[:8]}", a_role(api, grants))


def test_whoever_issues_tokens_cannot_issue_themself_an_admins(api: Client, caller: Callable[..., Client]) -> None:
    clerk = someone(api, caller, {"manage-tokens": "all"})
    empty = a_role(api, {})
    for actor in ({"kind": "agent", "id": str(demo.ADMIN)}, {"kind": "agent", "id": str(demo.ADMIN).upper()}):
        for role in (empty, "admin"):
            answer = clerk.send_json("POST", "/v1/tokens", {"name": "t", "actor": actor, "role": role})
            assert answer.status_code in {403, 422}, answer.text
    path, message = f"/v1/conversations/{demo.CONVERSATION}/messages", {"direction": "sent", "text": "x"}
    assert api.send_json("POST", path, message | {"author": {"kind": "contact", "id": "x"}}).status_code == 422
    for kind in ("system", "contact"):
        body = {"name": "t", "actor": {"kind": kind, "id": "x"}, "role": empty}
        assert clerk.send_json("POST", "/v1/tokens", body).status_code == 422


def test_history_is_read_as_far_as_granted_and_no_further(
    api: Client, caller: Callable[..., Client], a_pending_conversation: Any
) -> None:
    path = f"{a_pending_conversation.path}/history"
    assert someone(api, caller, {"view": "all", "read-history": "all"}).get(path).status_code == 200
    nosy = someone(api, caller, {"view": "all", "read-history": "own"})
    assert nosy.get(path).status_code == 403
    assert nosy.read("/v1/history")["items"] == []


def test_contacts_are_shown_and_searched_only_with_the_permission(api: Client, caller: Callable[..., Client]) -> None:
    contact = api.ok("POST", "/v1/contacts", {"name": "Zuleica Única", "phones": ["+55 11 90000-4711"]})["id"]
    opened = api.ok("POST", "/v1/conversations", {"channel": "phone", "contact_id": contact})
    for query in ("Zuleica", "900004711"):
        assert api.read("/v1/conversations", q=query, at_least=opened["position"])["items"]
    viewer = someone(api, caller, {"view": "all"})
    row = viewer.read(f"/v1/conversations/{opened['id']}")
    assert (row["contact_name"], row["contact_phones"], row["contact_emails"]) == (None, [], [])
    for query in ("Zuleica", "900004711"):
        assert viewer.read("/v1/conversations", q=query)["items"] == []
    owner = someone(api, caller, {"view": "all", "view-contact": "own"})
    assert owner.get(f"/v1/contacts/{contact}").status_code == 404


def test_no_history_shows_the_hash_of_a_token(api: Client) -> None:
    api.ok("POST", "/v1/tokens", {"name": "x", "actor": {"kind": "bot", "id": "x"}, "role": "integration"})
    for text in (api.get("/v1/history", params={"limit": 500}).text, api.get("/v1/events?limit=1000").text):
        assert "token-issued.v1" in text
        assert "sha256" not in text


def test_an_id_of_another_kind_says_nothing(api: Client, bia: Client) -> None:
    for client in (api, bia):
        answer = client.send_json("POST", f"/v1/conversations/{demo.CONTACT}/labels", {"label": "x"})
        assert (answer.status_code, answer.json()["code"]) == (404, "conversation-not-found")
    body = {"id": str(demo.CONTACT), "channel": "phone", "contact_id": str(demo.CONTACT)}
    assert api.send_json("POST", "/v1/conversations", body).json()["code"] == "already-exists"
    answer = api.send_json("POST", f"/v1/conversations/{uuid4()}/transfer", {"sector_id": str(demo.SECTOR)})
    assert answer.json()["code"] == "conversation-not-found"


def test_labels_and_attributes_are_bounded(api: Client, a_pending_conversation: Any) -> None:
    for number in range(50):
        a_pending_conversation.do("labels", {"label": f"l{number}"})
    assert a_pending_conversation.ask("labels", {"label": "one-more"}).json()["code"] == "too-many-labels"
    for number in range(100):
        a_pending_conversation.do("attributes", {"key": f"k{number}", "value": number})
    answer = a_pending_conversation.ask("attributes", {"key": "one-more", "value": 1})
    assert answer.json()["code"] == "too-many-attributes"


def test_a_request_that_breaks_off_does_nothing(api: Client, a_pending_conversation: Any) -> None:
    where, head = urlsplit(str(api.base_url)), api.log_head()
    for framing, body in (
        ("Transfer-Encoding: chunked", b'20\r\n{"text": "broken off"}          \r\n'),
        ("Content-Length: 500", b'{"text": "broken off"}'),
    ):
        lines = [
            f"POST {a_pending_conversation.path}/notes HTTP/1.1",
            "Host: x",
            f"Authorization: {api.headers['authorization']}",
            "Content-Type: application/json",
            framing,
        ]
        with socket.create_connection((str(where.hostname), int(where.port or 80))) as connection:
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            time.sleep(0.3)
    time.sleep(0.5)
    assert api.log_head() == head


def test_a_thousand_mistakes_in_one_body_keep_nobody_waiting(api: Client) -> None:
    body = {"name": "x", "attributes": {f"A{number}": {} for number in range(50_000)}}
    answer = api.send_json("POST", "/v1/contacts", body)
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 1


def test_a_message_that_comes_again_written_otherwise_is_recognised(api: Client, a_pending_conversation: Any) -> None:
    id_, path = str(uuid4()), a_pending_conversation.path
    first = api.channel.ok("POST", f"{path}/messages", {"direction": "received", "message_id": id_, "text": "oi"})
    again = api.channel.ok(
        "POST", f"{path}/messages", {"text": "oi", "message_id": id_.upper(), "direction": "received"}
    )
    assert again == first | {"replayed": True}
    other_path = path.replace(a_pending_conversation.id, a_pending_conversation.id.upper())
    body = {"direction": "received", "message_id": id_, "text": "oi"}
    assert api.channel.ok("POST", f"{other_path}/messages", body, idempotency_key="k2" + id_)["replayed"]
    answer = api.channel.send_json("POST", f"{path}/notes", {"text": "another"}, idempotency_key="k2" + id_)
    assert answer.json()["code"] == "idempotency-key-reused", "every key of a request gets its answer"


def test_a_stale_version_is_told_what_happened_since(api: Client, a_pending_conversation: Any) -> None:
    seen = a_pending_conversation.view()["version"]
    a_pending_conversation.do("labels", {"label": "vip"})
    answer = a_pending_conversation.ask("priority", {"priority": "high"}, if_match=f'"{seen}"')
    assert answer.status_code == 412
    assert [event["topic"] for event in answer.json()["since"]] == ["label-added.v1"]


def test_a_revocation_holds_although_nothing_is_projected(api: Client, connect: Callable[..., Client]) -> None:
    body = {"name": "x", "actor": {"kind": "integration", "id": "x"}, "role": "supervisor"}
    issued = api.ok("POST", "/v1/tokens", body)
    client = connect(issued["secret"])
    deadline = time.monotonic() + 10
    while client.get("/v1/me").status_code != 200:
        assert time.monotonic() < deadline
    projectors = [child for child in psutil.Process().children(recursive=True) if child.cmdline()[-1:] == ["project"]]
    assert projectors
    try:
        for projector in projectors:
            projector.suspend()
        api.ok("DELETE", f"/v1/tokens/{issued['id']}")
        time.sleep(3)
        assert client.get("/v1/me").status_code in {401, 503}
    finally:
        for projector in projectors:
            projector.resume()
