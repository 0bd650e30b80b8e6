"""The whole main job on real input: imported, projected, rebuilt, published, consumed: all tell the same."""

import gc
import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from agreement import all_events, check_that_all_agree
from contact_keyring import keys_of
from kafka import KafkaConsumer
from servicenow_reading import check_import

from adapters.event_log import EventLog
from adapters.kafka_publisher import Publisher, PublisherSettings
from adapters.projector import Projector, create_missing
from domain.envelope import StreamType

pytestmark = pytest.mark.faults  # for all of it


def test_the_imported_log_is_what_an_independent_reading_says(imported_log: Any) -> None:
    check_import(imported_log.database, imported_log.path, imported_log.report, imported_log.told)


@pytest.fixture
def no_collection() -> Iterator[None]:
    """The whole log is held here, and walking through it again and again would take much of the time."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.kafka
@pytest.mark.usefixtures("no_collection")
def test_the_imported_log_reads_the_same_everywhere(imported_log: Any, kafka_bootstrap: str) -> None:
    database = imported_log.database
    create_missing(database)
    projector = Projector(database, keys=keys_of(database))
    projector.catch_up()
    projector.close()
    events = all_events(database)
    assert [event.position for event in events] == list(range(1, len(events) + 1))
    assert check_that_all_agree(database) == len(events)

    settings = PublisherSettings(bootstrap_servers=kafka_bootstrap, topic_prefix="whole-way", replication_factor=1)
    with EventLog(database) as log:
        publisher = Publisher(log, database, settings)
        assert publisher.start()
        publisher.publish_available()
        publisher.close()
    of_conversations = [event for event in events if event.stream.type is StreamType.CONVERSATION]
    consumed = consume(settings, len(of_conversations))
    assert {key: [int(version) for version, _, _ in records] for key, records in consumed.items()} == versions(
        of_conversations
    ), "each event once, in order per conversation"
    expected = {event.position: event for event in of_conversations}
    for records in consumed.values():
        for _, position, value in records:
            assert value == expected.pop(int(position)).event.model_dump(mode="json", exclude={"personal"})
    assert not expected


def versions(events: list) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for event in events:
        found[str(event.stream.id)].append(event.version)
    return found


def consume(settings: PublisherSettings, count: int) -> dict[str, list[tuple[bytes, bytes, object]]]:
    """All that a read_committed consumer gets, by key; and no more than ``count`` comes."""
    consumer = KafkaConsumer(
        settings.events_topic,
        bootstrap_servers=settings.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_timeout_ms=5_000,
    )
    found: dict[str, list[tuple[bytes, bytes, object]]] = defaultdict(list)
    total = 0
    for record in consumer:
        headers = dict(record.headers)
        found[record.key.decode()].append((headers["ce_sequence"], headers["ce_position"], json.loads(record.value)))
        total += 1
    consumer.close()
    assert total == count
    return found
