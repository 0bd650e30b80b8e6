"""Publishes every event of conversations from the log to Kafka: in order per conversation, none lost, none twice.

With the events goes the state that each conversation has after the last of them (`kafka_latest`). Several publishers
share the log by the partitions of the conversations, each with a transactional id and a position of its own.

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
from time import monotonic
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

from adapters.cloud_events import Message, MessageMaker
from adapters.kafka_latest import Histories, LatestStates, is_erasure
from adapters.kafka_position import (
    Position,
    PublisherSettings,
    last_positions,
    prepare_topics,
    require_continuation,
    require_place,
)
from adapters.kafka_status import PublisherStatus, StatusTable
from adapters.kafka_topics import RETRY_BACKOFF_MS, StartRefusedError
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

LOCK_RETRY_SECONDS = 0.5
TELL_SECONDS = 1.0
TELL_IDLE_SECONDS = 10.0
FENCINGS = (ProducerFencedError, InvalidProducerEpochError)
UNREACHABLE = (KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError)

CLOSE_SECONDS = 5
# A new transaction meets CONCURRENT_TRANSACTIONS while the markers of the last are written; kafka-python sleeps this
# long then, and events wait: its default of 100 ms would halve the throughput.
TRANSACTION_BACKOFF_MS = 2
LINGER_MS = 100  # flush does not wait for it; it only lets batches fill
PRODUCER_BATCH_BYTES = 131_072
LOCK_CONNECTION: dict[str, Any] = {
    "application_name": "conversas-publisher-lock",
    "connect_timeout": 10,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


class LogReader(Histories, Protocol):
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
    states: list[Message]
    position: int
    count: int
    """Of events read from the log, published or not."""


class Publisher:
    """One of any number of processes that publish the log, or its part of it; one is live, others wait for its lock.

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
        self._maker = MessageMaker(settings.partitions, settings.schema_base, settings.schema_suffix)
        self._latest = LatestStates(log_reader, self._maker, settings.cached_states)
        self._watchdog = Watchdog()
        self._lock: psycopg.Connection[tuple[Any, ...]] | None = None
        self._lock_holder = 0
        self._table: StatusTable | None = None
        self._told_at = 0.0
        self._told_commits = 0
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
            require_place(self._settings)
            if not self._take_lock():
                return False
            with self._deadline("preparing the topics"):
                here = prepare_topics(self._settings, self._database_id())
            # The order matters: only a fenced predecessor leaves the position where it is read.
            with self._deadline("fencing a predecessor"):
                self._start_producer()
            if not self._find_position(here):
                return False
            self.status.is_live = True
            with self._deadline("telling how it is doing"):
                self._tell(at_once=True)
        log.info("publishing to %s what follows position %d", here.topic, self.status.position)
        return True

    def publish_available(self) -> int:
        """Publish all that the log holds (or less, once the stop flag is set); the number of events published."""
        before = self.status.published
        with self._failing():
            with self._deadline("reading the log"):
                batch: _Batch | None = self._read(self.status.position)
                if not (batch and batch.count):  # else `_commit` looks
                    self._require_lock()
            while batch and batch.count:
                # Where the broker is gone, this is all that is said: the watchdog ends the process.
                with self._deadline(f"after position {self.status.position}, a Kafka transaction"):
                    batch = self._publish(batch)
                with self._deadline("telling how it is doing"):
                    self._tell()
            with self._deadline("telling how it is doing"):
                self._tell()
        return self.status.published - before

    def close(self) -> None:
        """Let go of Kafka, then of the lock; a transaction under way stays uncommitted."""
        self.status.is_live = False
        if self._producer is not None:
            with contextlib.suppress(KafkaError), self._deadline("closing the producer"):
                self._producer.close(timeout=0 if self._failure else CLOSE_SECONDS)
            self._producer = None
        if self._lock is not None:
            with contextlib.suppress(psycopg.Error), self._deadline("telling how it ended"):
                self._tell(at_once=True)
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
            self.status.fencings += _is(error, FENCINGS)
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

    def _connect(self) -> psycopg.Connection[Any]:
        with self._deadline("connecting to PostgreSQL"):
            connection = psycopg.connect(self._conninfo, autocommit=True, **LOCK_CONNECTION)
            connection.execute("set idle_session_timeout = 0")
            connection.execute("set synchronous_commit = off")  # of what it tells of itself
        return connection

    def _take_lock(self) -> bool:
        """Of this publisher's transactional id."""
        self._lock = self._connect()
        if not self._wait_for_lock(self._settings.transactional_id, "another publisher is live; waiting for its lock"):
            return False
        row = self._lock.execute("select pg_backend_pid()").fetchone()
        assert row is not None
        self._lock_holder = row[0]
        self._table = StatusTable(self._lock, self._settings.transactional_id, self._settings.events_topic)
        return True

    def _wait_for_lock(self, name: str, waiting: str) -> bool:
        """False: it was told to stop before."""
        said = False
        while not self._stop.is_set():
            with self._deadline("asking for the lock"):
                if self._try_lock(name):
                    return True
            if not said:
                log.info("%s", waiting)
                said = True
            self._stop.wait(LOCK_RETRY_SECONDS)
        return False

    def _try_lock(self, name: str) -> bool:
        assert self._lock is not None
        row = self._lock.execute("select pg_try_advisory_lock(%s)", (_lock_key(name),)).fetchone()
        return bool(row and row[0])

    def _release_lock(self, name: str) -> None:
        if self._lock is not None and not self._lock.closed:  # else they are free already
            self._lock.execute("select pg_advisory_unlock(%s)", (_lock_key(name),))

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
        self._producer = self._transactional(settings.transactional_id)
        self._producer.init_transactions()
        for topic in settings.topics:
            self._producer.partitions_for(topic)

    def _transactional(self, transactional_id: str) -> Any:
        settings = self._settings
        return KafkaProducer(
            transactional_id=transactional_id,
            transaction_timeout_ms=int(settings.transaction_timeout_seconds * 1_000),
            delivery_timeout_ms=int(settings.delivery_timeout_seconds * 1_000),
            max_block_ms=int(settings.deadline_seconds * 1_000),
            linger_ms=LINGER_MS,
            batch_size=PRODUCER_BATCH_BYTES,
            metrics_enabled=False,
            **settings.client | {"retry_backoff_ms": TRANSACTION_BACKOFF_MS},
        )

    def _find_position(self, here: Position) -> bool:
        """Take up the position record, or write the first ones; refuse whatever would lose or repeat events.

        False: it was told to stop before. One publisher at a time looks, since it may have to write for all.
        """
        settings, sharing, said = self._settings, f"{self._settings.events_topic}: sharing", False
        while self._wait_for_lock(sharing, "another publisher is starting; waiting for it"):
            with self._deadline("finding the position"):
                last = last_positions(settings, here)
                head = self._log.head()
            for position in last.values():
                require_continuation(position, here, head)
            if not last:
                self._write_first_positions(here)
                last = {settings.transactional_id: here}
            elif settings.transactional_id not in last:
                last = self._take_over(list(last), here)
            # Never holding the one lock while waiting for another: whoever has that may want this one.
            self._release_lock(sharing)
            if last:
                self._origin = here
                self.status.position = last[settings.transactional_id].position
                return True
            if not said:
                log.info("others shared the log among them so far; waiting until all of them have stopped")
                said = True
            self._stop.wait(LOCK_RETRY_SECONDS)
        return False

    def _write_first_positions(self, first: Position) -> None:
        """Of all that share the log, so that an empty positions topic beside events means that positions were lost."""
        with self._deadline("writing the first positions"):
            self._producer.begin_transaction()
            self._require_delivered([self._send_position(first, id_) for id_ in self._settings.transactional_ids])
            self._require_lock()
            self._producer.commit_transaction()

    # Another number of publishers

    def _take_over(self, ids: Sequence[str], here: Position) -> dict[str, Position]:
        """Bring those that shared the log before to one position and go on from there; empty where one is at work.

        They are fenced as well: one that only sleeps, and has lost its lock, must not go on afterwards.
        """
        settings = self._settings
        with self._holding(ids) as are_stopped:
            if not are_stopped:
                return {}
            for id_ in ids:
                with self._deadline(f"fencing {id_}"), contextlib.closing(self._transactional(id_)) as predecessor:
                    predecessor.init_transactions()
            with self._deadline("finding the positions of the others"):
                last = last_positions(settings, here)
            ids = settings.transactional_ids_of(len(ids))
            reached = [last[id_].position for id_ in ids]
            log.info("%d publishers shared the log up to %s; from now on %d do", len(ids), reached, settings.publishers)
            while min(reached) < max(reached):
                with self._deadline(f"after position {min(reached)}, bringing all to one position"):
                    reached = self._level(last[ids[0]], reached, ids)
            following = replace(here, position=reached[0])
            self._write_first_positions(following)
            assert self._table is not None
            self._table.forget_all_but(settings.transactional_ids)
            return {settings.transactional_id: following}

    @contextlib.contextmanager
    def _holding(self, ids: Sequence[str]) -> Iterator[bool]:
        """The locks of these publishers, or (False) none of them."""
        held: list[str] = []
        try:
            for id_ in ids:
                with self._deadline("asking for the locks of the others"):
                    if not self._try_lock(id_):
                        break
                held.append(id_)
            yield len(held) == len(ids)
        finally:
            for id_ in held:
                self._release_lock(id_)

    def _level(self, last: Position, reached: list[int], ids: Sequence[str]) -> list[int]:
        """Publish a batch for those that are behind, each from where it was; the new positions."""
        after, most = min(reached), max(reached)
        events = self._log.read(after, min(self._settings.max_batch, most - after))
        end = events[-1].position

        def is_due(recorded: RecordedEvent, partition: int) -> bool:
            return recorded.position > reached[partition % len(ids)]

        batch = self._make(events, after, is_due)
        following = [max(position, end) for position in reached]
        self._producer.begin_transaction()
        self._is_in_transaction = True
        futures = self._send_events(batch)
        for id_, position in zip(ids, following, strict=True):
            futures.append(self._send_position(replace(last, position=position), id_))
        self._commit(futures)
        self.status.published += len(batch.messages)
        return following

    # Publishing

    def _read(self, after: int) -> _Batch:
        events = self._log.read(after, self._settings.max_batch)
        mine, among = self._settings.publisher - 1, self._settings.publishers
        return self._make(events, after, lambda _, partition: partition % among == mine)

    def _make(
        self, events: Sequence[RecordedEvent], after: int, is_due: Callable[[RecordedEvent, int], bool]
    ) -> _Batch:
        """What is to be published of ``events``, which follow on ``after``."""
        last = events[-1].position if events else after
        if last != after + len(events):
            message = f"the log has a gap after position {after}: {len(events)} events reach up to {last}"
            raise PublisherFailedError(message)
        maker = self._maker
        due = [
            event
            for event in events
            if event.stream.type is StreamType.CONVERSATION and is_due(event, maker.partition(event))
        ]
        erasures = [event for event in events if is_erasure(event)]
        states = self._latest.messages(due, erasures, is_due)
        return _Batch([maker.message(event) for event in due], states, last, len(events))

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
        self._commit(futures)
        self.status.published += len(batch.messages)
        self.status.position = batch.position
        return ahead.result() if ahead else None

    def _send_events(self, batch: _Batch) -> list[Any]:
        """The events, then the states that follow from them."""
        send, events, latest = self._producer.send, self._settings.events_topic, self._settings.latest_topic
        sent = [send(events, value, key, headers, to, at) for key, to, value, headers, at in batch.messages]
        sent += [send(latest, value, key, headers, to, at) for key, to, value, headers, at in batch.states]
        return sent

    def _send_position(self, position: Position, transactional_id: str | None = None) -> Any:
        key = (transactional_id or self._settings.transactional_id).encode()
        return self._producer.send(self._settings.positions_topic, position.value(), key, partition=0)

    def _commit(self, futures: Sequence[Any]) -> None:
        """End the transaction of ``futures``.

        The look at the lock comes while the broker works, so that no event waits for it. Who loses the lock after it
        may still commit, and does no harm: a successor fences first (``init_transactions`` under the same id, or under
        each id of the former ones), which aborts this transaction or waits until it is complete, and only then reads
        the position, which is in it. So exactly once stands on the fence. The look ends a publisher without a lock
        before its next transaction instead of at its successor's, and keeps to itself what was read from a PostgreSQL
        that is gone by then.
        """
        self._require_lock()
        self._require_delivered(futures)
        self._producer.commit_transaction()
        self._is_in_transaction = False
        self.status.commits += 1

    def _require_delivered(self, futures: Sequence[Any]) -> None:
        """Every record is acknowledged: `flush` and `commit_transaction` succeed although a record has timed out."""
        settings = self._settings
        # Before the watchdog: without a coordinator kafka-python does not even let records time out.
        self._producer.flush(timeout=settings.delivery_timeout_seconds + 2 * settings.request_timeout_seconds)
        for future in futures:
            if not future.succeeded():
                message = f"Kafka did not take a record: {future.exception!r}"
                raise PublisherFailedError(message) from future.exception

    def _tell(self, *, at_once: bool = False) -> None:
        """Write the status where the API finds it; seldom, where nothing has changed."""
        pause = TELL_SECONDS if self.status.commits != self._told_commits else TELL_IDLE_SECONDS
        if self._table is not None and (at_once or monotonic() >= self._told_at + pause):
            self._table.tell(self.status)
            self._told_at, self._told_commits = monotonic(), self.status.commits


def _lock_key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def _is(error: BaseException, kinds: tuple[type[KafkaError], ...]) -> bool:
    return any(isinstance(each, kinds) for each in (error, error.__cause__, *error.args))
