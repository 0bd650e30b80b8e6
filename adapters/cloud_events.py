"""Events as Kafka records: CloudEvents 1.0, Kafka protocol binding, binary content mode.

Invariant: a record carries no personal data in clear: ids and the facts around them. What the key of a state names is
one conversation only, for compaction knows the key alone; an id may be in several workspaces.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

from kafka.partitioner.default import murmur2

from adapters.schemas import STATE_TYPE
from domain.envelope import RecordedEvent
from domain.events import EVENTS, UNPUBLISHED

CACHED_CONVERSATIONS = 65_536
TYPE_HEADERS = {topic: ("ce_type", topic.encode()) for topic in EVENTS}
SPEC_VERSION = ("ce_specversion", b"1.0")
CONTENT_TYPE = ("content-type", b"application/json")

Header = tuple[str, bytes]
Message = tuple[bytes, int, bytes | None, list[Header], int]
"""A record for Kafka: key, partition, value (None: a tombstone), headers, time in milliseconds."""


@dataclass(frozen=True, slots=True)
class _Route:
    """What is the same for all events of a conversation."""

    key: bytes
    state_key: bytes
    partition: int
    headers: tuple[Header, Header, Header]
    state_headers: tuple[Header, Header, Header]


def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's own clients would put ``key``."""
    return int(murmur2(key) & 0x7FFF_FFFF) % partitions


def rfc3339(moment: datetime) -> bytes:
    """``moment`` in UTC, to the microsecond."""
    text = moment.isoformat(timespec="microseconds")
    if not text.endswith("+00:00"):  # what comes from the log is in UTC already
        text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text[:-6].encode() + b"Z"


class MessageMaker:
    """Makes Kafka records of events: CloudEvents 1.0, Kafka binding, binary mode, without personal data."""

    def __init__(self, partitions: int, schema_base: str, schema_suffix: str = "") -> None:
        types = (*EVENTS, STATE_TYPE)
        self._schema = {type_: ("ce_dataschema", f"{schema_base}{type_}{schema_suffix}".encode()) for type_ in types}

        def route(workspace_id: UUID, conversation_id: UUID) -> _Route:
            key = str(conversation_id).encode()
            state_key = f"{workspace_id}/{conversation_id}".encode()
            source, subject = ("ce_source", f"/workspaces/{workspace_id}".encode()), ("ce_subject", key)
            return _Route(
                key,
                state_key,
                partition_of(key, partitions),  # of states too: where a conversation's events are
                (source, subject, ("ce_partitionkey", key)),
                (source, subject, ("ce_partitionkey", state_key)),
            )

        self._route = lru_cache(CACHED_CONVERSATIONS)(route)

    def message(self, recorded: RecordedEvent) -> Message:
        """The record for one event of a conversation."""
        stream, metadata, event = recorded.stream, recorded.metadata, recorded.event
        topic = event.TOPIC
        route = self._route(stream.workspace_id, stream.id)
        headers = [
            SPEC_VERSION,
            ("ce_id", recorded.id.encode()),
            TYPE_HEADERS[topic],
            *route.headers,
            ("ce_time", rfc3339(recorded.recorded_at)),
            self._schema[topic],
            ("ce_sequence", b"%d" % recorded.version),
            ("ce_position", b"%d" % recorded.position),
            ("ce_actor", f"{metadata.actor.kind}:{metadata.actor.id}".encode()),
            ("ce_surface", metadata.surface.encode()),
            ("ce_occurredat", rfc3339(metadata.occurred_at)),
            ("ce_requestid", str(metadata.request_id).encode()),
            ("ce_correlationid", str(metadata.correlation_id).encode()),
            CONTENT_TYPE,
        ]
        if metadata.causation_id is not None:
            headers.append(("ce_causationid", metadata.causation_id.encode()))
        value = event.model_dump_json(exclude=UNPUBLISHED).encode()
        return route.key, route.partition, value, headers, _milliseconds(recorded)

    def partition(self, recorded: RecordedEvent) -> int:
        """Where the conversation's records go."""
        return self._route(recorded.stream.workspace_id, recorded.stream.id).partition

    def state(self, last: RecordedEvent, value: bytes) -> Message:
        """The record of the state ``value`` that a conversation has after its event ``last``."""
        route = self._route(last.stream.workspace_id, last.stream.id)
        headers = [
            SPEC_VERSION,
            ("ce_id", f"{last.id}:state".encode()),
            ("ce_type", STATE_TYPE.encode()),
            *route.state_headers,
            ("ce_time", rfc3339(last.recorded_at)),
            self._schema[STATE_TYPE],
            ("ce_sequence", b"%d" % last.version),
            ("ce_position", b"%d" % last.position),
            CONTENT_TYPE,
        ]
        return route.state_key, route.partition, value, headers, _milliseconds(last)

    def tombstone(self, erasure: RecordedEvent, conversation_id: UUID) -> Message:
        """The record by which consumers forget a conversation's state, because its contact was erased."""
        route = self._route(erasure.stream.workspace_id, conversation_id)
        headers = [
            SPEC_VERSION,
            ("ce_id", f"{erasure.id}:{conversation_id}".encode()),
            TYPE_HEADERS[erasure.event.TOPIC],
            *route.state_headers,
            ("ce_time", rfc3339(erasure.recorded_at)),
            ("ce_position", b"%d" % erasure.position),
        ]
        return route.state_key, route.partition, None, headers, _milliseconds(erasure)


def _milliseconds(recorded: RecordedEvent) -> int:
    return int(recorded.recorded_at.timestamp() * 1_000)
