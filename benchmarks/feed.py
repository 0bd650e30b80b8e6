"""The feed as a whole: how fast it is published, how soon it arrives, how long catching up takes.

`make bench-feed`. The throughput is that of `publishing`; beside it stands librdkafka's client, for the record.
"""

from contextlib import closing
from time import monotonic
from uuid import UUID

from adapters.command_handler import CommandHandler
from adapters.event_log import EventLog
from adapters.importers import import_file
from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError
from adapters.kafka_position import PublisherSettings
from adapters.kafka_publisher import Publisher
from benchmarks import feed_latency, publishing
from benchmarks.feed_latency import head
from benchmarks.measuring import Bench, table
from benchmarks.publishing import CACHE
from benchmarks.real_log import real_log
from benchmarks.workload import keys

CATCH_UP_EVENTS = 1_000_000


def run(bench: Bench) -> None:
    """Measure and print the tables, or say what to install."""
    publishing.run(bench)
    feed_latency.run(bench)
    try:
        with KafkaBroker(cache=CACHE, java_options=()) as broker:
            _catch_up(bench, broker.bootstrap_servers)
    except KafkaUnavailableError as error:
        print(f"\nCatching up is not measured: {error}")


def _catch_up(bench: Bench, bootstrap_servers: str) -> None:
    """A publisher that finds a million events, or a few where it must be quick."""
    wanted = 20_000 if bench.is_quick else CATCH_UP_EVENTS
    log, number = real_log(bench), 100
    with closing(CommandHandler(log.conninfo, keys(log.conninfo))) as handler:
        while head(log.conninfo) < wanted:
            import_file(handler, UUID(int=number), log.path, "servicenow")
            number += 1
    settings = PublisherSettings(bootstrap_servers, topic_prefix="catch-up", replication_factor=1)
    with EventLog(log.conninfo) as reader, closing(Publisher(reader, log.conninfo, settings)) as publisher:
        publisher.start()
        started = monotonic()
        count = publisher.publish_available()
        seconds = monotonic() - started
    table("Catching up", ("", "events", "s", "events/s"), [("an empty topic", f"{count:,}", seconds, count / seconds)])
