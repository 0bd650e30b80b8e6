"""Several publishers share the log by the partitions of conversations: together each event once, whatever their number
was before.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import pytest
from feed import ListLog, assert_exactly_once, consumed, history, live, make_settings, wait_until

from adapters.cloud_events import partition_of
from adapters.kafka_position import Position
from adapters.kafka_publisher import Publisher, PublisherFailedError, PublisherSettings, StartRefusedError
from domain.envelope import RecordedEvent

pytestmark = pytest.mark.kafka


@pytest.fixture
def settings(kafka_bootstrap: str) -> PublisherSettings:
    return make_settings(kafka_bootstrap)


def one_of(settings: PublisherSettings, publisher: int, publishers: int) -> PublisherSettings:
    return replace(settings, publisher=publisher, publishers=publishers)


def share(events: list[RecordedEvent], database: str, settings: PublisherSettings, publishers: int) -> list[int]:
    """As many publishers as that, all at once, publish ``events``; how many each."""
    with ExitStack() as opened:
        all_of_them = []
        for number in range(1, publishers + 1):
            mine = one_of(settings, number, publishers)
            all_of_them.append(opened.enter_context(live(Publisher(ListLog(events), database, mine))))
        return [publisher.publish_available() for publisher in all_of_them]


def test_together_they_publish_each_event_once(database: str, settings: PublisherSettings) -> None:
    events = history(400, conversations=40)
    shares = share(events, database, settings, 3)
    assert all(count > 20 for count in shares)
    assert sum(shares) == 360
    assert_exactly_once(settings.bootstrap_servers, settings, events)
    assert sum(share(events, database, settings, 3)) == 0


def test_each_partition_is_written_by_one_of_them(database: str, settings: PublisherSettings) -> None:
    events = history(100, conversations=40)
    with live(Publisher(ListLog(events), database, one_of(settings, 2, 2))) as second:
        second.publish_available()
        records = consumed(settings.bootstrap_servers, settings.events_topic)
        assert records
        assert {record.partition % 2 for record in records} == {1}
        assert all(record.partition == partition_of(record.key, settings.partitions) for record in records)


def test_they_go_on_together_after_their_number_changed(database: str, settings: PublisherSettings) -> None:
    events = history(400, conversations=40)
    for end, publishers in ((100, 1), (200, 3), (300, 2), (400, 1)):
        share(events[:end], database, settings, publishers)
        assert_exactly_once(settings.bootstrap_servers, settings, events[:end])


class SlowLog(ListLog):
    """As a publisher sees it that has read it only up to a position so far."""

    def __init__(self, events: list[RecordedEvent], end: int) -> None:
        super().__init__(events)
        self._end = end

    def read(self, after: int, limit: int) -> Sequence[RecordedEvent]:
        return super().read(after, min(limit, self._end - after))


def uneven(database: str, settings: PublisherSettings, events: list[RecordedEvent]) -> None:
    """Three shared the log and stopped at 250, 40 and 0."""
    with ExitStack() as opened:
        for number, end in ((1, 250), (2, 40), (3, 0)):
            mine = one_of(settings, number, 3)
            opened.enter_context(live(Publisher(SlowLog(events, end), database, mine))).publish_available()


class TakesTheLast(Publisher):
    """Canary: goes on after the foremost of its predecessors and leaves what the others had not published."""

    def _level(self, _: Position, reached: list[int], ids: Sequence[str]) -> list[int]:
        return [max(reached)] * len(ids)


class TakesTheFirst(Publisher):
    """Canary: goes on after the hindmost."""

    def _level(self, _: Position, reached: list[int], ids: Sequence[str]) -> list[int]:
        return [min(reached)] * len(ids)


@pytest.mark.parametrize("kind", [Publisher, TakesTheLast, TakesTheFirst], ids=["levelled", "canary 1", "canary 2"])
def test_what_some_of_them_had_not_published_is_made_up_for_when_their_number_changes(
    kind: type[Publisher], database: str, settings: PublisherSettings
) -> None:
    events = history(400, conversations=40)
    uneven(database, settings, events)
    with live(kind(ListLog(events), database, one_of(settings, 1, 1))) as publisher:
        publisher.publish_available()
    if kind is Publisher:
        assert_exactly_once(settings.bootstrap_servers, settings, events)
    else:
        with pytest.raises(AssertionError):
            assert_exactly_once(settings.bootstrap_servers, settings, events)


class DiesLevelling(Publisher):
    """Ends after its first batch of making up for the others, or in the middle of it."""

    in_the_middle = False

    def _level(self, last: Position, reached: list[int], ids: Sequence[str]) -> list[int]:
        if min(reached) > 0:
            raise ValueError
        return super()._level(last, reached, ids)

    def _require_delivered(self, futures: Sequence[Any]) -> None:
        super()._require_delivered(futures)
        if self.in_the_middle and len(futures) > 3:
            raise ValueError


@pytest.mark.parametrize("in_the_middle", [False, True])
def test_a_death_while_making_up_for_the_others_loses_and_doubles_nothing(
    in_the_middle: bool, database: str, settings: PublisherSettings
) -> None:
    events = history(400, conversations=40)
    uneven(database, settings, events)
    with closing(DiesLevelling(ListLog(events), database, one_of(settings, 1, 2))) as dying:
        dying.in_the_middle = in_the_middle
        with pytest.raises(PublisherFailedError):
            dying.start()
    share(events, database, settings, 2)
    assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_another_number_of_them_waits_until_the_former_have_stopped(database: str, settings: PublisherSettings) -> None:
    events = history(100, conversations=20)
    stop = threading.Event()
    with live(Publisher(ListLog(events[:60]), database, settings)) as first:
        second = Publisher(ListLog(events), database, one_of(settings, 1, 2))
        thread = threading.Thread(target=second.run, args=(stop,))
        thread.start()
        time.sleep(2)
        assert not second.status.is_live
        first.publish_available()
    wait_until(lambda: second.status.position == 100, 30)
    stop.set()
    thread.join(20)
    share(events, database, settings, 2)
    assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_one_of_the_former_that_comes_back_late_is_fenced(database: str, settings: PublisherSettings) -> None:
    class Unlocked(Publisher):
        """Sleeps while it loses its lock."""

        def _require_lock(self) -> None:
            pass

    events = history(100, conversations=20)
    with live(Unlocked(ListLog(events[:50]), database, settings)) as former:
        former.publish_available()
        assert former._lock is not None
        former._lock.close()
        share(events[:80], database, settings, 2)
        former._log = ListLog(events)
        with pytest.raises(PublisherFailedError):
            former.publish_available()
        assert former.status.fencings == 1
    share(events, database, settings, 2)
    assert_exactly_once(settings.bootstrap_servers, settings, events)


def test_more_of_them_than_partitions_are_refused(database: str, settings: PublisherSettings) -> None:
    for wrong, said in (
        (one_of(settings, 1, 5), "cannot share 4 partitions"),
        (one_of(settings, 3, 2), "no publisher"),
    ):
        with (
            closing(Publisher(ListLog([]), database, wrong)) as publisher,
            pytest.raises(StartRefusedError, match=said),
        ):
            publisher.start()
