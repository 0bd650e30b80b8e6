"""The publisher against a real Apache Kafka and a real PostgreSQL: once, in order, or not at all.

Run as a program, this file is the publisher process that the tests kill (see `child`).
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
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
from kafka.errors import KafkaError, ProducerFencedError
from kafka.partitioner.default import DefaultPartitioner
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from adapters.cloud_events import partition_of
from adapters.command_handler import CommandHandler, Request
from adapters.kafka_broker import KafkaBroker
from adapters.kafka_position import Position
from adapters.kafka_publisher import (
    Publisher,
    PublisherFailedError,
    PublisherSettings,
    StartRefusedError,
)
from adapters.kafka_status import STATUS_QUERY, Publishers
from adapters.kafka_topics import ensure_topics
from adapters.postgres import Role
from adapters.watchdog import WATCHDOG_EXIT_CODE, Watchdog
from domain.commands import RegisterContact
from domain.envelope import Stream, StreamType
from domain.events import (
    Actor,
    ActorKind,
    ContactDetails,
    Surface,
)
from domain.permissions import BUILT_IN_ROLES, Caller

pytestmark = [
    pytest.mark.kafka,
    # kafka-python leaves each socket whose connect was refused to the garbage collector, without closing it.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

ROOT = Path(__file__).parents[2]


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


# Killed between any two lines: a process of its own


class Stopping(Publisher):
    """Stands still for ever (until it is killed) at one point of its third transaction."""

    stage = ""

    def _reached(self, stage: str) -> None:
        if stage == self.stage and self.status.commits == 2:
            sys.stdout.write("here\n")
            sys.stdout.flush()
            sys.stdin.readline()

    def _send_events(self, batch: Any) -> list[Any]:
        self._reached("begun")
        futures = super()._send_events(batch)
        if self.stage == "half sent":
            self._producer.flush()
        self._reached("half sent")
        return futures

    def _send_position(self, position: Position, *more: Any) -> Any:
        future = super()._send_position(position, *more)
        self._reached("position sent")
        return future

    def _require_delivered(self, futures: Sequence[Any]) -> None:
        super()._require_delivered(futures)
        self._reached("delivered")


class StoppingAfterCommit(Stopping):
    def _publish(self, batch: Any) -> Any:
        following = super()._publish(batch)
        self._reached("committed")
        return following


class NoWatchdog(Stopping):
    """Canary: waits for ever."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._watchdog.close()


class StoppingWithWatchdog(Stopping):
    """The watchdog runs only once the test has had its time to kill the broker."""

    def _reached(self, stage: str) -> None:
        assert self._watchdog._limit is not None
        doing = self._watchdog._limit[1]
        with self._watchdog.limit(60, "the test"):
            super()._reached(stage)
        self._watchdog._limit = (time.monotonic() + self._settings.deadline_seconds, doing)


CHILDREN = {each.__name__: each for each in (Stopping, StoppingAfterCommit, NoWatchdog, StoppingWithWatchdog)}


def child(kind: str, stage: str, conninfo: str, bootstrap: str, prefix: str, count: str, deadline: str) -> None:
    import logging  # noqa: PLC0415  # only the child logs to its standard error

    logging.basicConfig(level=logging.CRITICAL)
    settings = make_settings(bootstrap, topic_prefix=prefix, deadline_seconds=float(deadline))
    publisher = CHILDREN[kind](ListLog(history(int(count))), conninfo, settings)
    publisher.stage = stage
    publisher.run(threading.Event())


@contextmanager
def child_process(
    kind: type[Stopping], stage: str, database: str, settings: PublisherSettings, count: int, deadline: float = 30
) -> Iterator[subprocess.Popen[str]]:
    """A publisher process that has come to ``stage``."""
    arguments = (kind.__name__, stage, database, settings.bootstrap_servers, settings.topic_prefix)
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments, str(count), str(deadline)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            if process.stdout.readline() != "here\n":
                pytest.fail(process.stderr.read())
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.faults
@pytest.mark.parametrize("stage", ["begun", "half sent", "position sent", "delivered", "committed"])
def test_a_killed_publisher_loses_and_doubles_nothing(stage: str, database: str, settings: PublisherSettings) -> None:
    kind = StoppingAfterCommit if stage == "committed" else Stopping
    events = history(500)
    with child_process(kind, stage, database, settings, len(events)):
        pass
    publish(events, database, settings)
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


# What it says of a failure


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "adapters.kafka_publisher"]


def test_a_kafka_that_was_never_there_is_said_once(database: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    settings = make_settings(f"127.0.0.1:{port}", request_timeout_seconds=1)
    publisher = Publisher(ListLog(history(10)), database, settings)
    with pytest.raises(PublisherFailedError):
        publisher.run(threading.Event())
    (message,) = said(caplog)
    assert message.startswith(f"Kafka at 127.0.0.1:{port} cannot be reached")
    assert message.endswith("; nothing was published; ending, to be started anew")


@pytest.mark.faults
def test_a_kafka_that_is_gone_is_said_once_with_the_position(
    database: str, mortal_broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(mortal_broker.bootstrap_servers, request_timeout_seconds=1, delivery_timeout_seconds=2)
    log = ListLog(history(40))
    caplog.set_level("INFO", "adapters.kafka_publisher")
    with live(Publisher(log, database, settings)) as publisher:
        publisher.publish_available()
        mortal_broker.stop()
        log.events = history(80)
        for _ in range(2):
            with pytest.raises(PublisherFailedError):
                publisher.publish_available()
    mortal_broker.restart()
    first, last = said(caplog)
    assert first == f"publishing to {settings.events_topic} what follows position 0"
    assert last.startswith(f"Kafka at {settings.bootstrap_servers} cannot be reached")
    assert last.endswith("; published up to position 40; ending, to be started anew")


def test_a_failure_of_another_kind_is_not_called_an_absence_of_kafka(
    database: str, settings: PublisherSettings, caplog: pytest.LogCaptureFixture
) -> None:
    events = history(10)
    del events[4]
    publisher = Publisher(ListLog(events), database, settings)
    with live(publisher), pytest.raises(PublisherFailedError, match="gap"):
        publisher.publish_available()
    (message,) = said(caplog)
    assert message.startswith("publishing failed: ")
    assert message.endswith("; published up to position 0; ending, to be started anew")


# Guard 1: a record that times out fails its future only


class BrokerDiesInTheMiddle(Publisher):
    """The broker is gone while the second half of the events is sent, and back before the position is."""

    meeting: threading.Barrier
    """Where it stands still before the broker goes, and comes, and again afterwards."""

    def _stand_still(self) -> None:
        for _ in ("before", "after"):
            self.meeting.wait(60)

    def _send_events(self, batch: Any) -> list[Any]:
        half = len(batch.messages) // 2
        first = super()._send_events(replace(batch, messages=batch.messages[:half]))
        self._producer.flush()
        self._stand_still()
        second = super()._send_events(replace(batch, messages=batch.messages[half:]))
        self._producer.flush()  # returns as if nothing were wrong
        assert not any(future.succeeded() for future in second)
        self._stand_still()
        return first + second


class Unchecked(BrokerDiesInTheMiddle):
    """Canary: commits without a look at the futures."""

    def _require_delivered(self, _: Sequence[Any]) -> None:
        self._producer.flush()


@pytest.mark.faults
def test_a_record_that_timed_out_keeps_the_transaction_from_being_committed(
    database: str, mortal_broker: KafkaBroker
) -> None:
    """Both in the same outage."""
    bootstrap, events = mortal_broker.bootstrap_servers, history(40)
    guarded, canary = (make_settings(bootstrap, request_timeout_seconds=1, delivery_timeout_seconds=2) for _ in "12")
    meeting = threading.Barrier(3)
    with ExitStack() as opened:
        checked, unchecked = (
            opened.enter_context(live(kind(ListLog(events), database, settings)))
            for kind, settings in ((BrokerDiesInTheMiddle, guarded), (Unchecked, canary))
        )
        for each in (checked, unchecked):
            each.meeting = meeting
        pool = opened.enter_context(ThreadPoolExecutor())
        failing, passing = pool.submit(checked.publish_available), pool.submit(unchecked.publish_available)
        for change in (mortal_broker.stop, mortal_broker.restart):  # by us: the broker ends with the thread it is of
            meeting.wait(60)
            change()
            meeting.wait(60)
        with pytest.raises(PublisherFailedError, match="did not take a record"):
            failing.result()
        passing.result()
    for each in (guarded, canary):
        publish(events, database, replace(each, request_timeout_seconds=5, delivery_timeout_seconds=10))
    assert_exactly_once(bootstrap, guarded, events)
    with pytest.raises(AssertionError):
        assert_exactly_once(bootstrap, canary, events)


# Guard 2: a commit waits for ever for a broker that is gone


@pytest.mark.faults
def test_the_watchdog_ends_a_process_whose_commit_hangs(database: str, mortal_broker: KafkaBroker) -> None:
    events = history(300)
    guarded, canary = (make_settings(mortal_broker.bootstrap_servers) for _ in range(2))
    for each in (guarded, canary):
        ensure_topics(each)  # which may take longer than the deadline
    with (
        child_process(StoppingWithWatchdog, "delivered", database, guarded, len(events), deadline=2) as process,
        child_process(NoWatchdog, "delivered", database, canary, len(events), deadline=2) as hanging,
    ):
        mortal_broker.stop()
        go_on(process)
        go_on(hanging)
        assert process.wait(30) == WATCHDOG_EXIT_CODE
        assert process.stderr is not None
        assert "after position 200, a Kafka transaction took too long" in process.stderr.read()
        with pytest.raises(subprocess.TimeoutExpired):
            hanging.wait(1)
    mortal_broker.restart()
    publish(events, database, guarded)
    assert_exactly_once(guarded.bootstrap_servers, guarded, events)


def test_the_watchdog_leaves_alone_what_is_in_time() -> None:
    with closing(Watchdog()) as watchdog:
        with watchdog.limit(0.5, "this"):
            pass
        time.sleep(0.8)


# Guard 3: after an error nobody knows what the producer, or the position in memory, is worth


class Forgetful(Publisher):
    """Canary: goes on with the same producer and the same position as if no error had been."""

    @contextmanager
    def _failing(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("kind", [Publisher, Forgetful], ids=["guarded", "canary"])
def test_after_a_lost_commit_reply_only_a_new_publisher_goes_on(
    kind: type[Publisher], database: str, settings: PublisherSettings
) -> None:
    events = history(20)
    with live(kind(ListLog(events), database, settings)) as publisher:
        commit = publisher._producer.commit_transaction

        def commit_and_lose_the_reply() -> None:
            commit()
            publisher._producer.commit_transaction = commit
            raise KafkaError

        publisher._producer.commit_transaction = commit_and_lose_the_reply
        with pytest.raises((PublisherFailedError, KafkaError)):
            publisher.publish_available()
        if kind is Publisher:
            with pytest.raises(PublisherFailedError, match="start a new process"):
                publisher.publish_available()
        else:
            publisher.publish_available()
    publish(events, database, settings)
    if kind is Publisher:
        assert_exactly_once(settings.bootstrap_servers, settings, events)
    else:
        with pytest.raises(AssertionError):
            assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_a_producer_left_in_a_failed_transaction_publishes_nothing_more(
    database: str, settings: PublisherSettings
) -> None:
    with live(Forgetful(ListLog(history(20)), database, settings)) as publisher:
        publisher._producer.begin_transaction()  # as an error leaves it
        for _ in range(2):
            with pytest.raises(KafkaError, match="IN_TRANSACTION"):
                publisher.publish_available()


if __name__ == "__main__":
    child(*sys.argv[1:])
