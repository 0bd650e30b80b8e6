"""Bundles: the history of a workspace, or of one conversation of it, in one file that proves itself.

A bundle is lines of JSON. The first names what it is of and holds the checkpoint; then comes one line per leaf of the
tree, in order: the event's envelope, byte for byte what is hashed, or, for what the reader may not see, tag and digest
only. Because every leaf is there, the root, and that of every earlier checkpoint, follows from the file itself.

Invariant: a bundle whose every byte is not covered by the checkpoint's signature is refused.
"""

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO
from uuid import UUID

import psycopg

from adapters.checkpoints import (
    Checkpoint,
    NoteError,
    SigningKey,
    VerifierKey,
    open_checkpoint,
    origin_for,
    parse_note,
    workspace_of,
)
from domain.leaves import LEAF_BYTES, TAG_BYTES, Envelope, digest_of, envelope_of, line_of, origin_of, tag_of
from domain.merkle import Frontier, Span, leaf_hash
from projections.tree import (
    LAST_QUERY,
    SELECTED,
    TILES_QUERY,
    Head,
    Tile,
    coordinates,
    envelope,
    hashes_of,
    head_of,
    tiles_of,
)

FORMAT = "conversas-bundle.v1"
_WINDOW = 20_000
"""Positions of the log that are read at a time."""
_HAS = "select from events where workspace_id = %s and stream_id = %s and position <= %s limit 1"
_MOST_BYTES = 64_000_000
"""Of one line, which is all that is held of a file: a request's body is far smaller."""
_SHOWN = 1_000
"""Leaves from one report of progress to the next."""

Progress = Callable[[int, int], None]


def _silent(_done: int, _total: int) -> None:
    """Nobody wants to know."""


class NotThereError(Exception):
    """There is nothing to make a bundle of, or it is of something else than what was asked for."""


class AlteredError(Exception):
    """The bundle is not what the log held; ``str`` says where and how."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a bundle was found to hold, all of it as the log had it."""

    note: str
    """The checkpoint as the log has signed it."""
    checkpoint: Checkpoint
    stream_id: str | None
    """The conversation (or contact, agent …) that it is of; None: the whole workspace."""
    events: int
    """How many it shows."""
    first_recorded_at: str | None
    last_recorded_at: str | None


# Making


def head(connection: psycopg.Connection[Any], workspace_id: UUID) -> tuple[Head, bytes]:
    """The head of a workspace's tree, and its root."""
    found = head_of(connection.execute(LAST_QUERY, (workspace_id,)).fetchone())
    whole = [Span(0, found.size)]
    rows = connection.execute(TILES_QUERY, (workspace_id, *coordinates(tiles_of(whole)))).fetchall()
    [root] = hashes_of(whole, {Tile(level, number): bytes(hashes) for level, number, hashes in rows})
    return found, root


def take_checkpoint(
    connection: psycopg.Connection[Any], workspace_id: UUID, prefix: str, key: SigningKey
) -> tuple[str, Head]:
    """A signed checkpoint of a workspace's tree as it is, and its head."""
    found, root = head(connection, workspace_id)
    return key.sign(Checkpoint(origin_for(prefix, workspace_id), found.size, root)), found


def write(
    connection: psycopg.Connection[Any],
    out: BinaryIO,
    checkpoint: tuple[str, Head],
    workspace_id: UUID,
    stream_id: UUID | None = None,
    progress: Progress = _silent,
) -> None:
    """Write the bundle of a workspace, or of one stream of it, up to ``checkpoint``.

    It is written from the log, not from the tree: if the two disagree, verifying it says so.
    Raises `NotThereError`, and writes nothing, where the log has nothing of the stream up to ``checkpoint``.
    """
    note, (size, last_position) = checkpoint
    wanted = None if stream_id is None else str(stream_id)
    values = workspace_id, stream_id, last_position
    if wanted is not None and connection.execute(_HAS, values).fetchone() is None:
        raise NotThereError(f"the log has nothing of {stream_id} among the workspace's first {size} events")
    out.write(_header(note, wanted) + b"\n")
    origins: dict[str, bytes] = {}
    for index, each in enumerate(_envelopes(connection, workspace_id, last_position)):
        line = line_of(each)
        if wanted is not None and each.stream_id != wanted:
            if each.version == 1:
                origins[each.stream_id] = origin_of(line)
            # One that has no beginning shows itself: nobody's bundle will verify.
            line = _hidden(tag_of(origins.get(each.stream_id, b""), index) + digest_of(line))
        out.write(line + b"\n")
        if index % _SHOWN == 0:
            progress(index, size)
    progress(size, size)


def _envelopes(connection: psycopg.Connection[Any], workspace_id: UUID, last: int) -> Iterator[Envelope]:
    query = f"select {SELECTED} from events where position > %s and position <= %s and workspace_id = %s order by 1"
    for after in range(0, last, _WINDOW):
        values = after, min(after + _WINDOW, last), workspace_id
        yield from map(envelope, connection.execute(query, values, prepare=True, binary=True))


def _header(note: str, stream_id: str | None) -> bytes:
    header = {"format": FORMAT, "stream_id": stream_id, "checkpoint": note}
    return json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()


def _hidden(leaf: bytes) -> bytes:
    """A leaf of which nothing is shown; 48 bytes are 64 characters, each of which counts."""
    return b'"' + base64.b64encode(leaf) + b'"'


# Verifying


def verify(
    file: BinaryIO,
    key: VerifierKey,
    *,
    since: str | None = None,
    stream_id: str | None = None,
    progress: Progress = _silent,
) -> Verified:
    """Check a bundle by nothing but the log's public ``key``.

    ``since`` is an earlier checkpoint, which the log must still begin with; ``stream_id`` what the bundle must be of.
    Raises `AlteredError`; `NotThereError` where it is of something else; and `NoteError` where ``since`` is no
    checkpoint of this log.
    """
    lines = _lines(file)
    note, of = _read_header(next(lines, b""))
    if stream_id is not None and of != stream_id:
        raise NotThereError(f"this is a bundle of {of or 'a whole workspace'}, not of {stream_id}")
    checkpoint = _open(note, key)
    earlier = None if since is None else open_checkpoint(since, key)
    if earlier is not None and earlier.size > checkpoint.size:
        raise AlteredError(
            f"the log was rewound, or this is older than the checkpoint given as earlier: that one has {earlier.size}"
            f" events, this {checkpoint.size}"
        )
    reader = _Whole(checkpoint) if of is None else _OneStream(checkpoint, of)
    tree = Frontier()
    for number, line in enumerate(chain([b""], lines)):
        if number:
            if number > checkpoint.size:
                raise AlteredError(f"there are more lines than the checkpoint's {checkpoint.size} events")
            tree.append(_take(reader, number - 1, line))
        if earlier is not None and tree.size == earlier.size and tree.root() != earlier.root:
            raise AlteredError(f"the log was rewritten: its first {earlier.size} events are not those it had")
        if number % _SHOWN == 0:
            progress(number, checkpoint.size)
    if tree.size < checkpoint.size:
        raise AlteredError(f"of the checkpoint's {checkpoint.size} events only {tree.size} are here")
    if tree.root() != checkpoint.root:
        raise AlteredError("the events are not those that the checkpoint was signed for")
    reader.end()
    progress(checkpoint.size, checkpoint.size)
    return Verified(note, checkpoint, of, reader.events, reader.first_recorded_at, reader.last_recorded_at)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(_MOST_BYTES):
        if line[-1:] != b"\n":
            raise AlteredError("a line breaks off: the file is cut short")
        yield line[:-1]


def _read_header(line: bytes) -> tuple[str, str | None]:
    try:
        header = json.loads(line)
        note, of = header["checkpoint"], header["stream_id"]
        if isinstance(note, str) and (of is None or isinstance(of, str)) and _header(note, of) == line:
            return note, of
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise AlteredError(f"its first line is not that of a {FORMAT}")


def _open(note: str, key: VerifierKey) -> Checkpoint:
    try:
        checkpoint = open_checkpoint(note, key)
        _, signatures = parse_note(note)
    except NoteError as error:
        raise AlteredError(f"the checkpoint cannot be trusted: {error}") from None
    if len(signatures) > 1:
        raise AlteredError("the checkpoint carries signatures that the key does not cover")
    return checkpoint


def _take(reader: "_Reader", index: int, line: bytes) -> bytes:
    """The hash of the leaf that ``line`` is, after ``reader`` has looked at it."""
    try:
        if line[:1] == b'"':
            leaf = base64.b64decode(line[1:-1], validate=True)
            if len(leaf) != LEAF_BYTES or _hidden(leaf) != line:
                raise AlteredError(f"line {index + 2} is neither an event nor a leaf")
            reader.hidden(index, leaf[:TAG_BYTES])
            return leaf_hash(leaf)
        origin = reader.shown(envelope_of(line), line)
    except (ValueError, TypeError, RecursionError):
        raise AlteredError(f"line {index + 2} is neither an event nor a leaf") from None
    return leaf_hash(tag_of(origin, index) + digest_of(line))


class _Reader(ABC):
    """What must be true of the events beyond their hashes: gapless, in order, of the one workspace."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._workspace_id = workspace_of(checkpoint.origin)
        self._position = 0
        self._streams: dict[str, tuple[int, bytes]] = {}
        """By stream: its last version, and its origin."""
        self.events = 0
        self.first_recorded_at: str | None = None
        self.last_recorded_at: str | None = None

    def shown(self, found: Envelope, line: bytes) -> bytes:
        """Take the next event that is shown; its stream's origin."""
        version, origin = self._streams.get(found.stream_id) or (0, origin_of(line))
        if found.workspace_id != self._workspace_id:
            raise AlteredError(f"the event at position {found.position} is of another workspace")
        if found.position <= self._position:
            raise AlteredError(f"the event at position {found.position} is out of order")
        if found.version != version + 1:
            raise AlteredError(
                f"version {version + 1} of {found.stream_type} {found.stream_id} is missing:"
                f" after version {version} comes {found.version}"
            )
        self._streams[found.stream_id] = found.version, origin
        self._position = found.position
        self.events += 1
        self.first_recorded_at = self.first_recorded_at or found.recorded_at
        self.last_recorded_at = found.recorded_at
        return origin

    @abstractmethod
    def hidden(self, index: int, tag: bytes) -> None:
        """Take a leaf that is not shown."""

    def end(self) -> None:  # noqa: B027  # of a whole workspace nothing is left to check
        """There is no more."""


class _Whole(_Reader):
    """Of a whole workspace: nothing may be hidden."""

    def hidden(self, index: int, tag: bytes) -> None:
        del tag
        raise AlteredError(f"line {index + 2} hides an event, and this should be the whole workspace")


class _OneStream(_Reader):
    """Of one stream: all else is hidden, and nothing hidden may carry the stream's tag."""

    def __init__(self, checkpoint: Checkpoint, stream_id: str) -> None:
        super().__init__(checkpoint)
        self._stream_id = stream_id
        self._origin: bytes | None = None
        self._hidden_before = bytearray()
        """Tags, one after another, of the leaves before the first event."""

    def shown(self, found: Envelope, line: bytes) -> bytes:
        if found.stream_id != self._stream_id:
            raise AlteredError(
                f"this is a bundle of {self._stream_id}, and the event at position {found.position} is of"
                f" {found.stream_id}"
            )
        self._origin = super().shown(found, line)
        return self._origin

    def hidden(self, index: int, tag: bytes) -> None:
        if self._origin is None:
            self._hidden_before += tag
        elif tag_of(self._origin, index) == tag:
            raise AlteredError(f"line {index + 2} hides an event of {self._stream_id}")

    def end(self) -> None:
        if self._origin is None:
            raise AlteredError(f"no event of {self._stream_id} is shown")
        for index in range(len(self._hidden_before) // TAG_BYTES):
            if self._hidden_before[index * TAG_BYTES : (index + 1) * TAG_BYTES] == tag_of(self._origin, index):
                raise AlteredError(f"line {index + 2} hides an event of {self._stream_id}")
