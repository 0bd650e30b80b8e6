"""Role, action, status, scope in the domain: every cell of `tests/permission_table.py`, rules of the lifecycle included.

`test_permissions.py` says who is let through; here it is also said what the rules then answer. The same cells are walked
over HTTP by `tests/acceptance/test_permission_cells.py`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from uuid import UUID

import pytest
from permission_table import (
    ACTIONS,
    BUILT_IN,
    CALLERS,
    PERMISSIONS,
    PLACES,
    QUERIES,
    ROLES,
    Action,
    Place,
    Who,
    cells,
    expected,
    expected_of_opening,
    expected_of_query,
    may,
    statuses,
)

from api.problems import status_of
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    ChangePriority,
    Command,
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
from domain.contact import Contact
from domain.conversation import Conversation
from domain.decider import handle
from domain.directory import Agent, Known, Sector
from domain.errors import DomainError
from domain.events import Actor, ActorKind, ContactDetails, FinalizationCause, Owner, Priority, Status, Surface
from domain.permissions import BUILT_IN_ROLES, Caller, Permission, Scope
from domain.permissions import may as domain_may

SUPPORT, SALES = UUID(int=0x51), UUID(int=0x52)
HERSELF, COLLEAGUE = UUID(int=0xA1), UUID(int=0xA2)
CONTACT, OTHER_CONTACT = UUID(int=0xC1), UUID(int=0xC2)
MESSAGE, THROUGH = UUID(int=0xE1), UUID(int=0xF1)
SECTOR_IDS = {"support": SUPPORT, "sales": SALES, None: None}
WORLD = Known(
    contacts={id_: Contact(id=id_, details=ContactDetails()) for id_ in (CONTACT, OTHER_CONTACT)},
    sectors={SUPPORT: Sector("Support"), SALES: Sector("Sales")},
    agents={id_: Agent(name="x", role="agent", sectors=(SUPPORT, SALES)) for id_ in (HERSELF, COLLEAGUE)},
)


def caller_of(who: Who) -> Caller:
    agent = who.kind == "agent"
    return Caller(
        workspace_id=UUID(int=1),
        actor=Actor(kind=ActorKind(who.kind), id=str(HERSELF) if agent else "caller"),
        grants={Permission(name): Scope(scope) for name, scope in ROLES[who.role].items()},
        agent_id=HERSELF if agent else None,
        sectors=frozenset({SUPPORT} if agent else ()),
    )


def owner_at(place: Place, who: Who) -> Owner:
    owner = Owner(sector_id=SECTOR_IDS[place.sector])
    match place.holder, who.kind:
        case "queue", _:
            return owner
        case ("bot", _):
            return owner.model_copy(update={"bot": "some-bot"})
        case ("caller", "bot"):
            return owner.model_copy(update={"bot": "caller"})
        case _:
            return owner.model_copy(update={"agent_id": HERSELF if place.holder == "caller" else COLLEAGUE})


COMMANDS: dict[str, Callable[[Caller], Command]] = {
    "hand off to a bot": lambda _: HandOffToBot(bot="another-bot"),
    "hand off from the bot": lambda _: HandOffFromBot(),
    "put back": lambda _: MarkPending(),
    "assume": lambda caller: Assume(agent_id=caller.agent_id or COLLEAGUE),
    "transfer": lambda _: Transfer(sector_id=UUID(int=0x53)),
    "finalize from the inbox": lambda _: Finalize(surface=Surface.INBOX),
    "finalize from the listing": lambda _: Finalize(surface=Surface.LISTING),
    "finalize automatically": lambda _: FinalizeAutomatically(cause=FinalizationCause.INACTIVITY),
    "reopen": lambda _: Reopen(),
    "record a message received": lambda _: ReceiveMessage(message_id=MESSAGE),
    "send a message": lambda caller: SendMessage(message_id=MESSAGE, author=caller.actor),
    "note": lambda caller: AddNote(message_id=MESSAGE, author=caller.actor, text="x"),
    "label": lambda _: AddLabel(label="vip"),
    "take a label off": lambda _: RemoveLabel(label="vip"),
    "change the priority": lambda _: ChangePriority(priority=Priority.HIGH),
    "set an attribute": lambda _: SetAttribute(key="order", value="4711"),
    "reassign the contact": lambda _: ReassignContact(contact_id=OTHER_CONTACT, through=THROUGH),
}


def answer(command: Command, state: Conversation | None, caller: Caller) -> tuple[int, str]:
    own = Owner(agent_id=caller.agent_id, bot=caller.bot)
    theirs = Conversation("1", "phone", contact_id=OTHER_CONTACT, status=Status.PENDING, owner=own)
    sectors = {**WORLD.sectors, UUID(int=0x53): Sector("Quality")}
    known = replace(WORLD, sectors=sectors, conversations={THROUGH: theirs})
    try:
        handle(command, state, known, caller)
    except DomainError as refusal:
        return status_of(refusal), refusal.code
    return 200 if state else 201, ""


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_every_cell_is_answered_as_the_table_says(who: Who, action: Action) -> None:
    caller = caller_of(who)
    for place in PLACES:
        for status in statuses(place, who):
            state = Conversation(
                protocol="1", channel="phone", contact_id=CONTACT, status=Status(status), owner=owner_at(place, who)
            )
            found = answer(COMMANDS[action.name](caller), state, caller)
            assert found == expected(who, action, place, status), (place.name, status)


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
def test_a_conversation_is_opened_where_the_table_says(who: Who) -> None:
    caller = caller_of(who)
    for place in PLACES:
        if place.holder == "bot" or (place.holder == "caller" and who.kind != "agent"):
            continue
        owner = owner_at(place, who)
        command = OpenConversation(
            protocol="1",
            channel="x",
            contact_id=OTHER_CONTACT,
            sector_id=owner.sector_id,
            agent_id=owner.agent_id,
            through=THROUGH,
        )
        assert answer(command, None, caller) == expected_of_opening(who, place.sector, place.holder), place.name


@pytest.mark.parametrize("who", CALLERS, ids=lambda who: who.name)
def test_what_is_read_reaches_as_far_as_the_table_says(who: Who) -> None:
    caller = caller_of(who)
    for _, permission in QUERIES:
        for place in (place for place in PLACES if statuses(place, who)):
            owner = owner_at(place, who)
            let_through = domain_may(caller, Permission.VIEW, owner) and domain_may(
                caller, Permission(permission), owner
            )
            assert let_through == (expected_of_query(who, permission, place)[0] == 200), place.name


def test_the_table_knows_every_permission_and_every_built_in_role() -> None:
    assert set(PERMISSIONS) == {permission.value for permission in Permission}
    assert {
        role: {permission.value: scope.value for permission, scope in grants.items()}
        for role, grants in BUILT_IN_ROLES.items()
    } == BUILT_IN


def test_the_table_has_cells_of_every_kind() -> None:
    statuses_met = Counter(expected(*cell)[0] for cell in cells())
    assert {status: count > 500 for status, count in statuses_met.items()} == dict.fromkeys((200, 403, 404, 409), True)
    assert sum(statuses_met.values()) > 7_000
    assert {action.name for action in ACTIONS} == set(COMMANDS)


def test_a_table_that_is_wrong_in_one_cell_is_noticed() -> None:
    """The canary: were sector scope to reach what nobody holds, these cells would differ."""
    who, place = Who("agent", "agent"), Place(None, "queue")
    assert may(who, "label", place) == (404, "conversation-not-found")
    generous = replace(caller_of(who), grants=dict.fromkeys(Permission, Scope.ALL))
    state = Conversation(protocol="1", channel="x", contact_id=CONTACT, status=Status.PENDING, owner=Owner())
    assert answer(AddLabel(label="vip"), state, generous) != expected(who, ACTIONS[12], place, "pending")
