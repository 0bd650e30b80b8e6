"""A writer stands still in the middle of its transaction: the others soon go on, and nothing of its own is lost."""

import threading
from collections.abc import Sequence
from contextlib import closing
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from contact_keyring import keys_of
from rig import REGISTER, conversation, do, handling, head, query, request

from adapters import command_handler
from adapters.command_handler import CommandHandler, UnavailableError
from adapters.contact_keys import ContactKeys, Person
from adapters.deciding import Batch, Request
from adapters.master_keys import MasterKeysAwayError
from adapters.postgres import WRITER_LIMITS
from domain.commands import AddLabel, RegisterContact
from domain.events import ContactDetails

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("stored_in_clear")]


class Stopping(CommandHandler):
    """Stands still once, with the lock, after it has read what it needs."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.reached, self.go_on = threading.Event(), threading.Event()

    def _load(self, connection: psycopg.Connection, requests: Sequence[Request]) -> Batch:
        batch = super()._load(connection, requests)
        if not self.reached.is_set():
            self.reached.set()
            self.go_on.wait(30)
        return batch


def others_go_on(database: str) -> bool:
    """Whether somebody else could write while one stood still; in the end both have written, once."""
    with handling(database) as other, handling(database, Stopping) as stopping:
        id_ = conversation(other)
        before = head(database)
        thread = threading.Thread(target=do, args=(stopping, AddLabel(label="of-the-stopped"), id_))
        thread.start()
        stopping.reached.wait()
        [answer] = other.handle([request(AddLabel(label="of-the-other"), id_)])
        stopping.go_on.set()
        thread.join()
        went_on = not isinstance(answer, Exception)
        assert went_on or isinstance(answer, UnavailableError)
        assert head(database) == before + 1 + went_on
        return went_on


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"idle_in_transaction_session_timeout": "1s", "lock_timeout": "4s"}
    monkeypatch.setattr(command_handler, "WRITER_LIMITS", WRITER_LIMITS | limits)


def test_others_go_on_after_postgresql_has_lost_patience(database: str) -> None:
    assert others_go_on(database)


def test_canary_after_a_bare_pipeline_postgresql_waits_for_ever(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_handler, "pipelined", lambda connection: connection.pipeline())
    # A test that is itself held up between its sync and its flush is taken for idle.
    assert not all(others_go_on(database) for _ in range(3))


def test_keys_that_cannot_be_had_are_asked_for_once_although_the_connection_is_lost_as_well(database: str) -> None:
    class Away(ContactKeys):
        asked = 0

        def add(self, people: Any) -> dict[Person, Any]:  # noqa: ARG002  # as the class it is made of
            self.asked += 1
            query(
                database,
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'conversas-writer' and datname = current_database()",
            )
            raise MasterKeysAwayError("the service is away")

    with closing(keys_of(database)) as known, handling(database, keys=known) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
        keys = Away(known._conninfo, known.master)
    before = head(database)
    new = [RegisterContact(contact_id=uuid4(), details=ContactDetails(name="Ana")) for _ in range(5)]
    with handling(database, keys=keys) as handler:
        answers = handler.handle([request(each, each.contact_id) for each in new])
    assert [type(answer) for answer in answers] == [UnavailableError] * 5
    assert (keys.asked, head(database)) == (1, before)
