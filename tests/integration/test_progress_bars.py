"""Who does long work on a terminal sees how far it is; and how far is told as it goes, not only at the end."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from contact_keyring import keys_of
from databases import new_database, prepare, project

from adapters import bundle as bundles
from adapters import replay
from adapters.checking import check
from adapters.checkpoints import SigningKey, origin_for
from adapters.command_handler import CommandHandler
from adapters.event_log import EventLog
from adapters.importers import import_file
from adapters.postgres import connect
from adapters.projector import READ_MODELS
from api import demo

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "data" / "servicenow_sample.csv"
STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COUNTED = re.compile(r"([\d,]+)/([\d,]+)")


@dataclass(frozen=True)
class World:
    url: str
    directory: Path

    def on_a_terminal(self, *arguments: str) -> str:
        """What the command shows to somebody who watches it."""
        environment = os.environ | {"CONVERSAS_DATABASE_URL": self.url, "COLUMNS": "120", "TERM": "xterm"}
        environment["CONVERSAS_DATA_DIRECTORY"] = str(self.directory)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "api", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while more := os.read(ours, 65_536):
                shown += more
        except OSError:  # nobody has the other end open any more
            pass
        os.close(ours)
        text = STEERING.sub("", shown.decode())
        assert process.wait() == 0, text
        return text


@pytest.fixture(scope="module")
def world(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A database with an imported log, projected."""
    with new_database(postgres_url) as database:
        prepare(database)
        with closing(CommandHandler(database, keys_of(database))) as handler:
            import_file(handler, demo.WORKSPACE, SAMPLE, "servicenow")
        project(database)
        yield World(database, tmp_path_factory.mktemp("progress"))


def assert_bars(text: str, *labels: str) -> None:
    """Each has a bar that ends full."""
    lines = re.split(r"[\r\n]+", text)
    for label in labels:
        bars = [line for line in lines if line.startswith(f"{label} ") and "━" in line]
        assert bars, f"no bar for {label}:\n{text}"
        [(done, total)] = COUNTED.findall(bars[-1])
        assert done == total != "0", bars[-1]


def test_replay_check_bundle_and_verify_show_how_far_they_are(world: World, tmp_path: Path) -> None:
    checked = world.on_a_terminal("replay", "--check")
    assert_bars(checked, *(f"checking {model.name}" for model in READ_MODELS))
    assert_bars(world.on_a_terminal("replay"), "replaying")
    assert_bars(world.on_a_terminal("bundle", str(tmp_path / "bundle")), "writing", "verifying")
    key = re.search(r"\S+\+[0-9a-f]{8}\+\S+", world.on_a_terminal("checkpoint", "--public-key"))
    assert key is not None
    assert_bars(world.on_a_terminal("verify", str(tmp_path / "bundle"), "--key", key[0]), "verifying")


def test_canary_a_command_without_a_bar_is_noticed(world: World) -> None:
    with pytest.raises(AssertionError, match="no bar for"):
        assert_bars(world.on_a_terminal("checkpoint", "--public-key"), "verifying")


def test_it_is_told_as_the_work_goes_on(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_SHOWN", 100)
    monkeypatch.setattr(replay, "BATCH_SIZE", 100)
    told: dict[str, list[tuple[int, int]]] = {}

    def hear(name: str) -> bundles.Progress:
        return lambda done, total: told.setdefault(name, []).append((done, total))

    signing = SigningKey.read(tmp_path / "key.pem", make=True)
    public = signing.verifier(origin_for("conversas.local", demo.WORKSPACE))
    file = tmp_path / "bundle"
    with connect(world.url) as connection, file.open("wb") as out:
        taken = bundles.take_checkpoint(connection, demo.WORKSPACE, "conversas.local", signing)
        bundles.write(connection, out, taken, demo.WORKSPACE, progress=hear("bundle"))
    with file.open("rb") as opened:
        bundles.verify(opened, public, progress=hear("verify"))
    with closing(keys_of(world.url)) as keys, EventLog(world.url, keys=keys) as log:
        replay.summarize(log, hear("replay"))
        for model in READ_MODELS:
            check(world.url, log, model, hear(model.name), batch_size=100)
    for name, steps in told.items():
        done = [each for each, _ in steps]
        assert len(set(done)) > 5, (name, done)
        assert done == sorted(done), (name, done)
        assert {total for _, total in steps} == {done[-1]}, (name, steps)
