"""Rebuilding a read model from the log into a shadow beside the live one, which goes on serving until the swap.

Invariant: after the swap the tables are the fold of the log up to the position that is stored with them; a rebuild
that is killed changes nothing.
"""

import re
from collections.abc import Callable

import psycopg

from adapters.contact_keys import NO_KEYS, ContactKeys
from adapters.event_log import EventLog
from adapters.postgres import LIMITS, Role, connect
from adapters.projector import BATCH_SIZE, isolate, shape
from adapters.shares import lock_shares
from domain.envelope import RecordedEvent
from projections.read_model import ReadModel

SHADOW = "shadow"
"""The schema in which the copies are filled."""


def rebuild(
    conninfo: str,
    model: ReadModel,
    progress: Callable[[int, int], None] = lambda _position, _head: None,
    *,
    keys: ContactKeys | None = None,
    batch_size: int = BATCH_SIZE,
) -> int:
    """Fold the whole log into new tables of ``model`` and put them in the place of the live ones.

    ``progress`` is told the position reached and the log's head. Returns the position of the new tables.
    """
    settings = LIMITS | {"synchronous_commit": "off", "statement_timeout": "0", "search_path": f"{SHADOW},public"}
    with (
        connect(conninfo, settings, application="conversas-rebuild") as connection,
        EventLog(conninfo, keys=keys or NO_KEYS) as log,
    ):
        connection.execute("select pg_advisory_lock(hashtext(%s))", (f"conversas rebuild {model.name}",))
        create, index = _statements(model.ddl)
        connection.execute(f"create schema if not exists {SHADOW}".encode())
        connection.execute(f"grant usage on schema {SHADOW} to {Role.PROJECTOR}".encode())
        _drop(connection, model, SHADOW)
        connection.execute(create.encode())
        isolate(connection, model, SHADOW)
        position = 0
        while events := log.read(position, batch_size):
            with connection.transaction():
                _apply(connection, model, events)
            position = events[-1].position
            progress(position, log.head())
        connection.execute(index.encode())
        for table in model.tables:
            connection.execute(f"analyze {SHADOW}.{table}".encode())
        with connection.transaction():
            connection.execute("select 1 from projection_positions where name = %s for update", (model.name,))
            lock_shares(connection, model)
            while events := log.read(position, batch_size):
                _apply(connection, model, events)
                position = events[-1].position
            # All at once and in the order in which queries take them: a swap that meets one waits, and never deadlocks.
            tables = ", ".join(f"public.{table}" for table in reversed(model.tables) if _exists(connection, table))
            if tables:
                connection.execute(f"lock table {tables} in access exclusive mode".encode())
            _drop(connection, model, "public")
            for table in model.tables:
                connection.execute(f"alter table {SHADOW}.{table} set schema public".encode())
            connection.execute(
                "insert into projection_positions (name, position, shape) values (%s, %s, %s)"
                " on conflict (name) do update set position = excluded.position, shape = excluded.shape, halted = null",
                (model.name, position, shape(model)),
            )
    return position


def _apply(connection: psycopg.Connection, model: ReadModel, events: list[RecordedEvent]) -> None:
    """Fold ``events`` as the projector would, for the owner of the tables may be kept from it."""
    connection.execute(f"set local role {Role.PROJECTOR}".encode())
    model.apply(connection, events)
    connection.execute(b"reset role")


def _statements(ddl: str) -> tuple[str, str]:
    """The statements that create tables, and those that create indexes: these come last, over the full table."""
    statements = [statement.strip() for statement in ddl.split(";\n") if statement.strip()]
    indexes = [statement for statement in statements if re.search("^create index", statement, re.MULTILINE)]
    return ";\n".join(s for s in statements if s not in indexes), ";\n".join(indexes)


def _exists(connection: psycopg.Connection, table: str) -> bool:
    row = connection.execute("select to_regclass(%s)", (f"public.{table}",)).fetchone()
    return row is not None and row[0] is not None


def _drop(connection: psycopg.Connection, model: ReadModel, schema: str) -> None:
    for table in model.tables:
        connection.execute(f"drop table if exists {schema}.{table}".encode())
