"""Erasures that are killed half-way, keys that come back or do not belong, and several writers.

Invariant: an erasure that was begun is finished by whoever comes next, and nothing is sealed with a second key.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from contact_keyring import keys_of
from databases import project
from rig import REGISTER, ROOT, WORKSPACE, assert_live_equals_rebuilt, do, handling, opening, query

from adapters import contact_keys, erasures
from adapters.command_handler import CommandHandler
from adapters.projector import Projector, create_missing
from domain.commands import EraseContact, ReceiveMessage, RegisterContact
from domain.events import ContactDetails

pytestmark = pytest.mark.faults

STEPS = ("before the commit", "after the commit", "after the key")


def erase_and_die(conninfo: str, step: str) -> None:
    """A process that is killed while it erases; run as a program."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    handler = CommandHandler(conninfo, keys_of(conninfo))
    do(handler, REGISTER, REGISTER.contact_id)  # so that all is at hand
    if step == "before the commit":
        handler._save = die  # type: ignore[method-assign]
    elif step == "after the commit":
        handler._destroy_keys = die  # type: ignore[method-assign]
    else:
        destroy = handler._destroy_keys
        handler._destroy_keys = lambda: (destroy(), die())  # type: ignore[method-assign,func-returns-value]
    do(handler, EraseContact(), REGISTER.contact_id)


def run_as_a_program(*arguments: str) -> int:
    """This file in a process of its own; how it ended."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=300).returncode


def is_finished(conninfo: str) -> bool:
    """Log, ledger and read models all say that the contact is erased, and there is no key."""
    [(in_log,)] = query(conninfo, "select count(*) from events where topic = 'contact-erased.v1'")
    keys = query(contact_keys.beside(conninfo), "select wrapped is null from contact_keys")
    shown = query(conninfo, "select name, erased from contacts")
    return (in_log, keys, shown) == (1, [(True,)], [(None, True)])


@pytest.mark.parametrize("step", STEPS)
def test_an_erasure_that_is_killed_is_finished_by_whoever_comes_next(step: str, database: str) -> None:
    create_missing(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
        id_ = uuid4()
        do(handler, opening(1), id_)
        do(handler, ReceiveMessage(message_id=uuid4(), text="Olá"), id_)
    project(database)
    assert run_as_a_program(database, step) == -signal.SIGKILL
    if step == "before the commit":
        assert query(database, "select name, erased from contacts") == [("Maria", False)]
        with handling(database, keys=keys_of(database)) as handler:
            do(handler, EraseContact(), REGISTER.contact_id)
    assert not is_finished(database)
    project(database)
    assert is_finished(database)
    with handling(database, keys=keys_of(database)) as handler:
        assert do(handler, EraseContact(), REGISTER.contact_id).events == 0
    assert_live_equals_rebuilt(database)


def test_canary_a_projector_without_keys_finishes_nothing(database: str) -> None:
    create_missing(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
    assert run_as_a_program(database, "after the commit") == -signal.SIGKILL
    with closing(Projector(database)) as projector:
        projector.catch_up()
    assert not is_finished(database)


def test_a_reconciliation_destroys_what_keys_came_back(database: str) -> None:
    """The keys' database was restored: the log remembers."""
    create_missing(database)
    keys_url = contact_keys.beside(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
        before = query(keys_url, "select workspace_id, contact_id, wrapped, master_key_id from contact_keys")
        do(handler, EraseContact(), REGISTER.contact_id)
    query(keys_url, "delete from contact_keys")
    query(keys_url, "insert into contact_keys values (%s, %s, %s, %s)", before[0])
    with closing(keys_of(database)) as keys:
        assert erasures.reconcile(database, keys) == 0
        assert keys.find([(WORKSPACE, REGISTER.contact_id)]) == {(WORKSPACE, REGISTER.contact_id): None}


def test_another_logs_keys_are_noticed_and_nothing_is_sealed_with_a_second_key(database: str) -> None:
    create_missing(database)
    with handling(database, keys=keys_of(database)) as handler:
        do(handler, REGISTER, REGISTER.contact_id)
    query(contact_keys.beside(database), "delete from contact_keys")
    missing = pytest.raises(contact_keys.KeyMissingError, match="does not belong to this log")
    with handling(database, keys=keys_of(database)) as handler, missing:
        do(handler, EraseContact(), REGISTER.contact_id)
    project(database)
    [(halted,)] = query(database, "select halted from projection_positions where name = 'listing'")
    assert halted.startswith("KeyMissingError")


def test_rotating_goes_on_where_it_was_killed_and_the_old_master_key_is_not_needed_any_more(database: str) -> None:
    from adapters.contact_keys import ContactKeys  # noqa: PLC0415
    from adapters.master_keys import LocalMasterKeys, new_master_key  # noqa: PLC0415

    create_missing(database)
    people = [(WORKSPACE, uuid4()) for _ in range(2_500)]
    with closing(keys_of(database)) as keys:
        made = keys.add(people)
        keys.destroy(people[:3])
    sealed = {person: made[person].seal(b"x", b"here") for person in people[3:]}
    first, second = os.environ["CONVERSAS_MASTER_KEYS"], new_master_key()

    class KilledError(Exception):
        pass

    def killed(*_: int) -> None:
        raise KilledError

    url = contact_keys.beside(database)
    with closing(ContactKeys(url, LocalMasterKeys.parse(f"{second},{first}"))) as keys:
        with pytest.raises(KilledError):
            keys.rotate(killed)
        assert keys.rotate(lambda _done, _total: None) == 2_297
        assert keys.rotate(lambda _done, _total: None) == 0
    with closing(ContactKeys(url, LocalMasterKeys.parse(second))) as keys:
        found_ = keys.find(people)
    assert [found_[person] for person in people[:3]] == [None] * 3
    assert all(found_[person].open(sealed[person], b"here") == b"x" for person in people[3:])


def test_two_writers_know_of_each_others_erasures(database: str) -> None:
    create_missing(database)
    other = RegisterContact(contact_id=uuid4(), details=ContactDetails(name="João"))
    with handling(database, keys=keys_of(database)) as one, handling(database, keys=keys_of(database)) as two:
        do(one, REGISTER, REGISTER.contact_id)
        do(one, other, other.contact_id)
        id_ = uuid4()
        do(one, opening(1), id_)
        write: Callable[[CommandHandler], Any] = lambda by: do(  # noqa: E731
            by, ReceiveMessage(message_id=uuid4(), text="Olá"), id_
        )
        write(one)
        write(two)
        do(two, EraseContact(), REGISTER.contact_id)
        for handler in (one, two):
            with pytest.raises(Exception, match="erased"):
                write(handler)
            do(handler, ReceiveMessage(message_id=uuid4()), id_)  # says nothing personal
            do(handler, other, other.contact_id)
    sealed = query(database, "select convert_from(data, 'UTF8') from events where topic = 'message-received.v1'")
    assert len(sealed) == 4
    assert not [data for (data,) in sealed if "Olá" in data]


if __name__ == "__main__":
    erase_and_die(*sys.argv[1:])
