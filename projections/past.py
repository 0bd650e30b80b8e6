"""How rows of the listing stood before: a version for each moment at which somebody may ask. Part of the listing.

A row that changes leaves the version that it was, with the time from when to when it held. What names a person is not
among its columns: it is read from the conversation's row of now, so that there is nothing here to erase.

The versions that held at a moment are found by the fork node of a relational interval tree (Kriegel et al., VLDB 2000):
a number that an interval has once and for all, and of which the intervals that hold a moment can have few. Tens of
thousands hold at once, so what is mostly filtered and sorted by stands in that index: it alone says which ones are
wanted, and only those are looked at. Without a filter, where more held, the first ones in the order of latest activity
are met by the other index sooner.

Invariant: a version is never changed; those of a conversation and its row in the listing follow each other without a
gap, so that at any moment exactly one of them holds.
"""

from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import psycopg

from projections.sql import Sql

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
    include (id, channel, sector_id, agent_id, priority, opened_at, last_activity_at, finalized_at);
-- What few have, of which too much may be said to stand in an index.
create index on past (workspace_id, node, until, recorded_at) where labels <> '{}';
create index on past (workspace_id, node, until, recorded_at) where unanswered_since is not null;
create index on past (workspace_id, last_activity_at, id);
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


def held_at(moment: datetime) -> Sql:
    """As a table: the versions that held at ``moment``. Where an index has all that is asked, no row is looked at.

    They are at the nodes on the way down to it: at those before it they last beyond it, at those after it they began
    before it. Each part of that follows the index.
    """
    part = "select * from past where node = any(%s::bigint[]) and recorded_at <= %s and until > %s"
    return f"({part} union all {part})", [value for nodes in _way(moment) for value in (nodes, moment, moment)]


_KEY = "workspace_id, node, status, until, recorded_at, id"
"""Columns of the first index by which a version is found again."""
LATEST_FIRST = "last_activity_at desc, id desc"
_NEAR = 300
"""So many versions are passed on the way to those that held."""


def in_order(moment: datetime, columns: Sql, found: Sql, order: str, limit: int | None) -> Sql:
    """``columns`` of the first versions that held at ``moment`` and are ``found``, in ``order``.

    They are looked for among those that held, never among all that there are.
    """
    if limit is None:
        held, values = held_at(moment)
        text = f"select {columns[0]} from {held} listing where {found[0]} order by {order}"
        return text, [*columns[1], *values, *found[1]]
    first, values = _held(moment, found)
    return f"with first as materialized ({first} order by {order} limit %s) {_rows(columns[0])} order by {order}", [
        *(*values, limit),
        *columns[1],
    ]


def latest_active(moment: datetime, columns: Sql, found: Sql, begins: Sql, limit: int) -> Sql:
    """As `in_order`, in that of latest activity, from where ``begins`` says: mostly a page is met at once there."""
    first, values = _held(moment, found)
    near = f"select * from past where {begins[0]} order by {LATEST_FIRST} limit {_NEAR}"
    text = (
        f"with near as materialized (select {_KEY} from ({near}) listing"
        f" where recorded_at <= %s and until > %s and {found[0]} order by {LATEST_FIRST} limit %s),"
        " enough as materialized (select count(*) >= %s as is_so from near),"
        " first as materialized (select * from near where (select is_so from enough) union all"
        f" ({first} and not (select is_so from enough) order by {LATEST_FIRST} limit %s))"
        f" {_rows(columns[0])} order by {LATEST_FIRST}"
    )
    return text, [*begins[1], moment, moment, *found[1], limit, limit, *values, limit, *columns[1]]


def _held(moment: datetime, found: Sql) -> Sql:
    """The keys of all that held and are ``found``."""
    held, values = held_at(moment)
    # With an offset, or PostgreSQL, which cannot tell how many are found, might look for them among all versions.
    theirs = f"select * from {held} listing where {found[0]} offset 0"
    return f"select {_KEY} from ({theirs}) listing where true", [*values, *found[1]]


def _rows(columns: str) -> str:
    return f"select {columns} from first join past listing using ({_KEY})"


def _way(moment: datetime) -> tuple[list[int], list[int]]:
    """The nodes on the way down to ``moment``: those before it, and those after it."""
    second = int(moment.timestamp())
    way = [((second >> level) | 1) << level for level in range(LEVELS)]
    return [node for node in way if node <= second], [node for node in way if node > second]
