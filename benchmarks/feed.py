"""The feed as a whole: how fast it is published, how soon it arrives, how long catching up takes.

`make bench-feed`. The throughput is that of `publishing`; beside it stands librdkafka's client, for the record.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from time import monotonic, sleep, time
from uuid import UUID, uuid4

import psycopg
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from adapters.command_handler import CommandHandler, Request
from adapters.event_log import EventLog
from adapters.importers import import_file
from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError
from adapters.kafka_position import PublisherSettings
from adapters.kafka_publisher import Publisher
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
        with KafkaBroker(cache=CACHE) as broker:
            _latencies(bench, broker.bootstrap_servers)
        with KafkaBroker(cache=CACHE) as broker:
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
    seconds = 3 if bench.is_quick else 20
    lines = []
    for rate in RATES:
        conninfo = bench.database(read_models=True)
        settings = PublisherSettings(bootstrap_servers, topic_prefix=f"latency-{rate}", replication_factor=1)
        ensure_topics(settings)
        listing, feed = _at_work(conninfo, settings, rate, seconds)
        bare = _bare(settings, rate, seconds)
        for name, delays in (("commit → listing", listing), ("commit → consumer", feed), ("produce → consumer", bare)):
            lines.append((f"{name}, {rate:,}/s", len(delays.milliseconds), delays.at(0.5), delays.at(0.99)))
        goal(f"bare p50 / p50 of commit → consumer at {rate:,}/s", bare.at(0.5) / feed.at(0.5), 0.5)
    table("Latency", ("", "measured", "p50, ms", "p99, ms"), lines)


def _at_work(conninfo: str, settings: PublisherSettings, rate: int, seconds: float) -> tuple[Delays, Delays]:
    """Commands at ``rate``; how long each event took to the listing, and to a ``read_committed`` consumer."""
    listing, feed, stop = Delays(), Delays(), threading.Event()
    with closing(CommandHandler(conninfo, keys(conninfo))) as handler, ExitStack() as running:
        conversations = _conversations(handler)
        for name in ("project", "publish"):
            running.enter_context(_service(name, conninfo, settings))
        head = _head(conninfo)
        consumer = running.enter_context(_consuming(settings, "read_committed"))
        _wait_for(consumer, head)
        watching = threading.Thread(target=_watch_listing, args=(conninfo, head, listing, stop))
        reading = threading.Thread(target=_read_feed, args=(consumer, head, feed, stop))
        for thread in (watching, reading):
            thread.start()
        _at_rate(rate, seconds, lambda number: _write(handler, conversations, number))
        sleep(2)
        stop.set()
        for thread in (watching, reading):
            thread.join()
    return listing, feed


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


def _at_rate(rate: int, seconds: float, do: Callable[[int], None]) -> None:
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
def _consuming(settings: PublisherSettings, isolation_level: str, topic: str = "") -> Iterator[KafkaConsumer]:
    topic = topic or settings.events_topic
    consumer = KafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level=isolation_level, enable_auto_commit=False
    )
    with closing(consumer):
        partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        yield consumer


def _wait_for(consumer: KafkaConsumer, position: int) -> None:
    """Return once the publisher has published all up to ``position``."""
    while True:
        for records in consumer.poll(timeout_ms=1_000).values():
            if any(int(dict(record.headers)["ce_position"]) >= position for record in records):
                return


def _head(conninfo: str) -> int:
    with EventLog(conninfo) as log:
        return log.head()


def _read_feed(consumer: KafkaConsumer, after: int, delays: Delays, stop: threading.Event) -> None:
    while not stop.is_set():
        polled = consumer.poll(timeout_ms=50)
        now = time()
        for records in polled.values():
            for record in records:
                headers = dict(record.headers)
                if int(headers["ce_position"]) > after:
                    recorded_at = datetime.fromisoformat(headers["ce_time"].decode()).timestamp()
                    delays.milliseconds.append((now - recorded_at) * 1_000)


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


def _bare(settings: PublisherSettings, rate: int, seconds: float) -> Delays:
    """The same client and broker: produced and consumed, nothing else."""
    delays, stop = Delays(), threading.Event()
    topic = settings.latest_topic.replace("latest", "bare")
    publishing.make_topic(settings, topic)

    def read(consumer: KafkaConsumer) -> None:
        while not stop.is_set():
            polled = consumer.poll(timeout_ms=50)
            now = time()
            delays.milliseconds.extend((now - float(r.value[:20])) * 1_000 for rs in polled.values() for r in rs)

    with (
        closing(KafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all")) as producer,
        _consuming(settings, "read_uncommitted", topic) as consumer,
    ):
        producer.partitions_for(topic)
        reading = threading.Thread(target=read, args=(consumer,))
        reading.start()

        def produce(number: int) -> None:
            for each in range(number):
                value = f"{time():<20}".encode() + b"x" * 200
                producer.send(topic, value, str(each % CONVERSATIONS).encode())

        _at_rate(rate, seconds, produce)
        producer.flush()
        sleep(1)
        stop.set()
        reading.join()
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
