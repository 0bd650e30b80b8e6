"""A long conversation costs no more than a short one: events loaded and folded are counted, not timed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from rig import SYSTEM, conversation, do, handling, opening, query, request

from adapters import codec
from adapters.command_handler import CommandHandler
from adapters.deciding import SNAPSHOT_EVERY, Outcome
from domain.commands import AddLabel, AddNote
from domain.envelope import StreamType

pytestmark = pytest.mark.faults

MESSAGES = 10_000


class Counting(CommandHandler):
    """Keeps the folded states of the last transaction, to be compared."""

    states: dict[UUID, Any]

    def _save(self, connection: psycopg.Connection, batch: Any) -> None:
        self.states = {key[1]: (folded.version, folded.state) for key, folded in batch.folded.items()}
        super()._save(connection, batch)


class WithoutSnapshots(Counting):
    """Canary: never saves one."""

    def _save(self, connection: psycopg.Connection, batch: Any) -> None:
        batch.snapshots.clear()
        super()._save(connection, batch)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How many events and snapshots are decoded within."""
    counts: Counter[str] = Counter()
    decode, decode_state = codec.decode, codec.decode_state

    def counting_decode(topic: str, data: bytes) -> Any:
        counts["events"] += 1
        return decode(topic, data)

    def counting_decode_state(stream_type: StreamType, data: bytes) -> Any:
        counts["snapshots"] += 1
        return decode_state(stream_type, data)

    with monkeypatch.context() as patched:
        patched.setattr(codec, "decode", counting_decode)
        patched.setattr(codec, "decode_state", counting_decode_state)
        yield counts


def note() -> AddNote:
    return AddNote(message_id=uuid4(), author=SYSTEM, text="n")


def write_messages(handler: CommandHandler, id_: UUID, count: int, batch_size: int = 499) -> None:
    """Add ``count`` messages; batches of a size that never falls together with that of snapshots."""
    while count:
        batch = [request(note(), id_) for _ in range(min(batch_size, count))]
        assert all(isinstance(answer, Outcome) for answer in handler.handle(batch))
        count -= len(batch)


def a_command_costs_little(kind: type[CommandHandler], database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what a command on a long conversation loads: when its state is cached, and when nothing is."""
    with handling(database, kind) as handler:
        id_ = conversation(handler)
        write_messages(handler, id_, MESSAGES)
        with counted(monkeypatch) as counts:
            assert do(handler, note(), id_).version == MESSAGES + 2
        assert counts == {}, "the state was in the cache"
    for _ in range(3):
        with handling(database, kind) as cold, counted(monkeypatch) as counts:
            do(cold, note(), id_)
            assert counts["events"] <= SNAPSHOT_EVERY + 1
            assert counts["snapshots"] <= 1
            before = counts.copy()
            do(cold, note(), id_)
            assert counts == before, "the state is in the cache"


def test_a_command_on_a_long_conversation_loads_a_snapshot_and_what_follows(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_command_costs_little(CommandHandler, database, monkeypatch)


def test_canary_without_snapshots_it_loads_all(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match=f"{MESSAGES + 2} <= "):
        a_command_costs_little(WithoutSnapshots, database, monkeypatch)


def test_what_another_process_wrote_is_all_that_is_loaded(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with handling(database) as ours, handling(database) as theirs:
        id_ = conversation(ours)
        write_messages(ours, id_, 2 * SNAPSHOT_EVERY)
        write_messages(theirs, id_, 7)
        with counted(monkeypatch) as counts:
            assert do(ours, note(), id_).version == 2 * SNAPSHOT_EVERY + 9
        assert counts == {"events": 7}


class Anything(int):
    """A number equal to whatever it is compared with."""

    __hash__ = int.__hash__

    def __ne__(self, other: object) -> bool:
        return False


class Alone(CommandHandler):
    """Canary: believes that nobody else appends."""

    _head = property(lambda _: Anything(), lambda *_: None)  # type: ignore[assignment]


def handlers_take_turns(kind: type[CommandHandler], database: str) -> None:
    """Three processes write to the same conversations in random turns, in batches of one to three."""
    random = Random(7)
    versions: Counter[UUID] = Counter()
    with handling(database, kind) as one, handling(database, kind) as two, handling(database, kind) as three:
        ids = [conversation(one) for _ in range(4)]
        versions.update(dict.fromkeys(ids, 1))
        for _ in range(300):
            batch = random.choices(ids, k=random.randint(1, 3))
            handler = random.choice([one, one, one, two, three])
            for id_, answer in zip(batch, handler.handle([request(note(), id_) for id_ in batch]), strict=True):
                versions[id_] += 1
                assert isinstance(answer, Outcome), answer
                assert answer.version == versions[id_]


def test_a_cached_state_is_read_again_when_somebody_else_has_appended(database: str) -> None:
    handlers_take_turns(CommandHandler, database)


def test_canary_a_handler_that_believes_to_be_alone_is_found(database: str) -> None:
    with pytest.raises(AssertionError):
        handlers_take_turns(Alone, database)


@pytest.mark.parametrize("messages", [SNAPSHOT_EVERY - 2, SNAPSHOT_EVERY - 1, SNAPSHOT_EVERY, 3 * SNAPSHOT_EVERY + 7])
def test_the_state_is_the_same_with_and_without_snapshots(messages: int, database: str) -> None:
    with handling(database) as handler:
        id_ = conversation(handler)
        do(handler, AddLabel(label="vip"), id_)
        write_messages(handler, id_, messages, batch_size=1 if messages < 2 * SNAPSHOT_EVERY else 90)
    states = []
    for statement in (
        "select 1",
        "update snapshots set shape = 'of another program', state = 'x'",
        "delete from snapshots",
    ):
        query(database, statement)
        with handling(database, Counting) as cold:
            do(cold, AddLabel(label="urgent"), id_, keys=(statement,))
            states.append(cold.states[id_])
    assert states[0][1].labels == ("urgent", "vip")
    assert states == [states[0]] * 3


def test_a_snapshot_of_another_shape_is_ignored_and_later_replaced(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with handling(database) as handler:
        id_ = conversation(handler)
        write_messages(handler, id_, SNAPSHOT_EVERY + 50)
    query(database, "update snapshots set shape = 'of another program', state = 'x', version = version + 20")
    with handling(database) as cold, counted(monkeypatch) as counts:
        assert do(cold, note(), id_).version == SNAPSHOT_EVERY + 52
        assert counts == {"events": SNAPSHOT_EVERY + 51}
        write_messages(cold, id_, SNAPSHOT_EVERY)
    with handling(database) as cold, counted(monkeypatch) as counts:
        do(cold, note(), id_)
    assert counts["snapshots"] == 1
    assert counts["events"] <= SNAPSHOT_EVERY


def test_the_cache_is_bounded_and_what_fell_out_is_loaded_again(database: str) -> None:
    with handling(database, cached_states=100) as handler:
        conversation(handler)
        ids = [uuid4() for _ in range(350)]
        for number, id_ in enumerate(ids):
            do(handler, opening(number), id_)
            assert len(handler._cache) <= 100
        answers = handler.handle([request(note(), id_) for id_ in ids])  # a batch larger than the cache
        assert [answer.version for answer in answers if isinstance(answer, Outcome)] == [2] * 350
        assert len(handler._cache) <= 100
