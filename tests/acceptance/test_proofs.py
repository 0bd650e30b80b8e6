"""The verifiable log from outside: checkpoints and proofs over HTTP, bundles and witnesses from the command line.

Only what an auditor has is used to check: the published formats, the public key, and what was kept from earlier.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest
from click.testing import Result
from contact_keyring import keys_of
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from adapters.checkpoints import WITNESS, Checkpoint, VerifierKey, open_checkpoint
from adapters.command_handler import CommandHandler
from adapters.postgres import migrate
from api import demo
from api.__main__ import app
from domain.leaves import digest_of, line_of, origin_of, tag_of
from domain.merkle import is_consistent, is_included, leaf_hash
from projections.tree import SELECTED, envelope

if TYPE_CHECKING:
    from tests.acceptance.conftest import Api, Conversation, Service

ROOT = Path(__file__).parents[2]
Run = Callable[..., Result]


def raw(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def taken(api: Api, **parameters: Any) -> tuple[Checkpoint, dict[str, Any]]:
    """A checkpoint, its signature checked."""
    answer = api.read("/v1/checkpoint", **parameters)
    checkpoint = open_checkpoint(answer["checkpoint"], VerifierKey.parse(answer["key"]))
    assert (checkpoint.origin, checkpoint.size, checkpoint.root) == (
        answer["origin"],
        answer["size"],
        raw(answer["root"]),
    )
    return checkpoint, answer


@pytest.fixture
def run(service: Service, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`conversas …` beside the running service, in this process; ``offline``: where there is no service."""

    def run(*arguments: str | Path | UUID, offline: bool = False, ok: bool = True) -> Result:
        url = "postgresql://nobody@127.0.0.1:9/nowhere" if offline else service.database_url
        monkeypatch.setenv("CONVERSAS_DATABASE_URL", url)
        done = CliRunner().invoke(app, [str(each) for each in arguments])
        assert (done.exit_code == 0) is ok, (arguments, done.output, done.exception)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done

    return run


@pytest.fixture
def some_history(open_conversation: Callable[..., Conversation]) -> Conversation:
    conversation = open_conversation()
    for number in range(40):
        conversation.do("notes", {"text": f"nota {number}"})
    return conversation


def test_a_checkpoint_counts_every_event_of_the_workspace_and_is_signed(
    api: Api, an_opened_conversation: Conversation
) -> None:
    before, _ = taken(api, at_least=an_opened_conversation.answer["position"])
    an_opened_conversation.do("notes", {"text": "mais uma"})
    after, _ = taken(api, at_least=an_opened_conversation.answer["position"])
    assert after.size > before.size
    assert after.root != before.root
    assert before.origin == f"conversas.local/{demo.WORKSPACE}"


def test_every_event_is_proved_to_be_in_the_log(api: Api, service: Service, some_history: Conversation) -> None:
    checkpoint, _ = taken(api, at_least=some_history.answer["position"])
    with psycopg.connect(service.database_url) as connection:  # what a bundle shows to an auditor
        rows = connection.execute(
            f"select {SELECTED} from events where workspace_id = %s and stream_id = %s order by version".encode(),
            (demo.WORKSPACE, some_history.id),
        ).fetchall()
    envelopes = [envelope(row) for row in rows]
    origin = origin_of(line_of(envelopes[0]))
    assert len(envelopes) >= 41
    for each in envelopes:
        proof = api.read("/v1/proofs/inclusion", position=each.position, size=checkpoint.size)
        leaf = leaf_hash(tag_of(origin, proof["index"]) + digest_of(line_of(each)))
        assert raw(proof["leaf"]) == leaf
        path = [raw(each) for each in proof["path"]]
        assert is_included(leaf, proof["index"], checkpoint.size, path, checkpoint.root)


def test_without_a_position_it_is_the_last_event_that_is_proved(api: Api, some_history: Conversation) -> None:
    checkpoint, _ = taken(api, at_least=some_history.answer["position"])
    proof = api.read("/v1/proofs/inclusion", size=checkpoint.size)
    assert proof["index"] == checkpoint.size - 1
    path = [raw(each) for each in proof["path"]]
    assert is_included(raw(proof["leaf"]), proof["index"], checkpoint.size, path, checkpoint.root)


def test_every_checkpoint_goes_on_from_the_ones_before(api: Api, an_opened_conversation: Conversation) -> None:
    kept = [taken(api, at_least=an_opened_conversation.answer["position"])[0]]
    for number in range(6):
        for _ in range(7):
            an_opened_conversation.do("notes", {"text": f"nota {number}"})
        kept.append(taken(api, at_least=an_opened_conversation.answer["position"])[0])
    for earlier in kept:
        for later in (each for each in kept if each.size >= earlier.size):
            proof = api.read("/v1/proofs/consistency", since=earlier.size, size=later.size)
            path = [raw(each) for each in proof["path"]]
            assert is_consistent(earlier.size, earlier.root, later.size, later.root, path)
            assert (raw(proof["since_root"]), raw(proof["root"])) == (earlier.root, later.root)
    assert api.read("/v1/proofs/consistency")["path"] == []


def test_what_the_log_never_had_cannot_be_proved(api: Api, stranger: Api, an_opened_conversation: Conversation) -> None:
    position = an_opened_conversation.answer["position"]
    size = taken(api, at_least=position)[0].size
    for path, parameters in (
        ("inclusion", {"position": 0}),
        ("inclusion", {"position": 2**62}),
        ("inclusion", {"size": 2**62}),
        ("inclusion", {"size": 0}),
        ("inclusion", {"position": position, "size": 1}),
        ("consistency", {"size": 2**62}),
        ("consistency", {"since": size + 10**6}),
        ("consistency", {"since": 2, "size": 1}),
    ):
        answer = api.get(f"/v1/proofs/{path}", params=parameters)
        assert (answer.status_code, answer.json()["code"]) == (404, "proof-not-found"), (path, parameters)
    answer = stranger.get("/v1/proofs/inclusion", params={"position": position})
    assert answer.status_code == 404, "another workspace's event"
    assert taken(stranger)[0].origin != taken(api)[0].origin


@pytest.mark.parametrize("path", ["checkpoint", "proofs/inclusion", "proofs/consistency"])
def test_only_who_may_verify_the_history_is_answered(
    path: str, bia: Api, integration: Api, caller: Callable[..., Api], connect: Callable[[str | None], Api]
) -> None:
    assert connect(None).get(f"/v1/{path}").status_code == 401
    supervisor, auditor = (caller("integration", role, role) for role in ("supervisor", "auditor"))
    for refused in (bia, integration, supervisor):
        assert refused.get(f"/v1/{path}").status_code == 403
    assert auditor.get(f"/v1/{path}").status_code == 200


def test_a_proof_tells_nothing_but_hashes_and_numbers(api: Api, some_history: Conversation) -> None:
    position = some_history.answer["position"]
    for path in (f"inclusion?at_least={position}&position={position}", "consistency?since=3"):
        for name, value in api.read(f"/v1/proofs/{path}").items():
            values = value if isinstance(value, list) else [value]
            assert all(isinstance(each, int) or len(raw(each)) == 32 for each in values), name


def test_an_auditor_verifies_a_bundle_offline(run: Run, api: Api, some_history: Conversation, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    earlier.write_text(run("checkpoint").stdout)
    some_history.do("notes", {"text": "depois do primeiro ponto"})
    key = run("checkpoint", "--public-key").stdout.strip()
    assert key == taken(api)[1]["key"]
    for number, of in enumerate(([], ["--conversation", some_history.id])):
        file = tmp_path / f"{number}.bundle"
        run("bundle", file, *of)
        assert file.stat().st_mode & 0o777 == 0o600
        done = run("verify", file, "--key", key, "--since", earlier, *of, offline=True)
        assert done.stdout.startswith("VERIFIED")
        assert "verifying" in done.stderr
        lines = file.read_bytes().splitlines(keepends=True)
        shown = [json.loads(line) for line in lines[1:] if line.startswith(b"{")]
        if of:
            assert {each["stream_id"] for each in shown} == {some_history.id}
            assert [each["version"] for each in shown] == list(range(1, len(shown) + 1))
            assert some_history.id.encode() in file.read_bytes()
            assert str(demo.CONVERSATION).encode() not in file.read_bytes()
        spoilt = tmp_path / f"{number}.spoilt"
        spoilt.write_bytes(b"".join([*lines[:-2], lines[-1]]))
        refused = run("verify", spoilt, "--key", key, ok=False, offline=True)
        assert "ALTERED" in refused.output
    alone = [sys.executable, "-m", "api", "verify", str(tmp_path / "0.bundle"), "--key", key]
    done = subprocess.run(alone, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("VERIFIED")
    assert "Without an earlier checkpoint" in done.stderr
    refused = run("bundle", tmp_path / "0.bundle", ok=False)
    assert "is there already" in refused.output


def test_the_bundle_of_another_conversation_does_not_pass_for_this_one(
    run: Run, some_history: Conversation, an_opened_conversation: Conversation, tmp_path: Path
) -> None:
    key = run("checkpoint", "--public-key").stdout.strip()
    run("bundle", tmp_path / "other", "--conversation", an_opened_conversation.id)
    wanted = ["--conversation", some_history.id]
    assert "not of" in run("verify", tmp_path / "other", "--key", key, *wanted, ok=False, offline=True).output
    refused = run("bundle", tmp_path / "none", "--conversation", UUID(int=0), ok=False)
    assert "nothing of" in refused.output
    assert not (tmp_path / "none").exists()


def test_of_a_workspace_that_is_not_there_nothing_is_signed(run: Run, tmp_path: Path) -> None:
    """A name mistyped is no empty history that verifies."""
    for command in (["checkpoint"], ["checkpoint", "--public-key"], ["bundle", tmp_path / "none"]):
        refused = run(*command, "--workspace", "mistyped", ok=False)
        assert "nothing of a workspace mistyped" in refused.output
        assert "—" not in refused.output
    assert not (tmp_path / "none").exists()


def test_what_is_no_key_or_no_earlier_checkpoint_is_told_by_its_place(run: Run, tmp_path: Path) -> None:
    key = run("checkpoint", "--public-key").stdout.strip()
    file, spoilt = tmp_path / "bundle", tmp_path / "monday"
    run("bundle", file)
    sample = run("verify", file, "--key", "conversas.local/…+1a2b3c4d+AbC…=", ok=False, offline=True)
    assert "a key looks like name+1a2b3c4d+AbC…=, as 'conversas checkpoint --public-key'" in sample.output
    note = run("checkpoint").stdout
    size = note.splitlines()[1]
    for text, said in (
        (note.replace(f"\n{size}\n", f"\n{int(size) - 1}\n"), "the signature of"),
        ("", "no signed note"),
    ):
        spoilt.write_text(text)
        refused = run("verify", file, "--key", key, "--since", spoilt, ok=False, offline=True)
        assert "monday, given as the earlier checkpoint, cannot be trusted" in refused.output.replace("\n", "")
        assert said in refused.output


def test_a_bundle_that_shows_a_log_tampered_with_is_not_left_for_a_good_one(
    run: Run, service: Service, tmp_path: Path
) -> None:
    run("checkpoint")  # the tree has it all
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        last = "where position = (select max(position) from events where workspace_id = %s)"
        alter = f"update events set surface = %s {last} returning (select surface from events {last})"
        connection.execute("alter table events disable trigger user")
        [before] = connection.execute(alter, ("import", demo.WORKSPACE, demo.WORKSPACE)).fetchone() or [""]
        try:
            refused = run("bundle", tmp_path / "bundle", ok=False)
        finally:
            connection.execute(f"update events set surface = %s {last}", (before, demo.WORKSPACE))
            connection.execute("alter table events enable trigger user")
    assert "ALTERED" in refused.output
    assert not (tmp_path / "bundle").exists()
    run("bundle", tmp_path / "bundle")


def test_where_there_is_no_database_nothing_is_made_up(tmp_path: Path) -> None:
    """Not a key that looks like one, not a log without events that agrees with itself."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    for command in (
        ["checkpoint", "--public-key"],
        ["bundle", "b"],
        ["replay", "--check"],
        ["keys", "list"],
        ["purge"],
    ):
        whole = [sys.executable, "-m", "api", *command]
        done = subprocess.run(whole, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, ""), (command, done)
        assert "There is no database in" in done.stderr
        assert list(tmp_path.iterdir()) == [], command


def test_where_nobody_serves_a_bundle_holds_the_log_to_its_end(
    service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without any key of contacts; and where the tree cannot be completed, nothing older is passed off for it."""
    with psycopg.connect(service.database_url, autocommit=True) as connection:
        connection.execute("create database alone")
    url = make_conninfo(service.database_url, dbname="alone")
    migrate(url)
    with closing(CommandHandler(url, keys_of(url))) as handler:
        demo.load(handler, "cvs_proofs-tests-admin")
    for name in [name for name in os.environ if name.startswith("CONVERSAS_MASTER")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONVERSAS_DATABASE_URL", url)

    def run(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(each) for each in arguments])

    done = run("bundle", tmp_path / "new", "--conversation", str(demo.CONVERSATION))
    assert done.exit_code == 0, (done.output, done.exception)
    with psycopg.connect(url) as connection:
        [size] = connection.execute(
            "select count(*) from events where workspace_id = %s", (demo.WORKSPACE,)
        ).fetchone() or [0]
        assert f"{size:,} events" in done.stdout
        connection.execute("update projection_positions set shape = 'of another version' where name = 'tree'")
    for refused in (run("bundle", tmp_path / "none"), run("checkpoint")):
        assert refused.exit_code != 0
        assert "'tree' is halted" in refused.output
    assert not (tmp_path / "none").exists()


def test_a_witness_signs_what_goes_on_and_nothing_else(
    run: Run, api: Api, service: Service, some_history: Conversation, tmp_path: Path
) -> None:
    key = run("checkpoint", "--public-key").stdout.strip()
    log = VerifierKey.parse(key)
    token = api.ok(
        "POST", "/v1/tokens", {"name": "witness", "actor": {"kind": "integration", "id": "w"}, "role": "auditor"}
    )
    time.sleep(1)  # until the token works
    common = ["--key", key, "--directory", tmp_path / "witness", "--name", "witness.example"]
    first = run("witness", service.url, *common, "--token", token["secret"], offline=True)
    our_key = VerifierKey.parse(first.stderr.split("Our public key: ")[1])
    assert our_key.type == WITNESS
    some_history.do("notes", {"text": "depois"})
    taken(api, at_least=some_history.answer["position"])
    second = run("witness", service.url, *common, "--token", token["secret"], offline=True)
    sizes = [open_checkpoint(done.stdout, log, [our_key]).size for done in (first, second)]
    assert sizes[0] < sizes[1]
    run("bundle", tmp_path / "bundle")
    third = run("witness", tmp_path / "bundle", *common, offline=True)
    assert open_checkpoint(third.stdout, log, [our_key]).size >= sizes[1]
    # The log of before the first checkpoint, restored: a real signature, and yet refused.
    old = tmp_path / "old"
    run("bundle", old)
    some_history.do("notes", {"text": "ainda"})
    taken(api, at_least=some_history.answer["position"])
    run("witness", service.url, *common, "--token", token["secret"], offline=True)
    refused = run("witness", old, *common, ok=False, offline=True)
    assert "rewound" in refused.output
    refused = run("witness", service.url, *common, "--token", "cvs_wrong-wrong-wrong", ok=False, offline=True)
    assert "cannot be asked" in refused.output
