"""A conversation: what may happen to it in which state, and what it is after that.

Invariant: `decide` and `evolve` are total and pure. Asking for what is already so gives no event; a refusal is a
`DomainError` and changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import assert_never
from uuid import UUID

from domain import attributes
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    ChangePriority,
    Finalize,
    FinalizeAutomatically,
    HandOffFromBot,
    HandOffToBot,
    MarkPending,
    OpenConversation,
    ReassignContact,
    ReceiveMessage,
    RemoveLabel,
    Reopen,
    SendMessage,
    SetAttribute,
    Transfer,
)
from domain.directory import Known
from domain.errors import (
    AgentNotInSectorError,
    AlreadyExistsError,
    BotNotInChargeError,
    ConversationAlreadyAssumedError,
    ConversationAlreadyFinalizedError,
    ConversationAlreadyPendingError,
    ConversationNotFinalizedError,
    ConversationNotFoundError,
    ConversationNotWithBotError,
    ConversationWithBotError,
    TooManyAttributesError,
    TooManyLabelsError,
)
from domain.events import (
    Actor,
    ActorKind,
    AttributePersonal,
    AttributeSet,
    AttributeTarget,
    AttributeValue,
    ContactReassigned,
    ConversationAssumed,
    ConversationFinalizedAutomatically,
    ConversationFinalizedFromInbox,
    ConversationFinalizedFromListing,
    ConversationHandedOffByBot,
    ConversationHandedOffToBot,
    ConversationMarkedPending,
    ConversationOpened,
    ConversationReopened,
    ConversationTransferred,
    Event,
    FinalizedPersonal,
    LabelAdded,
    LabelRemoved,
    MessagePersonal,
    MessageReceived,
    MessageSent,
    NoteAdded,
    NotePersonal,
    OpenedPersonal,
    Owner,
    Presence,
    Priority,
    PriorityChanged,
    Status,
    Surface,
)

Command = (
    OpenConversation
    | HandOffToBot
    | HandOffFromBot
    | MarkPending
    | Assume
    | Transfer
    | Finalize
    | FinalizeAutomatically
    | Reopen
    | ReceiveMessage
    | SendMessage
    | AddNote
    | AddLabel
    | RemoveLabel
    | ChangePriority
    | SetAttribute
    | ReassignContact
)
ConversationEvent = (
    ConversationOpened
    | ConversationHandedOffToBot
    | ConversationHandedOffByBot
    | ConversationMarkedPending
    | ConversationAssumed
    | ConversationTransferred
    | ConversationFinalizedFromInbox
    | ConversationFinalizedFromListing
    | ConversationFinalizedAutomatically
    | ConversationReopened
    | MessageReceived
    | MessageSent
    | NoteAdded
    | LabelAdded
    | LabelRemoved
    | PriorityChanged
    | AttributeSet
    | ContactReassigned
)


MOST_LABELS = 50
MOST_ATTRIBUTES = 100
_BOTS_REMEMBERED = 20


@dataclass(frozen=True, slots=True)
class Conversation:
    """What must be remembered of a conversation to decide: its size does not grow with its messages."""

    protocol: str
    channel: str
    contact_id: UUID
    status: Status
    owner: Owner
    episode: int = 1
    priority: Priority = Priority.NORMAL
    labels: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    attribute_contacts: Mapping[str, UUID] = field(default_factory=dict)
    """With whom the conversation was when each attribute was set: it is forgotten with them."""
    last_message_id: UUID | None = None
    """A message that comes again at once is recognised here; one that comes later, by its idempotency key."""
    bots: tuple[str, ...] = ()
    """The bots that had it, latest last: one that was taken over, and does not see it any more, is told so."""


def decide(command: Command, state: Conversation | None, known: Known) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    if isinstance(command, OpenConversation):
        return _open(command, state, known)
    if state is None:
        raise ConversationNotFoundError
    match command:
        case HandOffToBot():
            return _hand_off_to_bot(command, state)
        case HandOffFromBot():
            return _hand_off_from_bot(command, state, known)
        case MarkPending():
            return _mark_pending(command, state, known)
        case Assume():
            return _assume(command, state, known)
        case Transfer():
            return _transfer(command, state, known)
        case Finalize():
            return _finalize(command, state)
        case FinalizeAutomatically():
            if state.status is Status.FINALIZED:
                return []
            return [ConversationFinalizedAutomatically(cause=command.cause)]
        case Reopen():
            return _reopen(command, state, known)
        case ReceiveMessage() | SendMessage() | AddNote():
            return _write(command, state)
        case AddLabel() | RemoveLabel():
            return _label(command, state)
        case ChangePriority():
            if state.priority is command.priority:
                return []
            return [PriorityChanged(before=state.priority, after=command.priority)]
        case SetAttribute():
            before = state.attributes.get(command.key)
            if before == command.value and type(before) is type(command.value):
                return []
            if before is None and len(state.attributes) >= MOST_ATTRIBUTES:
                raise TooManyAttributesError
            attributes.check(known.attributes, AttributeTarget.CONVERSATION, {}, {command.key: command.value})
            if state.attribute_contacts.get(command.key) != state.contact_id:
                before = None  # it was said of another: the event, which is about this one, does not repeat it
            change = AttributePersonal(before=before, after=command.value)
            return [AttributeSet(key=command.key, contact_id=state.contact_id, personal=change)]
        case ReassignContact():
            if state.contact_id == command.contact_id:
                return []
            known.contact(command.contact_id)
            return [ContactReassigned(before=state.contact_id, after=command.contact_id)]
        case _:
            assert_never(command)


def _open(command: OpenConversation, state: Conversation | None, known: Known) -> list[Event]:
    if state is not None:
        same = (command.protocol, command.channel, command.contact_id)
        if (state.protocol, state.channel, state.contact_id) == same:
            return []
        raise AlreadyExistsError
    known.contact(command.contact_id)
    if command.sector_id is not None:
        known.sector(command.sector_id)
    if command.agent_id is not None:
        _check_membership(known, command.agent_id, command.sector_id)
    return [
        ConversationOpened(
            protocol=command.protocol,
            channel=command.channel,
            contact_id=command.contact_id,
            sector_id=command.sector_id,
            agent_id=command.agent_id,
            personal=OpenedPersonal(subject=command.subject),
        )
    ]


def _hand_off_to_bot(command: HandOffToBot, state: Conversation) -> list[Event]:
    _refuse_finalized(state)
    if state.status is Status.WITH_BOT:
        if state.owner.bot == command.bot:
            return []
        raise ConversationWithBotError
    return [ConversationHandedOffToBot(bot=command.bot, reason=command.reason)]


def _hand_off_from_bot(command: HandOffFromBot, state: Conversation, known: Known) -> list[Event]:
    _refuse_finalized(state)
    if state.owner.bot is None:
        if state.status is Status.PENDING and command.sector_id in {None, state.owner.sector_id}:
            return []
        raise ConversationNotWithBotError
    target = _sector_or_current(command.sector_id, state, known)
    return [ConversationHandedOffByBot(bot=state.owner.bot, sector_id=target, reason=command.reason)]


def _mark_pending(command: MarkPending, state: Conversation, known: Known) -> list[Event]:
    _refuse_finalized(state)
    if state.status is Status.WITH_BOT:
        raise ConversationWithBotError
    if state.status is Status.PENDING:
        if command.sector_id in {None, state.owner.sector_id}:
            return []
        raise ConversationAlreadyPendingError
    target = _sector_or_current(command.sector_id, state, known)
    return [ConversationMarkedPending(sector_id=target, reason=command.reason)]


def _assume(command: Assume, state: Conversation, known: Known) -> list[Event]:
    _refuse_finalized(state)
    if state.owner.agent_id == command.agent_id:
        return []
    if state.status is Status.IN_PROGRESS:
        raise ConversationAlreadyAssumedError
    known.agent(command.agent_id)
    return [ConversationAssumed(agent_id=command.agent_id)]


def _transfer(command: Transfer, state: Conversation, known: Known) -> list[Event]:
    _refuse_finalized(state)
    if _is_with_target(command, state.owner):
        return []
    if command.sector_id is not None:
        known.sector(command.sector_id)
    target = Owner(sector_id=command.sector_id)
    presence = None
    if command.agent_id is not None:
        target = _agent_as_owner(command.agent_id, command.sector_id, state, known)
        if known.presence is not None:
            presence = known.presence.get(command.agent_id, Presence.OFFLINE)
    return [ConversationTransferred(source=state.owner, target=target, reason=command.reason, target_presence=presence)]


def _is_with_target(command: Transfer, owner: Owner) -> bool:
    """Whether it is already so; asked before the rules, because a sector or an agent may have gone since."""
    in_sector = command.sector_id == owner.sector_id or (command.sector_id is None and command.agent_id is not None)
    return in_sector and command.agent_id == owner.agent_id and owner.bot is None


def _agent_as_owner(agent_id: UUID, sector_id: UUID | None, state: Conversation, known: Known) -> Owner:
    """The agent within the sector asked for; else in the conversation's, or the agent's first if not theirs."""
    _check_membership(known, agent_id, sector_id)
    theirs = known.agent(agent_id).sectors
    if sector_id is None:
        current = state.owner.sector_id
        sector_id = current if current in theirs else next(iter(theirs), current)
    return Owner(sector_id=sector_id, agent_id=agent_id)


def _finalize(command: Finalize, state: Conversation) -> list[Event]:
    if state.status is Status.FINALIZED:
        return []
    fact = ConversationFinalizedFromInbox if command.surface is Surface.INBOX else ConversationFinalizedFromListing
    comment = FinalizedPersonal(comment=command.comment)
    return [fact(outcome=command.outcome, contact_id=state.contact_id, personal=comment)]


def _reopen(command: Reopen, state: Conversation, known: Known) -> list[Event]:
    if state.status is not Status.FINALIZED:
        if command.agent_id in {None, state.owner.agent_id}:
            return []
        raise ConversationAlreadyAssumedError if state.status is Status.IN_PROGRESS else ConversationNotFinalizedError
    if command.agent_id is not None:
        known.agent(command.agent_id)
    return [_reopened(state, command.reason, command.agent_id)]


def _reopened(state: Conversation, reason: str, agent_id: UUID | None = None) -> ConversationReopened:
    return ConversationReopened(
        episode=state.episode + 1, agent_id=agent_id, sector_id=state.owner.sector_id, reason=reason
    )


def _write(command: ReceiveMessage | SendMessage | AddNote, state: Conversation) -> list[Event]:
    if command.message_id == state.last_message_id:
        return []
    id_, contact_id = command.message_id, state.contact_id
    match command:
        case ReceiveMessage():
            author = Actor(kind=ActorKind.CONTACT, id=str(contact_id))
            said = MessagePersonal(text=command.text, attachments=command.attachments)
            received = MessageReceived(
                message_id=id_, author=author, kind=command.kind, contact_id=contact_id, personal=said
            )
            if state.status is Status.FINALIZED:
                return [_reopened(state, "message received"), received]
            return [received]
        case SendMessage():
            in_charge = state.owner.bot if state.status is Status.WITH_BOT else None
            if command.author.kind is ActorKind.BOT and command.author.id != in_charge:
                raise BotNotInChargeError
            said = MessagePersonal(text=command.text, attachments=command.attachments)
            return [
                MessageSent(
                    message_id=id_, author=command.author, kind=command.kind, contact_id=contact_id, personal=said
                )
            ]
        case AddNote():
            note = NotePersonal(text=command.text)
            return [NoteAdded(message_id=id_, author=command.author, contact_id=contact_id, personal=note)]
        case _:
            assert_never(command)


def _label(command: AddLabel | RemoveLabel, state: Conversation) -> list[Event]:
    label, before = command.label, state.labels
    match command:
        case AddLabel():
            if label in before:
                return []
            if len(before) >= MOST_LABELS:
                raise TooManyLabelsError
            return [LabelAdded(label=label, before=before, after=tuple(sorted((*before, label))))]
        case RemoveLabel():
            if label not in before:
                return []
            return [LabelRemoved(label=label, before=before, after=tuple(name for name in before if name != label))]
        case _:
            assert_never(command)


def _refuse_finalized(state: Conversation) -> None:
    if state.status is Status.FINALIZED:
        raise ConversationAlreadyFinalizedError


def _sector_or_current(sector_id: UUID | None, state: Conversation, known: Known) -> UUID | None:
    if sector_id is None:
        return state.owner.sector_id
    known.sector(sector_id)
    return sector_id


def _check_membership(known: Known, agent_id: UUID, sector_id: UUID | None) -> None:
    agent = known.agent(agent_id)
    if sector_id is not None and sector_id not in agent.sectors:
        raise AgentNotInSectorError


def evolve(state: Conversation | None, event: ConversationEvent) -> Conversation:
    """The conversation after ``event``."""
    if isinstance(event, ConversationOpened):
        return Conversation(
            protocol=event.protocol,
            channel=event.channel,
            contact_id=event.contact_id,
            status=Status.PENDING if event.agent_id is None else Status.IN_PROGRESS,
            owner=Owner(sector_id=event.sector_id, agent_id=event.agent_id),
        )
    assert state is not None, "the log holds an event before the one that opens the conversation"
    match event:
        case ConversationHandedOffToBot():
            others = tuple(bot for bot in state.bots if bot != event.bot)
            held = _held(state, Status.WITH_BOT, bot=event.bot, sector_id=state.owner.sector_id)
            return replace(held, bots=(*others, event.bot)[-_BOTS_REMEMBERED:])
        case ConversationHandedOffByBot() | ConversationMarkedPending():
            return _held(state, Status.PENDING, sector_id=event.sector_id)
        case ConversationAssumed():
            return _held(state, Status.IN_PROGRESS, agent_id=event.agent_id, sector_id=state.owner.sector_id)
        case ConversationTransferred():
            status = Status.PENDING if event.target.agent_id is None else Status.IN_PROGRESS
            return replace(state, status=status, owner=event.target)
        case (
            ConversationFinalizedFromInbox() | ConversationFinalizedFromListing() | ConversationFinalizedAutomatically()
        ):
            return replace(state, status=Status.FINALIZED)
        case ConversationReopened():
            status = Status.PENDING if event.agent_id is None else Status.IN_PROGRESS
            owner = Owner(sector_id=event.sector_id, agent_id=event.agent_id)
            return replace(state, status=status, owner=owner, episode=event.episode)
        case MessageReceived() | MessageSent() | NoteAdded():
            return replace(state, last_message_id=event.message_id)
        case LabelAdded() | LabelRemoved():
            return replace(state, labels=event.after)
        case PriorityChanged():
            return replace(state, priority=event.after)
        case AttributeSet():
            kept = {key: value for key, value in state.attributes.items() if key != event.key}
            whose = {key: contact_id for key, contact_id in state.attribute_contacts.items() if key != event.key}
            after = event.personal.after
            if after is not None:
                kept, whose = {**kept, event.key: after}, {**whose, event.key: event.contact_id}
            return replace(state, attributes=kept, attribute_contacts=whose)
        case ContactReassigned():
            return replace(state, contact_id=event.after)
        case _:
            assert_never(event)


def _held(
    state: Conversation,
    status: Status,
    *,
    bot: str | None = None,
    agent_id: UUID | None = None,
    sector_id: UUID | None = None,
) -> Conversation:
    return replace(state, status=status, owner=Owner(sector_id=sector_id, agent_id=agent_id, bot=bot))
