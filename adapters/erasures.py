"""Erasures made good: after a crash in the middle of one, after a restore, and in what PostgreSQL keeps on disk.

Invariant: whoever is erased in the ledger is erased in the log, and the other way round, before anything is served.
"""

import time
from collections.abc import Callable
from uuid import uuid4

import psycopg

from adapters.command_handler import CommandHandler
from adapters.contact_keys import ContactKeys, Person, as_json
from adapters.deciding import Request
from adapters.postgres import LIMITS, connect
from adapters.projector import READ_MODELS
from domain.commands import EraseContact
from domain.envelope import Stream, StreamType
from domain.events import Actor, ActorKind, ContactErased, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

RESTORE = Actor(kind=ActorKind.SYSTEM, id="restore")
"""Who erases anew what a restored log has forgotten that it erased."""

_IS_ERASURE = f"topic = '{ContactErased.TOPIC}'"  # spelt out, or PostgreSQL would not use the index for it
_BATCH = 500


def reconcile(conninfo: str, keys: ContactKeys) -> int:
    """Bring log and ledger together; how many contacts had to be erased anew, because the log was restored.

    Keys of whom the log has erased are destroyed: somebody was killed before, or the keys were restored.
    """
    with connect(conninfo) as connection:
        erased: set[Person] = set(
            connection.execute(f"select workspace_id, stream_id from events where {_IS_ERASURE}".encode())
        )
        ledger = keys.ledger().keys()
        keys.destroy(erased - ledger)
        forgotten: list[Person] = connection.execute(
            "select workspace_id, stream_id from json_to_recordset(%s) as erased (workspace_id uuid, contact_id uuid)"
            " join events using (workspace_id) where stream_id = contact_id and version = 1 and stream_type = %s",
            (as_json(ledger - erased), StreamType.CONTACT.value),
        ).fetchall()
    handler = CommandHandler(conninfo, keys)
    try:
        for start in range(0, len(forgotten), _BATCH):
            for answer in handler.handle([_erasing(person) for person in forgotten[start : start + _BATCH]]):
                if isinstance(answer, Exception):
                    raise answer
    finally:
        handler.close()
    return len(forgotten)


def _erasing(person: Person) -> Request:
    request_id = uuid4()
    caller = Caller(person[0], RESTORE, BUILT_IN_ROLES["admin"])
    stream = Stream(person[0], StreamType.CONTACT, person[1])
    return Request(stream, EraseContact(), caller, Surface.AUTOMATION, request_id, request_id)


def is_behind(conninfo: str) -> bool:
    """Whether a read model has an erasure of the log still before it: then it may show who was erased."""
    with connect(conninfo) as connection:
        row = connection.execute(
            f"select exists (select from events where {_IS_ERASURE} and position >"
            " (select min(position) from projection_positions where name = any(%s)))",
            ([model.name for model in READ_MODELS],),
        ).fetchone()
    return row == (True,)


HELD_CLEAR_TEXT = ("listing", "contacts", "views", "snapshots", "outcomes", "bulk_jobs")
"""Tables of the log's database in whose files what was erased may have left traces."""
_TURNOVERS = 200
"""WAL segments to go through at most: more than a server keeps ready by default."""


class NotTurnedOverError(Exception):
    """Old write-ahead log is kept on disk, and it is not for us to throw it away."""


def purge(conninfo: str, keys: str, progress: Callable[[int, int], None]) -> None:
    """Leave nothing on disk of what was deleted until now: tables, statistics and write-ahead log are written anew.

    ``keys`` is the database of the keys. Queries wait while a table is rewritten. Raises `NotTurnedOverError`.
    """
    steps = len(HELD_CLEAR_TEXT) + 4
    unlimited = LIMITS | {"statement_timeout": "0", "lock_timeout": "60s"}
    with connect(conninfo, unlimited, application="conversas-purge") as connection:
        for number, table in enumerate(HELD_CLEAR_TEXT):
            progress(number, steps)
            connection.execute(f"vacuum (full, analyze) {table}".encode())
        progress(steps - 4, steps)
        connection.execute("vacuum full pg_statistic")  # the most common values of a column are kept there
    with connect(keys, unlimited, application="conversas-purge") as connection:
        progress(steps - 3, steps)
        connection.execute("vacuum (full, analyze) contact_keys")
        connection.execute("vacuum full pg_statistic")
        progress(steps - 2, steps)
        _turn_over(connection)
    progress(steps - 1, steps)
    if _server(conninfo) != _server(keys):
        with connect(conninfo, unlimited, application="conversas-purge") as connection:
            _turn_over(connection)
    progress(steps, steps)


def _server(conninfo: str) -> int:
    with connect(conninfo) as connection:
        row = connection.execute("select system_identifier from pg_control_system()").fetchone()
    assert row is not None
    return int(row[0])


def _turn_over(connection: psycopg.Connection) -> None:
    """Go on until every file of the write-ahead log that is there now is gone, with what was in it."""
    try:
        # A segment that is used again keeps what was in it, behind what is written anew.
        connection.execute("alter system set wal_recycle = off")
    except psycopg.errors.InsufficientPrivilege:
        raise NotTurnedOverError("only a superuser can make the server let go of its old write-ahead log") from None
    try:
        connection.execute("select pg_reload_conf()")
        time.sleep(1.0)  # until all of the server's processes know
        connection.execute("checkpoint")
        old = _segments(connection)
        for _ in range(_TURNOVERS):
            connection.execute("select pg_logical_emit_message(false, 'conversas', 'purge'), pg_switch_wal()")
            if _segment(connection) > max(old):
                connection.execute("checkpoint")
                if not old & _segments(connection):
                    return
    finally:
        connection.execute("alter system reset wal_recycle")
        connection.execute("select pg_reload_conf()")
    raise NotTurnedOverError("the server keeps old write-ahead log: for a replica, an archive or wal_keep_size")


def _segments(connection: psycopg.Connection) -> set[str]:
    return {name for (name,) in connection.execute("select name from pg_ls_waldir() where name ~ '^[0-9A-F]{24}$'")}


def _segment(connection: psycopg.Connection) -> str:
    row = connection.execute("select pg_walfile_name(pg_current_wal_lsn())").fetchone()
    assert row is not None
    return str(row[0])
