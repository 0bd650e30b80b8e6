"""The example that consumers start from: its own table is right, whatever dies, and comes in thirty lines."""

import ast
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from campaign import SLOW_CANARY, only_in_campaigns
from feed import history, in_two_workspaces, make_settings, publish, wait_until
from kafka import KafkaProducer

from adapters.cloud_events import MessageMaker
from adapters.kafka_publisher import PublisherSettings
from domain.envelope import RecordedEvent, StreamType
from domain.events import ConversationFinalizedAutomatically, FinalizationCause

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "consumer.py"


@pytest.fixture
def settings(kafka_bootstrap: str) -> PublisherSettings:
    return make_settings(kafka_bootstrap)


def finalizing(count: int) -> list[RecordedEvent]:
    """A log in which every second event of a conversation is its end."""
    end = ConversationFinalizedAutomatically(cause=FinalizationCause.BOT)
    return [
        replace(each, event=end) if each.stream.type is StreamType.CONVERSATION and each.version % 2 == 0 else each
        for each in history(count, conversations=11)
    ]


def expected(events: Sequence[RecordedEvent]) -> dict[str, int]:
    ends = [each for each in events if isinstance(each.event, ConversationFinalizedAutomatically)]
    return dict(Counter(f"{each.metadata.actor.kind}:{each.metadata.actor.id}" for each in ends))


@contextmanager
def example(settings: PublisherSettings, file: Path, program: Path = EXAMPLE) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, program, settings.bootstrap_servers, file, settings.events_topic]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def query(file: Path, statement: str) -> list[tuple[object, ...]]:
    if not file.exists():
        return []
    with closing(sqlite3.connect(file, timeout=10)) as table:
        try:
            return table.execute(statement).fetchall()
        except sqlite3.OperationalError:
            return []  # its tables are not there yet


def has_read(file: Path, events: Sequence[RecordedEvent]) -> bool:
    of_conversations = [each for each in events if each.stream.type is StreamType.CONVERSATION]
    conversations = {f"/workspaces/{e.stream.workspace_id}/{e.stream.id}": e.version for e in of_conversations}
    return dict(query(file, "select * from versions")) == conversations


def counted(file: Path) -> dict[str, int]:
    return dict(query(file, "select * from finalized"))  # type: ignore[arg-type]


def test_it_counts_what_the_log_holds(database: str, settings: PublisherSettings, tmp_path: Path) -> None:
    """Of workspaces whose conversations have the same ids, too."""
    events = in_two_workspaces(finalizing(150))
    publish(events, database, settings)
    file = tmp_path / "table"
    with example(settings, file):
        wait_until(lambda: has_read(file, events), 40)
    assert counted(file) == expected(events)


def kill_while_reading(settings: PublisherSettings, file: Path, program: Path, events: list[RecordedEvent]) -> None:
    """At most six times, until nothing is left to read."""
    for _ in range(6):
        before = query(file, "select sum(next) from offsets")
        with example(settings, file, program) as process:
            while query(file, "select sum(next) from offsets") == before and not has_read(file, events):
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
        if has_read(file, events):
            break
    with example(settings, file, program):
        wait_until(lambda: has_read(file, events), 60)


APART = [
    ('        table.execute("begin immediate")\n', ""),
    ('        table.execute("commit")\n', ""),
    ("if known is None or version > known[0]:", "if True:"),
    ("consumer.poll(timeout_ms=1_000)", "consumer.poll(timeout_ms=1_000, max_records=20)"),
]
"""The canary's changes: each statement a transaction of its own, and nothing is skipped."""


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["example", pytest.param("canary", marks=only_in_campaigns(SLOW_CANARY))])
def test_killed_while_it_reads_it_still_counts_each_once(
    kind: str, database: str, settings: PublisherSettings, tmp_path: Path
) -> None:
    events = finalizing(3_000)
    publish(events, database, settings)
    text = EXAMPLE.read_text().replace(*APART[3])
    if kind == "canary":
        for change in APART[:3]:
            assert change[0] in text
            text = text.replace(*change)
    program = tmp_path / "consumer.py"
    program.write_text(text)
    file = tmp_path / "table"
    kill_while_reading(settings, file, program, events)
    if kind == "example":
        assert counted(file) == expected(events)
    else:
        assert counted(file) != expected(events)


def test_a_record_that_comes_again_is_skipped(database: str, settings: PublisherSettings, tmp_path: Path) -> None:
    events = finalizing(60)
    publish(events, database, settings)
    maker = MessageMaker(settings.partitions, "")
    with closing(KafkaProducer(bootstrap_servers=settings.bootstrap_servers)) as producer:
        for each in events[20:40]:
            if each.stream.type is StreamType.CONVERSATION:
                key, partition, value, headers, at = maker.message(each)
                producer.send(settings.events_topic, value, key, headers, partition, at).get(10)
    publish([*events, replace(events[-2], position=61, version=events[-2].version + 1)], database, settings)
    file = tmp_path / "table"
    following = [*events, replace(events[-2], position=61, version=events[-2].version + 1)]
    with example(settings, file):
        wait_until(lambda: has_read(file, following), 40)
    assert counted(file) == expected(following)


def test_it_is_thirty_lines_of_code() -> None:
    tree = ast.parse(EXAMPLE.read_text())
    first = next(node.lineno for node in tree.body if not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom))
    lines = EXAMPLE.read_text().splitlines()[first - 1 :]
    assert len([line for line in lines if line.strip()]) <= 32


def test_the_document_names_it_and_every_topic_as_it_is(settings: PublisherSettings) -> None:
    text = (ROOT / "docs" / "FEED.md").read_text()
    topics = set(re.findall(r"^\| `(conversations\.\w+\.v1)` \| [^|]+\| [^|]+\| [^|]+\|$", text, re.MULTILINE))
    assert topics == set(replace(settings, topic_prefix="conversations").topics)
    assert os.fspath(EXAMPLE.relative_to(ROOT)) in text
    assert "5,000 offsets" in text, "more than a transaction holds"
    assert PublisherSettings("").max_batch < 5_000
