"""The projector among poison, rivals, crashes and rebuilds: nothing skipped, nothing doubled, nobody waits for ever."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import psycopg
import pytest
from campaign import only_in_campaigns
from psycopg.conninfo import make_conninfo
from rig import (
    ROOT,
    SYSTEM,
    WORKSPACE,
    Postgres,
    assert_live_equals_rebuilt,
    assert_projected,
    contents,
    conversation,
    do,
    handling,
    head,
    opening,
    project_all,
    query,
    request,
    wait_until,
)

from adapters import projector as projector_module
from adapters import rebuild as rebuild_module
from adapters.postgres import LIMITS, with_settings
from adapters.projector import READ_MODELS, Projector, create_missing, lock_position, move_position
from adapters.rebuild import rebuild
from api.app import create_app
from api.settings import Settings
from domain.commands import AddNote
from domain.envelope import RecordedEvent
from projections.history import History
from projections.listing import Listing
from projections.read_model import ReadModel

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("stored_in_clear")]

SLOW_REBUILD = str(Path(__file__).with_name("slow_rebuild.py"))
LISTING = next(model for model in READ_MODELS if isinstance(model, Listing))
HISTORY = next(model for model in READ_MODELS if isinstance(model, History))


def note() -> AddNote:
    return AddNote(message_id=uuid4(), author=SYSTEM, text="n")


def positions(conninfo: str) -> dict[str, tuple[int, str | None]]:
    """Where each projection is, and why it does not go on."""
    rows = query(conninfo, "select name, position, halted from projection_positions")
    return {name: (position, halted) for name, position, halted in rows}


def fill(conninfo: str, conversations: int, notes: int) -> None:
    """A log of some length."""
    with handling(conninfo) as handler:
        first = conversation(handler)
        ids = [first, *(uuid4() for _ in range(conversations - 1))]
        handler.handle([request(opening(number), id_) for number, id_ in enumerate(ids[1:])])
        for _ in range(notes):
            handler.handle([request(note(), id_) for id_ in ids])


@contextmanager
def projecting(
    conninfo: str, models: Sequence[ReadModel] = READ_MODELS, kind: type[Projector] = Projector, **options: Any
) -> Iterator[Projector]:
    """A projector at work in a thread."""
    projector = kind(conninfo, models, **options)
    stop = threading.Event()
    thread = threading.Thread(target=projector.run, args=(stop,))
    thread.start()
    try:
        yield projector
    finally:
        stop.set()
        thread.join()
        projector.close()


def ask(conninfo: str, path: str) -> httpx.Response:
    """The API's answer to a GET."""

    async def get() -> httpx.Response:
        app = create_app(Settings(), conninfo)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://a") as http,
        ):
            return await http.get(path)

    return asyncio.run(get())


@contextmanager
def mended(conninfo: str, statement: str, values: Sequence[Any] = ()) -> Iterator[None]:
    """Superuser's surgery on the log, past its triggers."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(statement, values)
    yield


def insert_poison(conninfo: str, stream_id: UUID, topic: str, data: bytes) -> int:
    """An event that no command gave; its position."""
    position = head(conninfo) + 1
    query(
        conninfo,
        "insert into events select %s, %s, 'conversation', %s, 99, %s, %s, 'system', 'test', 'api', now(), now(),"
        " %s, %s, null, 1",
        (position, WORKSPACE, stream_id, topic, data, uuid4(), uuid4()),
    )
    return position


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector_module, "RETRY_SECONDS", 0.3)


@pytest.fixture
def filled(database: str) -> str:
    create_missing(database)
    fill(database, conversations=5, notes=4)
    return database


# Poison


class Allergic(Listing):
    """Cannot digest the event at one position, until it is cured."""

    poison = 0

    def apply(self, connection: psycopg.Connection, events: Sequence[RecordedEvent]) -> None:
        """As the listing, or not at all."""
        super().apply(connection, events)  # what it did before it fails must not stay
        if any(recorded.position == self.poison for recorded in events):
            raise ValueError("poison")


class Skipping(Projector):
    """Canary: goes on behind an event that it cannot apply."""

    def _halt(self, model: ReadModel, error: Exception) -> None:
        super()._halt(model, error)
        connection = self._connected()
        with connection.transaction():
            move_position(connection, model, lock_position(connection, model) + 1)


def halts_before_poison_and_then_goes_on(kind: type[Projector], conninfo: str) -> None:
    """One read model stands before the event that it cannot apply, the others do not; cured, it goes on."""
    allergic = Allergic()
    allergic.poison = 9
    models = [model for model in READ_MODELS if model.name != "listing"] + [allergic]
    last = head(conninfo)
    with projecting(conninfo, models, kind):
        wait_until(lambda: positions(conninfo)["listing"][1], "it says that it is halted", 4)
        wait_until(lambda: positions(conninfo)["history"] == (last, None), "the others go on", 4)
        time.sleep(0.8)  # it tries again, in vain
        assert positions(conninfo)["listing"] == (8, "ValueError at the event after position 8"), "skipped"
        assert query(conninfo, "select max(position) <= 8 from listing") == [(True,)]
        ready = ask(conninfo, "/readyz")
        assert ready.status_code == 503
        assert "listing" in ready.json()["reason"]
        halted = {name: state["halted"] for name, state in ready.json()["projections"].items()}
        others = dict.fromkeys(model.name for model in READ_MODELS)
        assert halted == others | {"listing": "ValueError at the event after position 8"}
        assert 'conversas_projection_halted{read_model="listing"} 1.0' in ask(conninfo, "/metrics").text
        allergic.poison = 0
        wait_until(lambda: positions(conninfo)["listing"] == (last, None), "it goes on by itself")
        assert ask(conninfo, "/readyz").status_code == 200
    assert_live_equals_rebuilt(conninfo)


def test_an_event_that_breaks_one_fold_halts_that_projection_only(filled: str) -> None:
    halts_before_poison_and_then_goes_on(Projector, filled)


def test_canary_who_skips_it_is_caught(filled: str) -> None:
    with pytest.raises(AssertionError):
        halts_before_poison_and_then_goes_on(Skipping, filled)


def test_an_event_whose_conversation_was_never_opened_halts_those_that_fold_it(filled: str) -> None:
    position = insert_poison(filled, uuid4(), "priority-changed.v1", b'{"before":"normal","after":"high"}')
    with projecting(filled):
        wait_until(lambda: positions(filled)["listing"][1], "the listing says that it is halted")
        wait_until(lambda: positions(filled)["history"][1], "the history says that it is halted")
        wait_until(lambda: positions(filled)["directory"] == (position, None), "the directory goes on")
    assert positions(filled)["listing"][0] == positions(filled)["history"][0] == position - 1


def test_an_unknown_topic_is_never_passed_over_and_holds_up_nothing_before_it(filled: str) -> None:
    """No projection can tell what it is, so all stand before it; a program that knows it goes on."""
    position = insert_poison(filled, uuid4(), "from-the-future.v7", b"{}")
    with handling(filled) as handler:
        do(handler, opening(77), uuid4())
    with projecting(filled):
        wait_until(lambda: all(halted for _, halted in positions(filled).values()), "all say that they are halted")
        assert {at for at, _ in positions(filled).values()} == {position - 1}
        assert all("UnknownTopicError" in str(halted) for _, halted in positions(filled).values())
        assert ask(filled, "/readyz").status_code == 503
        with mended(filled, "delete from events where position = %s", (position,)):
            wait_until(lambda: set(positions(filled).values()) == {(position + 1, None)}, "they go on")
    assert_live_equals_rebuilt(filled)


# Rivals and crashes


class Unlocked(Projector):
    """Canary: reads its position without locking it."""

    def advance(self, model: ReadModel, limit: int) -> bool:
        """As if it were alone."""
        connection = self._connected()
        [[position]] = connection.execute(
            "select position from projection_positions where name = %s", (model.name,)
        ).fetchall()
        events = self._events(position, limit)
        with connection.transaction():
            if events:
                model.apply(connection, events)
                position = events[-1].position
                move_position(connection, model, position)
        self._positions[model.name] = position
        return bool(events)


class Counting(Listing):
    """Notes which events are applied, in the same transaction as they are."""

    ddl = Listing.ddl

    def apply(self, connection: psycopg.Connection, events: Sequence[RecordedEvent]) -> None:
        """As the listing."""
        super().apply(connection, events)
        with connection.cursor() as cursor:
            cursor.executemany("insert into applied values (%s)", [(recorded.position,) for recorded in events])


def two_double_nothing(kind: type[Projector], conninfo: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two projectors on the same read models while the log grows: each event is applied once, in order, at once."""
    query(conninfo, "create table applied (position bigint, number bigserial)")
    query(conninfo, "grant all on applied, applied_number_seq to conversas_projector")
    models = [Counting(), HISTORY]
    with projecting(conninfo, models, kind, batch_size=7), projecting(conninfo, models, kind, batch_size=5):
        fill(conninfo, conversations=20, notes=20)
        last = head(conninfo)
        wait_until(
            lambda: all(positions(conninfo)[model.name][0] == last for model in models), "both are at the end", 20
        )
    applied = [position for (position,) in query(conninfo, "select position from applied order by number")]
    assert applied == list(range(1, last + 1)), "doubled or skipped"
    assert "failed on a batch" not in caplog.text, "got in each other's way"
    assert query(conninfo, "select count(*), count(distinct position) from history") == [(last, last)]


def test_two_projectors_at_once_double_nothing(database: str, caplog: pytest.LogCaptureFixture) -> None:
    create_missing(database)
    two_double_nothing(Projector, database, caplog)
    project_all(database)
    assert_live_equals_rebuilt(database)


def test_canary_without_the_position_locked_two_get_in_each_others_way(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    create_missing(database)
    with pytest.raises(AssertionError):
        two_double_nothing(Unlocked, database, caplog)


class Remembering(Projector):
    """Canary: trusts a position that it remembers from before a crash."""

    def discard_connections(self) -> None:
        before = dict(self._positions)
        super().discard_connections()
        self._positions.update(before)


def catches_up_after_a_crash(kind: type[Projector], server: Postgres, seconds: float) -> None:
    """A crash of PostgreSQL sets a read model back (its commits are not waited for); it catches up unasked."""
    fill(server.conninfo, conversations=5, notes=2)
    last = head(server.conninfo)
    query(server.maintenance, "alter system set wal_writer_delay = '10s'")  # the commits stay in memory for longer
    query(server.maintenance, "select pg_reload_conf()")
    with projecting(server.conninfo, kind=kind):
        wait_until(lambda: {at for at, _ in positions(server.conninfo).values()} == {last}, "it is at the end")
        server.kill()
        # What the crash would do if the last commits had not reached the disk; with luck it did just that. It is done
        # before anybody else connects again, as a crash does it.
        with tempfile.TemporaryDirectory() as sockets:
            Path(sockets).chmod(0o777)
            server.start(Path(sockets))
            set_back(make_conninfo(server.conninfo, host=sockets))
            server.kill(signal.SIGINT)
        server.start()
        wait_until(lambda: {at for at, _ in positions(server.conninfo).values()} == {last}, "it catches up", seconds)


def set_back(conninfo: str) -> None:
    """Everything derived as it was in the beginning."""
    with psycopg.connect(conninfo) as connection:
        connection.execute("update projection_positions set position = 0")
        for model in READ_MODELS:
            for table in model.tables:
                connection.execute(f"delete from {table}".encode())


def test_after_a_crash_of_postgresql_it_catches_up_without_a_new_event(mortal_postgres: Postgres) -> None:
    catches_up_after_a_crash(Projector, mortal_postgres, 20)
    assert_live_equals_rebuilt(mortal_postgres.conninfo)


def test_canary_who_trusts_its_memory_stays_behind(mortal_postgres: Postgres) -> None:
    with pytest.raises(AssertionError, match="it catches up"):
        catches_up_after_a_crash(Remembering, mortal_postgres, 3)


# Rebuilding


def start_rebuild(conninfo: str, name: str, batch_size: int, pause_seconds: float, how: str = "beside") -> Any:
    """A rebuild in a process of its own, slow enough to be killed in its middle; it writes a line per batch."""
    arguments = [sys.executable, SLOW_REBUILD, conninfo, name, str(batch_size), str(pause_seconds), how]
    return subprocess.Popen(arguments, cwd=ROOT, env=os.environ | {"PYTHONWARNINGS": "ignore"}, stdout=subprocess.PIPE)


def killed_in_the_middle_it_changes_nothing(how: str, model: ReadModel, conninfo: str) -> None:
    """Twice: kill a rebuild after its first batches."""
    project_all(conninfo)
    before, at = contents(conninfo), positions(conninfo)
    for batches in (1, 3):
        with start_rebuild(conninfo, model.name, batch_size=2, pause_seconds=0.2, how=how) as process:
            for _ in range(batches):
                assert process.stdout.readline(), "it ended before it was killed"
            process.send_signal(signal.SIGKILL)
        assert (contents(conninfo), positions(conninfo)) == (before, at), "something was changed"


def test_a_rebuild_that_is_killed_changes_nothing(filled: str) -> None:
    for model in READ_MODELS:
        killed_in_the_middle_it_changes_nothing("beside", model, filled)
    with projecting(filled):  # and the live ones go on
        fill(filled, conversations=2, notes=1)
        for model in READ_MODELS:
            wait_until(lambda name=model.name: positions(filled)[name][0] == head(filled), "the projector goes on")
    assert_live_equals_rebuilt(filled)  # the next rebuild is not bothered by what the killed one left
    assert query(filled, "select count(*) from pg_tables where schemaname = 'shadow'") == [(0,)]


def test_canary_a_rebuild_in_place_that_is_killed_is_caught(filled: str) -> None:
    with pytest.raises(AssertionError, match="something was changed"):
        killed_in_the_middle_it_changes_nothing("in-place", LISTING, filled)


def rebuild_while_commands_come_in(conninfo: str, times: int = 2) -> None:
    """Rebuild all, a few times, beside a projector and a writer: nothing is lost at the swap."""
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            fill(conninfo, conversations=5, notes=3)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        with projecting(conninfo, batch_size=50):
            for model in READ_MODELS * times:
                assert rebuild_module.rebuild(conninfo, model, batch_size=20) > 0
            stop.set()
            writing.join()
            assert_projected(conninfo)
    finally:
        stop.set()
        writing.join()
    assert_live_equals_rebuilt(conninfo)


def test_a_rebuild_while_commands_come_in_ends_equal_to_the_live_one(filled: str) -> None:
    project_all(filled)
    rebuild_while_commands_come_in(filled)


class LeavesThePosition(psycopg.Connection):
    """Canary: swaps the tables, and not the position at which the live ones were."""

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if text.startswith("insert into projection_positions"):
            return super().execute("select 1")
        return super().execute(query, *args, **options)


class Careless(LeavesThePosition):
    """Canary: nor does it lock it before."""

    def execute(self, query: Any, *args: Any, **options: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        if "from projection_positions" in text and "for update" in text:
            time.sleep(0.2)
            return super().execute("select 1")
        return super().execute(query, *args, **options)


def rebuild_over(kind: type[psycopg.Connection], patch: pytest.MonkeyPatch) -> None:
    """Let rebuilds have such a connection."""

    def connect(conninfo: str, settings: dict[str, str], *, application: str) -> psycopg.Connection:
        return kind.connect(with_settings(conninfo, settings, application), autocommit=True)

    patch.setattr(rebuild_module, "connect", connect)


def rebuild_of_what_is_behind(conninfo: str, model: ReadModel) -> None:
    """The new tables hold more than the live ones did, so the position goes with them, or it all comes again."""
    project_all(conninfo)
    fill(conninfo, conversations=2, notes=1)
    assert rebuild(conninfo, model) == head(conninfo)
    project_all(conninfo)
    assert_projected(conninfo)
    assert_live_equals_rebuilt(conninfo)


def test_a_swap_takes_the_position_along(filled: str) -> None:
    for model in (LISTING, HISTORY):
        rebuild_of_what_is_behind(filled, model)


@pytest.mark.parametrize("model", [LISTING, HISTORY], ids=["the listing doubles", "the history halts"])
def test_canary_a_swap_that_leaves_the_position(model: ReadModel, filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuild_over(LeavesThePosition, monkeypatch)
    with pytest.raises(AssertionError, match=r"differ|halted|twice"):
        rebuild_of_what_is_behind(filled, model)


@only_in_campaigns("a race that is lost only now and then")
def test_canary_a_swap_that_leaves_the_position_among_commands(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    project_all(filled)
    with monkeypatch.context() as patched:
        rebuild_over(Careless, patched)
        caught = (AssertionError, psycopg.errors.DeadlockDetected)  # its lock is what keeps swaps from deadlocks
        with pytest.raises(caught, match=r"differ|duplicate key|halted|UniqueViolation|deadlock"):
            rebuild_while_commands_come_in(filled, times=5)  # a race: now and then it is won


def test_a_rebuild_waits_for_no_reader_for_ever(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that never lets go of the live table makes the swap fail, in time, and changes nothing."""
    project_all(filled)
    before, at = contents(filled), positions(filled)
    monkeypatch.setattr(rebuild_module, "LIMITS", LIMITS | {"lock_timeout": "500ms"})
    with psycopg.connect(filled) as reader:
        reader.execute("select count(*) from listing")  # and the transaction stays open
        started = time.monotonic()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            rebuild(filled, LISTING)
        assert time.monotonic() - started < 5
    assert (contents(filled), positions(filled)) == (before, at)
    rebuild(filled, LISTING)
    assert contents(filled) == before


def test_every_wait_of_a_rebuild_has_a_limit() -> None:
    assert LIMITS["lock_timeout"] == "10s"


def test_two_rebuilds_of_one_read_model_come_one_after_the_other(filled: str) -> None:
    project_all(filled)
    before = contents(filled)
    with (
        start_rebuild(filled, "listing", batch_size=5, pause_seconds=0.02) as one,
        start_rebuild(filled, "listing", batch_size=5, pause_seconds=0.02) as other,
    ):
        assert [one.wait(120), other.wait(120)] == [0, 0]
    assert contents(filled) == before
