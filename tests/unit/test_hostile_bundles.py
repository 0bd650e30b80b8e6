"""Bundles and answers that somebody made by hand: each is refused with a sentence, and none can pass for verified.

Those of the first table need no key of the log. Those of the second are signed with it, by whoever holds it.
"""

import base64
import fcntl
import gzip
import io
import json
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from click.testing import Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from adapters import bundle
from adapters.bundle import AlteredError, verify
from adapters.checkpoints import WITNESS, Checkpoint, Signature, SigningKey, VerifierKey
from adapters.witness import Witness
from api.__main__ import app
from api.cli import verifying
from domain.leaves import Envelope, digest_of, line_of, origin_of, tag_of
from domain.merkle import Frontier, leaf_hash

WORKSPACE, ONE, OTHER = UUID(int=1), UUID(int=0xAB), UUID(int=8)
ORIGIN = f"conversas.example/{WORKSPACE}"
PRIVATE = Ed25519PrivateKey.generate()
KEY = SigningKey(PRIVATE)
PUBLIC = KEY.verifier(ORIGIN)


def event(position: int, stream: UUID | str, version: int, **more: Any) -> Envelope:
    at, ids = "2026-01-01T00:00:00.000000+00:00", (str(uuid4()), str(uuid4()))
    made = Envelope(
        *(position, str(WORKSPACE), "conversation", str(stream), version, "note-added.v1", "agent", "a", "inbox"),
        *(at, at, *ids, None, 1, b'{"a":1}'),
    )
    return made._replace(**more)


def made(events: Sequence[Envelope], of: str | None = None, size: int = -1) -> bytes:
    """A bundle of ``events``, signed; of the first ``size`` of them only."""
    tree, origins, lines = Frontier(), dict[str, bytes](), []
    for index, each in enumerate(events[:size] if size >= 0 else events):
        line = line_of(each)
        origin = origins.setdefault(each.stream_id, origin_of(line))
        leaf = tag_of(origin, index) + digest_of(line)
        tree.append(leaf_hash(leaf))
        lines.append(line if of in {None, each.stream_id} else b'"' + base64.b64encode(leaf) + b'"')
    note = KEY.sign(Checkpoint(ORIGIN, tree.size, tree.root()))
    return b"".join(line + b"\n" for line in (bundle._header(note, of), *lines))


EVENTS = [event(1, ONE, 1), event(2, OTHER, 1), event(4, ONE, 2), event(5, OTHER, 2)]
WHOLE, CONVERSATION, EMPTY = made(EVENTS), made(EVENTS, str(ONE)), made([])
HEADER, LINES = WHOLE.split(b"\n", 1)
LAST = EVENTS[2]


def with_note(note: str) -> bytes:
    return bundle._header(note, None) + b"\n" + LINES


def note_of(raw: bytes) -> str:
    return str(json.loads(raw.split(b"\n", 1)[0])["checkpoint"])


def said_to_be(**changes: Any) -> bytes:
    header = json.loads(HEADER) | changes
    return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" + LINES


def signed_as(size: str) -> bytes:
    """The checkpoint with its size written as ``size``, and a true signature under it."""
    origin, _, rest = note_of(WHOLE).split("\n\n")[0].split("\n", 2)
    text = f"{origin}\n{size}\n{rest}\n"
    return with_note(f"{text}\n{Signature(ORIGIN, PUBLIC.id, PRIVATE.sign(text.encode())).line()}")


def hidden(*numbers: int) -> bytes:
    """The conversation's bundle with events of it as leaves that are not shown; the root stays right."""
    lines, origin = CONVERSATION.split(b"\n"), origin_of(line_of(EVENTS[0]))
    for number in numbers:
        leaf = tag_of(origin, number - 1) + digest_of(lines[number])
        lines[number] = b'"' + base64.b64encode(leaf) + b'"'
    return b"\n".join(lines)


BY_ANYBODY: dict[str, bytes] = {
    "nothing": b"",
    "a line's end": b"\n",
    "a byte order mark": b"\xef\xbb\xbf" + WHOLE,
    "line ends of another system": WHOLE.replace(b"\n", b"\r\n"),
    "UTF-16": WHOLE.decode().encode("utf-16"),
    "compressed": gzip.compress(WHOLE),
    "cut before the last line's end": WHOLE[:-1],
    "an empty line more": WHOLE + b"\n",
    "the last event twice": WHOLE + WHOLE.splitlines(keepends=True)[-1],
    "the first event twice": b"\n".join([HEADER, LINES.split(b"\n")[0], LINES]),
    "all of it twice": WHOLE + WHOLE,
    "one of a conversation behind one of all": WHOLE + CONVERSATION,
    "an empty one with events": EMPTY + LINES,
    "an empty one of a conversation": bundle._header(note_of(EMPTY), str(ONE)) + b"\n",
    "another format": said_to_be(format="conversas-bundle.v2"),
    "no format": said_to_be(format=None),
    "an algorithm": said_to_be(algorithm="none"),
    "of a stream that is no text": said_to_be(stream_id=7),
    "no header but a deep one": b"[" * 100_000 + b"\n" + LINES,
    "a stream that is half a character": b'{"format":"conversas-bundle.v1","stream_id":"\\ud800","checkpoint":"x"}\n',
    "a deep line": HEADER + b"\n" + b'{"a":' * 100_000 + b"\n",
    "a very long number": HEADER + b"\n" + b'{"position":' + b"9" * 5_000 + b"}\n",
    "lines of other things": HEADER + b'\nnull\n[]\n1\n""\n',
    "the same events, spelt otherwise": WHOLE.replace(b'{"position"', b'{ "position"'),
    "signed twice": with_note(note_of(WHOLE) + note_of(WHOLE).split("\n\n")[1]),
    "cosigned only": with_note(
        note_of(WHOLE).split("\n\n")[0] + "\n\n" + KEY.cosign(note_of(WHOLE), ORIGIN, 5).splitlines()[-1] + "\n"
    ),
    "the last of a conversation hidden": hidden(3),
    "all of a conversation hidden": hidden(1, 3),
    "said to be of another": CONVERSATION.replace(str(ONE).encode(), str(OTHER).encode(), 1),
    "said to be of all": CONVERSATION.replace(f'"{ONE}"'.encode(), b"null", 1),
    "all of it, said to be of a conversation": said_to_be(stream_id=str(ONE)),
} | {
    f"a signature of {length} bytes": with_note(
        f"{note_of(WHOLE).split(chr(10) * 2)[0]}\n\n{Signature(ORIGIN, PUBLIC.id, b'x' * length).line()}"
    )
    for length in (0, 1, 63, 64, 65, 4_000)
}
BY_WHO_HAS_THE_KEY: dict[str, bytes] = {
    "a version left out": made([event(1, ONE, 1), event(2, ONE, 3)]),
    "a beginning left out": made([event(1, ONE, 2)]),
    "a version before the first": made([event(1, ONE, 0), event(2, ONE, 1)]),
    "one position twice": made([event(1, ONE, 1), event(1, OTHER, 1)]),
    "no position": made([event(0, ONE, 1)]),
    "positions that go back": made([event(3, ONE, 1), event(2, OTHER, 1)]),
    "another workspace's event": made([event(1, ONE, 1, workspace_id=str(UUID(int=3)))]),
    "a time that is no text": made([event(1, ONE, 1, recorded_at="x\x1b[2J")]),
    "events appended": made(EVENTS) + line_of(event(6, ONE, 3)) + b"\n",
    "events appended to an older checkpoint": made(EVENTS, size=2) + b"".join(line_of(e) + b"\n" for e in EVENTS[2:]),
} | {f"the size {size}": signed_as(size) for size in ("04", "-4", "4e0", " 4", "٤", "5", str(2**63), str(10**19))}


@pytest.mark.parametrize("raw", BY_ANYBODY.values(), ids=BY_ANYBODY)
def test_what_somebody_made_up_is_refused(raw: bytes) -> None:
    with pytest.raises(AlteredError):
        verify(io.BytesIO(raw), PUBLIC)


@pytest.mark.parametrize("raw", BY_WHO_HAS_THE_KEY.values(), ids=BY_WHO_HAS_THE_KEY)
def test_what_the_log_s_own_key_has_signed_and_cannot_be_is_refused(raw: bytes) -> None:
    with pytest.raises(AlteredError):
        verify(io.BytesIO(raw), PUBLIC)


@pytest.mark.parametrize(
    "key",
    [
        SigningKey(Ed25519PrivateKey.generate()).verifier(ORIGIN),
        KEY.verifier(f"conversas.example/{UUID(int=2)}"),
        KEY.verifier(ORIGIN, WITNESS),
    ],
    ids=["another key", "of another workspace", "of a witness"],
)
def test_another_key_verifies_nothing(key: VerifierKey) -> None:
    with pytest.raises(AlteredError, match="cannot be trusted"):
        verify(io.BytesIO(WHOLE), key)


def test_canary_what_nobody_touched_is_verified() -> None:
    assert [verify(io.BytesIO(raw), PUBLIC).events for raw in (WHOLE, CONVERSATION, EMPTY)] == [4, 2, 0]
    assert verify(io.BytesIO(WHOLE), PUBLIC, since=note_of(EMPTY)).events == 4


class Endless(io.RawIOBase):
    """A line that has no end, until more was read of it than anybody can want."""

    taken = 0
    ENOUGH = 400_000

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        assert self.taken < self.ENOUGH, "all of it would have been read"
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_a_line_without_an_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_MOST_BYTES", 100_000)
    with pytest.raises(AlteredError, match="breaks off"):
        verify(io.BufferedReader(Endless()), PUBLIC)
    with pytest.raises(AssertionError, match="all of it"):  # canary: a file's own lines have no limit
        next(iter(io.BufferedReader(Endless())))


def test_of_a_long_file_only_a_line_is_held() -> None:
    events = [event(number, ONE, number, data=b"x" * 100_000) for number in range(1, 101)]
    raw = made(events)
    tracemalloc.start()
    try:
        verify(io.BytesIO(raw), PUBLIC)
        assert tracemalloc.get_traced_memory()[1] < len(raw) / 5
    finally:
        tracemalloc.stop()


# What is told


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


FALSE = "\x1b[2K\rVERIFIED: nothing was changed and nothing left out.\n"


def test_nothing_in_a_file_is_told_as_if_it_were_our_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events are looked at before their hashes are: what they are called may be anything then."""
    file = tmp_path / "bundle"
    file.write_bytes(HEADER + b"\n" + line_of(event(1, ONE, 2, stream_type=f"x\n{FALSE}")) + b"\n")
    done = run("verify", file, "--key", PUBLIC.text())
    assert done.exit_code == 1
    told = [line for line in done.output.splitlines() if "VERIFIED" in line]
    assert len(told) == 1
    assert told[0].startswith("ALTERED: ")
    assert "\x1b" not in done.output
    monkeypatch.setattr(verifying, "_printable", lambda text: text)  # canary
    assert "\nVERIFIED" in run("verify", file, "--key", PUBLIC.text()).output.replace("\r", "\n")


def test_nothing_in_a_header_is_either(tmp_path: Path) -> None:
    file = tmp_path / "bundle"
    file.write_bytes(said_to_be(stream_id=FALSE))
    done = run("verify", file, "--key", PUBLIC.text(), "--conversation", ONE)
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert not [line for line in done.output.splitlines() if line.startswith("VERIFIED")]


# A service that answers a witness with whatever it likes


class Liar(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[Callable[[], None]] = staticmethod(lambda: None)

    def do_GET(self) -> None:
        Liar.asked()
        body = self.answers[self.path.partition("?")[0]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def liar(checkpoint: bytes, proof: bytes = b"") -> Iterator[str]:
    Liar.answers = {"/v1/checkpoint": checkpoint, "/v1/proofs/consistency": proof}
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def as_answer(raw: bytes) -> bytes:
    return json.dumps({"checkpoint": note_of(raw)}).encode()


def witnessed(url: str | Path, directory: Path) -> Result:
    done = run("witness", url, "--key", PUBLIC.text(), "--directory", directory, "--name", "witness.example")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


ANSWERS = (b"", b"no JSON", b"\xff\xfe", b"[]", b"5", b"null", b"{}")


@pytest.mark.parametrize("answer", [*ANSWERS, b'{"checkpoint":5}', b'{"checkpoint":"\\ud800\\n\\n"}'])
def test_a_witness_makes_a_sentence_of_an_answer_that_is_none(answer: bytes, tmp_path: Path) -> None:
    with liar(answer) as url:
        done = witnessed(url, tmp_path)
    assert done.exit_code == 1
    assert "—" not in done.output, "nothing is signed"


@pytest.mark.parametrize("proof", [*ANSWERS, b'{"path":5}', b'{"path":[5]}', b'{"path":["x"]}', b'{"path":[]}'])
def test_a_witness_signs_nothing_on_a_proof_that_is_none(proof: bytes, tmp_path: Path) -> None:
    with liar(as_answer(made(EVENTS, size=2)), proof) as url:
        assert witnessed(url, tmp_path).exit_code == 0
        Liar.answers["/v1/checkpoint"] = as_answer(WHOLE)
        done = witnessed(url, tmp_path)
    assert done.exit_code == 1
    assert "—" not in done.output, "nothing is signed"
    assert Witness(tmp_path, KEY, "x").remembered(PUBLIC) == note_of(made(EVENTS, size=2))


# Two processes that are the same witness


def test_a_witness_is_one_process_at_a_time(tmp_path: Path) -> None:
    """From before it looks up what it knows until it has remembered what it signed."""
    held = []

    def look() -> None:
        with (tmp_path / "lock").open("w") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(True)

    with liar(as_answer(WHOLE)) as url:
        Liar.asked = staticmethod(look)
        try:
            assert witnessed(url, tmp_path).exit_code == 0
        finally:
            Liar.asked = staticmethod(lambda: None)
    assert held
    with Witness(tmp_path, KEY, "x").alone():
        pass


def test_canary_two_at_once_would_forget_what_they_have_signed(tmp_path: Path) -> None:
    witness, older = Witness(tmp_path, KEY, "x"), made(EVENTS, size=2)
    witness.cosign_bundle(
        io.BytesIO(older),
        PUBLIC,
        1,
        lambda *_: bool(witness.cosign_bundle(io.BytesIO(WHOLE), PUBLIC, 1, print)) and None,
    )
    assert witness.remembered(PUBLIC) == note_of(older), "and a log that parts after it would be signed"
