"""The tree of RFC 9162 against published vectors, checkpoints against other programs' notes, an event's one line.

Vectors: RFC 6962 reference data of certificate-transparency, as transparency-dev/merkle has them (`rfc6962`, `proof`);
notes: golang.org/x/mod/sumdb/note.
"""

from collections.abc import Callable, Iterator

import pytest

from adapters.checkpoints import (
    WITNESS,
    Checkpoint,
    NoteError,
    SigningKey,
    VerifierKey,
    open_checkpoint,
    parse_note,
)
from domain.leaves import Envelope, digest_of, envelope_of, line_of, origin_of, tag_of
from domain.merkle import (
    EMPTY_ROOT,
    Frontier,
    Node,
    Span,
    consistency_spans,
    inclusion_spans,
    is_consistent,
    is_included,
    leaf_hash,
    node_hash,
    span_hash,
)
from projections.tree import TILE_WIDTH, tiles_of

LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        *("", "00", "10", "2021", "3031", "40414243"),
        *("5051525354555657", "606162636465666768696a6b6c6d6e6f"),
    )
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 7): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
SOME = bytes.fromhex("abacaba000000000000000000000000000000000000000000060061e00123456")


def hashes(node: Node) -> bytes:
    """Of the complete subtrees of the vectors' tree, straight from the definition."""
    if node.height == 0:
        return leaf_hash(LEAVES[node.number])
    return node_hash(hashes(Node(node.height - 1, 2 * node.number)), hashes(Node(node.height - 1, 2 * node.number + 1)))


def root(size: int) -> bytes:
    return bytes.fromhex(ROOTS[size])


def test_an_empty_tree_an_empty_leaf_a_leaf_and_a_node_hash_as_published() -> None:
    assert EMPTY_ROOT.hex() == ROOTS[0]
    assert leaf_hash(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert leaf_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    assert node_hash(b"N123", b"N456").hex() == "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"


@pytest.mark.parametrize("size", range(9))
def test_the_roots_are_the_published_ones(size: int) -> None:
    tree = Frontier()
    for leaf in LEAVES[:size]:
        tree.append(leaf_hash(leaf))
    assert (tree.size, tree.root().hex()) == (size, ROOTS[size])
    assert span_hash(Span(0, size), hashes).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_the_published_ones(index: int, size: int) -> None:
    path = [span_hash(span, hashes) for span in inclusion_spans(index, size)]
    assert [each.hex() for each in path] == INCLUSION[index, size]
    assert is_included(leaf_hash(LEAVES[index]), index, size, path, root(size))


@pytest.mark.parametrize(("first", "second"), CONSISTENCY)
def test_consistency_proofs_are_the_published_ones(first: int, second: int) -> None:
    path = [span_hash(span, hashes) for span in consistency_spans(first, second)]
    assert [each.hex() for each in path] == CONSISTENCY[first, second]
    assert is_consistent(first, root(first), second, root(second), path)


def spoilt(path: list[bytes], *roots: bytes) -> Iterator[list[bytes]]:
    """The ways in which the reference tests spoil a proof."""
    for garbage in (b"", *roots):
        yield [*path, garbage]
        yield [garbage, *path]
    if path:
        yield path[:-1]
        yield [path[0], *path]
        yield [*path[1:], path[0], SOME]
    for number, each in enumerate(path):
        yield [*path[:number], bytes([each[0] ^ 8]) + each[1:], *path[number + 1 :]]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_no_spoilt_inclusion_proof_verifies(index: int, size: int) -> None:
    path, leaf = [bytes.fromhex(each) for each in INCLUSION[index, size]], leaf_hash(LEAVES[index])
    for other in (index - 1, index + 1, index ^ 2):
        assert not is_included(leaf, other, size, path, root(size))
    for other in (size * 2, size // 2):
        assert not is_included(leaf, index, other, path, root(size))
    for wrong_leaf, wrong_root in ((b"leaf", root(size)), (leaf, EMPTY_ROOT), (leaf, SOME), (SOME, root(size))):
        assert not is_included(wrong_leaf, index, size, path, wrong_root)
    assert not any(is_included(leaf, index, size, wrong, root(size)) for wrong in spoilt(path, root(size)))


@pytest.mark.parametrize(("first", "second"), [sizes for sizes in CONSISTENCY if sizes[0] != sizes[1]])
def test_no_spoilt_consistency_proof_verifies(first: int, second: int) -> None:
    path = [bytes.fromhex(each) for each in CONSISTENCY[first, second]]
    roots = root(first), root(second)
    for other in (first - 1, first + 1, first ^ 2):
        assert not is_consistent(other, roots[0], second, roots[1], path)
    for other in (second * 2, second // 2):
        assert not is_consistent(first, roots[0], other, roots[1], path)
    assert not is_consistent(first, b"root", second, roots[1], path)
    assert not is_consistent(first, roots[0], second, b"root", path)
    assert not is_consistent(first, roots[1], second, roots[0], path)
    assert not is_consistent(first, roots[0], second, roots[1], [])
    assert not any(is_consistent(first, roots[0], second, roots[1], wrong) for wrong in spoilt(path, *roots))


def test_sizes_that_need_no_proof_take_none() -> None:
    assert is_consistent(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    assert is_consistent(0, EMPTY_ROOT, 1, root(1), [])
    assert not is_consistent(0, SOME, 1, root(1), [])
    assert not is_consistent(0, EMPTY_ROOT, 0, SOME, [])
    assert not is_consistent(1, root(1), 0, EMPTY_ROOT, [])
    assert not is_consistent(2, root(2), 1, root(1), [])
    assert not is_consistent(1, root(1), 1, SOME, [])
    assert not is_consistent(1, root(1), 1, root(1), [SOME])


def test_there_is_no_proof_of_what_a_tree_has_not() -> None:
    for index, size in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="no such leaf"):
            inclusion_spans(index, size)
    with pytest.raises(ValueError, match="smaller"):
        consistency_spans(4, 3)


def test_a_proof_over_ten_million_leaves_reads_few_tiles() -> None:
    size, levels = 10_000_000, 5
    for index in (0, 1, 4_999_999, 8_388_607, 8_388_608, 9_999_999):
        assert len(tiles_of(inclusion_spans(index, size))) <= 2 * levels
    for first in (1, 5_000_000, 8_388_608, 8_388_609, 9_999_999):
        assert len(tiles_of(consistency_spans(first, size))) <= 2 * levels
    assert len(tiles_of([Span(0, size)])) <= levels
    assert TILE_WIDTH**levels > size


# The line and the leaf

ENVELOPE = Envelope(
    position=7,
    workspace_id="00000000-0000-0000-0000-000000000001",
    stream_type="conversation",
    stream_id="00000000-0000-0000-0000-000000000002",
    version=1,
    topic="note-added.v1",
    actor_kind="agent",
    actor_id='b"ia\n',
    surface="inbox",
    occurred_at="2026-11-22T10:00:00.000000+00:00",
    recorded_at="2026-11-22T10:00:00.123456+00:00",
    request_id="00000000-0000-0000-0000-000000000003",
    correlation_id="00000000-0000-0000-0000-000000000004",
    causation_id=None,
    schema_version=1,
    data='{"text":"olá\u2028"}'.encode(),
)
LINE = (
    '{"position":7,"workspace_id":"00000000-0000-0000-0000-000000000001","stream_type":"conversation",'
    '"stream_id":"00000000-0000-0000-0000-000000000002","version":1,"topic":"note-added.v1","actor_kind":"agent",'
    '"actor_id":"b\\"ia\\n","surface":"inbox","occurred_at":"2026-11-22T10:00:00.000000+00:00",'
    '"recorded_at":"2026-11-22T10:00:00.123456+00:00","request_id":"00000000-0000-0000-0000-000000000003",'
    '"correlation_id":"00000000-0000-0000-0000-000000000004","causation_id":null,"schema_version":1,'
    '"data":"{\\"text\\":\\"olá\u2028\\"}"}'
).encode()


def test_an_event_has_this_line_for_ever() -> None:
    """Golden: if this changes, no proof that was ever given out verifies any more."""
    assert line_of(ENVELOPE) == LINE
    assert digest_of(LINE).hex() == "aeb922936f1e6ecbb19b5b88ff4dacc0d5dc3abed4d5adeb369b890913955ab1"
    assert origin_of(LINE).hex() == "05358f8cc7f74affdbd2bf810e048c2c47dd20e46c3a3d70ea15b534fed25c1e"
    assert tag_of(origin_of(LINE), 5).hex() == "4781b8df02d6deacc14af3bc8b12bb80"


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff\x00", "\U0001f600\x7f\\u0041".encode(), b'","data_base64":"'])
def test_whatever_bytes_an_event_is_stored_as_they_come_back_from_its_line(data: bytes) -> None:
    for envelope in (ENVELOPE._replace(data=data), ENVELOPE._replace(data=data, causation_id="null")):
        line = line_of(envelope)
        assert envelope_of(line) == envelope
        assert b"\n" not in line


@pytest.mark.parametrize(
    "line",
    [
        LINE + b" ",
        LINE.replace(b'":7', b'": 7'),
        LINE.replace(b'"version":1', b'"version":true'),
        LINE.replace(b'"version":1', b'"version":1.0'),
        LINE.replace(b"{", b'{"position":6,', 1),
        LINE.replace(b'"causation_id":null,', b""),
        LINE.replace(b'"inbox"', b'"\\u0069nbox"'),
        LINE.replace(b'"inbox"', b"null"),
        LINE.replace(b'"inbox"', b'"\\ud800"'),
        LINE.replace("olá".encode(), b"ol\xe1"),
        LINE.replace(b'"data":', b'"data_base64":'),
        b"[" * 100_000,
        b"7",
        b"",
    ],
)
def test_no_other_text_stands_for_an_event(line: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        envelope_of(line)


def test_a_tag_shows_neither_its_stream_nor_that_two_leaves_are_of_one_stream() -> None:
    origin = origin_of(LINE)
    assert origin != digest_of(LINE)  # which stands in every bundle
    assert len({tag_of(origin, index) for index in range(1_000)}) == 1_000
    assert tag_of(origin_of(LINE + b" "), 5) != tag_of(origin, 5)


# Notes and checkpoints

GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SEED_PEM = (
    "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n"
    "-----END PRIVATE KEY-----\n"
)
"""The secret of RFC 8032, 7.1, test 1."""
KEY = SigningKey.parse(SEED_PEM)
CHECKPOINT = Checkpoint("conversas.example/1", 8, bytes.fromhex(ROOTS[8]))


def test_a_note_that_another_program_signed_verifies() -> None:
    key = VerifierKey.parse(GO_KEY)
    text, [signature] = parse_note(GO_NOTE)
    assert signature.key_id == key.id
    assert key.has_signed(text, signature)
    assert not key.has_signed(text + "x", signature)
    assert (
        VerifierKey.parse("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8").id.hex() == "033de0ae"
    )


def test_a_checkpoint_is_written_as_c2sp_says() -> None:
    key = KEY.verifier(CHECKPOINT.origin)
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    note = KEY.sign(CHECKPOINT)
    assert note.startswith(
        "conversas.example/1\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n\n— conversas.example/1 "
    )
    assert open_checkpoint(note, VerifierKey.parse(key.text())) == CHECKPOINT


def test_a_witness_adds_a_line_and_the_log_need_not_know_it() -> None:
    log, witness = KEY.verifier(CHECKPOINT.origin), KEY.verifier("witness.example", WITNESS)
    note = KEY.cosign(KEY.sign(CHECKPOINT), "witness.example", 1_700_000_000)
    assert open_checkpoint(note, log) == CHECKPOINT
    assert open_checkpoint(note, log, [VerifierKey.parse(witness.text())]) == CHECKPOINT
    with pytest.raises(NoteError, match="has not signed"):
        open_checkpoint(KEY.sign(CHECKPOINT), log, [witness])
    text, [_, cosignature] = parse_note(note)
    moved = cosignature._replace(signature=(1_700_000_001).to_bytes(8) + cosignature.signature[8:])
    assert witness.has_signed(text, cosignature)
    assert not witness.has_signed(text, moved)


def test_what_only_witnesses_have_signed_is_no_checkpoint_of_the_log_whatever_name_they_bear() -> None:
    text, signatures = parse_note(KEY.cosign(KEY.sign(CHECKPOINT), CHECKPOINT.origin, 1_700_000_000))
    cosigned = text + "\n" + signatures[-1].line()
    key = KEY.verifier(CHECKPOINT.origin, WITNESS)
    assert key.has_signed(text, signatures[-1])
    with pytest.raises(NoteError, match="witness's"):
        open_checkpoint(cosigned, VerifierKey.parse(key.text()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.replace("\n8\n", "\n08\n"),
        lambda note: note.replace("\n8\n", "\n9\n"),
        lambda note: note.replace("\n8\n", "\n-8\n"),
        lambda note: note.replace("\n8\n", "\n8\r\n"),
        lambda note: note.replace("\n8\n", "\n٨\n"),
        lambda note: note.replace("gz+Nw7", "gz-Nw7"),
        lambda note: note.replace("gQyg=", "gQyh="),
        lambda note: note.replace("\n\n—", "\nextension\n\n—"),
        lambda note: note.replace("— ", "- "),
        lambda note: note.replace("conversas.example/1 ", "conversas.example/2 "),
        lambda note: note.replace("conversas.example/1\n", "conversas.example/2\n"),
        lambda note: note[:-1],
        lambda note: note + "\n",
        lambda note: note + "— x AA==\n",
        lambda note: note.split("\n\n")[0] + "\n\n",
        lambda note: note[:-10] + ("A" if note[-10] != "A" else "B") + note[-9:],
        lambda _: "",
        lambda _: "\n\n\n",
    ],
)
def test_no_other_text_is_this_checkpoint(spoil: Callable[[str], str]) -> None:
    note = spoil(KEY.sign(CHECKPOINT))
    with pytest.raises(NoteError):
        open_checkpoint(note, KEY.verifier(CHECKPOINT.origin))


def test_a_key_that_was_not_copied_whole_is_refused() -> None:
    text = KEY.verifier("conversas.example/1").text()
    for wrong in ("", "x", text[:-1], text[1:], text.replace("/1+", "/2+"), text.replace("+", "+0", 1), text + "A"):
        with pytest.raises(NoteError):
            VerifierKey.parse(wrong)
