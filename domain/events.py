"""What has happened: every fact that the log may hold, one class each.

A fact holds nothing but the fact: its stream, version, position, actor and times belong to the envelope
(`domain.envelope`). What could name or describe a person stands in the event's ``personal`` part and nowhere else, so
that it can be encrypted under the contact's key and left out of what is published.

Invariant: a class here is never edited once shipped. A new shape is a new class with a new ``TOPIC`` and an upcaster;
`tests/contract/golden_events.json` holds a sample of every topic ever shipped.
"""

from enum import StrEnum
from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, HttpUrl, UrlConstraints

from domain.permissions import Permission, Scope


class Fact(BaseModel):
    """An immutable value; unknown fields are an error, never dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


UNPUBLISHED = {"personal", "secret_sha256"}
"""Fields of events that stay in the log: neither histories nor topics show them."""


class Event(Fact):
    """Something that happened; ``TOPIC`` is the name under which it is stored and published for ever."""

    TOPIC: ClassVar[str]


# Values


class Status(StrEnum):
    """Where a conversation stands; who holds it is a second axis (`Owner`)."""

    WITH_BOT = "with_bot"
    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    FINALIZED = "finalized"


class ActorKind(StrEnum):
    """What kind of participant caused a change."""

    AGENT = "agent"
    BOT = "bot"
    CONTACT = "contact"
    SYSTEM = "system"
    INTEGRATION = "integration"


class Surface(StrEnum):
    """Where the actor did it."""

    INBOX = "inbox"
    LISTING = "listing"
    BULK = "bulk"
    BOT = "bot"
    CHANNEL = "channel"
    AUTOMATION = "automation"
    API = "api"
    IMPORT = "import"


class Priority(StrEnum):
    """How urgent a conversation is, lowest first."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"
    URGENT = "urgent"


class Presence(StrEnum):
    """Whether an agent can be reached right now."""

    ONLINE = "online"
    AWAY = "away"
    OFFLINE = "offline"


class FinalizationCause(StrEnum):
    """Why a conversation was finalized without a person doing it."""

    BOT = "bot"
    INACTIVITY = "inactivity"
    AUTOMATION = "automation"
    CONTACT = "contact"
    IMPORT = "import"


class AttributeTarget(StrEnum):
    """What a custom attribute is an attribute of."""

    CONTACT = "contact"
    CONVERSATION = "conversation"


class AttributeType(StrEnum):
    """What values a defined attribute takes."""

    TEXT = "text"
    NUMBER = "number"
    LINK = "link"
    LIST = "list"
    DATE = "date"
    CHECKBOX = "checkbox"


class MessageKind(StrEnum):
    """What a message consists of."""

    TEXT = "text"
    IMAGE = "image"
    AUDIO = "audio"
    VIDEO = "video"
    DOCUMENT = "document"
    LOCATION = "location"
    CONTACT_CARD = "contact_card"
    TEMPLATE = "template"
    OTHER = "other"


Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", examples=["whatsapp"])]
"""A short lower-case name: channels, bots, labels, roles, attribute keys (1 to 64 characters)."""

NO_NUL = r"^[^\x00]*$"  # PostgreSQL's text cannot hold U+0000
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]
Line = Annotated[str, Field(max_length=500, pattern=NO_NUL)]
"""A short text about the work, not about a person: a reason, an outcome."""
Text = Annotated[str, Field(max_length=65_536, pattern=NO_NUL)]
Phone = Annotated[str, Field(pattern=r"^\+?[0-9][0-9 ().-]{2,31}$", examples=["+55 11 98765-4321"])]
Email = Annotated[str, Field(min_length=3, max_length=254, pattern=r"^[^@\s\x00]+@[^@\s\x00]+$")]
Integer = Annotated[int, Field(strict=True, ge=-(2**53) + 1, le=2**53 - 1)]
"""A whole number that every JSON reader gets right (RFC 7493)."""


def _not_whole(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole:
        raise ValueError("a whole number must lie between -(2^53) + 1 and 2^53 - 1")
    return value


Real = Annotated[float, Field(strict=True, allow_inf_nan=False), BeforeValidator(_not_whole)]
"""A number with a fraction; a whole one never silently becomes one."""
Flag = Annotated[bool, Field(strict=True)]
AttributeValue = Line | Integer | Real | Flag | Annotated[list[Line], Field(max_length=100)] | None
Url = Annotated[HttpUrl, UrlConstraints(max_length=2_000)]


Issuer = Annotated[str, Field(pattern=r"^https?://[!-~]{1,300}$", examples=["https://login.example.com/realms/acme"])]
Subject = Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,253}[!-~])?$", examples=["248289761001"])]
"""How an OpenID Connect issuer names somebody: at most 255 ASCII characters, told apart by case."""


class Actor(Fact):
    """Who caused a change: an agent's or contact's id, a bot's or integration's name, or the system itself."""

    kind: ActorKind
    id: Annotated[str, Field(min_length=1, max_length=100, pattern=NO_NUL)]


class Owner(Fact):
    """Who answers for a conversation: a bot, an agent, or (neither) the queue of a sector."""

    sector_id: UUID | None = None
    agent_id: UUID | None = None
    bot: Slug | None = None


# Conversations


class OpenedPersonal(Fact):
    """What the contact wrote over the conversation."""

    subject: Line | None = None


class ConversationOpened(Event):
    """A contact and the company started talking."""

    TOPIC = "conversation-opened.v1"
    protocol: Annotated[str, Field(min_length=1, max_length=64, pattern=NO_NUL)]
    channel: Slug
    contact_id: UUID
    sector_id: UUID | None = None
    agent_id: UUID | None = None
    personal: OpenedPersonal = OpenedPersonal()


class ConversationHandedOffToBot(Event):
    """A bot now answers."""

    TOPIC = "conversation-handed-off-to-bot.v1"
    bot: Slug
    reason: Line


class ConversationHandedOffByBot(Event):
    """The bot gave up its turn (transbordo): a person must pick it up."""

    TOPIC = "conversation-handed-off-by-bot.v1"
    bot: Slug
    sector_id: UUID | None
    reason: Line


class ConversationMarkedPending(Event):
    """Its agent let it go back to the queue."""

    TOPIC = "conversation-marked-pending.v1"
    sector_id: UUID | None
    reason: Line


class ConversationAssumed(Event):
    """An agent took it."""

    TOPIC = "conversation-assumed.v1"
    agent_id: UUID


class ConversationTransferred(Event):
    """Another sector or agent now answers for the conversation."""

    TOPIC = "conversation-transferred.v1"
    source: Owner
    target: Owner
    reason: Line
    target_presence: Presence | None
    """The agent's presence at that moment; None for a queue, or where it is not known."""


class FinalizedPersonal(Fact):
    """What the person who finalized it wrote about it."""

    comment: Text | None = None


class ConversationFinalizedFromInbox(Event):
    """Somebody ended it in the inbox, where it was being answered."""

    TOPIC = "conversation-finalized-from-inbox.v1"
    outcome: Line
    contact_id: UUID
    personal: FinalizedPersonal = FinalizedPersonal()


class ConversationFinalizedFromListing(Event):
    """Somebody ended it from the listing, without being in it."""

    TOPIC = "conversation-finalized-from-listing.v1"
    outcome: Line
    contact_id: UUID
    personal: FinalizedPersonal = FinalizedPersonal()


class ConversationFinalizedAutomatically(Event):
    """It ended without a person doing it."""

    TOPIC = "conversation-finalized-automatically.v1"
    cause: FinalizationCause


class ConversationReopened(Event):
    """A finalized conversation goes on: a new episode."""

    TOPIC = "conversation-reopened.v1"
    episode: Annotated[int, Field(ge=2)]
    agent_id: UUID | None = None
    """The agent who reopened it for themself; None: it is pending."""
    sector_id: UUID | None = None
    reason: Line


class Attachment(Fact):
    """A file that a message points to; its bytes live elsewhere."""

    name: Name
    media_type: Annotated[str, Field(pattern=r"^[\w.+-]+/[\w.+-]+$", max_length=127)]
    size_bytes: Annotated[Integer, Field(ge=0)]
    url: Url
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class MessagePersonal(Fact):
    """What a message says."""

    text: Text = ""
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=50)] = ()


class MessageReceived(Event):
    """The contact wrote."""

    TOPIC = "message-received.v1"
    message_id: UUID
    author: Actor
    kind: MessageKind
    contact_id: UUID
    personal: MessagePersonal


class MessageSent(Event):
    """An agent or a bot wrote to the contact."""

    TOPIC = "message-sent.v1"
    message_id: UUID
    author: Actor
    kind: MessageKind
    contact_id: UUID
    personal: MessagePersonal


class NotePersonal(Fact):
    """What a note says."""

    text: Text


class NoteAdded(Event):
    """Somebody inside wrote something that the contact does not see."""

    TOPIC = "note-added.v1"
    message_id: UUID
    author: Actor
    contact_id: UUID
    personal: NotePersonal


class LabelAdded(Event):
    """A label was put on; ``before`` and ``after`` are all labels, sorted."""

    TOPIC = "label-added.v1"
    label: Slug
    before: tuple[Slug, ...]
    after: tuple[Slug, ...]


class LabelRemoved(Event):
    """A label was taken off; ``before`` and ``after`` are all labels, sorted."""

    TOPIC = "label-removed.v1"
    label: Slug
    before: tuple[Slug, ...]
    after: tuple[Slug, ...]


class PriorityChanged(Event):
    """It became more or less urgent."""

    TOPIC = "priority-changed.v1"
    before: Priority
    after: Priority


class AttributePersonal(Fact):
    """The attribute's value before and after; None: not set."""

    before: AttributeValue
    after: AttributeValue


class AttributeSet(Event):
    """A custom attribute of the conversation got another value."""

    TOPIC = "attribute-set.v1"
    key: Slug
    contact_id: UUID
    personal: AttributePersonal


class ContactReassigned(Event):
    """The conversation turned out to be with another contact."""

    TOPIC = "contact-reassigned.v1"
    before: UUID
    after: UUID


# Contacts


class ContactDetails(Fact):
    """Everything known of a person outside."""

    name: Name | None = None
    phones: Annotated[tuple[Phone, ...], Field(max_length=20)] = ()
    emails: Annotated[tuple[Email, ...], Field(max_length=20)] = ()
    attributes: Annotated[dict[Slug, AttributeValue], Field(max_length=100)] = {}


class ContactRegistered(Event):
    """A person outside became known."""

    TOPIC = "contact-registered.v1"
    contact_id: UUID
    personal: ContactDetails


class DetailsChange(Fact):
    """A contact's details before and after."""

    before: ContactDetails
    after: ContactDetails


class ContactDetailsChanged(Event):
    """A contact's details were corrected or completed."""

    TOPIC = "contact-details-changed.v1"
    contact_id: UUID
    personal: DetailsChange


class ContactErased(Event):
    """The contact's data key was destroyed; names nobody."""

    TOPIC = "contact-erased.v1"


# Directory: workspaces, sectors, agents, roles, access tokens


class WorkspaceCreated(Event):
    """A company's data got its own room."""

    TOPIC = "workspace-created.v1"
    slug: Slug
    name: Name


class SectorCreated(Event):
    """A team that serves was set up."""

    TOPIC = "sector-created.v1"
    name: Name


class SectorRenamed(Event):
    """A sector got another name."""

    TOPIC = "sector-renamed.v1"
    before: Name
    after: Name


class SectorDeactivated(Event):
    """A sector takes no conversations any more."""

    TOPIC = "sector-deactivated.v1"


class AgentRegistered(Event):
    """A person inside may now serve; ``role`` names a built-in role or one of the workspace."""

    TOPIC = "agent-registered.v1"
    name: Name
    role: Slug


class AgentRoleChanged(Event):
    """What an agent may do changed."""

    TOPIC = "agent-role-changed.v1"
    before: Slug
    after: Slug


class AgentJoinedSector(Event):
    """An agent now serves in a sector."""

    TOPIC = "agent-joined-sector.v1"
    sector_id: UUID


class AgentLeftSector(Event):
    """An agent no longer serves in a sector."""

    TOPIC = "agent-left-sector.v1"
    sector_id: UUID


class AgentDeactivated(Event):
    """An agent left; nothing may be handed to them any more."""

    TOPIC = "agent-deactivated.v1"


class RoleDefined(Event):
    """A workspace said what a role of its own may do; a later definition replaces an earlier one."""

    TOPIC = "role-defined.v1"
    name: Slug
    grants: dict[Permission, Scope]


class TokenIssued(Event):
    """An access token was handed out; only its hash is known here."""

    TOPIC = "token-issued.v1"
    name: Name
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    actor: Actor
    role: Slug
    expires_at: AwareDatetime | None = None


class TokenNarrowed(Event):
    """An access token may do no more than ``grants``, and of that only what its role grants."""

    TOPIC = "token-narrowed.v1"
    grants: dict[Permission, Scope]


class TokenRevoked(Event):
    """An access token stopped working."""

    TOPIC = "token-revoked.v1"
    reason: Line


class IdentityLinked(Event):
    """Whoever ``issuer`` signs in as ``subject`` is the agent from now on."""

    TOPIC = "identity-linked.v1"
    issuer: Issuer
    subject: Subject
    agent_id: UUID


class IdentityUnlinked(Event):
    """Whoever was signed in so is the agent no more."""

    TOPIC = "identity-unlinked.v1"
    agent_id: UUID


class AttributeDefined(Event):
    """A custom attribute got a type, to which values must fit from now on; a later definition replaces an earlier."""

    TOPIC = "attribute-defined.v1"
    target: AttributeTarget
    key: Slug
    type: AttributeType
    label: Name
    options: Annotated[tuple[Name, ...], Field(max_length=200)]
    """What may be chosen from; of a list only."""


class AttributeRetired(Event):
    """A custom attribute has no type any more; values that were set stay, any value may be."""

    TOPIC = "attribute-retired.v1"


class ViewContents(Fact):
    """What a view is called and looks for: a search for somebody names them."""

    name: Name
    filter: Annotated[str, Field(min_length=2, max_length=65_536, pattern=NO_NUL)]
    """JSON in the listing's grammar, as it was when it was saved."""


class ViewSaved(Event):
    """Somebody kept a filter of the listing, with its sort and columns; a later one replaces an earlier."""

    TOPIC = "view-saved.v1"
    owner: Actor
    shared: bool
    """With the whole workspace; else it is there for its owner only."""
    sort: Slug
    descending: bool
    columns: Annotated[tuple[Slug, ...], Field(max_length=100)]
    personal: ViewContents


class ViewRemoved(Event):
    """A view is kept no longer."""

    TOPIC = "view-removed.v1"


def _all_subclasses(cls: type[Event]) -> list[type[Event]]:
    return [leaf for sub in cls.__subclasses__() for leaf in (sub, *_all_subclasses(sub))]


EVENTS: dict[str, type[Event]] = {cls.TOPIC: cls for cls in _all_subclasses(Event)}
"""Every event by its topic."""
