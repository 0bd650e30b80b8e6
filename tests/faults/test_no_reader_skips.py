"""No reader skips: 8 writing processes that wait, roll back and are cut off; 4 tailing readers; seen = committed.

Run as a program, this file is those processes.
"""

import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from rig import CAMPAIGN, CONTACT, REGISTER, SYSTEM, do, handling, head, opening, query, request

from adapters import command_handler
from adapters.command_handler import CommandHandler, UnavailableError
from adapters.deciding import Outcome, Request
from adapters.event_log import EventLog, EventRow
from adapters.postgres import APPEND_LOCK
from domain.commands import AddNote

pytestmark = pytest.mark.faults

WRITERS, READERS, CONVERSATIONS = 8, 4, 20
SHARED = [UUID(int=1_000 + number) for number in range(4)]
"""Conversations that all writers write to at once."""
EVENTS = 1_000_000 if CAMPAIGN else 10_000
LARGEST_BATCH = 500 if CAMPAIGN else 200
SECONDS = 900 if CAMPAIGN else 60
KILL_EVERY_SECONDS = 0.5 if CAMPAIGN else 0.25

fork = multiprocessing.get_context("fork")


class InjectedError(Exception):
    """A bug in the middle of a transaction."""


def pause() -> None:
    """Nothing, mostly; else a moment in which others run."""
    if random.random() < 0.3:
        time.sleep(random.uniform(0, 0.004))


def slow_append(cursor: psycopg.Cursor[Any], rows: Sequence[EventRow]) -> None:
    """Inserts; then waits, or fails, before the commit can follow."""
    append(cursor, rows)
    pause()
    if random.random() < 0.02:
        if len(rows) < 10:
            raise InjectedError  # the batch is rolled back and tried one by one
        raise psycopg.OperationalError("injected")  # as if the connection were lost: rolled back and tried again


append = command_handler.append


class Hesitant(CommandHandler):
    """Waits between lock, load, insert and commit."""

    lock_statement = f"select pg_advisory_xact_lock({APPEND_LOCK}), pg_sleep(greatest(0, random() - 0.7) * 0.01)"

    def _load(self, connection: psycopg.Connection, requests: Sequence[Request]) -> Any:
        batch = super()._load(connection, requests)
        pause()
        return batch

    def _save(self, connection: psycopg.Connection, batch: Any) -> None:
        super()._save(connection, batch)
        pause()


class WithoutLock(Hesitant):
    """Canary: no lock; positions come from a sequence, as in most event stores."""

    lock_statement = "select 1"

    def _save(self, connection: psycopg.Connection, batch: Any) -> None:
        drawn = connection.execute("select nextval('canary') from generate_series(1, %s)", (len(batch.rows),))
        batch.rows[:] = [
            row._replace(position=position) for row, (position,) in zip(batch.rows, drawn.fetchall(), strict=True)
        ]
        pause()
        super()._save(connection, batch)


def write(kind: type[CommandHandler], conninfo: str, number: int, events: int, report: Path) -> None:
    """Append until ``events`` are acknowledged; reports how many were, and what else was answered."""
    random.seed(number)
    mine = [uuid4() for _ in range(CONVERSATIONS)]
    targets = mine if kind is WithoutLock else mine + SHARED
    acknowledged, failures = 0, 0
    with handling(conninfo, kind, cached_states=random.choice([5, 20_000])) as handler:
        for index, id_ in enumerate(mine):
            acknowledged += do(handler, opening(number * CONVERSATIONS + index), id_).events
        command_handler.append = slow_append
        while acknowledged < events:
            size = random.choice([1, 2, 5, LARGEST_BATCH // 4, LARGEST_BATCH])
            size = min(size, events - acknowledged)
            notes = [AddNote(message_id=uuid4(), author=SYSTEM, text="x") for _ in range(size)]
            for answer in handler.handle([request(note, random.choice(targets)) for note in notes]):
                if isinstance(answer, Outcome):
                    acknowledged += answer.events
                else:
                    failures += 1
                    assert isinstance(answer, InjectedError | UnavailableError), answer
    report.write_text(json.dumps({"acknowledged": acknowledged, "failures": failures}))


def read(conninfo: str, number: int, report: Path, stop: Path) -> None:
    """Tail the log until ``stop`` exists and nothing follows; reports the positions in the order seen."""
    random.seed(100 + number)
    seen, last = array("q"), 0
    log = EventLog(conninfo)
    while True:
        is_last_round = stop.exists()
        try:
            events = log.read(last, random.randint(1, 300))
            if not events and not is_last_round:
                log.wait(random.uniform(0, 0.02))
        except psycopg.OperationalError:
            continue  # its connection was killed
        if events:
            seen.extend(event.position for event in events)
            last = events[-1].position
        elif is_last_round:
            break
    log.close()
    report.write_bytes(seen.tobytes())


def program(kind: str, conninfo: str, directory: str, events: str) -> None:
    """Start readers and writers, wait for the writers, then for the readers."""
    share, place = int(events) // WRITERS, Path(directory)
    handler_class = {"locked": Hesitant, "unlocked": WithoutLock}[kind]
    with handling(conninfo) as handler:
        do(handler, REGISTER, CONTACT)
        for number, id_ in enumerate(SHARED):
            do(handler, opening(1_000 + number), id_)
    readers = [
        fork.Process(target=read, args=(conninfo, number, place / f"reader-{number}", place / "stop"))
        for number in range(READERS)
    ]
    writers = [
        fork.Process(target=write, args=(handler_class, conninfo, number, share, place / f"writer-{number}"))
        for number in range(WRITERS)
    ]
    for process in readers + writers:
        process.start()
    for process in writers:
        process.join()
    (place / "stop").touch()
    for process in readers:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in readers + writers))


@contextmanager
def killing(conninfo: str) -> Iterator[list[str]]:
    """Cut off a writer or a reader every now and then; the list says who was."""
    killed: list[str] = []
    done = threading.Event()

    def kill() -> None:
        while not done.wait(random.uniform(0, 2 * KILL_EVERY_SECONDS)):
            killed.extend(
                name
                for name, _ in query(
                    conninfo,
                    "select application_name, pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and application_name in"
                    " ('conversas-writer', 'conversas-reader') order by random() limit 1",
                )
            )

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def run(kind: str, conninfo: str, directory: Path, events: int) -> None:
    """Run the processes, with someone who cuts them off; raises if one of them fails."""
    started = time.monotonic()
    with killing(conninfo) as killed:
        subprocess.run(
            [sys.executable, __file__, kind, conninfo, str(directory), str(events)],
            check=True,
            timeout=SECONDS,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        )
    seconds = time.monotonic() - started
    print(f"{events} events in {seconds:.0f} s, {len(killed)} connections killed")  # noqa: T201  # `pytest -s` shows it
    assert killed


def assert_seen_is_committed(conninfo: str, directory: Path) -> None:
    """Every reader saw every committed position, once and in order."""
    committed = [position for (position,) in query(conninfo, "select position from events order by position")]
    for number in range(READERS):
        seen = array("q", (directory / f"reader-{number}").read_bytes()).tolist()
        skipped = sorted(set(committed) - set(seen))
        assert not skipped, f"reader {number} skipped {len(skipped)} of {len(committed)} events, such as {skipped[:5]}"
        assert seen == committed, f"reader {number} saw events twice, out of order, or that were never committed"


def test_every_reader_sees_exactly_what_is_committed(database: str, tmp_path: Path) -> None:
    run("locked", database, tmp_path, EVENTS)
    assert_seen_is_committed(database, tmp_path)
    last = head(database)
    assert query(database, "select min(position), max(position), count(*) from events") == [(1, last, last)]
    reports = [json.loads((tmp_path / f"writer-{number}").read_text()) for number in range(WRITERS)]
    before = 1 + len(SHARED)
    assert last - before == sum(report["acknowledged"] for report in reports) == EVENTS // WRITERS * WRITERS
    gaps = query(
        database,
        "select stream_id from events group by workspace_id, stream_id having max(version) != count(*)",
    )
    assert not gaps


def test_canary_without_the_lock_readers_skip(database: str, tmp_path: Path) -> None:
    query(database, "create sequence canary start 100")
    query(database, "grant usage on sequence canary to conversas_writer")
    run("unlocked", database, tmp_path, 8_000)
    with pytest.raises(AssertionError, match="skipped"):
        assert_seen_is_committed(database, tmp_path)


if __name__ == "__main__":
    program(*sys.argv[1:])
