"""What keeps an agent to the contacts and views that are theirs to see, rule by rule: without it, something shows.

Invariant: `shown` is empty with every rule in its place; each canary takes one away and names what then gets through.
"""

import asyncio
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from contact_keyring import keys_of
from databases import prepare, project
from in_process import carry_out, id_of, serving

from adapters.command_handler import CommandHandler
from adapters.identity import digest
from api import contacts, demo
from domain import decider, view
from domain.commands import Command, IssueToken, OpenConversation, RegisterContact, SaveView
from domain.events import Actor, ActorKind, ContactDetails, ViewContents

TOKEN = "cvs_contact-scope-tests-bia"
BIA = Actor(kind=ActorKind.AGENT, id=str(demo.AGENT))
ELSES = id_of("contact of a conversation out of sight")
SHARED_CONTACT = id_of("contact of a conversation in sight and one out of sight")
OUT_OF_SIGHT, IN_SIGHT = id_of("conversation out of sight"), id_of("conversation in sight")
PRIVATE = id_of("a private view of somebody else")


@pytest.fixture
def served(database: str) -> str:
    """The demo, with what Bia, who serves in Suporte, may and may not see."""
    prepare(database)
    opening: dict[str, Any] = {"channel": "phone", "contact_id": SHARED_CONTACT}
    token = IssueToken(name="bia", secret_sha256=digest(TOKEN.encode()), actor=BIA, role="agent")
    admins = SaveView(
        owner=Actor(kind=ActorKind.SYSTEM, id="tests"),
        contents=ViewContents(name="Segredo", filter='{"and":[]}'),
        sort="opened_at",
    )
    story: list[tuple[UUID, Command]] = [
        (ELSES, RegisterContact(contact_id=ELSES, details=ContactDetails(name="Escondida"))),
        (SHARED_CONTACT, RegisterContact(contact_id=SHARED_CONTACT, details=ContactDetails(name="Meio"))),
        (
            id_of("elses"),
            OpenConversation(protocol="e", channel="phone", contact_id=ELSES, sector_id=demo.OTHER_SECTOR),
        ),
        (OUT_OF_SIGHT, OpenConversation(protocol="o", sector_id=demo.OTHER_SECTOR, **opening)),
        (IN_SIGHT, OpenConversation(protocol="i", sector_id=demo.SECTOR, **opening)),
        (id_of("token"), token),
        (PRIVATE, admins),
    ]
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler)
        carry_out(handler, demo.WORKSPACE, story)
    project(database)
    return database


def shown(database: str) -> set[str]:
    """What Bia got of what is not hers."""

    async def ask() -> set[str]:
        got = set()
        async with serving(database) as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            if "Escondida" in (await client.get("/v1/contacts")).text:
                got.add("found")
            if (await client.get(f"/v1/contacts/{ELSES}")).is_success:
                got.add("read")
            timeline = await client.get(f"/v1/contacts/{SHARED_CONTACT}/timeline")
            assert str(IN_SIGHT) in timeline.text
            if str(OUT_OF_SIGHT) in timeline.text:
                got.add("timeline")
            if (await client.post("/v1/contacts", json={"id": str(ELSES), "name": "Escondida"})).is_success:
                got.add("told that it is so")
            if (await client.put(f"/v1/contacts/{ELSES}", json={"name": "Outra"})).is_success:
                got.add("changed")
            if (await client.post(f"/v1/conversations/{IN_SIGHT}/contact", json={"contact_id": str(ELSES)})).is_success:
                got.add("reassigned")
            opening = {"channel": "phone", "contact_id": str(ELSES), "sector_id": str(demo.SECTOR)}
            if (await client.post("/v1/conversations", json=opening)).is_success:
                got.add("opened")
            if "Segredo" in (await client.get("/v1/views")).text:
                got.add("view seen")
            if (await client.put(f"/v1/views/{PRIVATE}", json={"name": "x"})).status_code != 404:
                got.add("view changed")
        return got

    return asyncio.run(ask())


def test_what_is_out_of_an_agents_sight_shows_nowhere(served: str) -> None:
    assert shown(served) == set()


def test_without_the_condition_on_contacts_they_are_found_and_read(served: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(contacts, "_seen", lambda caller: ("contacts.workspace_id = %s", [caller.workspace_id]))
    assert shown(served) == {"found", "read"}


def test_without_the_condition_on_conversations_their_events_are_in_the_timeline(served: str, monkeypatch: Any) -> None:
    everything = [("workspace_id = %s", [demo.WORKSPACE])]
    monkeypatch.setattr(contacts, "visible", lambda *_: everything)
    assert shown(served) == {"found", "read", "timeline"}  # and yet not changed: the rule looks for itself


def test_without_the_rule_on_changes_contacts_are_changed(served: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(decider, "_reaches", lambda *_: True)
    assert shown(served) == {"changed", "told that it is so", "reassigned", "opened"}


def test_without_the_rule_on_views_they_are_changed(served: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(view, "authorize", lambda *_: None)
    assert shown(served) == {"view changed"}
