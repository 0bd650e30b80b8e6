"""`conversas topics`: makes what is missing with its settings, changes nothing else, refuses another shape."""

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from feed import admin
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from typer.testing import CliRunner

from adapters import kafka_topics
from adapters.kafka_topics import StartRefusedError, TopicSettings, ensure_topics, make_topics
from api.__main__ import app
from api.cli import feeding
from api.settings import Settings

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]


@pytest.fixture
def settings(kafka_bootstrap: str) -> TopicSettings:
    return TopicSettings(kafka_bootstrap, topic_prefix=f"t-{uuid.uuid4()}", partitions=3, replication_factor=1)


def topics_command(settings: TopicSettings) -> subprocess.CompletedProcess[str]:
    given = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "KAFKA_TOPIC_PREFIX": settings.topic_prefix,
        "LOG_LEVEL": "error",
    }
    environment = os.environ | {f"CONVERSAS_{name}": value for name, value in given.items()}
    command = [sys.executable, "-m", "api", "topics"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def configs(settings: TopicSettings, topic: str) -> Mapping[str, str]:
    with admin(settings.bootstrap_servers) as client:
        found = client.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    return {name: config["value"] for name, config in found["topic"][topic].items()}


def partitions(settings: TopicSettings) -> dict[str, int]:
    with admin(settings.bootstrap_servers) as client:
        return {each["name"]: len(each["partitions"]) for each in client.describe_topics(list(settings.topics))}


def test_the_command_makes_three_topics_and_again_changes_nothing(settings: TopicSettings) -> None:
    prefix = settings.topic_prefix
    made = topics_command(settings)
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines() == [
        f"{prefix}.events.v1: 24 partitions, made",
        f"{prefix}.latest.v1: 24 partitions, made",
        f"{prefix}.positions.v1: 1 partitions, made",
    ]
    assert partitions(settings) == {f"{prefix}.events.v1": 24, f"{prefix}.latest.v1": 24, f"{prefix}.positions.v1": 1}
    again = make_topics(replace(settings, partitions=24))
    assert [line.endswith("there already") for line in again] == [True] * 3


def test_the_command_refuses_another_partition_count_with_a_sentence(
    settings: TopicSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_topics(settings)
    monkeypatch.setenv("CONVERSAS_KAFKA_BOOTSTRAP_SERVERS", settings.bootstrap_servers)
    monkeypatch.setenv("CONVERSAS_KAFKA_TOPIC_PREFIX", settings.topic_prefix)
    monkeypatch.setenv("CONVERSAS_KAFKA_PARTITIONS", "6")
    monkeypatch.setenv("CONVERSAS_LOG_LEVEL", "error")
    refused = CliRunner().invoke(app, ["topics"])
    assert refused.exit_code == 1
    [said] = refused.output.splitlines()
    assert said.startswith(f"Refused: {settings.events_topic} has 3 partitions, not the 6 that are configured")
    assert set(partitions(settings).values()) == {3, 1}


def test_the_command_says_where_no_kafka_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that it need not be as patient as it is."""
    found = feeding.publisher_settings(Settings(kafka_bootstrap_servers="127.0.0.1:1"))
    monkeypatch.setattr(feeding, "publisher_settings", lambda _: replace(found, request_timeout_seconds=0.5))
    with pytest.raises(SystemExit, match=r"^Kafka at 127\.0\.0\.1:1: "):
        feeding.topics()


def test_events_are_kept_for_ever_and_states_and_positions_compacted(settings: TopicSettings) -> None:
    ensure_topics(settings)
    events = configs(settings, settings.events_topic)
    assert (events["cleanup.policy"], events["retention.ms"], events["retention.bytes"]) == ("delete", "-1", "-1")
    for topic in (settings.latest_topic, settings.positions_topic):
        assert configs(settings, topic)["cleanup.policy"] == "compact"


def test_a_setting_that_somebody_changed_is_set_anew_and_said(settings: TopicSettings) -> None:
    ensure_topics(settings)
    with admin(settings.bootstrap_servers) as client:
        changed = ConfigResource(ConfigResourceType.TOPIC, settings.events_topic, configs={"retention.ms": "1000000"})
        client.alter_configs([changed])
    events, *others = make_topics(settings)
    assert events.endswith("set anew: retention.ms=-1 (was 1000000)")
    assert all(line.endswith("there already") for line in others)
    assert configs(settings, settings.events_topic)["retention.ms"] == "-1"


def test_a_policy_that_would_lose_what_is_in_a_topic_is_refused(settings: TopicSettings) -> None:
    ensure_topics(settings)
    with admin(settings.bootstrap_servers) as client:
        changed = ConfigResource(ConfigResourceType.TOPIC, settings.events_topic, configs={"cleanup.policy": "compact"})
        client.alter_configs([changed])
    with pytest.raises(StartRefusedError, match=r"cleanup.policy=compact, which would lose"):
        ensure_topics(settings)


def test_a_broker_that_has_not_heard_of_a_new_topic_yet_is_asked_again(
    settings: TopicSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, describe, find = KafkaAdminClient.wait_for_topics, KafkaAdminClient.describe_topics, kafka_topics._configs
    late = []

    def waiting(client: KafkaAdminClient, *arguments: Any, **options: Any) -> None:
        wait(client, *arguments, **options)
        late.append("partitions" if not late else "settings" if len(late) == 1 else "nothing")

    def without_partitions(client: KafkaAdminClient, topics: list[str]) -> list[dict[str, Any]]:
        is_late = late == ["partitions"] and not asked
        asked.extend(late)
        return [each | {"partitions": []} for each in describe(client, topics)] if is_late else describe(client, topics)

    def without_settings(client: KafkaAdminClient, topics: list[str]) -> dict[str, dict[str, str]]:
        return find(client, topics) | ({topics[-1]: {}} if late[-1] == "settings" else {})

    asked: list[str] = []
    monkeypatch.setattr(KafkaAdminClient, "wait_for_topics", waiting)
    monkeypatch.setattr(KafkaAdminClient, "describe_topics", without_partitions)
    monkeypatch.setattr(kafka_topics, "_configs", without_settings)
    assert len(ensure_topics(settings).made) == 3
    assert late == ["partitions", "settings", "nothing"]
