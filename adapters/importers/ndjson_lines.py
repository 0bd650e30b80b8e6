"""What a line of our own import format may say (`docs/IMPORT.md`).

Invariant: a line that is valid here holds only what can be stored.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from domain.events import (
    NO_NUL,
    ActorKind,
    Attachment,
    AttributeValue,
    Email,
    Fact,
    FinalizationCause,
    Line,
    MessageKind,
    Name,
    Phone,
    Priority,
    Slug,
    Surface,
    Text,
)

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)


def _written_as_rfc_3339(value: Any) -> Any:
    if not (isinstance(value, str) and RFC_3339.fullmatch(value)):
        msg = "must be a time as in RFC 3339, such as 2024-05-01T09:30:00Z"
        raise ValueError(msg)
    return value


def _in_utc(value: datetime) -> datetime:
    if value < EARLIEST:
        msg = f"must not lie before {EARLIEST.year}"
        raise ValueError(msg)
    return value.astimezone(UTC)


def _in_one_sentence(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Instead of a reason for each type that the value is not of."""
    try:
        return validate(value)
    except ValidationError as error:
        msg = "must be a text of up to 500 characters, a number (a whole one below 2^53), true, false, null or texts"
        raise ValueError(msg) from error


Id = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]
"""What the source calls something; unique among its kind within the file's source."""
Value = Annotated[AttributeValue, WrapValidator(_in_one_sentence)]
Attachments = Annotated[tuple[Attachment, ...], Field(max_length=50)]


class SourceActor(Fact):
    """Who did it, by the source's id; a bot's, an integration's or the system's name stays as it is."""

    kind: ActorKind = ActorKind.SYSTEM
    id: Annotated[str, Field(min_length=1, max_length=100, pattern=NO_NUL)] = "import"


class ChangeLine(Fact):
    """What every line has."""

    id: Id
    """Names the change: a line with an id that was imported before adds nothing."""
    occurred_at: Annotated[AwareDatetime, BeforeValidator(_written_as_rfc_3339), AfterValidator(_in_utc)]
    actor: SourceActor = SourceActor()


class ConversationLine(ChangeLine):
    """A change of one conversation."""

    conversation: Id


class OpenLine(ConversationLine):
    """It began."""

    type: Literal["open"]
    protocol: Annotated[str, Field(min_length=1, max_length=64, pattern=NO_NUL)]
    channel: Slug
    contact: Id
    sector: Id | None = None
    agent: Id | None = None
    subject: Line | None = None


class MessageReceivedLine(ConversationLine):
    """The contact wrote."""

    type: Literal["message-received"]
    kind: MessageKind = MessageKind.TEXT
    text: Text = ""
    attachments: Attachments = ()


class MessageSentLine(ConversationLine):
    """The actor wrote to the contact."""

    type: Literal["message-sent"]
    kind: MessageKind = MessageKind.TEXT
    text: Text = ""
    attachments: Attachments = ()


class NoteLine(ConversationLine):
    """The actor wrote something that the contact does not see."""

    type: Literal["note"]
    text: Text


class AssumeLine(ConversationLine):
    """An agent took it."""

    type: Literal["assume"]
    agent: Id


class TransferLine(ConversationLine):
    """It was given to a sector, an agent, or an agent within a sector."""

    type: Literal["transfer"]
    sector: Id | None = None
    agent: Id | None = None
    reason: Line = ""


class PendingLine(ConversationLine):
    """It went back to the queue."""

    type: Literal["pending"]
    sector: Id | None = None
    reason: Line = "released"


class HandOffToBotLine(ConversationLine):
    """A bot answered from then on."""

    type: Literal["handoff-to-bot"]
    bot: Slug
    reason: Line = ""


class HandOffFromBotLine(ConversationLine):
    """The bot gave up its turn."""

    type: Literal["handoff-from-bot"]
    sector: Id | None = None
    reason: Line = ""


class FinalizeLine(ConversationLine):
    """A person ended it."""

    type: Literal["finalize"]
    surface: Literal[Surface.INBOX, Surface.LISTING]
    outcome: Line = ""
    comment: Text | None = None


class FinalizeAutomaticallyLine(ConversationLine):
    """It ended without a person doing it."""

    type: Literal["finalize-automatically"]
    cause: FinalizationCause = FinalizationCause.IMPORT


class ReopenLine(ConversationLine):
    """It went on after its end."""

    type: Literal["reopen"]
    agent: Id | None = None
    reason: Line = ""


class LabelAddLine(ConversationLine):
    """A label was put on."""

    type: Literal["label-add"]
    label: Slug


class LabelRemoveLine(ConversationLine):
    """A label was taken off."""

    type: Literal["label-remove"]
    label: Slug


class PriorityLine(ConversationLine):
    """It became more or less urgent."""

    type: Literal["priority"]
    priority: Priority


class AttributeLine(ConversationLine):
    """A custom attribute got a value; null takes it away."""

    type: Literal["attribute"]
    key: Slug
    value: Value


class ContactLine(ChangeLine):
    """A person outside became known; known already: their details were changed to these."""

    type: Literal["contact"]
    contact: Id
    name: Name | None = None
    phones: Annotated[tuple[Phone, ...], Field(max_length=20)] = ()
    emails: Annotated[tuple[Email, ...], Field(max_length=20)] = ()
    attributes: Annotated[dict[Slug, Value], Field(max_length=100, default_factory=dict)]


class SectorLine(ChangeLine):
    """A team was set up; known already: renamed."""

    type: Literal["sector"]
    sector: Id
    name: Name


class AgentLine(ChangeLine):
    """A person inside became known, or joined more sectors."""

    type: Literal["agent"]
    agent: Id
    name: Name
    role: Slug = "agent"
    sectors: Annotated[tuple[Id, ...], Field(max_length=1_000)] = ()


AnyConversationLine = (
    OpenLine
    | MessageReceivedLine
    | MessageSentLine
    | NoteLine
    | AssumeLine
    | TransferLine
    | PendingLine
    | HandOffToBotLine
    | HandOffFromBotLine
    | FinalizeLine
    | FinalizeAutomaticallyLine
    | ReopenLine
    | LabelAddLine
    | LabelRemoveLine
    | PriorityLine
    | AttributeLine
)
AnyLine = AnyConversationLine | ContactLine | SectorLine | AgentLine
LINE: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="type")])
TYPES = (
    *("open", "message-received", "message-sent", "note", "assume", "transfer", "pending", "handoff-to-bot"),
    *("handoff-from-bot", "finalize", "finalize-automatically", "reopen", "label-add", "label-remove", "priority"),
    *("attribute", "contact", "sector", "agent"),
)
