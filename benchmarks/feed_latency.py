"""How soon an event that is committed arrives: in the listing, and at a ``read_committed`` consumer of the feed.

Beside it, on the same broker, stands the same client alone: what it produces, with and without transactions.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import monotonic, sleep, time
from typing import Any
from uuid import UUID, uuid4

import psycopg
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from adapters.event_log import EventLog
from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError
from adapters.kafka_position import PublisherSettings
from adapters.kafka_publisher import LINGER_MS, TRANSACTION_BACKOFF_MS
from adapters.kafka_topics import ensure_topics
from benchmarks import publishing
from benchmarks.measuring import Bench, goal, table
from benchmarks.publishing import CACHE
from benchmarks.real_log import ROOT
from benchmarks.workload import keys
from domain.commands import Command, OpenConversation, ReceiveMessage, RegisterContact
from domain.envelope import Stream
from domain.events import Actor, ActorKind, ContactDetails, MessageKind, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

SPACE, CONTACT = UUID(int=77), UUID(int=78)
CALLER = Caller(SPACE, Actor(kind=ActorKind.SYSTEM, id="bench"), BUILT_IN_ROLES["admin"])
CONVERSATIONS = 200
RATES = (100, 1_000)
TICK_SECONDS = 0.01
Record = tuple[bytes, bytes, list[tuple[str, bytes]]]
"""Value, key and headers."""


@dataclass
class Delays:
    """By position: when COMMIT had returned, or a producer was given the record, and when it was there."""

    begun: dict[int, float] = field(default_factory=dict)
    seen: dict[int, float] = field(default_factory=dict)

    def milliseconds(self) -> list[float]:
        """All that was begun must have been seen; without the first second, when topics have their first markers."""
        settled = min(self.begun.values()) + 1
        found = [(self.seen[position] - begun, begun) for position, begun in self.begun.items()]
        return [seconds * 1_000 for seconds, begun in found if begun >= settled]


class _Handler(CommandHandler):
    """Knows when a COMMIT has returned."""

    committed_at = 0.0

    def _save(self, connection: psycopg.Connection, batch: Any) -> None:
        super()._save(connection, batch)
        self.committed_at = time()


def run(bench: Bench) -> None:
    """Measure and print the table, or say what to install."""
    try:
        with KafkaBroker(cache=CACHE, java_options=()) as broker:
            _latencies(bench, broker.bootstrap_servers)
    except KafkaUnavailableError as error:
        print(f"\nLatency is not measured: {error}")


MEASURED: dict[str, Callable[[Bench, PublisherSettings, int, float], Delays]] = {
    "commit → listing": lambda bench, *more: _to_listing(bench.database(read_models=True), *more),
    "commit → consumer": lambda bench, *more: _to_consumer(bench.database(read_models=True), *more),
    "produce → consumer, in transactions": lambda _, *more: _bare_in_transactions(*more),
    "produce → consumer": lambda _, *more: _bare(*more),
}
if find_spec("confluent_kafka"):
    MEASURED["produce → consumer, in transactions by librdkafka"] = lambda _, *more: _librdkafka_in_transactions(*more)


def _latencies(bench: Bench, bootstrap_servers: str) -> None:
    """One after another: on two cores they would measure how they wait for one another."""
    seconds = 3 if bench.is_quick else 8
    lines = []
    _bare_in_transactions(_topics(bootstrap_servers, "warming up"), RATES[-1], seconds)
    for rate in RATES:
        found: dict[str, list[float]] = {name: [] for name in MEASURED}
        for number in bench.rounds(2):
            for name, measure in MEASURED.items():
                settings = _topics(bootstrap_servers, f"{rate} {number} {list(MEASURED).index(name)}")
                found[name] += measure(bench, settings, rate, seconds).milliseconds()
        lines += [(f"{name}, {rate:,}/s", len(each), _at(0.5, each), _at(0.99, each)) for name, each in found.items()]
        _, feed, transactional, bare, *_ = (_at(0.5, each) for each in found.values())
        goal(f"bare p50 / p50 of commit → consumer at {rate:,}/s", bare / feed, 0.5)
        print(f"- for the record: the client's transactions alone take {transactional / bare:.2f} times it without")
        print(f"- for the record: commit → consumer takes {feed / transactional:.2f} times the client's transactions")
    table("Latency", ("", "measured", "p50, ms", "p99, ms"), lines)


def _at(share: float, milliseconds: list[float]) -> float:
    """The quantile."""
    return sorted(milliseconds)[min(len(milliseconds) - 1, int(share * len(milliseconds)))]


def _topics(bootstrap_servers: str, what: str) -> PublisherSettings:
    settings = PublisherSettings(
        bootstrap_servers, topic_prefix=f"latency-{what.replace(' ', '-')}", replication_factor=1
    )
    ensure_topics(settings)
    return settings


def _to_listing(conninfo: str, settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """Commands at ``rate``; how long each event took to the listing."""
    delays, stop = Delays(), threading.Event()
    with closing(_Handler(conninfo, keys(conninfo))) as handler, _service("project", conninfo, settings):
        conversations = _conversations(handler)
        begun = head(conninfo)
        while _listed(conninfo) < begun:
            sleep(0.1)
        watching = threading.Thread(target=_watch_listing, args=(conninfo, begun, delays, stop))
        watching.start()
        _at_rate(rate, seconds, lambda number: _write(handler, conversations, number, delays))
        sleep(2)
        stop.set()
        watching.join()
    return delays


def _to_consumer(conninfo: str, settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """Commands at ``rate``; how long each event took to a ``read_committed`` consumer."""
    with closing(_Handler(conninfo, keys(conninfo))) as handler, _service("publish", conninfo, settings):
        conversations = _conversations(handler)
        with _consumer(settings, "read_committed", settings.events_topic, after=head(conninfo)) as delays:
            _at_rate(rate, seconds, lambda number: _write(handler, conversations, number, delays))
            sleep(2)
    return delays


def _do(handler: CommandHandler, commands: list[tuple[UUID, Command]]) -> list[int]:
    """The positions that they came to."""
    request_id = uuid4()
    requests = [
        Request(Stream(SPACE, command.STREAM, id_), command, CALLER, Surface.API, request_id, request_id)
        for id_, command in commands
    ]
    positions = []
    for answer in handler.handle(requests):
        if isinstance(answer, Exception):
            raise answer
        positions.append(answer.position)
    return positions


def _conversations(handler: CommandHandler) -> list[UUID]:
    _do(handler, [(CONTACT, RegisterContact(contact_id=CONTACT, details=ContactDetails()))])
    ids = [uuid4() for _ in range(CONVERSATIONS)]
    _do(handler, [(id_, OpenConversation(protocol=str(id_), channel="whatsapp", contact_id=CONTACT)) for id_ in ids])
    return ids


def _write(handler: _Handler, conversations: list[UUID], number: int, delays: Delays) -> None:
    def received() -> Command:
        return ReceiveMessage(message_id=uuid4(), kind=MessageKind.TEXT, text="A question of usual length, perhaps?")

    positions = _do(handler, [(conversations[each % CONVERSATIONS], received()) for each in range(number)])
    delays.begun |= dict.fromkeys(positions, handler.committed_at)


def _at_rate(rate: int, seconds: float, do: Callable[[int], object]) -> None:
    """What is due is done, tick by tick; what could not be done in time is made up for."""
    started, done = monotonic(), 0
    while (passed := monotonic() - started) < seconds:
        due = int(passed * rate) - done
        if due:
            do(due)
            done += due
        sleep(TICK_SECONDS)


@contextmanager
def _service(name: str, conninfo: str, settings: PublisherSettings) -> Iterator[None]:
    given = {
        "DATABASE_URL": conninfo,
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": settings.topic_prefix,
        "LOG_LEVEL": "error",
    }
    environment = os.environ | {f"CONVERSAS_{key}": value for key, value in given.items()}
    with subprocess.Popen([sys.executable, "-m", "api", name], cwd=ROOT, env=environment) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def _consumer(settings: PublisherSettings, isolation_level: str, topic: str, *, after: int = 0) -> Iterator[Delays]:
    """A consumer in a process of its own, which has seen position ``after`` when the block begins; then its delays."""
    delays, context = Delays(), get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_consume, args=(settings, isolation_level, topic, after, theirs), daemon=True)
    process.start()
    theirs.close()
    ours.recv()
    yield delays
    ours.send(None)
    delays.seen = ours.recv()
    process.join()


def _consume(settings: PublisherSettings, isolation_level: str, topic: str, after: int, told: Connection) -> None:
    seen: dict[int, float] = {}
    consumer = KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level=isolation_level, enable_auto_commit=False
    )
    with closing(consumer):
        partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        reached = 0
        while reached < after:
            for records in consumer.poll(timeout_ms=1_000).values():
                reached = max(reached, *(int(dict(record.headers)["ce_position"]) for record in records))
        for partition in partitions:
            consumer.position(partition)  # found out now
        told.send(None)
        while not told.poll():
            polled = consumer.poll(timeout_ms=50)
            now = time()
            for records in polled.values():
                seen |= {int(dict(record.headers)["ce_position"]): now for record in records}
    told.send(seen)


def head(conninfo: str) -> int:
    """The log's last position."""
    with EventLog(conninfo) as log:
        return log.head()


def _listed(conninfo: str) -> int:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute("select position from projection_positions where name = 'listing'").fetchone()
    return row[0] if row else 0


def _watch_listing(conninfo: str, after: int, delays: Delays, stop: threading.Event) -> None:
    """Every event between two looks at the listing's position became visible before the second."""
    query = "select position from projection_positions where name = 'listing'"
    with psycopg.connect(conninfo, autocommit=True) as connection:
        while not stop.wait(0.002):
            row = connection.execute(query).fetchone()
            assert row is not None
            delays.seen |= dict.fromkeys(range(after + 1, row[0] + 1), time())
            after = row[0]


class _Records:
    """Records about as large as an event's, each with a number as its position."""

    def __init__(self, delays: Delays) -> None:
        self._delays = delays

    def next(self) -> Record:
        """The next one, which is sent at once."""
        number = len(self._delays.begun) + 1
        headers = [
            ("ce_time", datetime.now(UTC).isoformat().encode()),
            ("ce_position", b"%d" % number),
            ("more", b"x" * 400),
        ]
        self._delays.begun[number] = time()
        return b"x" * 200, str(number % CONVERSATIONS).encode(), headers


def _bare(settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """The same client and broker: produced and consumed, nothing else."""
    topic = settings.latest_topic.replace("latest", "bare")
    publishing.make_topic(settings, topic)
    with (
        closing(KafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all")) as producer,
        _consumer(settings, "read_uncommitted", topic) as delays,
    ):
        producer.partitions_for(topic)
        records = _Records(delays)

        def produce(number: int) -> None:
            for _ in range(number):
                producer.send(topic, *records.next())

        _at_rate(rate, seconds, produce)
        producer.flush()
        sleep(1)
    return delays


def _bare_in_transactions(settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """The same in transactions, set up as the publisher's."""
    topic = settings.latest_topic.replace("latest", "bare-in-transactions")
    client = settings.client | {"retry_backoff_ms": TRANSACTION_BACKOFF_MS}
    with closing(
        KafkaProducer(transactional_id=topic, linger_ms=LINGER_MS, metrics_enabled=False, **client)
    ) as producer:
        producer.init_transactions()

        def transact(records: list[Record]) -> None:
            producer.begin_transaction()
            for record in records:
                producer.send(topic, *record)
            producer.flush()
            producer.commit_transaction()

        return _one_after_another(settings, topic, rate, seconds, transact)


def _librdkafka_in_transactions(settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """The same by confluent-kafka, which is no dependency of ours: what another client would make of transactions."""
    import confluent_kafka  # noqa: PLC0415  # may not be there

    topic = settings.latest_topic.replace("latest", "librdkafka")
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": settings.bootstrap_servers, "transactional.id": topic, "linger.ms": LINGER_MS}
    )
    producer.init_transactions()

    def transact(records: list[Record]) -> None:
        producer.begin_transaction()
        for value, key, headers in records:
            producer.produce(topic, value, key, headers=headers)
        producer.flush()
        producer.commit_transaction()

    return _one_after_another(settings, topic, rate, seconds, transact)


def _one_after_another(
    settings: PublisherSettings, topic: str, rate: int, seconds: float, transact: Callable[[list[Record]], None]
) -> Delays:
    """Transactions, each with the records that have come meanwhile."""
    publishing.make_topic(settings, topic)
    come: SimpleQueue[Record | None] = SimpleQueue()

    def work() -> None:
        is_over = False
        while not is_over:
            records = [come.get()]
            while not come.empty():
                records.append(come.get())
            is_over = None in records
            transact([record for record in records if record])

    with _consumer(settings, "read_committed", topic) as delays:
        records, working = _Records(delays), threading.Thread(target=work)

        def put(number: int) -> None:
            for _ in range(number):
                come.put(records.next())

        working.start()
        _at_rate(rate, seconds, put)
        come.put(None)
        working.join()
        sleep(1)
    return delays
