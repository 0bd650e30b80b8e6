"""The listing as a naive reading of the log gives it: each column asked of the whole list of a conversation's events.

Shares no code with `projections/listing.py`; the two must agree row for row.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from domain.envelope import RecordedEvent

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
        "waiting_since": pending_since,
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
    since, waited = None, 0.0
    for recorded, (status, *_) in zip(episode, owners, strict=True):
        if status == "pending" and since is None:
            since = at(recorded)
        elif status != "pending" and since is not None:
            waited, since = waited + seconds(since, at(recorded)), None
    return since, waited


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


def _last(events: Sequence[RecordedEvent], fields: dict[str, str], default: Any) -> Any:
    found = [getattr(e.event, fields[topic(e)]) for e in events if topic(e) in fields]
    return found[-1] if found else default


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
