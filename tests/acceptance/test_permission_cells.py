"""Role, action, status, scope over HTTP: every cell of `tests/permission_table.py` is answered as the table says.

Every refused cell is asked first, of conversations that all share, and must leave the log as it is; every other cell
has a conversation of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from contact_keyring import keys_of
from databases import new_database, prepare, project
from in_process import carry_out, id_of, serving
from permission_table import (
    ACTIONS,
    CALLERS,
    OWN_ROLES,
    PLACES,
    QUERIES,
    ROLES,
    Action,
    Answer,
    Place,
    Who,
    cells,
    expected,
    expected_of_opening,
    expected_of_query,
    reaches,
    statuses,
)

from adapters.command_handler import CommandHandler
from adapters.identity import digest
from domain.commands import (
    Assume,
    Command,
    CreateSector,
    DefineRole,
    Finalize,
    HandOffToBot,
    IssueToken,
    JoinSector,
    OpenConversation,
    RegisterAgent,
    RegisterContact,
    role_id,
)
from domain.events import Actor, ActorKind, ContactDetails, Surface

WORKSPACE = id_of("workspace")
SECTORS = {"support": id_of("support"), "sales": id_of("sales"), None: None}
COLLEAGUE, OTHER_CONTACT = id_of("colleague"), id_of("other contact")
AT_ONCE = 60

Cell = tuple[Who, Action, Place, str]


def agent_of(who: Who) -> UUID:
    return id_of(f"agent {who.name}") if who.kind == "agent" else COLLEAGUE


def actor_of(who: Who) -> Actor:
    return Actor(kind=ActorKind(who.kind), id=str(agent_of(who)) if who.kind == "agent" else who.name)


def secret_of(who: Who) -> str:
    return f"cvs_permission-cells-{who.name}"


def directory() -> Iterator[tuple[UUID, Command]]:
    """Sectors, roles, and everybody with a token."""
    for name in ("support", "sales"):
        yield id_of(name), CreateSector(name=name)
    for role, grants in OWN_ROLES.items():
        yield role_id(role), DefineRole(name=role, grants=grants)
    yield COLLEAGUE, RegisterAgent(name="colleague")
    for who in CALLERS:
        if who.kind == "agent":
            yield agent_of(who), RegisterAgent(name=who.name, role=who.role)
            yield agent_of(who), JoinSector(sector_id=id_of("support"))
        hash_ = digest(secret_of(who).encode())
        yield (
            id_of(f"token {who.name}"),
            IssueToken(name=who.name, secret_sha256=hash_, actor=actor_of(who), role=who.role),
        )
    yield OTHER_CONTACT, RegisterContact(contact_id=OTHER_CONTACT, details=ContactDetails())


def conversation(id_: UUID, who: Who, place: Place, status: str) -> Iterator[tuple[UUID, Command]]:
    """A conversation there, with a contact of its own."""
    contact = id_of(f"contact {id_}")
    yield contact, RegisterContact(contact_id=contact, details=ContactDetails(name="Somebody"))
    yield (
        id_,
        OpenConversation(
            protocol=str(id_), channel="phone", contact_id=contact, sector_id=SECTORS[place.sector], subject="x"
        ),
    )
    if place.holder == "bot" or (place.holder == "caller" and who.kind == "bot"):
        yield id_, HandOffToBot(bot=who.name if place.holder == "caller" else "some-bot")
    elif place.holder != "queue":
        yield id_, Assume(agent_id=agent_of(who) if place.holder == "caller" else COLLEAGUE)
    if status == "finalized":
        yield id_, Finalize(surface=Surface.LISTING)


def shared(who: Who, place: Place, status: str) -> UUID:
    """The conversation there that all share; what the caller holds, only the caller has so."""
    return id_of(f"shared {who.name if place.holder == 'caller' else ''} {place.name} {status}")


def reached_by(who: Who) -> UUID:
    """A contact whom the caller reaches, for they hold a conversation with them; integrations hold none."""
    mine = Place("support", "caller")
    held = [shared(who, mine, status) for status in statuses(mine, who) if status != "finalized"]
    return id_of(f"contact {held[0]}") if held else OTHER_CONTACT


def all_shared() -> dict[UUID, tuple[Who, Place, str]]:
    return {
        shared(who, place, status): (who, place, status)
        for who in CALLERS
        for place in PLACES
        for status in statuses(place, who)
    }


def asked_about(who: Who) -> dict[UUID, tuple[Who, Place, str]]:
    """The shared ones that ``who`` is asked about one by one: of what others hold, what the next caller holds.

    Each other's is the same cell, a colleague's or some bot's; the listing is looked through for all of them.
    """
    nobody_s = {*CALLERS} - {who, CALLERS[(CALLERS.index(who) + 1) % len(CALLERS)]}
    return {id_: at for id_, at in all_shared().items() if at[1].holder != "caller" or at[0] not in nobody_s}


def seen_from(who: Who, holder: Who, place: Place) -> Place:
    """Where a conversation is for ``who``: what another caller holds is a colleague's or some bot's."""
    if place.holder != "caller" or holder == who:
        return place
    return Place(place.sector, "bot" if holder.kind == "bot" else "colleague")


@dataclass
class Walk:
    """What was answered."""

    cells: dict[Cell, Answer] = field(default_factory=dict)
    openings: dict[tuple[Who, Place], Answer] = field(default_factory=dict)
    queries: dict[tuple[Who, str, UUID], Answer] = field(default_factory=dict)
    contacts: dict[tuple[Who, UUID], int] = field(default_factory=dict)
    listings: dict[Who, httpx.Response] = field(default_factory=dict)
    totals: dict[Who, httpx.Response] = field(default_factory=dict)
    changed_by_refusals: int = 0


async def together(work: Iterable[Callable[[], Awaitable[None]]]) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(what: Callable[[], Awaitable[None]]) -> None:
        async with room:
            await what()

    await asyncio.gather(*(one(what) for what in work))


class Walker:
    """Asks every cell over HTTP and writes down the answers."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.walk = Walk()
        self._client = client

    async def ask(self, who: Who, method: str, path: str, body: Any = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret_of(who)}"}
        if method != "GET":
            headers["Idempotency-Key"] = str(uuid4())
        for _ in range(100):
            answer = await self._client.request(method, path, json=body, headers=headers)
            if answer.status_code != 503:  # a busy machine: come again, as a client does
                break
            await asyncio.sleep(0.1)
        return answer

    def cell(self, cell: Cell, id_: UUID) -> Callable[[], Awaitable[None]]:
        who, action, *_ = cell
        named = {"TAKER": str(agent_of(who)), "SALES": str(SECTORS["sales"]), "OTHER_CONTACT": str(reached_by(who))}
        body = action.body and {key: named.get(value, value) for key, value in action.body.items()}

        async def asked() -> None:
            answer = await self.ask(who, action.method, f"/v1/conversations/{id_}/{action.path}", body)
            self.walk.cells[cell] = answer_of(answer)

        return asked

    def query(self, who: Who, end: str, id_: UUID) -> Callable[[], Awaitable[None]]:
        async def asked() -> None:
            self.walk.queries[who, end, id_] = answer_of(await self.ask(who, "GET", f"/v1/conversations/{id_}{end}"))

        return asked

    def contact(self, who: Who, id_: UUID) -> Callable[[], Awaitable[None]]:
        async def asked() -> None:
            answer = await self.ask(who, "GET", f"/v1/contacts/{id_of(f'contact {id_}')}")
            self.walk.contacts[who, id_] = answer.status_code

        return asked

    def listing(self, who: Who) -> Callable[[], Awaitable[None]]:
        async def asked() -> None:
            self.walk.listings[who] = await self.ask(who, "GET", "/v1/conversations?limit=500")
            self.walk.totals[who] = await self.ask(who, "GET", "/v1/metrics")

        return asked

    def opening(self, who: Who, place: Place) -> Callable[[], Awaitable[None]]:
        async def asked() -> None:
            agent = {"queue": None, "colleague": COLLEAGUE, "caller": agent_of(who)}[place.holder]
            body = {
                "channel": "x",
                "contact_id": reached_by(who),
                "sector_id": SECTORS[place.sector],
                "agent_id": agent,
            }
            body = {key: str(value) for key, value in body.items() if value}
            self.walk.openings[who, place] = answer_of(await self.ask(who, "POST", "/v1/conversations", body))

        return asked


def answer_of(response: httpx.Response) -> Answer:
    return response.status_code, "" if response.is_success else response.json()["code"]


def openings() -> list[tuple[Who, Place]]:
    """Where conversations are tried to be opened: nobody opens one for a bot; only agents have one at once.

    In a sector that the agent is not in, the rules refuse one for themself; permissions say nothing of that.
    """
    return [
        (who, place)
        for who in CALLERS
        for place in PLACES
        if place.holder == "queue" or (who.kind == "agent" and place.holder != "bot" and place.sector != "sales")
    ]


def head(database: str) -> int:
    with psycopg.connect(database) as connection:
        [(position,)] = connection.execute("select max(position) from events")
        return int(position)


@asynccontextmanager
async def walking(database: str) -> AsyncIterator[Walker]:
    async with serving(database) as client:
        yield Walker(client)


async def walk_all(database: str) -> Walk:
    refused = [cell for cell in cells() if expected(*cell)[0] != 200]
    allowed = {id_of(f"cell {number}"): cell for number, cell in enumerate(cells()) if expected(*cell)[0] == 200}
    prepare(database)
    with closing(CommandHandler(database, keys_of(database))) as handler:
        carry_out(handler, WORKSPACE, directory())
        carry_out(handler, WORKSPACE, (c for id_, at in all_shared().items() for c in conversation(id_, *at)))
        project(database)
        async with walking(database) as walker:
            before = head(database)
            await together(walker.listing(who) for who in CALLERS)
            await together(
                [walker.query(who, end, id_) for who in CALLERS for end, _ in QUERIES for id_ in asked_about(who)]
                + [walker.contact(who, id_) for who in CALLERS for id_ in asked_about(who)]
            )
            await together(walker.cell(cell, shared(cell[0], *cell[2:])) for cell in refused)
            walker.walk.changed_by_refusals = head(database) - before
            carry_out(
                handler,
                WORKSPACE,
                (c for id_, (who, _, *at) in allowed.items() for c in conversation(id_, who, *at)),
            )
            await together(walker.cell(cell, id_) for id_, cell in allowed.items())
            await together(walker.opening(who, place) for who, place in openings())
    return walker.walk


@pytest.fixture(scope="module")
def walk(postgres_url: str) -> Iterator[Walk]:
    """The answers to all cells, asked once."""
    with new_database(postgres_url) as database:
        yield asyncio.run(walk_all(database))


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
def test_every_command_is_answered_as_the_table_says(walk: Walk, who: Who) -> None:
    asked = [cell for cell in cells() if cell[0] == who]
    assert len(asked) >= len(ACTIONS) * 18
    wrong = {
        (action.name, place.name, status): (walk.cells[cell], "expected", expected(*cell))
        for cell in asked
        for _, action, place, status in [cell]
        if walk.cells[cell] != expected(*cell)
    }
    assert wrong == {}


def test_all_that_was_refused_changed_nothing(walk: Walk) -> None:
    assert walk.changed_by_refusals == 0


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
def test_a_conversation_is_read_as_far_as_the_table_says(walk: Walk, who: Who) -> None:
    wrong = {}
    for end, permission in QUERIES:
        for id_, (holder, place, status) in asked_about(who).items():
            here = seen_from(who, holder, place)
            if walk.queries[who, end, id_] != expected_of_query(who, permission, here):
                wrong[end, here.name, status] = walk.queries[who, end, id_]
    assert wrong == {}


def in_sight(who: Who, permission: str) -> set[str]:
    """The shared conversations that ``permission`` reaches."""
    scope = ROLES[who.role].get(permission)
    return {
        str(id_)
        for id_, (holder, place, _) in all_shared().items()
        if reaches(scope, who, seen_from(who, holder, place))
    }


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
def test_the_listing_and_the_totals_hold_what_the_table_says_and_no_more(walk: Walk, who: Who) -> None:
    listing, totals = walk.listings[who], walk.totals[who]
    if "view" not in ROLES[who.role]:
        assert (listing.status_code, totals.status_code) == (403, 403)
        return
    rows = listing.json()["items"]
    assert {row["id"] for row in rows} == in_sight(who, "view")
    assert {row["id"] for row in rows if row["contact_name"]} == in_sight(who, "view") & in_sight(who, "view-contact")
    assert [group["episodes"] for group in totals.json()["items"]] == [len(in_sight(who, "view"))]


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
def test_a_contact_is_seen_by_whom_the_table_says(walk: Walk, who: Who) -> None:
    reached = in_sight(who, "view-contact")
    unseen = 404 if "view-contact" in ROLES[who.role] else 403
    wrong = {
        id_: status
        for (asker, id_), status in walk.contacts.items()
        if asker == who and status != (200 if str(id_) in reached else unseen)
    }
    assert wrong == {}


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
def test_a_conversation_is_opened_where_the_table_says(walk: Walk, who: Who) -> None:
    wrong = {
        place.name: answer
        for (asker, place), answer in walk.openings.items()
        if asker == who and answer != expected_of_opening(who, place.sector, place.holder)
    }
    assert wrong == {}


def test_a_rule_that_lets_too_much_through_is_noticed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary: with every scope taken for all of the workspace, the walk finds cells that the table forbids."""
    monkeypatch.setattr("domain.decider.may", lambda caller, permission, _owner=None: permission in caller.grants)
    who, place = Who("agent", "agent"), Place("sales", "queue")
    cell = (who, ACTIONS[12], place, "pending")

    async def one_cell() -> Answer:
        prepare(database)
        with closing(CommandHandler(database, keys_of(database))) as handler:
            carry_out(handler, WORKSPACE, directory())
            carry_out(handler, WORKSPACE, conversation(shared(who, place, "pending"), who, place, "pending"))
            project(database)
            async with walking(database) as walker:
                await walker.cell(cell, shared(who, place, "pending"))()
        return walker.walk.cells[cell]

    assert expected(*cell)[0] == 404
    assert asyncio.run(one_cell())[0] == 200
