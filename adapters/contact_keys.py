"""The keys of contacts, in a database of their own: a dump of the log holds none, and restoring it brings none back.

A row without a key is an entry in the ledger of erasures: there was, or might have been, a key, and it is gone.

Invariant: a key that was destroyed never comes back, and none takes its place.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import orjson
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from adapters.master_keys import MasterKeys, MasterKeysAwayError, Wrapped
from adapters.postgres import LIMITS, connect
from adapters.sealing import KEY_BYTES, Cipher

Person = tuple[UUID, UUID]
"""Workspace and contact."""

Ciphers = Mapping[Person, Cipher | None]
"""The keys of some contacts; None: erased."""

DDL = """
create table if not exists contact_keys (
    workspace_id  uuid  not null,
    contact_id    uuid  not null,
    wrapped       bytea,          -- the contact's key, wrapped by the master key; null: destroyed
    master_key_id text,           -- which master key; null: destroyed
    erased_at     timestamptz,
    primary key (workspace_id, contact_id),
    check ((wrapped is null) = (erased_at is not null) and (wrapped is null) = (master_key_id is null))
);
alter table contact_keys alter column wrapped set statistics 0; -- nor may a key be kept as a statistic
create index if not exists contact_keys_by_master on contact_keys (master_key_id) where wrapped is not null;
create index if not exists contact_keys_erased on contact_keys (workspace_id, contact_id) where wrapped is null;
"""

FIND = """
select k.workspace_id, k.contact_id, k.wrapped, k.master_key_id
from json_to_recordset(%s) as wanted (workspace_id uuid, contact_id uuid)
join contact_keys k using (workspace_id, contact_id)"""
_ADD = """
insert into contact_keys (workspace_id, contact_id, wrapped, master_key_id)
select workspace_id, contact_id, decode(wrapped, 'hex'), master_key_id
from json_to_recordset(%s) as made (workspace_id uuid, contact_id uuid, wrapped text, master_key_id text)
on conflict do nothing returning workspace_id, contact_id"""
_DESTROY = """
insert into contact_keys (workspace_id, contact_id, erased_at)
select workspace_id, contact_id, clock_timestamp()
from json_to_recordset(%s) as gone (workspace_id uuid, contact_id uuid)
on conflict (workspace_id, contact_id) do update
set wrapped = null, master_key_id = null, erased_at = excluded.erased_at where contact_keys.wrapped is not null"""

_BATCH = 200
"""Keys that are wrapped anew in a transaction: what a key service does in a request."""
_OTHERWISE_WRAPPED = """
select workspace_id, contact_id, wrapped, master_key_id from contact_keys
where wrapped is not null and master_key_id <> %s limit %s for update"""
_REWRAP = """
update contact_keys k set wrapped = decode(anew.wrapped, 'hex'), master_key_id = anew.master_key_id
from json_to_recordset(%s) as anew (workspace_id uuid, contact_id uuid, wrapped text, master_key_id text)
where (k.workspace_id, k.contact_id) = (anew.workspace_id, anew.contact_id)"""


def beside(conninfo: str) -> str:
    """Where the keys are unless somebody says otherwise: on the log's server, in a database of their own."""
    return make_conninfo(conninfo, dbname=f"{conninfo_to_dict(conninfo).get('dbname') or 'postgres'}_keys")


def prepare(conninfo: str, *, server: str | None = None) -> None:
    """Make the table; with ``server``, a database there, also the database where it is missing."""
    if server is not None:
        name = str(conninfo_to_dict(conninfo)["dbname"])
        with connect(server) as connection:
            if connection.execute("select from pg_database where datname = %s", (name,)).fetchone() is None:
                with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):  # others were faster
                    connection.execute(sql.SQL("create database {} template template0").format(sql.Identifier(name)))
    with connect(conninfo, autocommit=False) as connection:
        if connection.execute("select to_regclass('contact_keys_erased')").fetchone() == (None,):
            connection.execute("select pg_advisory_xact_lock(hashtext('conversas keys'))")
            connection.execute(DDL.encode())


class Keys(Protocol):
    """Where somebody who reads the log finds keys."""

    def find(self, people: Collection[Person]) -> Ciphers:
        """The keys of those who have one, None for those who were erased; the others are not in it."""
        ...


AWAY = (psycopg.OperationalError, MasterKeysAwayError)
"""Errors of reading the log and of finding keys that say nothing of either: what is needed is not there now."""


class KeyMissingError(Exception):
    """The log holds what is sealed with a key that the keys' database never knew: it belongs to another log."""


class ContactKeys:
    """The keys, over one connection. Used by one thread at a time."""

    def __init__(self, conninfo: str, master: MasterKeys) -> None:
        self._conninfo = conninfo
        self.master = master
        self._connection: psycopg.Connection | None = None

    def find(self, people: Collection[Person]) -> dict[Person, Cipher | None]:
        """The keys of those who have one, None for those who were erased; the others are not in it."""
        if not people:
            return {}
        rows = self.connection().execute(FIND, (as_json(people),), prepare=True).fetchall()
        return unwrapped(self.master, rows)

    def add(self, people: Collection[Person]) -> dict[Person, Cipher | None]:
        """As `find`, after each who has no key and was not erased has got one, for good."""
        made = {person: os.urandom(KEY_BYTES) for person in people}
        rows = _wrapped(self.master, list(made.items()))
        added = self.connection().execute(_ADD, (orjson.dumps(rows).decode(),), prepare=True).fetchall()
        found: dict[Person, Cipher | None] = {(row[0], row[1]): Cipher(made[row[0], row[1]]) for row in added}
        return found | self.find([person for person in people if person not in found])

    def destroy(self, people: Collection[Person]) -> None:
        """Destroy the keys of ``people`` and note it in the ledger; what is noted already stays."""
        if people:
            self.connection().execute(_DESTROY, (as_json(people),))

    def ledger(self) -> dict[Person, datetime]:
        """Whose keys were destroyed, and when."""
        rows = self.connection().execute(
            "select workspace_id, contact_id, erased_at from contact_keys where wrapped is null"
        )
        return {(workspace_id, contact_id): at for workspace_id, contact_id, at in rows}

    def rotate(self, progress: Callable[[int, int], None]) -> int:
        """Wrap all keys anew that are not wrapped with the current master key; how many there were.

        May be killed and called again: each batch is a transaction.
        """
        connection = self.connection()
        counted = connection.execute(
            "select count(*) from contact_keys where wrapped is not null and master_key_id <> %s",
            (self.master.current(),),
        ).fetchone()
        total, done = (counted[0] if counted else 0), 0
        while True:
            with connection.transaction():
                # Asked each time: a service may have gone on to another one meanwhile.
                rows = connection.execute(_OTHERWISE_WRAPPED, (self.master.current(), _BATCH)).fetchall()
                if not rows:
                    return done
                keys = self.master.unwrap([_as_stored(row) for row in rows])
                anew = _wrapped(self.master, list(zip([row[:2] for row in rows], keys, strict=True)))
                connection.execute(_REWRAP, (orjson.dumps(anew).decode(),))
            done += len(rows)
            progress(done, total)

    def connection(self) -> psycopg.Connection:
        """The connection, opened anew where it was lost; what it commits is on disk."""
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._conninfo, LIMITS, application="conversas-keys")
        return self._connection

    def discard_connection(self) -> None:
        """Let go of the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    close = discard_connection


_READING = 8
_MOST_WAITING = 200
"""Look-ups that wait for a master key at a time."""


class KeyReader:
    """The keys for an event loop, over a pool. Nothing is remembered: an erasure counts at once."""

    def __init__(self, pool: AsyncConnectionPool[Any], master: MasterKeys) -> None:
        self._pool = pool
        self._master = master
        self._threads = ThreadPoolExecutor(_READING, "keys")
        self._waiting = 0

    async def find(self, people: Collection[Person]) -> Ciphers:
        """The keys of those who have one, None for those who were erased; the others are not in it."""
        if not people:
            return {}
        async with self._pool.connection() as connection:
            cursor = await connection.execute(FIND, (as_json(people),))
            rows = await cursor.fetchall()
        if self._waiting >= _MOST_WAITING:
            raise MasterKeysAwayError("too many wait for the service that has the master key")
        self._waiting += 1
        try:  # in threads of its own: a service that is slow holds up nothing else
            return await asyncio.get_running_loop().run_in_executor(self._threads, unwrapped, self._master, rows)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let the threads go."""
        self._threads.shutdown(wait=False)


class _NoKeys:
    def find(self, people: Collection[Person]) -> Ciphers:  # noqa: ARG002  # as the protocol says
        return {}


NO_KEYS: Keys = _NoKeys()
"""For who must not take what is sealed for what says nothing: it fails."""


def unwrapped(master: MasterKeys, rows: Sequence[tuple[Any, ...]]) -> dict[Person, Cipher | None]:
    """What `FIND` found, ready for use."""
    found: dict[Person, Cipher | None] = {row[:2]: None for row in rows}
    whole = [row for row in rows if row[2] is not None]
    for row, key in zip(whole, master.unwrap([_as_stored(row) for row in whole]), strict=True):
        found[row[:2]] = Cipher(key)
    return found


def _as_stored(row: tuple[Any, ...]) -> Wrapped:
    workspace_id, contact_id, wrapped, name = row
    return Wrapped(name, bytes(wrapped), _owner((workspace_id, contact_id)))


def _wrapped(master: MasterKeys, keys: Sequence[tuple[Person, bytes]]) -> list[dict[str, Any]]:
    """The rows of ``keys``."""
    wrapped = master.wrap([(_owner(person), key) for person, key in keys])
    return [
        {"workspace_id": person[0], "contact_id": person[1], "wrapped": each.key.hex(), "master_key_id": each.master}
        for (person, _), each in zip(keys, wrapped, strict=True)
    ]


def _owner(person: Person) -> bytes:
    return person[0].bytes + person[1].bytes


def as_json(people: Iterable[Person]) -> str:
    """``people`` as `FIND` takes them."""
    return orjson.dumps([{"workspace_id": person[0], "contact_id": person[1]} for person in people]).decode()
