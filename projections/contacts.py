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
    primary key (workspace_id, id)
);
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


_COLUMNS = tuple(ContactRow.__slots__)
_TYPES = ("uuid", "uuid", "text", "text[]", "text[]", "jsonb", "timestamptz", "bool", "int8", "int8")


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
    )
    return rows[key]


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
