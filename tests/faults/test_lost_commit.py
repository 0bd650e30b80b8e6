"""The reply to COMMIT is lost: the command is recorded once, and answered as what became of it.

A proxy between the handler and PostgreSQL cuts the connection before, while or after the server gets the COMMIT, and
may crash the server in the same moment.
"""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from select import select
from typing import Any, Self
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from rig import SYSTEM, Postgres, conversation, do, handling, head, opening, query, request

from adapters.command_handler import CommandHandler, OutcomeUnknownError, UnavailableError
from adapters.deciding import Outcome
from adapters.event_log import EventRow
from domain.commands import AddLabel, AddNote
from domain.errors import IdempotencyKeyReusedError, VersionConflictError

pytestmark = pytest.mark.faults


class CuttingProxy:
    """Stands between a handler and PostgreSQL; once armed it cuts the next connection that commits."""

    def __init__(self, database: str) -> None:
        server = conninfo_to_dict(database)
        self._server = str(Path(str(server["host"])) / f".s.PGSQL.{server.get('port') or 5432}")
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        self.conninfo = make_conninfo(database, host="127.0.0.1", port=port, sslmode="disable", gssencmode="disable")
        self.cut: str | None = None
        """``before`` the server gets the COMMIT, ``during`` (it has it, nobody waits), or ``after`` it answered."""
        self.then: Callable[[], object] = lambda: None
        """What else goes wrong in that moment."""
        self.refuses = False
        """The database stays away: nobody gets through."""
        self._threads = [threading.Thread(target=self._listen)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def refuse(self) -> None:
        """Let nobody through any more."""
        self.refuses = True

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.refuses:
                    client.close()
                    continue
                self._threads.append(threading.Thread(target=self._relay, args=(client,)))
                self._threads[-1].start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server, suppress(OSError):
            server.connect(self._server)
            cut = None
            while True:
                for source in select([client, server], [], [])[0]:
                    data = source.recv(65_536)
                    if source is client and b"COMMIT" in data:
                        cut, self.cut = self.cut, None
                    if not data:
                        return
                    if cut == "before" or (cut == "after" and source is server):
                        self.then()
                        return
                    (server if source is client else client).sendall(data)
                    if cut == "during":
                        self.then()
                        return


@pytest.fixture
def proxy(database: str) -> Iterator[CuttingProxy]:
    with CuttingProxy(database) as proxy:
        yield proxy


def note() -> AddNote:
    return AddNote(message_id=uuid4(), author=SYSTEM, text="once")


def events_of(conninfo: str, id_: UUID) -> list[int]:
    return [v for (v,) in query(conninfo, "select version from events where stream_id = %s order by position", (id_,))]


class GuessingNo(CommandHandler):
    """Canary: takes a commit that was not answered for one that did not happen."""

    def _landed(self, last: EventRow, deadline: float) -> bool:
        del last, deadline
        return False


class GuessingYes(CommandHandler):
    """Canary: takes it for one that did."""

    def _landed(self, last: EventRow, deadline: float) -> bool:
        del last, deadline
        return True


def write_and_be_cut(kind: type[CommandHandler], proxy: CuttingProxy, database: str, cut: str) -> None:
    """Handle two commands whose COMMIT is cut: they must be recorded once, and said to be."""
    with handling(proxy.conninfo, kind) as handler:
        id_ = conversation(handler)
        proxy.cut = cut
        answers = handler.handle([request(note(), id_), request(note(), id_)])
        assert proxy.cut is None, "the proxy cut nothing"
        assert events_of(database, id_) == [1, 2, 3]
        told = [(a.version, a.position, a.events, a.replayed) for a in answers if isinstance(a, Outcome)]
        assert told == [(2, 3, 1, False), (3, 4, 1, False)]
        assert do(handler, note(), id_).version == 4  # it goes on


CUTS = ["before", "during", "after"]


@pytest.mark.parametrize("cut", CUTS)
def test_a_command_is_recorded_once_when_the_connection_breaks_at_the_commit(
    cut: str, proxy: CuttingProxy, database: str
) -> None:
    write_and_be_cut(CommandHandler, proxy, database, cut)


@pytest.mark.parametrize(
    ("kind", "cut", "recorded"), [(GuessingNo, "after", "[1, 2, 3, 4, 5]"), (GuessingYes, "before", "[1]")]
)
def test_canary_who_guesses_doubles_or_loses_them(
    kind: type[CommandHandler], cut: str, recorded: str, proxy: CuttingProxy, database: str
) -> None:
    with pytest.raises(AssertionError, match=re.escape(f"{recorded} == [1, 2, 3]")):
        write_and_be_cut(kind, proxy, database, cut)


@pytest.mark.parametrize("cut", CUTS)
def test_a_lost_reply_is_no_conflict(cut: str, proxy: CuttingProxy) -> None:
    with handling(proxy.conninfo) as handler:
        id_ = conversation(handler)
        proxy.cut = cut
        assert do(handler, note(), id_, expected_version=1).version == 2


def test_canary_who_guesses_reports_a_false_conflict(proxy: CuttingProxy) -> None:
    with handling(proxy.conninfo, GuessingNo) as handler:
        id_ = conversation(handler)
        proxy.cut = "after"
        with pytest.raises(VersionConflictError):
            do(handler, note(), id_, expected_version=1)


@pytest.mark.parametrize("cut", CUTS)
def test_a_whole_batch_is_answered_as_it_was_decided(cut: str, proxy: CuttingProxy, database: str) -> None:
    with handling(proxy.conninfo) as handler:
        id_ = conversation(handler)
        label = AddLabel(label="vip")
        proxy.cut = cut
        answers = handler.handle(
            [
                request(note(), id_),
                request(note(), id_, expected_version=1),  # refused: the one before has moved it
                request(label, id_, keys=("a",), fingerprint=b"a"),
                request(label, id_, keys=("a",), fingerprint=b"b"),  # refused: another request under the same key
                request(label, id_),  # already so
            ]
        )
    kinds = [type(answer) for answer in answers]
    assert kinds == [Outcome, VersionConflictError, Outcome, IdempotencyKeyReusedError, Outcome]
    assert [answer.events for answer in answers if isinstance(answer, Outcome)] == [1, 1, 0]
    assert events_of(database, id_) == [1, 2, 3]


@pytest.mark.parametrize("cut", CUTS)
def test_an_outcome_without_events_is_stored_and_answered(cut: str, proxy: CuttingProxy, database: str) -> None:
    with handling(proxy.conninfo) as handler:
        id_ = conversation(handler)
        do(handler, AddLabel(label="vip"), id_)
        proxy.cut = cut
        outcome = do(handler, AddLabel(label="vip"), id_, keys=("k",), fingerprint=b"f")
        assert proxy.cut is None, "the proxy cut nothing"
        assert (outcome.version, outcome.events) == (2, 0)
    assert query(database, "select count(*) from outcomes") == [(1,)]


# The database stays away


@pytest.mark.parametrize("cut", CUTS)
def test_an_outcome_that_cannot_be_learned_is_called_unknown_and_a_repeat_tells_it(
    cut: str, proxy: CuttingProxy, database: str
) -> None:
    again = {"keys": ("k",), "fingerprint": b"f"}
    command = note()
    with handling(database) as direct:
        id_ = conversation(direct)
        with handling(proxy.conninfo, patience_seconds=0.5) as handler:
            proxy.cut, proxy.then = cut, proxy.refuse
            with pytest.raises(OutcomeUnknownError, match="same Idempotency-Key"):
                do(handler, command, id_, **again)
            with pytest.raises(UnavailableError):
                do(handler, command, id_, **again)
        outcome = do(direct, command, id_, **again)
        assert (outcome.version, outcome.events) == (2, 1)
        if cut != "during":  # there it is a race whether the server commits
            assert outcome.replayed is (cut == "after")
        assert do(direct, command, id_, **again).replayed
    assert events_of(database, id_) == [1, 2]


def test_before_anything_was_sent_it_is_unavailable_and_nothing_was_changed(proxy: CuttingProxy, database: str) -> None:
    with handling(proxy.conninfo, patience_seconds=0.5) as handler:
        id_ = conversation(handler)
        before = head(database)
        proxy.refuse()
        query(
            database,
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'conversas-writer'",
        )
        with pytest.raises(UnavailableError, match="nothing was changed") as caught:
            do(handler, note(), id_)
        assert not isinstance(caught.value, OutcomeUnknownError)
        assert head(database) == before
        proxy.refuses = False
        assert do(handler, note(), id_).version == 2


# The server itself crashes in that moment


class AskingPostgres(CommandHandler):
    """Canary: asks PostgreSQL what became of the transaction's id, as its manual suggests."""

    transaction_id: str

    def _save(self, connection: psycopg.Connection, batch: Any) -> None:
        row = connection.execute("select pg_current_xact_id()::text").fetchone()
        assert row is not None
        self.transaction_id = row[0]
        super()._save(connection, batch)

    def _landed(self, last: EventRow, deadline: float) -> bool:
        del last, deadline
        row = self._connected().execute("select pg_xact_status(%s::xid8)", (self.transaction_id,)).fetchone()
        self._connected().rollback()
        return row == ("committed",)


def note_while_the_server_crashes(kind: type[CommandHandler], server: Postgres) -> None:
    """The server is killed before it gets the COMMIT; when it is back, others are first to write."""

    def crash() -> None:
        server.kill()
        server.start()
        for _ in range(3):
            query(server.conninfo, "insert into migrations values (gen_random_uuid()::text, now())")

    with CuttingProxy(server.conninfo) as proxy, handling(proxy.conninfo, kind) as handler:
        id_ = conversation(handler)
        proxy.cut, proxy.then = "before", crash
        assert do(handler, note(), id_).version == 2
        assert events_of(server.conninfo, id_) == [1, 2], "acknowledged, and lost"


def test_a_crash_at_the_commit_loses_nothing_that_was_acknowledged(mortal_postgres: Postgres) -> None:
    note_while_the_server_crashes(CommandHandler, mortal_postgres)


def test_canary_ids_of_transactions_are_given_out_again_after_a_crash(mortal_postgres: Postgres) -> None:
    with pytest.raises(AssertionError, match="acknowledged, and lost"):
        note_while_the_server_crashes(AskingPostgres, mortal_postgres)


def test_opening_twice_across_a_crash_gives_one_conversation(mortal_postgres: Postgres) -> None:
    with handling(mortal_postgres.conninfo) as handler:
        conversation(handler)
        id_, command = uuid4(), opening(1)
        do(handler, command, id_)
        mortal_postgres.kill()
        mortal_postgres.start()
        assert do(handler, command, id_).events == 0
    assert events_of(mortal_postgres.conninfo, id_) == [1]
