"""What may happen to a contact: registered, changed, erased; and nothing after that."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from domain.commands import ChangeContactDetails, EraseContact, RegisterContact
from domain.decider import DECIDERS
from domain.envelope import StreamType
from domain.events import ContactDetails, ContactDetailsChanged, ContactErased, ContactRegistered, DetailsChange

Given = Callable[..., Any]

MARIA = UUID(int=0xC1)
NAMED = ContactDetails(name="Maria", phones=("+55 11 98765-4321",))
COMPLETED = ContactDetails(name="Maria", emails=("maria@example.com",), attributes={"plan": "gold", "age": 41})

registered = ContactRegistered(contact_id=MARIA, personal=NAMED)
changed = ContactDetailsChanged(contact_id=MARIA, personal=DetailsChange(before=NAMED, after=COMPLETED))
erased = ContactErased()


def test_a_contact_is_registered_with_what_is_known(given: Given) -> None:
    given().when(RegisterContact(contact_id=MARIA, details=NAMED)).then(registered)


def test_registering_again_with_the_same_details_is_nothing_new(given: Given) -> None:
    given(registered).when(RegisterContact(contact_id=MARIA, details=NAMED)).then()


def test_registering_again_with_other_details_is_refused(given: Given) -> None:
    given(registered).when(RegisterContact(contact_id=MARIA, details=COMPLETED)).then("already-exists")


def test_a_change_holds_the_details_before_and_after(given: Given) -> None:
    outcome = given(registered).when(ChangeContactDetails(details=COMPLETED))
    outcome.then(changed)
    assert outcome.state.details == COMPLETED


def test_a_change_to_what_is_already_known_is_no_change(given: Given) -> None:
    given(registered, changed).when(ChangeContactDetails(details=COMPLETED)).then()


@pytest.mark.parametrize(("before", "after"), [(1, True), (0, False), (1, 1.0), (True, 1)])
def test_a_value_of_another_type_is_a_change(given: Given, before: Any, after: Any) -> None:
    was = ContactRegistered(contact_id=MARIA, personal=ContactDetails(attributes={"x": before}))
    change = ChangeContactDetails(details=ContactDetails(attributes={"x": after}))
    [event] = given(was).when(change).events
    assert type(event.personal.after.attributes["x"]) is type(after)
    assert given(was).when(RegisterContact(contact_id=MARIA, details=change.details)).refusal == "already-exists"


def test_nobody_unknown_is_changed(given: Given) -> None:
    given().when(ChangeContactDetails(details=COMPLETED)).then("contact-not-found")


def test_a_contact_is_erased_once(given: Given) -> None:
    given(registered, changed).when(EraseContact()).then(erased)
    given(registered, changed, erased).when(EraseContact()).then()
    given().when(EraseContact()).then("contact-not-found")


@pytest.mark.parametrize(
    "command", [RegisterContact(contact_id=MARIA, details=NAMED), ChangeContactDetails(details=COMPLETED)]
)
def test_nothing_more_is_recorded_of_an_erased_contact(given: Given, command: Any) -> None:
    given(registered, changed, erased).when(command).then("contact-already-erased")


def test_an_erasure_names_nobody_and_leaves_nothing_to_remember() -> None:
    state = DECIDERS[StreamType.CONTACT].fold((registered, changed, erased))
    assert ContactErased.model_fields == {}
    assert state is not None
    assert (state.erased, state.details) == (True, ContactDetails())
