"""Who may do what: every role, every command, every status, every scope, against a table written here.

Invariant: what lies out of the caller's sight does not exist for them; what they see but were not granted is denied.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from domain import commands
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    ChangeAgentRole,
    ChangeContactDetails,
    ChangePriority,
    ChangeView,
    Command,
    ConversationCommand,
    CreateSector,
    CreateWorkspace,
    DeactivateAgent,
    DeactivateSector,
    DefineAttribute,
    DefineRole,
    EraseContact,
    Finalize,
    FinalizeAutomatically,
    HandOffFromBot,
    HandOffToBot,
    IssueToken,
    JoinSector,
    LeaveSector,
    LinkIdentity,
    MarkPending,
    OpenConversation,
    ReassignContact,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    RemoveLabel,
    RemoveView,
    RenameSector,
    Reopen,
    RetireAttribute,
    RevokeToken,
    SaveView,
    SendMessage,
    SetAttribute,
    Transfer,
    UnlinkIdentity,
    role_id,
)
from domain.conversation import Conversation
from domain.decider import handle
from domain.directory import Agent, Known, Role, decide_role
from domain.errors import DomainError
from domain.events import (
    Actor,
    ActorKind,
    AttributeTarget,
    AttributeType,
    ContactDetails,
    ContactRegistered,
    ConversationOpened,
    FinalizationCause,
    Owner,
    Priority,
    Status,
    Surface,
    ViewContents,
    ViewSaved,
)
from domain.permissions import BUILT_IN_ROLES, Caller, Grants, Permission, Scope, acts_from, may

Given = Callable[..., Any]

WORKSPACE = UUID(int=1)
SALES, SUPPORT = UUID(int=0x51), UUID(int=0x52)
ANA, BIA = UUID(int=0xA1), UUID(int=0xA2)
MARIA, JOAO = UUID(int=0xC1), UUID(int=0xC2)
MESSAGE = UUID(int=0xE1)
ANA_HERSELF = Actor(kind=ActorKind.AGENT, id=str(ANA))
CRM = Actor(kind=ActorKind.INTEGRATION, id="crm")

# The commands, each once, with the permission that the specification gives it.
CONVERSATION_COMMANDS: list[tuple[Command, str]] = [
    (HandOffToBot(bot="helper"), "transfer"),
    (HandOffFromBot(), "transfer"),
    (MarkPending(), "transfer"),
    (Assume(agent_id=ANA), "assume"),
    (Transfer(sector_id=SALES), "transfer"),
    (Finalize(surface=Surface.INBOX), "finalize-from-inbox"),
    (Finalize(surface=Surface.LISTING), "finalize-from-listing"),
    (FinalizeAutomatically(cause=FinalizationCause.AUTOMATION), "automatic"),
    (Reopen(), "reopen"),
    (ReceiveMessage(message_id=MESSAGE), "received"),
    (SendMessage(message_id=MESSAGE, author=ANA_HERSELF), "reply"),
    (AddNote(message_id=MESSAGE, author=ANA_HERSELF, text="note"), "reply"),
    (AddLabel(label="vip"), "label"),
    (RemoveLabel(label="vip"), "label"),
    (ChangePriority(priority=Priority.HIGH), "label"),
    (SetAttribute(key="plan", value="gold"), "label"),
    (ReassignContact(contact_id=JOAO), "edit-contact"),
]
OTHER_COMMANDS: list[tuple[Command, str]] = [
    (RegisterContact(contact_id=MARIA, details=ContactDetails()), "edit-contact"),
    (ChangeContactDetails(details=ContactDetails()), "edit-contact"),
    (EraseContact(), "erase-contact"),
    (CreateWorkspace(slug="acme", name="Acme"), "manage-directory"),
    (CreateSector(name="Sales"), "manage-directory"),
    (RenameSector(name="Sales"), "manage-directory"),
    (DeactivateSector(), "manage-directory"),
    (RegisterAgent(name="Ana"), "manage-directory"),
    (ChangeAgentRole(role="admin"), "manage-directory"),
    (JoinSector(sector_id=SALES), "manage-directory"),
    (LeaveSector(sector_id=SALES), "manage-directory"),
    (DeactivateAgent(), "manage-directory"),
    (DefineRole(name="night", grants={}), "manage-directory"),
    (IssueToken(name="crm", secret_sha256="a" * 64, actor=CRM, role="integration"), "manage-tokens"),
    (RevokeToken(), "manage-tokens"),
    (LinkIdentity(issuer="https://login.example.com", subject="ana", agent_id=ANA, role="agent"), "manage-directory"),
    (UnlinkIdentity(), "manage-directory"),
    (
        DefineAttribute(target=AttributeTarget.CONTACT, key="age", type=AttributeType.NUMBER, label="Age"),
        "manage-directory",
    ),
    (RetireAttribute(), "manage-directory"),
    (ChangeView(contents=ViewContents(name="Mine", filter="{}"), sort="opened_at"), "view"),
    (RemoveView(), "view"),
]

PROGRAMS_ONLY = {"automatic": "finalize-from-inbox", "received": "reply"}
"""What no person does, whatever their role: the permission that programs need for it."""

# Role by role, what it may do. An agent's permissions reach to their sectors, everybody else's to all.
MAY: dict[str, set[str]] = {
    "agent": {"view", "reply", "assume", "transfer", "finalize-from-inbox", "reopen", "label"}
    | {"view-contact", "edit-contact"},
    "supervisor": {"view", "reply", "assume", "transfer", "finalize-from-inbox", "finalize-from-listing", "reopen"}
    | {"label", "export", "view-contact", "edit-contact", "read-history"},
    "auditor": {"view", "export", "view-contact", "read-history", "verify-history"},
    "admin": {"view", "reply", "assume", "transfer", "finalize-from-inbox", "finalize-from-listing", "reopen", "label"}
    | {"export", "view-contact", "edit-contact", "erase-contact", "read-history", "verify-history"}
    | {"manage-directory", "manage-tokens"},
    "integration": {"view", "reply", "assume", "transfer", "finalize-from-inbox", "reopen", "label"}
    | {"view-contact", "edit-contact", *PROGRAMS_ONLY},
}
REACH = {"agent": "sector", "supervisor": "all", "auditor": "all", "admin": "all", "integration": "all"}

# Whose conversation it is, seen from Ana, who serves in support; and which reaches get there.
PLACES: dict[str, tuple[Owner, set[str]]] = {
    "own": (Owner(sector_id=SUPPORT, agent_id=ANA), {"own", "sector", "all"}),
    "own in a sector not hers": (Owner(sector_id=SALES, agent_id=ANA), {"own", "sector", "all"}),
    "own in no sector": (Owner(agent_id=ANA), {"own", "sector", "all"}),
    "a colleague's in her sector": (Owner(sector_id=SUPPORT, agent_id=BIA), {"sector", "all"}),
    "in her sector's queue": (Owner(sector_id=SUPPORT), {"sector", "all"}),
    "a bot's in her sector": (Owner(sector_id=SUPPORT, bot="helper"), {"sector", "all"}),
    "another sector's queue": (Owner(sector_id=SALES), {"all"}),
    "a stranger's in another sector": (Owner(sector_id=SALES, agent_id=BIA), {"all"}),
    "a stranger's in no sector": (Owner(agent_id=BIA), {"all"}),
    "nobody's": (Owner(), {"all"}),
}


def caller(grants: Grants, actor: Actor = ANA_HERSELF) -> Caller:
    return Caller(
        workspace_id=WORKSPACE,
        actor=actor,
        grants=grants,
        agent_id=ANA if actor is ANA_HERSELF else None,
        sectors=frozenset({SUPPORT}),
    )


def caller_with_role(role: str) -> Caller:
    return caller(BUILT_IN_ROLES[role], CRM if role == "integration" else ANA_HERSELF)


def conversation(owner: Owner, status: Status) -> Conversation:
    return Conversation(protocol="1", channel="phone", contact_id=MARIA, status=status, owner=owner, labels=("vip",))


def answer(command: Command, state: object, who: Caller, known: Known) -> str:
    """``not-found``, ``permission-denied``, or ``permitted``, whatever the rules say after that."""
    try:
        handle(command, state, known, who)
    except DomainError as refusal:
        if refusal.code in {"conversation-not-found", "permission-denied", "role-not-found"}:
            return refusal.code
    return "permitted"


def name(value: object) -> str:
    if isinstance(value, Finalize):
        return f"Finalize-from-{value.surface}"
    return type(value).__name__ if isinstance(value, Command) else str(value)


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize(("command", "permission"), CONVERSATION_COMMANDS, ids=name)
def test_a_role_may_do_to_a_conversation_what_the_table_says_and_nothing_else(
    world: Known, role: str, command: Command, permission: str
) -> None:
    who = caller_with_role(role)
    for (place, (owner, reaches)), status in product(PLACES.items(), Status):
        if REACH[role] not in reaches:
            expected = "conversation-not-found"
        elif permission in MAY[role]:
            expected = "permitted"
        else:
            expected = "permission-denied"
        assert answer(command, conversation(owner, status), who, world) == expected, (place, status)


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize(("command", "permission"), OTHER_COMMANDS, ids=name)
def test_a_role_may_do_to_contacts_and_the_directory_what_the_table_says(
    world: Known, role: str, command: Command, permission: str
) -> None:
    expected = "permitted" if permission in MAY[role] else "permission-denied"
    assert answer(command, None, caller_with_role(role), world) == expected


@pytest.mark.parametrize(("command", "permission"), OTHER_COMMANDS, ids=name)
def test_what_is_not_a_conversation_needs_its_own_permission_and_no_other(
    world: Known, command: Command, permission: str
) -> None:
    needed = Permission(permission)
    hands_on_a_role = isinstance(command, RegisterAgent | ChangeAgentRole | IssueToken | LinkIdentity)
    handed_on = BUILT_IN_ROLES[command.role] if hands_on_a_role else {}
    everything_else = caller(dict.fromkeys(set(Permission) - {needed}, Scope.ALL))
    assert answer(command, None, caller({**handed_on, needed: Scope.ALL}), world) == "permitted"
    assert answer(command, None, everything_else, world) == "permission-denied"


@pytest.mark.parametrize("permission", [Permission.MANAGE_DIRECTORY, Permission.MANAGE_TOKENS])
@pytest.mark.parametrize("scope", [Scope.OWN, Scope.SECTOR])
def test_people_roles_and_tokens_are_managed_for_all_of_the_workspace_or_not_at_all(
    world: Known, permission: Permission, scope: Scope
) -> None:
    for command, needed in OTHER_COMMANDS:
        if needed == permission:
            who = caller(dict.fromkeys(Permission, Scope.ALL) | {permission: scope})
            assert answer(command, None, who, world) == "permission-denied"


def _roles_given(role: str) -> list[Command]:
    return [
        RegisterAgent(name="Ana", role=role),
        ChangeAgentRole(role=role),
        IssueToken(name="crm", secret_sha256="a" * 64, actor=CRM, role=role),
    ]


def test_nobody_grants_more_than_they_were_granted(world: Known) -> None:
    less = dict.fromkeys(Permission, Scope.ALL)
    del less[Permission.ERASE_CONTACT]
    narrower = dict.fromkeys(Permission, Scope.ALL) | {Permission.EXPORT: Scope.SECTOR}
    link = LinkIdentity(issuer="https://login.example.com", subject="ana", agent_id=ANA, role="admin")
    for held in (less, narrower):
        for command in (
            *_roles_given("admin"),
            link,
            DefineRole(name="x", grants=dict.fromkeys(Permission, Scope.ALL)),
        ):
            assert answer(command, None, caller(held), world) == "permission-denied"
        assert answer(DefineRole(name="x", grants=held), None, caller(held), world) == "permitted"


def test_a_token_for_somebody_else_takes_the_reach_to_what_is_theirs(world: Known) -> None:
    own = {Permission.MANAGE_TOKENS: Scope.ALL, Permission.VIEW: Scope.OWN}
    known = replace(world, roles={role_id("night"): Role(name="night", grants={Permission.VIEW: Scope.OWN})})
    token = IssueToken(name="x", secret_sha256="a" * 64, actor=CRM, role="night")
    assert answer(token, None, caller(own), known) == "permission-denied"
    assert answer(token, None, caller(own | {Permission.VIEW: Scope.ALL}), known) == "permitted"
    himself = caller(own)
    assert answer(token.model_copy(update={"actor": himself.actor}), None, himself, known) == "permitted"


def test_linking_an_identity_to_somebody_else_takes_the_reach_to_what_is_theirs(world: Known) -> None:
    own = {Permission.MANAGE_DIRECTORY: Scope.ALL, Permission.VIEW: Scope.SECTOR}
    roles = {role_id("night"): Role(name="night", grants={Permission.VIEW: Scope.SECTOR})}
    agents = {id_: Agent(name="x", role="night") for id_ in (ANA, BIA)}
    known = replace(world, roles=roles, agents=agents)
    link = LinkIdentity(issuer="https://login.example.com", subject="x", agent_id=BIA, role="night")
    assert answer(link, None, caller(own), known) == "permission-denied"
    assert answer(link, None, caller(own | {Permission.VIEW: Scope.ALL}), known) == "permitted"
    assert answer(link.model_copy(update={"agent_id": ANA}), None, caller(own), known) == "permitted"


def test_a_role_must_be_built_in_or_defined(world: Known) -> None:
    admin = caller_with_role("admin")
    known = replace(world, roles={role_id("night"): Role(name="night", grants={Permission.VIEW: Scope.OWN})})
    for command in _roles_given("night"):
        assert answer(command, None, admin, world) == "role-not-found"
        assert answer(command, None, admin, known) == "permitted"


def test_a_built_in_role_is_not_redefined() -> None:
    with pytest.raises(DomainError) as refused:
        decide_role(DefineRole(name="admin", grants={}), None)
    assert refused.value.code == "role-built-in"


@pytest.mark.parametrize("granted", Scope)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("command", "permission"), CONVERSATION_COMMANDS, ids=name)
def test_a_role_of_the_workspace_reaches_as_far_as_its_scope(
    world: Known, command: Command, permission: str, place: str, granted: Scope
) -> None:
    owner, reaches = PLACES[place]
    needed = Permission(PROGRAMS_ONLY.get(permission, permission))
    who = caller({Permission.VIEW: granted, needed: granted})
    sees_all = caller({Permission.VIEW: Scope.ALL, needed: granted})
    sees_only = caller(dict.fromkeys(set(Permission) - {needed}, granted))
    blind = caller(dict.fromkeys(set(Permission) - {Permission.VIEW}, Scope.ALL))
    in_sight = granted.value in reaches
    permitted = in_sight and permission not in PROGRAMS_ONLY
    for status in Status:
        state = conversation(owner, status)
        assert answer(command, state, who, world) == (
            ("permitted" if permitted else "permission-denied") if in_sight else "conversation-not-found"
        )
        assert answer(command, state, sees_all, world) == ("permitted" if permitted else "permission-denied")
        assert answer(command, state, sees_only, world) == (
            "permission-denied" if in_sight else "conversation-not-found"
        )
        assert answer(command, state, blind, world) == "conversation-not-found"
        assert answer(command, state, caller({}), world) == "conversation-not-found"


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize(("command", "permission"), CONVERSATION_COMMANDS, ids=name)
def test_what_is_not_there_is_answered_like_what_is_out_of_sight(
    world: Known, role: str, command: Command, permission: str
) -> None:
    assert answer(command, None, caller_with_role(role), world) == "conversation-not-found"


@pytest.mark.parametrize("role", MAY)
@pytest.mark.parametrize("place", ["own", "in her sector's queue", "another sector's queue", "nobody's"])
def test_a_conversation_is_opened_only_where_one_may_reply(world: Known, role: str, place: str) -> None:
    owner, reaches = PLACES[place]
    command = OpenConversation(
        protocol="1", channel="phone", contact_id=MARIA, sector_id=owner.sector_id, agent_id=owner.agent_id
    )
    expected = "permitted" if "reply" in MAY[role] and REACH[role] in reaches else "permission-denied"
    assert answer(command, None, caller_with_role(role), world) == expected


VIEW = ViewContents(name="Mine", filter="{}")
HERS = SaveView(owner=ANA_HERSELF, contents=VIEW, sort="opened_at")


@pytest.mark.parametrize("role", MAY)
def test_a_view_is_kept_by_whoever_may_view_and_in_their_own_name_only(world: Known, role: str) -> None:
    who = caller_with_role(role)
    own = HERS.model_copy(update={"owner": who.actor})
    elses = HERS.model_copy(update={"owner": Actor(kind=ActorKind.AGENT, id=str(BIA))})
    assert answer(own, None, who, world) == "permitted"
    assert answer(elses, None, who, world) == "permission-denied"
    assert answer(own, None, caller({}), world) == "permission-denied"


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("role", MAY)
def test_a_private_view_exists_for_its_owner_only_and_a_shared_one_is_theirs_or_the_directorys_to_change(
    given: Given, world: Known, role: str, shared: bool
) -> None:
    theirs = Actor(kind=ActorKind.AGENT, id=str(BIA))
    saved = ViewSaved(owner=theirs, shared=shared, sort="opened_at", descending=True, columns=(), personal=VIEW)
    manages = "manage-directory" in MAY[role]
    expected = None if shared and manages else ("permission-denied" if shared else "view-not-found")
    for command in (ChangeView(contents=VIEW, sort="priority", shared=shared), RemoveView()):
        assert given(saved, known=world).when(command, caller_with_role(role)).refusal == expected
        assert given(saved, known=world).when(command, caller(BUILT_IN_ROLES["agent"], theirs)).refusal is None
        partly = caller(dict(BUILT_IN_ROLES["agent"]) | {Permission.MANAGE_DIRECTORY: Scope.SECTOR})
        assert given(saved, known=world).when(command, partly).refusal == (
            "permission-denied" if shared else "view-not-found"
        )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("granted", Scope)
def test_a_contact_is_edited_and_erased_through_a_conversation_where_the_permission_does_not_reach_all(
    given: Given, world: Known, granted: Scope, place: str
) -> None:
    owner, reaches = PLACES[place]
    through = UUID(int=0xD1)
    maria = ContactRegistered(contact_id=MARIA, personal=ContactDetails())
    change = ChangeContactDetails(details=ContactDetails(name="Maria"), through=through)
    who = caller({Permission.EDIT_CONTACT: granted, Permission.ERASE_CONTACT: granted})
    reached = replace(world, conversations={through: conversation(owner, Status.PENDING)})
    elses = replace(world, conversations={through: replace(conversation(owner, Status.PENDING), contact_id=JOAO)})
    no = None if granted is Scope.ALL else "contact-not-found"
    assert given(maria, known=reached).when(change, who).refusal == (None if granted.value in reaches else no)
    assert given(maria, known=elses).when(change, who).refusal == no
    assert given(maria, known=world).when(change, who).refusal == no
    assert given(maria, known=reached).when(ChangeContactDetails(details=change.details), who).refusal == no
    erase = EraseContact(through=through)
    assert given(maria, known=reached).when(erase, who).refusal == (None if granted.value in reaches else no)
    assert given(maria, known=elses).when(erase, who).refusal == no
    assert given(maria, known=reached).when(EraseContact(), who).refusal == no


def naming(contact: UUID, **how: Any) -> list[Command]:
    """What brings a contact into a conversation of Ana's, and so into her reach."""
    return [
        OpenConversation(protocol="1", channel="phone", contact_id=contact, sector_id=SUPPORT, agent_id=ANA, **how),
        ReassignContact(contact_id=contact, **how),
    ]


@pytest.mark.parametrize("granted", Scope)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("limited", [Permission.VIEW_CONTACT, Permission.EDIT_CONTACT])
def test_a_contact_is_named_only_by_whom_they_exist_for(
    given: Given, world: Known, limited: Permission, place: str, granted: Scope
) -> None:
    owner, reaches = PLACES[place]
    through = UUID(int=0xF1)
    agents = {ANA: Agent(name="Ana", role="agent", sectors=(SUPPORT,))}
    reached = replace(
        world,
        agents=agents,
        conversations={through: replace(conversation(owner, Status.PENDING), contact_id=JOAO)},
    )
    elses = replace(reached, conversations={through: conversation(owner, Status.PENDING)})
    hers = ConversationOpened(protocol="1", channel="phone", contact_id=MARIA, sector_id=SUPPORT, agent_id=ANA)
    who = caller(dict.fromkeys(Permission, Scope.ALL) | {limited: granted})
    no = None if granted is Scope.ALL else "contact-not-found"

    def refusals(known: Known, commands: list[Command], *, who: Caller = who) -> set[str | None]:
        histories: list[tuple[Any, ...]] = [(), (hers,)]
        return {
            given(*history, known=known).when(command, who).refusal
            for history, command in zip(histories, commands, strict=True)
        }

    assert refusals(reached, naming(JOAO, through=through)) == {None if granted.value in reaches else no}
    assert refusals(elses, naming(JOAO, through=through)) == {no}
    assert refusals(reached, naming(JOAO)) == {no}
    assert refusals(reached, naming(UUID(int=0xCF))) == {"contact-not-found"}, "as what is not there"
    assert refusals(reached, naming(JOAO, registered=True)) == {None}
    assert given(hers, known=reached).when(ReassignContact(contact_id=MARIA), who).then()
    nothing_of_contacts = {name: Scope.ALL for name in Permission if "contact" not in name}
    blind = caller(nothing_of_contacts | {Permission.EDIT_CONTACT: Scope.ALL})
    assert refusals(reached, naming(JOAO), who=blind) == {None}, "nothing of the contact comes into their reach"


@pytest.mark.parametrize("granted", Scope)
def test_whose_id_is_registered_again_is_told_only_to_whom_they_exist_for(
    given: Given, world: Known, granted: Scope
) -> None:
    details = ContactDetails(name="Maria")
    maria = ContactRegistered(contact_id=MARIA, personal=details)
    who = caller({Permission.EDIT_CONTACT: granted, Permission.VIEW_CONTACT: granted})
    same, other = (RegisterContact(contact_id=MARIA, details=each) for each in (details, ContactDetails(name="Ana")))
    assert given(maria).when(other, who).refusal == "already-exists"
    assert given(maria).when(same, who).refusal == (None if granted is Scope.ALL else "already-exists")
    assert given(maria).when(same.model_copy(update={"registered": True}), who).then()
    assert given().when(same, who).refusal is None


@pytest.mark.parametrize("kind", ActorKind)
def test_only_bots_integrations_and_the_system_finalize_automatically(world: Known, kind: ActorKind) -> None:
    who = caller(BUILT_IN_ROLES["admin"], Actor(kind=kind, id="x"))
    command = FinalizeAutomatically(cause=FinalizationCause.INACTIVITY)
    expected = "permission-denied" if kind in {ActorKind.AGENT, ActorKind.CONTACT} else "permitted"
    assert answer(command, conversation(Owner(), Status.PENDING), who, world) == expected


@pytest.mark.parametrize("kind", ActorKind)
def test_only_channels_and_the_system_record_what_a_contact_wrote(world: Known, kind: ActorKind) -> None:
    who = caller(BUILT_IN_ROLES["admin"], Actor(kind=kind, id="x"))
    expected = "permission-denied" if kind in {ActorKind.AGENT, ActorKind.BOT} else "permitted"
    for status in Status:
        assert answer(ReceiveMessage(message_id=MESSAGE), conversation(Owner(), status), who, world) == expected


@pytest.mark.parametrize("surface", Surface)
def test_an_agent_acts_where_persons_act(surface: Surface) -> None:
    persons = {Surface.INBOX, Surface.LISTING, Surface.BULK, Surface.API, Surface.IMPORT}
    assert acts_from(caller_with_role("admin"), surface) is (surface in persons)
    assert acts_from(caller_with_role("integration"), surface)


@pytest.mark.parametrize("kind", [kind for kind in ActorKind if kind is not ActorKind.CONTACT])
@pytest.mark.parametrize("write", [SendMessage, AddNote])
def test_agents_and_bots_write_in_their_own_name_only(
    world: Known, kind: ActorKind, write: type[SendMessage | AddNote]
) -> None:
    who = caller(BUILT_IN_ROLES["admin"], Actor(kind=kind, id="x"))
    other = Actor(kind=ActorKind.AGENT, id="somebody else")
    state = conversation(Owner(sector_id=SUPPORT), Status.PENDING)
    expected = "permission-denied" if kind in {ActorKind.AGENT, ActorKind.BOT} else "permitted"
    assert answer(write(message_id=MESSAGE, author=other, text="x"), state, who, world) == expected
    assert answer(write(message_id=MESSAGE, author=who.actor, text="x"), state, who, world) == "permitted"


@pytest.mark.parametrize("write", [SendMessage, AddNote])
def test_what_a_contact_wrote_is_not_sent(write: type[SendMessage | AddNote]) -> None:
    with pytest.raises(ValidationError, match="received, not sent"):
        write(message_id=MESSAGE, author=Actor(kind=ActorKind.CONTACT, id="x"), text="x")


@pytest.mark.parametrize("kind", ActorKind)
@pytest.mark.parametrize(
    ("take", "status"), [("open", None), ("assume", Status.PENDING), ("reopen", Status.FINALIZED)], ids=name
)
def test_an_agent_takes_for_themself_and_only_others_may_place_it_with_an_agent(
    world: Known, kind: ActorKind, take: str, status: Status | None
) -> None:
    who = caller(BUILT_IN_ROLES["admin"], ANA_HERSELF if kind is ActorKind.AGENT else Actor(kind=kind, id="x"))
    state = None if status is None else conversation(Owner(sector_id=SUPPORT), status)
    for agent in (ANA, BIA):
        taking: dict[str, Command] = {
            "open": OpenConversation(protocol="1", channel="phone", contact_id=MARIA, agent_id=agent),
            "assume": Assume(agent_id=agent),
            "reopen": Reopen(agent_id=agent),
        }
        denied = kind is ActorKind.AGENT and agent is not ANA
        assert answer(taking[take], state, who, world) == ("permission-denied" if denied else "permitted")


def test_a_denial_names_the_permission_to_ask_for(world: Known) -> None:
    with pytest.raises(DomainError, match="finalize-from-listing"):
        handle(
            Finalize(surface=Surface.LISTING),
            conversation(Owner(sector_id=SUPPORT), Status.PENDING),
            world,
            caller_with_role("agent"),
        )


def test_the_built_in_roles_grant_what_the_table_says() -> None:
    granted = {
        role: {(permission.value, scope.value) for permission, scope in grants.items()}
        for role, grants in BUILT_IN_ROLES.items()
    }
    assert granted == {
        role: {(may, REACH[role]) for may in allowed - set(PROGRAMS_ONLY)} for role, allowed in MAY.items()
    }


@pytest.mark.parametrize("permission", Permission)
def test_nothing_is_permitted_by_default(permission: Permission) -> None:
    assert not may(caller({}), permission)
    assert not any(may(caller({}), permission, owner) for owner, _ in PLACES.values())


def test_agents_without_an_id_own_nothing() -> None:
    integration = caller({Permission.VIEW: Scope.OWN}, CRM)
    assert not any(may(integration, Permission.VIEW, owner) for owner, _ in PLACES.values())


def test_every_permission_of_the_specification_is_there_and_no_other() -> None:
    assert {permission.value for permission in Permission} == MAY["admin"]


def leaves(kind: type[Command]) -> Iterator[type[Command]]:
    for sub in kind.__subclasses__():
        if sub.__subclasses__():
            yield from leaves(sub)
        elif sub.__module__ == commands.__name__:
            yield sub


def test_every_command_is_in_a_table_here() -> None:
    covered = {type(command) for command, _ in (*CONVERSATION_COMMANDS, *OTHER_COMMANDS)} | {OpenConversation, SaveView}
    assert covered == set(leaves(Command))
    assert all(isinstance(command, ConversationCommand) for command, _ in CONVERSATION_COMMANDS)
