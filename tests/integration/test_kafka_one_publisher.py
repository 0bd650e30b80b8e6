"""Of several publisher processes one publishes; whoever sleeps while another takes over changes nothing.

The canaries, each without one of the guards, are given the schedule on which it must fail: one process, no race.
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import psycopg
import pytest
from feed import ListLog, assert_exactly_once, consumed, history, live, make_settings, publish, wait_until

from adapters import kafka_position
from adapters.kafka_position import Position
from adapters.kafka_publisher import LockLostError, Publisher, PublisherFailedError, PublisherSettings

pytestmark = pytest.mark.kafka


class Unlocked(Publisher):
    """Believes that it still has the lock, as a process does that slept while it lost it."""

    def _require_lock(self) -> None:
        pass


@pytest.fixture
def settings(kafka_bootstrap: str) -> PublisherSettings:
    return make_settings(kafka_bootstrap)


def test_a_second_publisher_waits_for_the_lock(database: str, settings: PublisherSettings) -> None:
    events = history(20)
    stop = threading.Event()
    second = Publisher(ListLog(events), database, settings)
    thread = threading.Thread(target=second.run, args=(stop,))
    with live(Publisher(ListLog(events[:10]), database, settings)) as first:
        thread.start()
        first.publish_available()
        time.sleep(1)
        assert not second.status.is_live
    wait_until(lambda: second.status.position == 20)
    stop.set()
    thread.join(10)
    assert second.status.published == 9
    assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_a_waiting_publisher_can_be_stopped(database: str, settings: PublisherSettings) -> None:
    stop = threading.Event()
    with (
        live(Publisher(ListLog([]), database, settings)),
        closing(Publisher(ListLog([]), database, settings)) as second,
    ):
        threading.Timer(0.3, stop.set).start()
        assert not second.start(stop)


def end_sessions(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'conversas-publisher-lock'"
        )


def test_a_publisher_that_lost_its_lock_stops(database: str, settings: PublisherSettings) -> None:
    events = history(20)
    log = ListLog(events[:10])
    with live(Publisher(log, database, settings)) as publisher:
        publisher.publish_available()
        end_sessions(database)
        log.events = events
        with pytest.raises(LockLostError):
            publisher.publish_available()
        assert (publisher.status.is_live, publisher.status.position) == (False, 10)
    assert publish(events, database, settings) == 9, "the one without its lock had published none of them"
    assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_a_lock_lost_within_a_transaction_leaves_it_uncommitted(database: str, settings: PublisherSettings) -> None:
    class LosesLock(Publisher):
        def _send_position(self, position: Position, *more: Any) -> Any:
            if self._origin is not None:
                end_sessions(database)
            return super()._send_position(position, *more)

    with live(LosesLock(ListLog(history(10)), database, settings)) as publisher:
        with pytest.raises(LockLostError):
            publisher.publish_available()
        assert publisher.status.aborts == 1
    publish(history(10), database, settings)
    assert_exactly_once(settings.bootstrap_servers, settings, history(10))


@pytest.mark.parametrize("moment", ["before its transaction", "within its transaction"])
def test_a_zombie_is_fenced_and_does_not_fence_back(moment: str, database: str, settings: PublisherSettings) -> None:
    events = history(300)

    with ExitStack() as opened:
        successor = Publisher(ListLog(events[:250]), database, settings)

        class Zombie(Publisher):
            """Sleeps while another takes over, between its look at the lock and the end of its transaction."""

            def _require_delivered(self, futures: Sequence[Any]) -> None:
                super()._require_delivered(futures)
                if self._origin is not None:
                    take_over()

        def take_over() -> None:
            end_sessions(database)
            opened.enter_context(live(successor))

        kind = Unlocked if moment.startswith("before") else Zombie
        zombie = opened.enter_context(live(kind(ListLog(events[:200]), database, settings)))
        if kind is Unlocked:
            take_over()
        with pytest.raises(PublisherFailedError):
            zombie.publish_available()
        assert (zombie.status.fencings, zombie.status.aborts, zombie.status.commits) == (1, 1, 0)
        time.sleep(0.5)  # kafka-python reacts to the fencing in the background, asking for a new epoch
        successor.publish_available()
        successor._log = ListLog(events)
        successor.publish_available()
    assert_exactly_once(settings.bootstrap_servers, settings, events)


# Canaries


def assert_caught(settings: PublisherSettings, count: int, events: Any) -> None:
    """What is on the topic is not the log: ``count`` events came."""
    with pytest.raises(AssertionError):
        assert_exactly_once(settings.bootstrap_servers, settings, events)
    assert len(consumed(settings.bootstrap_servers, settings.events_topic)) == count


class Unfenced(Unlocked):
    """Each process has a transactional id of its own, so that none fences another."""

    def _transactional(self, transactional_id: str) -> Any:
        return super()._transactional(f"{transactional_id}-{uuid.uuid4()}")


def test_canary_who_fences_nobody_doubles_events(database: str, settings: PublisherSettings) -> None:
    events = history(20)
    with live(Unfenced(ListLog(events), database, settings)) as zombie:
        end_sessions(database)
        with live(Unfenced(ListLog(events), database, settings)) as successor:
            assert successor.publish_available() == zombie.publish_available() == 18
    assert_caught(settings, 36, events)


class LooksFirst(Publisher):
    """Finds the position and fences its predecessor afterwards."""

    meanwhile: Callable[[], object]

    def _start_producer(self) -> None:
        pass

    def _find_position(self, here: Position) -> bool:
        is_found = super()._find_position(here)
        self.meanwhile()
        super()._start_producer()
        return is_found


def test_canary_who_looks_before_it_fences_doubles_events(database: str, settings: PublisherSettings) -> None:
    events = history(20)
    with live(Unlocked(ListLog(events[:10]), database, settings)) as predecessor:
        predecessor.publish_available()
        predecessor._log = ListLog(events)
        end_sessions(database)
        successor = LooksFirst(ListLog(events), database, settings)
        successor.meanwhile = predecessor.publish_available
        with live(successor):
            assert successor.publish_available() == predecessor.status.published - 9 == 9
    assert_caught(settings, 27, events)


class DiesBeforeItsCommit(Publisher):
    """All is delivered, and nothing committed."""

    def _require_delivered(self, futures: Sequence[Any]) -> None:
        super()._require_delivered(futures)
        if self._origin is not None:
            raise ValueError


def test_canary_who_goes_on_after_what_was_not_committed_loses_events(
    database: str, settings: PublisherSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = history(20)
    publish(events[:10], database, settings)
    with live(DiesBeforeItsCommit(ListLog(events), database, settings)) as first, pytest.raises(PublisherFailedError):
        first.publish_available()
    consumer = kafka_position._consumer
    monkeypatch.setattr(kafka_position, "_consumer", lambda settings, _: consumer(settings, "read_uncommitted"))
    assert publish(events, database, settings) == 0
    monkeypatch.undo()
    assert_caught(settings, 9, events)
    assert publish(events, database, settings) == 9
    assert_exactly_once(settings.bootstrap_servers, settings, events)


class PositionApart(Publisher):
    """Commits the events first and their position afterwards; and dies in between."""

    def _send_position(self, position: Position, *more: Any) -> Any:
        if self._origin is not None:
            self._producer.commit_transaction()
            raise ValueError
        return super()._send_position(position, *more)


def test_canary_whose_position_is_outside_the_transaction_doubles_events(
    database: str, settings: PublisherSettings
) -> None:
    events = history(20)
    with live(PositionApart(ListLog(events), database, settings)) as first, pytest.raises(PublisherFailedError):
        first.publish_available()
    publish(events, database, settings)
    assert_caught(settings, 36, events)
