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
from typing import NamedTuple

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


_NUMBERS = [Envelope._fields.index(name) for name in ("position", "version", "schema_version")]


def line_of(envelope: Envelope) -> bytes:
    """The envelope as one line of JSON, without the line's end: the canonical form, which is what is hashed.

    Ids and times need no quoting, and for whatever else stands in their place there is no line: see `envelope_of`.
    """
    e = envelope
    try:
        data = f'"data":{quoted(e.data.decode())}'
    except UnicodeDecodeError:
        data = f'"data_base64":"{base64.b64encode(e.data).decode()}"'
    causation_id = "null" if e.causation_id is None else quoted(e.causation_id)
    return (
        f'{{"position":{e.position},"workspace_id":"{e.workspace_id}","stream_type":{quoted(e.stream_type)},'
        f'"stream_id":"{e.stream_id}","version":{e.version},"topic":{quoted(e.topic)},'
        f'"actor_kind":{quoted(e.actor_kind)},"actor_id":{quoted(e.actor_id)},"surface":{quoted(e.surface)},'
        f'"occurred_at":"{e.occurred_at}","recorded_at":"{e.recorded_at}",'
        f'"request_id":"{e.request_id}","correlation_id":"{e.correlation_id}",'
        f'"causation_id":{causation_id},"schema_version":{e.schema_version},{data}}}'
    ).encode()


def envelope_of(line: bytes) -> Envelope:
    """The envelope that ``line`` is the canonical form of.

    Raises `ValueError` for anything else.
    """
    found = json.loads(line)
    try:
        if "data_base64" in found:
            found["data"] = base64.b64decode(found.pop("data_base64"), validate=True)
        else:
            found["data"] = found["data"].encode()
        envelope = Envelope(**found)
        # What is no text cannot be quoted, and what is no whole number is told here.
        if line_of(envelope) == line and all(type(envelope[place]) is int for place in _NUMBERS):
            return envelope
    except (TypeError, KeyError, AttributeError):
        pass
    raise ValueError("not an envelope in its canonical form")


def origin_of(first_line: bytes) -> bytes:
    """What the tags of a stream derive from: a digest of the line of its version 1, other than its `digest_of`."""
    return sha256(b"conversas origin v1\n" + first_line).digest()


def tag_of(origin: bytes, index: int) -> bytes:
    """What marks leaf ``index`` as one of the stream with ``origin``."""
    return sha256(b"conversas tag v1\n" + origin + index.to_bytes(8)).digest()[:TAG_BYTES]


def digest_of(line: bytes) -> bytes:
    """What a leaf holds of an event's line."""
    return sha256(line).digest()
