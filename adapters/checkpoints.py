"""Checkpoints: the head of a workspace's tree as a signed note, in the forms of C2SP (tlog-checkpoint, signed-note,
tlog-cosignature), so that anybody's tools can check them.

Invariant: what is read here is taken only in the one form in which it would be written; a changed byte is an error.
"""

import base64
import binascii
import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Self
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from domain.merkle import HASH_BYTES

LOG, WITNESS = 0x01, 0x04
"""Signature types: of a log over its checkpoint, and of a witness over it and the time."""
_NAME = re.compile(r"[!-*,-~]+")
_LINES = re.compile(rf"({_NAME.pattern})\n(0|[1-9][0-9]{{0,18}})\n(.+)\n")
_KEY_ID_BYTES = 4
_KEY_BYTES = 32
_MOST_SIGNATURES = 64


class NoteError(ValueError):
    """This is no checkpoint, or nobody we trust signed it."""


class KeyUnusableError(Exception):
    """There is no key where one should be, or it is no Ed25519 key."""


class Checkpoint(NamedTuple):
    """How large the tree of the log called ``origin`` is, and its root."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """What is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The checkpoint that is written as ``text``.

        Raises `NoteError`.
        """
        lines = _LINES.fullmatch(text)
        if lines is None:
            raise NoteError("this is no checkpoint")
        found = cls(lines[1], int(lines[2]), _bytes(lines[3]))
        if len(found.root) != HASH_BYTES:
            raise NoteError("this is no checkpoint")
        return found


class Signature(NamedTuple):
    """A signature line of a note."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """As it is written."""
        return f"— {self.name} {_base64(self.key_id + self.signature)}\n"


class VerifierKey(NamedTuple):
    """A public key, with the name of its holder and what it signs."""

    name: str
    type: int
    public: bytes

    @property
    def id(self) -> bytes:
        """What its signatures carry."""
        return sha256(f"{self.name}\n".encode() + bytes([self.type]) + self.public).digest()[:_KEY_ID_BYTES]

    def text(self) -> str:
        """As it is handed out: name, id and key, joined by '+'."""
        return f"{self.name}+{self.id.hex()}+{_base64(bytes([self.type]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key that is written as ``text``.

        Raises `NoteError`.
        """
        name, _, rest = text.strip().partition("+")
        try:
            material = _bytes(rest.partition("+")[2])
        except NoteError:
            material = b""
        found = cls(name, material[0] if material else 0, material[1:])
        if not _NAME.fullmatch(name) or len(found.public) != _KEY_BYTES or found.type not in {LOG, WITNESS}:
            raise NoteError("a key looks like name+1a2b3c4d+AbC…=, as 'conversas checkpoint --public-key' prints it")
        if found.text() != text.strip():
            raise NoteError("the key was not copied whole: its parts do not fit together")
        return found

    def has_signed(self, text: str, signature: Signature) -> bool:
        """Whether ``signature`` is this key's over ``text``."""
        message, given = text.encode(), signature.signature
        if self.type == WITNESS:
            time, given = int.from_bytes(given[:8]), given[8:]
            message = f"cosignature/v1\ntime {time}\n".encode() + message
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(given, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key; its name is that of the log or witness it signs for at the moment."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw()

    @classmethod
    def parse(cls, pem: str) -> Self:
        """The key in ``pem`` (PKCS #8, as ``openssl genpkey -algorithm ed25519`` writes it).

        Raises `KeyUnusableError`.
        """
        try:
            key = serialization.load_pem_private_key(pem.encode(), password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyUnusableError("this is no Ed25519 key in PEM; make one: openssl genpkey -algorithm ed25519")
        return cls(key)

    @classmethod
    def read(cls, path: Path, *, make: bool) -> Self:
        """The key in the file ``path``; a new one where there is none and ``make`` says so.

        Raises `KeyUnusableError`.
        """
        if make and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            whole = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
            with os.fdopen(os.open(whole, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(new)
            try:
                os.link(whole, path)  # never over a key that another process has just made
            except FileExistsError:
                pass
            finally:
                whole.unlink()
        try:
            return cls.parse(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise KeyUnusableError(f"the key in {path} cannot be read: {error}") from None

    def verifier(self, name: str, type_: int = LOG) -> VerifierKey:
        """The public key."""
        return VerifierKey(name, type_, self._public)

    def sign(self, checkpoint: Checkpoint) -> str:
        """The checkpoint as a note, signed for its log."""
        text, key = checkpoint.text(), self.verifier(checkpoint.origin)
        return f"{text}\n{Signature(key.name, key.id, self._key.sign(text.encode())).line()}"

    def cosign(self, note: str, name: str, time_seconds: int) -> str:
        """``note`` with the cosignature of the witness called ``name`` added."""
        text, _ = parse_note(note)
        message = f"cosignature/v1\ntime {time_seconds}\n{text}".encode()
        key = self.verifier(name, WITNESS)
        return note + Signature(name, key.id, time_seconds.to_bytes(8) + self._key.sign(message)).line()


def origin_for(prefix: str, workspace_id: UUID | str) -> str:
    """The name of a workspace's log."""
    return f"{prefix}/{workspace_id}"


def workspace_of(origin: str) -> str:
    """The id of the workspace whose log is called ``origin``."""
    return origin.rpartition("/")[2]


def parse_note(note: str) -> tuple[str, list[Signature]]:
    """Text and signatures of a note, none of which is checked.

    Raises `NoteError`.
    """
    text, blank, rest = note.rpartition("\n\n")
    lines = rest.split("\n")
    if not blank or lines[-1] or not 1 < len(lines) <= _MOST_SIGNATURES:
        raise NoteError("this is no signed note")
    signatures = []
    for line in lines[:-1]:
        dash, _, name_and_bytes = line.partition(" ")
        name, _, encoded = name_and_bytes.partition(" ")
        raw = _bytes(encoded)
        if dash != "—" or not _NAME.fullmatch(name) or len(raw) <= _KEY_ID_BYTES:
            raise NoteError("this is no signed note")
        signatures.append(Signature(name, raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:]))
    return f"{text}\n", signatures


def open_checkpoint(note: str, key: VerifierKey, witnesses: Sequence[VerifierKey] = ()) -> Checkpoint:
    """The checkpoint in ``note``, which the log with ``key`` and all of ``witnesses`` have signed.

    Signatures of others are ignored, as the format asks. Raises `NoteError`.
    """
    text, signatures = parse_note(note)
    checkpoint = Checkpoint.parse(text)
    if key.type != LOG:
        raise NoteError(f"the key of {key.name} is a witness's, and only the log's own says what it has")
    if checkpoint.origin != key.name:
        raise NoteError(f"it is of the log {checkpoint.origin}, the key is of {key.name}")
    for signer in (key, *witnesses):
        theirs = [each for each in signatures if (each.name, each.key_id) == (signer.name, signer.id)]
        if not theirs:
            raise NoteError(f"{signer.name} has not signed it with this key")
        if not all(signer.has_signed(text, each) for each in theirs):
            raise NoteError(f"the signature of {signer.name} is false")
    return checkpoint


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bytes(encoded: str) -> bytes:
    """Decoded, from the only way to write it."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise NoteError("this is no base64") from None
    if _base64(raw) != encoded:
        raise NoteError("this is no base64")
    return raw
