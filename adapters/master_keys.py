"""The master key: what the keys of contacts are wrapped with, so that whoever has only the database has none of them.

Invariant: a wrapped key opens only for the contact whom it was wrapped for, and only with the master key it names.
"""

import base64
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12


class MasterKeyError(Exception):
    """There is no master key of that name, or it is not what the key was wrapped with."""


class MasterKeysAwayError(Exception):
    """The service that has the master keys cannot be used now; that says nothing of any key."""


class Wrapped(NamedTuple):
    """A contact's key, for its owner only."""

    master: str
    """The name of the master key."""
    key: bytes
    owner: bytes


class MasterKeys(Protocol):
    """The port. Many keys are one call, for that may be a request to a service.

    Each raises `MasterKeyError` or `MasterKeysAwayError`.
    """

    def current(self) -> str:
        """The name of the master key that wraps from now on."""
        ...

    def wrap(self, keys: Sequence[tuple[bytes, bytes]]) -> list[Wrapped]:
        """Each key for its owner, given as (owner, key), in this order, under the current master key."""
        ...

    def unwrap(self, wrapped: Sequence[Wrapped]) -> list[bytes]:
        """The keys, in this order: all of them or none."""
        ...


class LocalMasterKeys:
    """Master keys in this process's memory, from a file or the environment; the first is current."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {sha256(b"conversas master key\n" + key).hexdigest()[:16]: AESGCM(key) for key in keys}
        self._current = next(iter(self._keys))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The keys in ``text``, separated by white space or commas, each 32 bytes in base64.

        Raises `MasterKeyError`.
        """
        try:
            keys = [base64.b64decode(part, validate=True) for part in text.replace(",", " ").split()]
        except ValueError:
            keys = []
        if not keys or {len(key) for key in keys} != {KEY_BYTES}:
            raise MasterKeyError("a master key is 32 bytes in base64 ('conversas keys new' makes one)")
        return cls(keys)

    @classmethod
    def read(cls, path: Path, *, make: bool) -> Self:
        """The keys in the file; where there is none and ``make`` says so, a new one that only this user can read.

        Raises `MasterKeyError`.
        """
        try:
            if make:
                path.parent.mkdir(parents=True, exist_ok=True)
                _make(path)
            return cls.parse(path.read_text())
        except OSError as error:
            raise MasterKeyError(f"{path}: {error.strerror}") from None

    def current(self) -> str:
        """The name of the first."""
        return self._current

    def wrap(self, keys: Sequence[tuple[bytes, bytes]]) -> list[Wrapped]:
        """Each key for its owner, under the first master key."""
        nonces = [os.urandom(_NONCE_BYTES) for _ in keys]
        cipher = self._keys[self._current]
        return [
            Wrapped(self._current, nonce + cipher.encrypt(nonce, key, owner), owner)
            for nonce, (owner, key) in zip(nonces, keys, strict=True)
        ]

    def unwrap(self, wrapped: Sequence[Wrapped]) -> list[bytes]:
        """The keys."""
        return [self._unwrap(each) for each in wrapped]

    def _unwrap(self, wrapped: Wrapped) -> bytes:
        if wrapped.master not in self._keys:
            raise not_given(wrapped)
        try:
            return self._keys[wrapped.master].decrypt(
                wrapped.key[:_NONCE_BYTES], wrapped.key[_NONCE_BYTES:], wrapped.owner
            )
        except (InvalidTag, ValueError):  # the latter where it is too short
            raise MasterKeyError(NOT_OPENED) from None


class NoMasterKeys:
    """For who only reads the ledger and destroys keys, or has no older master keys."""

    def current(self) -> str:
        """None has that name."""
        raise MasterKeyError("this needs the master key")

    def wrap(self, keys: Sequence[tuple[bytes, bytes]]) -> list[Wrapped]:
        """None, of none."""
        return [Wrapped(self.current(), key, owner) for owner, key in keys]

    def unwrap(self, wrapped: Sequence[Wrapped]) -> list[bytes]:
        """None, of none."""
        for each in wrapped:
            raise not_given(each)
        return []


NOT_OPENED = "a contact's key does not open: it was altered, or is another contact's"


def not_given(wrapped: Wrapped) -> MasterKeyError:
    """What is raised where ``wrapped`` is wrapped with a master key that nobody here has."""
    return MasterKeyError(f"a contact's key is wrapped with the master key {wrapped.master}, which was not given")


def new_master_key() -> str:
    """A new master key, as text."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _make(path: Path) -> None:
    """Make the file whole or not at all, and only where there is none."""
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    try:
        draft.write_text(new_master_key() + "\n")
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was faster
    finally:
        draft.unlink()
