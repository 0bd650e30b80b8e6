"""Whoever tampers with a bundle, or with the stored log, is found out from bundle, public key and earlier checkpoint.

The tamperer may have the log's own key and build the tree anew, but cannot take back the earlier checkpoint. What was
changed after it, and signed before anybody saw it, nobody can find: the log's mutations by such a tamperer hit what
the earlier checkpoint covers.
"""

import base64
import io
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from campaign import CAMPAIGN
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from databases import new_database
from rig import CALLER, CONTACT, REGISTER, conversation, handling, opening

from adapters import bundle, checkpoints
from adapters.bundle import AlteredError, verify
from adapters.checkpoints import SigningKey, VerifierKey
from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from adapters.event_log import COLUMNS, EventRow, append, event_row
from adapters.projector import Projector, create_missing
from domain.commands import AddNote, Command
from domain.envelope import Stream
from domain.events import Surface
from domain.leaves import digest_of, envelope_of, origin_of, tag_of
from domain.merkle import Frontier
from projections.tree import LogBrokenError, Tree

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("stored_in_clear")]

OURS, OTHERS = UUID(int=1), UUID(int=9)
PREFIX = "conversas.example"
BUNDLE_MUTATIONS, LOG_MUTATIONS, UNTOUCHED = (7_000, 3_000, 1_000) if CAMPAIGN else (600, 60, 60)
CONVERSATIONS = 12


@dataclass
class Log:
    """A real log of two workspaces, what was kept from earlier, and bundles of it."""

    connection: psycopg.Connection[Any]
    key: SigningKey
    conversations: list[UUID]
    kept: list[str] = field(default_factory=list)
    """Checkpoints, the oldest first."""
    rows: list[EventRow] = field(default_factory=list)
    """All of the log, as it should be."""
    bundles: dict[str, bytes] = field(default_factory=dict)

    @property
    def public(self) -> VerifierKey:
        return self.key.verifier(f"{PREFIX}/{OURS}")

    def take(self, workspace_id: UUID = OURS, key: SigningKey | None = None) -> tuple[str, Any]:
        return bundle.take_checkpoint(self.connection, workspace_id, PREFIX, key or self.key)

    def export(self, stream_id: UUID | None = None, workspace_id: UUID = OURS, key: SigningKey | None = None) -> bytes:
        out = io.BytesIO()
        bundle.write(self.connection, out, self.take(workspace_id, key), workspace_id, stream_id)
        return out.getvalue()

    def is_found(self, tampered: bytes, since: str | None) -> bool:
        try:
            verify(io.BytesIO(tampered), self.public, since=since)
        except AlteredError:
            return True
        return False

    def build_tree(self) -> None:
        """As a rebuild would, from whatever the log holds now."""
        self.connection.execute("delete from tree_tiles")
        ends = self.connection.execute("select min(position), max(position) from events").fetchone()
        assert ends is not None
        Tree().apply(self.connection, [SimpleNamespace(position=end) for end in ends])  # type: ignore[misc]


def command(workspace_id: UUID, what: Command, id_: UUID) -> Request:
    return Request(Stream(workspace_id, what.STREAM, id_), what, CALLER, Surface.INBOX, uuid4(), uuid4())


def write_on(handler: CommandHandler, chance: random.Random, conversations: list[UUID], count: int) -> None:
    """Notes here and there, in both workspaces."""
    for _ in range(count):
        note = AddNote(message_id=uuid4(), author=CALLER.actor, text=f"olá {chance.randrange(1000)}")
        if chance.random() < 0.2:
            [answer] = handler.handle([command(OTHERS, note, OTHERS)])
        else:
            [answer] = handler.handle([command(OURS, note, chance.choice(conversations))])
        assert not isinstance(answer, Exception), answer


@pytest.fixture(scope="module")
def log(postgres_url: str) -> Iterator[Log]:
    chance = random.Random(4)
    with (
        new_database(postgres_url) as url,
        handling(url) as handler,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        create_missing(url)
        for what, id_ in ((REGISTER, CONTACT), (opening(1), OTHERS)):
            caller = command(OTHERS, what, id_)
            [answer] = handler.handle([caller])
            assert not isinstance(answer, Exception), answer
        conversations = [conversation(handler) for _ in range(CONVERSATIONS)]
        found = Log(connection, SigningKey(Ed25519PrivateKey.generate()), conversations)
        projector = Projector(url, (Tree(),), batch_size=17)
        for number in range(3):
            write_on(handler, chance, conversations, 40)
            projector.catch_up()
            found.kept.append(found.take()[0])
            if number == 0:
                found.bundles["old"] = found.export()
                found.bundles["old conversation"] = found.export(conversations[0])
        projector.close()
        found.bundles["whole"] = found.export()
        found.bundles["elsewhere"] = found.export(workspace_id=OTHERS)
        found.bundles["forged"] = found.export(key=SigningKey(Ed25519PrivateKey.generate()))
        for number in range(4):
            found.bundles[f"conversation {number}"] = found.export(conversations[number])
        with connection.cursor(row_factory=event_row, binary=True) as cursor:
            found.rows = cursor.execute(f"select {COLUMNS} from events order by position".encode()).fetchall()
        yield found


# What can be done to a bundle

Mutation = Callable[[Log, random.Random, str], bytes]


def split(log: Log, name: str) -> list[bytes]:
    return log.bundles[name].splitlines(keepends=True)


def shown(lines: list[bytes]) -> list[int]:
    return [number for number, line in enumerate(lines) if number and line.startswith(b"{")]


def flip(log: Log, chance: random.Random, name: str) -> bytes:
    raw = bytearray(log.bundles[name])
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    return bytes(raw)


def flip_in_first_line(log: Log, chance: random.Random, name: str) -> bytes:
    raw = bytearray(log.bundles[name])
    raw[chance.randrange(raw.index(b"\n") + 1)] ^= 1 << chance.randrange(8)
    return bytes(raw)


def lose_bytes(log: Log, chance: random.Random, name: str) -> bytes:
    raw = log.bundles[name]
    at = chance.randrange(len(raw))
    return raw[:at] + raw[at + chance.randrange(1, 4) :]


def insert_bytes(log: Log, chance: random.Random, name: str) -> bytes:
    raw = log.bundles[name]
    at = chance.randrange(len(raw) + 1)
    return raw[:at] + chance.choice([b" ", b"\n", b"\r", b"0", b'"', b"\0", b"\xc3"]) + raw[at:]


def cut(log: Log, chance: random.Random, name: str) -> bytes:
    return log.bundles[name][: chance.randrange(len(log.bundles[name]))]


def delete_lines(log: Log, chance: random.Random, name: str) -> bytes:
    lines = split(log, name)
    at = chance.randrange(len(lines))
    del lines[at : at + chance.randrange(1, 4)]
    return b"".join(lines)


def insert_line(log: Log, chance: random.Random, name: str) -> bytes:
    lines = split(log, name)
    source = split(log, chance.choice(list(log.bundles)))
    lines.insert(chance.randrange(len(lines) + 1), chance.choice(source))
    return b"".join(lines)


def reorder(log: Log, chance: random.Random, name: str) -> bytes:
    lines = split(log, name)
    one, other = chance.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def truncate(log: Log, chance: random.Random, name: str) -> bytes:
    lines = split(log, name)
    return b"".join(lines[: chance.randrange(len(lines))])


def swap_between_conversations(log: Log, chance: random.Random, name: str) -> bytes:
    """Two events exchange contents, or belong to each other's conversation."""
    lines = split(log, name)
    numbers = shown(lines)
    one, other = chance.sample(numbers, 2)
    left, right = envelope_of(lines[one][:-1]), envelope_of(lines[other][:-1])
    if chance.random() < 0.5:
        left, right = left._replace(data=right.data), right._replace(data=left.data)
    else:
        ids = (left.stream_id, left.version), (right.stream_id, right.version)
        left, right = (
            left._replace(stream_id=ids[1][0], version=ids[1][1]),
            right._replace(stream_id=ids[0][0], version=ids[0][1]),
        )
    lines[one], lines[other] = bundle.line_of(left) + b"\n", bundle.line_of(right) + b"\n"
    return b"".join(lines)


def change_an_event(log: Log, chance: random.Random, name: str) -> bytes:
    lines = split(log, name)
    at = chance.choice(shown(lines))
    found = envelope_of(lines[at][:-1])
    change = chance.choice(
        [
            {"actor_id": "somebody else"},
            {"surface": "listing" if found.surface != "listing" else "inbox"},
            {"occurred_at": "2020-01-01T00:00:00.000000+00:00"},
            {"data": b"{}"},
            {"position": found.position + 1},
            {"version": found.version + 1},
            {"causation_id": "x"},
        ]
    )
    lines[at] = bundle.line_of(found._replace(**change)) + b"\n"
    return b"".join(lines)


def hide(log: Log, chance: random.Random, name: str) -> bytes:
    """An event that should be shown as a leaf that is not, with its true hash: the root stays right."""
    lines = split(log, name)
    numbers = shown(lines)
    at = chance.choice([numbers[-1], chance.choice(numbers)])
    found = envelope_of(lines[at][:-1])
    first = next(line for line in split(log, "whole")[1:] if envelope_of(line[:-1]).stream_id == found.stream_id)
    leaf = tag_of(origin_of(first[:-1]), at - 1) + digest_of(lines[at][:-1])
    lines[at] = b'"' + base64.b64encode(leaf) + b'"\n'
    return b"".join(lines)


def hide_from_the_first_on(log: Log, chance: random.Random, name: str) -> bytes:
    """The whole conversation hidden, and another one shown in its place."""
    other = chance.choice([each for each in log.bundles if each.startswith("conversation") and each != name])
    lines, theirs = split(log, name), split(log, other)
    return b"".join([lines[0], *theirs[1:]])


def put_another_checkpoint(log: Log, chance: random.Random, name: str) -> bytes:
    header, *lines = split(log, name)
    old = json.loads(header)
    elsewhere = json.loads(split(log, "elsewhere")[0])["checkpoint"]
    forged = json.loads(split(log, "forged")[0])["checkpoint"]
    note = chance.choice([*log.kept[:-1], elsewhere, forged, forged + old["checkpoint"].split("\n\n")[1]])
    return bundle._header(note, old["stream_id"]) + b"\n" + b"".join(lines)


def add_a_signature(log: Log, chance: random.Random, name: str) -> bytes:
    header, *lines = split(log, name)
    old = json.loads(header)
    note = log.key.cosign(old["checkpoint"], f"witness{chance.randrange(9)}.example", chance.randrange(2**31))
    return bundle._header(note, old["stream_id"]) + b"\n" + b"".join(lines)


def say_it_is_of_another(log: Log, chance: random.Random, name: str) -> bytes:
    header, *lines = split(log, name)
    old = json.loads(header)
    of = chance.choice([each for each in (None, *map(str, log.conversations)) if each != old["stream_id"]])
    return bundle._header(old["checkpoint"], of) + b"\n" + b"".join(lines)


def rewind(log: Log, chance: random.Random, name: str) -> bytes:
    return log.bundles["old" if name == "whole" else "old conversation"]


def sign_with_another_key(log: Log, chance: random.Random, name: str) -> bytes:
    return log.bundles["forged"]


OF_BUNDLES: list[Mutation] = [
    flip,
    flip_in_first_line,
    lose_bytes,
    insert_bytes,
    cut,
    delete_lines,
    insert_line,
    reorder,
    truncate,
    swap_between_conversations,
    change_an_event,
    hide,
    hide_from_the_first_on,
    put_another_checkpoint,
    add_a_signature,
    say_it_is_of_another,
    rewind,
    sign_with_another_key,
]


def name_of(mutation: Callable[..., Any]) -> str:
    return mutation.__name__.replace("_", " ")


def tampered_bundles(log: Log, mutation: Mutation, count: int) -> Iterator[bytes]:
    chance = random.Random(mutation.__name__)
    names = ["whole", *(f"conversation {number}" for number in range(4))]
    while count:
        name = chance.choice(names)
        spoilt = mutation(log, chance, name)
        if spoilt != log.bundles[name]:
            count -= 1
            yield spoilt


@pytest.mark.parametrize("mutation", OF_BUNDLES, ids=name_of)
def test_a_bundle_that_was_tampered_with_is_found_out(log: Log, mutation: Mutation) -> None:
    count = -(-BUNDLE_MUTATIONS // len(OF_BUNDLES))
    missed = [spoilt for spoilt in tampered_bundles(log, mutation, count) if not log.is_found(spoilt, log.kept[1])]
    assert missed == []


# What can be done to the stored log

Rows = list[EventRow]
Change = Callable[[Rows, random.Random, int], Rows]
"""Rows of our workspace, in order; only the first so many may be touched."""


def changed(row: EventRow, chance: random.Random) -> EventRow:
    at = chance.randrange(len(row.data))
    flipped = row.data[:at] + bytes([row.data[at] ^ 1 << chance.randrange(8)]) + row.data[at + 1 :]
    return row._replace(
        **chance.choice(
            [
                {"data": flipped},
                {"actor_id": row.actor_id + "x"},
                {"actor_kind": "agent"} if row.actor_kind != "agent" else {"actor_kind": "bot"},
                {"surface": "listing"},
                {"occurred_at": row.occurred_at + timedelta(microseconds=1)},
                {"recorded_at": row.recorded_at - timedelta(microseconds=1)},
                {"request_id": uuid4()},
                {"correlation_id": uuid4()},
                {"causation_id": "x"},
                {"schema_version": 2},
                {"topic": "label-added.v1"},
            ]
        )
    )


def flip_a_row(rows: Rows, chance: random.Random, covered: int) -> Rows:
    at = chance.randrange(covered)
    rows[at] = changed(rows[at], chance)
    return rows


def delete_a_row(rows: Rows, chance: random.Random, covered: int) -> Rows:
    del rows[chance.randrange(covered)]
    return rows


def delete_and_close_the_gap(rows: Rows, chance: random.Random, covered: int) -> Rows:
    """So that versions and positions are gapless again."""
    gone = rows.pop(chance.randrange(covered))
    return [
        row._replace(version=row.version - 1) if row.stream_id == gone.stream_id and row.version > gone.version else row
        for row in rows
    ]


def insert_a_row(rows: Rows, chance: random.Random, covered: int) -> Rows:
    """An event that never was, and all after it in its stream moved on."""
    at = chance.randrange(covered)
    like = rows[at]
    moved = [
        row._replace(version=row.version + 1)
        if row.stream_id == like.stream_id and row.version >= like.version
        else row
        for row in rows
    ]
    return [*moved[:at], changed(like, chance), *moved[at:]]


def swap_rows(rows: Rows, chance: random.Random, covered: int) -> Rows:
    one, other = chance.sample(range(covered), 2)
    rows[one], rows[other] = rows[other], rows[one]
    return rows


def swap_contents(rows: Rows, chance: random.Random, covered: int) -> Rows:
    """Between conversations."""
    notes = [number for number in range(covered) if rows[number].topic.startswith("note")]
    one, other = chance.sample(notes, 2)
    rows[one], rows[other] = rows[one]._replace(data=rows[other].data), rows[other]._replace(data=rows[one].data)
    return rows


def swap_conversations(rows: Rows, chance: random.Random, covered: int) -> Rows:
    """One conversation's past becomes another's."""
    openings = [row.stream_id for row in rows[:covered] if row.topic.startswith("conversation-opened")]
    one, other = chance.sample(openings, 2)
    swapped = {one: other, other: one}
    return [row._replace(stream_id=swapped.get(row.stream_id, row.stream_id)) for row in rows]


def truncate_rows(rows: Rows, chance: random.Random, covered: int) -> Rows:
    return rows[: chance.randrange(1, covered)]


def restore_and_append(rows: Rows, chance: random.Random, covered: int) -> Rows:
    """An old backup, and then other events than there were: more of them, in the end, than before."""
    kept = chance.randrange(covered - 5, covered) if covered > 6 else 1
    return rows[:kept] + [
        rows[0]._replace(stream_id=uuid4(), version=1, request_id=uuid4()) for _ in range(len(rows) - kept + 3)
    ]


OF_LOGS: list[Change] = [
    flip_a_row,
    delete_a_row,
    delete_and_close_the_gap,
    insert_a_row,
    swap_rows,
    swap_contents,
    swap_conversations,
    truncate_rows,
    restore_and_append,
]


@contextmanager
def tampered(log: Log, rows: Rows) -> Iterator[None]:
    """The log as if it held ``rows`` in our workspace: for a while, and by somebody who may do everything."""
    places = [row.position for row in log.rows if row.workspace_id == OURS]
    places += range(len(log.rows) + 1, len(log.rows) + 1 + max(0, len(rows) - len(places)))
    placed = [row._replace(position=place) for row, place in zip(rows, places, strict=False)]
    with log.connection.transaction(force_rollback=True), log.connection.cursor() as cursor:
        cursor.execute("set local session_replication_role = replica")
        cursor.execute("delete from events where workspace_id = %s", (OURS,))
        cursor.execute("set local role conversas_writer")
        append(cursor, placed)
        cursor.execute("reset role")
        yield


def ours(log: Log) -> Rows:
    return [row for row in log.rows if row.workspace_id == OURS]


def size_of(note: str) -> int:
    return int(note.split("\n")[1])


def tampered_logs(log: Log, change: Change, count: int) -> Iterator[bytes]:
    """Bundles of changed logs: half with the stored tree as it was, half with one built anew and signed by us."""
    chance = random.Random(change.__name__)
    for number in range(count):
        is_rebuilt = number % 2 == 1
        rows = ours(log)
        # A whole bundle: what was hidden from a conversation's reader before cannot have changed theirs.
        rows = change(rows, chance, size_of(log.kept[1]) if is_rebuilt else len(rows))
        if rows == ours(log):
            continue
        with tampered(log, rows):
            if is_rebuilt:
                try:
                    log.build_tree()
                except LogBrokenError:
                    continue  # it shows itself before there is a bundle
            yield log.export(chance.choice([None, None, rows[0].stream_id]))


@pytest.mark.parametrize("change", OF_LOGS, ids=name_of)
def test_a_log_that_was_tampered_with_is_found_out_by_its_bundle(log: Log, change: Change) -> None:
    count = -(-LOG_MUTATIONS // (len(OF_LOGS) + 1))
    missed = [each for each in tampered_logs(log, change, count) if not log.is_found(each, log.kept[1])]
    assert missed == []


def test_a_stored_tree_that_was_tampered_with_is_found_out(log: Log) -> None:
    chance = random.Random(7)
    tiles = log.connection.execute(
        "select level, number, octet_length(hashes) from tree_tiles where workspace_id = %s", (OURS,)
    ).fetchall()
    found = 0
    for _ in range(LOG_MUTATIONS // (len(OF_LOGS) + 1)):
        # The head follows from the right edge: of level 0 the last tile, of the others all.
        level, number, length = chance.choice([tile for tile in tiles if tile[0] > 0 or tile[:2] == max(tiles)[:2]])
        at = chance.randrange(length * 8)
        with log.connection.transaction(force_rollback=True):
            log.connection.execute(
                "update tree_tiles set hashes = set_bit(hashes, %s, 1 - get_bit(hashes, %s))"
                " where workspace_id = %s and level = %s and number = %s",
                (at, at, OURS, level, number),
            )
            assert log.is_found(log.export(), log.kept[1])
            found += 1
    assert found


# What must not alarm, and what must not be missed


def test_what_nobody_touched_gives_no_alarm(log: Log) -> None:
    chance = random.Random(11)
    for number in range(UNTOUCHED):
        stream_id = chance.choice([None, CONTACT, *log.conversations])
        with log.connection.transaction(force_rollback=True):
            if number % 3 == 0:
                log.build_tree()
            exported = log.export(stream_id)
        wanted = None if stream_id is None else str(stream_id)
        since = chance.choice([None, *log.kept])
        verified = verify(io.BytesIO(exported), log.public, since=since, stream_id=wanted)
        assert verified.events == sum(stream_id in {None, row.stream_id} for row in ours(log))
        assert verified.checkpoint.size == len(ours(log))


def test_a_bundle_of_a_conversation_shows_nothing_of_the_others(log: Log) -> None:
    raw, of = log.bundles["conversation 1"], str(log.conversations[1])
    assert of.encode() in raw
    for row in ours(log):
        if row.stream_id not in {log.conversations[1], CONTACT}:  # the conversation names its contact
            assert str(row.stream_id).encode() not in raw
            assert str(row.request_id).encode() not in raw
    hidden = [base64.b64decode(line[1:-2]) for line in split(log, "conversation 1") if line.startswith(b'"')]
    assert len({leaf[:16] for leaf in hidden}) == len(hidden), "two leaves of one stream cannot be told as such"


class Agreeable(Frontier):
    """Whose root is whatever it is compared with."""

    def root(self) -> Any:
        class Whatever:
            __hash__ = None  # type: ignore[assignment]

            def __eq__(self, other: object) -> bool:
                return True

            def __ne__(self, other: object) -> bool:
                return False

        return Whatever()


BROKEN: dict[str, tuple[Any, str, Any, Mutation]] = {
    "does not compare the root": (bundle, "Frontier", Agreeable, lambda log, *_: change_a_note(log)),
    "does not check the signature": (
        checkpoints.VerifierKey,
        "has_signed",
        lambda *_: True,
        lambda log, *_: (
            bundle._header(
                (note := json.loads(split(log, "whole")[0])["checkpoint"])[:-4]
                + ("A" if note[-4] != "A" else "B")
                + note[-3:],
                None,
            )
            + b"\n"
            + b"".join(split(log, "whole")[1:])
        ),
    ),
    "does not look at the tags of what is hidden": (
        bundle._OneStream,
        "hidden",
        lambda *_: None,
        lambda log, *_: hide_the_last(log),
    ),
}


def change_a_note(log: Log) -> bytes:
    lines = split(log, "whole")
    found = envelope_of(lines[-1][:-1])
    lines[-1] = bundle.line_of(found._replace(actor_id="somebody else")) + b"\n"
    return b"".join(lines)


def hide_the_last(log: Log) -> bytes:
    lines = split(log, "conversation 2")
    at = shown(lines)[-1]
    first = lines[shown(lines)[0]][:-1]
    lines[at] = b'"' + base64.b64encode(tag_of(origin_of(first), at - 1) + digest_of(lines[at][:-1])) + b'"\n'
    return b"".join(lines)


@pytest.mark.parametrize("how", BROKEN)
def test_canary_a_verifier_that_is_less_careful_misses_it(log: Log, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, name, broken, mutation = BROKEN[how]
    spoilt = mutation(log, random.Random(1), "whole")
    assert spoilt not in log.bundles.values()
    assert log.is_found(spoilt, log.kept[1])
    monkeypatch.setattr(place, name, broken)
    assert not log.is_found(spoilt, log.kept[1])


@pytest.mark.parametrize("change", [each for each in OF_LOGS if each is not delete_a_row], ids=name_of)
def test_canary_without_an_earlier_checkpoint_the_log_s_own_key_could_rewrite_the_past(
    log: Log, change: Change
) -> None:
    """All but a gap, which gives itself away."""
    assert not all(log.is_found(each, None) for each in tampered_logs(log, change, 40))
