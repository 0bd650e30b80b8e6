"""What is made once for the session: an Apache Kafka that may be killed, and an imported log."""

import gc
import lzma
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from uuid import UUID

import pytest
from campaign import CAMPAIGN
from contact_keyring import keys_of
from databases import new_database

from adapters.command_handler import CommandHandler
from adapters.importers import Report, import_file

with warnings.catch_warnings():
    # kafka-python reads its schemas with importlib.resources.read_text, which Python 3.11 calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError

CACHE = Path(__file__).parents[2] / ".data" / "kafka" / "libs"


def start_broker() -> KafkaBroker:
    broker = KafkaBroker(cache=CACHE)
    try:
        return broker.__enter__()
    except KafkaUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _mortal_broker() -> Iterator[KafkaBroker]:
    broker = start_broker()
    yield broker
    broker.close()


@pytest.fixture
def mortal_broker(_mortal_broker: KafkaBroker) -> Iterator[KafkaBroker]:
    """A Kafka of our own that a test may stop, freeze or kill, and leaves running."""
    yield _mortal_broker
    # kafka-python leaves each socket whose connect was refused to the garbage collector, without closing it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@dataclass(frozen=True)
class ImportedLog:
    """A database with a service desk's imported log: of the real one where it is there, else of our sample."""

    database: str
    workspace_id: UUID
    path: Path
    report: Report
    told: list[tuple[int, int, int]]
    """What the progress was told."""


ROWS_OF_EVERY_RUN = 12_000
"""Of the real log's 119,998, which take long; all of them in `make faults`."""


def _a_log(directory: Path) -> Path:
    real = Path(__file__).parents[2].parent / "shared" / "data" / "servicenow_incidents.csv.xz"
    if not real.exists():
        return Path(__file__).parents[1] / "data" / "servicenow_sample.csv"
    if CAMPAIGN:
        return real
    path = directory / "incidents.csv"
    with lzma.open(real, "rt", encoding="utf-8", newline="") as rows, path.open("w", encoding="utf-8") as some:
        kept = list(islice(rows, ROWS_OF_EVERY_RUN))
        last = kept[-1].partition(",")[0]  # an incident is kept whole or not at all
        some.writelines(row for row in kept if row.partition(",")[0] != last)
    return path


@pytest.fixture(scope="session")
def imported_log(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImportedLog]:
    """Imported once; tests only read it, or import it again, which adds nothing."""
    path = _a_log(tmp_path_factory.mktemp("log"))
    told: list[tuple[int, int, int]] = []
    with new_database(postgres_url) as database:
        handler = CommandHandler(database, keys_of(database))
        report = import_file(handler, UUID(int=7), path, "servicenow", progress=lambda *done: told.append(done))
        handler.close()
        yield ImportedLog(database, UUID(int=7), path, report, told)
