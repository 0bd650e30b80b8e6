"""Who is calling: from an access token to a caller with grants.

Invariant: only the hash of a token's secret is stored or remembered; a revocation takes effect after the cache's
time to live at the latest.
"""

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from cachetools import TTLCache
from psycopg_pool import AsyncConnectionPool

from adapters.command_handler import UnavailableError
from domain.commands import role_id
from domain.events import Actor, ActorKind
from domain.permissions import BUILT_IN_ROLES, Caller, Permission, Scope
from projections.directory import HOLDER_QUERY, TokenHolder

TOKEN_PREFIX = "cvs_"  # noqa: S105  # makes a leaked token recognisable


def new_secret() -> str:
    """A fresh access token: 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def digest(secret: bytes) -> str:
    """The hash under which a token is stored. Fast on purpose: 256 random bits cannot be guessed."""
    return hashlib.sha256(secret).hexdigest()


_BEHIND = """
select 1 from events where workspace_id = %s and stream_id = any(%s)
and position > (select position from projection_positions where name = 'directory') limit 1"""
"""Whether the log says more of a token, its agent or role than the directory does yet."""


class Identity:
    """Looks tokens up in the directory, and remembers them briefly.

    Where the directory has not caught up with what the log says of the token, nobody is let in: a revocation holds
    although the projector stands still.
    """

    def __init__(self, pool: AsyncConnectionPool[Any], cache_seconds: float) -> None:
        self._pool = pool
        self._cache: TTLCache[str, tuple[Caller, datetime | None]] = TTLCache(maxsize=10_000, ttl=cache_seconds)

    async def caller(self, secret: bytes) -> Caller | None:
        """The caller who holds ``secret``; None where it is unknown, expired or revoked."""
        key = digest(secret)
        found = self._cache.get(key)
        if found is None:
            found = await self._look_up(key)
            if found is None:
                return None
            self._cache[key] = found  # only here: a use must not prolong what a revocation ends
        caller, expires_at = found
        if expires_at is not None and expires_at <= datetime.now(UTC):
            return None
        return caller

    async def _look_up(self, key: str) -> tuple[Caller, datetime | None] | None:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(HOLDER_QUERY, (key,))
            row = await cursor.fetchone()
            if row is None:
                return None
            holder = TokenHolder(*row)
            streams = [holder.token_id, role_id(holder.role)]
            if holder.actor_kind == ActorKind.AGENT:
                streams.append(UUID(holder.actor_id))
            behind = await (await connection.execute(_BEHIND, (holder.workspace_id, streams))).fetchone()
        if behind is not None:
            raise UnavailableError("the rights of this token are just being changed; try again in a moment")
        return _caller(holder), holder.expires_at


def _caller(holder: TokenHolder) -> Caller:
    if holder.own_grants is not None:
        grants = {Permission(name): Scope(scope) for name, scope in holder.own_grants.items()}
    else:
        grants = dict(BUILT_IN_ROLES.get(holder.role, {}))
    actor = Actor(kind=ActorKind(holder.actor_kind), id=holder.actor_id)
    return Caller(
        workspace_id=holder.workspace_id,
        actor=actor,
        grants=grants,
        agent_id=UUID(holder.actor_id) if actor.kind is ActorKind.AGENT else None,
        sectors=frozenset(holder.sectors or ()),
    )
