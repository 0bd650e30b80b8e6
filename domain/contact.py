"""A contact: the person outside.

Invariant: an erased contact is never written to again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never
from uuid import UUID

from domain.attributes import Attribute, check
from domain.commands import ChangeContactDetails, EraseContact, RegisterContact
from domain.errors import AlreadyExistsError, ContactAlreadyErasedError, ContactNotFoundError
from domain.events import (
    AttributeTarget,
    ContactDetails,
    ContactDetailsChanged,
    ContactErased,
    ContactRegistered,
    DetailsChange,
    Event,
)

Command = RegisterContact | ChangeContactDetails | EraseContact
ContactEvent = ContactRegistered | ContactDetailsChanged | ContactErased


@dataclass(frozen=True, slots=True)
class Contact:
    """What must be remembered of a contact to decide."""

    id: UUID
    details: ContactDetails
    erased: bool = False


def decide(command: Command, state: Contact | None, attributes: Mapping[UUID, Attribute]) -> list[Event]:
    """The events that ``command`` causes; none where it is already so. ``attributes`` are definitions by id."""
    if state is not None and state.erased:
        if isinstance(command, EraseContact):
            return []
        raise ContactAlreadyErasedError
    match command:
        case RegisterContact():
            if state is None:
                check(attributes, AttributeTarget.CONTACT, {}, command.details.attributes)
                return [ContactRegistered(contact_id=command.contact_id, personal=command.details)]
            if _same(state.details, command.details):
                return []
            raise AlreadyExistsError
        case ChangeContactDetails():
            if state is None:
                raise ContactNotFoundError
            if _same(state.details, command.details):
                return []
            check(attributes, AttributeTarget.CONTACT, state.details.attributes, command.details.attributes)
            change = DetailsChange(before=state.details, after=command.details)
            return [ContactDetailsChanged(contact_id=state.id, personal=change)]
        case EraseContact():
            if state is None:
                raise ContactNotFoundError
            return [ContactErased()]
        case _:
            assert_never(command)


def _same(before: ContactDetails, after: ContactDetails) -> bool:
    """Whether they say the same; Python holds 1, 1.0 and True to be equal, and no reader of JSON does."""
    return before == after and all(
        type(before.attributes[key]) is type(after.attributes[key]) for key in after.attributes
    )


def evolve(state: Contact | None, event: ContactEvent) -> Contact:
    """The contact after ``event``."""
    match event:
        case ContactRegistered():
            return Contact(id=event.contact_id, details=event.personal)
        case ContactDetailsChanged():
            return Contact(id=event.contact_id, details=event.personal.after)
        case ContactErased():
            assert state is not None, "only a registered contact can be erased"
            return Contact(id=state.id, details=ContactDetails(), erased=True)
        case _:
            assert_never(event)
