"""A witness: somebody else who remembers the last checkpoint of each log and signs only what goes on from there.

Invariant: of two checkpoints that one witness has signed, the later log begins with the whole earlier one. What is
signed was remembered before, durably.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from adapters.bundle import verify
from adapters.checkpoints import Checkpoint, SigningKey, VerifierKey, open_checkpoint
from domain.merkle import is_consistent


class RefusedError(Exception):
    """The log was rewound or rewritten, or could not prove that it was not."""


class Witness:
    """Remembers in ``directory``, one file per log, and signs with ``key`` under ``name``; one process at a time."""

    def __init__(self, directory: Path, key: SigningKey, name: str) -> None:
        self._directory = directory
        self._key = key
        self.name = name

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Once no other process is the same witness, and until this is done: it would remember what is older."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def remembered(self, log: VerifierKey) -> str | None:
        """The last checkpoint of ``log`` that this witness has signed; None: it knows nothing of it yet."""
        path = self._path(log)
        return path.read_text() if path.exists() else None

    def cosign(self, note: str, log: VerifierKey, proof: Sequence[bytes], time_seconds: int) -> str:
        """``note`` with our signature; ``proof`` is the consistency proof from what is remembered.

        Raises `RefusedError`, and `NoteError` where the log has not signed.
        """
        new, known = open_checkpoint(note, log), self.remembered(log)
        if known is not None:
            self._check(open_checkpoint(known, log), new, proof)
        return self._sign(note, log, time_seconds)

    def cosign_bundle(
        self, file: BinaryIO, log: VerifierKey, time_seconds: int, progress: Callable[[int, int], None]
    ) -> str:
        """The checkpoint of a bundle with our signature; the bundle itself proves that it goes on from what is known.

        Raises `AlteredError`.
        """
        note = verify(file, log, since=self.remembered(log), progress=progress).note
        return self._sign(note, log, time_seconds)

    def _sign(self, note: str, log: VerifierKey, time_seconds: int) -> str:
        signed = self._key.cosign(note, self.name, time_seconds)
        self._remember(log, note)
        return signed

    def _check(self, old: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> None:
        if new.size < old.size:
            raise RefusedError(f"{new.origin} was rewound: it had {old.size} events, and now has {new.size}")
        if not is_consistent(old.size, old.root, new.size, new.root, proof):
            raise RefusedError(f"{new.origin} was rewritten: it does not begin with the {old.size} events it had")

    def _path(self, log: VerifierKey) -> Path:
        # By the log's name alone: a new key does not make it another log.
        return self._directory / f"{sha256(log.name.encode()).hexdigest()[:32]}.checkpoint"

    def _remember(self, log: VerifierKey, note: str) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(log)
        new = path.with_suffix(f".{os.getpid()}")
        with new.open("w") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        directory = os.open(self._directory, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
