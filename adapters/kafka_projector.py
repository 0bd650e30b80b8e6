"""Projecting from Kafka: any number of processes share the partitions of the events topic as one consumer group.

The group only says who reads what; where to read on from, PostgreSQL says, beside the rows. So it does not matter what
the group believes of a process that was killed, or that slept and woke up.

Invariant: a partition is read from the offset that stands with the rows, or not at all.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any
from uuid import UUID

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError

from adapters.contact_keys import AWAY, ContactKeys
from adapters.kafka_topics import TopicSettings, find_events_topic
from adapters.postgres import Role, connect
from adapters.projector import BATCH_SIZE, READ_MODELS, Projector
from adapters.share_projector import FencedError, Keeper, Record, ShareProjector
from adapters.shares import SHARED_MODELS, TopicRefusedError, claim
from projections.read_model import ReadModel

log = logging.getLogger(__name__)

POLL_MILLISECONDS = 250
RECORDS_AT_ONCE = 500
"""In one transaction; each may take a lock on a contact, of which a server has some thousands."""
SESSION_SECONDS = 10.0
LONGEST_BATCH_SECONDS = 30
"""After which the others do not wait for it any more when the partitions are dealt out anew."""
CLOSE_MILLISECONDS = 5_000
PATIENCE_SECONDS = 10.0
"""After which it says that nothing comes."""


class KafkaProjector:
    """One of any number of processes that project from Kafka. Used by one thread, beside which it starts another.

    ``keys`` gives the contacts' keys over a connection of their own, as each of those who use them needs it.
    """

    def __init__(
        self,
        conninfo: str,
        settings: TopicSettings,
        keys: Callable[[], ContactKeys],
        *,
        session_seconds: float = SESSION_SECONDS,
    ) -> None:
        self._conninfo = conninfo
        self._keys = keys
        self._settings = settings
        self._session_seconds = session_seconds
        self._topic = settings.events_topic
        self._shares: ShareProjector | None = None
        self._reads_at: dict[int, int] = {}
        self._is_assigned_anew = False
        self._moved: tuple[int, float] = (-1, 0.0)

    def run(self, stop: threading.Event) -> None:
        """Project until ``stop`` is set.

        Raises `StartRefusedError` or `TopicRefusedError` where a person must look.
        """
        others = threading.Thread(target=self._project_the_rest, args=(stop,), name="projector", daemon=True)
        others.start()
        try:
            while not stop.is_set() and others.is_alive():
                try:
                    self._run(stop, others)
                except KafkaError as error:
                    log.warning("Kafka at %s: %r; trying again", self._settings.bootstrap_servers, error)
                    stop.wait(1.0)
                except AWAY as error:
                    log.warning("connection lost, trying again: %s", error)
                    stop.wait(1.0)
            if not stop.is_set():
                message = "the projector of what is not on the topic has ended; see above"
                raise RuntimeError(message)
        finally:
            stop.set()
            others.join()

    def _run(self, stop: threading.Event, others: threading.Thread) -> None:
        topic_id = self._claim()
        if self._published() is None:
            log.warning("no publisher is live on %s, so nothing new comes: conversas publish", self._topic)
        with (
            contextlib.closing(self._keeper(tuple(SHARED_MODELS.values()))) as keeper,
            contextlib.closing(self._share_projector(topic_id)) as self._shares,
            self._consumer() as consumer,
        ):
            self._follow(consumer, keeper, stop, others)

    def _share_projector(self, topic_id: str) -> ShareProjector:
        return ShareProjector(self._conninfo, topic_id, keys=self._keys())

    def _keeper(self, models: Sequence[ReadModel]) -> Keeper:
        return Keeper(self._conninfo, models, keys=self._keys())

    def _claim(self) -> str:
        """Divide the read models into the topic's shares, where they are not; the topic's id."""
        topic_id, partitions = find_events_topic(self._settings)
        settings = {"role": Role.PROJECTOR.value}
        with connect(self._conninfo, settings, application="conversas-projector") as connection:
            for model in SHARED_MODELS.values():
                while claim(connection, model, topic_id, partitions):
                    with contextlib.closing(Projector(self._conninfo, [model], keys=self._keys())) as projector:
                        projector.advance(model, BATCH_SIZE)
        return topic_id

    def _published(self) -> int | None:
        """Up to which position all publishers of the topic have published, as far as they have said; None: none is."""
        query = "select min(publisher_position) from publishers where topic = %s and is_live"
        with connect(self._conninfo, {"role": Role.PROJECTOR.value}) as connection:
            row: tuple[int | None] | None = connection.execute(query, (self._topic,)).fetchone()
            return row[0] if row else None

    def _project_the_rest(self, stop: threading.Event) -> None:
        """What the topic lacks, whether Kafka can be reached or not: rights must not wait for it."""
        models = [SHARED_MODELS.get(model.name, model) for model in READ_MODELS]
        with contextlib.closing(self._keeper(models)) as keeper:
            keeper.run(stop)

    @contextlib.contextmanager
    def _consumer(self) -> Any:
        consumer = KafkaConsumer(
            group_id=f"{self._settings.topic_prefix}.projections",
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_poll_records=RECORDS_AT_ONCE,
            session_timeout_ms=int(self._session_seconds * 1_000),
            heartbeat_interval_ms=int(self._session_seconds * 1_000 / 4),
            max_poll_interval_ms=LONGEST_BATCH_SECONDS * 1_000,
            metrics_enabled=False,
            **self._settings.client,
        )
        try:
            consumer.subscribe([self._topic], listener=_Listener(self, consumer))
            yield consumer
        finally:
            with contextlib.suppress(KafkaError):
                consumer.close(timeout_ms=CLOSE_MILLISECONDS)

    def assigned(self) -> None:
        """The group has given us other partitions."""
        self._is_assigned_anew = True

    def _follow(self, consumer: Any, keeper: Keeper, stop: threading.Event, others: threading.Thread) -> None:
        """Project what comes; whatever goes wrong with the database or another projector, take the shares anew."""
        assert self._shares is not None
        self._is_assigned_anew = True
        while not stop.is_set() and others.is_alive():
            records = self._poll(consumer)
            try:
                if self._is_assigned_anew:  # nothing was read of them, for they are paused
                    self._take(consumer)
                    continue
                if records:
                    self._shares.project(records)
                self._read_on(consumer)
                keeper.advance_all()
                self._say_if_nothing_comes(keeper)
            except FencedError as error:
                log.warning("%s; going on from where they are", error)
                self._is_assigned_anew = True
            except AWAY as error:
                log.warning("connection lost, trying again: %s", error)
                self._shares.discard_connection()
                keeper.discard_connections()
                self._is_assigned_anew = True
                stop.wait(1.0)

    def _poll(self, consumer: Any) -> dict[int, list[Record]]:
        try:
            polled = consumer.poll(timeout_ms=POLL_MILLISECONDS)
        except OffsetOutOfRangeError as error:
            message = f"records of {self._topic} that were not projected are gone from it: {error}"
            raise TopicRefusedError(message) from error
        if self._is_assigned_anew:
            return {}
        found = {partition.partition: [_record(each) for each in records] for partition, records in polled.items()}
        for partition, records in found.items():
            self._reads_at[partition] = records[-1].offset + 1
        return found

    def _take(self, consumer: Any) -> None:
        """Read the assigned partitions on from where their shares are."""
        assert self._shares is not None
        self._is_assigned_anew = False
        partitions = consumer.assignment()
        try:
            self._reads_at = self._shares.take(each.partition for each in partitions)
        except BaseException:
            self._is_assigned_anew = True
            raise
        for each in partitions:
            consumer.seek(each, self._reads_at[each.partition])
        consumer.resume(*partitions)
        if partitions:
            log.info("projecting the partitions %s of %s", sorted(self._reads_at), self._topic)

    def _read_on(self, consumer: Any) -> None:
        """Go back to what a halted read model lacks, once it is to be tried again."""
        assert self._shares is not None
        for partition, at in self._reads_at.items():
            following = self._shares.following(partition)
            if following < at:
                consumer.seek(TopicPartition(self._topic, partition), following)
                self._reads_at[partition] = following

    def _say_if_nothing_comes(self, keeper: Keeper) -> None:
        position, head = keeper.lags()
        if position >= head or position != self._moved[0]:
            self._moved = (position, monotonic() + PATIENCE_SECONDS)
        elif monotonic() > self._moved[1]:
            self._moved = (position, monotonic() + 3 * PATIENCE_SECONDS)
            published, ours = self._published(), ", ".join(map(str, sorted(self._reads_at)))
            log.warning(
                "the log goes up to position %d, but what follows on %d has not come through %s: %s",
                head,
                position,
                self._topic,
                "no publisher is live, conversas publish"
                if published is None
                else f"others are late (published up to {published}; the partitions read here: {ours or 'none'})",
            )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """Lets nothing be read of partitions that were just given to us, until it is known where to read on."""

    def __init__(self, projector: KafkaProjector, consumer: Any) -> None:
        self._projector = projector
        self._consumer = consumer

    def on_partitions_revoked(self, _: Iterable[TopicPartition]) -> None:
        """Nothing is under way: they are revoked between two batches.

        Whoever joins anew because the library has learned of other partitions must want to until it is done. Of itself
        the library (3.0.12) wants to no more once it has dealt them out: where `poll` ends before the answer to that
        comes, nobody takes it, and it is left without partitions and heartbeats for good. Java had this as KAFKA-9815.
        """
        self._consumer._coordinator.request_rejoin()  # noqa: SLF001  # there is no public way
        self._projector.assigned()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Hold them until the loop has looked up their offsets."""
        for each in assigned:
            self._consumer.seek(each, 0)
        self._consumer.pause(*assigned)
        self._projector.assigned()


def _record(record: Any) -> Record:
    headers = dict(record.headers)
    return Record(
        offset=record.offset,
        position=int(headers["ce_position"]),
        workspace_id=UUID(headers["ce_source"].decode().removeprefix("/workspaces/")),
        conversation_id=UUID(record.key.decode()),
        version=int(headers["ce_sequence"]),
    )
