"""A real Apache Kafka for the session, and one that may be killed."""

import gc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def kafka_bootstrap() -> Iterator[str]:
    """host:port of a Kafka that no test harms; CONVERSAS_KAFKA_BOOTSTRAP_SERVERS names another than our own."""
    given = os.environ.get("CONVERSAS_KAFKA_BOOTSTRAP_SERVERS")
    if given:
        yield given
        return
    broker = start_broker()
    yield broker.bootstrap_servers
    broker.close()


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
