"""Queries of the listing: sorts, pages, counts.

Invariant: every query names the workspace and the caller's scope.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, cast
from uuid import UUID

from domain.events import Status
from domain.permissions import Caller, Permission
from projections import past_query
from projections.filter_sql import Asked, ago, compiled, is_common, parted, parted_in_the_past, sought, texts_in, where
from projections.filters import EVERYTHING, And, Condition, Filter, Operator
from projections.filters import all_of as both
from projections.listing import SHOWN_COLUMNS
from projections.scopes import visible
from projections.sql import Sql, all_of, limited, union


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
_PERIODS = {Sort.LAST_ACTIVITY: "last_activity", Sort.OPENED: "opened", Sort.FINALIZED: "finalized"}
"""Fields that filter by what is sorted by."""
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

    caller: Caller
    columns: Sql
    workspace: Sql
    condition: Sql
    until: datetime | None = None
    """A time that no row's times are beyond: so an index need not begin at its end."""
    held_at: datetime | None = None
    """The moment of the versions of the past among which the rows are; None: they are in the listing."""
    sought: Sql | None = None
    """What finds few rows by a telling text; None: nothing does."""
    is_common: bool = False
    """Whether many may well have the text that is looked for."""


def _sources(caller: Caller, wanted: Page) -> list[_Source]:
    """Where the rows are: in the listing; of a moment that is past, also among the versions that held then.

    These come first: a rebuild takes the tables in that order.
    """
    ours = visible(caller)[0]
    if wanted.as_of is None:
        asked = Asked(caller, wanted.now or datetime.now(UTC))
        every, few = (", ".join(SHOWN_COLUMNS), list[Any]()), sought(wanted.filter, asked)
        return [
            _Source(
                caller,
                every,
                ours,
                all_of([where(caller, part, wanted.permission, now=wanted.now), *besides]),
                sought=few,
                is_common=is_common(wanted.filter),
            )
            for part, besides in _parts(wanted.filter)
        ]
    versions, rows = (
        where(caller, wanted.filter, wanted.permission, now=wanted.now, as_of=wanted.as_of, of_versions=of_versions)
        for of_versions in (True, False)
    )
    # The present owner decides on what is shown, not the one of then; and no name stands beside another contact's id.
    is_theirs = ("now.id = listing.id and now.contact_id = listing.contact_id", list[Any]())
    of_now, given = all_of([*visible(caller, Permission.VIEW_CONTACT), is_theirs])
    # A scalar: an `exists` might read all conversations at once, for the few rows of a page.
    sees = f"coalesce((select true from listing now where {of_now}), false) as sees_contact"
    columns = (", ".join((*SHOWN_COLUMNS, sees)), given)
    unchanged = all_of([past_query.unchanged(wanted.as_of), rows])
    return [
        _Source(caller, columns, ours, versions, wanted.as_of, held_at=wanted.as_of),
        _Source(caller, columns, ours, unchanged, wanted.as_of),
    ]


def _parts(wanted: Filter) -> list[tuple[Filter, list[Sql]]]:
    """``wanted`` in parts that share no row of the listing, each with an index of its own."""
    return [(wanted, [])] if texts_in(wanted) else parted(wanted)


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
            # First: of several bounds on a column PostgreSQL begins at the one that is named first.
            conditions.insert(0, (f"({column}, id) {beyond} (%s::{type_}, %s)", list(after)))
        order = f"{column} {direction}, id {direction}"
    if wanted.as_of is not None and wanted.limit is not None and column:
        return _as_of(sources[0], wanted, column, conditions)
    branches = []
    for source in sources:
        bound = [(f"{column} <= %s", [source.until])] if source.until and column and type_ == "timestamptz" else []
        columns = _with_sort_value(source, column)
        found = all_of([*conditions, source.condition, *bound])
        branches.append(_in_order(wanted, source, columns, all_of([*conditions, source.workspace]), found, order))
    if len(branches) == 1:
        return branches[0]
    every, values = union(branches)
    return limited(f"select * from {every} listing order by {order}", values, wanted.limit)


def _with_sort_value(source: _Source, column: str | None) -> Sql:
    text, values = source.columns
    return f"{text}, {f'{column}::text' if column else 'null'} as sort_value", values


def _as_of(versions: _Source, wanted: Page, column: str, conditions: Sequence[Sql]) -> Sql:
    """The page of a past moment in the order of ``column``, of what meets ``conditions`` besides."""
    moment = cast("datetime", wanted.as_of)
    bound = [(f"{column} <= %s", [moment])] if wanted.sort not in _TYPES else []
    looked = _looked(versions.caller, wanted.filter, wanted.permission, moment, [*conditions, *bound])
    asked = Asked(versions.caller, moment)
    theirs = [
        compiled(each, asked)
        for each in past_query.conjuncts(wanted.filter)
        if isinstance(each, Condition) and each.field == _PERIODS.get(wanted.sort)
    ]
    begins = all_of([*conditions, *theirs, *bound, versions.workspace])
    columns = _with_sort_value(versions, column)
    return past_query.page(
        looked, past_query.Part(columns, column, wanted.descending, begins, cast("int", wanted.limit))
    )


_SHORTEST = 2


def _looked(
    caller: Caller, wanted: Filter, permission: Permission, moment: datetime, conditions: Sequence[Sql] = ()
) -> past_query.Looked:
    """What of the past ``wanted`` looks for."""
    every = past_query.conjuncts(wanted)
    wanted = both(every)
    # The shortest are in so many rows that to look them up takes longer than to look through all that held.
    texts = [each for each in every if isinstance(each, Condition) and texts_in(each) and len(each.value) > _SHORTEST]
    asked = Asked(caller, moment)
    rest = both(each for each in every if each not in texts)

    def held(filter_: Filter, besides: Sequence[Sql] = (), *, of_versions: bool = True) -> Sql:
        found = where(caller, filter_, permission, as_of=moment, of_versions=of_versions)
        return all_of([*conditions, found, *besides])

    is_parted = any(isinstance(each, Condition) and each.field == "ever_with_agent" for each in every)
    return past_query.Looked(
        moment,
        rows=held(wanted, of_versions=False),
        rows_in_parts=[held(*part, of_versions=False) for part in _parts(wanted)],
        versions=held(wanted),
        versions_in_parts=[held(*part) for part in (_parts(wanted) if is_parted else [(wanted, [])])],
        counted=[held(*part) for part in parted_in_the_past(wanted)],
        sought=all_of([visible(caller)[0], *(compiled(each, asked) for each in texts)]) if texts else None,
        rest_of_rows=held(rest, of_versions=False),
        rest=held(rest),
        is_narrow=any(map(past_query.is_narrow, every)),
    )


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
        began = ago(now, seconds)
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
            begins = all_of([*conditions, source.workspace])
            found = all_of([*conditions, source.condition])
            branches.append(_in_order(wanted, source, columns, begins, found, order))
    every, values = union(branches)
    text = f"select *, waited::text as sort_value from {every} listing"
    return limited(f"{text} order by waited {direction}, id {direction}", values, wanted.limit)


FEW, SEVERAL = 300, 5_000
"""So many rows that a word finds are sorted: at once; where a page of them was not met nearby."""
FEW_TOLD = 2_000
"""So many that a telling text finds are."""
NEAR = 2_000
"""So many rows are gone through to meet a page of what more have."""


def _in_order(wanted: Page, source: _Source, columns: Sql, begins: Sql, found: Sql, order: str) -> Sql:
    """``columns`` of the first rows that are ``found``, from where ``begins`` says."""
    if source.held_at:
        return past_query.in_order(source.held_at, columns, found, order, wanted.limit)
    if wanted.limit is None or wanted.as_of is not None or not texts_in(wanted.filter):
        text = f"select {columns[0]} from listing where {found[0]} order by {order}"
        return limited(text, [*columns[1], *found[1]], wanted.limit)
    return _by_text(source, columns, begins, found, order, wanted.limit)


def _by_text(source: _Source, columns: Sql, begins: Sql, found: Sql, order: str, limit: int) -> Sql:
    """The first rows that a text finds.

    PostgreSQL cannot tell how many rows have it, and either plan is a hundred times the other. So what is found is
    sorted if it is few rows, which is looked at first; else the rows are gone through in their order. What a telling
    text finds is compared with the rest, which has indexes that hold far more rows than the text.
    """
    if source.sought is None:
        return _by_word(source, columns, begins, found, order, limit)
    text = (
        f"with found as materialized (select * from listing where {source.sought[0]} and ({found[0]}) is true),"
        f" few as materialized (select count(*) <= {FEW_TOLD} as is_so from (select from found limit {FEW_TOLD + 1}) _)"
        f" (select {columns[0]} from found where (select is_so from few) order by {order} limit %s)"
        f" union all (select {columns[0]} from listing where {found[0]} and not (select is_so from few)"
        f" order by {order} limit %s)"
    )
    return text, [*source.sought[1], *found[1], *columns[1], limit, *columns[1], *found[1], limit]


def _by_word(source: _Source, columns: Sql, begins: Sql, found: Sql, order: str, limit: int) -> Sql:
    """As `_by_text`, of one word, which may be common.

    To look up all that have it would take longer than to meet a page of them on the way, which is tried in between, or
    before all where it is likely.
    """
    is_few, is_near, is_several = (f"(select is_so from {name})" for name in ("few", "enough", "several"))
    few = f"select count(*) <= {FEW} as is_so from (select from found limit {FEW + 1}) _"
    all_near = f"select * from listing where {begins[0]} and not {is_few} order by {order} limit {NEAR}"
    more = f"select from found where not {is_few} and not {is_near} limit {SEVERAL + 1}"
    steps: dict[str, Sql] = {
        "found": (f"select * from listing where {found[0]}", found[1]),
        "few": ("select false as is_so" if source.is_common else few, []),
        "near": (
            f"select * from ({all_near}) listing where {found[0]} order by {order} limit %s",
            [*begins[1], *found[1], limit],
        ),
        "enough": ("select count(*) >= %s as is_so from near", [limit]),
        "several": (f"select count(*) <= {SEVERAL} as is_so from ({more}) _", []),
    }
    ways = {
        f"found where {is_few}": [],
        f"near where {is_near}": [],
        f"found where not {is_few} and not {is_near} and {is_several}": [],
        f"listing where {found[0]} and not {is_few} and not {is_near} and not {is_several}": found[1],
    }
    text, values = union(
        [
            (f"select {columns[0]} from {way} order by {order} limit %s", [*columns[1], *given, limit])
            for way, given in ways.items()
        ]
    )
    with_ = ", ".join(f"{name} as materialized ({step})" for name, (step, _) in steps.items())
    return f"with {with_} {text}", [*(value for _, given in steps.values() for value in given), *values]


def one(caller: Caller, id_: UUID) -> Sql:
    """The statement for one conversation, if ``caller`` may see it."""
    text, values = all_of([*visible(caller), ("id = %s", [id_])])
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
    if as_of is not None:
        looked = _looked(caller, wanted, Permission.VIEW, as_of)
        return past_query.counts(looked, up_to=None if exact else COUNTED_TO + 1)
    text, values = where(caller, wanted, now=now)
    if exact:
        return f"select status, count(*) as count from listing where {text} group by status", values
    each = f"select %s as status, count(*) as count from (select from listing where {text} and status = %s limit %s) _"
    statements = [each] * len(Status)
    found = [value for status in Status for value in (status.value, *values, status.value, COUNTED_TO + 1)]
    return " union all ".join(statements), found
