"""Projecting from Kafka while processes join, leave, are killed or sleep: the rows are those of the one projector.

Run as a program, this file is one such process: ours, or one that is broken on purpose (the canary).
"""

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Self
from uuid import UUID, uuid4

import psutil
import psycopg
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from agreement import check_that_all_agree  # a child process has to be told where it is
from contact_keyring import keys_of
from random_history import CONTACTS, START, handle, request, setting_up, some_details, some_request
from rig import (
    CAMPAIGN,
    ROOT,
    assert_live_equals_rebuilt,
    assert_projected,
    head,
    only_in_campaigns,
    query,
    wait_until,
)

from adapters.command_handler import CommandHandler
from adapters.event_log import EventLog
from adapters.projector import create_missing
from adapters.share_projector import Batch, ShareProjector
from domain.commands import EraseContact, Finalize, OpenConversation, ReceiveMessage, RegisterContact, SetAttribute
from domain.events import Surface
from projections.read_model import ReadModel

with warnings.catch_warnings():
    # kafka-python reads its schemas with importlib.resources.read_text, which Python 3.11 calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from adapters.kafka_position import PublisherSettings
    from adapters.kafka_projector import KafkaProjector
    from adapters.kafka_publisher import Publisher
    from adapters.kafka_topics import TopicSettings

pytestmark = [pytest.mark.faults, pytest.mark.kafka]

PARTITIONS = 6
SESSION_SECONDS = 3
"""After which the group gives away what a process had that was killed, or sleeps."""
SHORT = ("join", "sleep", "kill")
DISTURBANCES = 150 if CAMPAIGN else len(SHORT)
MOST_PROCESSES = 4
MOVED_ON = b"others have moved"


# The processes


class Sleepy(ShareProjector):
    """Falls asleep with records in its hands, once: when it was about to project what follows on a position."""

    after = 0

    def project(self, batch: Batch) -> None:
        """As ever, but late."""
        if self.after and any(record.position > self.after for records in batch.values() for record in records):
            self.after = 0
            os.kill(os.getpid(), signal.SIGSTOP)
        super().project(batch)


class Unfenced(Sleepy):
    """Canary: trusts what it knows of its shares."""

    def _fence(self, connection: psycopg.Connection, model: ReadModel, partitions: list[int]) -> dict[int, int]:
        del connection, model
        return dict.fromkeys(partitions, 0)


KINDS = {"ours": ShareProjector, "sleepy": Sleepy, "unfenced": Unfenced}


def program(kind: str, conninfo: str, servers: str, prefix: str, after: str) -> None:
    """Project from Kafka until SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    chosen = KINDS[kind]
    if issubclass(chosen, Sleepy):
        chosen.after = int(after)

    class Chosen(KafkaProjector):
        def _share_projector(self, topic_id: str) -> ShareProjector:
            return chosen(conninfo, topic_id, keys=keys_of(conninfo))

    keys = partial(keys_of, conninfo)
    Chosen(conninfo, TopicSettings(servers, prefix), keys, session_seconds=SESSION_SECONDS).run(stop)


class Group:
    """The processes that project from Kafka."""

    def __init__(self, conninfo: str, settings: PublisherSettings, directory: Path) -> None:
        self._arguments = [conninfo, settings.bootstrap_servers, settings.topic_prefix]
        self._log = directory / "projectors.log"
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def join(self, kind: str = "ours", after: int = 0) -> subprocess.Popen[bytes]:
        """One more."""
        with self._log.open("ab") as log:
            command = [sys.executable, __file__, kind, *self._arguments, str(after)]
            environment = os.environ | {"PYTHONWARNINGS": "ignore"}
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        wait_until(
            lambda: b"%d INFO projecting the partitions" % process.pid in self.said() or process.poll(),
            "it is a member",
            180,
        )
        return process

    def leave(self, process: subprocess.Popen[bytes]) -> None:
        """One is told to stop, and stops cleanly."""
        process.terminate()
        assert process.wait(120) == 0, self.said()
        self.processes.remove(process)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """`kill -9`."""
        process.kill()
        process.wait()
        self.processes.remove(process)

    def said(self) -> bytes:
        """What they wrote."""
        return self._log.read_bytes()


# What they project


@contextmanager
def published(conninfo: str, servers: str) -> Iterator[PublisherSettings]:
    """A publisher at work on topics of its own."""
    settings = PublisherSettings(servers, f"projectors-{uuid4()}", partitions=PARTITIONS, replication_factor=1)
    stop = threading.Event()
    with EventLog(conninfo) as log:
        publisher = Publisher(log, conninfo, settings, wait=log.wait)
        thread = threading.Thread(target=publisher.run, args=(stop,))
        thread.start()
        try:
            wait_until(lambda: publisher.status.is_live, "the publisher is live", 120)
            yield settings
        finally:
            stop.set()
            thread.join()


class Traffic:
    """Random commands on the conversations and contacts that were new last, and again new ones of both, while anybody
    wants them; some of the contacts are erased soon, while their conversation goes on.
    """

    def __init__(self, conninfo: str) -> None:
        self._handler = CommandHandler(conninfo, keys_of(conninfo))
        self._chance = random.Random(5)
        self._at = START
        # Few enough to meet; the others rest, so that what a comparison costs does not grow with the square.
        self._contacts, self._conversations = deque(CONTACTS, 12), deque[UUID](maxlen=40)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        handle(self._handler, setting_up(self._chance))

    def batch(self, commands: int) -> None:
        """Some commands; the first is about somebody new, who changes just then."""
        chance = self._chance
        self._at += timedelta(seconds=chance.randrange(300))
        requests = []
        if self._conversations and chance.random() < 0.3:
            conversation = self._conversations[-1]
            requests.append(request(chance, self._contacts[-1], EraseContact(), self._at))
            requests.append(request(chance, conversation, Finalize(surface=Surface.LISTING, outcome="ok"), self._at))
        contact, conversation = (UUID(int=chance.getrandbits(128)) for _ in range(2))
        self._contacts.append(contact)
        self._conversations.append(conversation)
        requests += [
            request(chance, contact, RegisterContact(contact_id=contact, details=some_details(chance)), self._at),
            request(
                chance,
                conversation,
                OpenConversation(protocol=str(conversation), channel="phone", contact_id=contact, subject="assunto"),
                self._at,
            ),
            request(chance, conversation, SetAttribute(key="pedido", value=1), self._at),
        ]
        requests += [some_request(chance, self._at, self._conversations, self._contacts) for _ in range(commands)]
        handle(self._handler, requests)

    def receive(self, conversations: Sequence[UUID]) -> None:
        """A message in each."""
        chance = self._chance
        said = [ReceiveMessage(message_id=UUID(int=chance.getrandbits(128)), text="oi") for _ in conversations]
        handle(self._handler, [request(chance, *each, self._at) for each in zip(conversations, said, strict=True)])

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            self.batch(10)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        self._handler.close()


# Joining, leaving, dying, sleeping


def disturb(group: Group, chance: random.Random, number: int) -> str:
    """Something happens to the group, which has at least one process awake afterwards; what it was."""
    what = chance.choice(["join", "leave", "kill", "kill", "sleep", "sleep"]) if CAMPAIGN else SHORT[number]
    if len(group.processes) == 1 or (what == "join" and len(group.processes) < MOST_PROCESSES):
        group.join()
        return "join"
    process = chance.choice(group.processes)
    if what == "sleep":
        process.send_signal(signal.SIGSTOP)
        # Too short to be noticed, or long enough.
        time.sleep(SESSION_SECONDS * (chance.choice([0.2, 1.2, 1.6]) if CAMPAIGN else 1.2))
        process.send_signal(signal.SIGCONT)
    elif what == "leave":
        group.leave(process)
    else:
        group.kill(process)
        what = "kill"
    return what


def listed(conninfo: str) -> int:
    """Up to where the listing is."""
    [[position]] = query(conninfo, "select position from projection_positions where name = 'listing'")
    return int(position)


def test_whoever_joins_leaves_dies_or_sleeps_the_rows_are_those_of_one_projector(
    database: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    create_missing(database)
    chance = random.Random(11)
    done: list[str] = []
    with (
        closing(Traffic(database)) as traffic,
        published(database, kafka_bootstrap) as settings,
        Group(database, settings, tmp_path) as group,
    ):
        with traffic:
            group.join()
            wait_until(lambda: listed(database) > 0, "the first is at work", 180)
            for number in range(DISTURBANCES):
                done.append(disturb(group, chance, number))
                time.sleep(chance.random() * SESSION_SECONDS / 2)
                if number % 10 == 9:
                    seen = head(database)
                    wait_until(lambda seen=seen: listed(database) >= seen, f"they get on after {done[-10:]}", 240)
        assert_projected(database, 240)
        for process in list(group.processes):
            group.leave(process)
        said = group.said()
    assert head(database) > DISTURBANCES * 10
    if CAMPAIGN:  # the naive fold of a long log takes too long
        assert_live_equals_rebuilt(database)
    else:
        check_that_all_agree(database)
    assert b"is halted" not in said, said.decode()
    if CAMPAIGN:
        counted = {what: done.count(what) for what in sorted(set(done))}
        print(f"\n{counted}, {head(database)} events, fenced {said.count(MOVED_ON)} times")  # noqa: T201  # for the report


# A zombie: as processes only in the campaign; `tests/integration/test_kafka_projector.py` always has one, with canary


def sleeps_with_records_in_its_hands(kind: str, conninfo: str, servers: str, directory: Path) -> None:
    """One falls asleep just before it projects; its partitions go to another, who does; then it wakes up."""
    create_missing(conninfo)
    with (
        closing(Traffic(conninfo)) as traffic,
        published(conninfo, servers) as settings,
        Group(conninfo, settings, directory) as group,
    ):
        traffic.batch(60)
        sleeper = group.join(kind, after=head(conninfo))
        assert_projected(conninfo, 240)
        conversations = [id_ for (id_,) in query(conninfo, "select id from listing order by id")]
        traffic.receive(conversations)
        wait_until(lambda: psutil.Process(sleeper.pid).status() == psutil.STATUS_STOPPED, "it falls asleep", 120)
        group.join()
        assert_projected(conninfo, 240)
        sleeper.send_signal(signal.SIGCONT)
        wait_until(lambda: MOVED_ON in group.said() or b"is halted" in group.said(), "it wakes up and tries", 120)
        traffic.receive(conversations)
        assert_projected(conninfo, 240)
        for process in list(group.processes):
            group.leave(process)


@only_in_campaigns("sleeps out a session, twice")
def test_a_zombie_changes_nothing(database: str, kafka_bootstrap: str, tmp_path: Path) -> None:
    sleeps_with_records_in_its_hands("sleepy", database, kafka_bootstrap, tmp_path)
    check_that_all_agree(database)


@only_in_campaigns("sleeps out a session, twice")
def test_canary_a_zombie_that_does_not_compare_doubles(database: str, kafka_bootstrap: str, tmp_path: Path) -> None:
    sleeps_with_records_in_its_hands("unfenced", database, kafka_bootstrap, tmp_path)
    with pytest.raises(AssertionError):
        check_that_all_agree(database)


if __name__ == "__main__":
    program(*sys.argv[1:])
