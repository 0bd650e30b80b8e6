"""The listing as a naive reading of the log gives it: each column asked of the whole list of a conversation's events;
and what a filter means, asked of one row at a time.

Shares no code with `projections/`; the two must agree row for row.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from domain.envelope import RecordedEvent
from projections.search_words import contact_terms, protocol_terms

RANKS = {"low": 0, "normal": 1, "high": 2, "urgent": 3}
OWNING = {
    "conversation-opened.v1",
    "conversation-handed-off-to-bot.v1",
    "conversation-handed-off-by-bot.v1",
    "conversation-marked-pending.v1",
    "conversation-assumed.v1",
    "conversation-transferred.v1",
    "conversation-reopened.v1",
}
FINALIZED = {
    "conversation-finalized-from-inbox.v1": "inbox",
    "conversation-finalized-from-listing.v1": "listing",
    "conversation-finalized-automatically.v1": "automatically",
}
WRITTEN = {"message-received.v1", "message-sent.v1", "note-added.v1"}


def row(events: Sequence[RecordedEvent], contacts: dict[UUID, dict[str, Any]]) -> dict[str, Any]:
    """The row of the conversation that ``events`` are all events of; ``contacts`` as they are now."""
    owners = owners_after_each(events)
    first, last = events[0], events[-1]
    start = max(i for i, e in enumerate(events) if topic(e) in {"conversation-opened.v1", "conversation-reopened.v1"})
    episode = events[start:]
    ends = [e for e in episode if topic(e) in FINALIZED]
    end = ends[0] if ends else None
    status, sector, agent, bot = owners[-1]
    contact_id = _last(events, {"contact-reassigned.v1": "after"}, first.event.contact_id)
    contact = contacts[contact_id]
    pending_since, waited = _waiting(episode, owners[start:])
    return {
        "workspace_id": first.stream.workspace_id,
        "id": first.stream.id,
        "protocol": first.event.protocol,
        "channel": first.event.channel,
        "status": status,
        "sector_id": sector,
        "agent_id": agent,
        "bot": bot,
        "contact_id": contact_id,
        "contact_name": contact["name"],
        "contact_phones": list(contact["phones"]),
        "contact_emails": list(contact["emails"]),
        "contact_attributes": contact["attributes"],
        "subject": first.event.personal.subject,
        "priority": RANKS[_last(events, {"priority-changed.v1": "after"}, "normal")],
        "labels": list(_last(events, {"label-added.v1": "after", "label-removed.v1": "after"}, ())),
        "attributes": _attributes(events),
        "opened_at": at(first),
        "opened_by": actor(first),
        "last_activity_at": max(map(at, events)),
        "finalized_at": end and at(end),
        "finalized_from": end and FINALIZED[topic(end)],
        "finalized_by": end and actor(end),
        "finalized_cause": end and getattr(end.event, "cause", None),
        "outcome": end and getattr(end.event, "outcome", None),
        "episode": sum(topic(e) == "conversation-reopened.v1" for e in events) + 1,
        "episode_started_at": at(episode[0]),
        "recorded_at": last.recorded_at,
        "waiting_since": pending_since,
        "waiting_from": pending_since and pending_since - timedelta(seconds=waited),
        "waiting_seconds": waited,
        "first_response_seconds": next(
            (
                seconds(at(episode[0]), at(e))
                for e in episode
                if topic(e) == "message-sent.v1" and e.event.author.kind == "agent"
            ),
            None,
        ),
        "resolution_seconds": end and seconds(at(episode[0]), at(end)),
        "unanswered_since": _unanswered(events),
        "unread": _unread(events),
        "sectors": _distinct(sector for _, sector, _, _ in owners if sector),
        "agents": _distinct(agent for _, _, agent, _ in owners if agent),
        "bots": _distinct(bot for _, _, _, bot in owners if bot),
        "participants": _distinct(f"{e.event.author.kind}:{e.event.author.id}" for e in events if topic(e) in WRITTEN),
        "transfers": sum(topic(e) == "conversation-transferred.v1" for e in events),
        "reopenings": sum(topic(e) == "conversation-reopened.v1" for e in events),
        "messages_received": sum(topic(e) == "message-received.v1" for e in events),
        "messages_sent": sum(topic(e) == "message-sent.v1" for e in events),
        "notes": sum(topic(e) == "note-added.v1" for e in events),
        "version": last.version,
        "position": last.position,
        "words": [
            *protocol_terms(first.event.protocol),
            *contact_terms(contact["name"], contact["phones"], contact["emails"]),
        ],
        "inherited": _inherited(events),
    }


def topic(recorded: RecordedEvent) -> str:
    return recorded.event.TOPIC


def at(recorded: RecordedEvent) -> datetime:
    return recorded.metadata.occurred_at


def actor(recorded: RecordedEvent) -> str:
    return f"{recorded.metadata.actor.kind}:{recorded.metadata.actor.id}"


def seconds(start: datetime, end: datetime) -> float:
    return max(0.0, (end - start).total_seconds())


def owners_after_each(events: Sequence[RecordedEvent]) -> list[tuple[str, UUID | None, UUID | None, str | None]]:
    """Status, sector, agent and bot after each event."""
    after: list[tuple[str, UUID | None, UUID | None, str | None]] = []
    sector: UUID | None = None
    agent: UUID | None = None
    bot: str | None = None
    status = ""
    for recorded in events:
        event, name = recorded.event, topic(recorded)
        if name == "conversation-transferred.v1":
            sector, agent, bot = event.target.sector_id, event.target.agent_id, event.target.bot
        elif name in OWNING:
            if name not in {"conversation-assumed.v1", "conversation-handed-off-to-bot.v1"}:
                sector = event.sector_id
            agent = getattr(event, "agent_id", None)
            bot = event.bot if name == "conversation-handed-off-to-bot.v1" else None
        if name in OWNING:
            status = "with_bot" if bot else "in_progress" if agent else "pending"
        elif name in FINALIZED:
            status = "finalized"
        after.append((status, sector, agent, bot))
    return after


def _waiting(episode: Sequence[RecordedEvent], owners: Sequence[tuple[Any, ...]]) -> tuple[datetime | None, float]:
    """Since when it has been pending without a break, and how long it was pending before, in this episode."""
    since, waited = None, timedelta()
    for recorded, (status, *_) in zip(episode, owners, strict=True):
        if status == "pending" and since is None:
            since = at(recorded)
        elif status != "pending" and since is not None:
            waited, since = waited + max(timedelta(), at(recorded) - since), None
    return since, waited.total_seconds()


def _unanswered(events: Sequence[RecordedEvent]) -> datetime | None:
    answered = [i for i, e in enumerate(events) if topic(e) == "message-sent.v1" or topic(e) in FINALIZED]
    rest = events[answered[-1] + 1 :] if answered else events
    return next((at(e) for e in rest if topic(e) == "message-received.v1"), None)


def _unread(events: Sequence[RecordedEvent]) -> int:
    acted = [i for i, e in enumerate(events) if e.metadata.actor.kind == "agent" or _an_agent_answers(e)]
    rest = events[acted[-1] + 1 :] if acted else events
    # A message that an agent recorded for the contact counts: it was received after they acted.
    own = acted and topic(events[acted[-1]]) == "message-received.v1"
    return sum(topic(e) == "message-received.v1" for e in rest) + bool(own)


def _an_agent_answers(recorded: RecordedEvent) -> bool:
    return topic(recorded) == "message-sent.v1" and recorded.event.author.kind == "agent"


def _attributes(events: Sequence[RecordedEvent]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for recorded in events:
        if topic(recorded) == "attribute-set.v1":
            found.pop(recorded.event.key, None)
            if recorded.event.personal.after is not None:
                found[recorded.event.key] = recorded.event.personal.after
    return found


def _inherited(events: Sequence[RecordedEvent]) -> dict[str, str]:
    """Whose what the row shows was, where the conversation was reassigned after it was said."""
    last = max((i for i, e in enumerate(events) if topic(e) == "contact-reassigned.v1"), default=-1)
    said = {}
    for recorded in events[: last + 1]:
        if topic(recorded) == "conversation-opened.v1" and recorded.event.personal.subject is not None:
            said["subject"] = str(recorded.event.contact_id)
        if topic(recorded) == "attribute-set.v1":
            said[f"attributes.{recorded.event.key}"] = str(recorded.event.contact_id)
    later = {f"attributes.{e.event.key}" for e in events[last + 1 :] if topic(e) == "attribute-set.v1"}
    shown = {f"attributes.{key}" for key in _attributes(events)} | {"subject"}
    return {each: whose for each, whose in said.items() if each in shown and each not in later}


def _last(events: Sequence[RecordedEvent], fields: dict[str, str], default: Any) -> Any:
    found = [getattr(e.event, fields[topic(e)]) for e in events if topic(e) in fields]
    return found[-1] if found else default


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


# The text box: a name by the beginnings of its words, the rest from any word on, a phone from any digit on


def _words(text: str) -> list[str]:
    bare = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold()
    return [word[:64] for word in "".join(c if c.isalnum() else " " for c in bare).split()]


def _from_any_word(text: str) -> list[str]:
    found = _words(text)
    return ["".join(found[start:])[:64] for start in range(len(found))]


def _from_any_digit(phone: str) -> list[str]:
    number = "".join(c for c in phone if c in "0123456789")[:64]
    return [number[start:] for start in range(len(number)) if start == 0 or len(number) - start >= 3]


def found_by_text(text: str, row: dict[str, Any], *, sees_contact: bool) -> bool:
    asked, whole = _words(text), "".join(_words(text))[:64]
    others = _from_any_word(row["protocol"])
    name: list[str] = []
    if sees_contact:
        others += [found for email in row["contact_emails"] for found in _from_any_word(email)]
        others += [found for phone in row["contact_phones"] for found in _from_any_digit(phone)]
        name = _words(row["contact_name"] or "")
    if not asked:
        return False
    by_name = all(any(word.startswith(each) for word in name) for each in asked)
    return by_name or any(other.startswith(whole) for other in others)


# Filters

NOT = {"is_not": "is", "not_in": "in", "not_contains": "contains", "is_not_set": "is_set"}
COLUMNS = {
    "sector": "sector_id",
    "agent": "agent_id",
    "contact": "contact_id",
    "label": "labels",
    "opened": "opened_at",
    "last_activity": "last_activity_at",
    "finalized": "finalized_at",
    "ever_in_sector": "sectors",
    "ever_with_agent": "agents",
    "ever_with_bot": "bots",
    "contact.name": "contact_name",
    "contact.phone": "contact_phones",
    "contact.email": "contact_emails",
}


def holds(wanted: dict[str, Any], row: dict[str, Any], now: datetime, *, sees_contact: bool = True) -> bool:
    """Whether the filter ``wanted``, as JSON, holds for ``row`` at ``now``, to one who sees its contact or not."""
    if "and" in wanted:
        return all(holds(each, row, now, sees_contact=sees_contact) for each in wanted["and"])
    if "or" in wanted:
        return any(holds(each, row, now, sees_contact=sees_contact) for each in wanted["or"])
    if "not" in wanted:
        return not holds(wanted["not"], row, now, sees_contact=sees_contact)
    field, operator, value = wanted["field"], wanted["operator"], wanted.get("value")
    if operator in NOT:
        return not holds(wanted | {"operator": NOT[operator]}, row, now, sees_contact=sees_contact)
    if field == "text":
        return found_by_text(value, row, sees_contact=sees_contact)
    if field.startswith("contact.") and not sees_contact:
        return False
    found = values_of(field, row, now)
    if operator == "is_set":
        return bool(found)
    test = _test(field, operator, value, now)
    return any(test(each) for each in found)


def waited(row: dict[str, Any], now: datetime) -> float:
    """Seconds of waiting in this episode, the present wait included."""
    running = (now - row["waiting_since"]).total_seconds() if row["waiting_since"] else 0.0
    return round(row["waiting_seconds"] + running, 6)


def values_of(field: str, row: dict[str, Any], now: datetime) -> list[Any]:
    """What is set in ``field``: nothing, one value or several."""
    for prefix, column in (("attributes.", "attributes"), ("contact.attributes.", "contact_attributes")):
        if field.startswith(prefix):
            return _several(row[column].get(field.removeprefix(prefix)))
    match field:
        case "messages":
            return [row["messages_received"] + row["messages_sent"]]
        case "waiting_seconds":
            return [waited(row, now)]
        case "unanswered":
            return [row["unanswered_since"] is not None]
        case "contact.phone":
            return ["".join(c for c in phone if c.isdigit()) for phone in row["contact_phones"]]
        case _:
            return _several(row[COLUMNS.get(field, field)])


def _several(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _test(field: str, operator: str, value: Any, now: datetime) -> Callable[[Any], bool]:
    def read(given: Any) -> Any:
        """A value of the filter as a row holds such values."""
        if field in {"opened", "last_activity", "finalized", "waiting_since", "unanswered_since"}:
            return datetime.fromisoformat(given)
        if field in {"sector", "agent", "contact", "ever_in_sector", "ever_with_agent"}:
            return UUID(given)
        if field == "contact.phone":
            return "".join(c for c in given if c.isdigit())
        return RANKS[given] if field == "priority" else given

    def alike(found: Any, given: Any) -> bool:
        return isinstance(found, bool) is isinstance(given, bool) and found == read(given)

    def comparable(found: Any, given: Any) -> bool:
        """Numbers with numbers, dates with dates."""
        if isinstance(found, str):
            return isinstance(given, str) and re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", found) is not None
        return not isinstance(found, bool) and not (isinstance(found, int | float) and isinstance(read(given), str))

    def days_ago(found: Any, days: int) -> Any:
        moment = now - timedelta(days=days)
        return moment.astimezone(UTC).date().isoformat() if isinstance(found, str) else moment

    match operator:
        case "is":
            return lambda found: alike(found, value)
        case "in":
            return lambda found: any(alike(found, each) for each in value)
        case "contains":
            return lambda found: isinstance(found, str) and bare(read(value)) in bare(found)
        case "starts_with":
            return lambda found: isinstance(found, str) and bare(found).startswith(bare(read(value)))
        case "before" | "less":
            return lambda found: comparable(found, value) and found < read(value)
        case "after":
            return lambda found: comparable(found, value) and found >= read(value)
        case "greater":
            return lambda found: comparable(found, value) and found > read(value)
        case "between":
            low, high = value
            numbers = isinstance(low, int | float)
            return lambda found: (
                comparable(found, low)
                and found >= read(low)
                and (found < read(high) or (numbers and found == read(high)))
            )
        case "in_last_days":
            return lambda found: comparable(found, "") and days_ago(found, value) <= found <= days_ago(found, 0)
        case "more_than_days_ago":
            return lambda found: comparable(found, "") and found < days_ago(found, value)
        case _:
            raise AssertionError(operator)


def bare(text: str) -> str:
    """Without accents, in lower case."""
    return re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", text)).lower()


def in_order(rows: Iterable[dict[str, Any]], sort: str, now: datetime, *, descending: bool) -> list[dict[str, Any]]:
    """By value, then id, both in the order asked for; what has no value comes last, either way."""

    def value(row: dict[str, Any]) -> Any:
        return waited(row, now) if sort == "waiting" else row[sort]

    some = sorted((row for row in rows if value(row) is not None), key=lambda row: (value(row), row["id"]))
    none = sorted((row for row in rows if value(row) is None), key=lambda row: row["id"])
    return [*reversed(some), *reversed(none)] if descending else [*some, *none]
