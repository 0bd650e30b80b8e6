"""The master key: what the keys of contacts are wrapped with, so that whoever has only the database has none of them.

Invariant: a wrapped key opens only for the contact whom it was wrapped for, and only with the master key it names.
"""

import base64
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12


class MasterKeyError(Exception):
    """There is no master key of that name, or it is not what the key was wrapped with."""


class MasterKeys(Protocol):
    """The port: a key management service has these two as well."""

    current: str
    """The name of the key that wraps from now on."""

    def wrap(self, key: bytes, owner: bytes) -> bytes:
        """``key``, wrapped for ``owner`` with the current master key."""
        ...

    def unwrap(self, name: str, wrapped: bytes, owner: bytes) -> bytes:
        """The key that was wrapped for ``owner`` with the master key ``name``.

        Raises `MasterKeyError`.
        """
        ...


class LocalMasterKeys:
    """Master keys in this process's memory, from a file or the environment; the first is current."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = {sha256(b"conversas master key\n" + key).hexdigest()[:16]: AESGCM(key) for key in keys}
        self.current = next(iter(self._keys))

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

    def wrap(self, key: bytes, owner: bytes) -> bytes:
        """``key``, wrapped for ``owner`` with the current master key."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._keys[self.current].encrypt(nonce, key, owner)

    def unwrap(self, name: str, wrapped: bytes, owner: bytes) -> bytes:
        """The key that was wrapped for ``owner`` with the master key ``name``."""
        if name not in self._keys:
            raise MasterKeyError(f"a contact's key is wrapped with the master key {name}, which was not given")
        try:
            return self._keys[name].decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], owner)
        except InvalidTag:
            raise MasterKeyError("a contact's key does not open: it was altered, or is another contact's") from None


class _NoMasterKeys:
    current = "none"

    def wrap(self, key: bytes, owner: bytes) -> bytes:  # noqa: ARG002  # as the port says
        raise MasterKeyError("this needs the master key")

    def unwrap(self, name: str, wrapped: bytes, owner: bytes) -> bytes:  # noqa: ARG002  # as the port says
        raise MasterKeyError("this needs the master key")


NO_MASTER_KEYS: MasterKeys = _NoMasterKeys()
"""For who only reads the ledger and destroys keys."""


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
