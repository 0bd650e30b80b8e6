"""Who is calling: from an access token, ours or an outside issuer's, to a caller with grants.

Invariant: only the hash of a token's secret is stored or remembered; a revocation takes effect after the cache's
time to live at the latest.
"""

import hashlib
import re
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, LiteralString
from uuid import UUID

from cachetools import TTLCache
from psycopg_pool import AsyncConnectionPool

from adapters.command_handler import UnavailableError
from domain.commands import identity_id, role_id
from domain.events import Actor, ActorKind
from domain.permissions import BUILT_IN_ROLES, Caller, Permission, Scope, narrowed
from projections.directory import HOLDER_BY_ID_QUERY, HOLDER_BY_IDENTITY_QUERY, HOLDER_QUERY, TokenHolder

if TYPE_CHECKING:
    from adapters.oidc import Named, Verifier
    from adapters.token_uses import TokenUses

TOKEN_PREFIX = "cvs_"  # noqa: S105  # makes a leaked token recognisable


def new_secret() -> str:
    """A fresh access token: 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def digest(secret: bytes) -> str:
    """The hash under which a token is stored. Fast on purpose: 256 random bits cannot be guessed."""
    return hashlib.sha256(secret).hexdigest()


_BEHIND = "select 1 from events where workspace_id = %s and stream_id = any(%s) and position > %s limit 1"
"""Whether the log says more of a token, its agent or role than the directory did."""

_BY_SESSION: LiteralString = HOLDER_BY_ID_QUERY + " and not exists (select from ended where id = %s)"
_END: LiteralString = """
with over as (delete from ended where until < now())
insert into ended values (%s, %s) on conflict do nothing"""

Found = tuple[Caller, datetime | None]
"""The holder of a token, and when it expires; None: never."""
_COMPACT = re.compile(rb"eyJ[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+){2}")


def is_compact(secret: bytes) -> bool:
    """Whether ``secret`` has the form of a signed token: three parts in base64url, a JSON object first."""
    return _COMPACT.fullmatch(secret) is not None


class Identity:
    """Looks tokens up in the directory, and remembers them briefly.

    Where the directory has not caught up with what the log says of the token, nobody is let in: a revocation holds
    although the projector stands still.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool[Any],
        cache_seconds: float,
        *,
        uses: "TokenUses | None" = None,
        verifier: "Verifier | None" = None,
    ) -> None:
        self._pool = pool
        self._cache: TTLCache[str, Found] = TTLCache(maxsize=10_000, ttl=cache_seconds)
        self._uses = uses
        self._verifier = verifier

    async def caller(self, secret: bytes) -> Caller | None:
        """The caller who holds ``secret``; None where it is unknown, expired or revoked."""
        found = await self.found(secret)
        return None if found is None else found[0]

    async def found(self, secret: bytes) -> Found | None:
        """The caller who holds ``secret``, and when it expires; None where it is unknown, expired or revoked."""
        key = digest(secret)
        return await self._remembered(key, lambda: self._find(secret, key))

    async def of_session(self, workspace_id: UUID, token_id: UUID, session_id: str) -> Caller | None:
        """As `holder`, remembered as briefly as a token's secret is: who signed in once and asks again and again.

        None once the session was ended.
        """

        def find() -> Awaitable[Found | None]:
            return self._look_up(_BY_SESSION, workspace_id, token_id, workspace_id, token_id, session_id)

        found = await self._remembered(_of_session(session_id), find)
        return None if found is None else found[0]

    async def end(self, id_: str, until: datetime) -> bool:
        """Let a session, or a sign-in, count no more; whether it did count.

        ``until`` is when it is over anyway. Other processes remember a session for as long as they do a token.
        """
        async with self._pool.connection() as connection:
            ended = await connection.execute(_END, (id_, until))
        self._cache.pop(_of_session(id_), None)
        return bool(ended.rowcount == 1)

    async def of_identity(self, named: "Named") -> Caller | None:
        """Whom an outside issuer's name stands for, with the rights of this moment; None where it is not linked."""
        found = await self._look_up(HOLDER_BY_IDENTITY_QUERY, *_linked(named))
        return None if found is None else found[0]

    async def _remembered(self, key: str, find: Callable[[], Awaitable[Found | None]]) -> Found | None:
        found = self._cache.get(key)
        if found is None:
            found = await find()
            if found is None:
                return None
            self._cache[key] = found  # only here: a use must not prolong what a revocation ends
        caller, expires_at = found
        if expires_at is not None and expires_at <= datetime.now(UTC):
            return None
        if self._uses is not None and caller.token_id is not None:
            self._uses.note(caller.workspace_id, caller.token_id)
        return found

    async def _find(self, secret: bytes, key: str) -> Found | None:
        if self._verifier is None or not is_compact(secret):
            return await self._look_up(HOLDER_QUERY, key)
        named = await self._verifier.named(secret)
        if named is None:
            return None
        found = await self._look_up(HOLDER_BY_IDENTITY_QUERY, *_linked(named))
        return None if found is None else (found[0], named.expires_at)

    async def holder(self, workspace_id: UUID, token_id: UUID) -> Caller | None:
        """Who holds the token, with the rights of this moment; None where it is unknown, expired or revoked.

        ``token_id`` may be an identity's: then as long as it is linked, whenever the outside issuer's token expires.
        """
        found = await self._look_up(HOLDER_BY_ID_QUERY, workspace_id, token_id, workspace_id, token_id)
        if found is None or (found[1] is not None and found[1] <= datetime.now(UTC)):
            return None
        return found[0]

    async def _look_up(self, query: LiteralString, *values: Any) -> Found | None:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query, values)
            row = await cursor.fetchone()
            if row is None:
                return None
            holder = TokenHolder(*row)
            streams = [holder.token_id, role_id(holder.role)]
            if holder.actor_kind == ActorKind.AGENT:
                streams.append(UUID(holder.actor_id))
            behind = await (await connection.execute(_BEHIND, (holder.workspace_id, streams, holder.as_of))).fetchone()
        if behind is not None:
            raise UnavailableError("the rights of this token are just being changed; try again in a moment")
        return _caller(holder), holder.expires_at


def _of_session(id_: str) -> str:
    return f"session {id_}"


def _linked(named: "Named") -> tuple[str, UUID]:
    return named.workspace, identity_id(named.issuer, named.subject)


def _caller(holder: TokenHolder) -> Caller:
    if holder.own_grants is not None:
        grants = {Permission(name): Scope(scope) for name, scope in holder.own_grants.items()}
    else:
        grants = dict(BUILT_IN_ROLES.get(holder.role, {}))
    if holder.narrowed_to is not None:
        grants = dict(narrowed(grants, {Permission(name): Scope(scope) for name, scope in holder.narrowed_to.items()}))
    actor = Actor(kind=ActorKind(holder.actor_kind), id=holder.actor_id)
    return Caller(
        workspace_id=holder.workspace_id,
        actor=actor,
        grants=grants,
        agent_id=UUID(holder.actor_id) if actor.kind is ActorKind.AGENT else None,
        sectors=frozenset(holder.sectors or ()),
        token_id=holder.token_id,
    )
