"""What is told of rows that change several times between two looks at the listing."""

import asyncio
from contextlib import closing
from typing import Any
from uuid import UUID

import orjson
import psycopg
import pytest
from contact_keyring import keys_of
from databases import prepare, project
from in_process import carry_out, id_of

from adapters.command_handler import CommandHandler
from adapters.live_listing import ListingTopic, Rows, changed_between
from api import demo
from domain.commands import AddLabel, Command, OpenConversation, RemoveLabel, Transfer
from domain.events import Actor, ActorKind
from domain.permissions import BUILT_IN_ROLES, Caller
from projections.filter_sql import where
from projections.filters import FILTER, Filter

BIA = Caller(
    demo.WORKSPACE,
    Actor(kind=ActorKind.AGENT, id=str(demo.AGENT)),
    BUILT_IN_ROLES["agent"],
    agent_id=demo.AGENT,
    sectors=frozenset((demo.SECTOR,)),
)
PASSING, FAR, QUIET = id_of("passes through"), id_of("was never in reach"), id_of("stays")
EVERYTHING = FILTER.validate_python({"and": []})
LABELLED = FILTER.validate_python({"field": "label", "operator": "is", "value": "vip"})


class Heard:
    def __init__(self) -> None:
        self.changes: list[tuple[str, str]] = []

    def tell(self, message: bytes) -> None:
        data = orjson.loads(message.split(b"data: ")[1])
        self.changes.append((data["change"], data["id"]))


def opened(sector_id: UUID) -> OpenConversation:
    return OpenConversation(protocol=str(sector_id), channel="phone", contact_id=demo.CONTACT, sector_id=sector_id)


async def look(database: str, start: int, rows: Rows, chosen: Filter, caller: Caller) -> list[tuple[str, str]]:
    """What is told of everything after ``start``, in one look."""
    heard = Heard()
    topic = ListingTopic[Heard](caller, lambda: where(caller, chosen), frozenset(), {heard})
    async with await psycopg.AsyncConnection.connect(database) as connection:
        changes = await changed_between(connection, start, 1_000_000, [caller.workspace_id])
        assert await rows.tell(connection, caller.workspace_id, changes[caller.workspace_id], [topic])
    return heard.changes


@pytest.fixture
def written(database: str) -> Any:
    """Carries out commands and projects them; gives the position before them."""
    prepare(database)
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler)
        project(database)

        def write(*commands: tuple[UUID, Command]) -> int:
            with psycopg.connect(database) as connection:
                head: tuple[int] = connection.execute("select max(position) from events").fetchone()  # type: ignore[assignment]
            carry_out(handler, demo.WORKSPACE, commands)
            project(database)
            return head[0]

        yield write


def told(database: str, start: int, rows: Rows, chosen: Filter = EVERYTHING) -> list[tuple[str, str]]:
    return asyncio.run(look(database, start, rows, chosen, BIA))


def test_a_row_that_came_and_went_within_one_look_leaves(database: str, written: Any) -> None:
    start = written(
        (PASSING, opened(demo.SECTOR)),
        (PASSING, Transfer(sector_id=demo.OTHER_SECTOR, reason="")),
        (FAR, opened(demo.OTHER_SECTOR)),
        (FAR, AddLabel(label="vip")),
        (QUIET, opened(demo.SECTOR)),
    )
    assert sorted(told(database, start, Rows())) == sorted([("leave", str(PASSING)), ("upsert", str(QUIET))])


def test_a_row_that_fitted_for_a_moment_leaves_and_one_that_never_did_is_not_told(database: str, written: Any) -> None:
    rows = Rows()
    start = written((PASSING, opened(demo.SECTOR)), (QUIET, opened(demo.SECTOR)))
    assert told(database, start, rows, LABELLED) == []
    start = written(
        (PASSING, AddLabel(label="vip")),
        (PASSING, RemoveLabel(label="vip")),
        (QUIET, AddLabel(label="other")),
        (QUIET, RemoveLabel(label="other")),
    )
    assert told(database, start, rows, LABELLED) == [("leave", str(PASSING))]
    assert told(database, start, Rows(), LABELLED) == [("leave", str(PASSING))]


def test_a_row_seen_ahead_of_the_log_leaves_when_the_log_gets_there(database: str, written: Any) -> None:
    rows = Rows()
    start = written((PASSING, opened(demo.SECTOR)))
    transfer = written((PASSING, Transfer(sector_id=demo.OTHER_SECTOR, reason="")))
    heard = told(database, start, rows) + told(database, transfer, rows)
    assert ("leave", str(PASSING)) in heard
