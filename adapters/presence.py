"""Presence: heartbeats of agents that expire, shared by all processes through the database.

Invariant: an agent of whom nothing was heard for the time to live is offline; nothing of this enters the log but what a
transfer records of its target.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from domain.events import Presence

log = logging.getLogger(__name__)

SNAPSHOT_SECONDS = 1.0
"""How old what commands are told of presence may be."""

_SAY = """
insert into presence values (%s, %s, %s, now() + %s * interval '1 second')
on conflict (workspace_id, agent_id) do update set status = excluded.status, expires_at = excluded.expires_at
returning expires_at"""
_RENEW = """
insert into presence
select workspace_id, agent_id, 'online', now() + %s * interval '1 second'
from unnest(%s::uuid[], %s::uuid[]) as kept (workspace_id, agent_id)
on conflict (workspace_id, agent_id) do update
set status = case when presence.expires_at > now() then presence.status else excluded.status end,
    expires_at = excluded.expires_at"""
_FORGET = "delete from presence where expires_at < now() - interval '1 hour'"
_ALL = "select workspace_id, agent_id, status from presence where expires_at > now()"


class Presences:
    """What agents last said, and which of them this process keeps from expiring."""

    def __init__(self, pool: AsyncConnectionPool[Any], seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._kept: Counter[tuple[UUID, UUID]] = Counter()
        self._known: dict[UUID, dict[UUID, Presence]] | None = None
        self._known_at = 0.0
        self._refreshing = asyncio.Lock()

    async def say(self, workspace_id: UUID, agent_id: UUID, status: Presence) -> datetime:
        """Note what the agent says of themself; when it expires."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SAY, (workspace_id, agent_id, status.value, self._seconds))
            row = await cursor.fetchone()
        assert row is not None, "an upsert returns its row"
        if self._known is not None:
            self._known.setdefault(workspace_id, {})[agent_id] = status
        expires_at: datetime = row[0]
        return expires_at

    async def snapshot(self, workspace_id: UUID) -> Mapping[UUID, Presence] | None:
        """Who in the workspace is not offline (or said so), at most a second old; None: it cannot be found out now.

        However many ask, the database is asked once a second.
        """
        if monotonic() - self._known_at > SNAPSHOT_SECONDS:
            async with self._refreshing:
                if monotonic() - self._known_at > SNAPSHOT_SECONDS:
                    await self._refresh()
        return None if self._known is None else self._known.get(workspace_id, {})

    async def _refresh(self) -> None:
        found: dict[UUID, dict[UUID, Presence]] = {}
        try:
            async with self._pool.connection() as connection:
                async for workspace_id, agent_id, status in await connection.execute(_ALL):
                    found.setdefault(workspace_id, {})[agent_id] = Presence(status)
            self._known = found
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("presence is not known: %s", error)
            self._known = None
        self._known_at = monotonic()

    @contextmanager
    def kept(self, workspace_id: UUID, agent_id: UUID | None) -> Iterator[None]:
        """Keep the agent (None: no agent's) from expiring meanwhile; who has said nothing counts as online."""
        key = (workspace_id, agent_id or UUID(int=0))
        if agent_id is not None:
            self._kept[key] += 1
        try:
            yield
        finally:
            if agent_id is not None:
                self._kept[key] -= 1
                if not self._kept[key]:
                    del self._kept[key]

    async def renew(self, agents: Iterable[tuple[UUID, UUID]] | None = None) -> None:
        """Let a new time to live begin for ``agents`` (with their workspaces); else for all who are kept."""
        rows = list(self._kept if agents is None else agents)
        if rows:
            workspaces, ids = zip(*rows, strict=True)
            async with self._pool.connection() as connection:
                await connection.execute(_RENEW, (self._seconds, list(workspaces), list(ids)))

    async def run(self) -> None:
        """Renew three times within each time to live, until cancelled."""
        while True:
            try:
                await self.renew()
                async with self._pool.connection() as connection:
                    await connection.execute(_FORGET)
            except (psycopg.Error, PoolTimeout) as error:
                log.warning("presence was not renewed: %s", error)
            await asyncio.sleep(self._seconds / 3)
