"""The feed under faults, on three real brokers while commands come in: topic = log for a ``read_committed`` consumer,
and the last state of each conversation is that after its last event.

Publishers are killed, frozen for longer than a transaction may take, doubled; brokers are restarted and killed; the
cable between them is cut. The seed of a run is printed; CONVERSAS_SEED sets it.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from brokers import Brokers
from campaign import CAMPAIGN, only_in_campaigns
from network import FAR, Network, NetworkRefusedError, entered
from publishers import Unlocked, Work, at_work, reasons
from topic import Seen

from adapters import kafka_position
from adapters.kafka_broker import KafkaUnavailableError
from adapters.kafka_position import Position
from adapters.kafka_publisher import Publisher

pytestmark = [
    pytest.mark.faults,
    pytest.mark.kafka,
    # kafka-python leaves each socket whose connect was refused to the garbage collector, without closing it.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

SEED = int(os.environ.get("CONVERSAS_SEED", time.time_ns() % 10**6))
OF_PUBLISHERS = {"kill": 340, "double": 80, "haunt": 40, "freeze": 40} if CAMPAIGN else {"kill": 2, "haunt": 1}
"""Faults by name, 500 in all: `publishers.Share` has what they are."""
RESTARTS = 50 if CAMPAIGN else 1
KILLS = 50 if CAMPAIGN else 1
CUTS = 20 if CAMPAIGN else 1


@dataclass(frozen=True)
class Place:
    """Where the tests run."""

    brokers: Brokers
    network: Network | None
    refused: str
    """Why there is no network of our own."""

    @property
    def namespace(self) -> Path | None:
        """The publishers'."""
        return self.network.publishers if self.network else None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Three brokers in a network of our own, where the kernel allows that; this thread is in it too."""
    directory = tmp_path_factory.mktemp("brokers")
    with ExitStack() as stack:
        network, refused = None, ""
        try:
            network = stack.enter_context(Network())
        except NetworkRefusedError as error:
            refused = str(error)
        if network:
            stack.enter_context(entered(network.brokers))
        try:
            brokers = stack.enter_context(Brokers(directory, FAR if network else None, many_starts=CAMPAIGN))
        except KafkaUnavailableError as error:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))
        yield Place(brokers, network, refused)


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    random.seed(f"{SEED} {request.node.name}")


Harm = Callable[[Work, Place], None]


# The faults


def harm_publishers(work: Work, _: Place) -> None:
    """Kills, freezes, doubles."""
    faults = list(Counter(OF_PUBLISHERS).elements())
    random.shuffle(faults)
    work.visit(faults)


def restart_brokers(work: Work, place: Place) -> None:
    """One after another, as an upgrade does."""
    for _ in range(RESTARTS):
        work.require_health()
        random.choice(place.brokers.nodes).restart()
        place.brokers.wait_until_in_sync()
        work.add(random.choices(["kill"], k=random.choice([0, 0, 1])))


def cut_network(work: Work, place: Place) -> None:
    """For a moment, or for longer than records and transactions may take."""
    for _ in range(CUTS if place.network else 0):
        assert place.network is not None
        work.require_health()
        time.sleep(random.uniform(0.5, 3))
        place.network.cut()
        time.sleep(random.choice([0.3, 3.0, 12.0] if CAMPAIGN else [3.0]) * random.uniform(0.5, 1.5))
        place.network.mend()


def kill_brokers(work: Work, place: Place) -> None:
    """`kill -9`, at times before all copies are there again."""
    for _ in range(KILLS):
        work.require_health()
        node = random.choice(place.brokers.nodes)
        node.kill()
        time.sleep(random.uniform(0, 3))
        node.start()
        node.wait_until_ready()
        if random.random() < 0.7:
            place.brokers.wait_until_in_sync()
        work.add(random.choices(["kill"], k=random.choice([0, 0, 1])))
    place.brokers.wait_until_in_sync()


def seen_after(harm: Sequence[Harm], place: Place, database: str, directory: Path) -> Seen:
    """What is on the topic when it is over."""
    started = time.monotonic()
    with at_work(database, place.brokers, place.namespace, directory) as work:
        for each in harm:
            each(work, place)
        seen = work.seen()
        told = ", ".join(f"{count} {name}" for name, count in sorted(work.counts.items()))
    why = ", ".join(f"{count} {name}" for name, count in reasons(directory).most_common())
    print(  # noqa: T201  # pytest -s
        f"\n{' and '.join(each.__name__ for each in harm)} (seed {SEED}): {seen.events} events, {len(seen.missing)}"
        f" missing, {len(seen.shuffled)} out of order, {len(seen.repeated)} repeated, {len(seen.stale)} states of"
        f" {seen.conversations} stale; publishers: {told};"
        f" ended by themselves because of: {why}; {time.monotonic() - started:.0f} s"
    )
    return seen


HARMS: list[list[Harm]] = [[harm_publishers, cut_network, restart_brokers]]
if CAMPAIGN:
    HARMS = [[harm_publishers], [restart_brokers], [cut_network]]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: " and ".join(each.__name__ for each in harm))
def test_each_event_is_seen_once_and_in_order(
    harm: Sequence[Harm], place: Place, database: str, tmp_path: Path
) -> None:
    seen_after(harm, place, database, tmp_path).assert_each_once()
    if cut_network in harm and place.network is None:
        pytest.skip(f"nothing was cut: {place.refused}")


def test_killed_brokers_lose_and_shuffle_nothing(place: Place, database: str, tmp_path: Path) -> None:
    """What they may repeat is known by its version, as the document says."""
    seen = seen_after([kill_brokers], place, database, tmp_path)
    assert not seen.missing
    assert not seen.shuffled
    assert not seen.stale


# Canaries: publishers without a guard, by the same faults and the same look. The same ones on the one schedule on which
# they must fail are in `tests/integration/test_kafka_one_publisher.py`, and run always; those without the guards before
# the client's three holes in `test_kafka_publisher_dies.py` beside it, where the only broker goes.


class PositionApart(Publisher):
    """Commits the events first and their position afterwards."""

    def _send_position(self, position: Position, *more: Any) -> Any:
        if self._origin is not None:
            self._producer.commit_transaction()
            time.sleep(0.5)
            self._producer.begin_transaction()
        return super()._send_position(position, *more)


class Unfenced(Unlocked):
    """Each process has a transactional id of its own, so none fences another."""

    def _transactional(self, transactional_id: str) -> Any:
        return super()._transactional(f"{transactional_id}-{os.getpid()}")


class ReadsUncommitted(Publisher):
    """Goes on after the last position that was sent, committed or not."""

    def start(self, stop: Any = None) -> bool:
        consumer = kafka_position._consumer
        kafka_position._consumer = lambda settings, _: consumer(settings, "read_uncommitted")
        return super().start(stop)

    def _require_delivered(self, futures: Sequence[Any]) -> None:
        super()._require_delivered(futures)
        time.sleep(0.5)


class KeepsStates(Publisher):
    """Leaves the last state of each transaction out."""

    def _send_events(self, batch: Any) -> list[Any]:
        return super()._send_events(replace(batch, states=batch.states[:-1]))


CANARIES: dict[type[Publisher], tuple[list[str], str]] = {
    KeepsStates: (["kill"], "stale"),
    Unfenced: (["haunt"] * 12, "repeated"),
    PositionApart: (["kill"] * 6, "repeated"),
    ReadsUncommitted: (["kill"] * 6, "missing"),
}


@only_in_campaigns("a race, which takes minutes to be lost for sure")
@pytest.mark.parametrize("kind", CANARIES, ids=lambda kind: kind.__name__)
def test_canary_a_publisher_without_a_guard_is_caught(
    kind: type[Publisher], place: Place, database: str, tmp_path: Path
) -> None:
    faults, said = CANARIES[kind]
    with at_work(database, place.brokers, place.namespace, tmp_path, lambda: kind) as work:
        work.visit(faults)
        seen = work.seen(20)
    assert len(getattr(seen, said)) > 0
    with pytest.raises(AssertionError):
        seen.assert_each_once()
