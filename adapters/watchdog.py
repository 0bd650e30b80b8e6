"""Ends a process that waits for something that never comes.

Invariant: at most one thing is limited at a time, by the thread that does it.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator

log = logging.getLogger(__name__)

WATCHDOG_EXIT_CODE = 75
"""What the process ends with when Kafka or PostgreSQL did not answer in time: start it again."""


class Watchdog:
    """Ends the process when something takes longer than it was given; the only way out of a commit that hangs."""

    def __init__(self) -> None:
        self._limit: tuple[float, str] | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="publisher-watchdog", daemon=True).start()

    @contextlib.contextmanager
    def limit(self, seconds: float, doing: str) -> Iterator[None]:
        """Give the block ``seconds``."""
        self._limit = (time.monotonic() + seconds, doing)
        try:
            yield
        finally:
            self._limit = None

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(0.2):
            limit = self._limit
            if limit is not None and time.monotonic() > limit[0]:
                log.critical("%s took too long; the process ends with code %d", limit[1], WATCHDOG_EXIT_CODE)
                os._exit(WATCHDOG_EXIT_CODE)
