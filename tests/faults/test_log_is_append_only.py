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
WAYS_AROUND = [
    "insert into events select * from events on conflict (position) do update set data = '{}'",
    "select * from events for update",
    "do $$ begin delete from events; end $$",
    "set session_replication_role = replica",
    "select set_config('session_replication_role', 'replica', true)",
    "alter table events disable trigger user",
    "alter table events enable replica trigger events_are_immutable",
    "alter table events rename to former",
    "alter table events alter data type text using ''",
    "alter table events drop column data cascade",
    "drop table events cascade",
    "drop trigger events_are_immutable on events",
    "drop function refuse_change cascade",
    "create or replace function refuse_change() returns trigger language plpgsql as 'begin return new; end'",
    "create rule aside as on insert to events do instead nothing",
    "create trigger aside before insert on events for each row execute function refuse_change()",
    "create table aside () inherits (events)",
    "create temp table aside () inherits (events)",
    "create function aside() returns void language sql security definer as 'delete from events'",
    "create schema aside",
    "copy events to program 'cat'",
    "alter role current_user superuser",
    "grant conversas_writer to conversas_publisher",
    "select setval('accesses_id_seq', 1)",
    "insert into accesses overriding system value select * from accesses",
    "insert into accesses (at) select at from accesses",
    "update pg_class set relhastriggers = false",
]
MAY = {
    "accesses": {"conversas_reader": "SELECT"},  # and to insert what was read by whom, not when
    "events": dict.fromkeys(Role, "SELECT") | {"conversas_writer": "INSERT, SELECT"},
}
"""Who has which rights on what is only added to, beside its owner."""
RIGHTS = """
select relname, grantee::regrole::text, string_agg(privilege_type, ', ' order by privilege_type)
from pg_class, aclexplode(relacl) where relname = any(%s) and grantee <> relowner group by 1, 2"""
DEFINERS = "select proname from pg_proc where prosecdef"
ABLE = """
select rolname from pg_roles where rolname = any(%s) and (
    rolsuper or rolcreaterole or rolcreatedb or rolreplication
    or exists (select from pg_auth_members where member = pg_roles.oid)
    or exists (select from pg_class where relowner = pg_roles.oid)
    or exists (select from pg_namespace where has_schema_privilege(rolname, pg_namespace.oid, 'create')))"""


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
    forbidden += WAYS_AROUND
    forbidden += ["alter table events disable trigger all", "alter table listing disable row level security"]
    with connect(filled, {"role": role.value}) as connection:
        for statement in forbidden:
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
                connection.execute(statement.encode())
            assert "append-only" not in str(refused.value), "the trigger had to stop it"


def rights(connection: psycopg.Connection) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for table, role, what in connection.execute(RIGHTS, (list(MAY),)):
        found.setdefault(table, {})[role] = what
    return found


def test_nobody_has_more_rights_than_to_add(database: str) -> None:
    """Nor may anybody become another, own anything, or make functions that run as somebody else."""
    create_missing(database)
    with psycopg.connect(database) as connection:
        assert rights(connection) == MAY
        assert connection.execute(ABLE, ([*Role],)).fetchall() == []
        assert connection.execute(DEFINERS).fetchall() == []
        # Canaries; gone again with the transaction.
        connection.execute("grant update (data) on events to conversas_writer")
        connection.execute("grant delete on events to conversas_reader")
        connection.execute("grant conversas_writer to conversas_publisher")
        connection.execute("grant create on schema public to conversas_access")
        connection.execute("alter function refuse_change() security definer")
        assert rights(connection) != MAY
        able = connection.execute(ABLE + " order by 1", ([*Role],)).fetchall()
        assert able == [("conversas_access",), ("conversas_publisher",)]
        assert connection.execute(DEFINERS).fetchall() == [("refuse_change",)]
        connection.rollback()


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
