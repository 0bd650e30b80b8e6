"""A network of our own: brokers in one namespace of the kernel, publishers in another, a cable that can be pulled.

Invariant: neither namespace has a way out, nobody else sees either, and both are gone with this process.
"""

import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000
NEAR, FAR = "10.99.0.2", "10.99.0.1"
"""The publishers' address, and the brokers'."""
HERE = Path("/proc/thread-self/ns/net")


class NetworkRefusedError(Exception):
    """No namespaces can be had here; the message says why."""


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def enter(namespace: Path) -> None:
    """Move this thread, and all that it starts from now on, into ``namespace``."""
    descriptor = os.open(namespace, os.O_RDONLY)
    try:
        _call("setns", descriptor, CLONE_NEWNET)
    finally:
        os.close(descriptor)


@contextmanager
def entered(namespace: Path) -> Iterator[None]:
    """For a block."""
    home = os.open(HERE, os.O_RDONLY)
    try:
        enter(namespace)
        try:
            yield
        finally:
            _call("setns", home, CLONE_NEWNET)
    finally:
        os.close(home)


def _new() -> Path:
    """A namespace that lives as long as this process keeps it open."""
    made: list[int | OSError] = []

    def make() -> None:
        try:
            _call("unshare", CLONE_NEWNET)
            made.append(os.open(HERE, os.O_RDONLY))
        except OSError as error:
            made.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    [outcome] = made
    if isinstance(outcome, OSError):
        raise NetworkRefusedError(f"no network namespace: {outcome} (it takes root, or CAP_SYS_ADMIN)") from outcome
    return Path(f"/proc/{os.getpid()}/fd/{outcome}")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NetworkRefusedError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Network:
    """Two namespaces and the cable between them."""

    def __init__(self) -> None:
        if shutil.which("ip") is None:
            raise NetworkRefusedError("ip is missing (Debian: apt-get install iproute2)")
        self.brokers = _new()
        self.publishers = _new()
        try:
            with entered(self.brokers):
                _ip("link", "set", "lo", "up")
                _ip("link", "add", "far", "type", "veth", "peer", "name", "near", "netns", str(self.publishers))
                _ip("address", "add", f"{FAR}/30", "dev", "far")
                _ip("link", "set", "far", "up")
            with entered(self.publishers):
                _ip("link", "set", "lo", "up")
                _ip("address", "add", f"{NEAR}/30", "dev", "near")
                _ip("link", "set", "near", "up")
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Pull the cable: connections stay open and nothing arrives."""
        with entered(self.brokers):
            _ip("link", "set", "far", "down")

    def mend(self) -> None:
        """Put it in again."""
        with entered(self.brokers):
            _ip("link", "set", "far", "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of both."""
        for namespace in (self.brokers, self.publishers):
            with suppress(OSError):
                os.close(int(namespace.name))
