"""The publisher killed, and Kafka gone from under it: once, in order, or not at all; and the client's three holes.

Run as a program, this file is the publisher process that the tests kill (see `child`).
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from feed import (
    ListLog,
    assert_exactly_once,
    history,
    live,
    make_settings,
    publish,
)
from kafka.errors import KafkaError

from adapters.kafka_broker import KafkaBroker
from adapters.kafka_position import Position
from adapters.kafka_publisher import (
    Publisher,
    PublisherFailedError,
    PublisherSettings,
)
from adapters.kafka_topics import ensure_topics
from adapters.watchdog import WATCHDOG_EXIT_CODE, Watchdog

pytestmark = [
    pytest.mark.kafka,
    # kafka-python leaves each socket whose connect was refused to the garbage collector, without closing it.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(kafka_bootstrap: str) -> PublisherSettings:
    return make_settings(kafka_bootstrap)


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
