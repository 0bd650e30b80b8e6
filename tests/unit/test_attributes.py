"""Definitions of custom attributes, and which values fit them."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any
from uuid import UUID

import pytest

from domain.attributes import Attribute, fits
from domain.commands import (
    ChangeContactDetails,
    Command,
    DefineAttribute,
    RegisterContact,
    RetireAttribute,
    SetAttribute,
    attribute_id,
)
from domain.directory import Known
from domain.envelope import StreamType
from domain.events import (
    AttributeDefined,
    AttributePersonal,
    AttributeRetired,
    AttributeSet,
    AttributeTarget,
    AttributeType,
    ContactDetails,
    ContactRegistered,
    ConversationOpened,
    Event,
)

Given = Callable[..., Any]

CONTACT, CONVERSATION = AttributeTarget.CONTACT, AttributeTarget.CONVERSATION
MARIA = UUID(int=0xC1)
PLAN: dict[str, Any] = {
    "target": CONTACT,
    "key": "plan",
    "type": AttributeType.LIST,
    "label": "Plan",
    "options": ("gold", "silver"),
}
AGE: dict[str, Any] = {"target": CONTACT, "key": "age", "type": AttributeType.NUMBER, "label": "Age", "options": ()}
plan, age, retired = AttributeDefined(**PLAN), AttributeDefined(**AGE), AttributeRetired()


@pytest.mark.parametrize(
    ("happened", "command", "answer"),
    [
        ((), DefineAttribute(**PLAN), (plan,)),
        ((plan,), DefineAttribute(**PLAN), ()),
        (
            (plan,),
            DefineAttribute(**PLAN | {"options": ("gold",)}),
            (AttributeDefined(**PLAN | {"options": ("gold",)}),),
        ),
        ((plan, retired), DefineAttribute(**PLAN), (plan,)),
        ((), DefineAttribute(**PLAN | {"options": ()}), "invalid-command"),
        ((), DefineAttribute(**PLAN | {"options": ("gold", "gold")}), "invalid-command"),
        ((), DefineAttribute(**AGE | {"options": ("1",)}), "invalid-command"),
        ((), RetireAttribute(), "attribute-not-found"),
        ((plan,), RetireAttribute(), (retired,)),
        ((plan, retired), RetireAttribute(), ()),
    ],
)
def test_an_attribute_is_defined_redefined_and_retired(
    given: Given, happened: tuple[Event, ...], command: Command, answer: tuple[Event, ...] | str
) -> None:
    outcome = given(*happened).when(command)
    outcome.then(answer) if isinstance(answer, str) else outcome.then(*answer)


FITTING: dict[AttributeType, list[Any]] = {
    AttributeType.TEXT: ["", "gold", "2026-11-22", "https://example.com/a?b=c"],
    AttributeType.NUMBER: [0, -1, 1.5, 2**53 - 1],
    AttributeType.LINK: ["https://example.com/a?b=c", "http://example.com", "HTTPS://EXAMPLE.COM"],
    AttributeType.LIST: ["gold", ["gold"], ["silver", "gold"], []],
    AttributeType.DATE: ["2026-11-22", "2024-02-29", "0001-01-01"],
    AttributeType.CHECKBOX: [True, False],
}
FITTING_NOTHING: list[Any] = [
    *("bronze", "GOLD", "javascript:alert(1)", "ftp://example.com", "http://", "www.example.com"),
    *("2026-02-30", "20261122", "2026-W47-7", "\u0662\u0660\u0662\u0666-11-22", "true", "1"),
    *(["bronze"], ["gold", "gold"], ["2026-11-22"], ["https://example.com"]),
]
"""No type but text takes these, and it only where they are one."""


@pytest.mark.parametrize("type_", AttributeType)
def test_a_value_fits_the_type_that_it_is_of_and_no_other(type_: AttributeType) -> None:
    definition = Attribute(CONTACT, "x", type_, "X", options=("gold", "silver"))
    assert fits(definition, None)
    fitting = [(type(value), value) for value in FITTING[type_]]
    for value in chain(*FITTING.values(), FITTING_NOTHING):
        is_text = type_ is AttributeType.TEXT and isinstance(value, str)
        assert fits(definition, value) is (is_text or (type(value), value) in fitting), value


def known(world: Known, *definitions: AttributeDefined, are_retired: bool = False) -> Known:
    found = {attribute_id(each.target, each.key): Attribute(**dict(each), retired=are_retired) for each in definitions}
    return replace(world, attributes=found)


def test_a_contact_is_registered_with_values_that_fit(given: Given, world: Known) -> None:
    for attributes, answer in (
        ({"plan": "gold", "age": 41, "undefined": ["x"]}, None),
        ({"plan": "bronze"}, "attribute-of-wrong-type"),
        ({"age": "41"}, "attribute-of-wrong-type"),
        ({"age": True}, "attribute-of-wrong-type"),
        ({"age": None}, None),
    ):
        details = ContactDetails(attributes=attributes)
        outcome = given(known=known(world, plan, age)).when(RegisterContact(contact_id=MARIA, details=details))
        assert outcome.refusal == answer


def test_a_value_that_was_right_when_it_was_set_may_stay_and_a_new_one_must_fit(given: Given, world: Known) -> None:
    old = ContactDetails(name="Maria", attributes={"age": "forty", "plan": "gold"})
    happened = given(ContactRegistered(contact_id=MARIA, personal=old), known=known(world, plan, age))
    renamed = old.model_copy(update={"name": "Maria Souza"})
    assert happened.when(ChangeContactDetails(details=renamed)).refusal is None
    assert happened.when(ChangeContactDetails(details=old)).events == []
    for worse in ("fifty", True):
        details = ContactDetails(name="Maria", attributes={"age": worse, "plan": "gold"})
        assert happened.when(ChangeContactDetails(details=details)).refusal == "attribute-of-wrong-type"


def test_one_is_no_way_to_say_true(given: Given, world: Known) -> None:
    flag = AttributeDefined(target=CONTACT, key="vip", type=AttributeType.CHECKBOX, label="VIP", options=())
    one = ContactRegistered(contact_id=MARIA, personal=ContactDetails(attributes={"vip": 1}))
    change = ChangeContactDetails(details=ContactDetails(name="M", attributes={"vip": 1.0}))
    assert given(one, known=known(world, flag)).when(change).refusal == "attribute-of-wrong-type"


def test_an_attribute_of_a_conversation_fits_its_own_definition_and_not_the_contacts(
    given: Given, world: Known
) -> None:
    opened = ConversationOpened(protocol="1", channel="phone", contact_id=MARIA)
    order = AttributeDefined(target=CONVERSATION, key="age", type=AttributeType.DATE, label="Since", options=())
    happened = given(opened, known=known(world, age, order))
    assert happened.when(SetAttribute(key="age", value=41)).refusal == "attribute-of-wrong-type"
    personal = AttributePersonal(before=None, after="2026-11-22")
    happened.when(SetAttribute(key="age", value="2026-11-22")).then(
        AttributeSet(key="age", contact_id=MARIA, personal=personal)
    )


def test_a_retired_attribute_takes_any_value(given: Given, world: Known) -> None:
    details = ContactDetails(attributes={"age": "forty"})
    register = RegisterContact(contact_id=MARIA, details=details)
    assert given(known=known(world, age)).when(register).refusal == "attribute-of-wrong-type"
    assert given(known=known(world, age, are_retired=True)).when(register).refusal is None


@pytest.mark.parametrize(
    ("command", "target"),
    [
        (RegisterContact(contact_id=MARIA, details=ContactDetails(attributes={"age": 1})), CONTACT),
        (ChangeContactDetails(details=ContactDetails(attributes={"age": 1})), CONTACT),
        (SetAttribute(key="age", value=1), CONVERSATION),
    ],
)
def test_a_command_that_sets_a_value_names_the_definition_so_that_it_is_seen_under_the_lock(
    command: Command, target: AttributeTarget
) -> None:
    assert (StreamType.ATTRIBUTE, attribute_id(target, "age")) in list(command.names())
