"""JSON Schemas of what is published, one for each version of each event, made from the same models that write it.

Invariant: a schema under a name never changes: consumers are built against it. A new shape is a new version with a
name of its own; `tests/contract/golden_schemas.json` holds every one that was ever shipped.
"""

from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import GenerateJsonSchema

from domain.conversation import ConversationEvent
from domain.events import EVENTS, UNPUBLISHED, Event, FinalizationCause, Priority, Slug, Status

STATE_TYPE = "conversation-state.v1"
"""The name of a conversation's state as it is published; a shape of its own, versioned as events are."""
CONVERSATION_EVENTS: tuple[type[Event], ...] = get_args(ConversationEvent)
"""Those that go to Kafka."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


class ConversationState(BaseModel):
    """How a conversation stands after its last event; times are those at which things happened."""

    model_config = ConfigDict(extra="forbid")

    workspace_id: UUID
    id: UUID
    protocol: str
    channel: Slug
    status: Status
    sector_id: UUID | None
    agent_id: UUID | None
    bot: Slug | None
    contact_id: UUID
    priority: Priority
    labels: list[Slug]
    opened_at: datetime
    opened_by: Annotated[str, Field(description="actors are kind:id")]
    last_activity_at: datetime
    finalized_at: datetime | None
    finalized_from: Literal["inbox", "listing", "automatically"] | None
    finalized_by: str | None
    finalized_cause: FinalizationCause | None
    outcome: str | None
    episode: Annotated[int, Field(ge=1, description="1: opened; from 2 on: reopened")]
    episode_started_at: datetime
    waiting_since: Annotated[datetime | None, Field(description="set while it is pending")]
    waiting_seconds: Annotated[float, Field(description="time spent pending in this episode, up to waiting_since")]
    first_response_seconds: Annotated[float | None, Field(description="until an agent first wrote, in this episode")]
    resolution_seconds: Annotated[float | None, Field(description="until it was finalized, in this episode")]
    unanswered_since: Annotated[datetime | None, Field(description="the first message received that has no answer")]
    unread: Annotated[int, Field(description="messages received since an agent last acted")]
    sectors: Annotated[list[UUID], Field(description="ever")]
    agents: Annotated[list[UUID], Field(description="ever")]
    bots: Annotated[list[Slug], Field(description="ever")]
    participants: Annotated[list[str], Field(description="whoever wrote, as kind:id")]
    transfers: int
    reopenings: int
    messages_received: int
    messages_sent: int
    notes: int
    version: Annotated[int, Field(ge=1, description="of its last event; skip what you have already")]
    position: Annotated[int, Field(ge=1, description="in the log, of its last event")]


class _AsWritten(GenerateJsonSchema):
    """Every field is always written, also one that has its default value."""

    def field_is_required(self, field: Any, total: bool) -> bool:  # noqa: ARG002, FBT001  # as pydantic calls it
        """Yes."""
        return True


@cache
def _made() -> Mapping[str, Schema]:
    schemas = {topic: _published(cls) for topic, cls in EVENTS.items()}
    return schemas | {
        STATE_TYPE: ConversationState.model_json_schema(mode="serialization", schema_generator=_AsWritten)
    }


def schemas() -> dict[str, Schema]:
    """The schema of every event, and of a conversation's state, by its name; the caller may change it."""
    return deepcopy(dict(_made()))


def _published(cls: type[Event]) -> Schema:
    """Of an event as it leaves the log: without what stays there."""
    schema = cls.model_json_schema(mode="serialization", schema_generator=_AsWritten)
    schema["properties"] = {
        name: field for name, field in schema.get("properties", {}).items() if name not in UNPUBLISHED
    }
    schema["required"] = [name for name in schema.get("required", ()) if name not in UNPUBLISHED]
    definitions = schema.pop("$defs", {})
    used = _used(schema, definitions, set())
    if used:
        schema["$defs"] = {name: definitions[name] for name in sorted(used)}
    return schema


def _used(node: Any, definitions: Mapping[str, Schema], seen: set[str]) -> set[str]:
    """The definitions that ``node`` leads to."""
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            name = reference.rsplit("/", 1)[1]
            if name not in seen:
                seen.add(name)
                _used(definitions[name], definitions, seen)
        for value in node.values():
            _used(value, definitions, seen)
    elif isinstance(node, list):
        for value in node:
            _used(value, definitions, seen)
    return seen


def document(name: str, identifier: str) -> Schema | None:
    """The schema called ``name`` as a document of its own, known by the URI ``identifier``; None: there is none."""
    schema = _made().get(name)
    return None if schema is None else {"$schema": DIALECT, "$id": identifier} | deepcopy(schema)
