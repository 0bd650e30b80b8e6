"""How fast the real log is published to a real Kafka: with transactions, against the same client without.

All contenders send the same records, byte for byte; each round publishes to topics of its own.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import psutil
from kafka import KafkaAdminClient, KafkaProducer

from adapters.cloud_events import Message, MessageMaker
from adapters.event_log import EventLog
from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError
from adapters.kafka_publisher import (
    LINGER_MS,
    PRODUCER_BATCH_BYTES,
    RETRY_BACKOFF_MS,
    Publisher,
    PublisherSettings,
)
from benchmarks.measuring import Bench, Sample, Stopwatch, in_new_process, middle, ratio, table
from benchmarks.real_log import ROOT, real_log
from domain.envelope import RecordedEvent, StreamType

CACHE = ROOT / ".data" / "kafka" / "libs"


@dataclass(frozen=True, slots=True)
class Task:
    """What one round publishes, and where."""

    conninfo: str
    events: int
    """From the log's beginning."""
    settings: PublisherSettings
    postmaster: int


class _Beginning:
    """The log up to a position."""

    def __init__(self, log: EventLog, head: int) -> None:
        self._log = log
        self._head = head
        self.read_streams = log.read_streams
        self.conversations_of = log.conversations_of

    def read(self, after: int, limit: int) -> Sequence[RecordedEvent]:
        return self._log.read(after, min(limit, self._head - after)) if after < self._head else []

    def head(self) -> int:
        return self._head


def _with_transactions(task: Task) -> Sample:
    """As `conversas publish` does it."""
    with EventLog(task.conninfo) as log:
        publisher = Publisher(_Beginning(log, task.events), task.conninfo, task.settings)
        with closing(publisher):
            publisher.start(threading.Event())
            watch = Stopwatch(psutil.Process(task.postmaster))
            return watch.sample(publisher.publish_available())


def _without_transactions(task: Task) -> Sample:
    """Reading, making and sending as the publisher does, a batch after another."""
    with EventLog(task.conninfo) as log, closing(_producer(task)) as producer:
        watch, count, position = Stopwatch(psutil.Process(task.postmaster)), 0, 0
        while messages := _messages(task, _Beginning(log, task.events).read(position, task.settings.max_batch)):
            _send(producer, task, messages)
            count, position = count + len(messages), position + task.settings.max_batch
        producer.flush()
        return watch.sample(count)


def _only_sending(task: Task) -> Sample:
    """The client alone: records are made ahead."""
    with EventLog(task.conninfo) as log:
        messages = _messages(task, log.read(0, task.events))
    with closing(_producer(task)) as producer:
        watch = Stopwatch(psutil.Process(task.postmaster))
        _send(producer, task, messages)
        producer.flush()
        return watch.sample(len(messages))


def _producer(task: Task) -> KafkaProducer:
    """A producer set up as the publisher's, without transactions, that knows the topic."""
    settings = task.settings
    topics = {settings.events_topic: {"num_partitions": settings.partitions, "replication_factor": -1}}
    with closing(KafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)) as admin:
        admin.create_topics(topics)
        admin.wait_for_topics(list(topics), timeout_ms=10_000)
    producer = KafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        linger_ms=LINGER_MS,
        batch_size=PRODUCER_BATCH_BYTES,
        retry_backoff_ms=RETRY_BACKOFF_MS,
        metrics_enabled=False,
    )
    producer.partitions_for(settings.events_topic)
    return producer


def _messages(task: Task, events: Sequence[RecordedEvent]) -> list[Message]:
    make = MessageMaker(task.settings.partitions, task.settings.schema_base).message
    return [make(event) for event in events if event.stream.type is StreamType.CONVERSATION]


def _send(producer: KafkaProducer, task: Task, messages: Sequence[Message]) -> None:
    topic = task.settings.events_topic
    for key, partition, value, headers, milliseconds in messages:
        producer.send(topic, value, key, headers, partition, milliseconds)


WITH = "**publisher: in transactions, with its position**"
READING = "reads, makes and sends, no transactions"
CONTENDERS: dict[str, Callable[[Task], Sample]] = {
    WITH: _with_transactions,
    READING: _without_transactions,
    "only sends records made ahead, no transactions": _only_sending,
}


def run(bench: Bench) -> None:
    """Measure and print the table, or say what to install."""
    try:
        with KafkaBroker(cache=CACHE) as broker:
            samples = _measure(bench, broker.bootstrap_servers)
    except KafkaUnavailableError as error:
        print(f"\nPublisher: skipped. {error}")
        return
    lines = []
    for name, rounds in samples.items():
        typical = middle(rounds)
        times = [ratio(rounds, other) for other_name, other in samples.items() if other_name != WITH]
        lines.append((name, typical.rate, *times, typical.cpu_microseconds, typical.postgres_cpu_microseconds))
    table(
        f"Publisher: {samples[WITH][0].count:,} events of the real log to Apache Kafka",
        (
            *("", "events/s", "/ no transactions", "/ only sending", "CPU µs/event, publisher"),
            "CPU µs/event, PostgreSQL",
        ),
        lines,
    )


def _measure(bench: Bench, bootstrap_servers: str) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = defaultdict(list)
    events = min(real_log(bench).sample.count, 6_000 if bench.is_quick else 30_000)
    for number in bench.rounds(3):
        for order, (name, publish) in enumerate(CONTENDERS.items()):
            settings = PublisherSettings(bootstrap_servers, topic_prefix=f"bench-{number}-{order}")
            task = Task(real_log(bench).conninfo, events, settings, bench.postmaster.pid)
            samples[name].append(in_new_process(publish, task))
    return samples
