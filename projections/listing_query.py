"""Queries of the listing: filters of the bar, scope, sorts, cursors.

Invariant: every query names the workspace and the caller's scope; values are parameters, never text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from domain.events import Owner, Priority
from domain.permissions import Caller, Permission, Scope, may
from projections.listing import COLUMNS

Condition = tuple[str, list[Any]]


FEWEST_DIGITS = 3
"""A phone is searched for by so many digits or more; fewer would fit nearly all."""


class Sort(StrEnum):
    """What the listing can be sorted by; the id breaks ties."""

    LAST_ACTIVITY = "last_activity_at"
    OPENED = "opened_at"
    FINALIZED = "finalized_at"
    WAITING_SINCE = "waiting_since"
    PRIORITY = "priority"


_NULLABLE = {Sort.FINALIZED, Sort.WAITING_SINCE}
_TYPES = {Sort.PRIORITY: "smallint"}


@dataclass(frozen=True, slots=True)
class Bar:
    """The filter bar: what is given must hold; of several values of one filter, one."""

    status: Sequence[str] = ()
    channel: Sequence[str] = ()
    sector: Sequence[UUID] = ()
    agent: Sequence[UUID] = ()
    bot: Sequence[str] = ()
    label: Sequence[str] = ()
    opened_from: datetime | None = None
    opened_until: datetime | None = None
    last_activity_from: datetime | None = None
    last_activity_until: datetime | None = None
    finalized_from: datetime | None = None
    finalized_until: datetime | None = None
    text: str | None = None

    def conditions(self, caller: Caller) -> list[Condition]:
        """The filters as SQL; periods hold their start and not their end."""
        found: list[Condition] = []
        for column, values, type_ in (
            ("status", self.status, "text"),
            ("channel", self.channel, "text"),
            ("sector_id", self.sector, "uuid"),
            ("agent_id", self.agent, "uuid"),
            ("bot", self.bot, "text"),
        ):
            if values:
                found.append((f"{column} = any(%s::{type_}[])", [list(values)]))
        if self.label:
            found.append(("labels && %s::text[]", [list(self.label)]))
        for column, start, end in (
            ("opened_at", self.opened_from, self.opened_until),
            ("last_activity_at", self.last_activity_from, self.last_activity_until),
            ("finalized_at", self.finalized_from, self.finalized_until),
        ):
            if start is not None:
                found.append((f"{column} >= %s", [start]))
            if end is not None:
                found.append((f"{column} < %s", [end]))
        if self.text:
            found.append(_text(self.text, caller))
        return found


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows, in which order, after which one."""

    bar: Bar = field(default_factory=Bar)
    sort: Sort = Sort.LAST_ACTIVITY
    descending: bool = True
    after: tuple[Any, UUID] | None = None
    """The sort value and id of the last row of the page before."""
    limit: int = 50


def page(caller: Caller, wanted: Page) -> Condition:
    """The statement for a page of what ``caller`` may see; one row more than the limit, to tell whether more follow."""
    direction, beyond = ("desc", "<") if wanted.descending else ("asc", ">")
    value = wanted.sort.value
    type_ = _TYPES.get(wanted.sort, "timestamptz")
    if wanted.sort in _NULLABLE:  # rows without it come last, either way
        value = f"coalesce({value}, '{'-' if wanted.descending else ''}infinity')"
    conditions = [*visible(caller), *wanted.bar.conditions(caller)]
    if wanted.after is not None:
        conditions.append((f"({value}, id) {beyond} (%s::{type_}, %s)", list(wanted.after)))
    where, values = _all(conditions)
    columns = f"{', '.join(COLUMNS)}, ({value})::text as sort_value"
    order = f"{value} {direction}, id {direction}"
    return f"select {columns} from listing where {where} order by {order} limit %s", [*values, wanted.limit + 1]


def one(caller: Caller, id_: UUID) -> Condition:
    """The statement for one conversation, if ``caller`` may see it."""
    where, values = _all([*visible(caller), ("id = %s", [id_])])
    return f"select {', '.join(COLUMNS)} from listing where {where}", values


def visible(caller: Caller, permission: Permission = Permission.VIEW) -> list[Condition]:
    """What ``caller`` may see at all: the rule of `domain.permissions.may`, as SQL."""
    conditions: list[Condition] = [("workspace_id = %s", [caller.workspace_id])]
    own = [caller.agent_id, caller.bot]
    match caller.scope(permission):
        case Scope.ALL:
            pass
        case Scope.SECTOR:
            conditions.append(
                ("(sector_id = any(%s::uuid[]) or agent_id = %s::uuid or bot = %s::text)", [list(caller.sectors), *own])
            )
        case Scope.OWN:
            conditions.append(("(agent_id = %s::uuid or bot = %s::text)", own))
        case None:
            conditions.append(("false", []))
    return conditions


def shown(row: dict[str, Any], caller: Caller) -> dict[str, Any]:
    """A row as ``caller`` sees it: the contact's details only with the permission for them."""
    hidden = {"workspace_id", "sort_value"}
    view = {key: value for key, value in row.items() if key not in hidden}
    view["priority"] = list(Priority)[row["priority"]].value
    if not may(caller, Permission.VIEW_CONTACT, owner_of(row)):
        view |= {"contact_name": None, "contact_phones": [], "contact_emails": [], "contact_attributes": {}}
    return view


def owner_of(row: dict[str, Any]) -> Owner:
    """Who answers for the conversation of ``row``."""
    return Owner(sector_id=row["sector_id"], agent_id=row["agent_id"], bot=row["bot"])


def _all(conditions: Sequence[Condition]) -> Condition:
    return " and ".join(text for text, _ in conditions), [value for _, values in conditions for value in values]


def _text(text: str, caller: Caller) -> Condition:
    """Protocol or e-mail that starts so, contact's name that contains it, phone with these digits.

    The contact is looked at only where the caller may view contacts, or a search would tell what is not shown.
    """
    literal = text.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    options: list[Condition] = [
        ("contact_name ilike %s", [f"%{literal}%"]),
        ("exists (select from unnest(contact_emails) email where email ilike %s)", [f"{literal}%"]),
    ]
    digits = "".join(character for character in text if character in "0123456789")
    if len(digits) >= FEWEST_DIGITS:
        options.append(
            (
                r"exists (select from unnest(contact_phones) phone where regexp_replace(phone, '\D', '', 'g') like %s)",
                [f"%{digits}%"],
            )
        )
    either = " or ".join(option for option, _ in options)
    may_look, scope = _all(visible(caller, Permission.VIEW_CONTACT))
    sought = [value for _, values in options for value in values]
    return f"(protocol ilike %s or (({either}) and {may_look}))", [f"{literal}%", *sought, *scope]
