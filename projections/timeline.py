"""The timeline: which events of the history belong to which contact, newest first to be read. Part of the history.

A conversation belongs to the contact that it is with now: one that is reassigned takes all of its past along. Whom it
was taken from keeps the reassignment alone, so that it shows where it went.

Invariant: a contact's rows are its own events, those of the conversations with it, and the reassignments away from it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from domain.envelope import RecordedEvent, StreamType
from domain.events import (
    ContactReassigned,
    ConversationFinalizedAutomatically,
    ConversationFinalizedFromInbox,
    ConversationFinalizedFromListing,
    ConversationOpened,
    ConversationReopened,
    MessageReceived,
    MessageSent,
    NoteAdded,
)

DDL = """
create table timeline (
    workspace_id uuid        not null,
    contact_id   uuid        not null,
    position     bigint      not null, -- of the history's row
    occurred_at  timestamptz not null,
    primary key (workspace_id, contact_id, occurred_at, position)
);
"""


class Entry(NamedTuple):
    """A row of the table, its columns in order."""

    workspace_id: UUID
    contact_id: UUID
    position: int
    occurred_at: datetime


def entries(recorded: RecordedEvent, conversation_with: UUID | None) -> Iterable[Entry]:
    """The rows that ``recorded`` gives, where its conversation is with that contact after it; None: no conversation."""
    stream, event = recorded.stream, recorded.event
    contact_id = stream.id if stream.type is StreamType.CONTACT else conversation_with
    if contact_id is None:
        return
    at = recorded.metadata.occurred_at
    yield Entry(stream.workspace_id, contact_id, recorded.position, at)
    if isinstance(event, ContactReassigned):
        yield Entry(stream.workspace_id, event.before, recorded.position, at)


def save(connection: psycopg.Connection[Any], rows: Iterable[Entry], events: Sequence[RecordedEvent]) -> None:
    """Add ``rows``; then let what ``events`` reassign take its past along. The history holds ``events`` already."""
    with connection.cursor().copy(f"copy timeline ({', '.join(Entry._fields)}) from stdin (format binary)") as copy:
        copy.set_types(("uuid", "uuid", "int8", "timestamptz"))
        for row in rows:
            copy.write_row(row)
    for recorded in events:
        if isinstance(recorded.event, ContactReassigned):
            _take_along(connection, recorded, recorded.event)


# Out of the history, because there the conversation's rows are found by its id.
_LEAVE = """
delete from timeline t using history h
where h.workspace_id = %(workspace)s and h.stream_id = %(conversation)s and h.position < %(position)s
  and t.workspace_id = %(workspace)s and t.contact_id = %(after)s
  and t.occurred_at = h.occurred_at and t.position = h.position"""
_MOVE = """
update timeline t set contact_id = %(after)s from history h
where h.workspace_id = %(workspace)s and h.stream_id = %(conversation)s and h.position < %(position)s
  and t.workspace_id = %(workspace)s and t.contact_id = %(before)s
  and t.occurred_at = h.occurred_at and t.position = h.position"""
_KEEP = """
insert into timeline (workspace_id, contact_id, position, occurred_at)
select workspace_id, %(before)s, position, occurred_at from history
where workspace_id = %(workspace)s and stream_id = %(conversation)s and position < %(position)s
  and topic = %(reassigned)s and details->>'before' = %(before)s::text"""


def _take_along(connection: psycopg.Connection[Any], recorded: RecordedEvent, event: ContactReassigned) -> None:
    """Give the conversation's rows to its new contact; reassignments away from either are kept, once."""
    values = {
        "workspace": recorded.stream.workspace_id,
        "conversation": recorded.stream.id,
        "position": recorded.position,
        "before": event.before,
        "after": event.after,
        "reassigned": event.TOPIC,
    }
    for statement in (_LEAVE, _MOVE, _KEEP):
        connection.execute(statement, values)


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows of whose timeline, newest first."""

    workspace_id: UUID
    contact_id: UUID
    columns: Sequence[str]
    """Of the history."""
    before: tuple[datetime, int] | None
    """Time and position of the last row of the page before."""
    limit: int


PLAIN = (
    *(ConversationOpened, ConversationReopened, MessageReceived, MessageSent, NoteAdded),
    *(ConversationFinalizedFromInbox, ConversationFinalizedFromListing, ConversationFinalizedAutomatically),
)
"""What who sees a conversation knows of it anyhow, without its history."""


def page(
    wanted: Page, seen: Sequence[tuple[str, list[Any]]], history: Sequence[tuple[str, list[Any]]]
) -> tuple[str, list[Any]]:
    """The statement for a page, and one row more; with the protocol and channel of each event's conversation.

    ``seen`` are the conditions on `listing` for the conversations that the caller may see: others are left out. Where
    ``history`` does not hold as well, they see of it only what is `PLAIN`.
    """
    sight = " and ".join(condition for condition, _ in seen)
    reading = " and ".join(condition for condition, _ in history) or "true"
    beyond = "" if wanted.before is None else " and (t.occurred_at, t.position) < (%s, %s)"
    shown = ", ".join(f"h.{column}" for column in wanted.columns)
    query = (
        f"select {shown}, c.protocol, c.channel from timeline t join history h on h.position = t.position"
        f" left join lateral (select protocol, channel, ({reading}) is true as is_read from listing"
        f" where id = h.stream_id and {sight}) c on true"
        f" where t.workspace_id = %s and t.contact_id = %s{beyond}"
        " and (h.stream_type = 'contact' or (c.protocol is not null and (c.is_read or h.topic = any(%s))))"
        " order by t.occurred_at desc, t.position desc limit %s"
    )
    values = [value for _, some in (*history, *seen) for value in some]
    topics = [event.TOPIC for event in PLAIN]
    return query, [
        *(*values, wanted.workspace_id, wanted.contact_id, *(wanted.before or ())),
        *(topics, wanted.limit + 1),
    ]
