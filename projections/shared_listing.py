"""The listing where several projectors fill it at the same time: each some conversations, and one the contacts.

A row shows its contact, which another projector may be changing or erasing just then. So whoever writes rows shares a
lock on all contacts of whom they say something, from before it reads them until it is done; whoever changes a contact
has its lock alone, and shows or forgets it in all rows.

Invariant: a row shows its contact as the table of contacts has it, in whichever order they were changed; what an
erasure took out of a row, nobody who had read the row before puts back.
"""

from collections.abc import Iterable, Sequence
from typing import Any, cast
from uuid import UUID

import psycopg

from domain.conversation import ConversationEvent
from domain.envelope import RecordedEvent, StreamType
from domain.events import ConversationOpened
from projections import contacts, past
from projections.listing import (
    Listing,
    ListingRow,
    contacts_of,
    fold,
    forget_erased,
    left_behind,
    load,
    opened,
    save,
    show_changed_contacts,
    show_contact,
)

CONTACT_LOCKS = 2_048
"""Contacts share them, so that a batch of any size leaves the server room for others' locks."""
_LOCK_CLASS = 0x6C697374


class SharedListing(Listing):
    """The read model of conversations and their contacts; each conversation is one projector's at a time."""

    def apply(self, connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
        """Fold ``events`` into the rows of the conversations and contacts that they are about."""
        of = {type_: [each for each in events if each.stream.type is type_] for type_ in StreamType}
        if of[StreamType.CONVERSATION]:
            _apply_to_conversations(connection, of[StreamType.CONVERSATION])
        if of[StreamType.CONTACT]:
            _apply_to_contacts(connection, of[StreamType.CONTACT])


def _apply_to_conversations(connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
    keys = {(event.stream.workspace_id, event.stream.id) for event in events}
    # Whose they are, nobody else changes; what they say of them, only an erasure, and from here on none does.
    _lock(connection, contacts_in(load(connection, keys).values(), events), "pg_advisory_xact_lock_shared")
    rows = load(connection, keys)
    versions: list[past.Version] = []
    for recorded in events:
        key = (recorded.stream.workspace_id, recorded.stream.id)
        event = cast("ConversationEvent", recorded.event)
        if isinstance(event, ConversationOpened):
            rows[key] = opened(recorded, event)
        versions += left_behind(rows[key], recorded)
        fold(rows[key], recorded, event)
    people = contacts.load(connection, {(row.workspace_id, row.contact_id) for row in rows.values()})
    for row in rows.values():
        show_contact(row, people.get((row.workspace_id, row.contact_id)))
    save(connection, list(rows.values()), versions)


def contacts_in(rows: Iterable[ListingRow], events: Sequence[RecordedEvent]) -> set[contacts.Key]:
    """The contacts of whom ``rows`` say something, or will after ``events``."""
    found = contacts_of(events)
    for row in rows:
        found.add((row.workspace_id, row.contact_id))
        found |= {(row.workspace_id, UUID(whose)) for whose in row.inherited.values()}
    return found


def _apply_to_contacts(connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
    keys = {(event.stream.workspace_id, event.stream.id) for event in events}
    _lock(connection, keys, "pg_advisory_xact_lock")
    people = contacts.load(connection, keys)
    for recorded in events:
        contacts.fold(people, recorded)
    changed = list(people.values())
    contacts.save(connection, changed)
    forget_erased(connection, [(contact.workspace_id, contact.id) for contact in changed if contact.erased])
    show_changed_contacts(connection, changed)  # new ones too: a conversation with them may have come first


def _lock(connection: psycopg.Connection[Any], keys: Iterable[contacts.Key], how: str) -> None:
    """Take the locks of the contacts ``keys`` until the transaction ends: in order, so that nobody deadlocks."""
    numbers = sorted({key[1].int % CONTACT_LOCKS for key in keys})
    connection.execute(
        f"select {how}(%s, number) from unnest(%s::int[]) with ordinality as lock (number, nth) order by nth",
        (_LOCK_CLASS, numbers),
        prepare=True,
    )
