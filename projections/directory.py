"""The directory: who is inside, what their roles grant, which access tokens work; attributes and views.

Invariant: a token is found only by its hash; a revoked one stays, so that the history can name it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from domain.envelope import RecordedEvent
from domain.events import (
    AgentDeactivated,
    AgentJoinedSector,
    AgentLeftSector,
    AgentRegistered,
    AgentRoleChanged,
    AttributeDefined,
    AttributeRetired,
    IdentityLinked,
    IdentityUnlinked,
    RoleDefined,
    SectorCreated,
    SectorDeactivated,
    SectorRenamed,
    TokenIssued,
    TokenNarrowed,
    TokenRevoked,
    ViewRemoved,
    ViewSaved,
    WorkspaceCreated,
)

DDL = """
create table workspaces (
    id   uuid not null primary key,
    slug text not null,
    name text not null
);
create table sectors (
    workspace_id uuid    not null,
    id           uuid    not null,
    name         text    not null,
    active       boolean not null,
    primary key (workspace_id, id)
);
create table agents (
    workspace_id uuid    not null,
    id           uuid    not null,
    name         text    not null,
    role         text    not null,
    active       boolean not null,
    sectors      uuid[]  not null,
    primary key (workspace_id, id)
);
create table roles (
    workspace_id uuid  not null,
    name         text  not null,
    grants       jsonb not null,
    primary key (workspace_id, name)
);
create table tokens (
    workspace_id  uuid        not null,
    id            uuid        not null,
    name          text        not null,
    secret_sha256 text        not null unique,
    actor_kind    text        not null,
    actor_id      text        not null,
    role          text        not null,
    issued_at     timestamptz not null,
    expires_at    timestamptz,
    revoked       boolean     not null,
    grants        jsonb, -- what it was narrowed to; null: it may do what its role may
    primary key (workspace_id, id)
);
create table identities (
    workspace_id uuid        not null,
    id           uuid        not null,
    issuer       text        not null,
    subject      text        not null,
    agent_id     uuid        not null,
    linked_at    timestamptz not null,
    primary key (workspace_id, id)
);
create table attribute_definitions (
    workspace_id uuid   not null,
    id           uuid   not null,
    target       text   not null, -- contact or conversation
    key          text   not null,
    type         text   not null,
    label        text   not null,
    options      text[] not null,
    version      bigint not null,
    primary key (workspace_id, id)
);
create table views (
    workspace_id uuid    not null,
    id           uuid    not null,
    owner_kind   text    not null,
    owner_id     text    not null,
    shared       boolean not null,
    name         text    not null,
    filter       text    not null, -- JSON as it was saved: jsonb would refuse some of what JSON can say
    sort         text    not null,
    descending   boolean not null,
    columns      text[]  not null,
    version      bigint  not null,
    primary key (workspace_id, id)
);
"""

Statement = tuple[LiteralString, tuple[Any, ...]]


class Directory:
    """The read model of workspaces, sectors, agents, roles and tokens."""

    name = "directory"
    tables: tuple[str, ...] = (
        "workspaces",
        "sectors",
        "roles",
        "agents",
        "tokens",
        "identities",
        "attribute_definitions",
        "views",
    )
    ddl = DDL

    def apply(self, connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
        """Change the rows that ``events`` are about; rare events, so a statement each."""
        statements = [statement for recorded in events if (statement := _change(recorded))]
        with connection.pipeline():
            for query, values in statements:
                connection.execute(query, values)


def _change(recorded: RecordedEvent) -> Statement | None:
    workspace_id, _ = key = (recorded.stream.workspace_id, recorded.stream.id)
    match recorded.event:
        case WorkspaceCreated(slug=slug, name=name):
            return "insert into workspaces values (%s, %s, %s)", (workspace_id, slug, name)
        case SectorCreated(name=name):
            return "insert into sectors values (%s, %s, %s, true)", (*key, name)
        case SectorRenamed(after=name):
            return "update sectors set name = %s where workspace_id = %s and id = %s", (name, *key)
        case SectorDeactivated():
            return "update sectors set active = false where workspace_id = %s and id = %s", key
        case AgentRegistered(name=name, role=role):
            return "insert into agents values (%s, %s, %s, %s, true, '{}')", (*key, name, role)
        case AgentRoleChanged(after=role):
            return "update agents set role = %s where workspace_id = %s and id = %s", (role, *key)
        case AgentJoinedSector(sector_id=sector_id):
            query: LiteralString = (
                "update agents set sectors = array_append(sectors, %s) where workspace_id = %s and id = %s"
            )
            return query, (sector_id, *key)
        case AgentLeftSector(sector_id=sector_id):
            query = "update agents set sectors = array_remove(sectors, %s) where workspace_id = %s and id = %s"
            return query, (sector_id, *key)
        case AgentDeactivated():
            return "update agents set active = false where workspace_id = %s and id = %s", key
        case RoleDefined(name=name, grants=grants):
            query = (
                "insert into roles values (%s, %s, %s)"
                " on conflict (workspace_id, name) do update set grants = excluded.grants"
            )
            return query, (workspace_id, name, Jsonb(grants))
        case TokenIssued() as token:
            query = (  # a secret that is a token already (only CONVERSAS_BOOTSTRAP_TOKEN can be) stays who it was
                "insert into tokens values (%s, %s, %s, %s, %s, %s, %s, %s, %s, false, null)"
                " on conflict (secret_sha256) do nothing"
            )
            actor = (token.actor.kind.value, token.actor.id)
            at = recorded.recorded_at
            return query, (*key, token.name, token.secret_sha256, *actor, token.role, at, token.expires_at)
        case TokenNarrowed(grants=grants):
            return "update tokens set grants = %s where workspace_id = %s and id = %s", (Jsonb(grants), *key)
        case TokenRevoked():
            return "update tokens set revoked = true where workspace_id = %s and id = %s", key
        case IdentityLinked() as linked:
            values = (*key, linked.issuer, linked.subject, linked.agent_id, recorded.recorded_at)
            return "insert into identities values (%s, %s, %s, %s, %s, %s)", values
        case IdentityUnlinked():
            return "delete from identities where workspace_id = %s and id = %s", key
        case AttributeDefined() as defined:
            query = (
                "insert into attribute_definitions values (%s, %s, %s, %s, %s, %s, %s, %s)"
                " on conflict (workspace_id, id) do update set"
                " (type, label, options, version) = (excluded.type, excluded.label, excluded.options, excluded.version)"
            )
            told = (defined.target.value, defined.key, defined.type.value, defined.label, list(defined.options))
            return query, (*key, *told, recorded.version)
        case AttributeRetired():
            return "delete from attribute_definitions where workspace_id = %s and id = %s", key
        case ViewSaved() as view:
            query = (
                "insert into views values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
                " on conflict (workspace_id, id) do update set"
                " (shared, name, filter, sort, descending, columns, version) = (excluded.shared, excluded.name,"
                " excluded.filter, excluded.sort, excluded.descending, excluded.columns, excluded.version)"
            )
            kept = (view.owner.kind.value, view.owner.id, view.shared, view.personal.name, view.personal.filter)
            return query, (*key, *kept, view.sort, view.descending, list(view.columns), recorded.version)
        case ViewRemoved():
            return "delete from views where workspace_id = %s and id = %s", key
        case _:
            return None  # about conversations and contacts: not the directory's


class TokenHolder(NamedTuple):
    """What a request may do that carries a token: everything but the role's grants, which may be built in.

    Where an outside issuer's token names an identity, ``token_id`` is the identity's.
    """

    workspace_id: UUID
    token_id: UUID
    actor_kind: str
    actor_id: str
    role: str
    own_grants: dict[str, str] | None
    """The grants of a role that the workspace defined; None: not defined by it."""
    expires_at: datetime | None
    sectors: list[UUID] | None
    """The sectors of the agent who holds it; None: no active agent's."""
    narrowed_to: dict[str, str] | None
    """What it may do at most; None: what the role may."""
    as_of: int
    """The directory's position when it said so."""


_TOKENS: LiteralString = """
select workspace_id, id, actor_kind, actor_id, role, expires_at, grants from tokens where not revoked and"""
_IDENTITIES: LiteralString = """
select i.workspace_id, i.id, 'agent', i.agent_id::text, '', null, null
from identities i join workspaces w on w.id = i.workspace_id where"""
_HOLDER: LiteralString = """
select t.workspace_id, t.id, t.actor_kind, t.actor_id, coalesce(a.role, t.role), r.grants, t.expires_at, a.sectors,
    t.grants, (select position from projection_positions where name = 'directory')
from ({}) t (workspace_id, id, actor_kind, actor_id, role, expires_at, grants)
left join agents a
    on t.actor_kind = 'agent' and a.workspace_id = t.workspace_id and a.id::text = t.actor_id and a.active
left join roles r on r.workspace_id = t.workspace_id and r.name = coalesce(a.role, t.role)
where (t.actor_kind <> 'agent' or a.id is not null)"""

HOLDER_QUERY = _HOLDER.format(f"{_TOKENS} secret_sha256 = %s")
"""The holder of a token by the hash of its secret; no row for one that is unknown, revoked, or of an agent who left."""
HOLDER_BY_ID_QUERY = _HOLDER.format(
    f"{_TOKENS} workspace_id = %s and id = %s union all {_IDENTITIES} i.workspace_id = %s and i.id = %s"
)
"""The same by workspace and id, twice: of the token, or of the identity."""
HOLDER_BY_IDENTITY_QUERY = _HOLDER.format(f"{_IDENTITIES} w.slug = %s and i.id = %s")
"""Whom an identity stands for, by the workspace's slug and the identity's id."""
