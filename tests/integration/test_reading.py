"""What a query over HTTP reads, and over which connection, while the read models stand still or requests break off."""

import asyncio
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg
import pytest
from contact_keyring import keys_of
from databases import prepare, project
from in_process import carry_out, id_of, serving

from adapters.command_handler import CommandHandler
from adapters.identity import digest
from api import app, demo, listing, queries, reading
from domain.commands import Command, IssueToken, OpenConversation, ReceiveMessage, Transfer
from domain.events import Actor, ActorKind

TOKEN = "cvs_reading-tests-bia"
CONVERSATION = id_of("a conversation that leaves")


def message(name: str) -> ReceiveMessage:
    return ReceiveMessage(message_id=id_of(name), text=name)


@pytest.fixture
def served(database: str) -> str:
    """The demo, and a conversation in Bia's sector."""
    prepare(database)
    bia = Actor(kind=ActorKind.AGENT, id=str(demo.AGENT))
    opening = OpenConversation(protocol="r", channel="phone", contact_id=demo.CONTACT, sector_id=demo.SECTOR)
    story: list[tuple[UUID, Command]] = [
        (id_of("token"), IssueToken(name="bia", secret_sha256=digest(TOKEN.encode()), actor=bia, role="agent")),
        (CONVERSATION, opening),
        (CONVERSATION, message("before")),
    ]
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler)
        carry_out(handler, demo.WORKSPACE, story)
    project(database)
    return database


def read(database: str) -> list[str]:
    """The texts that Bia reads."""

    async def ask() -> list[str]:
        async with serving(database) as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            answer = await client.get(f"/v1/conversations/{CONVERSATION}/messages")
            return [item["text"] for item in answer.json()["items"]]

    return asyncio.run(ask())


def let_it_leave(database: str) -> None:
    """Give it to a sector that is not Bia's and go on with it, and project nothing."""
    away: list[tuple[UUID, Command]] = [
        (CONVERSATION, Transfer(sector_id=demo.OTHER_SECTOR, reason="")),
        (CONVERSATION, message("after")),
    ]
    with closing(CommandHandler(database, keys_of(database))) as handler:
        carry_out(handler, demo.WORKSPACE, away)


def test_what_is_said_after_it_left_the_scope_is_not_read_although_the_listing_lags(served: str) -> None:
    let_it_leave(served)
    assert read(served) == ["before"]


def test_canary_read_to_the_end_of_the_log_it_is(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    let_it_leave(served)
    monkeypatch.setattr(reading, "readable_until", lambda *_: 2**62)
    assert read(served) == ["before", "after"]


def connections_of(database: str, requests: int) -> list[set[int]]:
    """The backends of the API before and after so many requests."""

    async def ask() -> list[set[int]]:
        async with serving(database) as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            found = []
            for number in range(requests + 1):
                assert (await client.get("/v1/conversations")).status_code == 200
                if number in {0, requests}:
                    found.append(backends(database))
            return found

    return asyncio.run(ask())


def backends(database: str) -> set[int]:
    with psycopg.connect(database) as connection:
        query = (
            "select pid from pg_stat_activity where application_name = 'conversas-api' and datname = current_database()"
        )
        return {pid for (pid,) in connection.execute(query)}


def test_queries_go_over_the_same_connections(served: str) -> None:
    before, after = connections_of(served, 12)
    assert before <= after, "a pool may grow, and loses none"


def test_canary_a_pool_that_throws_them_away_is_noticed(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def always(connection: Any) -> None:
        await connection.close()

    monkeypatch.setattr(app, "_discard_interrupted", always)
    before, after = connections_of(served, 12)
    assert not before <= after


def told_while_it_leaves(database: str, monkeypatch: pytest.MonkeyPatch, path: str) -> tuple[int, dict[str, Any]]:
    """What Bia is told where the projector takes a conversation from her between reads, and the position of that."""
    let_it_leave(database)
    with psycopg.connect(database) as connection:
        [(left,)] = connection.execute("select max(position) from events").fetchall()
    together = queries._fetch_all

    async def one_by_one(request: Any, caller: Any, statements: Any, access: Any) -> Any:
        found = []
        for statement in statements:
            found += await together(request, caller, [statement], access)
            await asyncio.to_thread(project, database)
        return found

    async def ask() -> dict[str, Any]:
        async with serving(database) as client:
            client.headers["Authorization"] = f"Bearer {TOKEN}"
            monkeypatch.setattr(queries, "_fetch_all", one_by_one)
            found: dict[str, Any] = (await client.get(path)).json()
            return found

    return left, asyncio.run(ask())


def is_in_it(answer: dict[str, Any]) -> bool:
    """Whether the rows, or the counts, have the conversation that leaves."""
    if "items" in answer:
        return str(CONVERSATION) in {item["id"] for item in answer["items"]}
    return bool(answer["total"]["count"])


PATHS = ("/v1/conversations?channel=phone", "/v1/conversations/counts?channel=phone")


@pytest.mark.parametrize("path", PATHS)
def test_all_up_to_the_position_that_an_answer_tells_is_in_it(
    served: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    left, answer = told_while_it_leaves(served, monkeypatch, path)
    assert 0 < answer["position"] < left or not is_in_it(answer)


def test_canary_a_position_read_after_the_rows_promises_too_much(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def late(*arguments: Any) -> tuple[Any, int]:
        rows, [row] = await queries.fetch(*arguments), await queries.fetch(*arguments[:2], queries._LISTED, ())
        return rows, row["position"]

    monkeypatch.setattr(listing, "fetch_listed", late)
    left, answer = told_while_it_leaves(served, monkeypatch, PATHS[0])
    assert answer["position"] >= left
    assert is_in_it(answer)
