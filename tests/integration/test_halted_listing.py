"""Where the listing cannot be brought to the log's end, no command goes on as if nobody were left in it.

Given is a listing of which another version made the tables; once it is rebuilt, all is forgotten.
"""

from collections.abc import Callable
from contextlib import closing

import psycopg
import pytest
from click.testing import Result
from contact_keyring import keys_of
from typer.testing import CliRunner

from adapters.command_handler import CommandHandler
from adapters.erasures import is_behind
from adapters.event_log import EventLog
from adapters.projector import Projector, create_missing
from api import demo
from api.__main__ import app
from api.cli import erasing, serving
from api.server import Server

Run = Callable[..., Result]
NAME = "Ana Souza"


@pytest.fixture
def run(database: str, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`conversas …`, in this process."""
    monkeypatch.setenv("CONVERSAS_DATABASE_URL", database)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def halted(database: str) -> str:
    """The demo's conversations are listed; then the listing is halted."""
    create_missing(database)
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler)
    with closing(Projector(database, keys=keys_of(database))) as projector:
        assert projector.catch_up() == []
    with psycopg.connect(database) as connection:
        connection.execute("update projection_positions set shape = 'of another version' where name = 'listing'")
    assert is_shown(database)
    return database


def is_shown(database: str) -> bool:
    with psycopg.connect(database) as connection:
        found = connection.execute("select count(*) from listing where contact_name = %s", (NAME,)).fetchone()
    return found != (0,)


def assert_stopped(done: Result) -> None:
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "The read model 'listing' is halted before the log's end" in done.output


def test_an_erasure_that_the_listing_has_not_seen_is_not_called_done(
    halted: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the log it is, and the key is gone; and nothing is served until the listing has forgotten them too."""
    for _ in range(2):
        done = run("erase", "demo", demo.CONTACT)
        assert_stopped(done)
        assert "rased." not in done.output
    with EventLog(halted) as log:
        [last] = log.read(log.head() - 1, 1)
    assert last.event.TOPIC == "contact-erased.v1"
    with closing(keys_of(halted)) as keys:
        assert keys.ledger().keys() == {(demo.WORKSPACE, demo.CONTACT)}
    assert is_shown(halted)

    served: list[str] = []
    monkeypatch.setattr(Server, "run", lambda _: served.append("it"))
    assert_stopped(run("serve"))
    assert served == []

    assert run("rebuild", "listing").exit_code == 0
    assert not is_shown(halted)
    assert not is_behind(halted), "so it serves"
    again = run("erase", "demo", demo.CONTACT)
    assert (again.exit_code, again.stdout) == (0, "Was erased already.\n")


def test_canary_commands_that_do_not_look_go_on(halted: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (erasing, serving):
        monkeypatch.setattr(module, "complete", lambda *_: None)
    assert run("erase", "demo", demo.CONTACT).stdout == "Erased.\n"
    served: list[str] = []
    monkeypatch.setattr(Server, "run", lambda _: served.append("it"))
    monkeypatch.setattr("api.app.settle", lambda: None)  # it is for a process of its own
    run("serve")
    assert len(served) == 1
    assert is_shown(halted)


def purge_waits_for_the_listing(halted: str, run: Run, patch: pytest.MonkeyPatch) -> None:
    with closing(CommandHandler(halted, keys_of(halted))) as handler:
        demo.give_token(handler, "cvs_something-new-in-the-log")
    purged = []
    patch.setattr(erasing, "purge_disks", lambda *_: purged.append("all"))
    done = run("purge")
    assert purged == [], "before the listing had forgotten"
    assert_stopped(done)
    assert "urged." not in done.output
    assert run("rebuild", "listing").exit_code == 0
    assert run("purge").stdout == "Purged.\n"
    assert purged == ["all"]


def test_no_disk_is_purged_of_what_the_listing_still_shows(
    halted: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    purge_waits_for_the_listing(halted, run, monkeypatch)


def test_canary_a_purge_that_does_not_look_who_is_halted(
    halted: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "complete", lambda projector, *_: projector.catch_up())
    with pytest.raises(AssertionError, match="before the listing had forgotten"):
        purge_waits_for_the_listing(halted, run, monkeypatch)
