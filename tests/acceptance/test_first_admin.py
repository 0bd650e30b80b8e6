"""A new company, from the command line: its workspace, its first admin, and a token that works over HTTP.

Invariant: a mistake ends with a sentence, a secret is alone on standard output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner, Result

from api.__main__ import app

Client = Any
Run = Callable[..., Result]


@pytest.fixture
def run(service: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the database that the service is on."""
    monkeypatch.setenv("CONVERSAS_DATABASE_URL", service.database_url)
    monkeypatch.setenv("CONVERSAS_LOG_LEVEL", "error")
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: CliRunner().invoke(app, list(words))


def slug() -> str:
    return f"w-{uuid4().hex[:10]}"


def in_list(run: Run, *words: str, text: str) -> str:
    """The line that names ``text``, once the directory has caught up."""
    deadline = time.monotonic() + 10
    while True:
        found = [line for line in run(*words).stdout.splitlines() if text in line]
        if found:
            return found[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_workspace_an_admin_and_a_token_in_three_commands(run: Run, connect: Callable[[str], Client]) -> None:
    workspace = slug()
    made = run("workspace", "create", workspace, "--name", "Acme Ltda")
    assert (made.exit_code, made.stdout) == (0, f"The workspace {workspace} is made.\n")
    assert f"conversas admin create --workspace {workspace}" in made.stderr
    assert in_list(run, "workspace", "list", text=workspace).split() == [workspace, "Acme", "Ltda", "0"]

    created = run("admin", "create", "--workspace", workspace, "--name", "Ana Lima")
    assert created.exit_code == 0
    [secret] = created.stdout.split()
    assert secret.startswith("cvs_")
    assert secret not in created.stderr
    assert "Ana Lima" in created.stderr
    agent = in_list(run, "admin", "list", "--workspace", workspace, text="Ana Lima").split()[0]
    assert secret not in run("token", "list", "--workspace", workspace).stdout

    client, deadline = connect(secret), time.monotonic() + 10
    while client.get("/v1/me").status_code != 200:
        assert time.monotonic() < deadline
    me = client.read("/v1/me")
    assert me["actor"] == {"kind": "agent", "id": str(UUID(agent))}
    assert me["grants"]["manage-tokens"] == "all"
    assert client.send_json("POST", "/v1/sectors", {"name": "Suporte"}).status_code == 201


def test_an_admin_brings_their_workspace_along(run: Run) -> None:
    workspace = slug()
    created = run("admin", "create", "--workspace", workspace, "--name", "Ana")
    assert created.exit_code == 0
    assert f"The workspace {workspace} did not exist; it does now." in created.stderr
    assert len(created.stdout.split()) == 1


def test_a_workspace_is_made_once(run: Run) -> None:
    workspace = slug()
    assert run("workspace", "create", workspace, "--name", "Acme").exit_code == 0
    again = run("workspace", "create", workspace, "--name", "Acme")
    assert (again.exit_code, again.stdout) == (0, f"The workspace {workspace} was there already.\n")
    other = run("workspace", "create", workspace, "--name", "Other")
    assert other.exit_code != 0
    assert str(other.exception) == f"There is a workspace {workspace} already, under another name."


def test_a_token_can_be_narrowed_and_made_to_expire(run: Run, connect: Callable[[str], Client]) -> None:
    words = ("--role", "supervisor", "--only", "view=sector", "--only", "export", "--days", "30")
    made = run("token", "create", *words)
    client, deadline = connect(made.stdout.strip()), time.monotonic() + 10
    while client.get("/v1/me").status_code != 200:
        assert time.monotonic() < deadline
    assert client.read("/v1/me")["grants"] == {"view": "sector", "export": "all"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("workspace", "create", "Not A Slug"), "lower-case letters"),
        (("workspace", "create", "fine", "--name", ""), "1 to 200 characters"),
        (("admin", "create", "--name", " "), "1 to 200 characters"),
        (("admin", "create", "--name", "x\0"), "1 to 200 characters"),
        (("admin", "create"), "--name"),
        (("admin", "list", "--workspace", "nowhere"), "does not exist or has no admin"),
        (("token", "create", "--role", "agent", "--only", "everything"), "give a permission"),
        (("token", "create", "--role", "agent", "--only", "view=far"), "give a permission"),
        (("token", "create", "--role", "agent", "--only", "export"), "less than its role"),
        (("token", "create", "--role", "no-such-role"), "There is no such role"),
    ],
)
def test_a_mistake_ends_with_a_sentence(run: Run, words: tuple[str, ...], says: str) -> None:
    failed = run(*words)
    assert failed.exit_code != 0
    assert says in failed.output or says in str(failed.exception)
    assert isinstance(failed.exception, SystemExit)
    assert "Traceback" not in failed.output


@pytest.mark.parametrize("words", [(), ("create",), ("list",)])
@pytest.mark.parametrize("command", ["workspace", "admin", "token"])
def test_every_command_explains_itself(run: Run, command: str, words: tuple[str, ...]) -> None:
    shown = run(command, *words, "--help")
    assert shown.exit_code == 0
    assert len(shown.stdout.splitlines()) > 5
