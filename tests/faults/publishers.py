"""Publisher processes to be killed, stopped, doubled and cut off while commands come in.

Imported by the processes themselves, too.
"""

import ctypes
import logging
import os
import queue
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from network import enter
from rig import CONTACT, REGISTER, do, handling, opening, query, request
from topic import Reader, Seen, compared

from adapters.event_log import EventLog
from adapters.kafka_position import PublisherSettings
from adapters.kafka_publisher import Publisher, PublisherFailedError, _lock_key
from adapters.postgres import Role
from domain.commands import ReceiveMessage
from domain.events import MessageKind

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["adapters.kafka_publisher", "adapters.event_log", "confluent_kafka"])
SHARES = 2
"""Publishers share the log among that many; each is a process, or two for as long as a fault lasts."""
TRANSACTION_SECONDS = 4.0
END_SECONDS = 30
LAST_SECONDS = 6
"""For one of two to find out that it is no longer alone."""
AT_WORK = 0.8
"""Of the faults; the others may hit one that is starting."""
PUBLISHED_SECONDS = 120


def settings_for(bootstrap_servers: str, prefix: str) -> PublisherSettings:
    """Short times, so that a fault is over soon, in the proportions of the real ones."""
    return PublisherSettings(
        bootstrap_servers,
        topic_prefix=prefix,
        partitions=6,
        replication_factor=3,
        publishers=SHARES,
        max_batch=200,
        poll_seconds=0.1,
        request_timeout_seconds=3,
        delivery_timeout_seconds=5,
        transaction_timeout_seconds=TRANSACTION_SECONDS,
        deadline_seconds=15,
    )


class Unlocked(Publisher):
    """Believes that it still has the lock, as one does that loses it just after it has looked."""

    def _require_lock(self) -> None:
        pass

    def _tell(self, *, at_once: bool = False) -> None:
        """Nothing: the connection may be gone."""


def _publish(
    kind: type[Publisher], conninfo: str, settings: PublisherSettings, namespace: Path | None, written: Path, live: Path
) -> None:
    """What a process does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # it dies with the server that forks, and that with the tests
    if namespace:
        enter(namespace)
    logging.basicConfig(filename=written, format="%(process)d %(asctime)s %(message)s", level=logging.CRITICAL)
    with EventLog(conninfo, role=Role.PUBLISHER) as log:
        publisher = kind(log, conninfo, settings, wait=log.wait)
        start = publisher.start

        def start_and_tell(stop: threading.Event | None = None) -> bool:
            is_live = start(stop)
            live.touch()
            return is_live

        publisher.start = start_and_tell  # type: ignore[method-assign]
        try:
            publisher.run(threading.Event())
        except PublisherFailedError:
            os._exit(1)  # it has logged why


@dataclass
class _Process:
    process: BaseProcess
    _live: Path
    """There once it publishes."""

    @property
    def is_live(self) -> bool:
        return self._live.exists()

    def wait_until_live(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not self.is_live and time.monotonic() < until and self.process.exitcode is None:
            time.sleep(0.02)
        return self.is_live

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)  # it is a child of the server's, which keeps its id until it is waited for

    def end(self) -> None:
        self.process.kill()
        self.process.join()


class Share(threading.Thread):
    """One of those that share the log: started again when it ends, and visited by faults from a queue."""

    def __init__(
        self, start: Callable[[], _Process], conninfo: str, name: str, faults: "queue.SimpleQueue[str]"
    ) -> None:
        super().__init__(name=name)
        self._start_process = start
        self._conninfo = conninfo
        self._lock_name = name
        self._faults = faults
        self.done = threading.Event()
        self.is_idle = False
        self._current = start()
        self.counts: Counter[str] = Counter()
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Until told to stop."""
        try:
            while not self.done.is_set():
                self._tend(random.uniform(0, 1.0))
                try:
                    fault = self._faults.get_nowait()
                except queue.Empty:
                    self.is_idle = True
                    continue
                self.is_idle = False
                if random.random() < AT_WORK:
                    self.wait_until_live()
                    self._tend(random.uniform(0, 0.5))
                self.counts[fault + (" live" if self._current.is_live else " starting")] += 1
                getattr(self, fault)()
        except BaseException as error:  # noqa: BLE001  # the test looks
            self.failure = error
        finally:
            self._current.end()

    def wait_until_live(self) -> None:
        """Return when it publishes, or after a while."""
        until = time.monotonic() + END_SECONDS
        while not self._current.wait_until_live(0.1) and time.monotonic() < until and not self.done.is_set():
            self._start_if_ended()

    def _tend(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.done.is_set() and (left := until - time.monotonic()) > 0:
            self._current.process.join(left)
            self._start_if_ended()

    def _start_if_ended(self) -> None:
        if self._current.process.exitcode is not None:
            self.counts["ended by itself"] += 1
            self._current = self._start_process()

    def kill(self) -> None:
        """`kill -9`."""
        self._current.end()
        self._current = self._start_process()

    def freeze(self) -> None:
        """SIGSTOP for longer than a transaction may take; nobody takes over meanwhile."""
        self._current.send(signal.SIGSTOP)
        time.sleep(TRANSACTION_SECONDS + random.uniform(0.5, 1.5))
        self._current.send(signal.SIGCONT)

    def haunt(self) -> None:
        """SIGSTOP, another takes over and works, and then it comes back."""
        sleeper = self._current
        sleeper.send(signal.SIGSTOP)
        self._current = self._start_process()
        self._end_session()
        self._current.wait_until_live(END_SECONDS)
        time.sleep(random.uniform(0, 0.5))
        sleeper.send(signal.SIGCONT)
        self._outlive(sleeper)

    def double(self) -> None:
        """Two at once: the lock goes to another while the first is at work, and does not know."""
        first, self._current = self._current, self._start_process()
        time.sleep(random.uniform(0, 0.3))
        self._end_session()
        self._outlive(first)

    def _outlive(self, other: _Process) -> None:
        """Back to one process."""
        self._current.wait_until_live(END_SECONDS)
        other.process.join(LAST_SECONDS)
        self.counts["had to be ended"] += other.process.exitcode is None
        other.end()

    def _end_session(self) -> None:
        """PostgreSQL drops the session that holds the lock."""
        key = _lock_key(self._lock_name) % 2**64
        query(
            self._conninfo,
            "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"
            " and classid::bigint = %s and objid::bigint = %s",
            (key >> 32, key & 0xFFFFFFFF),
        )


class Commands(threading.Thread):
    """Commands come in, in bursts, until it is told to stop."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(name="commands")
        self._conninfo = conninfo
        self.done = threading.Event()
        self.count = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Open a conversation now and then; mostly messages come in."""
        conversations: list[UUID] = []
        try:
            with handling(self._conninfo) as handler:
                do(handler, REGISTER, CONTACT)
                while not self.done.wait(random.uniform(0, 0.15)):
                    if len(conversations) < 20 or random.random() < 0.02:
                        conversations.append(uuid4())
                        do(handler, opening(conversations[-1].int % 10**12), conversations[-1])
                    requests = [request(self._received(), random.choice(conversations)) for _ in range(self._burst())]
                    failed = [each for each in handler.handle(requests) if isinstance(each, Exception)]
                    assert not failed, failed[0]
                    self.count += len(requests)
        except BaseException as error:  # noqa: BLE001  # the test looks
            self.failure = error

    @staticmethod
    def _burst() -> int:
        return random.choice([1, 1, 2, 5, 20])

    @staticmethod
    def _received() -> ReceiveMessage:
        return ReceiveMessage(message_id=uuid4(), kind=MessageKind.TEXT, text="m")


class Work:
    """Publishers and commands at work; faults are given in by `visit`."""

    def __init__(self, conninfo: str, settings: PublisherSettings, near: str, start: Callable[[int], _Process]) -> None:
        self._conninfo = conninfo
        self._settings = settings
        self._near = near
        self._faults: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.commands = Commands(conninfo)
        ids = settings.transactional_ids
        self.shares = [
            Share(lambda number=number: start(number), conninfo, id_, self._faults) for number, id_ in enumerate(ids, 1)
        ]

    def visit(self, faults: Sequence[str]) -> None:
        """Have these faults, in this order, and return when they are over."""
        self.add(faults)
        while not (self._faults.empty() and all(share.is_idle for share in self.shares)):
            self.require_health()
            time.sleep(0.05)

    def add(self, faults: Sequence[str]) -> None:
        """Have them, and go on."""
        for share in self.shares:
            share.is_idle = False
        for fault in faults:
            self._faults.put(fault)

    def require_health(self) -> None:
        """No thread of the rig has failed."""
        for each in (self.commands, *self.shares):
            if each.failure:
                raise each.failure

    @property
    def counts(self) -> Counter[str]:
        """What has happened to the publishers."""
        return sum((share.counts for share in self.shares), Counter[str]())

    def begin(self) -> None:
        for each in (self.commands, *self.shares):
            each.start()

    def end(self) -> None:
        for each in (self.commands, *self.shares):
            each.done.set()
            each.join()

    def stop_commands(self) -> None:
        self.commands.done.set()
        self.commands.join()
        self.require_health()

    def seen(self, seconds: float = PUBLISHED_SECONDS) -> Seen:
        """Commands stop; what is in the topics once all is published, or after ``seconds``."""
        self.stop_commands()
        rows = query(
            self._conninfo,
            "select stream_id::text, max(version) from events where stream_type = 'conversation' group by 1",
        )
        expected = dict(rows)
        found = Reader(self._near, self._settings.events_topic).read(expected, seconds)
        states = Reader(self._near, self._settings.latest_topic).read(expected, seconds)
        self.require_health()
        return compared(expected, found, states)


REASONS = ("did not take a record", "took too long", "ProducerFenced", "lock")


def reasons(directory: Path) -> Counter[str]:
    """Why publishers ended by themselves: what they said of it, or else the name of the error."""
    lines = [line for path in directory.glob("publisher-*.log") for line in path.read_text().splitlines()]
    said = [line for line in lines if re.match(r"\d+ 20", line)]
    names = [re.findall(r"\w*Error|AdminShutdown|InvalidProducerEpoch", line) or ["unknown"] for line in said]
    return Counter(
        next((reason for reason in REASONS if reason in line), name[0]) for line, name in zip(said, names, strict=True)
    )


@contextmanager
def at_work(
    conninfo: str,
    brokers: Any,
    namespace: Path | None,
    directory: Path,
    kind: Callable[[], type[Publisher]] = lambda: random.choice([Publisher, Publisher, Unlocked]),
) -> Any:
    """Publishers at work on a topic of their own, commands coming in."""
    settings = settings_for(brokers.far, f"faults-{uuid4()}")

    def start(number: int) -> _Process:
        live, mine = directory / f"live-{uuid4()}", replace(settings, publisher=number)
        written = directory / f"publisher-{number}.log"
        process = PROCESSES.Process(target=_publish, args=(kind(), conninfo, mine, namespace, written, live))
        process.start()
        return _Process(process, live)

    work = Work(conninfo, settings, brokers.near, start)
    work.begin()
    try:
        for share in work.shares:
            share.wait_until_live()
        yield work
    finally:
        work.end()
