"""Databases of tests' own: fresh ones with all migrations applied, and with the demo."""

import itertools
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
from contact_keyring import keys_of
from psycopg.conninfo import make_conninfo

from adapters.command_handler import CommandHandler
from adapters.projector import Projector, create_missing
from api import demo

_numbers = itertools.count(1)


@contextmanager
def new_database(postgres_url: str) -> Iterator[str]:
    """The conninfo of one; dropped afterwards, with the one of its keys."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template template_conversas")
        try:
            yield make_conninfo(postgres_url, dbname=name)
        finally:
            for each in (name, f"{name}_keys"):
                connection.execute(f"drop database if exists {each} with (force)")


def load_demo(database: str, token: str | None = None) -> None:
    """The demo workspace, whose admin has ``token``; not projected."""
    with closing(CommandHandler(database, keys_of(database))) as handler:
        demo.load(handler, token)


def prepare(database: str) -> None:
    """Make the tables of the read models."""
    create_missing(database)
    keys_of(database).close()


def project(database: str) -> None:
    """Bring the read models up to date."""
    with closing(keys_of(database)) as keys, closing(Projector(database, keys=keys)) as projector:
        projector.catch_up()
