"""Projecting shares: what came through partitions is applied by itself, and the read models' positions follow.

A record of the events topic says which event is next, and in what order; the event itself is read from the log, since
records carry no personal data. What the topic lacks (contacts, the directory) is applied in the log's order by
whoever moves a model's position over it.

Invariant: rows and offset change in one transaction, and only by one who knew the offset: a projector that slept while
its partitions went to another changes nothing.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from time import monotonic
from typing import NamedTuple
from uuid import UUID

import psycopg

from adapters import projector
from adapters.contact_keys import AWAY, NO_KEYS, Ciphers, ContactKeys
from adapters.event_log import EventLog, EventRow, readable
from adapters.postgres import LIMITS, Role, connect
from adapters.projector import Projector, read_place
from adapters.shares import SHARED_MODELS, Share, TopicRefusedError, is_held, lock_shares, move_shares, read_shares
from domain.envelope import RecordedEvent, StreamType
from projections.read_model import ReadModel

log = logging.getLogger(__name__)


class Record(NamedTuple):
    """What is needed of a Kafka record."""

    offset: int
    position: int
    workspace_id: UUID
    conversation_id: UUID
    version: int


Batch = Mapping[int, Sequence[Record]]
"""Records by partition, in the order of their offsets."""


class FencedError(Exception):
    """Others have moved the shares meanwhile: begin anew from where they are."""


class _Events(dict[int, RecordedEvent]):
    """Events by position, opened and decoded when they are first asked for: one that cannot be halts who asks, and no
    other.
    """

    def __init__(self, log: EventLog, rows: Iterable[EventRow]) -> None:
        super().__init__()
        self._log = log
        self._rows = {row.position: row for row in rows}

    @cached_property
    def _ciphers(self) -> Ciphers | None:
        return self._log.ciphers(self._rows.values())

    def require(self, record: Record) -> None:
        """Raises `TopicRefusedError` where ``record`` is not of these events."""
        row = self._rows.get(record.position)
        if row is None or (row.workspace_id, row.stream_id, row.version) != record[2:]:
            msg = (
                f"the topic has version {record.version} of {record.conversation_id} in the workspace"
                f" {record.workspace_id} at position {record.position}, and the log has not: was the database restored,"
                " or is it another one?"
            )
            raise TopicRefusedError(msg)

    def __missing__(self, position: int) -> RecordedEvent:
        event = self[position] = readable(self._rows[position], self._ciphers)
        return event


class ShareProjector:
    """Applies what came through partitions to each read model. Used by one thread.

    Without ``keys``, a read model that is to show what is sealed halts.
    """

    def __init__(self, conninfo: str, topic_id: str, *, keys: ContactKeys | None = None) -> None:
        self._conninfo = conninfo
        self._topic_id = topic_id
        self._models = tuple(SHARED_MODELS.values())
        self._keys = keys
        self._log = EventLog(conninfo, application="conversas-projector", role=Role.PROJECTOR, keys=keys or NO_KEYS)
        self._connection: psycopg.Connection | None = None
        self._next: dict[tuple[str, int], int] = {}
        self._retry_at: dict[tuple[str, int], float] = {}

    def take(self, partitions: Iterable[int]) -> dict[int, int]:
        """From now on be about ``partitions`` and no others; for each the offset to read on from."""
        wanted = set(partitions)
        self._next, self._retry_at = {}, {}
        for model in self._models:
            shares = read_shares(self._connected(), model)
            if wanted - shares.keys():
                msg = f"'{model.name}' has no shares for the topic's partitions {sorted(wanted - shares.keys())}"
                raise TopicRefusedError(msg)
            self._next |= {(model.name, each): shares[each].next_offset for each in wanted}
        return {each: self._first(each, [model.name for model in self._models]) for each in wanted}

    def following(self, partition: int) -> int:
        """The offset to read on from, now: the first that a read model lacks which can be moved on."""
        names, now = [model.name for model in self._models], monotonic()
        self._retry_at = {key: at for key, at in self._retry_at.items() if key[1] != partition or at > now}
        moving = [name for name in names if (name, partition) not in self._retry_at]
        return self._first(partition, moving) if moving else max(self._next[name, partition] for name in names)

    def _first(self, partition: int, names: Iterable[str]) -> int:
        return min(self._next[name, partition] for name in names)

    def project(self, batch: Batch) -> None:
        """Apply to each read model what it lacks of ``batch``, which goes on from `following`.

        Raises `TopicRefusedError`; and `FencedError` or one of `AWAY`: then `take` the partitions again.
        """
        events = self._read(batch)
        for model in self._models:
            lacking = {
                partition: [record for record in records if record.offset >= self._next[model.name, partition]]
                for partition, records in batch.items()
                if (model.name, partition) not in self._retry_at
            }
            lacking = {partition: records for partition, records in lacking.items() if records}
            if lacking:
                self._apply_or_rest(model, lacking, events)

    def _read(self, batch: Batch) -> _Events:
        records = [record for records in batch.values() for record in records]
        events = _Events(self._log, self._log.rows_at([record.position for record in records]))
        for record in records:
            events.require(record)
        return events

    def _apply_or_rest(self, model: ReadModel, batch: Batch, events: Mapping[int, RecordedEvent]) -> None:
        """Apply ``batch``; a share that cannot digest an event stays before it, says so, and holds up no other."""
        try:
            self.apply(model, batch, events)
        except (*AWAY, FencedError, TopicRefusedError):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, the others go on
            log.warning("projection %s failed on a batch, trying event by event: %s", model.name, error)
        else:
            return
        for partition, records in batch.items():
            for record in records:
                try:
                    self.apply(model, {partition: [record]}, events)
                except (*AWAY, FencedError, TopicRefusedError):
                    raise
                except Exception as error:
                    log.exception("projection %s is halted in partition %d", model.name, partition)
                    self._rest(model, partition, record, error)
                    break

    def apply(self, model: ReadModel, batch: Batch, events: Mapping[int, RecordedEvent]) -> None:
        """Apply ``batch`` to ``model`` in one transaction, if nobody has moved its shares since they were taken."""
        connection = self._connected()
        moved = {
            partition: Share(records[-1].offset + 1, max(record.position for record in records))
            for partition, records in batch.items()
        }
        with connection.transaction():
            held = self._fence(connection, model, list(batch))
            # A broker's death may make a record appear again, and a rebuild may have been faster.
            due = {
                record.position
                for partition, records in batch.items()
                for record in records
                if record.position > held[partition]
            }
            if due:
                model.apply(connection, [events[position] for position in sorted(due)])
            move_shares(connection, model, moved)
        self._next |= {(model.name, partition): share.next_offset for partition, share in moved.items()}

    def _fence(self, connection: psycopg.Connection, model: ReadModel, partitions: list[int]) -> dict[int, int]:
        """Lock the shares of ``partitions`` as they were taken; up to which position each is applied."""
        shares = lock_shares(connection, model, partitions)
        position, topic_id = read_place(connection, model)
        if topic_id != self._topic_id:
            msg = f"'{model.name}' is projected from another topic now"
            raise TopicRefusedError(msg)
        expected = {partition: self._next[model.name, partition] for partition in partitions}
        if {each: share.next_offset for each, share in shares.items()} != expected:
            msg = f"others have moved '{model.name}' on in the partitions {partitions}"
            raise FencedError(msg)
        return {partition: max(share.position, position) for partition, share in shares.items()}

    def _rest(self, model: ReadModel, partition: int, record: Record, error: Exception) -> None:
        self._retry_at[model.name, partition] = monotonic() + projector.RETRY_SECONDS
        self._connected().execute(
            "update projection_positions set halted = %s where name = %s and position < %s",
            (f"{type(error).__name__} at the event of position {record.position}", model.name, record.position),
        )

    def _connected(self) -> psycopg.Connection:
        if self._connection is None or self._connection.closed:
            settings = LIMITS | {"synchronous_commit": "off", "role": Role.PROJECTOR.value}  # as the projector has it
            self._connection = connect(self._conninfo, settings, application="conversas-projector")
        return self._connection

    def discard_connection(self) -> None:
        """Go on with a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def close(self) -> None:
        """Give the connections back."""
        self.discard_connection()
        self._log.close()
        if self._keys is not None:
            self._keys.close()


class Keeper(Projector):
    """Moves the positions of shared read models on, over what their shares hold; what comes through no partition, and
    the other read models, it applies itself.
    """

    def _apply_after(
        self, connection: psycopg.Connection, model: ReadModel, position: int, limit: int, *, is_shared: bool
    ) -> int:
        """Apply what follows on ``position``, up to the first event that has not come through its partition."""
        if not is_shared:
            return super()._apply_after(connection, model, position, limit, is_shared=is_shared)
        shares = read_shares(connection, model)
        with self._reading:
            places = self._log.places(position, limit)
        others, reached = [], position
        for each, stream_type, stream_id in places:
            if stream_type != StreamType.CONVERSATION:
                others.append(each)
            elif not is_held(stream_type, stream_id, each, shares):
                break
            reached = each
        if others:
            with self._reading:
                events = self._opened(self._log.rows_at(others))
            SHARED_MODELS[model.name].apply(connection, events)
        return reached

    def lags(self) -> tuple[int, int]:
        """The lowest position of its models, and the head of the log."""
        return min(self._positions.values(), default=0), self._log.head()
