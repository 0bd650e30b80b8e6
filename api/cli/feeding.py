"""Commands of the feed: make its topics, publish to them, run a local Kafka to try it with.

Invariant: the publisher and the command that makes its topics are given the same settings.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.contact_keys import ContactKeys
from adapters.event_log import EventLog
from adapters.postgres import Role
from adapters.shares import TopicRefusedError
from api.cli.shell import app, database, load_settings, out
from api.settings import PREFIX, SCHEMA_SUFFIX, Settings, kafka_security, schema_base
from api.supervisor import stop_on_signals

if TYPE_CHECKING:
    from adapters.kafka_position import PublisherSettings  # Kafka's client is slow to load, and few commands need it
    from adapters.kafka_topics import TopicSettings


def publisher_settings(chosen: Settings, publisher: int = 1) -> "PublisherSettings":
    """What the publisher needs of the settings; ends the program where no Kafka is set."""
    if chosen.kafka_bootstrap_servers is None:
        raise SystemExit(f"No Kafka is set: set {PREFIX}KAFKA_BOOTSTRAP_SERVERS (see: make kafka)")
    from adapters.kafka_position import PublisherSettings  # noqa: PLC0415  # see above

    return PublisherSettings(
        bootstrap_servers=chosen.kafka_bootstrap_servers,
        topic_prefix=chosen.kafka_topic_prefix,
        partitions=chosen.kafka_partitions,
        replication_factor=chosen.kafka_replication_factor,
        security=kafka_security(chosen),
        publisher=publisher,
        publishers=chosen.kafka_publishers,
        schema_base=schema_base(chosen),
        schema_suffix=SCHEMA_SUFFIX,
        cached_states=chosen.cached_states,
    )


@app.command()
def topics() -> None:
    """Make the topics of the feed with their settings; doing it again changes nothing."""
    from kafka.errors import KafkaError  # noqa: PLC0415  # see above

    from adapters.kafka_topics import StartRefusedError, make_topics  # noqa: PLC0415  # see above

    wanted = publisher_settings(load_settings())
    try:
        lines = make_topics(wanted)
    except StartRefusedError as error:
        raise SystemExit(f"Refused: {error}.") from None
    except KafkaError as error:
        raise SystemExit(f"Kafka at {wanted.bootstrap_servers}: {error}") from None
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False)


def project_from_kafka(
    url: str, wanted: "TopicSettings", keys: Callable[[], ContactKeys], stop: threading.Event
) -> None:
    """Project what is published, until ``stop`` is set; ends the program with a sentence where it cannot go on."""
    from adapters.kafka_projector import KafkaProjector  # noqa: PLC0415  # see above
    from adapters.kafka_topics import StartRefusedError  # noqa: PLC0415  # see above

    try:
        KafkaProjector(url, wanted, keys).run(stop)
    except (StartRefusedError, TopicRefusedError) as error:
        raise SystemExit(f"Not projecting from Kafka: {error}.") from None


@app.command()
def publish(
    publisher: Annotated[int, typer.Option(min=1, help="which of the publishers that share the log this is")] = 1,
) -> None:
    """Publish the log to Kafka, until stopped."""
    from adapters import kafka_publisher  # noqa: PLC0415  # see above

    chosen = load_settings()
    wanted = publisher_settings(chosen, publisher)
    stop = stop_on_signals()
    with database(chosen) as url, EventLog(url, application="conversas-publisher", role=Role.PUBLISHER) as log:
        try:
            kafka_publisher.Publisher(log, url, wanted, wait=log.wait).run(stop)
        except kafka_publisher.StartRefusedError as error:
            raise SystemExit(f"Not publishing: {error}") from None
        except kafka_publisher.PublisherFailedError:
            raise SystemExit(1) from None  # it has logged why
