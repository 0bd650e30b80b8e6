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
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import psycopg
from kafka import KafkaProducer
from kafka.errors import (
    InvalidProducerEpochError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    NodeNotReadyError,
    ProducerFencedError,
)
from prometheus_client import Counter, Gauge

from adapters.cloud_events import Message, MessageMaker
from adapters.kafka_position import (
    RETRY_BACKOFF_MS,
    Position,
    PublisherSettings,
    StartRefusedError,
    last_position,
    prepare_topics,
    require_continuation,
)
from adapters.watchdog import Watchdog
from domain.envelope import RecordedEvent, StreamType

__all__ = [
    "LINGER_MS",
    "PRODUCER_BATCH_BYTES",
    "RETRY_BACKOFF_MS",
    "LockLostError",
    "Publisher",
    "PublisherFailedError",
    "PublisherSettings",
    "PublisherStatus",
    "StartRefusedError",
]

log = logging.getLogger(__name__)

POSITION = Gauge("conversas_published_position", "Up to which position of the log this process has published")
COMMITS = Counter("conversas_publisher_commits", "Kafka transactions committed")
ABORTS = Counter("conversas_publisher_aborts", "Kafka transactions left without a commit")
FENCED = Counter("conversas_publisher_fencings", "Times that another publisher had taken over")

LOCK_RETRY_SECONDS = 0.5
FENCINGS = (ProducerFencedError, InvalidProducerEpochError)
UNREACHABLE = (KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError)

CLOSE_SECONDS = 5
LINGER_MS = 100  # flush does not wait for it; it only lets batches fill
PRODUCER_BATCH_BYTES = 131_072
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


class PublisherFailedError(Exception):
    """Something went wrong and the transaction was not committed; end the process and start another."""


class LockLostError(PublisherFailedError):
    """The connection that held the advisory lock is gone, so another publisher may be live."""


@dataclass(slots=True)
class PublisherStatus:
    """How this publisher is doing; written by its thread only. The process's metrics count the same."""

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
                here = prepare_topics(self._settings, self._database_id())
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
                # Where the broker is gone, this is all that is said: the watchdog ends the process.
                with self._deadline(f"after position {self.status.position}, a Kafka transaction"):
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
            ABORTS.inc(self._is_in_transaction)
            self.status.fencings += _is(error, FENCINGS)
            FENCED.inc(_is(error, FENCINGS))
            if not isinstance(error, Exception) or isinstance(error, StartRefusedError):
                raise
            self._say_why(error)
            if isinstance(error, PublisherFailedError):
                raise
            message = f"publishing failed after position {self.status.position}: {error!r}"
            raise PublisherFailedError(message) from error

    def _say_why(self, error: Exception) -> None:
        servers, position = self._settings.bootstrap_servers, self.status.position
        why = f"Kafka at {servers} cannot be reached" if _is(error, UNREACHABLE) else "publishing failed"
        done = "nothing was published" if self._origin is None else f"published up to position {position}"
        log.critical("%s: %r; %s; ending, to be started anew", why, error, done)

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
            **self._settings.client,
        )
        self._producer.init_transactions()
        for topic in (settings.events_topic, settings.positions_topic):
            self._producer.partitions_for(topic)

    def _find_position(self, here: Position) -> None:
        """Take up the position record, or write the first one; refuse whatever would lose or repeat events."""
        last = last_position(self._settings, here)
        if last is None:
            self._write_first_position(here)
            last = here
        require_continuation(last, here, self._log.head())
        self._origin = here
        self._published(last.position)

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
        COMMITS.inc()
        self._published(batch.position)
        return ahead.result() if ahead else None

    def _published(self, position: int) -> None:
        self.status.position = position
        POSITION.set(position)

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


def _is(error: BaseException, kinds: tuple[type[KafkaError], ...]) -> bool:
    return any(isinstance(each, kinds) for each in (error, error.__cause__, *error.args))
