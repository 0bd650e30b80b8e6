"""Every command in every status, from the lifecycle table of the specification.

Invariant: a row per command; a command without a row fails the last test here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from domain import commands
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    ChangePriority,
    Command,
    ConversationCommand,
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
from domain.events import (
    Actor,
    ActorKind,
    AttributePersonal,
    AttributeSet,
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
    FinalizationCause,
    FinalizedPersonal,
    LabelAdded,
    LabelRemoved,
    MessageKind,
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

Given = Callable[..., Any]

SALES, SUPPORT = UUID(int=0x51), UUID(int=0x52)
ANA, BIA = UUID(int=0xA1), UUID(int=0xA2)
MARIA, JOAO = UUID(int=0xC1), UUID(int=0xC2)
MESSAGE = UUID(int=0xE1)
ANA_HERSELF = Actor(kind=ActorKind.AGENT, id=str(ANA))
THE_BOT = Actor(kind=ActorKind.BOT, id="helper")
MARIA_HERSELF = Actor(kind=ActorKind.CONTACT, id=str(MARIA))

opened = ConversationOpened(protocol="2024-1", channel="whatsapp", contact_id=MARIA, sector_id=SUPPORT)
labelled = LabelAdded(label="vip", before=(), after=("vip",))
handed_off_to_bot = ConversationHandedOffToBot(bot="helper", reason="night")
assumed = ConversationAssumed(agent_id=ANA)
finalized = ConversationFinalizedFromInbox(outcome="solved", contact_id=MARIA)

WITH_BOT, PENDING, IN_PROGRESS, FINALIZED = Status
HISTORY: dict[Status, tuple[Event, ...]] = {
    WITH_BOT: (opened, labelled, handed_off_to_bot),
    PENDING: (opened, labelled),
    IN_PROGRESS: (opened, labelled, assumed),
    FINALIZED: (opened, labelled, assumed, finalized),
}
OWNER = {
    WITH_BOT: Owner(sector_id=SUPPORT, bot="helper"),
    PENDING: Owner(sector_id=SUPPORT),
    IN_PROGRESS: Owner(sector_id=SUPPORT, agent_id=ANA),
}


class To(NamedTuple):
    """The events of a cell and the status they lead to."""

    status: Status
    events: tuple[Event, ...]


def to(status: Status, *events: Event) -> To:
    return To(status, events)


ALREADY_SO = None
Cell = To | str | None
"""Events and the status after them; the code of a refusal; or nothing, because it is already so."""

ALREADY_FINALIZED = "conversation-already-finalized"
said = MessagePersonal(text="hello")
received = MessageReceived(
    message_id=MESSAGE, author=MARIA_HERSELF, kind=MessageKind.TEXT, contact_id=MARIA, personal=said
)
sent = MessageSent(message_id=MESSAGE, author=ANA_HERSELF, kind=MessageKind.TEXT, contact_id=MARIA, personal=said)
sent_by_bot = sent.model_copy(update={"author": THE_BOT})
noted = NoteAdded(message_id=MESSAGE, author=ANA_HERSELF, contact_id=MARIA, personal=NotePersonal(text="vip?"))
by_bot = ConversationHandedOffByBot(bot="helper", sector_id=SUPPORT, reason="asked for a person")
reopened = ConversationReopened(episode=2, sector_id=SUPPORT, reason="not solved")
from_inbox = ConversationFinalizedFromInbox(
    outcome="solved", contact_id=MARIA, personal=FinalizedPersonal(comment="ok")
)
from_listing = ConversationFinalizedFromListing(outcome="spam", contact_id=MARIA)
by_itself = ConversationFinalizedAutomatically(cause=FinalizationCause.INACTIVITY)
to_sales = {
    status: ConversationTransferred(
        source=owner, target=Owner(sector_id=SALES), reason="wants to buy", target_presence=None
    )
    for status, owner in OWNER.items()
}
to_bia = {
    status: ConversationTransferred(
        source=owner, target=Owner(sector_id=SALES, agent_id=BIA), reason="knows her", target_presence=Presence.AWAY
    )
    for status, owner in OWNER.items()
}


def in_any(*events: Event) -> tuple[Cell, Cell, Cell, Cell]:
    """The same events whatever the status, which stays."""
    return (to(WITH_BOT, *events), to(PENDING, *events), to(IN_PROGRESS, *events), to(FINALIZED, *events))


# command: with_bot, pending (in support), in_progress (Ana has it), finalized
TABLE: list[tuple[Command, tuple[Cell, Cell, Cell, Cell]]] = [
    (
        OpenConversation(protocol="2024-1", channel="whatsapp", contact_id=MARIA, sector_id=SUPPORT),
        (ALREADY_SO, ALREADY_SO, ALREADY_SO, ALREADY_SO),
    ),
    (
        OpenConversation(protocol="2024-2", channel="whatsapp", contact_id=MARIA),
        ("already-exists", "already-exists", "already-exists", "already-exists"),
    ),
    (
        HandOffToBot(bot="helper", reason="night"),
        (ALREADY_SO, to(WITH_BOT, handed_off_to_bot), to(WITH_BOT, handed_off_to_bot), ALREADY_FINALIZED),
    ),
    (
        HandOffToBot(bot="seller", reason="night"),
        (
            "conversation-with-bot",
            to(WITH_BOT, ConversationHandedOffToBot(bot="seller", reason="night")),
            to(WITH_BOT, ConversationHandedOffToBot(bot="seller", reason="night")),
            ALREADY_FINALIZED,
        ),
    ),
    (
        HandOffFromBot(reason="asked for a person"),
        (to(PENDING, by_bot), ALREADY_SO, "conversation-not-with-bot", ALREADY_FINALIZED),
    ),
    (
        HandOffFromBot(sector_id=SALES, reason="asked for a person"),
        (
            to(PENDING, by_bot.model_copy(update={"sector_id": SALES})),
            "conversation-not-with-bot",
            "conversation-not-with-bot",
            ALREADY_FINALIZED,
        ),
    ),
    (
        MarkPending(reason="released"),
        (
            "conversation-with-bot",
            ALREADY_SO,
            to(PENDING, ConversationMarkedPending(sector_id=SUPPORT, reason="released")),
            ALREADY_FINALIZED,
        ),
    ),
    (
        MarkPending(sector_id=SALES, reason="waiting_contact"),
        (
            "conversation-with-bot",
            "conversation-already-pending",
            to(PENDING, ConversationMarkedPending(sector_id=SALES, reason="waiting_contact")),
            ALREADY_FINALIZED,
        ),
    ),
    (Assume(agent_id=ANA), (to(IN_PROGRESS, assumed), to(IN_PROGRESS, assumed), ALREADY_SO, ALREADY_FINALIZED)),
    (
        Assume(agent_id=BIA),
        (
            to(IN_PROGRESS, ConversationAssumed(agent_id=BIA)),
            to(IN_PROGRESS, ConversationAssumed(agent_id=BIA)),
            "conversation-already-assumed",
            ALREADY_FINALIZED,
        ),
    ),
    (
        Transfer(sector_id=SALES, reason="wants to buy"),
        (
            to(PENDING, to_sales[WITH_BOT]),
            to(PENDING, to_sales[PENDING]),
            to(PENDING, to_sales[IN_PROGRESS]),
            ALREADY_FINALIZED,
        ),
    ),
    (
        Transfer(agent_id=BIA, reason="knows her"),
        (
            to(IN_PROGRESS, to_bia[WITH_BOT]),
            to(IN_PROGRESS, to_bia[PENDING]),
            to(IN_PROGRESS, to_bia[IN_PROGRESS]),
            ALREADY_FINALIZED,
        ),
    ),
    (
        Finalize(surface=Surface.INBOX, outcome="solved", comment="ok"),
        (to(FINALIZED, from_inbox), to(FINALIZED, from_inbox), to(FINALIZED, from_inbox), ALREADY_SO),
    ),
    (
        Finalize(surface=Surface.LISTING, outcome="spam"),
        (to(FINALIZED, from_listing), to(FINALIZED, from_listing), to(FINALIZED, from_listing), ALREADY_SO),
    ),
    (
        FinalizeAutomatically(cause=FinalizationCause.INACTIVITY),
        (to(FINALIZED, by_itself), to(FINALIZED, by_itself), to(FINALIZED, by_itself), ALREADY_SO),
    ),
    (Reopen(reason="not solved"), (ALREADY_SO, ALREADY_SO, ALREADY_SO, to(PENDING, reopened))),
    (
        ReceiveMessage(message_id=MESSAGE, text="hello"),
        (
            to(WITH_BOT, received),
            to(PENDING, received),
            to(IN_PROGRESS, received),
            to(PENDING, reopened.model_copy(update={"reason": "message received"}), received),
        ),
    ),
    (SendMessage(message_id=MESSAGE, author=ANA_HERSELF, text="hello"), in_any(sent)),
    (
        SendMessage(message_id=MESSAGE, author=THE_BOT, text="hello"),
        (to(WITH_BOT, sent_by_bot), "bot-not-in-charge", "bot-not-in-charge", "bot-not-in-charge"),
    ),
    (AddNote(message_id=MESSAGE, author=ANA_HERSELF, text="vip?"), in_any(noted)),
    (AddLabel(label="billing"), in_any(LabelAdded(label="billing", before=("vip",), after=("billing", "vip")))),
    (AddLabel(label="vip"), (ALREADY_SO, ALREADY_SO, ALREADY_SO, ALREADY_SO)),
    (RemoveLabel(label="vip"), in_any(LabelRemoved(label="vip", before=("vip",), after=()))),
    (RemoveLabel(label="billing"), (ALREADY_SO, ALREADY_SO, ALREADY_SO, ALREADY_SO)),
    (ChangePriority(priority=Priority.HIGH), in_any(PriorityChanged(before=Priority.NORMAL, after=Priority.HIGH))),
    (ChangePriority(priority=Priority.NORMAL), (ALREADY_SO, ALREADY_SO, ALREADY_SO, ALREADY_SO)),
    (
        SetAttribute(key="plan", value="gold"),
        in_any(AttributeSet(key="plan", contact_id=MARIA, personal=AttributePersonal(before=None, after="gold"))),
    ),
    (SetAttribute(key="plan", value=None), (ALREADY_SO, ALREADY_SO, ALREADY_SO, ALREADY_SO)),
    (ReassignContact(contact_id=JOAO), in_any(ContactReassigned(before=MARIA, after=JOAO))),
    (ReassignContact(contact_id=MARIA), (ALREADY_SO, ALREADY_SO, ALREADY_SO, ALREADY_SO)),
]


def _name(command: Command) -> str:
    asked = ", ".join(f"{key}={value!s:.12}" for key, value in command.model_dump(exclude_unset=True).items())
    return f"{type(command).__name__}({asked})"


CELLS = [
    pytest.param(command, status, cell, id=f"{_name(command)}-when-{status}")
    for command, row in TABLE
    for status, cell in zip(Status, row, strict=True)
]


@pytest.mark.parametrize(("command", "status", "cell"), CELLS)
def test_each_command_in_each_status_does_what_the_lifecycle_says(
    given: Given, command: Command, status: Status, cell: Cell
) -> None:
    outcome = given(*HISTORY[status]).when(command)
    match cell:
        case None:
            outcome.then()
        case str():
            outcome.then(cell)
        case To():
            outcome.then(*cell.events)
            assert outcome.state.status is cell.status


@pytest.mark.parametrize("command", [pytest.param(command, id=_name(command)) for command, _ in TABLE])
def test_only_opening_makes_a_conversation_out_of_nothing(given: Given, command: Command) -> None:
    outcome = given().when(command)
    if isinstance(command, OpenConversation):
        sector = command.sector_id
        outcome.then(
            ConversationOpened(protocol=command.protocol, channel="whatsapp", contact_id=MARIA, sector_id=sector)
        )
        assert outcome.state.status is PENDING
        assert outcome.state.owner == Owner(sector_id=sector)
    else:
        outcome.then("conversation-not-found")


def test_an_agent_who_opens_it_for_themself_has_it_at_once(given: Given) -> None:
    asked = OpenConversation(
        protocol="1", channel="phone", contact_id=MARIA, sector_id=SUPPORT, agent_id=ANA, subject="refund"
    )
    outcome = given().when(asked)
    outcome.then(
        ConversationOpened(
            protocol="1",
            channel="phone",
            contact_id=MARIA,
            sector_id=SUPPORT,
            agent_id=ANA,
            personal=OpenedPersonal(subject="refund"),
        )
    )
    assert outcome.state.status is IN_PROGRESS
    assert outcome.state.owner == Owner(sector_id=SUPPORT, agent_id=ANA)


@pytest.mark.parametrize("status", [WITH_BOT, PENDING, IN_PROGRESS])
def test_status_and_owner_are_two_axes_so_a_finalized_conversation_keeps_the_owner_it_had(
    given: Given, status: Status
) -> None:
    outcome = given(*HISTORY[status]).when(Finalize(surface=Surface.INBOX))
    assert (outcome.state.status, outcome.state.owner) == (FINALIZED, OWNER[status])


def test_every_conversation_command_has_a_row() -> None:
    every = {
        kind
        for kind in vars(commands).values()
        if isinstance(kind, type) and issubclass(kind, ConversationCommand) and kind is not ConversationCommand
    }
    assert {type(command) for command, _ in TABLE} == every
