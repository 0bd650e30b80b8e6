"""`conversas run`: all in one terminal, as `make run` starts it, and the README's story typed into another."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-your-own"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(directory: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`conversas run` on ``directory`` once it is ready, and what it printed by then; killed if still there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONVERSAS_")}
    environment |= {
        "CONVERSAS_DATA_DIRECTORY": str(directory),
        "CONVERSAS_PORT": str(port),
        "CONVERSAS_BOOTSTRAP_TOKEN": TOKEN,
    }
    output = (directory.parent / f"output-{port}").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "api", "run"],
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until_ready(port, process)
        output.seek(0)
        yield process, output.read()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)
        output.close()


def wait_until_ready(port: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended by itself"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("it did not become ready within a minute")


def first_conversation(port: int) -> httpx.Response:
    return httpx.get(
        f"http://127.0.0.1:{port}/v1/conversations?limit=1", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=10
    )


def test_it_says_where_to_look_stops_cleanly_and_carries_on_with_the_same_data(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "data", port) as (process, printed):
        assert f"http://127.0.0.1:{port}" in printed
        assert TOKEN in printed
        assert "CONVERSAS_KAFKA_BOOTSTRAP_SERVERS" in printed, "how to switch publishing on"
        assert "events loaded" in printed
        seen = first_conversation(port).json()
        assert len(seen["items"]) == 1
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    with running(tmp_path / "data", port) as (_, printed):
        assert "there already" in printed
        assert first_conversation(port).json()["items"] == seen["items"]


def test_a_part_that_is_killed_is_started_anew_and_none_outlives_the_supervisor(tmp_path: Path) -> None:
    port = free_port()
    with running(tmp_path / "data", port) as (process, _):
        children = {" ".join(child.cmdline()[-1:]): child for child in psutil.Process(process.pid).children()}
        children["serve"].kill()
        children["serve"].wait(10)
        wait_until_ready(port, process)
        assert first_conversation(port).status_code == 200
        left = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(10)
        _, alive = psutil.wait_procs(left, timeout=15)
        assert not alive, "a child outlived its supervisor"
        with running(tmp_path / "data", free_port()):
            pass  # finds the PostgreSQL that was left behind, uses it, and stops it


def test_the_story_in_the_readme_works_when_pasted(tmp_path: Path) -> None:
    story = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    port = free_port()
    with running(tmp_path / "data", port):
        done = subprocess.run(
            ["bash", "-e", "-u", "-o", "pipefail", "-c", story.replace(":8000", f":{port}")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.strip().splitlines()
    assert not any('"code":' in answer for answer in answers), "no problem document among the answers"
    listing, history, across = answers[-3:]
    assert '"finalized_from":"listing"' in listing
    assert '"contact_name":"Rita Prado"' in listing
    assert "conversation-finalized-from-listing.v1" in history
    assert '"surface":"listing"' in across
