"""What the lifecycle table leaves open: who may be named, what is remembered, what a repeat is."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from domain.commands import (
    AddLabel,
    Assume,
    Finalize,
    HandOffFromBot,
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
from domain.directory import Agent, Known, Sector
from domain.events import (
    Actor,
    ActorKind,
    AttributePersonal,
    AttributeSet,
    AttributeValue,
    ContactReassigned,
    ConversationAssumed,
    ConversationFinalizedAutomatically,
    ConversationFinalizedFromInbox,
    ConversationHandedOffByBot,
    ConversationHandedOffToBot,
    ConversationOpened,
    ConversationReopened,
    ConversationTransferred,
    Event,
    FinalizationCause,
    LabelAdded,
    LabelRemoved,
    MessageKind,
    MessagePersonal,
    MessageReceived,
    MessageSent,
    Owner,
    Presence,
    Status,
    Surface,
)
from domain.permissions import Caller, Permission, Scope

Given = Callable[..., Any]

SALES, SUPPORT, CLOSED, NOWHERE = UUID(int=0x51), UUID(int=0x52), UUID(int=0x53), UUID(int=0x5F)
ANA, BIA, CAIO, GONE, NOBODY = UUID(int=0xA1), UUID(int=0xA2), UUID(int=0xA3), UUID(int=0xA4), UUID(int=0xAF)
MARIA, JOAO, ERASED, STRANGER = UUID(int=0xC1), UUID(int=0xC2), UUID(int=0xC3), UUID(int=0xCF)
FIRST, SECOND = UUID(int=0xE1), UUID(int=0xE2)

opened = ConversationOpened(protocol="2024-1", channel="whatsapp", contact_id=MARIA, sector_id=SUPPORT)
assumed = ConversationAssumed(agent_id=ANA)
handed_off_to_bot = ConversationHandedOffToBot(bot="helper", reason="")
finalized = ConversationFinalizedFromInbox(outcome="", contact_id=MARIA)


def open_with(**asked: object) -> OpenConversation:
    return OpenConversation.model_validate({"protocol": "1", "channel": "phone", "contact_id": MARIA, **asked})


# Who may be named


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (open_with(contact_id=STRANGER), "contact-not-found"),
        (open_with(contact_id=ERASED), "contact-already-erased"),
        (open_with(sector_id=NOWHERE), "sector-not-found"),
        (open_with(sector_id=CLOSED), "sector-inactive"),
        (open_with(agent_id=NOBODY), "agent-not-found"),
        (open_with(agent_id=GONE), "agent-inactive"),
        (open_with(sector_id=SUPPORT, agent_id=BIA), "agent-not-in-sector"),
    ],
)
def test_a_conversation_is_not_opened_with_those_who_are_not_there(
    given: Given, command: OpenConversation, code: str
) -> None:
    given().when(command).then(code)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (Transfer(sector_id=NOWHERE), "sector-not-found"),
        (Transfer(sector_id=CLOSED), "sector-inactive"),
        (Transfer(agent_id=NOBODY), "agent-not-found"),
        (Transfer(agent_id=GONE), "agent-inactive"),
        (Transfer(sector_id=SUPPORT, agent_id=BIA), "agent-not-in-sector"),
        (MarkPending(sector_id=NOWHERE), "sector-not-found"),
        (MarkPending(sector_id=CLOSED), "sector-inactive"),
        (ReassignContact(contact_id=STRANGER), "contact-not-found"),
        (ReassignContact(contact_id=ERASED), "contact-already-erased"),
    ],
)
def test_a_conversation_in_progress_goes_to_nobody_who_is_not_there(given: Given, command: Any, code: str) -> None:
    given(opened, assumed).when(command).then(code)


@pytest.mark.parametrize(
    ("command", "code"), [(Assume(agent_id=NOBODY), "agent-not-found"), (Assume(agent_id=GONE), "agent-inactive")]
)
def test_nobody_who_is_not_there_assumes(given: Given, command: Assume, code: str) -> None:
    given(opened).when(command).then(code)


@pytest.mark.parametrize(
    ("command", "code"),
    [(HandOffFromBot(sector_id=NOWHERE), "sector-not-found"), (HandOffFromBot(sector_id=CLOSED), "sector-inactive")],
)
def test_a_bot_hands_off_to_no_sector_that_is_not_there(given: Given, command: HandOffFromBot, code: str) -> None:
    given(opened, handed_off_to_bot).when(command).then(code)


@pytest.mark.parametrize(
    ("command", "code"), [(Reopen(agent_id=NOBODY), "agent-not-found"), (Reopen(agent_id=GONE), "agent-inactive")]
)
def test_nothing_is_reopened_for_somebody_who_is_not_there(given: Given, command: Reopen, code: str) -> None:
    given(opened, finalized).when(command).then(code)


@pytest.mark.parametrize(
    ("happened", "command"),
    [
        ((opened,), MarkPending()),
        ((opened,), MarkPending(sector_id=SUPPORT)),
        ((opened,), HandOffFromBot(sector_id=SUPPORT)),
        ((opened,), Transfer(sector_id=SUPPORT)),
        ((opened, assumed), Assume(agent_id=ANA)),
        ((opened, assumed), Transfer(agent_id=ANA)),
        ((opened, assumed), Transfer(sector_id=SUPPORT, agent_id=ANA)),
        ((opened, assumed), ReassignContact(contact_id=MARIA)),
    ],
)
def test_what_is_already_so_is_no_error_even_after_sector_and_agent_have_gone(
    given: Given, happened: tuple[Any, ...], command: Any
) -> None:
    gone = Known(
        sectors={SUPPORT: Sector("Support", active=False)},
        agents={ANA: Agent(name="Ana", role="agent", active=False)},
    )
    given(*happened, known=gone).when(command).then()


# Transfers


def test_a_transfer_names_a_target() -> None:
    with pytest.raises(ValidationError, match="name a sector_id, an agent_id, or both"):
        Transfer(reason="just because")


def test_a_transfer_holds_from_whom_to_whom_why_and_whether_they_were_there(given: Given) -> None:
    given(opened, assumed).when(Transfer(sector_id=SALES, agent_id=BIA, reason="hers")).then(
        ConversationTransferred(
            source=Owner(sector_id=SUPPORT, agent_id=ANA),
            target=Owner(sector_id=SALES, agent_id=BIA),
            reason="hers",
            target_presence=Presence.AWAY,
        )
    )


def test_a_transfer_to_someone_offline_is_allowed_and_recorded_as_such(given: Given, world: Known) -> None:
    without_heartbeats = replace(world, presence={})
    outcome = given(opened, known=without_heartbeats).when(Transfer(agent_id=ANA))
    outcome.then(
        ConversationTransferred(
            source=Owner(sector_id=SUPPORT),
            target=Owner(sector_id=SUPPORT, agent_id=ANA),
            reason="",
            target_presence=Presence.OFFLINE,
        )
    )
    assert outcome.state.status is Status.IN_PROGRESS


def test_a_transfer_in_the_past_does_not_make_up_who_was_there(given: Given, world: Known) -> None:
    (event,) = given(opened, known=replace(world, presence=None)).when(Transfer(agent_id=ANA)).events
    assert event.target_presence is None


def test_a_transfer_to_an_agent_stays_in_the_sector_where_they_serve_there(given: Given) -> None:
    outcome = given(opened, ConversationAssumed(agent_id=BIA)).when(Transfer(agent_id=ANA))
    assert outcome.state.owner == Owner(sector_id=SUPPORT, agent_id=ANA)


def test_a_transfer_of_what_an_agent_has_to_their_own_sector_lets_it_go(given: Given) -> None:
    outcome = given(opened, assumed).when(Transfer(sector_id=SUPPORT))
    assert (outcome.state.status, outcome.state.owner) == (Status.PENDING, Owner(sector_id=SUPPORT))


def test_a_transfer_takes_it_from_the_bot(given: Given) -> None:
    outcome = given(opened, handed_off_to_bot).when(Transfer(sector_id=SUPPORT))
    assert (outcome.state.status, outcome.state.owner) == (Status.PENDING, Owner(sector_id=SUPPORT))


# Bots


def test_a_bot_stops_writing_when_a_person_has_taken_over(given: Given) -> None:
    bot = Actor(kind=ActorKind.BOT, id="helper")
    given(opened, handed_off_to_bot, assumed).when(SendMessage(message_id=FIRST, author=bot)).then("bot-not-in-charge")


def test_a_bot_that_was_taken_over_is_told_so_though_it_sees_it_no_more(given: Given) -> None:
    grants = {Permission.VIEW: Scope.OWN, Permission.REPLY: Scope.OWN}

    def says(bot: str, *history: Event, **rights: Scope) -> str | None:
        actor = Actor(kind=ActorKind.BOT, id=bot)
        caller = Caller(UUID(int=1), actor, rights or grants)
        command = SendMessage(message_id=FIRST, author=actor)
        refusal: str | None = given(opened, *history).when(command, caller).refusal
        return refusal

    other = ConversationHandedOffToBot(bot="other", reason="")
    assert says("helper", handed_off_to_bot) is None
    for since in ((assumed,), (finalized,), (assumed, other), (assumed, other, assumed)):
        assert says("helper", handed_off_to_bot, *since) == "bot-not-in-charge"
    assert says("stranger", handed_off_to_bot, assumed) == "conversation-not-found"
    assert says("helper", handed_off_to_bot, assumed, view=Scope.OWN) == "conversation-not-found", "it may not reply"


def test_of_bots_that_had_it_the_latest_are_remembered(given: Given) -> None:
    turns = [ConversationHandedOffToBot(bot=f"bot-{number}", reason="") for number in range(40)]
    history = [event for turn in turns for event in (turn, assumed)]
    label = AddLabel(label="vip")
    assert given(opened, *history, *history[:2]).when(label).state.bots == (
        *(f"bot-{number}" for number in range(21, 40)),
        "bot-0",
    )


def test_a_bot_does_not_write_while_another_has_it(given: Given) -> None:
    other = Actor(kind=ActorKind.BOT, id="seller")
    given(opened, handed_off_to_bot).when(SendMessage(message_id=FIRST, author=other)).then("bot-not-in-charge")


def test_a_person_may_write_while_a_bot_has_it_and_the_bot_keeps_it(given: Given) -> None:
    person = Actor(kind=ActorKind.AGENT, id=str(ANA))
    outcome = given(opened, handed_off_to_bot).when(SendMessage(message_id=FIRST, author=person, text="hi"))
    outcome.then(
        MessageSent(
            message_id=FIRST,
            author=person,
            kind=MessageKind.TEXT,
            contact_id=MARIA,
            personal=MessagePersonal(text="hi"),
        )
    )
    assert outcome.state.status is Status.WITH_BOT


def test_a_bot_without_a_sector_hands_off_to_no_sector(given: Given) -> None:
    nowhere = opened.model_copy(update={"sector_id": None})
    given(nowhere, handed_off_to_bot).when(HandOffFromBot()).then(
        ConversationHandedOffByBot(bot="helper", sector_id=None, reason="")
    )


# Finalizing and reopening


@pytest.mark.parametrize("surface", [surface for surface in Surface if surface not in {Surface.INBOX, Surface.LISTING}])
def test_a_person_finalizes_from_the_inbox_or_the_listing_and_nowhere_else(surface: Surface) -> None:
    with pytest.raises(ValidationError):
        Finalize.model_validate({"surface": surface})


@pytest.mark.parametrize("cause", FinalizationCause)
def test_an_automatic_end_says_its_cause(given: Given, cause: FinalizationCause) -> None:
    ended = ConversationFinalizedAutomatically(cause=cause)
    given(opened, ended).when(Reopen(reason="again")).then(
        ConversationReopened(episode=2, sector_id=SUPPORT, reason="again")
    )


def test_every_reopening_is_an_episode_of_its_own(given: Given) -> None:
    again = ConversationReopened(episode=2, sector_id=SUPPORT, reason="")
    given(opened, finalized, again, finalized).when(Reopen()).then(
        ConversationReopened(episode=3, sector_id=SUPPORT, reason="")
    )


def test_an_agent_who_reopens_it_has_it_at_once(given: Given) -> None:
    outcome = given(opened, finalized).when(Reopen(agent_id=ANA, reason="mine"))
    outcome.then(ConversationReopened(episode=2, agent_id=ANA, sector_id=SUPPORT, reason="mine"))
    assert outcome.state.status is Status.IN_PROGRESS
    assert outcome.state.owner == Owner(sector_id=SUPPORT, agent_id=ANA)


def test_a_reopened_conversation_goes_to_the_queue_and_not_to_the_bot_that_had_it(given: Given) -> None:
    outcome = given(opened, handed_off_to_bot, finalized).when(Reopen())
    assert (outcome.state.status, outcome.state.owner) == (Status.PENDING, Owner(sector_id=SUPPORT))


def test_reopening_for_oneself_what_another_agent_has_is_refused(given: Given) -> None:
    given(opened, assumed).when(Reopen(agent_id=BIA)).then("conversation-already-assumed")


def test_a_message_that_comes_twice_is_received_once_even_if_it_was_finalized_between(given: Given) -> None:
    message = ReceiveMessage(message_id=FIRST, text="hello")
    received = given(opened).when(message).events
    given(opened, *received).when(message).then()
    given(opened, *received, finalized).when(message).then()


def test_a_message_on_a_finalized_conversation_reopens_it_first(given: Given) -> None:
    events = given(opened, assumed, finalized).when(ReceiveMessage(message_id=SECOND)).events
    assert [type(event) for event in events] == [ConversationReopened, MessageReceived]


# Labels, attributes, priority


def test_labels_are_kept_sorted_with_all_of_them_before_and_after(given: Given) -> None:
    b = LabelAdded(label="b", before=(), after=("b",))
    given(opened, b).when(AddLabel(label="a")).then(LabelAdded(label="a", before=("b",), after=("a", "b")))
    ab = LabelAdded(label="a", before=("b",), after=("a", "b"))
    given(opened, b, ab).when(RemoveLabel(label="b")).then(LabelRemoved(label="b", before=("a", "b"), after=("a",)))


@pytest.mark.parametrize("value", ["gold", "", 0, 1, 1.5, True, False, ["a", "b"], []])
def test_an_attribute_set_holds_the_value_before_and_after(given: Given, value: AttributeValue) -> None:
    was = AttributeSet(key="plan", contact_id=MARIA, personal=AttributePersonal(before=None, after="old"))
    expected = AttributeSet(key="plan", contact_id=MARIA, personal=AttributePersonal(before="old", after=value))
    outcome = given(opened, was).when(SetAttribute(key="plan", value=value))
    outcome.then(expected)
    given(opened, was, expected).when(SetAttribute(key="plan", value=value)).then()


@pytest.mark.parametrize(("before", "after"), [(1, True), (0, False), (1, 1.0), ("1", 1)])
def test_values_of_another_kind_are_other_values(given: Given, before: AttributeValue, after: AttributeValue) -> None:
    was = AttributeSet(key="n", contact_id=MARIA, personal=AttributePersonal(before=None, after=before))
    (event,) = given(opened, was).when(SetAttribute(key="n", value=after)).events
    assert type(event.personal.after) is type(after)


def test_an_attribute_taken_away_is_not_set_any_more(given: Given) -> None:
    was = AttributeSet(key="plan", contact_id=MARIA, personal=AttributePersonal(before=None, after="old"))
    outcome = given(opened, was).when(SetAttribute(key="plan", value=None))
    outcome.then(AttributeSet(key="plan", contact_id=MARIA, personal=AttributePersonal(before="old", after=None)))
    assert dict(outcome.state.attributes) == {}


def test_what_was_set_of_one_contact_is_not_repeated_as_said_of_another(given: Given) -> None:
    """It is sealed with the key of the one of whom it was said, and must go with them."""
    was = AttributeSet(key="cpf", contact_id=MARIA, personal=AttributePersonal(before=None, after="123"))
    to_joao = ContactReassigned(before=MARIA, after=JOAO)
    outcome = given(opened, was, to_joao).when(SetAttribute(key="cpf", value="456"))
    outcome.then(AttributeSet(key="cpf", contact_id=JOAO, personal=AttributePersonal(before=None, after="456")))
    assert dict(outcome.state.attribute_contacts) == {"cpf": JOAO}
    gone = given(opened, was, to_joao).when(SetAttribute(key="cpf", value=None))
    gone.then(AttributeSet(key="cpf", contact_id=JOAO, personal=AttributePersonal(before=None, after=None)))
    assert (dict(gone.state.attributes), dict(gone.state.attribute_contacts)) == ({}, {})


def test_what_is_said_after_a_reassignment_is_said_by_the_new_contact(given: Given) -> None:
    reassigned = given(opened).when(ReassignContact(contact_id=JOAO)).events
    (event,) = given(opened, *reassigned).when(ReceiveMessage(message_id=FIRST)).events
    assert (event.contact_id, event.author) == (JOAO, Actor(kind=ActorKind.CONTACT, id=str(JOAO)))
