"""The Conversas listing: one row per conversation with everything that can be filtered or sorted by.

Times are those at which things happened (`occurred_at`), so that imported conversations sort where they belong.
Durations are per episode, in seconds; an episode starts when the conversation is opened or reopened.

Invariant: a row is a pure fold of its conversation's events and its contact's details; nothing else goes in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, assert_never, cast
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from domain.conversation import ConversationEvent
from domain.envelope import RecordedEvent, StreamType
from domain.events import (
    Actor,
    ActorKind,
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
    LabelAdded,
    LabelRemoved,
    MessageReceived,
    MessageSent,
    NoteAdded,
    Owner,
    Priority,
    PriorityChanged,
    Status,
)
from projections import contacts, past
from projections.search_words import PROTOCOL, contact_terms, protocol_terms

DDL = """
create table listing (
    workspace_id           uuid        not null,
    id                     uuid        not null,
    protocol               text        not null,
    channel                text        not null,
    status                 text        not null,
    sector_id              uuid,
    agent_id               uuid,
    bot                    text,
    contact_id             uuid        not null,
    contact_name           text,
    contact_phones         text[]      not null,
    contact_emails         text[]      not null,
    contact_attributes     jsonb       not null,
    subject                text,
    priority               smallint    not null, -- 0 low, 1 normal, 2 high, 3 urgent
    labels                 text[]      not null,
    attributes             jsonb       not null,
    opened_at              timestamptz not null,
    opened_by              text        not null, -- actors are kind:id
    last_activity_at       timestamptz not null,
    finalized_at           timestamptz,
    finalized_from         text,                 -- inbox, listing, automatically
    finalized_by           text,
    finalized_cause        text,
    outcome                text,
    episode                integer     not null,
    episode_started_at     timestamptz not null,
    recorded_at            timestamptz not null, -- when its last event was
    waiting_since          timestamptz,          -- set while pending
    waiting_from           timestamptz,          -- waiting_since less waiting_seconds: where an unbroken wait began
    waiting_seconds        double precision not null, -- time spent pending in this episode, up to waiting_since
    first_response_seconds double precision,     -- until an agent first wrote
    resolution_seconds     double precision,
    unanswered_since       timestamptz,          -- the first message received that nobody answered
    unread                 integer     not null, -- messages received since an agent last acted
    sectors                uuid[]      not null, -- ever
    agents                 uuid[]      not null, -- ever
    bots                   text[]      not null, -- ever
    participants           text[]      not null, -- whoever wrote
    transfers              integer     not null,
    reopenings             integer     not null,
    messages_received      integer     not null,
    messages_sent          integer     not null,
    notes                  integer     not null,
    version                bigint      not null,
    position               bigint      not null,
    words                  text[]      not null, -- what the text box finds it by (search_words.py)
    inherited              jsonb       not null, -- what it shows of contacts it is no longer with: {column: contact}
    primary key (workspace_id, id)
);
-- For the bar's filters, latest activity first. What follows an id is for pairs: compared without a look at the row.
-- Without one of these: what few rows have, and no other index is in order of, is compared there as well.
create index on listing (
    workspace_id, last_activity_at, id, transfers, reopenings, resolution_seconds, first_response_seconds, opened_by
);
create index on listing (workspace_id, status, last_activity_at, id) include (recorded_at); -- counted as of a moment
create index on listing (workspace_id, channel, last_activity_at, id);
create index on listing (workspace_id, sector_id, last_activity_at, id, agent_id);
create index on listing (workspace_id, agent_id, last_activity_at, id, sector_id);
create index on listing (workspace_id, bot, last_activity_at, id) where bot is not null;
create index on listing (workspace_id, contact_id, last_activity_at, id);
-- Open conversations are few: for the bar's pairs with a status.
create index on listing (workspace_id, sector_id, status, last_activity_at, id) where status <> 'finalized';
create index on listing (workspace_id, agent_id, status, last_activity_at, id) where status <> 'finalized';
create index on listing (workspace_id, channel, status, last_activity_at, id) where status <> 'finalized';
create index on listing (workspace_id, last_activity_at, id) where labels <> '{}';
create index on listing (workspace_id, sector_id, last_activity_at, id) where labels <> '{}';
create index on listing (workspace_id, agent_id, last_activity_at, id) where labels <> '{}';
create index on listing (workspace_id, opened_at, id) where labels <> '{}';
create index on listing (workspace_id, finalized_at, id) where labels <> '{}' and finalized_at is not null;
-- By the place in the list, in which most have no more: so those of one label, or agent, stand in order.
create index on listing (workspace_id, (labels[1]), last_activity_at, id) where labels[1] is not null;
create index on listing (workspace_id, (labels[2]), last_activity_at, id) where labels[2] is not null;
create index on listing (workspace_id, (labels[3]), last_activity_at, id) where labels[3] is not null;
create index on listing using gin ((labels[4:])) where labels[4] is not null;
create index on listing (workspace_id, (agents[1]), last_activity_at, id) where agents[1] is not null;
create index on listing (workspace_id, (agents[2]), last_activity_at, id) where agents[2] is not null;
create index on listing (workspace_id, (agents[3]), last_activity_at, id) where agents[3] is not null;
create index on listing using gin ((agents[4:])) where agents[4] is not null;
-- What PostgreSQL does not learn from indexes of some rows: how many have a label, or an agent, there.
create statistics on (labels[1]) from listing;
create statistics on (labels[2]) from listing;
create statistics on (labels[3]) from listing;
create statistics on (labels[4]) from listing;
create statistics on (agents[1]) from listing;
create statistics on (agents[2]) from listing;
create statistics on (agents[3]) from listing;
create statistics on (agents[4]) from listing;
create index on listing using gin (attributes jsonb_path_ops);
create index on listing using gin (contact_attributes jsonb_path_ops);
create index on listing using gin (array_to_tsvector(words));
-- For the other sorts: what has no value follows in the order of ids.
create index on listing (workspace_id, opened_at, id, last_activity_at, sector_id, agent_id);
create index on listing (workspace_id, episode_started_at, id);
create index on listing (workspace_id, finalized_at, id, last_activity_at, opened_at, sector_id, agent_id)
    where finalized_at is not null;
create index on listing (workspace_id, id) where finalized_at is null;
create index on listing (workspace_id, finalized_from, last_activity_at, id) where finalized_from <> 'inbox';
create index on listing (workspace_id, finalized_by, last_activity_at, id) where finalized_by is not null;
create index on listing (workspace_id, priority, id);
create index on listing (workspace_id, waiting_since, id) where waiting_since is not null;
create index on listing (workspace_id, waiting_from, id desc) where waiting_from is not null;
create index on listing (workspace_id, waiting_seconds, id) where waiting_from is null;
create index on listing (workspace_id, unanswered_since, id) where unanswered_since is not null;
create index on listing (workspace_id, first_response_seconds, id) where first_response_seconds is not null;
create index on listing (workspace_id, resolution_seconds, id) where resolution_seconds is not null;
create index on listing (workspace_id, protocol);
-- For whoever is erased: what still shows of them elsewhere.
create index on listing (workspace_id) where inherited <> '{}';
"""

PRIORITY_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


@dataclass(slots=True)
class ListingRow:
    """A row of the listing; the fields are the table's columns, in order."""

    workspace_id: UUID
    id: UUID
    protocol: str
    channel: str
    status: str
    sector_id: UUID | None
    agent_id: UUID | None
    bot: str | None
    contact_id: UUID
    contact_name: str | None
    contact_phones: list[str]
    contact_emails: list[str]
    contact_attributes: dict[str, Any]
    subject: str | None
    priority: int
    labels: list[str]
    attributes: dict[str, Any]
    opened_at: datetime
    opened_by: str
    last_activity_at: datetime
    finalized_at: datetime | None
    finalized_from: str | None
    finalized_by: str | None
    finalized_cause: str | None
    outcome: str | None
    episode: int
    episode_started_at: datetime
    recorded_at: datetime
    waiting_since: datetime | None
    waiting_from: datetime | None = None
    waiting_seconds: float = 0.0
    first_response_seconds: float | None = None
    resolution_seconds: float | None = None
    unanswered_since: datetime | None = None
    unread: int = 0
    sectors: list[UUID] = field(default_factory=list)
    agents: list[UUID] = field(default_factory=list)
    bots: list[str] = field(default_factory=list)
    participants: list[str] = field(default_factory=list)
    transfers: int = 0
    reopenings: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    notes: int = 0
    version: int = 0
    position: int = 0
    words: list[str] = field(default_factory=list)
    inherited: dict[str, str] = field(default_factory=dict)


COLUMNS = tuple(ListingRow.__slots__)
SHOWN_COLUMNS = tuple(
    column for column in COLUMNS if column not in {"recorded_at", "waiting_from", "words", "inherited"}
)
"""Without those that are there to be searched and sorted by, to tell since when a row holds, and whose it is."""
_SELECT = ", ".join(f"listing.{column}" for column in COLUMNS)
_JSON = tuple(COLUMNS.index(column) for column in ("contact_attributes", "attributes", "inherited"))
_values: Callable[[ListingRow], tuple[Any, ...]] = attrgetter(*COLUMNS)
_TYPES = (
    *("uuid", "uuid", "text", "text", "text", "uuid", "uuid", "text", "uuid", "text", "text[]", "text[]", "jsonb"),
    *("text", "int2", "text[]", "jsonb", "timestamptz", "text", "timestamptz", "timestamptz", "text", "text", "text"),
    *(
        "text",
        "int4",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "timestamptz",
        "float8",
        "float8",
        "float8",
        "timestamptz",
        "int4",
    ),
    *("uuid[]", "uuid[]", "text[]", "text[]", "int4", "int4", "int4", "int4", "int4", "int8", "int8", "text[]"),
    "jsonb",
)

Key = tuple[UUID, UUID]
"""Workspace and conversation."""


class Listing:
    """The read model of conversations and their contacts."""

    name = "listing"
    tables: tuple[str, ...] = ("listing", "contacts", "past")
    ddl = DDL + contacts.DDL + past.DDL

    def apply(self, connection: psycopg.Connection[Any], events: Sequence[RecordedEvent]) -> None:
        """Fold ``events`` into the rows of the conversations and contacts that they are about."""
        about = [recorded for recorded in events if recorded.stream.type in _ABOUT]
        if not about:
            return
        conversations = [recorded for recorded in about if recorded.stream.type is StreamType.CONVERSATION]
        rows = load(connection, {(event.stream.workspace_id, event.stream.id) for event in conversations})
        people = contacts.load(connection, contacts_of(about))
        changed: dict[contacts.Key, contacts.ContactRow] = {}
        versions: list[past.Version] = []
        for recorded in about:
            key = (recorded.stream.workspace_id, recorded.stream.id)
            if recorded.stream.type is StreamType.CONTACT:
                changed[key] = contacts.fold(people, recorded)
                continue
            event = cast("ConversationEvent", recorded.event)
            if isinstance(event, ConversationOpened):
                rows[key] = opened(recorded, event)
            row = rows[key]
            versions += left_behind(row, recorded)
            fold(row, recorded, event)
            if isinstance(event, ConversationOpened | ContactReassigned):
                show_contact(row, people.get((row.workspace_id, row.contact_id)))
        save(connection, list(rows.values()), versions)
        contacts.save(connection, list(changed.values()))
        forget_erased(connection, [key for key, contact in changed.items() if contact.erased])
        show_changed_contacts(connection, [contact for contact in changed.values() if contact.version > 1])


_ABOUT = (StreamType.CONVERSATION, StreamType.CONTACT)


def contacts_of(events: Sequence[RecordedEvent]) -> set[contacts.Key]:
    """The contacts that ``events`` change, open a conversation with, or give one to."""
    found = set()
    for recorded in events:
        workspace_id = recorded.stream.workspace_id
        if recorded.stream.type is StreamType.CONTACT:
            found.add((workspace_id, recorded.stream.id))
        elif isinstance(recorded.event, ConversationOpened):
            found.add((workspace_id, recorded.event.contact_id))
        elif isinstance(recorded.event, ContactReassigned):
            found.add((workspace_id, recorded.event.after))
    return found


def opened(recorded: RecordedEvent, event: ConversationOpened) -> ListingRow:
    """The row that a conversation starts with."""
    at = recorded.metadata.occurred_at
    return ListingRow(
        workspace_id=recorded.stream.workspace_id,
        id=recorded.stream.id,
        protocol=event.protocol,
        channel=event.channel,
        status="",
        sector_id=None,
        agent_id=None,
        bot=None,
        contact_id=event.contact_id,
        contact_name=None,
        contact_phones=[],
        contact_emails=[],
        contact_attributes={},
        subject=event.personal.subject,
        priority=PRIORITY_RANKS[Priority.NORMAL],
        labels=[],
        attributes={},
        opened_at=at,
        opened_by=_name(recorded.metadata.actor),
        last_activity_at=at,
        finalized_at=None,
        finalized_from=None,
        finalized_by=None,
        finalized_cause=None,
        outcome=None,
        episode=1,
        episode_started_at=at,
        recorded_at=recorded.recorded_at,
        waiting_since=None,
    )


def left_behind(row: ListingRow, recorded: RecordedEvent) -> list[past.Version]:
    """What ``row`` leaves of itself when ``recorded`` changes it; of what came at one moment only the last remains."""
    is_later = recorded.recorded_at > row.recorded_at
    return [past.version_of(row, recorded.recorded_at)] if is_later else []


def fold(row: ListingRow, recorded: RecordedEvent, event: ConversationEvent) -> None:
    """Change ``row`` by one event of its conversation."""
    at, actor = recorded.metadata.occurred_at, recorded.metadata.actor
    row.version, row.position, row.recorded_at = recorded.version, recorded.position, recorded.recorded_at
    row.last_activity_at = max(row.last_activity_at, at)
    if actor.kind is ActorKind.AGENT:
        row.unread = 0
    match event:
        case ConversationOpened():
            _hold(row, Owner(sector_id=event.sector_id, agent_id=event.agent_id), at)
        case ConversationHandedOffToBot():
            _hold(row, Owner(sector_id=row.sector_id, bot=event.bot), at)
        case ConversationHandedOffByBot() | ConversationMarkedPending():
            _hold(row, Owner(sector_id=event.sector_id), at)
        case ConversationAssumed():
            _hold(row, Owner(sector_id=row.sector_id, agent_id=event.agent_id), at)
        case ConversationTransferred():
            row.transfers += 1
            _hold(row, event.target, at)
        case ConversationFinalizedFromInbox():
            _finalize(row, "inbox", actor, at)
            row.outcome = event.outcome
        case ConversationFinalizedFromListing():
            _finalize(row, "listing", actor, at)
            row.outcome = event.outcome
        case ConversationFinalizedAutomatically():
            _finalize(row, "automatically", actor, at)
            row.finalized_cause = event.cause.value
        case ConversationReopened():
            _reopen(row, event, at)
        case MessageReceived():
            row.messages_received += 1
            row.unread += 1
            row.unanswered_since = row.unanswered_since or at
            _add(row.participants, _name(event.author))
        case MessageSent():
            row.messages_sent += 1
            row.unanswered_since = None
            if event.author.kind is ActorKind.AGENT:
                row.unread = 0
                if row.first_response_seconds is None:
                    row.first_response_seconds = _seconds(row.episode_started_at, at)
            _add(row.participants, _name(event.author))
        case NoteAdded():
            row.notes += 1
            _add(row.participants, _name(event.author))
        case LabelAdded() | LabelRemoved():
            row.labels = list(event.after)
        case PriorityChanged():
            row.priority = PRIORITY_RANKS[event.after]
        case AttributeSet():
            row.attributes = {key: value for key, value in row.attributes.items() if key != event.key}
            row.inherited.pop(_attribute(event.key), None)
            if event.personal.after is not None:
                row.attributes[event.key] = event.personal.after
        case ContactReassigned():
            shows = [_SUBJECT] if row.subject is not None else []
            shows += map(_attribute, row.attributes)
            row.inherited = {each: row.inherited.get(each, str(event.before)) for each in shows}
            row.contact_id = event.after
        case _:
            assert_never(event)


_SUBJECT = "subject"


def _attribute(key: str) -> str:
    return f"attributes.{key}"


def forget(row: ListingRow, contact_id: UUID) -> None:
    """Take out of ``row`` what was said of a contact: whose it is now, or was when it was said."""
    present, gone = str(row.contact_id), str(contact_id)
    if row.inherited.get(_SUBJECT, present) == gone:
        row.subject = None
    row.attributes = {
        key: value for key, value in row.attributes.items() if row.inherited.get(_attribute(key), present) != gone
    }
    row.inherited = {each: whose for each, whose in row.inherited.items() if whose != gone}


def show_contact(row: ListingRow, contact: contacts.ContactRow | None) -> None:
    """Copy the contact's details into ``row``; nothing is shown of one that is not known."""
    row.contact_name = contact.name if contact else None
    row.contact_phones = contact.phones if contact else []
    row.contact_emails = contact.emails if contact else []
    row.contact_attributes = contact.attributes if contact else {}
    row.words = protocol_terms(row.protocol)
    row.words += contact_terms(row.contact_name, row.contact_phones, row.contact_emails)


def _hold(row: ListingRow, owner: Owner, at: datetime) -> None:
    """Give the conversation to ``owner``, which decides its status, and mind the waiting time."""
    row.sector_id, row.agent_id, row.bot = owner.sector_id, owner.agent_id, owner.bot
    if owner.bot is not None:
        row.status = Status.WITH_BOT.value
        _add(row.bots, owner.bot)
    elif owner.agent_id is not None:
        row.status = Status.IN_PROGRESS.value
        _add(row.agents, owner.agent_id)
    else:
        row.status = Status.PENDING.value
    if owner.sector_id is not None:
        _add(row.sectors, owner.sector_id)
    if row.status != Status.PENDING.value:
        _stop_waiting(row, at)
    elif row.waiting_since is None:
        row.waiting_since = at
        row.waiting_from = _before(at, row.waiting_seconds)


def _finalize(row: ListingRow, where: str, actor: Actor, at: datetime) -> None:
    _stop_waiting(row, at)
    row.status = Status.FINALIZED.value
    row.finalized_at, row.finalized_from, row.finalized_by = at, where, _name(actor)
    row.resolution_seconds = _seconds(row.episode_started_at, at)
    row.unanswered_since = None


def _reopen(row: ListingRow, event: ConversationReopened, at: datetime) -> None:
    row.reopenings += 1
    row.episode, row.episode_started_at = event.episode, at
    row.finalized_at = row.finalized_from = row.finalized_by = row.finalized_cause = row.outcome = None
    row.waiting_seconds, row.first_response_seconds, row.resolution_seconds = 0.0, None, None
    _hold(row, Owner(sector_id=event.sector_id, agent_id=event.agent_id), at)


def _stop_waiting(row: ListingRow, at: datetime) -> None:
    if row.waiting_since is not None:
        # As exact as times are, whatever adding up does to a fraction: pages compare it with waits that go on.
        row.waiting_seconds = round(row.waiting_seconds + _seconds(row.waiting_since, at), 6)
        row.waiting_since = row.waiting_from = None


def _before(at: datetime, seconds: float) -> datetime:
    """``seconds`` before ``at``; the earliest time there is where imported times leave no room."""
    earliest = datetime.min.replace(tzinfo=UTC)
    return at - timedelta(seconds=seconds) if seconds < _seconds(earliest, at) else earliest


def _seconds(since: datetime, until: datetime) -> float:
    return max(0.0, (until - since).total_seconds())


def _name(actor: Actor) -> str:
    return f"{actor.kind.value}:{actor.id}"


def _add(values: list[Any], value: Any) -> None:
    if value not in values:
        values.append(value)


def load(connection: psycopg.Connection[Any], keys: set[Key]) -> dict[Key, ListingRow]:
    """The rows of ``keys`` that exist."""
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            f"select {_SELECT} from unnest(%s::uuid[], %s::uuid[]) as wanted (workspace_id, id)"
            " join listing using (workspace_id, id)",
            ([key[0] for key in keys], [key[1] for key in keys]),
            prepare=True,
        )
        return {(row[0], row[1]): ListingRow(*row) for row in cursor}


def save(connection: psycopg.Connection[Any], rows: Sequence[ListingRow], versions: Sequence[past.Version]) -> None:
    """Put ``rows`` in the place of those with the same keys, and ``versions`` with the past.

    Nearly every index of a row changes, so an update would save nothing.
    """
    past.save(connection, versions)
    connection.execute(
        "delete from listing using unnest(%s::uuid[], %s::uuid[]) as gone (w, i) where workspace_id = w and id = i",
        ([row.workspace_id for row in rows], [row.id for row in rows]),
        prepare=True,
    )
    with connection.cursor().copy(f"copy listing ({', '.join(COLUMNS)}) from stdin (format binary)") as copy:
        copy.set_types(_TYPES)
        for row in rows:
            values = list(_values(row))
            for index in _JSON:
                values[index] = Jsonb(values[index])
            copy.write_row(values)


def forget_erased(connection: psycopg.Connection[Any], erased: Sequence[contacts.Key]) -> None:
    """Forget ``erased`` in every row that says something of them."""
    for workspace_id, contact_id in erased:
        with connection.cursor(binary=True) as cursor:
            cursor.execute(
                f"select {_SELECT} from listing where workspace_id = %s and contact_id = %s"
                " and (subject is not null or attributes <> '{}')"
                f" union select {_SELECT} from listing where workspace_id = %s and inherited <> '{{}}'"
                " and inherited @? format('$.* ? (@ == \"%%s\")', %s::uuid)::jsonpath",
                (workspace_id, contact_id, workspace_id, contact_id),
            )
            rows = [ListingRow(*row) for row in cursor]
        for row in rows:
            forget(row, contact_id)
        save(connection, rows, [])


def show_changed_contacts(connection: psycopg.Connection[Any], changed: Sequence[contacts.ContactRow]) -> None:
    """Copy the details of contacts that have changed into the rows of their conversations."""
    for contact in changed:
        connection.execute(
            "update listing set contact_name = %s, contact_phones = %s, contact_emails = %s, contact_attributes = %s,"
            " words = array(select word from unnest(words) word where word like %s) || %s::text[]"
            " where workspace_id = %s and contact_id = %s",
            (
                *(contact.name, contact.phones, contact.emails, Jsonb(contact.attributes)),
                *(f"{PROTOCOL}%", contact_terms(contact.name, contact.phones, contact.emails)),
                *(contact.workspace_id, contact.id),
            ),
        )
