"""The log refuses to be changed: not by UPDATE, DELETE or TRUNCATE, not even by the tables' owner."""

import psycopg
import pytest
from rig import conversation, handling, query

from adapters.postgres import Role, connect
from adapters.projector import create_missing

pytestmark = pytest.mark.faults

CHANGES = [
    "update events set data = '{}' where position = 1",
    "update events set position = position - 1",
    "delete from events where position = 1",
    "delete from events",
    "truncate events",
    "truncate events restart identity cascade",
    "insert into events select * from events where position = 1 on conflict (position) do update set data = '{}'",
    "merge into events using (select 1) as one on position = 1 when matched then delete",
    "with gone as (delete from events returning *) select count(*) from gone",
]
ALL = "select e::text from events e order by position"


@pytest.fixture
def filled(database: str) -> str:
    with handling(database) as handler:
        conversation(handler)
    return database


def assert_refused(conninfo: str, change: str, *before: str) -> None:
    """``change`` (after ``before``, in a transaction that leaves no trace) fails because the log is append-only."""
    with psycopg.connect(conninfo) as connection:
        for statement in before:
            connection.execute(statement.encode())
        rows = connection.execute(ALL).fetchall()
        assert rows
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="the log is append-only"),
            connection.transaction(),
        ):
            connection.execute(change.encode())
        assert connection.execute(ALL).fetchall() == rows
        connection.rollback()


def test_no_change_is_let_through(filled: str) -> None:
    before = query(filled, ALL)
    for change in CHANGES:
        assert_refused(filled, change)
    assert query(filled, ALL) == before


def test_canary_without_the_triggers_every_one_is(filled: str) -> None:
    for change in CHANGES:
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            assert_refused(
                filled,
                change,
                "drop trigger events_are_immutable on events",
                "drop trigger events_are_kept on events",
            )


def test_an_empty_log_cannot_be_truncated_either(database: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="the log is append-only"):
        query(database, "truncate events")


@pytest.mark.parametrize("role", Role)
def test_no_process_of_ours_may_even_try(role: Role, filled: str) -> None:
    create_missing(filled)
    forbidden = [change for change in CHANGES if not change.startswith("insert")]
    if role is not Role.WRITER:
        forbidden.append("insert into events select * from events")
    if role in {Role.WRITER, Role.PUBLISHER}:
        forbidden += ["select 1 from listing", "select 1 from contacts"]
    if role is not Role.PROJECTOR:
        forbidden += ["delete from listing", "update projection_positions set position = 0"]
    forbidden += ["alter table events disable trigger all", "alter table listing disable row level security"]
    for statement in forbidden:
        with connect(filled, {"role": role.value}) as connection:
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
                connection.execute(statement.encode())
            assert "append-only" not in str(refused.value), "the trigger had to stop it"


def test_canary_the_owner_may(filled: str) -> None:
    create_missing(filled)
    query(filled, "update projection_positions set position = 0")
    query(filled, "alter table listing disable row level security")


def test_who_is_no_superuser_cannot_switch_the_triggers_off(filled: str) -> None:
    with psycopg.connect(filled) as connection:
        connection.execute("create role plain")  # gone again with the transaction
        connection.execute("set local role plain")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("set session_replication_role = replica")
