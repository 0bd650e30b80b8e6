"""What may be asked for: one class per intent, the body of the route that carries it.

Invariant: a command names its aggregate's kind (`STREAM`) and the other streams its rules must see (`names`); ids and
times come in with it, so that deciding is pure.
"""

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal, Self
from uuid import NAMESPACE_URL, UUID, uuid5

from pydantic import AfterValidator, AwareDatetime, Field, model_validator

from domain.envelope import StreamType
from domain.events import (
    Actor,
    ActorKind,
    Attachment,
    AttributeTarget,
    AttributeType,
    AttributeValue,
    ContactDetails,
    Fact,
    FinalizationCause,
    Issuer,
    Line,
    MessageKind,
    Name,
    Priority,
    Slug,
    Subject,
    Surface,
    Text,
    ViewContents,
)
from domain.permissions import Permission, Scope

Named = Iterable[tuple[StreamType, UUID]]


def role_id(name: str) -> UUID:
    """The id of the role called ``name``, in every workspace."""
    return uuid5(NAMESPACE_URL, f"conversas:role:{name}")


def identity_id(issuer: str, subject: str) -> UUID:
    """The id of the identity that ``issuer`` calls ``subject``, in every workspace."""
    return uuid5(NAMESPACE_URL, f"conversas:identity:{issuer} {subject}")


def attribute_id(target: AttributeTarget, key: str) -> UUID:
    """The id of the definition of a custom attribute, in every workspace."""
    return uuid5(NAMESPACE_URL, f"conversas:attribute:{target.value}:{key}")


def _definitions(target: AttributeTarget, keys: Iterable[str]) -> list[tuple[StreamType, UUID]]:
    return [(StreamType.ATTRIBUTE, attribute_id(target, key)) for key in keys]


def _named(
    *,
    contact: UUID | None = None,
    sector: UUID | None = None,
    agent: UUID | None = None,
    role: str | None = None,
    conversation: UUID | None = None,
) -> list[tuple[StreamType, UUID]]:
    wanted = (
        (StreamType.CONTACT, contact),
        (StreamType.SECTOR, sector),
        (StreamType.AGENT, agent),
        (StreamType.ROLE, role_id(role) if role else None),
        (StreamType.CONVERSATION, conversation),
    )
    return [(kind, id_) for kind, id_ in wanted if id_ is not None]


def _check_insider(author: Actor) -> Actor:
    if author.kind is ActorKind.CONTACT:
        raise ValueError("a contact's message is received, not sent")
    return author


Insider = Annotated[Actor, AfterValidator(_check_insider)]
"""An actor who is not a contact."""


def agent_of(actor: Actor) -> UUID | None:
    """The id of the agent who acts; None: it is no agent, or none of ours."""
    try:
        return UUID(actor.id) if actor.kind is ActorKind.AGENT else None
    except ValueError:
        return None


def _check_token_actor(actor: Actor) -> Actor:
    if actor.kind in {ActorKind.SYSTEM, ActorKind.CONTACT}:
        raise ValueError("a token is an agent's, a bot's or an integration's")
    return Actor(kind=actor.kind, id=str(agent_of(actor) or actor.id))


TokenActor = Annotated[Actor, AfterValidator(_check_token_actor)]
"""An actor who may hold an access token; an agent's id in its usual form."""


class Command(Fact):
    """An intent; refused with a `DomainError` or answered with events."""

    STREAM: ClassVar[StreamType]
    PERMISSION: ClassVar[Permission]

    def names(self) -> Named:
        """Other streams whose state the rules need."""
        return ()


class NamesContact(Command):
    """An intent that names a contact, who must exist for the caller.

    Whose permissions on contacts do not reach all of the workspace reach one ``through`` a conversation with them, or
    because they ``registered`` them: that the log says for ever, so that it is looked up before.
    """

    through: UUID | None = None
    registered: bool = False


# Conversations


class ConversationCommand(Command):
    """An intent on one conversation."""

    STREAM = StreamType.CONVERSATION


class OpenConversation(ConversationCommand, NamesContact):
    """Start a conversation; with ``agent_id`` that agent opens it for themself."""

    PERMISSION = Permission.REPLY
    protocol: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
    channel: Slug
    contact_id: UUID
    sector_id: UUID | None = None
    agent_id: UUID | None = None
    subject: Line | None = None

    def names(self) -> Named:
        """The contact must exist, sector and agent must be active."""
        return _named(contact=self.contact_id, sector=self.sector_id, agent=self.agent_id, conversation=self.through)


class HandOffToBot(ConversationCommand):
    """Let a bot answer."""

    PERMISSION = Permission.TRANSFER
    bot: Slug
    reason: Line = ""


class HandOffFromBot(ConversationCommand):
    """The bot gives up its turn (transbordo); without ``sector_id`` the conversation's sector stays."""

    PERMISSION = Permission.TRANSFER
    sector_id: UUID | None = None
    reason: Line = ""

    def names(self) -> Named:
        """The sector must be active."""
        return _named(sector=self.sector_id)


class MarkPending(ConversationCommand):
    """Let it go back to the queue; without ``sector_id`` the conversation's sector stays."""

    PERMISSION = Permission.TRANSFER
    sector_id: UUID | None = None
    reason: Line = "released"

    def names(self) -> Named:
        """The sector must be active."""
        return _named(sector=self.sector_id)


class Assume(ConversationCommand):
    """An agent takes it."""

    PERMISSION = Permission.ASSUME
    agent_id: UUID

    def names(self) -> Named:
        """The agent must be active."""
        return _named(agent=self.agent_id)


class Transfer(ConversationCommand):
    """Give it to a sector's queue, or to an agent (within ``sector_id`` where that is given too)."""

    PERMISSION = Permission.TRANSFER
    sector_id: UUID | None = None
    agent_id: UUID | None = None
    reason: Line = ""

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        if self.sector_id is None and self.agent_id is None:
            msg = "name a sector_id, an agent_id, or both"
            raise ValueError(msg)
        return self

    def names(self) -> Named:
        """Target sector and agent must be active, and the agent in the sector."""
        return _named(sector=self.sector_id, agent=self.agent_id)


class Finalize(ConversationCommand):
    """A person ends it; where they did it decides which event and which permission."""

    PERMISSION = Permission.FINALIZE_FROM_INBOX
    surface: Literal[Surface.INBOX, Surface.LISTING]
    outcome: Line = ""
    comment: Text | None = None


class FinalizeAutomatically(ConversationCommand):
    """It ends without a person doing it; for bots, integrations and the system."""

    PERMISSION = Permission.FINALIZE_FROM_INBOX
    cause: FinalizationCause


class Reopen(ConversationCommand):
    """Go on with a finalized conversation; with ``agent_id`` that agent has it at once."""

    PERMISSION = Permission.REOPEN
    agent_id: UUID | None = None
    reason: Line = ""

    def names(self) -> Named:
        """The agent must be active."""
        return _named(agent=self.agent_id)


class ReceiveMessage(ConversationCommand):
    """The contact wrote, as their channel says; reopens a finalized conversation first."""

    PERMISSION = Permission.REPLY
    message_id: UUID
    kind: MessageKind = MessageKind.TEXT
    text: Text = ""
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=50)] = ()


class SendMessage(ConversationCommand):
    """An agent, a bot or an integration writes to the contact."""

    PERMISSION = Permission.REPLY
    message_id: UUID
    author: Insider
    kind: MessageKind = MessageKind.TEXT
    text: Text = ""
    attachments: Annotated[tuple[Attachment, ...], Field(max_length=50)] = ()


class AddNote(ConversationCommand):
    """Write something that the contact does not see."""

    PERMISSION = Permission.REPLY
    message_id: UUID
    author: Insider
    text: Text


class AddLabel(ConversationCommand):
    """Put a label on."""

    PERMISSION = Permission.LABEL
    label: Slug


class RemoveLabel(ConversationCommand):
    """Take a label off."""

    PERMISSION = Permission.LABEL
    label: Slug


class ChangePriority(ConversationCommand):
    """Make it more or less urgent."""

    PERMISSION = Permission.LABEL
    priority: Priority


class SetAttribute(ConversationCommand):
    """Give a custom attribute a value; None takes it away."""

    PERMISSION = Permission.LABEL
    key: Slug
    value: AttributeValue

    def names(self) -> Named:
        """The value must fit the attribute's definition."""
        return _definitions(AttributeTarget.CONVERSATION, [self.key])


class ReassignContact(ConversationCommand, NamesContact):
    """It is with another contact."""

    PERMISSION = Permission.EDIT_CONTACT
    contact_id: UUID

    def names(self) -> Named:
        """The contact must exist."""
        return _named(contact=self.contact_id, conversation=self.through)


# Contacts


class ContactCommand(Command):
    """An intent on one contact."""

    STREAM = StreamType.CONTACT
    PERMISSION = Permission.EDIT_CONTACT


class RegisterContact(ContactCommand, NamesContact):
    """Make a person outside known."""

    contact_id: UUID
    details: ContactDetails

    def names(self) -> Named:
        """The attributes' values must fit their definitions."""
        return _definitions(AttributeTarget.CONTACT, self.details.attributes)


class ChangeContactDetails(ContactCommand, NamesContact):
    """Replace what is known of a contact."""

    details: ContactDetails

    def names(self) -> Named:
        """The attributes' values must fit their definitions, the conversation be within reach."""
        return [
            *_definitions(AttributeTarget.CONTACT, self.details.attributes),
            *_named(conversation=self.through),
        ]


class EraseContact(ContactCommand, NamesContact):
    """Forget a contact, everywhere and for good."""

    PERMISSION = Permission.ERASE_CONTACT

    def names(self) -> Named:
        """The conversation must be within reach."""
        return _named(conversation=self.through)


# Directory


class DirectoryCommand(Command):
    """An intent on the workspace's own people and teams."""

    PERMISSION = Permission.MANAGE_DIRECTORY


class CreateWorkspace(DirectoryCommand):
    """Give a company's data its own room."""

    STREAM = StreamType.WORKSPACE
    slug: Slug
    name: Name


class CreateSector(DirectoryCommand):
    """Set up a team that serves."""

    STREAM = StreamType.SECTOR
    name: Name


class RenameSector(DirectoryCommand):
    """Call a sector something else."""

    STREAM = StreamType.SECTOR
    name: Name


class DeactivateSector(DirectoryCommand):
    """Close a sector."""

    STREAM = StreamType.SECTOR


class RegisterAgent(DirectoryCommand):
    """Let a person inside serve."""

    STREAM = StreamType.AGENT
    name: Name
    role: Slug = "agent"

    def names(self) -> Named:
        """The role must be known."""
        return _named(role=self.role)


class ChangeAgentRole(DirectoryCommand):
    """Change what an agent may do."""

    STREAM = StreamType.AGENT
    role: Slug

    def names(self) -> Named:
        """The role must be known."""
        return _named(role=self.role)


class JoinSector(DirectoryCommand):
    """Let an agent serve in a sector."""

    STREAM = StreamType.AGENT
    sector_id: UUID

    def names(self) -> Named:
        """The sector must be active."""
        return _named(sector=self.sector_id)


class LeaveSector(DirectoryCommand):
    """Take an agent out of a sector."""

    STREAM = StreamType.AGENT
    sector_id: UUID


class DeactivateAgent(DirectoryCommand):
    """An agent left."""

    STREAM = StreamType.AGENT


class DefineRole(DirectoryCommand):
    """Say what a role of the workspace may do; its stream is `role_id` of its name."""

    STREAM = StreamType.ROLE
    name: Slug
    grants: dict[Permission, Scope]


class IssueToken(Command):
    """Hand out an access token, of which only the hash comes in."""

    STREAM = StreamType.TOKEN
    PERMISSION = Permission.MANAGE_TOKENS
    name: Name
    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    actor: TokenActor
    role: Slug
    expires_at: AwareDatetime | None = None
    grants: dict[Permission, Scope] | None = None
    """What it may do of what its role grants; None: all of it."""
    asked_at: AwareDatetime | None = None
    """What expires no later was never a token; None: the past is told, such as an import's."""

    def names(self) -> Named:
        """The role must be known, and the agent whose token it is must be active."""
        return _named(role=self.role, agent=agent_of(self.actor))


class RevokeToken(Command):
    """Make an access token stop working."""

    STREAM = StreamType.TOKEN
    PERMISSION = Permission.MANAGE_TOKENS
    reason: Line = ""


class LinkIdentity(DirectoryCommand):
    """Let whoever ``issuer`` signs in as ``subject`` be the agent; its stream is `identity_id` of the two."""

    STREAM = StreamType.IDENTITY
    issuer: Issuer
    subject: Subject
    agent_id: UUID
    role: Slug
    """The agent's role, which is what is handed out here."""

    def names(self) -> Named:
        """The agent must be active, the role known."""
        return _named(agent=self.agent_id, role=self.role)


class UnlinkIdentity(DirectoryCommand):
    """Whoever was signed in so is no agent any more."""

    STREAM = StreamType.IDENTITY


class DefineAttribute(DirectoryCommand):
    """Say what values a custom attribute takes; its stream is `attribute_id` of target and key."""

    STREAM = StreamType.ATTRIBUTE
    target: AttributeTarget
    key: Slug
    type: AttributeType
    label: Name
    options: Annotated[tuple[Name, ...], Field(max_length=200)] = ()


class RetireAttribute(DirectoryCommand):
    """Let a custom attribute take any value again."""

    STREAM = StreamType.ATTRIBUTE


# Saved views


class ViewCommand(Command):
    """An intent on one saved view of the listing."""

    STREAM = StreamType.VIEW
    PERMISSION = Permission.VIEW


class ViewDetails(ViewCommand):
    """What a view shows, and to whom."""

    contents: ViewContents
    shared: bool = False
    sort: Slug
    descending: bool = True
    columns: Annotated[tuple[Slug, ...], Field(max_length=100)] = ()


class SaveView(ViewDetails):
    """Keep a filter of the listing with its sort and columns."""

    owner: Insider


class ChangeView(ViewDetails):
    """Replace what a view shows, and to whom; whose it is stays."""


class RemoveView(ViewCommand):
    """Keep a view no longer."""
