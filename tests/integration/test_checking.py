"""`conversas replay --check`: what agrees with the log is found to, and whatever was altered by hand is found."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from contact_keyring import keys_of
from databases import new_database, prepare, project
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from adapters.checking import check, gaps
from adapters.command_handler import CommandHandler
from adapters.contact_keys import beside
from adapters.deciding import Request
from adapters.event_log import EventLog
from adapters.projector import READ_MODELS, Projector
from api import demo
from domain.commands import AddLabel
from domain.envelope import Stream
from domain.events import Actor, ActorKind, Surface
from domain.permissions import BUILT_IN_ROLES, Caller

ROOT = Path(__file__).parents[2]
CALLER = Caller(demo.WORKSPACE, Actor(kind=ActorKind.SYSTEM, id="x"), BUILT_IN_ROLES["admin"])


@pytest.fixture(scope="module")
def told(postgres_url: str) -> Iterator[str]:
    """A database with the demo, projected."""
    with new_database(postgres_url) as database:
        prepare(database)
        with closing(CommandHandler(database, keys_of(database))) as handler:
            demo.load(handler, "cvs_checking")
            label(handler, "a")
        project(database)
        yield database


def label(handler: CommandHandler, name: str) -> None:
    stream, command = Stream(demo.WORKSPACE, AddLabel.STREAM, demo.CONVERSATION), AddLabel(label=name)
    [answer] = handler.handle([Request(stream, command, CALLER, Surface.API, uuid4(), uuid4())])
    assert not isinstance(answer, Exception), answer


def differences(url: str, told: str, batch_size: int = 2_000) -> list[str]:
    """Between the log in ``url`` and its read models, with the keys of ``told``."""
    with closing(keys_of(told)) as keys, EventLog(url, keys=keys) as log:
        found = list(gaps(log))
        for model in () if found else READ_MODELS:
            found += check(url, log, model, batch_size=batch_size).differences
    return [f"{each.place} {each.what}" for each in found]


def run(url: str, told: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CONVERSAS_DATABASE_URL": url, "CONVERSAS_LOG_LEVEL": "error", "COLUMNS": "200"}
    environment["CONVERSAS_KEYS_DATABASE_URL"] = beside(told)
    command = [sys.executable, "-m", "api", "replay", "--check"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_what_is_as_the_log_has_it_is_found_to_be_so_and_nothing_is_left_behind(told: str) -> None:
    assert differences(told, told, batch_size=7) == []
    answer = run(told, told)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    for model in READ_MODELS:
        assert f"{model.name}: the same, " in answer.stdout
    with psycopg.connect(told) as connection:
        assert connection.execute("select from pg_class where relname = 'listing'").rowcount == 1


ALTERED = {
    "update listing set status = 'pending' where status = 'finalized'": "listing has workspace_id=",
    "update history set surface = 'bulk' where position = 12": "history has position=12",
    "delete from timeline where position = (select max(position) from timeline)": "timeline lacks ",
    "update past set agent_id = workspace_id": "past has workspace_id=",
    "insert into sectors values ('{workspace}', gen_random_uuid(), 'Fantasma', true)": "sectors has workspace_id=",
    "update agents set name = 'Outra Pessoa'": "agents has workspace_id=",
    "update episodes set transfers = transfers + 1": "episodes has workspace_id=",
    "update projection_positions set halted = 'x' where name = 'history'": "history is halted: x",
    "update projection_positions set shape = 'x' where name = 'tree'": "tree is of another version",
    "alter table events disable trigger all; delete from events where position = 20": "the log has ",
}


@pytest.mark.parametrize("statement", ALTERED)
def test_canary_a_row_altered_by_hand_is_found_and_told_without_what_it_says(told: str, statement: str) -> None:
    expected = ALTERED[statement]
    other = make_conninfo(told, dbname="altered")
    with psycopg.connect(told, autocommit=True, dbname="postgres") as connection:
        connection.execute(f"create database altered template {conninfo_to_dict(told)['dbname']}")
        try:
            with psycopg.connect(other, autocommit=True) as altered:
                altered.execute(statement.replace("{workspace}", str(demo.WORKSPACE)).encode())
            found = differences(other, told)
            assert found
            assert any(each.startswith(expected) for each in found), found
            assert not any("Fantasma" in each or "Outra" in each for each in found)
            if "listing" in statement:
                answer = run(other, told)
                assert answer.returncode == 1
                assert "listing: DIFFERS" in answer.stdout
                assert "otherwise than the log: status" in answer.stdout
        finally:
            connection.execute("drop database altered with (force)")


def test_it_compares_at_one_position_while_others_write(told: str) -> None:
    stop = threading.Event()

    def write() -> None:
        with closing(CommandHandler(told, keys_of(told))) as handler:
            for number in range(10_000):
                label(handler, f"l{number % 40}-{number}"[:20]) if number < 40 else stop.wait(0.05)
                if stop.is_set():
                    return

    def project() -> None:
        with closing(Projector(told, keys=keys_of(told))) as projector:
            projector.run(stop)

    threads = [threading.Thread(target=write), threading.Thread(target=project)]
    for thread in threads:
        thread.start()
    try:
        assert [differences(told, told, batch_size=20) for _ in range(2)] == [[], []]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
