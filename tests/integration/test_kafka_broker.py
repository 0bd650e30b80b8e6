"""The local broker: one for a directory, and a start that fails says why in a line or two.

Where no real Kafka is needed, a shell stands in for it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest

from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError, require_tools

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".data" / "kafka" / "libs"
STACK = "\tat java.base/sun.nio.ch.Net.bind0(Native Method)"


class Stand(KafkaBroker):
    """Runs a shell script in Kafka's place."""

    script = "exec sleep 60"

    def _java_command(self) -> list[str]:
        return ["/bin/sh", "-c", self.script]


class Unlocked(Stand):
    """Canary: asks nobody whether the directory is in use."""

    def _take_directory(self) -> IO[str]:
        self._lock = (self._directory / "other lock").open("w")
        return self._lock


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory whose storage is formatted."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").touch()
    return tmp_path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def properties(directory: Path) -> str:
    return (directory / "server.properties").read_text()


def test_a_second_broker_on_a_directory_is_refused_and_leaves_the_first_as_it_is(directory: Path) -> None:
    with closing(Stand(directory)) as first:
        first.start()
        before = properties(directory)
        with closing(Stand(directory)) as second:
            with pytest.raises(KafkaUnavailableError, match=r"A broker already runs on .*; stop it, or use: conversas"):
                second.start()
            assert second.pid is None
        assert properties(directory) == before
        assert first.pid is not None
        first.kill()
        first.start()  # its own directory it may use again
    with closing(Stand(directory)) as third:
        third.start()
        assert properties(directory) != before


def test_canary_without_the_lock_a_second_broker_changes_the_first_ones_settings(directory: Path) -> None:
    with closing(Stand(directory)) as first, closing(Unlocked(directory)) as second:
        first.start()
        before = properties(directory)
        second.start()
        assert properties(directory) != before


def test_a_killed_process_leaves_its_directory_free(directory: Path) -> None:
    holder = (
        "import sys, fcntl; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(directory / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with closing(Stand(directory)) as refused, pytest.raises(KafkaUnavailableError):
            refused.start()
        process.send_signal(signal.SIGKILL)
    with closing(Stand(directory)) as broker:
        broker.start()
        assert broker.pid is not None


def test_a_broker_that_outlives_its_process_keeps_the_directory(directory: Path) -> None:
    """As where no kernel kills it with its parent: the broker itself holds the lock, too."""
    with closing(Stand(directory)) as first:
        first.start()
        assert first._lock is not None
        first._lock.close()
        with closing(Stand(directory)) as second, pytest.raises(KafkaUnavailableError, match="already runs"):
            second.start()


def test_a_port_in_use_is_refused_before_anything_is_written(directory: Path, taken_port: int) -> None:
    with closing(Stand(directory, port=taken_port)) as broker:
        with pytest.raises(KafkaUnavailableError, match=rf"Port {taken_port} cannot be had .*: conversas kafka --port"):
            broker.start()
        assert broker.pid is None
    assert not (directory / "server.properties").exists()
    assert not (directory / "broker.log").exists()


def failure(broker: KafkaBroker) -> str:
    with pytest.raises(KafkaUnavailableError) as failed, broker:
        pass
    return str(failed.value)


FAILURES = {
    f"[main] WARN - odd\n[main] ERROR k.D - Unable to start\nE: failed\n{STACK}\nCaused by: Address in use\n{STACK}": (
        "[main] ERROR k.D - Unable to start\nCaused by: Address in use"
    ),
    f"[main] WARN - odd\nCaused by: no space\n{STACK}\nCaused by: other": "Caused by: no space",
    "Error occurred during initialization of VM\nCould not reserve enough space": "Could not reserve enough space",
    "": "it wrote nothing",
}


@pytest.mark.parametrize(("written", "said"), FAILURES.items(), ids=["error", "cause", "virtual machine", "nothing"])
def test_a_start_that_fails_says_the_reason_and_where_the_log_is(written: str, said: str, directory: Path) -> None:
    log = directory / "broker.log"
    log.write_text("[main] ERROR of an earlier start\n")
    broker = Stand(directory)
    broker.script = f"printf '{written}'; exit 1"
    assert failure(broker) == (f"Apache Kafka did not get ready on {broker.bootstrap_servers}: {said}\nIts log: {log}")
    assert log.read_text().endswith(written)


def test_a_formatting_that_fails_says_the_reason_too(tmp_path: Path) -> None:
    broker = Stand(tmp_path)
    broker.script = "echo ERROR: disk full; exit 1"
    said = f"Formatting the storage of Apache Kafka failed: ERROR: disk full\nIts log: {tmp_path / 'broker.log'}"
    assert failure(broker) == said


def test_a_temporary_broker_names_no_log_that_will_be_gone() -> None:
    broker = Stand()
    broker.script = "echo ERROR: disk full; exit 1"
    assert failure(broker) == "Formatting the storage of Apache Kafka failed: ERROR: disk full"


@pytest.mark.kafka
def test_a_real_kafka_whose_port_is_taken_says_so_without_its_stack(tmp_path: Path, taken_port: int) -> None:
    try:
        require_tools()
    except KafkaUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    broker = KafkaBroker(tmp_path, cache=CACHE)
    broker._controller_port = taken_port  # the one that is not asked for beforehand
    started = time.monotonic()
    said = failure(broker)
    assert "ERROR" in said
    assert "Address already in use" in said
    assert said.splitlines()[-1] == f"Its log: {broker.log_path}"
    assert len(said) < 500
    assert STACK not in said
    assert STACK in broker.log_path.read_text()  # canary: what is kept out was there
    assert time.monotonic() - started < 60, "it does not wait for a process that has ended"
