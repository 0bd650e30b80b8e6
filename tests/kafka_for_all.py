"""One Kafka for all workers of a test run: whoever asks first has it started, and it ends when nobody is left.

Invariant: whoever holds the pipe open for writing uses the broker; it is stopped once nobody does, killed or not.
Run as a program, this file is the process that holds the broker.
"""

import errno
import fcntl
import os
import select
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

with warnings.catch_warnings():
    # kafka-python reads its schemas with importlib.resources.read_text, which Python 3.11 calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from adapters.kafka_broker import KafkaBroker, KafkaUnavailableError

CACHE = Path(__file__).parents[1] / ".data" / "kafka" / "libs"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def shared_broker(directory: Path) -> Iterator[tuple[str, Path]]:
    """host:port and files of the broker that all who name this directory share; raises `KafkaUnavailableError`."""
    directory.mkdir(exist_ok=True)
    pipe = directory / "users"
    with locked(directory):
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENXIO}:
                raise
            writer = _start(directory, pipe)
    try:
        address, files = (directory / "address").read_text().splitlines()
        yield address, Path(files)
    finally:
        os.close(writer)


def _start(directory: Path, pipe: Path) -> int:
    """The pipe, open for writing from before the holder looks: should this process die meanwhile, that ends too."""
    with suppress(FileExistsError):
        os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(pipe, os.O_WRONLY)
    command = [sys.executable, __file__, str(directory)]
    holder = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as said:
        answer = said.readline().strip()
    os.close(reader)
    if answer != "ready":
        os.close(writer)
        holder.wait()
        raise KafkaUnavailableError(answer)
    holder.returncode = 0  # it goes on where others do; not ours to wait for
    return writer


def hold(directory: Path) -> None:
    """Run the broker until nobody has the pipe open any more."""
    reader = os.open(directory / "users", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with KafkaBroker(cache=CACHE) as broker:
            (directory / "address").write_text(f"{broker.bootstrap_servers}\n{broker.log_path.parent}")
            print("ready", flush=True)  # noqa: T201  # to whom started it
            users = select.poll()
            users.register(reader, select.POLLIN)
            while True:
                users.poll()
                with locked(directory):
                    if users.poll(0):  # nobody, and nobody can come while it is locked
                        os.close(reader)
                        return
    except KafkaUnavailableError as error:
        print(str(error).replace("\n", " "), flush=True)  # noqa: T201  # the same


if __name__ == "__main__":
    hold(Path(sys.argv[1]))
