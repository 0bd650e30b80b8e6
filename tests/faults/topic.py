"""A topic as a ``read_committed`` consumer sees it, against the log.

The consumer is librdkafka's: it shares no line with the client that publishes.
"""

import time
from collections import defaultdict
from dataclasses import dataclass, field

import confluent_kafka


@dataclass
class Seen:
    """What a ``read_committed`` consumer saw, against the log."""

    events: int = 0
    conversations: int = 0
    missing: list[str] = field(default_factory=list)
    shuffled: list[str] = field(default_factory=list)
    """Came before one that precedes it."""
    repeated: list[str] = field(default_factory=list)
    """Came again; its version, not above the last one, says so."""
    stale: list[str] = field(default_factory=list)
    """Conversations whose last state is not that after their last event."""

    def assert_each_once(self) -> None:
        """Topic = log."""
        assert not self.missing, f"{len(self.missing)} of {self.events} missing, such as {self.missing[:3]}"
        assert not self.shuffled, f"{len(self.shuffled)} of {self.events} out of order, such as {self.shuffled[:3]}"
        assert not self.repeated, f"{len(self.repeated)} of {self.events} repeated, such as {self.repeated[:3]}"
        assert not self.stale, f"{len(self.stale)} states are not the last, such as {self.stale[:3]}"


class Reader:
    """Reads a topic from its beginning."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._consumer = confluent_kafka.Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "faults",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        self._topic = topic

    def read(self, expected: dict[str, int], seconds: float) -> dict[str, list[int]]:
        """The versions of each conversation, as they came, until the last have come and nothing more for a second."""
        found: dict[str, list[int]] = defaultdict(list)
        awaited, deadline = dict(expected), time.monotonic() + seconds
        partitions = self._consumer.list_topics(self._topic, 10).topics[self._topic].partitions
        self._consumer.assign([confluent_kafka.TopicPartition(self._topic, each, 0) for each in partitions])
        last = time.monotonic()
        while time.monotonic() < deadline and (awaited or time.monotonic() < last + 1):
            for message in self._consumer.consume(1_000, 0.2):
                if message.error():
                    continue  # a broker that is away; it comes again
                version = int(dict(message.headers())["ce_sequence"])
                conversation = message.key().decode().rpartition("/")[2]  # all are of one workspace
                found[conversation].append(version)
                if version == awaited.get(conversation):
                    del awaited[conversation]
                last = time.monotonic()
        self._consumer.close()
        return found


def compared(expected: dict[str, int], found: dict[str, list[int]], states: dict[str, list[int]]) -> Seen:
    """Versions of each conversation's events and states as they came, against its last version in the log."""
    seen = Seen(sum(expected.values()), len(expected))
    reached = {id_: versions[-1] for id_, versions in states.items()}
    seen.stale = [f"{id_}:{reached.get(id_)}" for id_, last in expected.items() if reached.get(id_) != last]
    for id_, last in expected.items():
        reached = 0
        for version in found.get(id_, []):
            if version <= reached:
                seen.repeated.append(f"{id_}:{version}")
            elif version > reached + 1:
                seen.shuffled.append(f"{id_}:{version}")
            reached = max(reached, version)
        missing = set(range(1, last + 1)) - set(found.get(id_, []))
        seen.missing += [f"{id_}:{version}" for version in sorted(missing)]
    unknown = found.keys() - expected.keys()
    assert not unknown, f"on the topic, and not in the log: {sorted(unknown)[:3]}"
    return seen
