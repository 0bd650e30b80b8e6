"""How fast the real log is published to a real Kafka: with transactions, against the same client without.

All contenders send the same records, byte for byte; each round publishes to topics of its own.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec

import psutil
from kafka import KafkaAdminClient, KafkaProducer

from adapters.cloud_events import Message, MessageMaker
from adapters.event_log import EventLog
from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError
from adapters.kafka_latest import LatestStates
from adapters.kafka_publisher import (
    LINGER_MS,
    PRODUCER_BATCH_BYTES,
    RETRY_BACKOFF_MS,
    Publisher,
    PublisherSettings,
)
from benchmarks.measuring import Bench, Sample, Stopwatch, goal, in_new_process, middle, ratio, table
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
        make, count = _Maker(task, log), 0
        watch = Stopwatch(psutil.Process(task.postmaster))
        for messages in make.all(_Beginning(log, task.events)):
            _send(producer, messages)
            count += make.events_of(messages)
        producer.flush()
        return watch.sample(count)


def _only_sending(task: Task) -> Sample:
    """The client alone: records are made ahead."""
    with EventLog(task.conninfo) as log:
        make = _Maker(task, log)
        batches = list(make.all(_Beginning(log, task.events)))
    with closing(_producer(task)) as producer:
        watch = Stopwatch(psutil.Process(task.postmaster))
        for messages in batches:
            _send(producer, messages)
        producer.flush()
        return watch.sample(sum(make.events_of(messages) for messages in batches))


def _only_sending_with_librdkafka(task: Task) -> Sample:
    """The same by confluent-kafka, which is no dependency of ours."""
    import confluent_kafka  # noqa: PLC0415  # may not be there

    with EventLog(task.conninfo) as log, closing(_producer(task)):
        make = _Maker(task, log)
        batches = list(make.all(_Beginning(log, task.events)))
    producer = confluent_kafka.Producer(
        {"bootstrap.servers": task.settings.bootstrap_servers, "linger.ms": LINGER_MS, "acks": "all"}
    )
    watch = Stopwatch(psutil.Process(task.postmaster))
    for messages in batches:
        for topic, (key, partition, value, headers, milliseconds) in messages:
            producer.produce(topic, value, key, partition, timestamp=milliseconds, headers=headers)
        producer.flush()
    return watch.sample(sum(make.events_of(messages) for messages in batches))


def _producer(task: Task) -> KafkaProducer:
    """A producer set up as the publisher's, without transactions, that knows the topic."""
    settings = task.settings
    for topic in (settings.events_topic, settings.latest_topic):
        make_topic(settings, topic)
    producer = KafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        linger_ms=LINGER_MS,
        batch_size=PRODUCER_BATCH_BYTES,
        retry_backoff_ms=RETRY_BACKOFF_MS,
        metrics_enabled=False,
    )
    producer.partitions_for(settings.events_topic)
    return producer


def make_topic(settings: PublisherSettings, topic: str) -> None:
    """With as many partitions as the events have."""
    with closing(KafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)) as admin:
        admin.create_topics({topic: {"num_partitions": settings.partitions, "replication_factor": -1}})
        admin.wait_for_topics([topic], timeout_ms=10_000)


class _Maker:
    """Makes the records that the publisher would: events, then states."""

    def __init__(self, task: Task, log: EventLog) -> None:
        self._settings = task.settings
        self._maker = MessageMaker(task.settings.partitions, task.settings.schema_base)
        self._latest = LatestStates(log, self._maker, task.settings.cached_states)

    def __call__(self, events: Sequence[RecordedEvent]) -> list[tuple[str, Message]]:
        due = [event for event in events if event.stream.type is StreamType.CONVERSATION]
        found = [(self._settings.events_topic, self._maker.message(event)) for event in due]
        return found + [(self._settings.latest_topic, message) for message in self._latest.messages(due)]

    def all(self, log: "_Beginning") -> Iterator[list[tuple[str, Message]]]:
        """Batch after batch, in the publisher's size."""
        most = self._settings.max_batch
        for position in range(0, log.head(), most):
            yield self(log.read(position, most))

    def events_of(self, messages: Sequence[tuple[str, Message]]) -> int:
        """How many are events; the rest are states."""
        return sum(topic == self._settings.events_topic for topic, _ in messages)


def _send(producer: KafkaProducer, messages: Sequence[tuple[str, Message]]) -> None:
    for topic, (key, partition, value, headers, milliseconds) in messages:
        producer.send(topic, value, key, headers, partition, milliseconds)


WITH = "**publisher: in transactions, with its position**"
READING = "reads, makes and sends, no transactions"
SENDING = "only sends records made ahead, no transactions"
LIBRDKAFKA = "the same with confluent-kafka (librdkafka)"
CONTENDERS: dict[str, Callable[[Task], Sample]] = {
    WITH: _with_transactions,
    READING: _without_transactions,
    SENDING: _only_sending,
}
SHORT = {READING: "no transactions", SENDING: "only sending", LIBRDKAFKA: "librdkafka"}
if find_spec("confluent_kafka"):
    CONTENDERS[LIBRDKAFKA] = _only_sending_with_librdkafka


def run(bench: Bench) -> None:
    """Measure and print the table, or say what to install."""
    try:
        with KafkaBroker(cache=CACHE, java_options=()) as broker:
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
            *("", "events/s", *(f"/ {SHORT[name]}" for name in samples if name != WITH)),
            *("CPU µs/event, publisher", "CPU µs/event, PostgreSQL"),
        ),
        lines,
    )
    goal("publisher / no transactions", ratio(samples[WITH], samples[READING]), 0.8)


def _measure(bench: Bench, bootstrap_servers: str) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = defaultdict(list)
    events = min(real_log(bench).sample.count, 6_000 if bench.is_quick else 30_000)
    for number in bench.rounds(3):
        for order, (name, publish) in enumerate(CONTENDERS.items()):
            settings = PublisherSettings(bootstrap_servers, topic_prefix=f"bench-{number}-{order}")
            task = Task(real_log(bench).conninfo, events, settings, bench.postmaster.pid)
            samples[name].append(in_new_process(publish, task))
    return samples
