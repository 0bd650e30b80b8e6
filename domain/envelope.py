"""What surrounds an event once it is in the log: where it stands, who caused it, when and through what.

Invariant: `version` is gapless within a stream, `position` is gapless over the whole log, both start at 1.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from domain.events import Actor, Event, Surface

SCHEMA_VERSION = 1
"""Version of the envelope's own shape (an event's shape has its version in its topic)."""


class StreamType(StrEnum):
    """What kind of aggregate a stream belongs to."""

    CONVERSATION = "conversation"
    CONTACT = "contact"
    WORKSPACE = "workspace"
    SECTOR = "sector"
    AGENT = "agent"
    ROLE = "role"
    TOKEN = "token"  # noqa: S105  # the word, not a secret
    IDENTITY = "identity"
    ATTRIBUTE = "attribute"
    VIEW = "view"


@dataclass(frozen=True, slots=True)
class Stream:
    """One aggregate's events: its workspace, kind and id. Ids are unique per workspace, not across."""

    workspace_id: UUID
    type: StreamType
    id: UUID

    def __hash__(self) -> int:
        return hash(self.id)  # ids hardly ever repeat across workspaces, and this is asked for very often


@dataclass(frozen=True, slots=True)
class Metadata:
    """Who caused a change and how it came in; the same for all events of one command."""

    actor: Actor
    surface: Surface
    occurred_at: datetime
    """When it happened in the world, with time zone; in the past for an import."""
    request_id: UUID
    correlation_id: UUID
    causation_id: str | None = None


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event as the log holds it."""

    position: int
    stream: Stream
    version: int
    event: Event
    metadata: Metadata
    recorded_at: datetime
    erased: bool = False
    """What it said of a contact was asked for and cannot be read any more."""

    @property
    def id(self) -> str:
        """The event's identity for consumers: its stream and version, which never change."""
        return f"{self.stream.id}:{self.version}"
