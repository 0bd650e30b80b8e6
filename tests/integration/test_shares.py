"""Read models projected in shares, in whatever order and by whomever: the rows are those of the one projector.

Records are made of the log here, as the topic would have them; `tests/faults/test_kafka_projectors.py` has real ones.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from agreement import all_events, check_that_all_agree
from contact_keyring import keys_of
from feed import wait_until
from in_process import carry_out
from random_history import START, TWO_WORKSPACES, a_random_history, handle, some_request

from adapters import checking
from adapters import projector as projector_module
from adapters.cloud_events import partition_of
from adapters.command_handler import CommandHandler
from adapters.contact_keys import ContactKeys
from adapters.event_log import EventLog
from adapters.projector import READ_MODELS, Projector, create_missing
from adapters.rebuild import rebuild
from adapters.share_projector import FencedError, Keeper, Record, ShareProjector
from adapters.shares import SHARED_MODELS, TopicRefusedError, claim
from domain.commands import (
    AddLabel,
    ChangeContactDetails,
    Command,
    EraseContact,
    OpenConversation,
    ReassignContact,
    ReceiveMessage,
    RegisterContact,
    SetAttribute,
)
from domain.envelope import RecordedEvent, StreamType
from domain.events import ContactDetails
from projections import shared_listing
from projections.read_model import ReadModel
from projections.shared_listing import SharedListing

PARTITIONS = 3
LONGEST = 1
"""The partition in which most happens to our conversations."""
WORKSPACE = UUID(int=1)


def topic_of(database: str, partitions: int = PARTITIONS, chance: random.Random | None = None) -> list[list[Record]]:
    """The records of the log by partition, with gaps as transactions leave them; some appear again later."""
    chance = chance or random.Random(0)
    found: list[list[Record]] = [[] for _ in range(partitions)]
    for event in all_events(database):
        if event.stream.type is StreamType.CONVERSATION:
            records = found[partition_of(str(event.stream.id).encode(), partitions)]
            again = records[-2:] if chance.random() < 0.02 else []
            for what in [
                *(each[1:] for each in again),
                (event.position, event.stream.workspace_id, event.stream.id, event.version),
            ]:
                offset = records[-1].offset + chance.choice([1, 1, 2]) if records else 0
                records.append(Record(offset, *what))
    return found


def divide(database: str, topic_id: str = "a topic", partitions: int = PARTITIONS) -> None:
    create_missing(database)
    with psycopg.connect(database, autocommit=True) as connection:
        for model in SHARED_MODELS.values():
            assert claim(connection, model, topic_id, partitions) == 0


def keeper_of(database: str, batch_size: int = 2_000) -> Keeper:
    models = [SHARED_MODELS.get(model.name, model) for model in READ_MODELS]
    return Keeper(database, models, keys=keys_of(database), batch_size=batch_size)


def shares_of(database: str, topic_id: str = "a topic", kind: type[ShareProjector] = ShareProjector) -> ShareProjector:
    return kind(database, topic_id, keys=keys_of(database))


def some_of(
    projector: ShareProjector, topic: list[list[Record]], partitions: list[int], count: int
) -> dict[int, list[Record]]:
    """What a consumer would get next."""
    found = {}
    for each in partitions:
        following = projector.following(each)
        found[each] = [record for record in topic[each] if record.offset >= following][:count]
    return {partition: records for partition, records in found.items() if records}


def project_all(database: str, topic: list[list[Record]], topic_id: str = "a topic") -> None:
    """Whatever is left, by one."""
    everything = list(range(len(topic)))
    with closing(shares_of(database, topic_id)) as projector, closing(keeper_of(database)) as keeper:
        projector.take(everything)
        before: list[object] = []
        while batch := some_of(projector, topic, everything, 500):
            assert before[-2:] != [batch, batch], "a read model has halted, and goes back to the same records for ever"
            projector.project(batch)
            before.append(batch)
        while keeper.advance_all():
            pass
        position, head = keeper.lags()
        assert position == head


@pytest.mark.parametrize("seed", range(2))
def test_shares_in_any_order_and_by_anybody_give_the_naive_rows(database: str, seed: int) -> None:
    chance = random.Random(seed)
    create_missing(database)
    a_random_history(database, seed, commands=250)
    if seed:  # it was projected from the log before
        with closing(Projector(database, keys=keys_of(database), batch_size=chance.randrange(1, 60))) as before:
            before.advance_all()
    divide(database)
    topic = topic_of(database, chance=chance)
    projectors = [shares_of(database) for _ in range(3)]
    for each in projectors:
        each.take(range(PARTITIONS))
    keeper = keeper_of(database, batch_size=chance.randrange(5, 50))
    from_the_log = Projector(database, keys=keys_of(database), batch_size=7)

    def through_kafka() -> None:
        projector = chance.choice(projectors)
        partitions = chance.sample(range(PARTITIONS), chance.randrange(1, PARTITIONS + 1))
        try:
            projector.project(some_of(projector, topic, partitions, chance.randrange(1, 40)))
        except FencedError:  # as every one of them that does not know what the others did
            projector.take(range(PARTITIONS))

    def anew() -> None:
        with closing(keys_of(database)) as keys:
            rebuild(database, chance.choice(READ_MODELS), keys=keys)

    steps = [through_kafka] * 12 + [keeper.advance_all] * 5 + [from_the_log.advance_all] * 2 + [anew]
    for _ in range(60):
        chance.choice(steps)()
    for each in (*projectors, keeper, from_the_log):
        each.close()
    project_all(database, topic)
    assert check_that_all_agree(database) > 50


# Ids that are in two workspaces


def check_two_workspaces(database: str) -> None:
    """Two take turns at conversations and contacts that have the same ids in both."""
    create_missing(database)
    a_random_history(database, 3, commands=600, workspaces=TWO_WORKSPACES)
    divide(database)
    topic = topic_of(database)
    names = [(each.conversation_id, each.version) for records in topic for each in records]
    assert len(set(names)) < 0.7 * len(names), "most are in both"
    everything = list(range(PARTITIONS))
    with closing(shares_of(database)) as one, closing(shares_of(database)) as other:
        for projector in (one, other, one, other):
            projector.take(everything)
            projector.project(some_of(projector, topic, everything, 10))
            projector.project(some_of(projector, topic, everything, 30))
    project_all(database, topic)
    check_that_all_agree(database)


def test_the_same_ids_in_two_workspaces_are_two_conversations(database: str) -> None:
    """`tests/integration/test_kafka_projector.py` has them on a real Kafka."""
    check_two_workspaces(database)


def test_canary_a_row_that_is_found_by_its_id_alone_is_noticed(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = shared_listing.load

    def load_by_id(connection: Any, keys: Any) -> Any:
        first = load(connection, {(TWO_WORKSPACES[0], id_) for _, id_ in keys})
        return {key: first[TWO_WORKSPACES[0], key[1]] for key in keys if (TWO_WORKSPACES[0], key[1]) in first}

    monkeypatch.setattr(shared_listing, "load", load_by_id)
    with pytest.raises(AssertionError):
        check_two_workspaces(database)


# Who knows nothing of what others did


class Unfenced(ShareProjector):
    """Canary: trusts what it knows of its shares."""

    def _fence(self, connection: psycopg.Connection, model: ReadModel, partitions: list[int]) -> dict[int, int]:
        del connection, model
        return dict.fromkeys(partitions, 0)


def one_is_late(kind: type[ShareProjector], database: str) -> None:
    """Two have the same records in their hands; the second comes when the first is done."""
    create_missing(database)
    a_random_history(database, 3, commands=600)
    divide(database)
    topic = topic_of(database)
    with closing(shares_of(database, kind=kind)) as first, closing(shares_of(database, kind=kind)) as late:
        first.take([LONGEST])
        first.project(some_of(first, topic, [LONGEST], 9))
        late.take([LONGEST])
        records = some_of(late, topic, [LONGEST], 50)
        first.project(records)
        with suppress(FencedError):
            late.project(records)
    project_all(database, topic)


def test_who_comes_late_changes_nothing(database: str) -> None:
    one_is_late(ShareProjector, database)
    check_that_all_agree(database)


def test_canary_who_does_not_compare_doubles(database: str) -> None:
    one_is_late(Unfenced, database)
    with pytest.raises(AssertionError):
        check_that_all_agree(database)


@pytest.mark.parametrize("kind", [ShareProjector, Unfenced], ids=["ours", "canary"])
def test_who_knows_of_more_than_is_there_goes_back(kind: type[ShareProjector], database: str) -> None:
    """A crash of PostgreSQL may undo what was not waited for: who goes on from its own memory leaves a gap."""
    create_missing(database)
    a_random_history(database, 3, commands=600)
    divide(database)
    topic = topic_of(database)
    with closing(shares_of(database, kind=kind)) as projector:
        projector.take([LONGEST])
        projector.project(some_of(projector, topic, [LONGEST], 9))
        share = ("history", LONGEST)
        with psycopg.connect(database) as connection:
            before = connection.execute(
                "select next_offset, position from projection_shares where (name, partition) = (%s, %s)", share
            ).fetchone()
        assert before
        projector.project(some_of(projector, topic, [LONGEST], 3))
        with psycopg.connect(database) as connection:
            connection.execute("delete from history where position > %s", before[1:])
            connection.execute("delete from timeline where position > %s", before[1:])
            connection.execute(
                "update projection_shares set next_offset = %s, position = %s where (name, partition) = (%s, %s)",
                (*before, *share),
            )
        if kind is ShareProjector:
            with pytest.raises(FencedError):
                projector.project(some_of(projector, topic, [LONGEST], 10))
            assert projector.take([LONGEST]) == {LONGEST: before[0]}
        else:
            projector.project(some_of(projector, topic, [LONGEST], 10))
    project_all(database, topic)
    if kind is ShareProjector:
        check_that_all_agree(database)
    else:
        with pytest.raises(AssertionError):
            check_that_all_agree(database)


# Contacts, whom others change


def meanwhile(
    database: str, first: Callable[[], object], second: Callable[[], object], patch: Any, where: str = "save"
) -> None:
    """``first`` stops at the function ``where``; ``second`` begins, and is done or waits for a lock; both end."""
    at_the_end, go_on = threading.Event(), threading.Event()
    going_on = getattr(shared_listing, where)

    def stop(*values: Any) -> None:
        at_the_end.set()
        assert go_on.wait(60)
        going_on(*values)

    patch.setattr(shared_listing, where, stop)
    threads = [threading.Thread(target=each) for each in (first, second)]
    threads[0].start()
    assert at_the_end.wait(60)
    patch.setattr(shared_listing, where, going_on)
    threads[1].start()
    waiting = (
        "select from pg_locks join pg_database on oid = database where datname = current_database() and not granted"
    )
    with psycopg.connect(database, autocommit=True) as connection:
        deadline = time.monotonic() + 60
        while threads[1].is_alive() and connection.execute(waiting.encode()).fetchone() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    go_on.set()
    for each in threads:
        each.join()


@pytest.mark.parametrize("is_locked", [True, False], ids=["ours", "canary"])
def test_a_row_shows_its_contact_although_both_change_at_once(
    is_locked: bool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One opens a conversation while another registers its contact; then a message comes while the name changes."""
    create_missing(database)
    if not is_locked:
        monkeypatch.setattr(shared_listing, "_lock", lambda *_: None)
    contact, conversation = uuid4(), uuid4()
    divide(database)
    shown = []
    for commands in (
        [
            (contact, RegisterContact(contact_id=contact, details=ContactDetails(name="Ana"))),
            (conversation, OpenConversation(protocol="1", channel="phone", contact_id=contact)),
        ],
        [
            (contact, ChangeContactDetails(details=ContactDetails(name="Bia"))),
            (conversation, ReceiveMessage(message_id=uuid4(), text="oi")),
        ],
    ):
        with closing(CommandHandler(database, keys_of(database))) as handler:
            carry_out(handler, WORKSPACE, commands)
        topic = topic_of(database)
        with closing(shares_of(database)) as projector, closing(keeper_of(database)) as keeper:
            projector.take(range(PARTITIONS))
            batch = some_of(projector, topic, list(range(PARTITIONS)), 10)
            meanwhile(database, partial(projector.project, batch), keeper.advance_all, monkeypatch)
        project_all(database, topic)
        with psycopg.connect(database) as connection:
            shown += connection.execute("select contact_name from listing").fetchone() or ()
    assert (shown == ["Ana", "Bia"]) is is_locked


def unlocked(patch: pytest.MonkeyPatch) -> None:
    """Canary: nobody waits for anybody."""
    patch.setattr(shared_listing, "_lock", lambda *_: None)


def read_before(patch: pytest.MonkeyPatch) -> None:
    """Canary: goes on with the rows that it read before it had the lock."""
    load, found = shared_listing.load, dict[Any, Any]()

    def once(*values: Any) -> dict[Any, Any]:
        found.update(found or load(*values))
        return found

    patch.setattr(shared_listing, "load", once)


def of_their_own(patch: pytest.MonkeyPatch) -> None:
    """Canary: minds only whose a row is now."""
    patch.setattr(shared_listing, "contacts_in", lambda rows, _: {(row.workspace_id, row.contact_id) for row in rows})


@pytest.mark.parametrize(
    ("canary", "is_erasure_first", "is_reassigned"),
    [
        *((None, is_first, is_reassigned) for is_first in (True, False) for is_reassigned in (True, False)),
        (unlocked, False, False),
        (read_before, True, False),
        (read_before, True, True),
        (of_their_own, False, True),
    ],
)
def test_what_was_read_before_an_erasure_does_not_come_back(
    canary: Callable[[pytest.MonkeyPatch], None] | None,
    is_erasure_first: bool,
    is_reassigned: bool,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A contact is erased while their conversation, or one that was theirs, gets a label."""
    divide(database)
    erased, other, conversation = uuid4(), uuid4(), uuid4()
    commands: list[tuple[UUID, Command]] = [
        (erased, RegisterContact(contact_id=erased, details=ContactDetails(name="Ana"))),
        (other, RegisterContact(contact_id=other, details=ContactDetails(name="Bia"))),
        (conversation, OpenConversation(protocol="1", channel="phone", contact_id=erased, subject="divórcio")),
        (conversation, SetAttribute(key="saude", value="gripe")),
    ]
    if is_reassigned:
        commands.append((conversation, ReassignContact(contact_id=other)))
    shown = "select subject, attributes, inherited, contact_name from listing"
    handler = CommandHandler(database, keys_of(database))
    with closing(handler), psycopg.connect(database, autocommit=True) as connection, closing(keys_of(database)) as keys:
        carry_out(handler, WORKSPACE, commands)
        project_all(database, topic_of(database))
        before = connection.execute(shown).fetchone()
        assert before is not None
        assert before[:2] == ("divórcio", {"saude": "gripe"}), "it was read in clear"
        with monkeypatch.context() as killed:  # before it destroyed the key: whoever projects the erasure does
            killed.setattr(ContactKeys, "destroy", lambda *_: None)
            carry_out(handler, WORKSPACE, [(erased, EraseContact()), (conversation, AddLabel(label="vip"))])
        assert not keys.ledger()
        if canary:
            canary(monkeypatch)
        models = tuple(SHARED_MODELS.values())
        with (
            closing(shares_of(database)) as projector,
            closing(Keeper(database, models, keys=keys_of(database))) as keeper,
        ):
            projector.take(range(PARTITIONS))
            label = partial(projector.project, some_of(projector, topic_of(database), list(range(PARTITIONS)), 10))
            if is_erasure_first:
                meanwhile(database, keeper.advance_all, label, monkeypatch, "forget_erased")
            else:
                meanwhile(database, label, keeper.advance_all, monkeypatch)
        assert keys.ledger().keys() == {(WORKSPACE, erased)}
        project_all(database, topic_of(database))
        name = "Bia" if is_reassigned else None
        assert (connection.execute(shown).fetchone() == (None, {}, {}, name)) is (canary is None)


# Whether it is right, while it is on its way


@pytest.mark.parametrize("is_ahead_minded", [True, False], ids=["ours", "canary"])
def test_shares_that_are_ahead_of_the_position_are_compared_as_such(
    is_ahead_minded: bool, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_missing(database)
    a_random_history(database, 3, commands=150)
    divide(database)
    topic = topic_of(database)
    if not is_ahead_minded:
        monkeypatch.setattr(checking, "_fold_ahead", lambda *_: None)
    with closing(shares_of(database)) as projector, closing(keeper_of(database)) as keeper:
        projector.take(range(PARTITIONS))
        projector.project(some_of(projector, topic, [LONGEST], 500))
        keeper.advance_all()
        assert keeper.lags()[0] < topic[LONGEST][-1].position
    with closing(keys_of(database)) as keys, EventLog(database, keys=keys) as log:
        checked = [checking.check(database, log, model) for model in READ_MODELS]
    assert any(each.differences for each in checked) is not is_ahead_minded


# What is wrong


def test_an_event_that_breaks_a_fold_halts_that_share_of_that_read_model(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_missing(database)
    a_random_history(database, 3, commands=150)
    divide(database)
    topic = topic_of(database)
    poison = topic[LONGEST][5].position
    monkeypatch.setattr(projector_module, "RETRY_SECONDS", 0.2)

    class Allergic(SharedListing):
        def apply(self, connection: psycopg.Connection, events: Sequence[RecordedEvent]) -> None:
            super().apply(connection, events)
            if any(event.position == poison for event in events):
                raise ValueError

    healthy = SHARED_MODELS["listing"]
    everything = list(range(PARTITIONS))
    with closing(shares_of(database)) as projector, closing(keeper_of(database)) as keeper:
        projector.take(everything)
        projector._models = tuple(Allergic() if model is healthy else model for model in projector._models)
        last = topic[LONGEST][-1].offset + 1
        for _ in range(2):  # it tries again, in vain
            while batch := some_of(projector, topic, everything, 500):
                projector.project(batch)
            assert projector.following(LONGEST) == last, "the other read models are not held up"
            while keeper.advance_all():
                pass
            wait_until(lambda: projector.following(LONGEST) < last, 5)
        projector.project(some_of(projector, topic, everything, 500))
        with psycopg.connect(database) as connection:
            rows = connection.execute("select name, position, halted from projection_positions").fetchall()
            [[held]] = connection.execute(
                "select position from projection_shares where name = 'listing' and partition = %s", (LONGEST,)
            ).fetchall()
        found = {name: (position, halted) for name, position, halted in rows}
        assert found["listing"] == (poison - 1, f"ValueError at the event of position {poison}")
        assert found["history"] == (all_events(database)[-1].position, None)
        assert held == topic[LONGEST][4].position
        wait_until(lambda: projector.following(LONGEST) < last, 5)
        projector._models = tuple(SHARED_MODELS.values())
        while batch := some_of(projector, topic, everything, 500):
            projector.project(batch)
    project_all(database, topic)
    check_that_all_agree(database)
    with psycopg.connect(database) as connection:
        assert connection.execute("select from projection_positions where halted is not null").fetchone() is None


def test_the_topic_of_another_log_is_refused(database: str) -> None:
    create_missing(database)
    a_random_history(database, 3, commands=30)
    divide(database)
    with closing(shares_of(database)) as projector:
        projector.take(range(PARTITIONS))
        mine = next(record for records in topic_of(database) for record in records)
        for wrong in (
            {"version": 7},
            {"position": 10**9},
            {"conversation_id": uuid4()},
            {"workspace_id": uuid4()},  # an id may be in several, and a backup from before one was imported again
        ):
            with pytest.raises(TopicRefusedError):
                projector.project({0: [mine._replace(**wrong)]})


def test_another_topic_is_begun_from_its_beginning_and_the_former_is_left(database: str) -> None:
    create_missing(database)
    a_random_history(database, 3, commands=150)
    divide(database)
    topic = topic_of(database)
    with closing(shares_of(database)) as former:
        former.take(range(PARTITIONS))
        former.project(some_of(former, topic, [1, 2], 20))
        with psycopg.connect(database, autocommit=True) as connection:
            ahead = claim(connection, SHARED_MODELS["listing"], "another topic", 5)
            assert ahead, "what came through the former is ahead of the position"
        with closing(Projector(database, keys=keys_of(database))) as from_the_log:
            from_the_log.catch_up()
        divide(database, "another topic", 5)
        with closing(CommandHandler(database, keys_of(database))) as handler:
            handle(handler, [some_request(random.Random(4), START) for _ in range(100)])
        with pytest.raises(TopicRefusedError):
            former.project(some_of(former, topic, [0, 1, 2], 20))
    project_all(database, topic_of(database, 5), "another topic")
    check_that_all_agree(database)


def test_a_topic_that_got_more_partitions_is_refused(database: str) -> None:
    divide(database)
    with psycopg.connect(database) as connection, pytest.raises(TopicRefusedError):
        claim(connection, SHARED_MODELS["listing"], "a topic", PARTITIONS + 1)
    with closing(shares_of(database)) as projector, pytest.raises(TopicRefusedError):
        projector.take(range(PARTITIONS + 1))
