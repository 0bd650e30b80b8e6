"""Queries of the listing: filters as SQL, scope, sorts, pages, counts.

A filter becomes a statement that is true or not for a row, as in `projections.filters`: ``not`` is pushed down to the
conditions, where it is ``is not true``, so that what is null to SQL is false to us at every depth.

Invariant: every query names the workspace and the caller's scope; values are parameters, never text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, assert_never, cast
from uuid import UUID

from psycopg.types.json import Jsonb

from domain.events import Owner, Priority, Status
from domain.permissions import Caller, Permission, Scope, may
from projections import past
from projections.filters import (
    ATTRIBUTES,
    EVERYTHING,
    NEGATIONS,
    And,
    Condition,
    Filter,
    Kind,
    Not,
    Operator,
    Or,
    kind_of,
    looks_at_the_contact,
    plain,
)
from projections.listing import PRIORITY_RANKS, SHOWN_COLUMNS
from projections.search_words import (
    CONTACT,
    MAX_TERM,
    MIN_PHONE_DIGITS,
    NO_TERMS,
    PROTOCOL,
    Query,
    asked,
    asked_of_name,
    digits,
    joined,
    words,
)

Sql = tuple[str, list[Any]]
"""A text with placeholders and the values for them."""

NOTHING: Sql = ("false", [])
_CONTACT_COLUMNS = {
    "contact.name": "contact_name",
    "contact.phone": "contact_phones",
    "contact.email": "contact_emails",
}
_COLUMNS = _CONTACT_COLUMNS | {
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
    "messages": "(messages_received + messages_sent)",
}
"""Columns of fields that are not called like them."""
_ARRAYS = {Kind.IDS: "uuid", Kind.ID: "uuid", Kind.COUNT: "bigint", Kind.DURATION: "float8", Kind.RANK: "smallint"}


@dataclass(frozen=True, slots=True)
class _Asked:
    """Who asks, and for which moment."""

    caller: Caller
    now: datetime
    """From which days and running waits are counted."""
    is_past: bool
    """Whether it is about rows as they stood at that moment."""
    is_of_agent: bool = False
    """Whether all that is found is with one agent: labels are compared there, which is less than a label has rows."""

    def reach(self, permission: Permission) -> list[Sql]:
        """What makes a conversation one that the caller has ``permission`` on: as it is now, however it was."""
        conditions = visible(self.caller, permission)[1:]
        return [self.of_now(conditions)] if conditions and self.is_past else conditions

    def of_now(self, conditions: Sequence[Sql]) -> Sql:
        """That ``conditions`` hold for the conversation's row of now."""
        text, values = _all([visible(self.caller)[0], *conditions])
        return f"id in (select id from listing where {text})", values


def where(
    caller: Caller,
    wanted: Filter,
    permission: Permission = Permission.VIEW,
    *,
    now: datetime | None = None,
    as_of: datetime | None = None,
) -> Sql:
    """The condition on ``listing`` for what ``caller`` may see, has ``permission`` on, and ``wanted`` holds for.

    ``now`` is the moment from which days and running waits are counted; the present one unless it is given. With
    ``as_of`` it is that, and the condition is on rows that held then, of conversations whose history they may read.
    """
    asked = _Asked(caller, as_of or now or datetime.now(UTC), is_past=as_of is not None)
    permissions = {Permission.VIEW: None, permission: None} | ({Permission.READ_HISTORY: None} if as_of else {})
    reach = [condition for each in permissions for condition in asked.reach(each)]
    return _all([visible(caller)[0], *reach, _compiled(wanted, asked)])


def _compiled(wanted: Filter, asked: _Asked, *, holds: bool = True) -> Sql:
    """``wanted`` as SQL, or its opposite unless it ``holds``; null counts as false, and is found at no other place."""
    match wanted:
        case Condition(operator=operator):
            positive = _condition(wanted, NEGATIONS.get(operator, operator), asked)
            return positive if holds is (operator not in NEGATIONS) else (f"({positive[0]}) is not true", positive[1])
        case And(filters=filters) | Or(filters=filters):
            combine = _all if isinstance(wanted, And) is holds else _any
            if holds and combine is _all and any(map(_is_agent, filters)):
                asked = replace(asked, is_of_agent=True)
            return combine([_compiled(each, asked, holds=holds) for each in filters])
        case Not(filter=inner):
            return _compiled(inner, asked, holds=not holds)
        case _:
            assert_never(wanted)


def _is_agent(wanted: Filter) -> bool:
    return isinstance(wanted, Condition) and (wanted.field, wanted.operator) == ("agent", Operator.IS)


def _condition(condition: Condition, operator: Operator, asked: _Asked) -> Sql:
    """``condition`` with ``operator``, which is no negation, in place of its own."""
    field, value = condition.field, condition.value
    if asked.is_past and (field in _READ_NOW or kind_of(field) is Kind.ATTRIBUTE or looks_at_the_contact(field)):
        return asked.of_now([_condition(condition, operator, replace(asked, is_past=False))])
    if field == "text":
        return _text_search(value, asked.caller)
    row = _on_the_row(field, operator, value, asked.now)
    if field == "label" and asked.is_of_agent:
        row = (f"(labels <> '{{}}' and ({row[0]}) is true)", row[1])
    conditions = [*_words_in(field, operator, value), row]
    if looks_at_the_contact(field):  # elsewhere the contact is not shown: there is nothing for it to compare
        conditions += asked.reach(Permission.VIEW_CONTACT)
    return _all(conditions)


_READ_NOW = {"text", "protocol", "subject"}
"""With the contact's details and attributes: what a version of the past does not hold, because it can name a person."""


def _words_in(field: str, operator: Operator, value: Any) -> list[Sql]:
    """What holds wherever the condition does, and has an index: that there are words like those of ``value``."""
    match field, operator:
        case "contact.name", Operator.IS | Operator.STARTS_WITH:
            lookup = asked_of_name(words(value)).lookup
        case "contact.name", Operator.CONTAINS:
            first, *others = words(value) or [""]
            lookup = asked_of_name(others, ending=first).lookup
        case (("protocol" | "contact.email"), Operator.IS | Operator.STARTS_WITH):
            begins = joined(value)
            lookup = f"'{PROTOCOL if field == 'protocol' else CONTACT}{begins}':*" if begins else ""
        case "contact.phone", Operator.IS | Operator.STARTS_WITH | Operator.CONTAINS:
            number = digits(value)[:MAX_TERM]
            lookup = f"'{CONTACT}{number}':*" if len(number) >= MIN_PHONE_DIGITS else ""
        case _:
            return []
    return [(_WORDS_MATCH, [lookup])] if lookup else []


_WORDS_MATCH = "array_to_tsvector(words) @@ %s::tsquery"


def _search(query: Query) -> Sql:
    """Looked up, and compared without another look at the index."""
    if query.lookup == query.exact:
        return _WORDS_MATCH, [query.lookup]
    return f"({_WORDS_MATCH} and ({_WORDS_MATCH}) is true)", [*query]


def _on_the_row(field: str, operator: Operator, value: Any, now: datetime) -> Sql:
    kind, column = kind_of(field), _COLUMNS.get(field, field)
    match kind:
        case Kind.ATTRIBUTE:
            prefix = next(prefix for prefix in ATTRIBUTES if field.startswith(prefix))
            column = "attributes" if prefix == "attributes." else "contact_attributes"
            return _attribute(column, field.removeprefix(prefix), operator, value, now)
        case Kind.FLAG:
            return ("unanswered_since is not null" if value else "unanswered_since is null"), []
        case Kind.RANK:
            ranks = tuple(PRIORITY_RANKS[Priority(each)] for each in (value if isinstance(value, tuple) else (value,)))
            return _scalar(column, kind, operator, ranks if operator is Operator.IN else ranks[0])
        case Kind.DURATION if field == "waiting_seconds":
            return _waiting(operator, value, now)
        case Kind.TIME:
            return _time(column, operator, value, now)
        case Kind.IDS | Kind.TEXTS:
            return _one_of_several(column, _ARRAYS.get(kind, "text"), operator, value)
        case Kind.PHONES:
            return _phones(column, operator, value)
        case _:
            return _scalar(column, kind, operator, value)


def _scalar(column: str, kind: Kind | None, operator: Operator, value: Any) -> Sql:
    if operator is Operator.IN and len(value) == 1:  # an index of a single value keeps the order of what follows
        operator, value = Operator.IS, value[0]
    match operator:
        case Operator.IS_SET:
            return f"{column} is not null", []
        case Operator.IS:
            return f"{column} = %s", [value]
        case Operator.IN:
            return f"{column} = any(%s::{_ARRAYS.get(kind or Kind.TEXT, 'text')}[])", [list(value)]
        case Operator.GREATER:
            return f"{column} > %s", [value]
        case Operator.LESS:
            return f"{column} < %s", [value]
        case Operator.BETWEEN:
            return f"({column} >= %s and {column} <= %s)", list(value)
        case _:
            return _like(column, operator, value)


def _time(column: str, operator: Operator, value: Any, now: datetime) -> Sql:
    match operator:
        case Operator.BEFORE:
            return f"{column} < %s", [value]
        case Operator.AFTER:
            return f"{column} >= %s", [value]
        case Operator.BETWEEN:
            return f"({column} >= %s and {column} < %s)", list(value)
        case Operator.IN_LAST_DAYS:
            return f"({column} >= %s and {column} <= %s)", [now - timedelta(days=value), now]
        case Operator.MORE_THAN_DAYS_AGO:
            return f"{column} < %s", [now - timedelta(days=value)]
        case _:
            return f"{column} is not null", []


def _waiting(operator: Operator, value: Any, now: datetime) -> Sql:
    """Waits that go on are compared by when they would have begun, had there been no break: an index knows that."""

    def began(seconds: float) -> datetime:
        return _earlier(now, seconds)

    match operator:
        case Operator.IS_SET:
            return "true", []
        case Operator.IN:
            text = "case when waiting_from is null then waiting_seconds = any(%s::float8[])"
            return f"{text} else waiting_from = any(%s::timestamptz[]) end", [list(value), [began(v) for v in value]]
        case Operator.BETWEEN:
            low, high = value
            text = "((waiting_from is null and waiting_seconds >= %s and waiting_seconds <= %s)"
            return f"{text} or (waiting_from <= %s and waiting_from >= %s))", [low, high, began(low), began(high)]
        case _:
            stopped, running = {Operator.IS: ("=", "="), Operator.GREATER: (">", "<"), Operator.LESS: ("<", ">")}[
                operator
            ]
            text = f"((waiting_from is null and waiting_seconds {stopped} %s) or waiting_from {running} %s)"
            return text, [value, began(value)]


_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


def _earlier(now: datetime, seconds: float) -> datetime:
    """``seconds`` before ``now``, within the times there are."""
    try:
        return now - timedelta(seconds=seconds)
    except OverflowError:
        return _EARLIEST if seconds > 0 else _LATEST


def _one_of_several(column: str, type_: str, operator: Operator, value: Any) -> Sql:
    match operator:
        case Operator.IS_SET:
            return f"{column} <> '{{}}'", []
        case Operator.IS:
            return f"({column} <> '{{}}' and {column} @> %s::{type_}[])", [[value]]  # so that a partial index fits
        case Operator.IN:
            return f"({column} <> '{{}}' and {column} && %s::{type_}[])", [list(value)]
        case _:
            like, values = _like("one", operator, value)
            return f"exists (select from unnest({column}) one where {like})", values


def _phones(column: str, operator: Operator, value: Any) -> Sql:
    """By digits only, however they are grouped."""
    match operator:
        case Operator.IS_SET:
            return f"{column} <> '{{}}'", []
        case Operator.IN:
            test, values = "= any(%s::text[])", list[Any]([[digits(each) for each in value]])
        case Operator.IS:
            test, values = "= %s", [digits(value)]
        case _:
            test, values = "like %s", [("%" if operator is Operator.CONTAINS else "") + digits(value) + "%"]
    return f"exists (select from unnest({column}) one where regexp_replace(one, '[^0-9]', '', 'g') {test})", values


def _attribute(column: str, key: str, operator: Operator, value: Any, now: datetime) -> Sql:
    """By the JSON type that the value has; of a list, one text must fit."""
    found = f"{column} -> %s"
    match operator:
        case Operator.IS_SET:
            return f"{found} not in ('null', '[]')", [key]
        case Operator.IS | Operator.IN:
            wanted = value if operator is Operator.IN else (value,)
            return _any([_holds(column, key, each) for each in wanted])
        case Operator.GREATER | Operator.LESS:
            sign = ">" if operator is Operator.GREATER else "<"
            return f"(jsonb_typeof({found}) = 'number' and {found} {sign} %s)", [key, key, Jsonb(value)]
        case Operator.BETWEEN if not isinstance(value[0], str):
            text = f"(jsonb_typeof({found}) = 'number' and {found} >= %s and {found} <= %s)"
            return text, [key, key, Jsonb(value[0]), key, Jsonb(value[1])]
        case Operator.CONTAINS | Operator.STARTS_WITH:
            test, values = _like(_ONE_TEXT, operator, value)
        case _:
            test, values = _date(operator, value, now)
    # A path reads a single value as a list of one.
    text = f"exists (select from jsonb_path_query({found}, '$[*]') one where jsonb_typeof(one) = 'string' and {test})"
    return text, [key, *values]


def _holds(column: str, key: str, value: Any) -> Sql:
    if isinstance(value, str):
        return f"({column} @> %s or {column} @> %s)", [Jsonb({key: value}), Jsonb({key: [value]})]
    return f"{column} @> %s", [Jsonb({key: value})]


_ONE_TEXT = "(one #>> '{}')"


def _date(operator: Operator, value: Any, now: datetime) -> Sql:
    """Dates in their written form, which sorts as they do."""
    found, today = f'{_ONE_TEXT} collate "C"', now.astimezone(UTC).date()
    match operator:
        case Operator.BEFORE:
            test, dates = f"{found} < %s", [value]
        case Operator.AFTER:
            test, dates = f"{found} >= %s", [value]
        case Operator.BETWEEN:
            test, dates = f"{found} >= %s and {found} < %s", list(value)
        case Operator.IN_LAST_DAYS:
            earliest = (today - timedelta(days=value)).isoformat()
            test, dates = f"{found} >= %s and {found} <= %s", [earliest, today.isoformat()]
        case _:
            test, dates = f"{found} < %s", [(today - timedelta(days=value)).isoformat()]
    return f"{found} ~ '^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}$' and {test}", dates


def _like(column: str, operator: Operator, value: str) -> Sql:
    """Contains or starts with, whatever the case and the accents."""
    literal = plain(value).replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    pattern = f"%{literal}%" if operator is Operator.CONTAINS else f"{literal}%"
    without_accents = rf"regexp_replace(normalize({column}, NFKD), '[\u0300-\u036f]', '', 'g')"
    # Taking accents off costs most of a search; where every character is a byte, there are none.
    bare = f"case when octet_length({column}) = char_length({column}) then {column} else {without_accents} end"
    return f"lower({bare}) like %s", [pattern]


def _text_search(text: str, caller: Caller) -> Sql:
    """What the protocol or the contact is found by (`projections.search_words`).

    The contact is looked at only where the caller may view contacts, or a search would tell what is not shown.
    """
    either, protocol = asked(text), asked(text, of_contact=False)
    if either is NO_TERMS:
        return NOTHING
    match caller.scope(Permission.VIEW_CONTACT):
        case Scope.ALL:
            return _search(either)
        case None:
            return _search(protocol)
        case _:
            may_look = visible(caller, Permission.VIEW_CONTACT)[1:]
            found = _any([(f"({_WORDS_MATCH}) is true", [protocol.exact]), *may_look])
            return _all([_search(either), found])


# Pages


class Sort(StrEnum):
    """What the listing can be sorted by; the id breaks ties, and what has no value comes last both ways."""

    LAST_ACTIVITY = "last_activity_at"
    OPENED = "opened_at"
    FINALIZED = "finalized_at"
    EPISODE_STARTED = "episode_started_at"
    WAITING_SINCE = "waiting_since"
    UNANSWERED_SINCE = "unanswered_since"
    WAITING = "waiting"
    """By the seconds waited in this episode, also where the wait goes on."""
    FIRST_RESPONSE = "first_response_seconds"
    RESOLUTION = "resolution_seconds"
    PRIORITY = "priority"


_TYPES = {
    Sort.PRIORITY: "smallint",
    Sort.WAITING: "float8",
    Sort.FIRST_RESPONSE: "float8",
    Sort.RESOLUTION: "float8",
}
NUMERIC = {Sort.WAITING, Sort.FIRST_RESPONSE, Sort.RESOLUTION}
_NO_LATER_THAN_ACTIVITY = {
    *(Sort.OPENED, Sort.FINALIZED, Sort.EPISODE_STARTED, Sort.WAITING_SINCE, Sort.UNANSWERED_SINCE),
}
NULLABLE = {Sort.FINALIZED, Sort.WAITING_SINCE, Sort.UNANSWERED_SINCE, Sort.FIRST_RESPONSE, Sort.RESOLUTION}


@dataclass(frozen=True, slots=True)
class Page:
    """Which rows, in which order, after which one."""

    filter: Filter = EVERYTHING
    sort: Sort = Sort.LAST_ACTIVITY
    descending: bool = True
    after: tuple[str | None, UUID] | None = None
    """The sort value, as text, and the id of the last row of the page before."""
    limit: int | None = 50
    """None: all that follow."""
    permission: Permission = Permission.VIEW
    now: datetime | None = None
    """The moment from which days and running waits are counted: the same on all pages."""
    as_of: datetime | None = None
    """The moment at which the rows held; None: those of now."""


def pages(caller: Caller, wanted: Page) -> list[Sql]:
    """Statements whose rows, one after the other and no more than the limit, are the page.

    What has no sort value stands in a statement of its own, after all that have one: so each follows an index.
    """
    sources = _sources(caller, wanted)
    if wanted.sort is Sort.WAITING:
        return [_by_wait(sources, wanted)]
    after = wanted.after
    with_value = _ordered(sources, wanted, wanted.sort.value)
    if wanted.sort not in NULLABLE:
        return [with_value]
    without = _ordered(sources, wanted, None)
    return [without] if after is not None and after[0] is None else [with_value, without]


@dataclass(frozen=True, slots=True)
class _Source:
    """A table to find rows in, called ``listing``."""

    columns: Sql
    workspace: Sql
    condition: Sql
    until: datetime | None = None
    """A time that no row's times are beyond: so an index need not begin at its end."""
    held_at: datetime | None = None
    """The moment of the versions of the past among which the rows are; None: they are in the listing."""
    sought: Sql | None = None
    """What finds few rows by a telling text; None: nothing does."""


def _sources(caller: Caller, wanted: Page) -> list[_Source]:
    """Where the rows are: in the listing; of a moment that is past, also among the versions that held then.

    These come first: a rebuild takes the tables in that order.
    """
    found = where(caller, wanted.filter, wanted.permission, now=wanted.now, as_of=wanted.as_of)
    ours = visible(caller)[0]
    if wanted.as_of is None:
        asked = _Asked(caller, wanted.now or datetime.now(UTC), is_past=False)
        return [_Source((", ".join(SHOWN_COLUMNS), []), ours, found, sought=_sought(wanted.filter, asked))]
    # Where the present owner decides on what is shown, and not the one of then, it is decided here.
    sees = _all(_Asked(caller, wanted.as_of, is_past=True).reach(Permission.VIEW_CONTACT))
    seen = f"{sees[0]} as sees_contact"
    then = (", ".join((*map(_then, SHOWN_COLUMNS), seen)), sees[1])
    now = (", ".join((*SHOWN_COLUMNS, seen)), sees[1])
    return [
        _Source(then, ours, found, wanted.as_of, held_at=wanted.as_of),
        _Source(now, ours, _all([_unchanged(wanted.as_of), found]), wanted.as_of),
    ]


def _unchanged(as_of: datetime) -> Sql:
    """The condition on the listing for rows that held then."""
    # The second half says nothing new: nothing is recorded before it happened. An index begins there, not at its end.
    return "recorded_at <= %s and last_activity_at <= %s", [as_of, as_of]


def _then(column: str) -> str:
    """``column`` of a version of the past; of what it does not hold, that of now."""
    if column in past.COLUMNS:
        return column
    now = "from listing now where now.workspace_id = listing.workspace_id and now.id = listing.id"
    return f"(select now.{column} {now}) as {column}"


def _ordered(sources: Sequence[_Source], wanted: Page, column: str | None) -> Sql:
    """The rows that have a value in ``column``, in its order; None: those that have none, in the order of ids."""
    direction, beyond = ("desc", "<") if wanted.descending else ("asc", ">")
    conditions: list[Sql] = []
    if wanted.sort in NULLABLE:
        conditions.append((f"{wanted.sort.value} is {'' if column is None else 'not '}null", []))
    after = wanted.after
    type_ = _TYPES.get(wanted.sort, "timestamptz")
    if column is None:
        if after is not None and after[0] is None:
            conditions.append((f"id {beyond} %s", [after[1]]))
        order = f"id {direction}"
    else:
        latest = _latest_activity(wanted.filter, wanted.as_of or wanted.now or datetime.now(UTC))
        if latest is not None and wanted.sort in _NO_LATER_THAN_ACTIVITY:
            conditions.append((f"{column} < %s", [latest]))
        if after is not None:
            conditions.append((f"({column}, id) {beyond} (%s::{type_}, %s)", list(after)))
        order = f"{column} {direction}, id {direction}"
    branches = []
    for source in sources:
        bound = [(f"{column} <= %s", [source.until])] if source.until and column and type_ == "timestamptz" else []
        columns = (f"{source.columns[0]}, {f'{column}::text' if column else 'null'} as sort_value", source.columns[1])
        found = _all([source.condition, *conditions, *bound])
        if source.held_at and wanted.limit is not None and order == past.LATEST_FIRST:
            latest = _latest_activity(wanted.filter, source.held_at)
            begins = [source.workspace, *conditions, *bound, *([("last_activity_at < %s", [latest])] if latest else [])]
            branches.append(past.latest_active(source.held_at, columns, found, _all(begins), wanted.limit))
        else:
            branches.append(_in_order(wanted, source, columns, found, order))
    if len(branches) == 1:
        return branches[0]
    union, values = _union(branches)
    return _limited(f"select * from {union} listing order by {order}", values, wanted.limit)


def _latest_activity(wanted: Filter, now: datetime) -> datetime | None:
    """What ``wanted`` holds for was last active before; an index in the order of another time begins there."""
    match wanted:
        case Condition(field="last_activity", operator=Operator.BEFORE, value=value):
            return cast("datetime", value)
        case Condition(field="last_activity", operator=Operator.BETWEEN, value=(_, end)):
            return cast("datetime", end)
        case Condition(field="last_activity", operator=Operator.MORE_THAN_DAYS_AGO, value=days):
            return now - timedelta(days=days)
        case And(filters=filters):
            return min((each for one in filters if (each := _latest_activity(one, now)) is not None), default=None)
        case _:
            return None


def _by_wait(sources: Sequence[_Source], wanted: Page) -> Sql:
    """Waits that go on, merged with those that are over, each in the order of an index."""
    now = wanted.as_of or wanted.now or datetime.now(UTC)
    direction, beyond = ("desc", "<") if wanted.descending else ("asc", ">")
    earlier, since = ("asc", ">") if wanted.descending else ("desc", "<")
    running: list[Sql] = [("waiting_from is not null", [])]
    over: list[Sql] = [("waiting_from is null", [])]
    if wanted.after is not None:
        seconds, id_ = float(wanted.after[0] or 0), wanted.after[1]
        began = _earlier(now, seconds)
        # Written so that an index finds the first: rows that wait as long come apart by their ids.
        test = f"waiting_from {since}= %s and (waiting_from {since} %s or id {beyond} %s)"
        running.append((test, [began, began, id_]))
        over.append((f"(waiting_seconds, id) {beyond} (%s::float8, %s)", [seconds, id_]))
    branches = []
    for source in sources:
        for value, given, conditions, order in (
            (
                "extract(epoch from %s - waiting_from)::float8",
                [now],
                running,
                f"waiting_from {earlier}, id {direction}",
            ),
            ("waiting_seconds", [], over, f"waiting_seconds {direction}, id {direction}"),
        ):
            columns = (f"{source.columns[0]}, {value} as waited", [*source.columns[1], *given])
            branches.append(_in_order(wanted, source, columns, _all([source.condition, *conditions]), order))
    union, values = _union(branches)
    text = f"select *, waited::text as sort_value from {union} listing"
    return _limited(f"{text} order by waited {direction}, id {direction}", values, wanted.limit)


FEW = 2_000
"""So many rows are sorted rather than met on the way through all rows in their order."""


def _in_order(wanted: Page, source: _Source, columns: Sql, found: Sql, order: str) -> Sql:
    """``columns`` of the first rows that are ``found``.

    Where text is looked up, PostgreSQL cannot tell how many rows have it, and either plan is a hundred times the other:
    what it finds is sorted if it is few rows, which is looked at first; else the rows are gone through in their order.
    What a telling text finds is compared with the rest, which has indexes that hold far more rows than the text.
    """
    if source.held_at:
        return past.in_order(source.held_at, columns, found, order, wanted.limit)
    walk = f"select {columns[0]} from listing where {found[0]}"
    if wanted.limit is None or wanted.as_of is not None or not _texts(wanted.filter):
        return _limited(f"{walk} order by {order}", [*columns[1], *found[1]], wanted.limit)
    tried = found if source.sought is None else _all([source.sought, (f"({found[0]}) is true", found[1])])
    text = (
        f"with found as materialized (select * from listing where {tried[0]}),"
        f" few as materialized (select count(*) <= {FEW} as is_so from (select from found limit {FEW + 1}) _)"
        f" (select {columns[0]} from found where (select is_so from few) order by {order} limit %s)"
        f" union all ({walk} and not (select is_so from few) order by {order} limit %s)"
    )
    return text, [*tried[1], *columns[1], wanted.limit, *columns[1], *found[1], wanted.limit]


def _sought(wanted: Filter, asked: _Asked) -> Sql | None:
    texts = _texts(wanted)
    if not any(map(_is_telling, texts)):
        return None
    return _all([visible(asked.caller)[0], *(_compiled(each, asked) for each in texts)])


def _texts(wanted: Filter) -> list[Filter]:
    """What of ``wanted`` is found by a text that is not among the shortest: what holds where all of them do."""
    match wanted:
        case Condition(field=field, operator=operator, value=value):
            is_sought = field == "text" and operator is Operator.CONTAINS
            is_looked_up = is_sought or bool(_words_in(field, operator, value))
            return [wanted] if is_looked_up and len(joined(value)) >= _SOUGHT_LENGTH else []
        case And(filters=filters):
            return [each for one in filters for each in _texts(one)]
        case Or(filters=filters):
            return [wanted] if filters and all(map(_texts, filters)) else []
        case Not():
            return []
        case _:
            assert_never(wanted)


_SOUGHT_LENGTH = 3


def _is_telling(wanted: Filter) -> bool:
    """Whether few rows have the text: several words, or digits enough; one word of a name is in many."""
    return isinstance(wanted, Condition) and (len(words(wanted.value)) > 1 or len(digits(wanted.value)) >= _MANY_DIGITS)


_MANY_DIGITS = 6


def _limited(text: str, values: list[Any], limit: int | None) -> Sql:
    return (text, values) if limit is None else (f"{text} limit %s", [*values, limit])


def one(caller: Caller, id_: UUID) -> Sql:
    """The statement for one conversation, if ``caller`` may see it."""
    text, values = _all([*visible(caller), ("id = %s", [id_])])
    return f"select {', '.join(SHOWN_COLUMNS)} from listing where {text}", values


# Counts

COUNTED_TO = 10_000


def counts(
    caller: Caller,
    wanted: Filter,
    *,
    exact: bool = False,
    now: datetime | None = None,
    as_of: datetime | None = None,
) -> Sql:
    """The statement for how many rows fit in each status; unless ``exact`` up to one more than `COUNTED_TO`."""
    text, values = where(caller, wanted, now=now, as_of=as_of)
    if as_of is None:
        return _counted(f"listing where {text}", values, exact=exact)
    (versions, moment), (unchanged, since) = past.held_at(as_of), _unchanged(as_of)
    then = _counted(f"{versions} listing where {text}", [*moment, *values], exact=exact)
    now_ = _counted(f"listing where {unchanged} and {text}", [*since, *values], exact=exact)
    both, given = _union([then, now_])
    return f"select status, sum(count)::bigint as count from ({both}) listing group by status", given


def _counted(rows: str, values: list[Any], *, exact: bool) -> Sql:
    """How many of ``rows`` there are in each status."""
    if exact:
        return f"select status, count(*) as count from {rows} group by status", values
    each = f"select %s as status, count(*) as count from (select from {rows} and status = %s limit %s) _"
    statements = [each] * len(Status)
    found = [value for status in Status for value in (status.value, *values, status.value, COUNTED_TO + 1)]
    return " union all ".join(statements), found


# Scope


def visible(caller: Caller, permission: Permission = Permission.VIEW) -> list[Sql]:
    """What ``caller`` may see at all: the rule of `domain.permissions.may`, as SQL; the workspace first."""
    conditions: list[Sql] = [("workspace_id = %s", [caller.workspace_id])]
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
            conditions.append(NOTHING)
    return conditions


def within_reach(caller: Caller, column: str, *permissions: Permission) -> list[Sql]:
    """That ``column`` is a conversation which all of ``permissions`` reach; nothing where they reach everything."""
    limited = [permission for permission in permissions if caller.scope(permission) is not Scope.ALL]
    if not limited:
        return []
    theirs, values = _all([condition for permission in limited for condition in visible(caller, permission)])
    return [(f"{column} in (select id from listing where {theirs})", values)]


_HIDDEN = {
    *("workspace_id", "recorded_at", "sort_value", "waited", "waiting_from", "words", "inherited", "sees_contact"),
}


def shown(row: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
    """A row as ``caller`` sees it: the contact's details only with the permission for them."""
    view = {key: value for key, value in row.items() if key not in _HIDDEN}
    view["priority"] = list(Priority)[row["priority"]].value
    sees_contact = row.get("sees_contact")
    if sees_contact is None:
        sees_contact = may(caller, Permission.VIEW_CONTACT, owner_of(row))
    if not sees_contact:
        view |= {"contact_name": None, "contact_phones": [], "contact_emails": [], "contact_attributes": {}}
    return view


def owner_of(row: Mapping[str, Any]) -> Owner:
    """Who answers for the conversation of ``row``."""
    return Owner(sector_id=row["sector_id"], agent_id=row["agent_id"], bot=row["bot"])


def _all(conditions: Sequence[Sql]) -> Sql:
    return _joined(" and ", conditions) if conditions else ("true", [])


def _any(conditions: Sequence[Sql]) -> Sql:
    return _joined(" or ", conditions) if conditions else NOTHING


def _union(statements: Sequence[Sql]) -> Sql:
    """All rows of ``statements``, in brackets."""
    text, values = _joined(" union all ", [(f"({text})", values) for text, values in statements])
    return (text if len(statements) > 1 else f"({text})"), values


def _joined(by: str, parts: Sequence[Sql]) -> Sql:
    text = by.join(text for text, _ in parts)
    return text if len(parts) == 1 else f"({text})", [value for _, values in parts for value in values]
