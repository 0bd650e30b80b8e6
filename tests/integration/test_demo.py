"""The demo is loaded once, also where an older version of the program has told its story in other words."""

from contextlib import closing
from typing import Any

import psycopg
import pytest
from contact_keyring import keys_of
from databases import prepare, project
from in_process import carry_out, id_of

from adapters.command_handler import CommandHandler
from adapters.identity import digest
from api import demo
from domain.commands import CreateWorkspace, IssueToken, RegisterAgent
from domain.events import Actor, ActorKind

CRM = Actor(kind=ActorKind.INTEGRATION, id="crm")


def test_what_another_version_has_loaded_stays(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(CommandHandler(database, keys_of(database))) as handler:
        assert demo.load(handler) > 0
        assert demo.load(handler) == 0
        told = list(demo._story())

        def retold() -> Any:
            for id_, actor, command in told:
                changed = isinstance(command, RegisterAgent)
                yield id_, actor, RegisterAgent(name=f"{command.name} II", role=command.role) if changed else command

        monkeypatch.setattr(demo, "_story", retold)
        assert demo.load(handler) == 0


def test_a_bootstrap_token_that_is_one_already_stays_whose_it_was(database: str) -> None:
    prepare(database)
    token, elsewhere = "cvs_set-as-the-bootstrap-token-too", id_of("another workspace")
    issued = IssueToken(name="theirs", secret_sha256=digest(token.encode()), actor=CRM, role="admin")
    with closing(CommandHandler(database, keys_of(database))) as handler:
        story = [(elsewhere, CreateWorkspace(slug="other", name="Other")), (id_of("token"), issued)]
        carry_out(handler, elsewhere, story)
        demo.load(handler, token)
    project(database)
    with psycopg.connect(database) as connection:
        assert (
            connection.execute("select name, halted from projection_positions where halted is not null").fetchall()
            == []
        )
        assert connection.execute("select workspace_id, name from tokens where not revoked").fetchall()[0] == (
            elsewhere,
            "theirs",
        )
