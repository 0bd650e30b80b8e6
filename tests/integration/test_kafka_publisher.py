"""The publisher against a real Apache Kafka and a real PostgreSQL: what it publishes, and what it refuses."""

import json
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from contact_keyring import keys_of
from feed import (
    SECRET,
    SPACE,
    ListLog,
    admin,
    assert_exactly_once,
    consumed,
    expected_ids,
    history,
    id_of,
    last_position,
    live,
    make_settings,
    publish,
    text_headers,
    wait_until,
    write_position,
)
from kafka import KafkaProducer
from kafka.errors import ProducerFencedError
from kafka.partitioner.default import DefaultPartitioner
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from adapters.cloud_events import partition_of
from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from adapters.kafka_publisher import (
    Publisher,
    PublisherFailedError,
    PublisherSettings,
    StartRefusedError,
)
from adapters.kafka_status import STATUS_QUERY, Publishers
from adapters.postgres import Role
from domain.commands import RegisterContact
from domain.envelope import Stream, StreamType
from domain.events import (
    Actor,
    ActorKind,
    ContactDetails,
    Surface,
)
from domain.permissions import BUILT_IN_ROLES, Caller

pytestmark = pytest.mark.kafka


@pytest.fixture
def settings(kafka_bootstrap: str) -> PublisherSettings:
    return make_settings(kafka_bootstrap)


# What is published


def test_every_event_of_a_conversation_arrives_once_and_in_order(database: str, settings: PublisherSettings) -> None:
    events = history(1_234)
    with live(Publisher(ListLog(events), database, settings)) as publisher:
        assert publisher.publish_available() == len(expected_ids(events))
        assert publisher.publish_available() == 0
        status = publisher.status
        assert (status.is_live, status.position, status.published) == (True, 1_234, len(expected_ids(events)))
        assert (status.commits, status.aborts, status.fencings) == (13, 0, 0)
    assert_exactly_once(settings.bootstrap_servers, settings, events)
    assert last_position(settings).position == 1_234


def told(database: str) -> dict[str, Any]:
    """The metrics as the API finds them."""
    with psycopg.connect(database, row_factory=dict_row) as connection:
        connection.execute(f"set role {Role.ACCESS}".encode())
        rows = connection.execute(STATUS_QUERY).fetchall()
    samples = [sample for family in Publishers(rows).collect() for sample in family.samples]
    return {sample.name.removeprefix("conversas_"): sample.value for sample in samples}


def test_what_the_api_shows_of_a_publisher_goes_on_over_restarts(database: str, settings: PublisherSettings) -> None:
    publish(history(150), database, settings)
    after_one = told(database)
    assert (after_one["published_position"], after_one["publisher_commits_total"]) == (150, 2)
    assert after_one["publisher_live"] == 0
    with live(Publisher(ListLog(history(160)), database, settings)) as publisher:
        assert told(database)["publisher_live"] == 1
        publisher._producer.commit_transaction = fenced
        with pytest.raises(PublisherFailedError):
            publisher.publish_available()
    names = ("published_position", "publisher_commits_total", "publisher_aborts_total", "publisher_fencings_total")
    after_two = told(database)
    assert [after_two[name] for name in names] == [150, 2, 1, 1]
    assert after_two["publisher_live"] == 0


def test_what_is_not_published_is_counted_and_has_an_age(database: str, settings: PublisherSettings) -> None:
    publish(history(3), database, settings)
    with closing(CommandHandler(database, keys_of(database))) as handler:
        request_id, caller = uuid.uuid4(), Caller(SPACE, Actor(kind=ActorKind.SYSTEM, id="t"), BUILT_IN_ROLES["admin"])
        for number in range(5):
            stream = Stream(SPACE, StreamType.CONTACT, id_of(f"{number}"))
            command = RegisterContact(contact_id=stream.id, details=ContactDetails())
            [answer] = handler.handle([Request(stream, command, caller, Surface.API, request_id, request_id)])
            assert not isinstance(answer, Exception), answer
    time.sleep(0.2)
    assert told(database)["unpublished"] == 2
    assert 0.2 <= told(database)["unpublished_age_seconds"] < 30


def fenced() -> None:
    raise ProducerFencedError


def test_a_record_is_a_cloud_event(database: str, settings: PublisherSettings) -> None:
    events = history(1)
    publish(events, database, settings)
    (record,) = consumed(settings.bootstrap_servers, settings.events_topic)
    recorded = events[0]
    conversation_id = str(recorded.stream.id)
    assert record.key == conversation_id.encode()
    assert text_headers(record) == {
        "ce_specversion": "1.0",
        "ce_id": f"{conversation_id}:1",
        "ce_type": "conversation-opened.v1",
        "ce_source": f"/workspaces/{SPACE}",
        "ce_subject": conversation_id,
        "ce_time": "2025-01-31T12:00:00.001000Z",
        "ce_dataschema": "urn:conversas:schema:conversation-opened.v1",
        "ce_partitionkey": conversation_id,
        "ce_sequence": "1",
        "ce_position": "1",
        "ce_actor": "agent:ana",
        "ce_surface": "inbox",
        "ce_occurredat": "2025-01-31T09:00:00.000000Z",
        "ce_requestid": str(id_of("request 1")),
        "ce_correlationid": str(id_of("correlation")),
        "ce_causationid": "earlier:1",
        "content-type": "application/json",
    }
    assert all(name == "content-type" or name.removeprefix("ce_").isalnum() for name in text_headers(record))
    assert len(record.headers) == len(text_headers(record))
    assert json.loads(record.value) == recorded.event.model_dump(mode="json", exclude={"personal"})
    assert record.timestamp == int(recorded.recorded_at.timestamp() * 1_000)


def test_a_conversation_goes_where_any_kafka_client_would_put_it() -> None:
    class Cluster:
        def topics(self) -> set[str]:
            return {"t"}

        def partitions_for_topic(self, _: str) -> set[int]:
            return set(range(24))

        available_partitions_for_topic = partitions_for_topic

    for number in range(100):
        key = str(id_of(str(number))).encode()
        assert partition_of(key, 24) == DefaultPartitioner().partition("t", key, key, None, None, Cluster())


def test_no_record_holds_personal_data(database: str, settings: PublisherSettings) -> None:
    publish(history(40), database, settings)
    records = consumed(settings.bootstrap_servers, settings.events_topic)
    assert len(records) == 36
    for record in records:
        everything = b"".join((record.key, record.value, *(value for _, value in record.headers)))
        assert SECRET.encode() not in everything
        assert b"personal" not in record.value


def test_what_comes_later_is_published_when_the_hint_wakes_it(database: str, settings: PublisherSettings) -> None:
    events = history(30)
    log, stop, hint = ListLog(events[:10]), threading.Event(), threading.Event()
    slow = replace(settings, poll_seconds=30)
    publisher = Publisher(log, database, slow, wait=hint.wait)
    thread = threading.Thread(target=publisher.run, args=(stop,))
    thread.start()
    wait_until(lambda: publisher.status.position == 10)
    log.events = events
    hint.set()
    wait_until(lambda: publisher.status.position == 30)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    assert not publisher.status.is_live
    assert_exactly_once(settings.bootstrap_servers, settings, events)


# What it refuses


def refusal(log: ListLog, database: str, settings: PublisherSettings) -> str:
    with closing(Publisher(log, database, settings)) as publisher:
        with pytest.raises(StartRefusedError) as refused:
            publisher.start()
        assert not publisher.status.is_live
    return str(refused.value)


def recreate(settings: PublisherSettings, topic: str) -> None:
    with admin(settings.bootstrap_servers) as client:
        client.delete_topics([topic])
        wait_until(lambda: topic not in client.list_topics())


def test_it_refuses_when_positions_are_lost_beside_events(database: str, settings: PublisherSettings) -> None:
    publish(history(10), database, settings)
    recreate(settings, settings.positions_topic)
    assert "no position" in refusal(ListLog(history(20)), database, settings)


def test_an_aborted_first_batch_does_not_count_as_lost_positions(database: str, settings: PublisherSettings) -> None:
    class Fails(Publisher):
        def _require_delivered(self, futures: Sequence[Any]) -> None:
            super()._require_delivered(futures)
            if self._origin is not None:
                raise ValueError

    with live(Fails(ListLog(history(10)), database, settings)) as publisher, pytest.raises(PublisherFailedError):
        publisher.publish_available()
    assert consumed(settings.bootstrap_servers, settings.events_topic, "read_uncommitted")
    publish(history(10), database, settings)
    assert_exactly_once(settings.bootstrap_servers, settings, history(10))


def test_it_refuses_a_position_beyond_the_log(database: str, settings: PublisherSettings) -> None:
    publish(history(10), database, settings)
    assert "the log ends at 9" in refusal(ListLog(history(9)), database, settings)


def test_it_refuses_another_database(database: str, settings: PublisherSettings) -> None:
    publish(history(10), database, settings)
    assert "another database" in refusal(ListLog(history(10)), make_conninfo(database, dbname="postgres"), settings)


def test_it_refuses_another_cluster(database: str, settings: PublisherSettings) -> None:
    publish(history(10), database, settings)
    write_position(settings, replace(last_position(settings), cluster_id="elsewhere").value())
    assert "another Kafka cluster: elsewhere" in refusal(ListLog(history(10)), database, settings)


def test_it_refuses_a_topic_that_was_made_anew(database: str, settings: PublisherSettings) -> None:
    publish(history(10), database, settings)
    recreate(settings, settings.events_topic)
    assert "was it deleted?" in refusal(ListLog(history(10)), database, settings)


def test_it_refuses_another_partition_count(database: str, settings: PublisherSettings) -> None:
    publish(history(10), database, settings)
    assert "not the 5" in refusal(ListLog(history(10)), database, replace(settings, partitions=5))
    with admin(settings.bootstrap_servers) as client:
        client.create_partitions({settings.events_topic: 5, settings.latest_topic: 5})
        client.wait_for_topics([settings.events_topic, settings.latest_topic])
    assert "not the 4" in refusal(ListLog(history(10)), database, settings)
    assert "partition count: 4" in refusal(ListLog(history(10)), database, replace(settings, partitions=5))


def test_it_refuses_a_position_record_that_it_cannot_read(database: str, settings: PublisherSettings) -> None:
    publish(history(10), database, settings)
    write_position(settings, b'{"position": 3}')
    assert "cannot be read" in refusal(ListLog(history(10)), database, settings)


def test_it_refuses_to_go_on_after_states_whose_keys_name_no_workspace(
    database: str, settings: PublisherSettings
) -> None:
    """As they once were: such a state would stay beside the one that follows it, and no tombstone would remove it."""
    publish(history(10), database, settings)
    former = json.loads(last_position(settings).value())
    del former["state_key"]
    write_position(settings, json.dumps(former).encode())
    assert "another key of states: conversation, and" in refusal(ListLog(history(10)), database, settings)


def test_it_finds_its_position_behind_many_aborted_ones(
    database: str, settings: PublisherSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapters.kafka_position.FIRST_LOOK_BACK", 3)
    publish(history(10), database, settings)
    with closing(
        KafkaProducer(
            bootstrap_servers=settings.bootstrap_servers,
            transactional_id=settings.transactional_id,
            retry_backoff_ms=10,
        )
    ) as producer:
        producer.init_transactions()
        for _ in range(8):
            producer.begin_transaction()
            producer.send(settings.positions_topic, b"never", settings.transactional_id.encode())
            producer.flush()
            producer.abort_transaction()
    assert publish(history(20), database, settings) == 9
    assert_exactly_once(settings.bootstrap_servers, settings, history(20))


def test_it_fails_at_a_gap_in_the_log(database: str, settings: PublisherSettings) -> None:
    events = history(10)
    del events[4]
    publisher = Publisher(ListLog(events), database, settings)
    with live(publisher), pytest.raises(PublisherFailedError, match="gap"):
        publisher.publish_available()
    assert consumed(settings.bootstrap_servers, settings.events_topic) == []
