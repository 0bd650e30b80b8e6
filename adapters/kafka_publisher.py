"""Publishes every event of conversations from the log to Kafka: in order per conversation, none lost, none twice.

Invariant: the position up to which the log is published travels in the same Kafka transaction as the events, and a
transaction is committed only after the broker has acknowledged each of its records. So whoever dies between any two
lines here leaves either all of a batch and its position, or nothing that a ``read_committed`` consumer sees.

kafka-python 3.0.12 has three holes, and a guard stands before each: a record that times out inside a transaction
fails its future only, while flush and commit succeed (`_require_delivered`); commit waits for ever for a broker that
is gone (`Watchdog`); a producer that has had an error cannot be trusted again (`PublisherFailedError`: end the process
and let its supervisor start another).
"""

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import psycopg
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import InvalidProducerEpochError, KafkaError, ProducerFencedError, TopicAlreadyExistsError

from adapters.cloud_events import Message, MessageMaker
from adapters.watchdog import Watchdog
from domain.envelope import RecordedEvent, StreamType

log = logging.getLogger(__name__)

LOCK_RETRY_SECONDS = 0.5
FIRST_LOOK_BACK = 1_000  # offsets; many times what lies behind the last position record
FENCINGS = (ProducerFencedError, InvalidProducerEpochError)

CLOSE_SECONDS = 5
# A new transaction meets CONCURRENT_TRANSACTIONS while the markers of the last are written; kafka-python sleeps this
# long then (its default of 100 ms would halve the throughput).
RETRY_BACKOFF_MS = 10
LINGER_MS = 100  # flush does not wait for it; it only lets batches fill
PRODUCER_BATCH_BYTES = 131_072
POSITIONS_CONFIGS = {"cleanup.policy": "compact", "segment.bytes": "16777216", "segment.ms": "3600000"}
LOCK_CONNECTION: dict[str, Any] = {
    "application_name": "conversas-publisher-lock",
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


class LogReader(Protocol):
    """The part of the log that is needed here."""

    def read(self, after: int, limit: int) -> Sequence[RecordedEvent]:
        """Up to ``limit`` events that follow position ``after``, without a gap."""
        ...

    def head(self) -> int:
        """The last position; 0 if the log is empty."""
        ...


class StartRefusedError(Exception):
    """Publishing would lose or repeat events; a person must look. The message says why."""


class PublisherFailedError(Exception):
    """Something went wrong and the transaction was not committed; end the process and start another."""


class LockLostError(PublisherFailedError):
    """The connection that held the advisory lock is gone, so another publisher may be live."""


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


@dataclass(slots=True)
class PublisherStatus:
    """What the metrics show; written by the publisher's thread only."""

    is_live: bool = False
    """It holds the lock and publishes; False: it waits, has stopped or failed."""
    position: int = 0
    """Up to which the log is published."""
    published: int = 0
    """Events, by this process; like all below."""
    commits: int = 0
    aborts: int = 0
    """Transactions left without a commit; the next start aborts them at the broker."""
    fencings: int = 0


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


class _Ahead:
    """The next batch, read in a thread of its own while the publisher waits for the broker."""

    def __init__(self, read: Callable[[int], "_Batch"], after: int) -> None:
        self._compute = partial(read, after)
        self._outcome: _Batch | BaseException | None = None
        # A daemon: a reader that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="publisher-reader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._compute()
        except BaseException as error:  # noqa: BLE001  # raised again where it is waited for
            self._outcome = error

    def result(self) -> "_Batch":
        self._thread.join()
        if isinstance(self._outcome, _Batch):
            return self._outcome
        raise self._outcome or RuntimeError


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one Kafka transaction holds."""

    messages: list[Message]
    position: int
    count: int
    """Of events read from the log, published or not."""


class Publisher:
    """One of any number of processes that publish the log; one is live, the others wait for its lock.

    Meant to have a process of its own: when Kafka hangs, the watchdog ends the whole process.
    ``wait`` is called when there is nothing to publish, with seconds; it may return earlier when there is.
    """

    def __init__(
        self,
        log_reader: LogReader,
        conninfo: str,
        settings: PublisherSettings,
        *,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.status = PublisherStatus()
        self._log = log_reader
        self._conninfo = conninfo
        self._settings = settings
        self._stop = threading.Event()
        self._wait = wait
        self._maker = MessageMaker(settings.partitions, settings.schema_base)
        self._watchdog = Watchdog()
        self._lock: psycopg.Connection[tuple[Any, ...]] | None = None
        self._lock_holder = 0
        self._producer: Any = None
        self._origin: Position | None = None
        self._is_in_transaction = False
        self._failure: BaseException | None = None

    # Life

    def run(self, stop: threading.Event) -> None:
        """Publish until ``stop`` is set; raises `StartRefusedError` or `PublisherFailedError`. Call it once."""
        try:
            if not self.start(stop):
                return
            while not stop.is_set():
                if self.publish_available() == 0 and not stop.is_set():
                    (self._wait or stop.wait)(self._settings.poll_seconds)
        finally:
            self.close()

    def start(self, stop: threading.Event | None = None) -> bool:
        """Wait for the lock, fence a predecessor, find the position. False: ``stop`` was set before."""
        self._stop = stop or self._stop
        with self._failing():
            if not self._take_lock():
                return False
            with self._deadline("preparing the topics"):
                here = self._prepare_topics()
            # The order matters: only a fenced predecessor leaves the position where it is read.
            with self._deadline("fencing a predecessor"):
                self._start_producer()
            with self._deadline("finding the position"):
                self._find_position(here)
        self.status.is_live = True
        log.info("publishing to %s what follows position %d", here.topic, self.status.position)
        return True

    def publish_available(self) -> int:
        """Publish all that the log holds (or less, once the stop flag is set); the number of events published."""
        before = self.status.published
        with self._failing():
            with self._deadline("reading the log"):
                self._require_lock()
                batch: _Batch | None = self._read(self.status.position)
            while batch and batch.count:
                with self._deadline("a Kafka transaction"):
                    batch = self._publish(batch)
        return self.status.published - before

    def close(self) -> None:
        """Let go of Kafka, then of the lock; a transaction under way stays uncommitted."""
        self.status.is_live = False
        if self._producer is not None:
            with contextlib.suppress(KafkaError), self._deadline("closing the producer"):
                self._producer.close(timeout=0 if self._failure else CLOSE_SECONDS)
            self._producer = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self._watchdog.close()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Any error is the end of this publisher: kafka-python's producer is not reused after one."""
        if self._failure is not None:
            message = "this publisher has failed before; start a new process"
            raise PublisherFailedError(message) from self._failure
        try:
            yield
        except BaseException as error:
            self._failure = error
            self.status.is_live = False
            self.status.aborts += self._is_in_transaction
            self.status.fencings += _is_fencing(error)
            if not isinstance(error, Exception) or isinstance(error, StartRefusedError | PublisherFailedError):
                raise
            message = f"publishing failed after position {self.status.position}: {error!r}"
            raise PublisherFailedError(message) from error

    def _deadline(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return self._watchdog.limit(self._settings.deadline_seconds, doing)

    # The lock

    def _take_lock(self) -> bool:
        with self._deadline("connecting to PostgreSQL"):
            self._lock = psycopg.connect(self._conninfo, autocommit=True, **LOCK_CONNECTION)
            self._lock.execute("set idle_session_timeout = 0")
        key = int.from_bytes(hashlib.sha256(self._settings.transactional_id.encode()).digest()[:8], signed=True)
        waiting = False
        while not self._stop.is_set():
            with self._deadline("asking for the lock"):
                row = self._lock.execute("select pg_try_advisory_lock(%s), pg_backend_pid()", (key,)).fetchone()
            if row and row[0]:
                self._lock_holder = row[1]
                return True
            if not waiting:
                log.info("another publisher is live; waiting for its lock")
                waiting = True
            self._stop.wait(LOCK_RETRY_SECONDS)
        return False

    def _require_lock(self) -> None:
        """The session that took the lock still lives (a pooler may have given us another)."""
        if self._lock is None:
            message = "the publisher is not started"
            raise PublisherFailedError(message)
        try:
            row = self._lock.execute("select pg_backend_pid()").fetchone()
        except psycopg.Error as error:
            message = f"the connection that held the publisher's lock is lost: {error}"
            raise LockLostError(message) from error
        if row is None or row[0] != self._lock_holder:
            message = "the session that held the publisher's lock is gone"
            raise LockLostError(message)

    def _database_id(self) -> str:
        """Another one after a restore into a new cluster or a new database."""
        assert self._lock is not None
        query = "select system_identifier, oid from pg_control_system(), pg_database where datname = current_database()"
        row = self._lock.execute(query).fetchone()
        assert row is not None
        return f"{row[0]}/{row[1]}"

    # Start

    def _client_settings(self) -> dict[str, Any]:
        settings = self._settings
        return {
            "bootstrap_servers": settings.bootstrap_servers,
            "request_timeout_ms": int(settings.request_timeout_seconds * 1_000),
            "bootstrap_timeout_ms": int(settings.request_timeout_seconds * 1_000),
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            "reconnect_backoff_max_ms": 1_000,
            **settings.security,
        }

    def _prepare_topics(self) -> Position:
        """Make the topics that are missing; the position record of this cluster, database and topic, at position 0."""
        settings = self._settings
        admin = KafkaAdminClient(**self._client_settings())
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
        return Position(0, cluster_id, self._database_id(), settings.events_topic, topic_id, settings.partitions)

    def _start_producer(self) -> None:
        settings = self._settings
        self._producer = KafkaProducer(
            transactional_id=settings.transactional_id,
            transaction_timeout_ms=int(settings.transaction_timeout_seconds * 1_000),
            delivery_timeout_ms=int(settings.delivery_timeout_seconds * 1_000),
            max_block_ms=int(settings.deadline_seconds * 1_000),
            linger_ms=LINGER_MS,
            batch_size=PRODUCER_BATCH_BYTES,
            metrics_enabled=False,
            **self._client_settings(),
        )
        self._producer.init_transactions()
        for topic in (settings.events_topic, settings.positions_topic):
            self._producer.partitions_for(topic)

    def _find_position(self, here: Position) -> None:
        """Take up the position record, or write the first one; refuse whatever would lose or repeat events."""
        last = self._last_position(here)
        if last is None:
            self._write_first_position(here)
            last = here
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
        head = self._log.head()
        if last.position > head:
            message = (
                f"published up to position {last.position}, but the log ends at {head}: was the database restored? "
                "Consumers have events that the log no longer has"
            )
            raise StartRefusedError(message)
        self._origin = here
        self.status.position = last.position

    def _last_position(self, here: Position) -> Position | None:
        """The last committed position record; None if nothing was ever published."""
        partition = TopicPartition(self._settings.positions_topic, 0)
        events = [TopicPartition(here.topic, number) for number in range(here.partition_count)]
        with contextlib.ExitStack() as opened:
            committed = opened.enter_context(self._consumer("read_committed"))
            everything = opened.enter_context(self._consumer("read_uncommitted"))
            # Until these agree, a transaction is still open, and the last position may be in it.
            while (end := committed.end_offsets([partition])[partition]) < everything.end_offsets([partition])[
                partition
            ]:
                time.sleep(0.1)
            committed.assign([partition])
            value = self._search_backwards(committed, partition, end)
            if value is not None:
                return Position.parse(value)
            if any(everything.end_offsets(events).values()):
                message = (
                    f"{self._settings.positions_topic} holds no position while {here.topic} is not empty: publishing "
                    "from the beginning would repeat its events"
                )
                raise StartRefusedError(message)
            return None

    @contextlib.contextmanager
    def _consumer(self, isolation_level: str) -> Iterator[Any]:
        consumer = KafkaConsumer(
            isolation_level=isolation_level, enable_auto_commit=False, metrics_enabled=False, **self._client_settings()
        )
        try:
            yield consumer
        finally:
            consumer.close()

    def _search_backwards(self, consumer: Any, partition: TopicPartition, end: int) -> bytes | None:
        """The last record under our key before offset ``end``: markers and other publishers' records lie between."""
        key = self._settings.transactional_id.encode()
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

    def _write_first_position(self, here: Position) -> None:
        """So that an empty positions topic beside events always means that positions were lost."""
        self._producer.begin_transaction()
        self._require_delivered([self._send_position(here)])
        self._require_lock()
        self._producer.commit_transaction()

    # Publishing

    def _read(self, after: int) -> _Batch:
        events = self._log.read(after, self._settings.max_batch)
        last = events[-1].position if events else after
        if last != after + len(events):
            message = f"the log has a gap after position {after}: {len(events)} events reach up to {last}"
            raise PublisherFailedError(message)
        make = self._maker.message
        messages = [make(event) for event in events if event.stream.type is StreamType.CONVERSATION]
        return _Batch(messages, last, len(events))

    def _publish(self, batch: _Batch) -> _Batch | None:
        """Publish ``batch`` and its position in one transaction; the next batch, read meanwhile if there may be one."""
        assert self._origin is not None
        ahead = None
        self._producer.begin_transaction()
        self._is_in_transaction = True
        futures = self._send_events(batch)
        futures.append(self._send_position(replace(self._origin, position=batch.position)))
        if batch.count == self._settings.max_batch and not self._stop.is_set():
            ahead = _Ahead(self._read, batch.position)
        self._require_delivered(futures)
        self._require_lock()
        self._producer.commit_transaction()
        self._is_in_transaction = False
        self.status.commits += 1
        self.status.published += len(batch.messages)
        self.status.position = batch.position
        return ahead.result() if ahead else None

    def _send_events(self, batch: _Batch) -> list[Any]:
        send, topic = self._producer.send, self._settings.events_topic
        return [send(topic, value, key, headers, to, at) for key, to, value, headers, at in batch.messages]

    def _send_position(self, position: Position) -> Any:
        key = self._settings.transactional_id.encode()
        return self._producer.send(self._settings.positions_topic, position.value(), key, partition=0)

    def _require_delivered(self, futures: Sequence[Any]) -> None:
        """Every record is acknowledged: `flush` and `commit_transaction` succeed although a record has timed out."""
        self._producer.flush(timeout=self._settings.deadline_seconds)
        for future in futures:
            if not future.succeeded():
                message = f"Kafka did not take a record: {future.exception!r}"
                raise PublisherFailedError(message) from future.exception


def _new_topic(settings: PublisherSettings, partitions: int, configs: dict[str, str]) -> dict[str, Any]:
    return {"num_partitions": partitions, "replication_factor": settings.replication_factor, "configs": configs}


def _is_fencing(error: BaseException) -> bool:
    return any(isinstance(each, FENCINGS) for each in (error, error.__cause__, *error.args))
