"""One step for every command: may the caller do it, what happens, and what is the aggregate after that.

Invariant: permission and rules see the same state, the one that the new events follow upon.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from domain import attributes, contact, conversation, directory, identities, view
from domain.commands import (
    AddNote,
    Assume,
    ChangeAgentRole,
    ChangeContactDetails,
    Command,
    DefineRole,
    EraseContact,
    Finalize,
    FinalizeAutomatically,
    IssueToken,
    LinkIdentity,
    NamesContact,
    OpenConversation,
    ReassignContact,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    Reopen,
    SendMessage,
    ViewCommand,
)
from domain.contact import Contact
from domain.conversation import Conversation
from domain.directory import Known
from domain.envelope import StreamType
from domain.errors import (
    AlreadyExistsError,
    BotNotInChargeError,
    ContactNotFoundError,
    ConversationNotFoundError,
    PermissionDeniedError,
)
from domain.events import ActorKind, ConversationTransferred, Event, Owner, Presence, Surface
from domain.permissions import Caller, Grants, Permission, Scope, may, within

State = Any
"""One of the aggregates' states: what `evolve` of the stream's type returns."""


@dataclass(frozen=True, slots=True)
class Decider:
    """An aggregate's pure functions and the type of its state."""

    state: type
    decide: Callable[[Any, Any, Known], list[Event]]
    evolve: Callable[[Any, Any], State]

    def fold(self, events: Sequence[Event], state: State | None = None) -> State | None:
        """The state after ``events``, starting from ``state``."""
        for event in events:
            state = self.evolve(state, event)
        return state


DECIDERS: dict[StreamType, Decider] = {
    StreamType.CONVERSATION: Decider(Conversation, conversation.decide, conversation.evolve),
    StreamType.CONTACT: Decider(
        Contact, lambda command, state, known: contact.decide(command, state, known.attributes), contact.evolve
    ),
    StreamType.WORKSPACE: Decider(
        directory.Workspace,
        lambda command, state, _: directory.decide_workspace(command, state),
        directory.evolve_workspace,
    ),
    StreamType.SECTOR: Decider(
        directory.Sector, lambda command, state, _: directory.decide_sector(command, state), directory.evolve_sector
    ),
    StreamType.AGENT: Decider(directory.Agent, directory.decide_agent, directory.evolve_agent),
    StreamType.ROLE: Decider(
        directory.Role, lambda command, state, _: directory.decide_role(command, state), directory.evolve_role
    ),
    StreamType.TOKEN: Decider(directory.Token, directory.decide_token, directory.evolve_token),
    StreamType.IDENTITY: Decider(identities.Identity, identities.decide, identities.evolve),
    StreamType.ATTRIBUTE: Decider(
        attributes.Attribute, lambda command, state, _: attributes.decide(command, state), attributes.evolve
    ),
    StreamType.VIEW: Decider(view.View, lambda command, state, _: view.decide(command, state), view.evolve),
}
"""How each kind of stream decides and folds."""


_WHOLE_WORKSPACE = {Permission.MANAGE_DIRECTORY, Permission.MANAGE_TOKENS}
"""What makes no sense for a part of it: whoever changes roles or tokens for some changes them for all."""


def handle(command: Command, state: State | None, known: Known, caller: Caller) -> list[Event]:
    """The events that ``command`` of ``caller`` causes in ``state``.

    Raises a `DomainError`: not found (also for what lies outside the caller's scope), not permitted, or refused.
    """
    authorize(command, state, caller, known)
    return DECIDERS[command.STREAM].decide(command, state, known)


def authorize(command: Command, state: State | None, caller: Caller, known: Known) -> None:
    """Refuse what ``caller`` may not do; what they may not even see does not exist for them."""
    permission = required_permission(command)
    owner = None
    if isinstance(command, OpenConversation):
        owner = Owner(sector_id=command.sector_id, agent_id=command.agent_id)
        if isinstance(state, Conversation) and not may(caller, Permission.VIEW, state.owner):
            raise AlreadyExistsError  # and nothing of how it stands
    elif command.STREAM is StreamType.CONVERSATION:
        # The same answer for what is not there and what is out of sight: a 403 would give the other away.
        if not isinstance(state, Conversation) or not may(caller, Permission.VIEW, state.owner):
            if isinstance(command, SendMessage) and _was_taken_over(caller, state):
                raise BotNotInChargeError
            raise ConversationNotFoundError
        owner = state.owner
    if not may(caller, permission, owner):
        msg = f"This needs the permission '{permission}', which your role does not grant here."
        raise PermissionDeniedError(msg)
    if command.PERMISSION in _WHOLE_WORKSPACE and caller.scope(permission) is not Scope.ALL:
        raise PermissionDeniedError(f"This needs the permission '{permission}' for all of the workspace.")
    if isinstance(command, ViewCommand):
        view.authorize(command, state, caller)
    if isinstance(command, NamesContact) and not _reaches(caller, command, state, known):
        if isinstance(command, RegisterContact):
            raise AlreadyExistsError  # and nothing of whether it says the same
        raise ContactNotFoundError
    granted = _granted(command, known)
    if granted is not None and not within(granted, caller.grants):
        raise PermissionDeniedError("You may not grant more than you were granted.")
    if (
        granted is not None
        and isinstance(command, IssueToken | LinkIdentity)
        and not _reaches_all(command, granted, caller)
    ):
        msg = "Being let in as somebody else reaches what is theirs: that takes each of its permissions for all."
        raise PermissionDeniedError(msg)
    if isinstance(command, FinalizeAutomatically) and caller.actor.kind in {ActorKind.AGENT, ActorKind.CONTACT}:
        msg = "Only bots, integrations and the system finalize automatically; finalize from the inbox or the listing."
        raise PermissionDeniedError(msg)
    if isinstance(command, ReceiveMessage) and caller.actor.kind in {ActorKind.AGENT, ActorKind.BOT}:
        msg = "What a contact wrote comes from their channel: an integration records it. Send a message or add a note."
        raise PermissionDeniedError(msg)
    if caller.actor.kind is ActorKind.AGENT and _for_another(command, caller):
        msg = "You may take a conversation for yourself only; transfer it to give it to somebody else."
        raise PermissionDeniedError(msg)
    in_own_name_only = caller.actor.kind in {ActorKind.AGENT, ActorKind.BOT}
    if isinstance(command, SendMessage | AddNote) and in_own_name_only and command.author != caller.actor:
        msg = "You may write in your own name only."
        raise PermissionDeniedError(msg)


def _was_taken_over(caller: Caller, state: Conversation | None) -> bool:
    """Whether the caller is a bot that had the conversation: it is told that it has no longer, which it may know."""
    granted = may(caller, Permission.VIEW) and may(caller, Permission.REPLY)
    return granted and state is not None and caller.bot in state.bots


def _reaches_all(command: IssueToken | LinkIdentity, granted: Grants, caller: Caller) -> bool:
    """Whether nothing that is handed out is out of the caller's reach: own is not everybody's own."""
    is_own = command.actor == caller.actor if isinstance(command, IssueToken) else command.agent_id == caller.agent_id
    return is_own or all(caller.scope(permission) is Scope.ALL for permission in granted)


_ON_CONTACTS = (Permission.VIEW_CONTACT, Permission.EDIT_CONTACT)


def _reaches(caller: Caller, command: NamesContact, state: State | None, known: Known) -> bool:
    """Whether the contact that is named exists for ``caller``: else naming it would bring it into their reach."""
    needed = (command.PERMISSION,) if isinstance(command, ChangeContactDetails | EraseContact) else _ON_CONTACTS
    limited = [permission for permission in needed if caller.scope(permission) not in {None, Scope.ALL}]
    is_new = isinstance(command, RegisterContact) and state is None
    if not limited or is_new or command.registered:
        return True
    through = known.conversations.get(command.through) if command.through else None
    if isinstance(command, OpenConversation | ReassignContact):
        contact_id: UUID | None = command.contact_id
        if isinstance(state, Conversation) and state.contact_id == contact_id:
            through = state  # it is with them already
    else:
        contact_id = state.id if isinstance(state, Contact) else None
    if through is None or through.contact_id != contact_id:
        return False
    return all(may(caller, permission, through.owner) for permission in limited)


def _granted(command: Command, known: Known) -> Grants | None:
    """What ``command`` lets somebody do; None: nothing."""
    match command:
        case RegisterAgent() | ChangeAgentRole() | IssueToken() | LinkIdentity():
            return known.grants(command.role)
        case DefineRole():
            return command.grants
        case _:
            return None


def _for_another(command: Command, caller: Caller) -> bool:
    if not isinstance(command, OpenConversation | Assume | Reopen):
        return False
    return command.agent_id not in {None, caller.agent_id}


def required_permission(command: Command) -> Permission:
    """The permission that ``command`` needs."""
    if isinstance(command, Finalize) and command.surface is Surface.LISTING:
        return Permission.FINALIZE_FROM_LISTING
    return command.PERMISSION


def warnings_of(events: Sequence[Event]) -> tuple[str, ...]:
    """Stable codes of what ``events`` do although whoever asked for it may want to know better."""
    transfers = [event for event in events if isinstance(event, ConversationTransferred)]
    return ("target-offline",) if any(event.target_presence is Presence.OFFLINE for event in transfers) else ()
