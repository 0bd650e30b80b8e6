"""The contacts: one row per person outside. Part of the listing's transaction, which shows their names.

Invariant: an erased contact's row holds nothing but its id.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from domain.envelope import RecordedEvent
from domain.events import ContactDetails, ContactDetailsChanged, ContactErased, ContactRegistered
from projections.search_words import NO_TERMS, asked, contact_terms, joined, words

DDL = """
create table contacts (
    workspace_id  uuid        not null,
    id            uuid        not null,
    name          text,
    phones        text[]      not null,
    emails        text[]      not null,
    attributes    jsonb       not null,
    registered_at timestamptz not null,
    erased        boolean     not null,
    version       bigint      not null,
    position      bigint      not null,
    name_key      text collate "C" not null, -- the name's words: what contacts are sorted by
    terms         text[]      not null,     -- what they are found by (search_words.py)
    primary key (workspace_id, id)
);
create index on contacts (workspace_id, name_key, id) where not erased;
create index on contacts using gin (array_to_tsvector(terms)) where not erased;
"""

Key = tuple[UUID, UUID]
"""Workspace and contact."""


@dataclass(slots=True)
class ContactRow:
    """A row of the table; the fields are its columns, in order."""

    workspace_id: UUID
    id: UUID
    name: str | None
    phones: list[str]
    emails: list[str]
    attributes: dict[str, Any]
    registered_at: datetime
    erased: bool
    version: int
    position: int
    name_key: str
    terms: list[str]


_COLUMNS = tuple(ContactRow.__slots__)
_TYPES = ("uuid", "uuid", "text", "text[]", "text[]", "jsonb", "timestamptz", "bool", "int8", "int8", "text", "text[]")


def load(connection: psycopg.Connection[Any], keys: Iterable[Key]) -> dict[Key, ContactRow]:
    """The rows of ``keys`` that exist."""
    wanted = list(keys)
    if not wanted:
        return {}
    cursor = connection.execute(
        f"select {', '.join(_COLUMNS)} from contacts"
        " join unnest(%s::uuid[], %s::uuid[]) as wanted (workspace_id, id) using (workspace_id, id)",
        ([key[0] for key in wanted], [key[1] for key in wanted]),
    )
    return {(row[0], row[1]): ContactRow(*row) for row in cursor}


def fold(rows: dict[Key, ContactRow], recorded: RecordedEvent) -> ContactRow:
    """Change the contact's row in ``rows`` by one of its events."""
    key = (recorded.stream.workspace_id, recorded.stream.id)
    event = recorded.event
    if isinstance(event, ContactRegistered):
        details, erased, registered_at = event.personal, False, recorded.metadata.occurred_at
    else:
        erased, registered_at = isinstance(event, ContactErased), rows[key].registered_at
        details = event.personal.after if isinstance(event, ContactDetailsChanged) else ContactDetails()
    rows[key] = ContactRow(
        workspace_id=key[0],
        id=key[1],
        name=details.name,
        phones=list(details.phones),
        emails=list(details.emails),
        attributes=dict(details.attributes),
        registered_at=registered_at,
        erased=erased,
        version=recorded.version,
        position=recorded.position,
        name_key=_name_key(details.name),
        terms=contact_terms(details.name, details.phones, details.emails),
    )
    return rows[key]


NAMELESS = "\U0010ffff"
"""Sorts after every name."""
_KEY_LENGTH = 64


def _name_key(name: str | None) -> str:
    return " ".join(words(name or ""))[:_KEY_LENGTH] or NAMELESS


_TELLING_LENGTH = 3


def found_by(workspace_id: UUID, text: str | None) -> tuple[str, list[Any]]:
    """What to select contacts from, to find those that ``text`` is the beginning of words or digits of; None: all.

    Text that tells much is looked up first, and what it finds is sorted. Text that tells little is better met on the
    way through the contacts by name: PostgreSQL cannot tell the two apart, for it knows nothing of beginnings.
    """
    if text is None or not text.strip():
        return "contacts", []
    query = asked(text, of_protocol=False)
    if query is NO_TERMS:
        return "(select * from contacts where false)", []
    fence = " offset 0" if len(joined(text)) >= _TELLING_LENGTH else ""
    found = (
        "select * from contacts where workspace_id = %s and not erased and array_to_tsvector(terms) @@ %s::tsquery"
        " and (array_to_tsvector(terms) @@ %s::tsquery) is true"
    )
    return f"({found}{fence})", [workspace_id, *query]


def save(connection: psycopg.Connection[Any], rows: Sequence[ContactRow]) -> None:
    """Put ``rows`` in the place of those with the same keys."""
    if not rows:
        return
    connection.execute(
        "delete from contacts using unnest(%s::uuid[], %s::uuid[]) as gone (w, i) where workspace_id = w and id = i",
        ([row.workspace_id for row in rows], [row.id for row in rows]),
    )
    with connection.cursor().copy(f"copy contacts ({', '.join(_COLUMNS)}) from stdin (format binary)") as copy:
        copy.set_types(_TYPES)
        for row in rows:
            values = [getattr(row, column) for column in _COLUMNS]
            values[5] = Jsonb(row.attributes)
            copy.write_row(values)
