"""Shares of a read model: the conversations of one partition of the events topic each, projected side by side.

Invariant: of the events after the model's position, its rows hold exactly those of conversations up to the position of
their share. Who holds the lock on the model's position and on all of its shares is alone with its rows; who holds that
of some shares, with the rows of their conversations.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

import psycopg

from domain.envelope import RecordedEvent, StreamType
from projections.episodes import Episodes
from projections.history import History
from projections.read_model import ReadModel
from projections.shared_listing import SharedListing

SHARED_MODELS: dict[str, ReadModel] = {model.name: model for model in (History(), Episodes(), SharedListing())}
"""The read models of which each conversation's part depends on its own events; the history first, which streams of the
listing look things up in."""


class Share(NamedTuple):
    """How far a share is."""

    next_offset: int
    """Of the first record of the partition that was not projected."""
    position: int
    """Of the last event that came through the partition; 0: none did."""


def lock_shares(
    connection: psycopg.Connection, model: ReadModel, partitions: Sequence[int] | None = None
) -> dict[int, Share]:
    """The shares of ``model``, or those of ``partitions``, which nobody else can move until this transaction ends."""
    chosen = "" if partitions is None else "and partition = any(%s) "
    rows = connection.execute(
        "select partition, next_offset, position from projection_shares"
        f" where name = %s {chosen}order by partition for update",  # always in this order: nobody deadlocks
        (model.name, *([] if partitions is None else [list(partitions)])),
        prepare=True,
    )
    return {partition: Share(*share) for partition, *share in rows}


def read_shares(connection: psycopg.Connection, model: ReadModel) -> dict[int, Share]:
    """The shares of ``model`` as they were moved last; they may move on."""
    rows = connection.execute(
        "select partition, next_offset, position from projection_shares where name = %s", (model.name,), prepare=True
    )
    return {partition: Share(*share) for partition, *share in rows}


def move_shares(connection: psycopg.Connection, model: ReadModel, shares: Mapping[int, Share]) -> None:
    """Note how far the ``shares``, which this transaction has locked, are now."""
    connection.execute(
        "update projection_shares share set next_offset = moved.o, position = greatest(share.position, moved.p)"
        " from unnest(%s::int[], %s::bigint[], %s::bigint[]) as moved (n, o, p)"
        " where name = %s and partition = moved.n",
        (
            list(shares),
            [share.next_offset for share in shares.values()],
            [s.position for s in shares.values()],
            model.name,
        ),
        prepare=True,
    )


def claim(connection: psycopg.Connection, model: ReadModel, topic_id: str, partitions: int) -> int:
    """Divide ``model`` into the shares of a topic, from its first record on; 0: done, or it was so already.

    Else it was divided into those of another topic, and nothing is changed: the position is told that it must have
    reached before, since that topic's records cannot be told from this one's by their offsets.
    """
    with connection.transaction():
        row = connection.execute(
            "select position, topic_id from projection_positions where name = %s for update", (model.name,)
        ).fetchone()
        assert row is not None, "its tables are made at every start"
        position, former = row
        shares = lock_shares(connection, model)
        if former == topic_id:
            if len(shares) != partitions:
                msg = f"the events topic had {len(shares)} partitions and now has {partitions}: their order is lost"
                raise TopicRefusedError(msg)
            return 0
        foremost = max((share.position for share in shares.values()), default=0)
        if foremost > position:
            return foremost
        connection.execute("delete from projection_shares where name = %s", (model.name,))
        connection.execute(
            "insert into projection_shares select %s, partition, 0, 0 from generate_series(0, %s) partition",
            (model.name, partitions - 1),
        )
        connection.execute("update projection_positions set topic_id = %s where name = %s", (topic_id, model.name))
    return 0


class TopicRefusedError(Exception):
    """What the topic has, or what is left of it, is not what is to be projected; a person must look, the message says
    why.
    """


def not_held(events: Sequence[RecordedEvent], shares: Mapping[int, Share]) -> list[RecordedEvent]:
    """Those of ``events`` that no share has applied."""
    return [each for each in events if not is_held(each.stream.type, each.stream.id, each.position, shares)]


def held(events: Sequence[RecordedEvent], shares: Mapping[int, Share]) -> list[RecordedEvent]:
    """The others."""
    return [each for each in events if is_held(each.stream.type, each.stream.id, each.position, shares)]


def is_held(type_: str, stream_id: UUID, position: int, shares: Mapping[int, Share]) -> bool:
    """Whether the share of this stream has applied its event of ``position``."""
    return type_ == StreamType.CONVERSATION and position <= shares[_partition(stream_id, len(shares))].position


@lru_cache(65_536)
def _partition(conversation_id: UUID, partitions: int) -> int:
    from adapters.cloud_events import partition_of  # noqa: PLC0415  # Kafka's client is slow to load, and few need it

    return partition_of(str(conversation_id).encode(), partitions)
