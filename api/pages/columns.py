"""The columns of the listing: their names, by what they sort, which are usual.

Invariant: they are columns of the API's rows, under the API's names, so that a saved view's columns fit both.
"""

from dataclasses import dataclass, replace

from api.pages.texts import N_
from api.sentences import CHANNELS
from projections.listing_query import Sort


@dataclass(frozen=True, slots=True)
class Column:
    """A column."""

    said: str
    sort: Sort | None = None
    numeric: bool = False
    name: str = ""


_COLUMNS: dict[str, Column] = {
    "protocol": Column(N_("Protocol")),
    "contact_name": Column(N_("Contact")),
    "subject": Column(N_("Subject")),
    "status": Column(N_("Status")),
    "channel": Column(N_("Channel")),
    "sector_id": Column(N_("Sector")),
    "agent_id": Column(N_("Agent")),
    "bot": Column(N_("Bot")),
    "priority": Column(N_("Priority"), Sort.PRIORITY),
    "labels": Column(N_("Labels")),
    "unread": Column(N_("Unread"), numeric=True),
    "waiting_seconds": Column(N_("Waiting time"), Sort.WAITING, numeric=True),
    "waiting_since": Column(N_("Waiting since"), Sort.WAITING_SINCE),
    "unanswered_since": Column(N_("Unanswered since"), Sort.UNANSWERED_SINCE),
    "first_response_seconds": Column(N_("First response"), Sort.FIRST_RESPONSE, numeric=True),
    "resolution_seconds": Column(N_("Resolution"), Sort.RESOLUTION, numeric=True),
    "last_activity_at": Column(N_("Last activity"), Sort.LAST_ACTIVITY),
    "opened_at": Column(N_("Opened"), Sort.OPENED),
    "opened_by": Column(N_("Opened by")),
    "episode": Column(N_("Episode"), numeric=True),
    "episode_started_at": Column(N_("Episode since"), Sort.EPISODE_STARTED),
    "finalized_at": Column(N_("Finalized"), Sort.FINALIZED),
    "finalized_from": Column(N_("Finalized from")),
    "finalized_by": Column(N_("Finalized by")),
    "outcome": Column(N_("Outcome")),
    "transfers": Column(N_("Transfers"), numeric=True),
    "reopenings": Column(N_("Reopenings"), numeric=True),
    "messages_received": Column(N_("Messages received"), numeric=True),
    "messages_sent": Column(N_("Messages sent"), numeric=True),
    "notes": Column(N_("Notes"), numeric=True),
    "contact_phones": Column(N_("Phones")),
    "contact_emails": Column(N_("E-mails")),
}
COLUMNS = {name: replace(column, name=name) for name, column in _COLUMNS.items()}
DEFAULT_COLUMNS = (
    *("contact_name", "status", "subject", "channel", "sector_id", "agent_id", "waiting_seconds"),
    *("unread", "last_activity_at", "protocol"),
)
SORTS: dict[Sort, str] = {column.sort: column.name for column in COLUMNS.values() if column.sort is not None}

STATUS_NAMES = {
    "with_bot": N_("With a bot"),
    "pending": N_("Pending"),
    "in_progress": N_("In progress"),
    "finalized": N_("Finalized"),
}
PRIORITY_NAMES = {"low": N_("Low"), "normal": N_("Normal"), "high": N_("High"), "urgent": N_("Urgent")}
SURFACE_NAMES = {
    "inbox": N_("from the inbox"),
    "listing": N_("from the listing"),
    "automatically": N_("automatically"),
}
CHANNEL_NAMES = CHANNELS
