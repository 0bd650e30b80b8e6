"""The topics that the log is published to: made with their settings, or refused where they are of another shape.

Invariant: a topic's partitions never change, since a key would go elsewhere and its order be lost; making the topics
again changes nothing.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic, sleep
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaTimeoutError, TopicAlreadyExistsError

log = logging.getLogger(__name__)

RETRY_BACKOFF_MS = 10
KEPT_FOR_EVER = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}
COMPACTED = {"cleanup.policy": "compact", "segment.bytes": "16777216", "segment.ms": "3600000"}
STATES = {"cleanup.policy": "compact", "delete.retention.ms": "604800000"}  # a week to see that something is gone
SAFE_REPLICATION_FACTOR = 3


class StartRefusedError(Exception):
    """Going on would lose or repeat events, or there is nothing to begin with; a person must look, the message says
    where.
    """


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """Which Kafka, how to reach it, and the shape of its topics. Times are in seconds."""

    bootstrap_servers: str
    topic_prefix: str = "conversations"
    partitions: int = 24
    """Of the topics of events and states, when they are made; never changed afterwards."""
    replication_factor: int = -1
    """-1: what the broker has as its default."""
    request_timeout_seconds: float = 10
    security: Mapping[str, Any] = field(default_factory=dict)
    """kafka-python's TLS and SASL settings, passed through."""

    @property
    def events_topic(self) -> str:
        """Where the events go."""
        return f"{self.topic_prefix}.events.v1"

    @property
    def latest_topic(self) -> str:
        """Where the state of each conversation goes."""
        return f"{self.topic_prefix}.latest.v1"

    @property
    def positions_topic(self) -> str:
        """Where the publishers keep their positions."""
        return f"{self.topic_prefix}.positions.v1"

    @property
    def topics(self) -> dict[str, dict[str, Any]]:
        """What kafka-python wants to know to make the topics."""
        safe = {"min.insync.replicas": "2"} if self.replication_factor >= SAFE_REPLICATION_FACTOR else {}

        def topic(partitions: int, configs: dict[str, str]) -> dict[str, Any]:
            replicas = self.replication_factor
            return {"num_partitions": partitions, "replication_factor": replicas, "configs": configs | safe}

        return {
            self.events_topic: topic(self.partitions, KEPT_FOR_EVER),
            self.latest_topic: topic(self.partitions, STATES),
            self.positions_topic: topic(1, COMPACTED),
        }

    @property
    def client(self) -> dict[str, Any]:
        """What every client of kafka-python is given here."""
        return {
            "bootstrap_servers": self.bootstrap_servers,
            "request_timeout_ms": int(self.request_timeout_seconds * 1_000),
            "bootstrap_timeout_ms": int(self.request_timeout_seconds * 1_000),
            "retry_backoff_ms": RETRY_BACKOFF_MS,
            "reconnect_backoff_max_ms": 1_000,
            **self.security,
        }


@dataclass(frozen=True, slots=True)
class Topics:
    """What was found or made."""

    cluster_id: str
    topic_ids: dict[str, str]
    made: tuple[str, ...]
    """Names of the topics that were not there."""


def ensure_topics(settings: TopicSettings) -> Topics:
    """Make the topics that are missing; raises `StartRefusedError` where one is there with another shape."""
    wanted = settings.topics
    with _admin(settings) as admin:
        present = set(admin.list_topics())
        missing = tuple(topic for topic in wanted if topic not in present)
        for topic in missing:
            log.info("making the topic %s", topic)
            with contextlib.suppress(TopicAlreadyExistsError):
                admin.create_topics({topic: wanted[topic]})
        described, configs = _shapes(admin, list(wanted), settings.request_timeout_seconds)
        cluster_id = str(admin.describe_cluster()["cluster_id"])
    for topic, options in wanted.items():
        _require_partitions(topic, len(described[topic]["partitions"]), options["num_partitions"])
        _require_policy(topic, configs[topic], options["configs"])
    return Topics(cluster_id, {name: str(topic["topic_id"]) for name, topic in described.items()}, missing)


def find_events_topic(settings: TopicSettings) -> tuple[str, int]:
    """The id of the topic of events and its number of partitions; raises `StartRefusedError` where there is none."""
    with _admin(settings) as admin:
        if settings.events_topic not in admin.list_topics():
            message = (
                f"there is no topic {settings.events_topic} at {settings.bootstrap_servers}; make it (conversas topics)"
                " and publish to it (conversas publish)"
            )
            raise StartRefusedError(message)
        [topic] = admin.describe_topics([settings.events_topic])
    return str(topic["topic_id"]), len(topic["partitions"])


def make_topics(settings: TopicSettings) -> list[str]:
    """As `ensure_topics`, and give topics that were there our settings again; what was done, a line for each."""
    found = ensure_topics(settings)
    lines = []
    with _admin(settings) as admin:
        configs = _configs(admin, list(settings.topics))
        for topic, options in settings.topics.items():
            shape = f"{topic}: {options['num_partitions']} partitions"
            other = {name: value for name, value in options["configs"].items() if configs[topic][name] != value}
            if other:
                admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=other)])
            if topic in found.made:
                lines.append(f"{shape}, made")
            elif other:
                changes = ", ".join(f"{name}={value} (was {configs[topic][name]})" for name, value in other.items())
                lines.append(f"{shape}, set anew: {changes}")
            else:
                lines.append(f"{shape}, there already")
    return lines


@contextlib.contextmanager
def _admin(settings: TopicSettings) -> Iterator[Any]:
    admin = KafkaAdminClient(**settings.client)
    try:
        yield admin
    finally:
        admin.close()


def _shapes(
    admin: Any, topics: list[str], seconds: float
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]]]:
    """The partitions and the settings of ``topics``, by name.

    Whichever broker is asked may not have heard yet of a topic that was just made: it is asked again, as it would seem
    to have neither.
    """
    deadline = monotonic() + seconds
    while True:
        admin.wait_for_topics(topics, timeout_ms=int(seconds * 1_000))
        described = {topic["name"]: topic for topic in admin.describe_topics(topics)}
        configs = _configs(admin, topics)
        if all(described[topic]["partitions"] and configs[topic] for topic in topics):
            return described, configs
        if monotonic() > deadline:
            message = f"not all brokers know {', '.join(topics)}"
            raise KafkaTimeoutError(message)
        sleep(RETRY_BACKOFF_MS / 1_000)


def _configs(admin: Any, topics: list[str]) -> dict[str, dict[str, str]]:
    """The settings in force of ``topics``."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, topic) for topic in topics]
    found = admin.describe_configs(asked, config_filter="all")["topic"]
    return {topic: {name: config["value"] for name, config in found[topic].items()} for topic in topics}


def _require_partitions(topic: str, found: int, wanted: int) -> None:
    if found != wanted:
        message = (
            f"{topic} has {found} partitions, not the {wanted} that are configured; they are fixed when a topic is "
            "made, since conversations would go to other partitions and their order be lost"
        )
        raise StartRefusedError(message)


def _require_policy(topic: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Compacting events, or deleting positions and states by their age, would lose them."""
    if found["cleanup.policy"] != wanted["cleanup.policy"]:
        message = (
            f"{topic} has cleanup.policy={found['cleanup.policy']}, which would lose what is in it; it must be "
            f"{wanted['cleanup.policy']}"
        )
        raise StartRefusedError(message)
