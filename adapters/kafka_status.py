"""What the publishers tell of themselves, in a table, for the metrics of the API: they have no door of their own.

Invariant: nothing is decided by it; where the log is published up to, only the topic of positions says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

STATUS_QUERY = """
select name, publisher_position, commits, aborts, fencings, is_live, head, head - publisher_position as unpublished,
    coalesce(extract(epoch from clock_timestamp() - (
        select recorded_at from events where events.position > publisher_position order by events.position limit 1
    )), 0)::float8 as unpublished_age_seconds
from publishers, (select coalesce(max(position), 0) as head from events) log order by name"""
"""How the publishers are doing, and what of the log they have not published."""

_TELL = """
insert into publishers (name, topic, publisher_position, commits, aborts, fencings, is_live, told_at)
values (%(name)s, %(topic)s, %(position)s, %(commits)s, %(aborts)s, %(fencings)s, %(is_live)s, clock_timestamp())
on conflict (name) do update set
    topic = excluded.topic, publisher_position = excluded.publisher_position,
    commits = publishers.commits + excluded.commits, aborts = publishers.aborts + excluded.aborts,
    fencings = publishers.fencings + excluded.fencings, is_live = excluded.is_live, told_at = excluded.told_at"""

_FORGET = "delete from publishers where topic = %s and name <> all(%s)"


@dataclass(slots=True)
class PublisherStatus:
    """How this publisher is doing; written by its thread only."""

    is_live: bool = False
    """It holds the lock and publishes; False: it waits, has stopped or failed."""
    position: int = 0
    """Up to which the log is published."""
    published: int = 0
    """Events, by this process; like all below."""
    commits: int = 0
    aborts: int = 0
    """Transactions left without a commit; the next start aborts them at the broker."""
    fencings: int = 0


class StatusTable:
    """Keeps one publisher's row; counters go on over restarts."""

    def __init__(self, connection: psycopg.Connection[Any], name: str, topic: str) -> None:
        self._connection = connection
        self._name = name
        self._topic = topic
        self._told = PublisherStatus()

    def tell(self, status: PublisherStatus) -> None:
        """Write what has changed since the last time."""
        told, counters = self._told, ("commits", "aborts", "fencings")
        more = {counter: getattr(status, counter) - getattr(told, counter) for counter in counters}
        row = {"name": self._name, "topic": self._topic, "position": status.position, "is_live": status.is_live}
        self._connection.execute(_TELL, row | more)
        for counter in counters:
            setattr(told, counter, getattr(status, counter))

    def forget_all_but(self, names: Sequence[str]) -> None:
        """Remove the rows of publishers that share this topic's log no longer."""
        self._connection.execute(_FORGET, (self._topic, list(names)))


class Publishers(Collector):
    """The rows of `STATUS_QUERY` for Prometheus."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def collect(self) -> list[Metric]:
        """The metrics of all publishers."""
        gauges = {
            "publisher_position": ("conversas_published_position", "Up to which position of the log it has published"),
            "unpublished": ("conversas_unpublished", "Positions of the log that it has not published"),
            "unpublished_age_seconds": ("conversas_unpublished_age_seconds", "Age of the first of them"),
            "is_live": ("conversas_publisher_live", "1 while it holds its lock and publishes, as far as it has said"),
        }
        counters = {
            "commits": ("conversas_publisher_commits", "Kafka transactions committed"),
            "aborts": ("conversas_publisher_aborts", "Kafka transactions left without a commit"),
            "fencings": ("conversas_publisher_fencings", "Times that another publisher had taken over"),
        }
        families: list[Metric] = []
        for column, (name, meaning) in (gauges | counters).items():
            kind = GaugeMetricFamily if column in gauges else CounterMetricFamily
            family = kind(name, meaning, labels=["publisher"])
            for row in self._rows:
                family.add_metric([row["name"]], float(row[column]))
            families.append(family)
        return families
