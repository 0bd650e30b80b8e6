"""Up to where the log is published, and by how many publishers: found, or refused.

Invariant: publishing goes on only where the last committed position record is of this Kafka, this database and this
topic; whatever would lose or repeat events is refused. Nothing here writes a record.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from adapters.kafka_topics import StartRefusedError, TopicSettings, ensure_topics

FIRST_LOOK_BACK = 1_000  # offsets; many times what lies behind the last position record


@dataclass(frozen=True, slots=True)
class PublisherSettings(TopicSettings):
    """Where and how to publish. Times are in seconds."""

    publisher: int = 1
    """Which of the publishers this is, from 1."""
    publishers: int = 1
    """Among how many the log is shared, by the partition of the conversation."""
    schema_base: str = "urn:conversas:schema:"
    """What stands before an event's topic in ``ce_dataschema``."""
    schema_suffix: str = ""
    """What stands behind it."""
    cached_states: int = 20_000
    """States of conversations kept in memory, about 2 kB each."""
    max_batch: int = 4_000
    """Events of the log per Kafka transaction."""
    poll_seconds: float = 0.25
    delivery_timeout_seconds: float = 20
    transaction_timeout_seconds: float = 60
    """After which the broker itself aborts what a dead publisher left open."""
    deadline_seconds: float = 45
    """For one transaction or one step of the start; then the watchdog ends the process."""

    @property
    def transactional_id(self) -> str:
        """Whoever starts with the same one fences its predecessor."""
        return self.transactional_ids[self.publisher - 1]

    @property
    def transactional_ids(self) -> tuple[str, ...]:
        """Of all publishers among whom the log is shared."""
        return self.transactional_ids_of(self.publishers)

    def transactional_ids_of(self, publishers: int) -> tuple[str, ...]:
        """Of that many publishers."""
        only = f"{self.topic_prefix}.publisher"
        if publishers == 1:
            return (only,)
        return tuple(f"{only}-{number}-of-{publishers}" for number in range(1, publishers + 1))


@dataclass(frozen=True, slots=True)
class Position:
    """A record in the positions topic: how far which log is published to which topic, by one of its publishers."""

    position: int
    cluster_id: str
    database_id: str
    topic: str
    topic_id: str
    partition_count: int
    publishers: int = 1
    """Among how many the log was shared."""
    state_key: str = "conversation"
    """What the keys of states name; records of the time when it was the conversation alone do not say so."""

    def value(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, value: bytes) -> "Position":
        """From JSON; raises `StartRefusedError` for anything else."""
        try:
            return cls(**json.loads(value))
        except (TypeError, ValueError) as error:
            message = f"the last record of the positions topic cannot be read: {value[:200]!r}"
            raise StartRefusedError(message) from error


def require_place(settings: PublisherSettings) -> None:
    """Raises `StartRefusedError` where there is nothing for this publisher to publish."""
    if not 1 <= settings.publisher <= settings.publishers:
        message = f"there is no publisher {settings.publisher} of {settings.publishers}"
        raise StartRefusedError(message)
    if settings.publishers > settings.partitions:
        message = f"{settings.publishers} publishers cannot share {settings.partitions} partitions"
        raise StartRefusedError(message)


def prepare_topics(settings: PublisherSettings, database_id: str) -> Position:
    """Make the topics that are missing; the position record of this cluster, database and topic, at position 0."""
    found = ensure_topics(settings)
    return Position(
        position=0,
        cluster_id=found.cluster_id,
        database_id=database_id,
        topic=settings.events_topic,
        topic_id=found.topic_ids[settings.events_topic],
        partition_count=settings.partitions,
        publishers=settings.publishers,
        state_key="workspace/conversation",
    )


def last_positions(settings: PublisherSettings, here: Position) -> dict[str, Position]:
    """The last committed position records of all that share the log, by transactional id; empty: nothing was published.

    Those who share it now may not be those who did so last: `Position.publishers` tells. Fence a predecessor first.
    """
    partition = TopicPartition(settings.positions_topic, 0)
    events = [TopicPartition(here.topic, number) for number in range(here.partition_count)]
    with _consumer(settings, "read_committed") as committed, _consumer(settings, "read_uncommitted") as everything:
        end = everything.end_offsets([partition])[partition]
        # Up to here a transaction may still be open, and the last position may be in it.
        while committed.end_offsets([partition])[partition] < end:
            time.sleep(0.1)
        committed.assign([partition])
        found = _search_backwards(committed, partition, end, settings)
        if not found and any(everything.end_offsets(events).values()):
            message = (
                f"{settings.positions_topic} holds no position while {here.topic} is not empty: publishing "
                "from the beginning would repeat its events"
            )
            raise StartRefusedError(message)
        return found


@contextlib.contextmanager
def _consumer(settings: PublisherSettings, isolation_level: str) -> Iterator[Any]:
    consumer = KafkaConsumer(
        isolation_level=isolation_level, enable_auto_commit=False, metrics_enabled=False, **settings.client
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _search_backwards(
    consumer: Any, partition: TopicPartition, end: int, settings: PublisherSettings
) -> dict[str, Position]:
    """The last record before offset ``end`` of each publisher that is named by the very last record.

    Markers and records of earlier publishers lie between.
    """
    begin = consumer.beginning_offsets([partition])[partition]
    look_back, upper = FIRST_LOOK_BACK, end
    found: dict[str, Position] = {}
    wanted: set[str] = set()
    while upper > begin:
        lower = max(begin, upper - look_back)
        last: dict[str, bytes] = {}
        for record in _read(consumer, partition, lower, upper):
            last.pop(record.key.decode(), None)
            last[record.key.decode()] = record.value
        parsed = {key: Position.parse(value) for key, value in reversed(last.items()) if not wanted or key in wanted}
        found = parsed | found
        if found and not wanted:
            wanted = set(settings.transactional_ids_of(next(iter(found.values())).publishers))
            found = {key: position for key, position in found.items() if key in wanted}
        if wanted and found.keys() == wanted:
            return found
        upper, look_back = lower, look_back * 10
    if wanted:
        message = f"{settings.positions_topic} lacks the position of {', '.join(sorted(wanted - found.keys()))}"
        raise StartRefusedError(message)
    return found


def _read(consumer: Any, partition: TopicPartition, lower: int, upper: int) -> Iterator[Any]:
    """The records with a key and a value from offset ``lower`` up to ``upper``."""
    consumer.seek(partition, lower)
    while consumer.position(partition) < upper:
        for record in consumer.poll(timeout_ms=1_000).get(partition, ()):
            if record.key is not None and record.value is not None and record.offset < upper:
                yield record


def require_continuation(last: Position, here: Position, head: int) -> None:
    """Raises `StartRefusedError` where going on after ``last``, with a log up to ``head``, would lose or repeat."""
    for name, recorded, actual in (
        ("Kafka cluster", last.cluster_id, here.cluster_id),
        ("database", last.database_id, here.database_id),
        ("topic", last.topic, here.topic),
        ("topic id (was it deleted?)", last.topic_id, here.topic_id),
        ("partition count", last.partition_count, here.partition_count),
        ("key of states", last.state_key, here.state_key),
    ):
        if recorded != actual:
            message = (
                f"the position record is of another {name}: {recorded}, and this is {actual}; to publish all anew, to "
                "new topics, set another CONVERSAS_KAFKA_TOPIC_PREFIX"
            )
            raise StartRefusedError(message)
    if last.position > head:
        message = (
            f"published up to position {last.position}, but the log ends at {head}: was the database restored? "
            "Consumers have events that the log no longer has"
        )
        raise StartRefusedError(message)
