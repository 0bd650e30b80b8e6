"""The runner of bulk actions on a real PostgreSQL: who waits for whom, what is deleted, what a reader sees."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from contact_keyring import keys_of
from databases import load_demo, prepare
from psycopg_pool import AsyncConnectionPool

from adapters.bulk import BulkRunner, Wanted, start
from adapters.command_handler import CommandHandler, UnavailableError
from adapters.identity import Identity
from adapters.postgres import LIMITS, Role, connect, with_settings
from adapters.writer import Writer
from api import demo
from domain.commands import AddLabel
from domain.permissions import BUILT_IN_ROLES, Caller

ADMIN = Caller(demo.WORKSPACE, demo.ADMIN_ACTOR, BUILT_IN_ROLES["admin"], agent_id=demo.ADMIN, token_id=UUID(int=1))
STUCK = Caller(demo.WORKSPACE, demo.ADMIN_ACTOR, BUILT_IN_ROLES["admin"], agent_id=demo.ADMIN, token_id=UUID(int=2))
ELSEWHERE = UUID(int=3)


class Holders(Identity):
    """Knows the admin; the rights of the other token are for ever being changed."""

    async def holder(self, workspace_id: UUID, token_id: UUID) -> Caller | None:  # noqa: ARG002  # as its base has it
        """The admin, or nobody yet."""
        if token_id == STUCK.token_id:
            raise UnavailableError("the rights of this token are just being changed")
        return ADMIN


@pytest.fixture
def loaded(database: str) -> str:
    """A database with the demo workspace."""
    prepare(database)
    load_demo(database)
    return database


Pool = AsyncConnectionPool[Any]


def run(conninfo: str, act: Callable[[BulkRunner, Pool], Awaitable[None]], chunk: int = 1) -> None:
    """Let ``act`` have a runner that takes turns only when it is told to, and a pool of readers' connections."""

    def pool(role: Role) -> Pool:
        limited = with_settings(conninfo, LIMITS | {"role": role.value})
        return AsyncConnectionPool(limited, min_size=1, max_size=1, open=False, kwargs={"autocommit": True})

    async def inside() -> None:
        writer = Writer(CommandHandler(conninfo, keys_of(conninfo)))
        async with pool(Role.WRITER) as writing, pool(Role.READER) as reading:
            try:
                await act(BulkRunner(writing, writer, Holders(writing, 0), chunk=chunk, keep_days=30), reading)
            finally:
                writer.close()

    asyncio.run(inside())


async def put_down(reading: Pool, caller: Caller, *conversations: UUID) -> UUID:
    wanted = Wanted(
        id=uuid4(),
        action="add-label",
        command=AddLabel(label="vip"),
        on=conversations,
        dry_run=False,
        request_id=uuid4(),
        fingerprint=b"",
    )
    async with reading.connection() as connection, connection.transaction():
        await connection.execute("select set_config('conversas.workspace', %s, true)", (str(caller.workspace_id),))
        assert await start(connection, caller, wanted)
    return wanted.id


def states(conninfo: str) -> dict[UUID, str]:
    with connect(conninfo) as connection:
        return dict(connection.execute("select id, state from bulk_jobs").fetchall())


def test_jobs_take_turns(loaded: str) -> None:
    async def act(runner: BulkRunner, reading: Pool) -> None:
        large = await put_down(reading, ADMIN, demo.CONVERSATION, uuid4(), uuid4())
        small = await put_down(reading, ADMIN, demo.CONVERSATION)
        assert await runner.turn()
        assert await runner.turn()
        assert states(loaded) == {large: "running", small: "done"}
        assert [await runner.turn() for _ in range(3)] == [True, True, False]
        assert states(loaded) == {large: "done", small: "done"}

    run(loaded, act)


def test_nobody_waits_for_a_job_whose_callers_rights_are_not_known_yet(loaded: str) -> None:
    async def act(runner: BulkRunner, reading: Pool) -> None:
        stuck = await put_down(reading, STUCK, demo.CONVERSATION)
        other = await put_down(reading, ADMIN, demo.CONVERSATION)
        assert [await runner.turn() for _ in range(3)] == [True, True, False]
        assert states(loaded) == {stuck: "waiting", other: "done"}

    run(loaded, act)


def test_a_job_that_no_code_can_carry_out_stops_and_says_so(loaded: str) -> None:
    async def act(runner: BulkRunner, reading: Pool) -> None:
        broken = await put_down(reading, ADMIN, demo.CONVERSATION)
        with connect(loaded) as connection:
            connection.execute("update bulk_jobs set command = '{}'")
        assert [await runner.turn() for _ in range(2)] == [True, False]
        assert states(loaded) == {broken: "stopped"}

    run(loaded, act)


def test_jobs_are_deleted_with_their_results_some_time_after_their_end(loaded: str) -> None:
    async def act(runner: BulkRunner, reading: Pool) -> None:
        old, new = [await put_down(reading, ADMIN, demo.CONVERSATION) for _ in range(2)]
        waiting = await put_down(reading, STUCK, demo.CONVERSATION)
        assert [await runner.turn() for _ in range(4)] == [True, True, True, False]
        with connect(loaded) as connection:
            connection.execute("update bulk_jobs set finished_at = now() - interval '31 days' where id = %s", (old,))
        await runner._clean()
        assert states(loaded) == {new: "done", waiting: "waiting"}
        with connect(loaded) as connection:
            assert connection.execute("select count(*) from bulk_items").fetchone() == (2,)

    run(loaded, act)


@pytest.mark.parametrize("workspace", [demo.WORKSPACE, ELSEWHERE, None], ids=["the same", "another", "none"])
def test_a_reader_sees_the_jobs_of_its_workspace_only_whatever_the_query_says(
    loaded: str, workspace: UUID | None
) -> None:
    async def act(_: BulkRunner, reading: Pool) -> None:
        await put_down(reading, ADMIN, demo.CONVERSATION)

    run(loaded, act)
    with connect(loaded, LIMITS | {"role": Role.READER.value}) as connection:
        connection.execute("select set_config('conversas.workspace', %s, false)", (str(workspace or ""),))
        expected = 1 if workspace == demo.WORKSPACE else 0
        for table in ("bulk_jobs", "bulk_items"):
            assert connection.execute(f"select count(*) from {table}").fetchone() == (expected,)
        changed = connection.execute("update bulk_jobs set state = 'cancelled'").rowcount
        assert changed == expected
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("update bulk_jobs set actor_id = 'me'")


def test_canary_without_row_level_security_a_reader_would_see_the_jobs_of_another_workspace(loaded: str) -> None:
    with connect(loaded) as connection:
        for table in ("bulk_jobs", "bulk_items"):
            connection.execute(f"alter table {table} disable row level security")
    with pytest.raises(AssertionError):
        test_a_reader_sees_the_jobs_of_its_workspace_only_whatever_the_query_says(loaded, ELSEWHERE)
