"""Looking back: the listing, its counts and one conversation as they stood, over HTTP."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from api import demo

Client = Any
Conversation = Any


def moments(conversation: Conversation) -> list[str]:
    """When each event of it was recorded."""
    return [entry["recorded_at"] for entry in conversation.history()]


@pytest.fixture
def told(open_conversation: Callable[..., Conversation]) -> Conversation:
    """A conversation with a channel of its own, that several things happened to."""
    conversation = open_conversation(channel=f"c-{uuid4().hex[:12]}")
    conversation.do("transfer", {"sector_id": str(demo.SECTOR), "agent_id": str(demo.AGENT)})
    conversation.do("labels", {"label": "vip"})
    conversation.do("finalize", {"surface": "listing", "outcome": "resolvida"})
    return conversation


def channel(conversation: Conversation) -> str:
    found: str = conversation.view()["channel"]
    return found


STATUSES = ["pending", "in_progress", "in_progress", "finalized"]


def test_the_listing_and_its_counts_stand_as_they_stood_after_each_event(api: Client, told: Conversation) -> None:
    bar = {"channel": channel(told)}
    wanted = {"field": "channel", "operator": "is", "value": channel(told)}
    for moment, status, version in zip(moments(told), STATUSES, range(1, 5), strict=True):
        [row] = api.items("/v1/conversations", **bar, as_of=moment)
        assert (row["status"], row["version"]) == (status, version)
        assert row == api.ok("POST", "/v1/conversations/search", {"filter": wanted, "as_of": moment})["items"][0]
        counted = api.read("/v1/conversations/counts", **bar, as_of=moment)
        assert counted["statuses"][status] == counted["total"] == {"count": 1, "more": False}
        assert counted == api.ok("POST", "/v1/conversations/counts", {"filter": wanted, "as_of": moment})
        assert api.items("/v1/conversations", **bar, as_of=moment, status=status) == [row]
        exported = api.get("/v1/conversations/export", params={**bar, "as_of": moment, "format": "ndjson"})
        assert exported.json() == row
    before = datetime.fromisoformat(moments(told)[0]) - timedelta(microseconds=1)
    assert api.items("/v1/conversations", **bar, as_of=before.isoformat()) == []
    assert api.items("/v1/conversations", **bar, as_of=moments(told)[-1]) == api.items("/v1/conversations", **bar)


def test_a_conversation_stands_as_it_stood_by_version_and_by_moment(api: Client, told: Conversation) -> None:
    told.do("attributes", {"key": "plano", "value": "ouro"})
    told.do("attributes", {"key": "plano", "value": "prata"})
    recorded = moments(told)
    for number, moment in enumerate(recorded, start=1):
        row = api.read(told.path, version=number)
        assert row == api.read(told.path, as_of=moment)
        assert (row["version"], row["status"]) == (number, [*STATUSES, "finalized", "finalized"][number - 1])
        assert row["attributes"] == ({} if number < 5 else {"plano": ["ouro", "prata"][number - 5]})
        [listed] = api.items("/v1/conversations", channel=channel(told), as_of=moment)
        now = told.view()
        assert listed == row | {"attributes": now["attributes"]}
        assert row["contact_name"] == now["contact_name"] is not None
    assert api.read(told.path, version=len(recorded)) == told.view()
    assert api.read(told.path, as_of=datetime.now(UTC).isoformat()) == told.view()


def test_before_it_was_another_contact_s_a_conversation_does_not_bear_their_name(
    api: Client, open_conversation: Callable[..., Conversation]
) -> None:
    """Nor does it tell more of the former contact than whose it was."""
    first, second = (
        api.ok("POST", "/v1/contacts", {"name": name, "phones": ["+55 21 3333-0000"]})["id"] for name in "AB"
    )
    talk = open_conversation(contact_id=first, channel=f"c-{uuid4().hex[:12]}")
    talk.do("contact", {"contact_id": second})
    told = [api.read(talk.path, version=version, at_least=talk.answer["position"]) for version in (1, 2)]
    assert [(row["contact_id"], row["contact_name"]) for row in told] == [(first, None), (second, "B")]
    assert [row["contact_phones"] for row in told] == [[], ["+55 21 3333-0000"]]
    assert told[1] == talk.view()
    listed = [api.items("/v1/conversations", channel=channel(talk), as_of=moment) for moment in moments(talk)[-2:]]
    assert listed == [[told[0]], [told[1]]]


def test_pages_of_the_past_follow_each_other_while_rows_change(api: Client, open_conversation: Any) -> None:
    name = f"c-{uuid4().hex[:12]}"
    some = [open_conversation(channel=name) for _ in range(5)]
    as_of = moments(some[-1])[-1]
    expected = [conversation.id for conversation in reversed(some)]
    page = api.read("/v1/conversations", channel=name, as_of=as_of, limit=2)
    some[0].do("notes", {"text": "agora"})
    found = [row["id"] for row in page["items"]]
    while page["next"]:
        page = api.read("/v1/conversations", channel=name, as_of=as_of, limit=2, cursor=page["next"])
        found += [row["id"] for row in page["items"]]
    assert found == expected


def test_a_cursor_of_one_moment_is_none_of_another(api: Client, open_conversation: Any) -> None:
    name = f"c-{uuid4().hex[:12]}"
    as_of = [moments(open_conversation(channel=name))[-1] for _ in range(3)][-1]
    cursor = api.read("/v1/conversations", channel=name, as_of=as_of, limit=1)["next"]
    later = datetime.now(UTC).isoformat()
    for other in ({}, {"as_of": later}):
        answer = api.get("/v1/conversations", params={"channel": name, "limit": 1, "cursor": cursor, **other})
        assert (answer.status_code, answer.json()["errors"][0]["in"][-1]) == (422, "cursor")


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        ({"as_of": "2126-01-01T00:00:00Z"}, "as_of"),
        ({"as_of": "2026-01-01T00:00:00"}, "as_of"),
        ({"as_of": "1735689600"}, "as_of"),
        ({"version": "0"}, "version"),
        ({"version": "1000"}, "version"),
        ({"version": "1", "as_of": "2026-01-01T00:00:00Z"}, "as_of"),
    ],
)
def test_a_moment_or_version_that_is_none_is_told(
    api: Client, told: Conversation, parameters: dict[str, str], wrong: str
) -> None:
    told.view()
    paths = [told.path] if "version" in parameters else [told.path, "/v1/conversations", "/v1/conversations/counts"]
    for path in paths:
        answer = api.get(path, params=parameters)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["in"][-1] == wrong


def test_before_it_began_there_is_no_conversation(api: Client, told: Conversation) -> None:
    before = datetime.fromisoformat(moments(told)[0]) - timedelta(microseconds=1)
    assert api.get(told.path, params={"as_of": before.isoformat()}).status_code == 404


def test_only_who_may_read_the_history_looks_back_and_it_is_recorded(
    api: Client, bia: Client, caller: Callable[..., Client], told: Conversation
) -> None:
    as_of = moments(told)[-1]
    looks = [
        ("GET", f"{told.path}?version=1", None),
        ("GET", f"{told.path}?as_of={as_of.replace('+', '%2B')}", None),
        ("GET", f"/v1/conversations?as_of={as_of.replace('+', '%2B')}", None),
        ("GET", f"/v1/conversations/counts?as_of={as_of.replace('+', '%2B')}", None),
        ("POST", "/v1/conversations/search", {"as_of": as_of}),
        ("POST", "/v1/conversations/counts", {"as_of": as_of}),
        ("GET", f"/v1/conversations/export?as_of={as_of.replace('+', '%2B')}", None),
    ]
    assert bia.get(told.path).status_code == 200
    for method, path, body in looks:
        assert bia.send_json(method, path, body).status_code == 403, path
    supervisor = caller("integration", f"s-{uuid4().hex[:8]}", "supervisor")
    for method, path, body in looks:
        answer = supervisor.send_json(method, path, body)
        assert answer.status_code == 200, (path, answer.text)
        accesses = api.items("/v1/accesses", actor=supervisor.read("/v1/me")["actor"]["id"], what="history")
        assert answer.headers["request-id"] in [each["request_id"] for each in accesses], path


def test_what_is_out_of_scope_now_does_not_exist_in_the_past_either(
    api: Client, caller: Callable[..., Client], open_conversation: Any
) -> None:
    """A conversation that has left the sector is gone with its past; one that has come brings its past along."""
    role = f"chief-{uuid4().hex[:8]}"
    api.ok("PUT", f"/v1/roles/{role}", {"grants": dict.fromkeys(("view", "read-history", "view-contact"), "sector")})
    agent = api.ok("POST", "/v1/agents", {"name": "Chefe", "role": role})["id"]
    api.ok("PUT", f"/v1/agents/{agent}/sectors/{demo.SECTOR}")
    chief = caller("agent", agent, role)
    name = f"c-{uuid4().hex[:12]}"
    gone, came = open_conversation(channel=name), open_conversation(channel=name, sector_id=str(demo.OTHER_SECTOR))
    as_of = moments(came)[-1]
    gone.do("transfer", {"sector_id": str(demo.OTHER_SECTOR), "reason": "x"})
    came.do("transfer", {"sector_id": str(demo.SECTOR), "reason": "x"})
    position = came.answer["position"]
    assert {row["id"] for row in api.items("/v1/conversations", channel=name, as_of=as_of)} == {gone.id, came.id}
    [row] = chief.items("/v1/conversations", channel=name, as_of=as_of, at_least=position)
    assert (row["id"], row["sector_id"]) == (came.id, str(demo.OTHER_SECTOR))
    assert row["contact_name"] == came.view()["contact_name"]
    assert chief.read("/v1/conversations/counts", channel=name, as_of=as_of)["total"]["count"] == 1
    assert chief.get(gone.path, params={"version": 1}).status_code == 404
    assert chief.read(came.path, version=1)["sector_id"] == str(demo.OTHER_SECTOR)
