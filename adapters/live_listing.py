"""Telling what changed in the listing: which rows came into a filter and scope, changed within, or left.

A row leaves where it was there at any moment since it was told of last, because a page may have shown it just then. So
the row as it was is needed too: as this process saw it last, else taken back from the row as it is by what its events
say of before.

Invariant: of a conversation that was not and is not within a caller's scope, nothing is told.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

import orjson
import psycopg
from cachetools import LRUCache
from psycopg.rows import dict_row

from adapters.codec import decode
from domain.envelope import StreamType
from domain.events import (
    ContactReassigned,
    Event,
    LabelAdded,
    LabelRemoved,
    Owner,
    PriorityChanged,
)
from domain.permissions import Caller, Permission, may
from projections.listing import PRIORITY_RANKS, SHOWN_COLUMNS
from projections.scopes import owner_of, shown

ROWS_REMEMBERED = 5_000
"""About 2 kB each."""
MOST_OF_A_CONTACT = 1_000
"""Conversations of one contact whose change is told row by row."""
TAKEN_BACK = frozenset(
    (
        *("status", "sector", "agent", "bot", "label", "priority", "contact"),
        *("channel", "protocol", "opened", "opened_by", "subject"),
    )
)
"""Fields of filters that are certain in a row taken back: what events say of before, and what never changes."""

_CHANGES = """
select workspace_id, stream_type, stream_id, version, topic, data from events
where position > %s and position <= %s and workspace_id = any(%s::uuid[]) and stream_type = any(%s)
order by position"""
_OF_CONTACTS = "select id from listing where workspace_id = %s and contact_id = any(%s) limit %s"
_ROWS = f"""
select {", ".join(f"listing.{column}" for column in SHOWN_COLUMNS)}, row_to_json(listing)::text as image
from listing where workspace_id = %s and id = any(%s)"""
_STANDINGS = """
select stream_id, version, status, sector_id, agent_id, bot from unnest(%s::uuid[], %s::bigint[]) as wanted (i, v)
join history on workspace_id = %s and stream_id = i and version = v"""


class Told(Protocol):
    """Somebody who can be told something."""

    def tell(self, message: bytes) -> None:
        """Leave ``message`` for them."""


Subscriber = TypeVar("Subscriber", bound=Told)


@dataclass(slots=True, eq=False)
class ListingTopic(Generic[Subscriber]):
    """Streams with the same workspace, scope and filter: evaluated once for all of them."""

    caller: Caller
    """One of them; what they may see is the same for all."""
    where: Callable[[], tuple[str, list[Any]]]
    """The condition on rows of the listing, scope included, as of now."""
    fields: frozenset[str]
    """What the filter looks at."""
    subscribers: set[Subscriber] = field(default_factory=set)

    def tell(self, message: bytes) -> None:
        """Tell all of them."""
        for subscriber in self.subscribers:
            subscriber.tell(message)


@dataclass(frozen=True, slots=True)
class Change:
    """An event that changed the listing: of a conversation or a contact."""

    stream_type: StreamType
    stream_id: UUID
    version: int
    event: Event


@dataclass(frozen=True, slots=True)
class _Seen:
    """A row as it was; ``image`` is the whole row as JSON."""

    image: str
    owner: Owner
    version: int
    is_certain: bool = True


async def changed_between(
    connection: psycopg.AsyncConnection[Any], start: int, end: int, workspaces: Sequence[UUID]
) -> dict[UUID, list[Change]]:
    """What changed the listing of ``workspaces`` after position ``start``, up to ``end``."""
    types = [StreamType.CONVERSATION.value, StreamType.CONTACT.value]
    found: dict[UUID, list[Change]] = {}
    cursor = await connection.execute(_CHANGES, (start, end, list(workspaces), types))
    async for workspace_id, type_, stream_id, version, topic, data in cursor:
        change = Change(StreamType(type_), stream_id, version, decode(topic, data))
        found.setdefault(workspace_id, []).append(change)
    return found


class Rows:
    """The rows that changed lately, as they were seen last."""

    def __init__(self) -> None:
        self._seen: LRUCache[tuple[UUID, UUID], _Seen] = LRUCache(maxsize=ROWS_REMEMBERED)
        self._followed: frozenset[UUID] = frozenset()

    def clear(self) -> None:
        """Forget all: changes were missed."""
        self._seen.clear()

    def keep_only(self, workspaces: AbstractSet[UUID]) -> None:
        """Forget the rows of other workspaces, whose changes nobody follows."""
        if not self._followed <= workspaces:
            for key in [key for key in self._seen if key[0] not in workspaces]:
                del self._seen[key]
        self._followed = frozenset(workspaces)

    async def tell(
        self,
        connection: psycopg.AsyncConnection[Any],
        workspace_id: UUID,
        changes: Sequence[Change],
        topics: Iterable[ListingTopic[Any]],
    ) -> bool:
        """Tell ``topics`` what ``changes`` did to the rows that they show; False where they must start anew.

        The connection is in a transaction that sees the workspace, all statements of it at the same moment.
        """
        ids = {change.stream_id for change in changes if change.stream_type is StreamType.CONVERSATION}
        people = {change.stream_id for change in changes if change.stream_type is StreamType.CONTACT}
        if people:
            values = (workspace_id, list(people), MOST_OF_A_CONTACT + 1)
            theirs = await (await connection.execute(_OF_CONTACTS, values)).fetchall()
            if len(theirs) > MOST_OF_A_CONTACT:
                self.clear()
                return False
            ids |= {id_ for (id_,) in theirs}
        if not ids:
            return True
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute(_ROWS, (workspace_id, list(ids)))
            rows = {row["id"]: row async for row in cursor}
        before = await self._before(connection, workspace_id, rows, changes)
        if before is not None:
            for topic in topics:
                await _tell(topic, connection, rows, before)
                await asyncio.sleep(0)
        for id_, row in rows.items():
            self._seen[workspace_id, id_] = _Seen(row["image"], owner_of(row), row["version"])
        return before is not None

    async def _before(
        self,
        connection: psycopg.AsyncConnection[Any],
        workspace_id: UUID,
        rows: Mapping[UUID, Mapping[str, Any]],
        changes: Sequence[Change],
    ) -> dict[UUID, list[_Seen]] | None:
        """Each row as it was before each of its changes; None where that cannot be told."""
        changed: dict[UUID, list[Change]] = {}
        for change in changes:
            changed.setdefault(change.stream_id, []).append(change)
        found: dict[UUID, list[_Seen]] = {}
        unseen: list[tuple[UUID, int]] = []
        for id_, row in rows.items():
            seen = self._seen.get((workspace_id, id_))
            found[id_] = [seen] if seen is not None else []
            if id_ in changed:
                versions = range(max(changed[id_][0].version - 1, 1), row["version"])
                unseen += [(id_, each) for each in versions if seen is None or each != seen.version]
            elif seen is None:  # only its contact did
                found[id_].append(_Seen(row["image"], owner_of(row), row["version"], is_certain=False))
        standings = await _standings(connection, workspace_id, unseen)
        if len(standings) < len(unseen):  # the history has not got there yet
            return None
        for (id_, version), standing in standings.items():
            later = [change for change in changed[id_] if change.version > version]
            image = orjson.loads(rows[id_]["image"]) | standing | _taken_back(later)
            found[id_].append(_Seen(orjson.dumps(image).decode(), owner_of(standing), version, is_certain=False))
        return found


async def _standings(
    connection: psycopg.AsyncConnection[Any], workspace_id: UUID, unseen: Sequence[tuple[UUID, int]]
) -> dict[tuple[UUID, int], dict[str, Any]]:
    """Status and owner of each conversation at each of its versions that is asked for."""
    if not unseen:
        return {}
    ids, versions = zip(*unseen, strict=True)
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_STANDINGS, (list(ids), list(versions), workspace_id))
        return {(row.pop("stream_id"), row.pop("version")): row async for row in cursor}


def _taken_back(changes: Sequence[Change]) -> dict[str, Any]:
    """Columns as they were before ``changes``, as far as the events say so."""
    back: dict[str, Any] = {}
    for change in changes:
        match change.event:
            case LabelAdded(before=labels) | LabelRemoved(before=labels):
                back.setdefault("labels", labels)
            case PriorityChanged(before=priority):
                back.setdefault("priority", PRIORITY_RANKS[priority])
            case ContactReassigned(before=contact_id):
                back.setdefault("contact_id", contact_id)
            case _:
                pass
    return back


async def _tell(
    topic: ListingTopic[Any],
    connection: psycopg.AsyncConnection[Any],
    rows: Mapping[UUID, dict[str, Any]],
    before: Mapping[UUID, Sequence[_Seen]],
) -> None:
    """Tell the streams of ``topic`` which of ``rows`` they show now, and which they show no longer."""
    where, values = topic.where()
    images = f"[{','.join(was.image for each in before.values() for was in each)}]"
    cursor = await connection.execute(
        f"select id, true from listing where id = any(%s) and {where} union all"
        f" select id, false from json_populate_recordset(null::listing, %s) as listing where {where}",
        [list(rows), *values, images, *values],
    )
    fitting = {True: set[UUID](), False: set[UUID]()}
    for id_, is_now in await cursor.fetchall():
        fitting[is_now].add(id_)
    for id_, row in rows.items():
        if id_ in fitting[True]:
            view = shown({key: value for key, value in row.items() if key != "image"}, topic.caller)
            topic.tell(told({"id": id_, "change": "upsert", "row": view}))
        elif id_ in fitting[False] or any(_may_have_fitted(topic, was) for was in before[id_]):
            topic.tell(told({"id": id_, "change": "leave"}))


def _may_have_fitted(topic: ListingTopic[Any], was: _Seen) -> bool:
    """Whether the row may have been shown although what is known of it as it was does not fit."""
    if was.is_certain or topic.fields <= TAKEN_BACK:
        return False
    return may(topic.caller, Permission.VIEW, was.owner)


def told(change: dict[str, Any]) -> bytes:
    """A change as a server-sent event."""
    return b"event: change\ndata: %b\n\n" % orjson.dumps(change)
