"""The feed as a whole: how fast it is published, how soon it arrives, how long catching up takes.

`make bench-feed`. The throughput is that of `publishing`; beside it stands librdkafka's client, for the record.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from queue import SimpleQueue
from time import monotonic, sleep, time
from uuid import UUID, uuid4

import psycopg
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from adapters.command_handler import CommandHandler, Request
from adapters.event_log import EventLog
from adapters.importers import import_file
from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError
from adapters.kafka_position import PublisherSettings
from adapters.kafka_publisher import LINGER_MS, TRANSACTION_BACKOFF_MS, Publisher
from adapters.kafka_topics import ensure_topics
from benchmarks import publishing
from benchmarks.measuring import Bench, goal, table
from benchmarks.publishing import CACHE
from benchmarks.real_log import ROOT, real_log
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
CATCH_UP_EVENTS = 1_000_000


def run(bench: Bench) -> None:
    """Measure and print the tables, or say what to install."""
    publishing.run(bench)
    try:
        with KafkaBroker(cache=CACHE, java_options=()) as broker:
            _latencies(bench, broker.bootstrap_servers)
        with KafkaBroker(cache=CACHE, java_options=()) as broker:
            _catch_up(bench, broker.bootstrap_servers)
    except KafkaUnavailableError as error:
        print(f"\nThe feed is not measured: {error}")


# Latency


@dataclass
class Delays:
    """Milliseconds from a moment before the commit until something was there."""

    milliseconds: list[float] = field(default_factory=list)

    def at(self, share: float) -> float:
        """The quantile."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _latencies(bench: Bench, bootstrap_servers: str) -> None:
    """Each alone: on two cores they would measure how they wait for one another."""
    seconds = 3 if bench.is_quick else 20
    lines = []
    _bare_in_transactions(_topics(bootstrap_servers, "warming up"), RATES[-1], seconds)
    for rate in RATES:
        settings = _topics(bootstrap_servers, f"at {rate}")
        listing = _to_listing(bench.database(read_models=True), settings, rate, seconds)
        feed = _to_consumer(bench.database(read_models=True), settings, rate, seconds)
        transactional = _bare_in_transactions(settings, rate, seconds)
        bare = _bare(settings, rate, seconds)
        for name, delays in (
            ("commit → listing", listing),
            ("commit → consumer", feed),
            ("produce → consumer, in transactions", transactional),
            ("produce → consumer", bare),
        ):
            lines.append((f"{name}, {rate:,}/s", len(delays.milliseconds), delays.at(0.5), delays.at(0.99)))
        goal(f"bare p50 / p50 of commit → consumer at {rate:,}/s", bare.at(0.5) / feed.at(0.5), 0.5)
        print(f"- for the record: bare p50 / p50 in transactions: {bare.at(0.5) / transactional.at(0.5):.2f}")
    table("Latency", ("", "measured", "p50, ms", "p99, ms"), lines)


def _topics(bootstrap_servers: str, what: str) -> PublisherSettings:
    settings = PublisherSettings(
        bootstrap_servers, topic_prefix=f"latency-{what.replace(' ', '-')}", replication_factor=1
    )
    ensure_topics(settings)
    return settings


def _to_listing(conninfo: str, settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """Commands at ``rate``; how long each event took to the listing."""
    delays, stop = Delays(), threading.Event()
    with closing(CommandHandler(conninfo, keys(conninfo))) as handler, _service("project", conninfo, settings):
        conversations = _conversations(handler)
        head = _head(conninfo)
        while _listed(conninfo) < head:
            sleep(0.1)
        watching = threading.Thread(target=_watch_listing, args=(conninfo, head, delays, stop))
        watching.start()
        _at_rate(rate, seconds, lambda number: _write(handler, conversations, number))
        sleep(2)
        stop.set()
        watching.join()
    return delays


def _to_consumer(conninfo: str, settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """Commands at ``rate``; how long each event took to a ``read_committed`` consumer."""
    with closing(CommandHandler(conninfo, keys(conninfo))) as handler, _service("publish", conninfo, settings):
        conversations = _conversations(handler)
        with _consumer(settings, "read_committed", settings.events_topic, after=_head(conninfo)) as delays:
            _at_rate(rate, seconds, lambda number: _write(handler, conversations, number))
            sleep(2)
    return delays


def _do(handler: CommandHandler, commands: list[tuple[UUID, Command]]) -> None:
    request_id = uuid4()
    requests = [
        Request(Stream(SPACE, command.STREAM, id_), command, CALLER, Surface.API, request_id, request_id)
        for id_, command in commands
    ]
    for answer in handler.handle(requests):
        if isinstance(answer, Exception):
            raise answer


def _conversations(handler: CommandHandler) -> list[UUID]:
    _do(handler, [(CONTACT, RegisterContact(contact_id=CONTACT, details=ContactDetails()))])
    ids = [uuid4() for _ in range(CONVERSATIONS)]
    _do(handler, [(id_, OpenConversation(protocol=str(id_), channel="whatsapp", contact_id=CONTACT)) for id_ in ids])
    return ids


def _write(handler: CommandHandler, conversations: list[UUID], number: int) -> None:
    def received() -> Command:
        return ReceiveMessage(message_id=uuid4(), kind=MessageKind.TEXT, text="A question of usual length, perhaps?")

    _do(handler, [(conversations[each % CONVERSATIONS], received()) for each in range(number)])


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
    delays.milliseconds = ours.recv()
    process.join()


def _consume(settings: PublisherSettings, isolation_level: str, topic: str, after: int, told: Connection) -> None:
    delays: list[float] = []
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
                for record in records:
                    headers = dict(record.headers)
                    if int(headers["ce_position"]) > after:
                        recorded_at = datetime.fromisoformat(headers["ce_time"].decode()).timestamp()
                        delays.append((now - recorded_at) * 1_000)
    told.send(delays)


def _head(conninfo: str) -> int:
    with EventLog(conninfo) as log:
        return log.head()


def _listed(conninfo: str) -> int:
    with psycopg.connect(conninfo) as connection:
        row = connection.execute("select position from projection_positions where name = 'listing'").fetchone()
    return row[0] if row else 0


def _watch_listing(conninfo: str, after: int, delays: Delays, stop: threading.Event) -> None:
    """Every event between two looks at the listing's position became visible before the second."""
    query = (
        "with listed as (select position from projection_positions where name = 'listing')"
        " select (select position from listed), clock_timestamp(), array(select recorded_at from events"
        " where position > %s and position <= (select position from listed))"
    )
    with psycopg.connect(conninfo, autocommit=True) as connection:
        while not stop.wait(0.002):
            row = connection.execute(query, (after,)).fetchone()
            assert row is not None
            after, now, recorded = row
            delays.milliseconds += [(now - each).total_seconds() * 1_000 for each in recorded]


def _record(number: int) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Value, key and headers, about as large as an event's."""
    headers = [("ce_time", datetime.now(UTC).isoformat().encode()), ("ce_position", b"1"), ("more", b"x" * 400)]
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

        def produce(number: int) -> None:
            for each in range(number):
                producer.send(topic, *_record(each))

        _at_rate(rate, seconds, produce)
        producer.flush()
        sleep(1)
    return delays


def _bare_in_transactions(settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """The same in transactions as the publisher's: one after another, each with what has come meanwhile."""
    topic = settings.latest_topic.replace("latest", "bare-in-transactions")
    publishing.make_topic(settings, topic)
    come: SimpleQueue[tuple[bytes, bytes, list[tuple[str, bytes]]] | None] = SimpleQueue()

    def send() -> None:
        is_over = False
        while not is_over:
            batch = [come.get()]
            while not come.empty():
                batch.append(come.get())
            producer.begin_transaction()
            for record in batch:
                is_over |= record is None
                if record is not None:
                    producer.send(topic, *record)
            producer.flush()
            producer.commit_transaction()

    client = settings.client | {"retry_backoff_ms": TRANSACTION_BACKOFF_MS}
    with (
        closing(
            KafkaProducer(transactional_id=topic, linger_ms=LINGER_MS, metrics_enabled=False, **client)
        ) as producer,
        _consumer(settings, "read_committed", topic) as delays,
    ):
        producer.init_transactions()
        producer.partitions_for(topic)
        sending = threading.Thread(target=send)
        sending.start()
        _at_rate(rate, seconds, lambda number: [come.put(_record(each)) for each in range(number)])
        come.put(None)
        sending.join()
        sleep(1)
    return delays


# Catching up


def _catch_up(bench: Bench, bootstrap_servers: str) -> None:
    """A publisher that finds a million events, or a few where it must be quick."""
    wanted = 20_000 if bench.is_quick else CATCH_UP_EVENTS
    log, number = real_log(bench), 100
    with closing(CommandHandler(log.conninfo, keys(log.conninfo))) as handler:
        while _head(log.conninfo) < wanted:
            import_file(handler, UUID(int=number), log.path, "servicenow")
            number += 1
    settings = PublisherSettings(bootstrap_servers, topic_prefix="catch-up", replication_factor=1)
    with EventLog(log.conninfo) as reader, closing(Publisher(reader, log.conninfo, settings)) as publisher:
        publisher.start()
        started = monotonic()
        count = publisher.publish_available()
        seconds = monotonic() - started
    table("Catching up", ("", "events", "s", "events/s"), [("an empty topic", f"{count:,}", seconds, count / seconds)])
