"""The topics that the log is published to, and up to where it is published there: found, or refused.

Invariant: publishing goes on only where the last committed position record is of this Kafka, this database and this
topic; whatever would lose or repeat events is refused. Nothing here writes a record.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import TopicAlreadyExistsError

log = logging.getLogger(__name__)

FIRST_LOOK_BACK = 1_000  # offsets; many times what lies behind the last position record
# A new transaction meets CONCURRENT_TRANSACTIONS while the markers of the last are written; kafka-python sleeps this
# long then (its default of 100 ms would halve the throughput).
RETRY_BACKOFF_MS = 10
POSITIONS_CONFIGS = {"cleanup.policy": "compact", "segment.bytes": "16777216", "segment.ms": "3600000"}


class StartRefusedError(Exception):
    """Publishing would lose or repeat events; a person must look. The message says why."""


@dataclass(frozen=True, slots=True)
class PublisherSettings:
    """Where and how to publish. Times are in seconds."""

    bootstrap_servers: str
    topic_prefix: str = "conversations"
    partitions: int = 24
    """Of the events topic, when it is made; never changed afterwards, since it would break the order of keys."""
    replication_factor: int = -1
    """-1: what the broker has as its default."""
    schema_base: str = "urn:conversas:schema:"
    """What stands before an event's topic in ``ce_dataschema``."""
    max_batch: int = 4_000
    """Events of the log per Kafka transaction."""
    poll_seconds: float = 0.25
    request_timeout_seconds: float = 10
    delivery_timeout_seconds: float = 20
    transaction_timeout_seconds: float = 60
    """After which the broker itself aborts what a dead publisher left open."""
    deadline_seconds: float = 45
    """For one transaction or one step of the start; then the watchdog ends the process."""
    security: Mapping[str, Any] = field(default_factory=dict)
    """kafka-python's TLS and SASL settings, passed through."""

    @property
    def events_topic(self) -> str:
        """Where the events go."""
        return f"{self.topic_prefix}.events.v1"

    @property
    def positions_topic(self) -> str:
        """Where the publisher keeps its position."""
        return f"{self.topic_prefix}.positions.v1"

    @property
    def transactional_id(self) -> str:
        """Whoever starts with the same one fences its predecessor."""
        return f"{self.topic_prefix}.publisher"

    @property
    def client(self) -> dict[str, Any]:
        """What every client of kafka-python is given here."""
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "request_timeout_ms": int(self.request_timeout_seconds * 1_000),
            "bootstrap_timeout_ms": int(self.request_timeout_seconds * 1_000),
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            "reconnect_backoff_max_ms": 1_000,
            **self.security,
        }


@dataclass(frozen=True, slots=True)
class Position:
    """The record in the positions topic: how far which log is published to which topic."""

    position: int
    cluster_id: str
    database_id: str
    topic: str
    topic_id: str
    partition_count: int

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


def prepare_topics(settings: PublisherSettings, database_id: str) -> Position:
    """Make the topics that are missing; the position record of this cluster, database and topic, at position 0."""
    admin = KafkaAdminClient(**settings.client)
    try:
        wanted = {
            settings.events_topic: _new_topic(settings, settings.partitions, {"retention.ms": "-1"}),
            settings.positions_topic: _new_topic(settings, 1, POSITIONS_CONFIGS),
        }
        present = set(admin.list_topics())
        for topic in (topic for topic in wanted if topic not in present):
            log.info("making the topic %s", topic)
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics({topic: wanted[topic]})
        admin.wait_for_topics(list(wanted), timeout_ms=int(settings.request_timeout_seconds * 1_000))
        described = {topic["name"]: topic for topic in admin.describe_topics(list(wanted))}
        cluster_id = str(admin.describe_cluster()["cluster_id"])
    finally:
        admin.close()
    for topic, options in wanted.items():
        found = len(described[topic]["partitions"])
        if found != options["num_partitions"]:
            message = f"{topic} has {found} partitions, not the {options['num_partitions']} that are configured"
            raise StartRefusedError(message)
    topic_id = str(described[settings.events_topic]["topic_id"])
    return Position(0, cluster_id, database_id, settings.events_topic, topic_id, settings.partitions)


def _new_topic(settings: PublisherSettings, partitions: int, configs: dict[str, str]) -> dict[str, Any]:
    return {"num_partitions": partitions, "replication_factor": settings.replication_factor, "configs": configs}


def last_position(settings: PublisherSettings, here: Position) -> Position | None:
    """The last committed position record; None if nothing was ever published. Fence a predecessor first."""
    partition = TopicPartition(settings.positions_topic, 0)
    events = [TopicPartition(here.topic, number) for number in range(here.partition_count)]
    with _consumer(settings, "read_committed") as committed, _consumer(settings, "read_uncommitted") as everything:
        # Until these agree, a transaction is still open, and the last position may be in it.
        while (end := committed.end_offsets([partition])[partition]) < everything.end_offsets([partition])[partition]:
            time.sleep(0.1)
        committed.assign([partition])
        value = _search_backwards(committed, partition, end, settings.transactional_id.encode())
        if value is not None:
            return Position.parse(value)
        if any(everything.end_offsets(events).values()):
            message = (
                f"{settings.positions_topic} holds no position while {here.topic} is not empty: publishing "
                "from the beginning would repeat its events"
            )
            raise StartRefusedError(message)
        return None


@contextlib.contextmanager
def _consumer(settings: PublisherSettings, isolation_level: str) -> Iterator[Any]:
    consumer = KafkaConsumer(
        isolation_level=isolation_level, enable_auto_commit=False, metrics_enabled=False, **settings.client
    )
    try:
        yield consumer
    finally:
        consumer.close()


def _search_backwards(consumer: Any, partition: TopicPartition, end: int, key: bytes) -> bytes | None:
    """The last record under ``key`` before offset ``end``: markers and other publishers' records lie between."""
    begin = consumer.beginning_offsets([partition])[partition]
    look_back = FIRST_LOOK_BACK
    upper = end
    while upper > begin:
        lower = max(begin, upper - look_back)
        consumer.seek(partition, lower)
        found = None
        while consumer.position(partition) < upper:
            for record in consumer.poll(timeout_ms=1_000).get(partition, ()):
                if record.key == key and record.value is not None and record.offset < upper:
                    found = record.value
        if found is not None:
            return bytes(found)
        upper, look_back = lower, look_back * 10
    return None


def require_continuation(last: Position, here: Position, head: int) -> None:
    """Raises `StartRefusedError` where going on after ``last``, with a log up to ``head``, would lose or repeat."""
    for name, recorded, actual in (
        ("Kafka cluster", last.cluster_id, here.cluster_id),
        ("database", last.database_id, here.database_id),
        ("topic", last.topic, here.topic),
        ("topic id (was it deleted?)", last.topic_id, here.topic_id),
        ("partition count", last.partition_count, here.partition_count),
    ):
        if recorded != actual:
            message = f"the position record is of another {name}: {recorded}, and this is {actual}"
            raise StartRefusedError(message)
    if last.position > head:
        message = (
            f"published up to position {last.position}, but the log ends at {head}: was the database restored? "
            "Consumers have events that the log no longer has"
        )
        raise StartRefusedError(message)
