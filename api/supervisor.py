"""Running everything in one terminal: starts API, projector and publisher, starts anew what ends, stops all cleanly.

Invariant: no child outlives the supervisor, however that ends: each watches its parent.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

log = logging.getLogger(__name__)

PARENT_VARIABLE = "CONVERSAS_SUPERVISOR_PID"
STOP_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 30.0


@dataclass(slots=True)
class _Child:
    name: str
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    pause_seconds: float = 0.5
    start_at: float = field(default_factory=monotonic)


def supervise(names: Sequence[str], environment: Mapping[str, str], stop: threading.Event) -> None:
    """Run ``conversas NAME`` for each of ``names`` until ``stop`` is set; what ends is started anew after a pause."""
    children = [_Child(name) for name in names]
    try:
        while not stop.wait(0.1):
            for child in children:
                _tend(child, environment)
    finally:
        _stop(children)


def _tend(child: _Child, environment: Mapping[str, str]) -> None:
    now = monotonic()
    if child.process is None:
        if now >= child.start_at:
            command = [sys.executable, "-m", "api", *child.name.split()]
            watched = {**environment, PARENT_VARIABLE: str(os.getpid())}
            # A session of its own: Ctrl-C reaches the supervisor alone, which then stops all in order.
            child.process = subprocess.Popen(command, env=watched, start_new_session=True)  # noqa: S603  # our own
            child.started = now
        return
    code = child.process.poll()
    if code is None:
        return
    lived = now - child.started
    child.pause_seconds = 0.5 if lived > LONGEST_PAUSE_SECONDS else min(child.pause_seconds * 2, LONGEST_PAUSE_SECONDS)
    log.warning("%s ended with code %s; starting it anew in %.1f s", child.name, code, child.pause_seconds)
    child.process, child.start_at = None, now + child.pause_seconds


def _stop(children: Sequence[_Child]) -> None:
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    deadline = monotonic() + STOP_SECONDS
    for process in running:
        try:
            process.wait(max(0.1, deadline - monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set, and, in a supervised process, the end of its supervisor."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    watch_supervisor()
    return stop


def watch_supervisor() -> None:
    """End this process once the supervisor that started it is gone."""
    expected = os.environ.get(PARENT_VARIABLE)
    if expected is None:
        return

    def watch() -> None:
        while os.getppid() == int(expected):
            threading.Event().wait(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="supervisor-watch", daemon=True).start()
