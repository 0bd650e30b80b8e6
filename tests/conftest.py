"""What all tests share: one real PostgreSQL for the session and a fresh, migrated database for each test that asks."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from adapters.postgres import embedded, migrate

CAMPAIGN = os.environ.get("CONVERSAS_CAMPAIGN") == "1"
"""Run the long forms of the fault tests (`make faults`)."""


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL server, for as long as the tests run."""
    with tempfile.TemporaryDirectory(prefix="conversas-pg-") as directory, embedded(Path(directory) / "pg") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create database template_conversas")
        migrate(make_conninfo(url, dbname="template_conversas"))
        yield url


_numbers = itertools.count(1)


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The conninfo of a fresh database with all migrations applied; dropped afterwards."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"create database {name} template template_conversas")
        yield make_conninfo(postgres_url, dbname=name)
        connection.execute(f"drop database {name} with (force)")
