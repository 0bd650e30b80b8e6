"""What all tests share: a real PostgreSQL per worker, one Kafka for all, and a fresh, migrated database per test."""

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from databases import new_database
from kafka_for_all import KafkaUnavailableError, shared_broker
from psycopg.conninfo import make_conninfo

from adapters.postgres import embedded, migrate


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL server, for as long as the tests run."""
    with tempfile.TemporaryDirectory(prefix="conversas-pg-") as directory, embedded(Path(directory) / "pg") as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create database template_conversas")
            # It goes with the tests; what a crash of the server leaves is tested on `mortal_postgres`.
            connection.execute("alter system set fsync = off")
            connection.execute("alter system set full_page_writes = off")
            connection.execute("select pg_reload_conf()")
        migrate(make_conninfo(url, dbname="template_conversas"))
        yield url


gc.set_threshold(100_000, 20, 20)  # thousands of tests are collected, and none of them is garbage


def pytest_collection_finish() -> None:
    """What was collected stays: it is not looked through again while the tests run."""
    gc.freeze()


FIRST = ("test_whole_way.py", "faults", "integration")
"""Where a test takes long: begun first, so that all workers end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of `FIRST` come before all others; the tests of a file stay together."""
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: min(ranks.get(name, len(FIRST)) for name in (item.path.name, item.path.parent.name)))


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """host:port of a Kafka that no test harms; CONVERSAS_KAFKA_BOOTSTRAP_SERVERS names another than our own."""
    given = os.environ.get("CONVERSAS_KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given
        return
    with _own_broker(tmp_path_factory) as (address, _):
        yield address


@pytest.fixture(scope="session")
def kafka_on_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """host:port of our own Kafka that no test harms, and where its segments are, also those of other tests."""
    with _own_broker(tmp_path_factory) as broker:
        yield broker


@contextmanager
def _own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    base = tmp_path_factory.getbasetemp()
    try:
        with shared_broker((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "kafka") as broker:
            yield broker
    except KafkaUnavailableError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(error))


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The conninfo of a fresh database with all migrations applied; dropped afterwards."""
    with new_database(postgres_url) as conninfo:
        yield conninfo
