"""Totals over episodes: the statement that counts and averages those of the conversations that a filter of the listing
chooses, within a period, by up to three properties.

Invariant: what is counted is an episode of a conversation within the caller's scope; values are parameters, never text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

MOST_GROUPS = 1_000
"""Lines of totals in one answer, at most."""


class Moment(StrEnum):
    """Which of an episode's moments lies in the period, and on which day it counts."""

    STARTED = "started"
    FINALIZED = "finalized"


class GroupBy(StrEnum):
    """What totals can be told apart by; status, sector, agent and bot as they were at the episode's end, or are now."""

    STATUS = "status"
    CHANNEL = "channel"
    SECTOR = "sector"
    AGENT = "agent"
    BOT = "bot"
    FIRST_SECTOR = "first_sector"
    FIRST_AGENT = "first_agent"
    FINALIZED_FROM = "finalized_from"
    FINALIZED_SURFACE = "finalized_surface"
    FINALIZED_BY = "finalized_by"
    FINALIZED_CAUSE = "finalized_cause"
    OUTCOME = "outcome"
    DAY = "day"


_COLUMNS = {
    GroupBy.SECTOR: "sector_id",
    GroupBy.AGENT: "agent_id",
    GroupBy.FIRST_SECTOR: "first_sector_id",
    GroupBy.FIRST_AGENT: "first_agent_id",
}
_MOMENTS = {Moment.STARTED: "episodes.started_at", Moment.FINALIZED: "episodes.finalized_at"}
MEASURES = {
    "waiting_seconds": "episodes.waiting_seconds"
    " + coalesce(greatest(0, extract(epoch from %s::timestamptz - episodes.waiting_since)), 0)::float8",
    "first_response_seconds": "episodes.first_response_seconds",
    "resolution_seconds": "episodes.resolution_seconds",
}
"""What is averaged; a wait that still lasts counts up to now."""
COUNTS = {
    "episodes": "count(*)",
    "opened": "count(*) filter (where episode = 1)",
    "reopened": "count(*) filter (where episode > 1)",
    "finalized": "count(finalized_at)",
    "returned": "count(reopened_at)",
    "transfers": "sum(transfers)::int8",
    "messages_received": "sum(messages_received)::int8",
    "messages_sent": "sum(messages_sent)::int8",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which episodes, and told apart by what; the period holds its start and not its end."""

    group_by: Sequence[GroupBy]
    moment: Moment
    start: datetime | None
    end: datetime | None
    time_zone: str
    now: datetime


def totals(workspace_id: UUID, chosen: tuple[str, Sequence[Any]] | None, wanted: Wanted) -> tuple[str, list[Any]]:
    """The statement; ``chosen`` is the condition on `listing` that says which conversations count.

    None: all of the workspace's, which then need not be looked up one by one: that is most of the time it takes.

    Its rows hold the groups as ``group_1`` …, `COUNTS`, and per measure ``…_average``, ``…_median``, ``…_p90`` and
    ``…_count``; one row more than `MOST_GROUPS` tells that there are more.
    """
    moment = _MOMENTS[wanted.moment]
    columns, values = [], []
    for number, group in enumerate(wanted.group_by, start=1):
        if group is GroupBy.DAY:
            columns.append(f"({moment} at time zone %s)::date as group_{number}")
            values.append(wanted.time_zone)
        else:
            columns.append(f"episodes.{_COLUMNS.get(group, group.value)} as group_{number}")
    columns += [f"{expression} as {name}" for name, expression in COUNTS.items()]
    for name in MEASURES:
        columns.append(f"avg({name}) as {name}_average")
        columns.append(f"percentile_cont(array[0.5, 0.9]) within group (order by {name}) as {name}_percentiles")
        columns.append(f"count({name}) as {name}_count")
    period = ["episodes.workspace_id = %s"]
    period_values: list[Any] = [workspace_id]
    if chosen is not None:
        condition, condition_values = chosen
        period.append(f"episodes.conversation_id in (select id from listing where {condition})")
        period_values += condition_values
    if wanted.moment is Moment.FINALIZED:
        period.append("episodes.finalized_at is not null")
    for operator, bound in ((">=", wanted.start), ("<", wanted.end)):
        if bound is not None:
            period.append(f"{moment} {operator} %s")
            period_values.append(bound)
    measures = ", ".join(f"{expression} as {name}" for name, expression in MEASURES.items())
    raw = ", ".join(f"episodes.{column}" for column in _RAW)
    groups = ", ".join(str(number) for number in range(1, len(wanted.group_by) + 1))
    statement = (
        f"select {', '.join(columns)} from (select {raw}, {measures} from episodes where {' and '.join(period)})"
        f" episodes {f'group by {groups} order by {groups}' if groups else ''} limit {MOST_GROUPS + 1}"
    )
    return statement, [*values, wanted.now, *period_values]


_RAW = (
    *("episode", "channel", "status", "started_at", "first_sector_id", "first_agent_id", "sector_id", "agent_id"),
    *("bot", "transfers", "messages_received", "messages_sent", "finalized_at", "finalized_by", "finalized_from"),
    *("finalized_surface", "finalized_cause", "outcome", "reopened_at"),
)
