"""The service as it runs: API and projector as processes of their own, on a fresh database with the demo workspace."""

import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from databases import load_demo, new_database

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Service:
    """A running service."""

    url: str
    database_url: str
    server: subprocess.Popen[bytes]

    def new_workspace(self, slug: str) -> str:
        """An admin's token of a workspace made by the command line: there is no route for it."""
        command = [sys.executable, "-m", "api", "token", "create", "--workspace", slug]
        command += ["--integration", "tests", "--role", "admin"]
        environment = {**os.environ, "CONVERSAS_DATABASE_URL": self.database_url, "CONVERSAS_LOG_LEVEL": "error"}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        return done.stdout.strip()


@contextmanager
def serving(postgres_url: str, token: str, *, patch: str = "", **settings: str) -> Iterator[Service]:
    """The service, once it is ready; the demo's admin has ``token``. The API runs ``patch`` first, for canaries."""
    with new_database(postgres_url) as database_url:
        load_demo(database_url, token)
        port = free_port()
        ours = {"DATABASE_URL": database_url, "PORT": str(port), "PUBLIC_URL": f"http://127.0.0.1:{port}"}
        ours |= {"LOG_LEVEL": "warning"} | settings
        environment = os.environ | {f"CONVERSAS_{key}": value for key, value in ours.items()}
        start = "from api.__main__ import main\nmain()"
        processes = [
            subprocess.Popen([sys.executable, "-c", program, part], cwd=ROOT, env=environment)
            for part, program in (("serve", f"{patch}\n{start}"), ("project", start))
        ]
        try:
            running = Service(f"http://127.0.0.1:{port}", database_url, processes[0])
            wait_until(lambda: is_ready(running.url), "the service is ready", seconds=120)
            yield running
        finally:
            for process in processes:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def is_ready(url: str) -> bool:
    """And nothing is left to be projected."""
    try:
        # There is no TLS, and reading whom this machine trusts takes longer than asking.
        answer = httpx.get(f"{url}/readyz", timeout=5, verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    except httpx.TransportError:
        return False
    behind = [each["behind"] for each in answer.json()["projections"].values()]
    return answer.status_code == httpx.codes.OK and not any(behind)


def wait_until(look: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if look():
            return
        time.sleep(0.02)
    pytest.fail(f"{what}: not within {seconds} s")
