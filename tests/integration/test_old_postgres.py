"""On a PostgreSQL that is too old every command that migrates ends with a sentence, before it changes anything."""

from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from adapters import postgres
from api.__main__ import app

COMMANDS = (
    *(["migrate"], ["run"], ["serve"], ["project"], ["rebuild"], ["replay"], ["purge"], ["keys", "list"]),
    *(["token", "list"], ["workspace", "list"], ["erase", "demo", str(uuid4())]),
)


def test_a_server_that_is_too_old_is_refused_before_anything_is_changed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest that will do is newer than the server of the tests here; its version is asked for real."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("create database too_old")
        found = connection.info.server_version // 10_000
    url = make_conninfo(postgres_url, dbname="too_old")
    monkeypatch.setattr(postgres, "OLDEST", found + 1)
    monkeypatch.setattr("api.cli.serving.stop_on_signals", lambda: None)  # they are for a process of its own
    monkeypatch.setattr("api.cli.serving._check_port", lambda _: None)
    monkeypatch.setenv("CONVERSAS_DATABASE_URL", url)
    try:
        for command in COMMANDS:
            done = CliRunner().invoke(app, command)
            assert (done.exit_code, type(done.exception)) == (1, SystemExit), command
            wanted = f"Nothing was changed: the server is PostgreSQL {found}, and {found + 1} or newer is needed. Move"
            assert done.output.startswith(wanted), (command, done.output)
        with psycopg.connect(url) as connection:
            assert connection.execute("select from pg_tables where schemaname = 'public'").fetchall() == []
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute("drop database too_old with (force)")
