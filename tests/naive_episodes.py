"""The episodes as a naive reading of the log gives them: each asked of the whole list of its events.

Shares no code with `projections/episodes.py`; the two must agree row for row.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from naive_listing import FINALIZED, actor, at, owners_after_each, seconds, topic

from domain.envelope import RecordedEvent

STARTED = {"conversation-opened.v1", "conversation-reopened.v1"}


def episodes(events: Sequence[RecordedEvent]) -> Iterator[dict[str, Any]]:
    """The rows of the conversation that ``events`` are all events of."""
    owners = owners_after_each(events)
    starts = [i for i, e in enumerate(events) if topic(e) in STARTED]
    for number, (start, end) in enumerate(pairwise([*starts, len(events)]), start=1):
        following = events[end] if end < len(events) else None
        contact = [e.event.after for e in events[:end] if topic(e) == "contact-reassigned.v1"]
        yield {
            "workspace_id": events[0].stream.workspace_id,
            "conversation_id": events[0].stream.id,
            "episode": number,
            "channel": events[0].event.channel,
            "contact_id": contact[-1] if contact else events[0].event.contact_id,
            "reopened_at": following and at(following),
            **_measured(events[start:end], owners[start:end]),
        }


def _measured(episode: Sequence[RecordedEvent], owners: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    first = episode[0]
    end = next((e for e in episode if topic(e) in FINALIZED), None)
    statuses, sectors, agents, bots = zip(*owners, strict=True)
    waited, since = 0.0, None
    for recorded, status in zip(episode, statuses, strict=True):
        if status == "pending":
            since = since or at(recorded)
        elif since:
            waited, since = waited + seconds(since, at(recorded)), None
    by_agents = [e for e in episode if topic(e) == "message-sent.v1" and e.event.author.kind == "agent"]
    return {
        "status": statuses[-1],
        "started_at": at(first),
        "opened_by": actor(first),
        "first_sector_id": next(filter(None, sectors), None),
        "first_agent_id": next(filter(None, agents), None),
        "sector_id": sectors[-1],
        "agent_id": agents[-1],
        "bot": bots[-1],
        "waiting_since": since,
        "waiting_seconds": waited,
        "first_response_seconds": seconds(at(first), at(by_agents[0])) if by_agents else None,
        "resolution_seconds": end and seconds(at(first), at(end)),
        "transfers": sum(topic(e) == "conversation-transferred.v1" for e in episode),
        "messages_received": sum(topic(e) == "message-received.v1" for e in episode),
        "messages_sent": sum(topic(e) == "message-sent.v1" for e in episode),
        "finalized_at": end and at(end),
        "finalized_by": end and actor(end),
        "finalized_from": end and FINALIZED[topic(end)],
        "finalized_surface": end and end.metadata.surface,
        "finalized_cause": end and getattr(end.event, "cause", None),
        "outcome": end and getattr(end.event, "outcome", None),
    }
