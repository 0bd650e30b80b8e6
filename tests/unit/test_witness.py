"""A witness signs what goes on from what it has seen and nothing else; keys are made once and never guessed."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from adapters.checkpoints import WITNESS, Checkpoint, KeyUnusableError, NoteError, SigningKey, open_checkpoint
from adapters.witness import RefusedError, Witness
from api.settings import Settings
from api.signing import signing_key
from domain.merkle import EMPTY_ROOT, Hashes, Node, Span, consistency_spans, leaf_hash, node_hash, span_hash

LOG = SigningKey(Ed25519PrivateKey.generate())
ORIGIN = "conversas.example/1"


def leaf(number: int, world: str) -> bytes:
    return leaf_hash(f"{world if number >= 5 else ''}{number}".encode())


def hashes_in(world: str) -> Hashes:
    """Worlds part after the fifth leaf."""

    def hashes(node: Node) -> bytes:
        if node.height == 0:
            return leaf(node.number, world)
        return node_hash(
            hashes(Node(node.height - 1, 2 * node.number)), hashes(Node(node.height - 1, 2 * node.number + 1))
        )

    return hashes


def note(size: int, world: str = "", key: SigningKey = LOG) -> str:
    return key.sign(Checkpoint(ORIGIN, size, span_hash(Span(0, size), hashes_in(world))))


def proof(first: int, second: int, world: str = "") -> list[bytes]:
    return [span_hash(span, hashes_in(world)) for span in consistency_spans(first, second)]


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path / "seen", SigningKey(Ed25519PrivateKey.generate()), "witness.example")


def test_it_signs_log_after_log_as_long_as_each_goes_on(witness: Witness) -> None:
    log = LOG.verifier(ORIGIN)
    ours = witness._key.verifier("witness.example", WITNESS)
    before = None
    for size in (0, 1, 5, 5, 8, 13):
        signed = witness.cosign(note(size), log, [] if before is None else proof(before, size), 1_700_000_000 + size)
        assert open_checkpoint(signed, log, [ours]).size == size
        assert witness.remembered(log) == note(size)
        before = size


@pytest.mark.parametrize(
    ("size", "world", "path"),
    [
        (4, "", []),
        (7, "", proof(7, 7)),
        (8, "other", []),
        (8, "other", proof(7, 8, "other")),
        (13, "other", proof(8, 13, "other")),
        (13, "other", proof(8, 13)),
        (13, "", []),
        (13, "", proof(7, 13)),
        (0, "", []),
    ],
)
def test_what_does_not_go_on_is_refused_and_not_remembered(
    witness: Witness, size: int, world: str, path: list[bytes]
) -> None:
    """Also by another process that finds only what was remembered."""
    log = LOG.verifier(ORIGIN)
    witness.cosign(note(8), log, [], 1)
    for each in (witness, Witness(witness._directory, witness._key, witness.name)):
        with pytest.raises(RefusedError):
            each.cosign(note(size, world), log, path, 2)
        assert each.remembered(log) == note(8)


def test_a_log_with_a_new_key_is_no_other_log(witness: Witness) -> None:
    other = SigningKey(Ed25519PrivateKey.generate())
    witness.cosign(note(8), LOG.verifier(ORIGIN), [], 1)
    with pytest.raises(NoteError):
        witness.cosign(note(3, key=other), LOG.verifier(ORIGIN), [], 2)
    with pytest.raises(NoteError):  # what was remembered is of the old key: somebody has to look
        witness.cosign(note(3, key=other), other.verifier(ORIGIN), [], 2)


def test_an_empty_log_has_the_empty_root() -> None:
    assert open_checkpoint(note(0), LOG.verifier(ORIGIN)).root == EMPTY_ROOT


def test_without_a_key_one_is_made_once_for_this_user_only(tmp_path: Path) -> None:
    settings = Settings(data_directory=tmp_path / "data")
    first, second = signing_key(settings), signing_key(settings)
    assert first.verifier("x") == second.verifier("x")
    [file] = (tmp_path / "data").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_that_is_named_is_used_or_the_setting_is_told(tmp_path: Path) -> None:
    made = signing_key(Settings(data_directory=tmp_path))
    file = tmp_path / "checkpoint-key.pem"
    assert signing_key(Settings(checkpoint_key_file=file)).verifier("x") == made.verifier("x")
    assert signing_key(Settings(checkpoint_key=file.read_text())).verifier("x") == made.verifier("x")
    assert "PRIVATE" not in repr(Settings(checkpoint_key=file.read_text()))
    for wrong in (
        Settings(checkpoint_key_file=tmp_path / "none"),
        Settings(checkpoint_key_file=tmp_path),
        Settings(checkpoint_key="not a key"),
        Settings(checkpoint_key="-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    ):
        with pytest.raises(KeyUnusableError, match="CONVERSAS_CHECKPOINT_KEY"):
            signing_key(wrong)
