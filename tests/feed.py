"""What the tests of the feed share: a log in memory, publishers of it, and what a consumer sees.

Imported by the tests and, as some run as programs too, by their child processes.
"""

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from adapters.kafka_position import Position, PublisherSettings
from adapters.kafka_publisher import Publisher
from adapters.kafka_topics import ensure_topics
from domain.envelope import Metadata, RecordedEvent, Stream, StreamType
from domain.events import (
    Actor,
    ActorKind,
    AttributePersonal,
    AttributeSet,
    ContactDetails,
    ContactReassigned,
    ContactRegistered,
    ConversationAssumed,
    ConversationOpened,
    Event,
    MessageKind,
    MessagePersonal,
    MessageReceived,
    NoteAdded,
    NotePersonal,
    OpenedPersonal,
    Surface,
)

SPACE = uuid.UUID("6a3f1c52-6d5e-4c61-9d0a-0f5b8f0f2b11")
OTHER_SPACE = uuid.UUID("0c1f9f0e-52a7-4d0c-8a4f-3f4a6f1f7d22")
SECRET = "Maria-dos-Santos"
PARTITIONS = 4


# A log


def id_of(name: str) -> uuid.UUID:
    return uuid.uuid5(SPACE, name)


def _event(number: int) -> Event:
    author, contact_id, message_id = Actor(kind=ActorKind.AGENT, id="ana"), id_of("contact"), id_of(f"message {number}")
    match number % 4:
        case 0:
            said = MessagePersonal(text=f"{SECRET} {number}")
            kind = MessageKind.TEXT
            return MessageReceived(
                message_id=message_id, author=author, kind=kind, contact_id=contact_id, personal=said
            )
        case 1:
            noted = NotePersonal(text=SECRET)
            return NoteAdded(message_id=message_id, author=author, contact_id=contact_id, personal=noted)
        case 2:
            value = AttributePersonal(before=None, after=SECRET)
            return AttributeSet(key="nickname", contact_id=contact_id, personal=value)
        case _:
            return ConversationAssumed(agent_id=id_of("agent"))


def _opened(number: int) -> Event:
    subject = OpenedPersonal(subject=SECRET)
    return ConversationOpened(
        protocol=f"2026-{number}", channel="whatsapp", contact_id=id_of("contact"), personal=subject
    )


def history(count: int, conversations: int = 7) -> list[RecordedEvent]:
    """The same events each time: of some conversations, and every tenth of a contact, which is not to be published."""
    versions: dict[uuid.UUID, int] = {}
    recorded = []
    for position in range(1, count + 1):
        is_contact = position % 10 == 0
        stream_id = id_of(f"contact {position}" if is_contact else f"conversation {position * 31 % conversations}")
        version = versions[stream_id] = versions.get(stream_id, 0) + 1
        kind = StreamType.CONTACT if is_contact else StreamType.CONVERSATION
        event: Event = _event(position) if version > 1 else _opened(position)
        if is_contact:
            event = ContactRegistered(contact_id=stream_id, personal=ContactDetails(name=SECRET))
        metadata = Metadata(
            actor=Actor(kind=ActorKind.AGENT, id="ana"),
            surface=Surface.INBOX,
            occurred_at=datetime(2025, 1, 31, 9, 0, tzinfo=UTC),
            request_id=id_of(f"request {position}"),
            correlation_id=id_of("correlation"),
            causation_id="earlier:1" if position == 1 else None,
        )
        at = datetime(2025, 1, 31, 12, 0, tzinfo=UTC) + timedelta(milliseconds=position)
        stream = Stream(SPACE, kind, stream_id)
        recorded.append(RecordedEvent(position, stream, version, event, metadata, at))
    return recorded


def in_two_workspaces(events: Sequence[RecordedEvent], versions: int = 1_000) -> list[RecordedEvent]:
    """``events``, and the first ``versions`` of each stream in another workspace too, under the same ids: as one file
    gives them that is imported into both.
    """
    both = []
    for each in events:
        both.append(each)
        if each.version <= versions:
            both.append(replace(each, stream=replace(each.stream, workspace_id=OTHER_SPACE)))
    return [replace(each, position=position) for position, each in enumerate(both, 1)]


class ListLog:
    """A log in memory."""

    def __init__(self, events: list[RecordedEvent]) -> None:
        self.events = events
        self.loads = 0
        """Streams read from their beginning."""

    def read(self, after: int, limit: int) -> Sequence[RecordedEvent]:
        return self.events[after : after + limit]

    def head(self) -> int:
        return len(self.events)

    def read_streams(self, wanted: Mapping[tuple[uuid.UUID, uuid.UUID], int]) -> Iterator[RecordedEvent]:
        for key, version in wanted.items():
            self.loads += 1
            of_it = (each for each in self.events if (each.stream.workspace_id, each.stream.id) == key)
            yield from (each for each in of_it if each.version <= version)

    def conversations_of(
        self, workspace_id: uuid.UUID, contact_id: uuid.UUID, through: int
    ) -> list[tuple[uuid.UUID, uuid.UUID]]:
        contacts: dict[tuple[uuid.UUID, uuid.UUID], uuid.UUID] = {}
        for each in self.events[:through]:
            if isinstance(each.event, ConversationOpened):
                contacts[each.stream.workspace_id, each.stream.id] = each.event.contact_id
            elif isinstance(each.event, ContactReassigned):
                contacts[each.stream.workspace_id, each.stream.id] = each.event.after
        return [key for key, contact in contacts.items() if key[0] == workspace_id and contact == contact_id]


def expected_ids(events: Sequence[RecordedEvent]) -> list[str]:
    return [each.id for each in events if each.stream.type is StreamType.CONVERSATION]


# A consumer


def text_headers(record: Any) -> dict[str, str]:
    return {name: value.decode() for name, value in record.headers}


def _ends(bootstrap: str, consumer: KafkaConsumer, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
    """Up to where ``consumer`` can see: a commit is answered a moment before its markers are there."""
    with closing(KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)) as everything:
        written = everything.end_offsets(partitions)
    deadline = time.monotonic() + 10
    while (ends := consumer.end_offsets(partitions)) != written and time.monotonic() < deadline:
        time.sleep(0.05)
    return dict(ends)


def consumed(bootstrap: str, topic: str, isolation_level: str = "read_committed") -> list[Any]:
    """All records of ``topic`` that such a consumer sees, partition by partition."""
    with closing(
        KafkaConsumer(
            bootstrap_servers=bootstrap,
            isolation_level=isolation_level,
            enable_auto_commit=False,
            retry_backoff_ms=10,
        )
    ) as consumer:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        ends = _ends(bootstrap, consumer, partitions)
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        records: dict[TopicPartition, list[Any]] = {partition: [] for partition in partitions}
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for partition, found in consumer.poll(timeout_ms=200).items():
                records[partition] += found
    return [record for partition in partitions for record in records[partition]]


def assert_exactly_once(bootstrap: str, settings: PublisherSettings, events: Sequence[RecordedEvent]) -> None:
    """Every event of a conversation once, and those of one conversation in order."""
    records = consumed(bootstrap, settings.events_topic)
    ids = [text_headers(record)["ce_id"] for record in records]
    assert sorted(ids) == sorted(expected_ids(events))
    last: dict[tuple[str, bytes], int] = {}
    for record in records:
        headers = text_headers(record)
        conversation, version = (headers["ce_source"], record.key), int(headers["ce_sequence"])
        assert version == last.get(conversation, 0) + 1
        last[conversation] = version


# Publishers


def make_settings(bootstrap: str, **changes: Any) -> PublisherSettings:
    settings = PublisherSettings(
        bootstrap_servers=bootstrap,
        topic_prefix=f"test-{uuid.uuid4()}",
        partitions=PARTITIONS,
        replication_factor=1,
        max_batch=100,
        poll_seconds=0.02,
    )
    return replace(settings, **changes)


@contextmanager
def live(publisher: Publisher) -> Iterator[Publisher]:
    with closing(publisher):
        assert publisher.start()
        yield publisher


def publish(events: list[RecordedEvent], database: str, settings: PublisherSettings) -> int:
    with live(Publisher(ListLog(events), database, settings)) as publisher:
        return publisher.publish_available()


@contextmanager
def admin(bootstrap: str) -> Iterator[KafkaAdminClient]:
    with closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as client:
        yield client


def write_position(settings: PublisherSettings, value: bytes) -> None:
    with closing(KafkaProducer(bootstrap_servers=settings.bootstrap_servers)) as producer:
        producer.send(settings.positions_topic, value, settings.transactional_id.encode()).get(10)


def keep_all(settings: PublisherSettings) -> None:
    """Make the topics, and keep the broker from compacting before the test has looked: what is dated back is due."""
    ensure_topics(settings)
    with admin(settings.bootstrap_servers) as client:
        never = {"min.cleanable.dirty.ratio": "1.0"}
        client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.latest_topic, configs=never)])


def last_position(settings: PublisherSettings) -> Position:
    return Position.parse(consumed(settings.bootstrap_servers, settings.positions_topic)[-1].value)


def wait_until(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
