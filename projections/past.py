"""How rows of the listing stood before: a version for each moment at which somebody may ask. Part of the listing.

A row that changes leaves the version that it was, with the time from when to when it held. What names a person is not
among its columns: it is read from the conversation's row of now, so that there is nothing here to erase.

The versions that held at a moment are found by the fork node of a relational interval tree (Kriegel et al., VLDB 2000):
a number that an interval has once and for all, and of which the intervals that hold a moment can have few. Tens of
thousands hold at once, so what is mostly filtered and sorted by stands in that index: it alone says which ones are
wanted, and only those are looked at. `projections.past_query` knows the shorter ways.

Invariant: a version is never changed; those of a conversation and its row in the listing follow each other without a
gap, so that at any moment exactly one of them holds.
"""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import psycopg

DDL = """
create table past (
    workspace_id           uuid             not null,
    id                     uuid             not null,
    until                  timestamptz      not null, -- when the next change was recorded
    node                   bigint           not null,
    recorded_at            timestamptz      not null, -- since when it held
    channel                text             not null, -- from here on as in the listing
    status                 text             not null,
    sector_id              uuid,
    agent_id               uuid,
    bot                    text,
    contact_id             uuid             not null,
    priority               smallint         not null,
    labels                 text[]           not null,
    opened_at              timestamptz      not null,
    opened_by              text             not null,
    last_activity_at       timestamptz      not null,
    finalized_at           timestamptz,
    finalized_from         text,
    finalized_by           text,
    finalized_cause        text,
    outcome                text,
    episode                integer          not null,
    episode_started_at     timestamptz      not null,
    waiting_since          timestamptz,
    waiting_from           timestamptz,
    waiting_seconds        double precision not null,
    first_response_seconds double precision,
    resolution_seconds     double precision,
    unanswered_since       timestamptz,
    unread                 integer          not null,
    sectors                uuid[]           not null,
    agents                 uuid[]           not null,
    bots                   text[]           not null,
    participants           text[]           not null,
    transfers              integer          not null,
    reopenings             integer          not null,
    messages_received      integer          not null,
    messages_sent          integer          not null,
    notes                  integer          not null,
    version                bigint           not null,
    position               bigint           not null
);
create index on past (workspace_id, node, status, until, recorded_at)
    include (id, opened_at, last_activity_at, finalized_at, channel, sector_id, agent_id, priority, unread,
             waiting_from, waiting_seconds, resolution_seconds, episode_started_at, waiting_since,
             first_response_seconds, contact_id, bot, opened_by, finalized_from, finalized_by, finalized_cause, episode,
             transfers, reopenings, messages_received, messages_sent, unanswered_since); -- 32 columns, the most
-- What few have is found by itself. Nothing stands in an index that may be longer than one takes, as labels and an
-- outcome may.
create index on past (workspace_id, agent_id, node, until, recorded_at) where agent_id is not null;
create index on past (workspace_id, bot, node, until, recorded_at) where bot is not null;
create index on past (workspace_id, contact_id);
create index on past (workspace_id, (agents[1]), node, until, recorded_at) where agents[1] is not null;
create index on past (workspace_id, (agents[2]), node, until, recorded_at) where agents[2] is not null;
create index on past (workspace_id, (agents[3]), node, until, recorded_at) where agents[3] is not null;
create index on past (workspace_id, node, until, recorded_at) where agents[4] is not null;
create index on past (workspace_id, finalized_by, node, until, recorded_at) where finalized_by is not null;
create index on past (workspace_id, node, until, recorded_at) include (id, opened_at, last_activity_at, finalized_from)
    where finalized_from <> 'inbox';
create index on past (workspace_id, node, until, recorded_at) include (id, opened_at, last_activity_at, priority)
    where priority > 1;
create index on past (workspace_id, node, until, recorded_at) include (id, opened_at, last_activity_at)
    where unanswered_since is not null;
create index on past (workspace_id, node, until, recorded_at) include (id, opened_at, last_activity_at, reopenings)
    where reopenings > 0;
create index on past (workspace_id, node, until, recorded_at) where labels <> '{}';
create index on past (workspace_id, node, status, until, recorded_at)
    where sectors <> '{}' and sectors <> array[sector_id];
-- For pages, in their order; the first one also leads from a conversation to its versions.
create index on past (workspace_id, opened_at, id, until, recorded_at);
create index on past (workspace_id, last_activity_at, id, until, recorded_at);
create index on past (workspace_id, finalized_at, id, until, recorded_at) where finalized_at is not null;
"""

_SCALARS = (
    *("workspace_id", "id", "recorded_at", "channel", "status", "sector_id", "agent_id", "bot", "contact_id"),
    *("priority", "opened_at", "opened_by", "last_activity_at", "finalized_at", "finalized_from", "finalized_by"),
    *("finalized_cause", "outcome", "episode", "episode_started_at", "waiting_since", "waiting_from"),
    *("waiting_seconds", "first_response_seconds", "resolution_seconds", "unanswered_since", "unread", "transfers"),
    *("reopenings", "messages_received", "messages_sent", "notes", "version", "position"),
)
_LISTS = ("labels", "sectors", "agents", "bots", "participants")
COLUMNS = frozenset((*_SCALARS, *_LISTS))
"""The columns of the listing that a version has as well."""
_TYPES = (
    *("uuid", "uuid", "timestamptz", "text", "text", "uuid", "uuid", "text", "uuid"),
    *("int2", "timestamptz", "text", "timestamptz", "timestamptz", "text", "text"),
    *("text", "text", "int4", "timestamptz", "timestamptz", "timestamptz"),
    *("float8", "float8", "float8", "timestamptz", "int4", "int4"),
    *("int4", "int4", "int4", "int4", "int8", "int8"),
    *("text[]", "uuid[]", "uuid[]", "text[]", "text[]"),
    *("timestamptz", "int8"),
)
_scalars = attrgetter(*_SCALARS)
_lists = attrgetter(*_LISTS)

Version = tuple[Any, ...]
"""A row of the table, in the order in which it is stored."""


def version_of(row: Any, until: datetime) -> Version:
    """What ``row`` of the listing, which is about to change, was ``until`` then."""
    return (*_scalars(row), *map(list, _lists(row)), until, fork(row.recorded_at, until))


def save(connection: psycopg.Connection[Any], versions: Sequence[Version]) -> None:
    """Add ``versions``."""
    if not versions:
        return
    columns = ", ".join((*_SCALARS, *_LISTS, "until", "node"))
    with connection.cursor().copy(f"copy past ({columns}) from stdin (format binary)") as copy:
        copy.set_types(_TYPES)
        for version in versions:
            copy.write_row(version)


LEVELS = 40
"""Of the tree, over seconds since 1970: more than there will be."""


def fork(since: datetime, until: datetime) -> int:
    """The node of the period: where the ways down to its two ends, in seconds, part."""
    start, end = int(since.timestamp()), int(until.timestamp())
    level = max(0, (start ^ end).bit_length() - 1)
    return ((end >> level) | 1) << level


def nodes_of(moment: datetime) -> list[int]:
    """The nodes of all periods that hold ``moment``: those on the way down to it."""
    second = int(moment.timestamp())
    return sorted(((second >> level) | 1) << level for level in range(LEVELS))
