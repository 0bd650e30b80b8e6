"""When each access token was last used: written in the background, at most once a minute per token.

Invariant: no request waits for it, and none fails because of it; it is no part of the log, so it may be lost.
"""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

import psycopg
from cachetools import TTLCache
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from adapters import background

log = logging.getLogger(__name__)

WRITE_SECONDS = 1.0
REST_SECONDS = 60.0
MOST_TOKENS = 10_000

_RECORD = """
insert into token_uses (workspace_id, token_id, last_used_at)
select * from unnest(%s::uuid[], %s::uuid[], %s::timestamptz[])
on conflict (workspace_id, token_id) do update set last_used_at = excluded.last_used_at
where token_uses.last_used_at <= excluded.last_used_at - interval '1 minute'"""
"""The condition holds between processes what the cache holds within one."""


class TokenUses:
    """Collects uses of tokens, and writes them now and then."""

    def __init__(self, pool: AsyncConnectionPool[Any]) -> None:
        self._pool = pool
        self._resting: TTLCache[tuple[UUID, UUID], None] = TTLCache(maxsize=MOST_TOKENS, ttl=REST_SECONDS)
        self._pending: dict[tuple[UUID, UUID], datetime] = {}
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to write."""
        self._writing = asyncio.create_task(self._write_on())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop writing."""
        if self._writing is not None:
            await background.end(self._writing)

    def note(self, workspace_id: UUID, token_id: UUID) -> None:
        """The token was used just now."""
        key = (workspace_id, token_id)
        if key not in self._resting and len(self._pending) < MOST_TOKENS:
            self._resting[key] = None
            self._pending[key] = datetime.now(UTC)

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            if self._pending:
                await self._write()

    async def _write(self) -> None:
        uses, self._pending = self._pending, {}
        workspaces, tokens = zip(*uses, strict=True)
        try:
            async with self._pool.connection() as connection:
                await connection.execute(_RECORD, (list(workspaces), list(tokens), list(uses.values())))
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("uses of %s tokens were not recorded: %s", len(uses), error)
