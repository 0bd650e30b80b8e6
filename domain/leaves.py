"""What the verifiable log holds of an event: its envelope as one line of text, and the leaf that commits to it.

A leaf is a tag of the event's stream and a digest of its line. The tag depends on the leaf's index and on the stream's
first line: whoever knows that line recognises every leaf of the stream, nobody else can tell two streams apart. So a
bundle of one conversation shows of all other leaves only tag and digest, and yet proves that none of them belongs to
the conversation.

Invariant: one event has one line; two events never have the same. The line never changes once the event is stored.
"""

import base64
import json
from hashlib import sha256
from json.encoder import encode_basestring as quoted
from typing import Any, NamedTuple

TAG_BYTES = 16
LEAF_BYTES = TAG_BYTES + 32


class Envelope(NamedTuple):
    """A row of the log, ids as text, times as ISO 8601 in UTC with microseconds."""

    position: int
    workspace_id: str
    stream_type: str
    stream_id: str
    version: int
    topic: str
    actor_kind: str
    actor_id: str
    surface: str
    occurred_at: str
    recorded_at: str
    request_id: str
    correlation_id: str
    causation_id: str | None
    schema_version: int
    data: bytes
    """The event, byte for byte as it is stored."""


_FIELDS = Envelope._fields[:-1]
_NUMBERS = {"position", "version", "schema_version"}


def line_of(envelope: Envelope) -> bytes:
    """The envelope as one line of JSON, without the line's end: the canonical form, which is what is hashed."""
    e = envelope
    try:
        data = f'"data":{quoted(e.data.decode())}'
    except UnicodeDecodeError:
        data = f'"data_base64":"{base64.b64encode(e.data).decode()}"'
    causation_id = "null" if e.causation_id is None else quoted(e.causation_id)
    return (
        f'{{"position":{e.position},"workspace_id":{quoted(e.workspace_id)},"stream_type":{quoted(e.stream_type)},'
        f'"stream_id":{quoted(e.stream_id)},"version":{e.version},"topic":{quoted(e.topic)},'
        f'"actor_kind":{quoted(e.actor_kind)},"actor_id":{quoted(e.actor_id)},"surface":{quoted(e.surface)},'
        f'"occurred_at":{quoted(e.occurred_at)},"recorded_at":{quoted(e.recorded_at)},'
        f'"request_id":{quoted(e.request_id)},"correlation_id":{quoted(e.correlation_id)},'
        f'"causation_id":{causation_id},"schema_version":{e.schema_version},{data}}}'
    ).encode()


def envelope_of(line: bytes) -> Envelope:
    """The envelope that ``line`` is the canonical form of.

    Raises `ValueError` for anything else.
    """
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("not an object")  # noqa: TRY004  # the one error that callers expect
    if "data_base64" in found:
        found["data"] = base64.b64decode(_text(found.pop("data_base64")), validate=True)
    else:
        found["data"] = _text(found.get("data")).encode()
    if set(found) != {*_FIELDS, "data"} or not all(_fits(name, found[name]) for name in _FIELDS):
        raise ValueError("not an envelope")
    envelope = Envelope(**found)
    if line_of(envelope) != line:
        raise ValueError("not in canonical form")
    return envelope


def origin_of(first_line: bytes) -> bytes:
    """What the tags of a stream derive from: a digest of the line of its version 1, other than its `digest_of`."""
    return sha256(b"conversas origin v1\n" + first_line).digest()


def tag_of(origin: bytes, index: int) -> bytes:
    """What marks leaf ``index`` as one of the stream with ``origin``."""
    return sha256(b"conversas tag v1\n" + origin + index.to_bytes(8)).digest()[:TAG_BYTES]


def digest_of(line: bytes) -> bytes:
    """What a leaf holds of an event's line."""
    return sha256(line).digest()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")  # noqa: TRY004  # the one error that callers expect
    return value


def _fits(name: str, value: Any) -> bool:
    if name in _NUMBERS:
        return type(value) is int
    return isinstance(value, str) or (value is None and name == "causation_id")
