"""What is projected from Kafka is there for who asks: reads of own writes, readiness, rebuilds; errors are said."""

import asyncio
import logging
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import httpx
import psycopg
import pytest
from agreement import check_that_all_agree, rows
from contact_keyring import keys_of
from feed import make_settings, wait_until
from in_process import serving
from kafka import KafkaConsumer
from kafka.net.manager import KafkaConnectionManager
from kafka.protocol.consumer import SyncGroupRequest
from kafka.protocol.metadata import MetadataRequest
from random_history import START, TWO_WORKSPACES, a_random_history, handle, some_request
from typer.testing import CliRunner

from adapters import kafka_projector
from adapters.command_handler import CommandHandler
from adapters.event_log import EventLog
from adapters.kafka_position import PublisherSettings
from adapters.kafka_projector import POLL_MILLISECONDS, KafkaProjector
from adapters.kafka_publisher import Publisher
from adapters.kafka_topics import ensure_topics, find_events_topic
from adapters.projector import create_missing
from adapters.rebuild import rebuild
from adapters.share_projector import Batch, ShareProjector
from adapters.shares import SHARED_MODELS
from api import demo
from api.__main__ import app
from api.cli import serving as commands
from projections.read_model import ReadModel

pytestmark = pytest.mark.kafka

TOKEN = "cvs_kafka-projector-admin"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
HALVES = [[0, 1], [2, 3]]
"""Of a topic's partitions, as the group deals them out to two."""


@contextmanager
def at_work(work: Any) -> Iterator[None]:
    """``work`` in a thread, until it is told to stop."""
    stop = threading.Event()
    thread = threading.Thread(target=work.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def publishing(database: str, settings: PublisherSettings) -> Iterator[None]:
    with EventLog(database) as log, at_work(Publisher(log, database, settings, wait=log.wait)):
        yield


def positions(database: str) -> set[int]:
    with psycopg.connect(database) as connection:
        return {each for (each,) in connection.execute("select position from projection_positions")}


def are_level(database: str) -> bool:
    with EventLog(database) as log:
        return positions(database) == {log.head()}


def tables(database: str) -> list[Any]:
    return [rows(database, table, "1, 2, 3") for model in SHARED_MODELS.values() for table in model.tables]


def rebuilt(database: str, model: ReadModel) -> None:
    with closing(keys_of(database)) as keys:
        rebuild(database, model, keys=keys)


async def asked(api: httpx.AsyncClient, path: str, **params: Any) -> Any:
    """The answer, as soon as the read model has what is asked for."""
    while (found := await api.get(path, params=params, headers=HEADERS)).status_code == 503:
        pass
    assert found.status_code == 200, found.text
    return found.json()


async def ask_for_what_was_just_written(database: str, settings: PublisherSettings) -> None:
    async with serving(database) as api:
        contact = await api.post("/v1/contacts", json={"name": "Rita Prado"}, headers=HEADERS)
        of_a_channel = {"name": "channel", "actor": {"kind": "integration", "id": "x"}, "role": "integration"}
        token = (await api.post("/v1/tokens", json=of_a_channel, headers=HEADERS)).json()["secret"]
        channel = {"Authorization": f"Bearer {token}"}
        new = {"channel": "whatsapp", "contact_id": contact.json()["id"]}
        opened = (await api.post("/v1/conversations", json=new, headers=HEADERS)).json()
        written = {"q": "rita", "at_least": opened["position"]}
        behind = await api.get("/v1/conversations", params=written, headers=HEADERS)
        assert behind.status_code == 503, "nobody publishes"
        with publishing(database, settings):
            found = await asked(api, "/v1/conversations", **written)
            assert [row["id"] for row in found["items"]] == [opened["id"]]
            path = f"/v1/conversations/{opened['id']}"
            for number, model in enumerate(SHARED_MODELS.values(), start=1):
                said = {"direction": "received", "text": f"oi {number}"}
                position = (await api.post(f"{path}/messages", json=said, headers=channel)).json()["position"]
                await asyncio.to_thread(rebuilt, database, model)
                told = await asked(api, f"{path}/history", at_least=position)
                assert position in {row["position"] for row in told["items"]}
                shown = await asked(api, "/v1/conversations", at_least=position, q="rita")
                assert [row["messages_received"] for row in shown["items"]] == [number]
            # What is somebody's name does not come through the topic.
            named = {"name": "Zuleide Prado"}
            changed = await api.put(f"/v1/contacts/{contact.json()['id']}", json=named, headers=HEADERS)
            shown = await asked(api, "/v1/conversations", at_least=changed.json()["position"], q="zuleide")
            assert [row["id"] for row in shown["items"]] == [opened["id"]]
        ready = await api.get("/readyz")
        assert (ready.status_code, {each["behind"] for each in ready.json()["projections"].values()}) == (200, {0})


def test_who_wrote_reads_it_once_it_is_published_rebuilt_or_not(
    database: str, kafka_bootstrap: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    create_missing(database)
    settings = make_settings(kafka_bootstrap)
    ensure_topics(settings)
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler)
        demo.give_token(handler, TOKEN)
    with at_work(KafkaProjector(database, settings, partial(keys_of, database))):
        with publishing(database, settings):
            wait_until(lambda: are_level(database), 180)
        asyncio.run(ask_for_what_was_just_written(database, settings))
    assert f"no publisher is live on {settings.events_topic}" in caplog.text
    before = tables(database)
    for model in SHARED_MODELS.values():
        rebuilt(database, model)
    assert tables(database) == before


@pytest.mark.parametrize("kind", ["ours", "canary"])
def test_who_joins_twice_and_is_answered_late_gets_its_partitions(
    kind: str, database: str, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It joins before it knows what partitions there are, then anew; the answers take longer than it polls.

    The canary is the library as it is.
    """
    send, subscribe = KafkaConnectionManager.send, KafkaConsumer.subscribe
    settings, joins = make_settings(kafka_bootstrap), 0

    def send_slowly(self: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal joins
        answer, seconds = send(self, request, *arguments, **options), 0.0
        if isinstance(request, MetadataRequest) and not request.topics and self.bootstrapped:
            seconds = 1.5
        elif isinstance(request, SyncGroupRequest):
            seconds = 2 * POLL_MILLISECONDS / 1_000
            joins += bool(self.cluster.partitions_for_topic(settings.events_topic))

        async def late() -> Any:
            await self._net.sleep(seconds)
            return await answer

        return self.call_soon(late) if seconds else answer

    def subscribe_late(*arguments: Any, **options: Any) -> None:
        time.sleep(0.5)
        subscribe(*arguments, **options)

    monkeypatch.setattr(KafkaConnectionManager, "send", send_slowly)
    monkeypatch.setattr(KafkaConsumer, "subscribe", subscribe_late)
    if kind == "canary":
        monkeypatch.setattr(
            kafka_projector._Listener, "on_partitions_revoked", lambda self, _: self._projector.assigned()
        )
    ensure_topics(settings)
    create_missing(database)
    with at_work(projector := KafkaProjector(database, settings, partial(keys_of, database))):
        wait_until(lambda: joins > 0, 120)  # anew, now that it knows of the partitions
        if kind == "ours":
            wait_until(lambda: sorted(projector._reads_at) == [0, 1, 2, 3], 120)
        else:
            time.sleep(5)
            assert projector._reads_at == {}


def test_two_workspaces_with_the_same_ids_are_kept_apart(database: str, kafka_bootstrap: str) -> None:
    """Conversations and contacts have the same ids in both; what happens to them is projected by two."""
    settings, keys = make_settings(kafka_bootstrap), partial(keys_of, database)
    ensure_topics(settings)
    create_missing(database)
    both = [KafkaProjector(database, settings, keys, session_seconds=2) for _ in range(2)]
    with ExitStack() as working:
        for each in (publishing(database, settings), *map(at_work, both)):
            working.enter_context(each)
        wait_until(lambda: sorted(sorted(each._reads_at) for each in both) == HALVES, 120)
        a_random_history(database, 3, commands=600, workspaces=TWO_WORKSPACES)
        wait_until(lambda: are_level(database), 180)
    check_that_all_agree(database)


# A zombie; `tests/faults/test_kafka_projectors.py` has them as processes


class Sleepy(ShareProjector):
    """Sleeps with records in its hands, once it is told to."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.is_to_sleep, self.sleeps, self.wakes, self.is_done = (threading.Event() for _ in range(4))

    def project(self, batch: Batch) -> None:
        if not (self.is_to_sleep.is_set() and batch) or self.sleeps.is_set():
            return super().project(batch)
        self.sleeps.set()
        self.wakes.wait(120)
        try:
            return super().project(batch)
        finally:
            self.is_done.set()


class Unfenced(Sleepy):
    """Canary: trusts what it knows of its shares."""

    def _fence(self, connection: psycopg.Connection, model: ReadModel, partitions: list[int]) -> dict[int, int]:
        del connection, model
        return dict.fromkeys(partitions, 0)


@pytest.mark.faults
@pytest.mark.parametrize("kind", [Sleepy, Unfenced], ids=["ours", "canary"])
def test_who_wakes_up_when_others_have_its_partitions_changes_nothing(
    kind: type[Sleepy], database: str, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """The group gives its partitions to another, who projects what it had in its hands; then it wakes up."""
    monkeypatch.setattr(kafka_projector, "LONGEST_BATCH_SECONDS", 2)
    settings, keys = make_settings(kafka_bootstrap), partial(keys_of, database)
    ensure_topics(settings)
    create_missing(database)
    a_random_history(database, 3, commands=200)
    sleepy = kind(database, find_events_topic(settings)[0], keys=keys())
    first, second = (KafkaProjector(database, settings, keys, session_seconds=2) for _ in range(2))
    monkeypatch.setattr(first, "_share_projector", lambda _: sleepy)
    with ExitStack() as working:
        working.enter_context(publishing(database, settings))
        working.enter_context(at_work(first))
        wait_until(lambda: are_level(database), 180)
        sleepy.is_to_sleep.set()
        with closing(CommandHandler(database, keys())) as handler:
            chance = random.Random(5)
            handle(handler, [some_request(chance, START) for _ in range(60)])
        assert sleepy.sleeps.wait(60)
        working.enter_context(at_work(second))
        wait_until(lambda: are_level(database), 180)
        sleepy.wakes.set()
        assert sleepy.is_done.wait(60)
    if kind is Sleepy:
        assert "others have moved" in caplog.text
        check_that_all_agree(database)
    else:
        with pytest.raises(AssertionError):
            check_that_all_agree(database)


def test_it_says_what_is_missing(database: str, kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "stop_on_signals", threading.Event)  # they are for a process of its own
    monkeypatch.setenv("CONVERSAS_DATABASE_URL", database)
    command = ["project", "--from", "kafka"]
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, type(refused.exception)) == (1, SystemExit)
    assert refused.output.startswith("No Kafka is set: set CONVERSAS_KAFKA_BOOTSTRAP_SERVERS")
    prefix = f"test-{uuid.uuid4()}"
    monkeypatch.setenv("CONVERSAS_KAFKA_BOOTSTRAP_SERVERS", kafka_bootstrap)
    monkeypatch.setenv("CONVERSAS_KAFKA_TOPIC_PREFIX", prefix)
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, type(refused.exception)) == (1, SystemExit)
    assert f"Not projecting from Kafka: there is no topic {prefix}.events.v1 at {kafka_bootstrap}" in refused.output
