"""The demo is loaded once, also where an older version of the program has told its story in other words."""

from contextlib import closing
from typing import Any

import pytest
from contact_keyring import keys_of

from adapters.command_handler import CommandHandler
from api import demo
from domain.commands import RegisterAgent


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
