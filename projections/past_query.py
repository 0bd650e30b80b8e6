"""Queries of the listing as of a moment: among the versions that held then, and the rows that have not changed since.

Tens of thousands of versions hold at once, and no one way to a page through them is short for all filters. So, in turn:
the rows that are unchanged, which have the listing's indexes, say how far a page can reach at most; within that, the
versions are passed in the page's order, though not too many of them; those that all held are looked through only where
that was not enough. What few versions have is looked for by itself, in an index that begins with it or has only that.
What is found by a telling text is looked for among conversations as they are now, and only their versions are.

Invariant: every query names `past` before `listing`: a rebuild takes the tables in that order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from domain.events import Status
from projections import past
from projections.filters import NEGATIONS, And, Condition, Filter, Not, Operator, Or
from projections.listing import COLUMNS, SHOWN_COLUMNS
from projections.sql import Sql, all_of, union

PASSED = 5_000
"""So many versions are passed in their order on the way to a page, at most."""
FEW = 2_000
"""So many conversations that a text finds are looked up one by one."""
NEAR = 2_000
"""So many rows are gone through to meet a page of what more have."""
_PASSED_IN_ORDER = {"last_activity_at", "opened_at", "finalized_at"}
"""Columns by whose order versions have an index."""
_KEY = "workspace_id, opened_at, id, until"
"""What a version is found again by."""
_SHOWN_AS_NOW = ", ".join(f"now.{column}" for column in SHOWN_COLUMNS if column not in past.COLUMNS)


@dataclass(frozen=True, slots=True)
class Looked:
    """What is looked for, and when."""

    moment: datetime
    rows: Sql
    """The condition on rows."""
    rows_in_parts: Sequence[Sql]
    """The same in parts that share none and have an index each."""
    versions: Sql
    """The same on versions."""
    versions_in_parts: Sequence[Sql]
    """That in parts, to find them."""
    counted: Sequence[Sql]
    """And to count them."""
    sought: Sql | None = None
    """That of it which is about conversations as they are now, where that may find few of them."""
    rest_of_rows: Sql = ("true", [])
    """The other part, on rows."""
    rest: Sql = ("true", [])
    """And on versions."""
    is_narrow: bool = False
    """Whether it has an index that leads to few of the versions that held."""


def conjuncts(wanted: Filter, *, holds: bool = True) -> list[Filter]:
    """What must hold for ``wanted`` to hold, or not to hold, one by one; what is denied twice is not denied."""
    match wanted:
        case And(filters=filters) if holds or len(filters) == 1:
            return [each for one in filters for each in conjuncts(one, holds=holds)]
        case Or(filters=filters) if not holds or len(filters) == 1:
            return [each for one in filters for each in conjuncts(one, holds=holds)]
        case Not(filter=inner):
            return conjuncts(inner, holds=not holds)
        case Condition(operator=operator) if not holds and operator in NEGATIONS:
            return [wanted.model_copy(update={"operator": NEGATIONS[operator]})]
        case (
            Condition(field="reopenings", operator=Operator.IS_NOT, value=0)
            | Condition(field="episode", operator=Operator.IS_NOT | Operator.GREATER, value=1)
        ) if holds:  # the same in other words, and few: these have an index
            return [Condition.model_construct(field="reopenings", operator=Operator.GREATER, value=0)]
        case _:
            return [wanted if holds else Not.model_construct(filter=wanted)]


def is_narrow(wanted: Filter) -> bool:
    """Whether ``wanted``, which must hold beside whatever else, is what few versions have, and has an index."""
    match wanted:
        case Condition(
            field="agent" | "bot" | "contact" | "finalized_by" | "label", operator=Operator.IS | Operator.IN
        ):
            return True
        case Condition(field="label", operator=Operator.CONTAINS | Operator.STARTS_WITH):
            return True
        case Condition(field="ever_with_agent", operator=Operator.IS):
            return True
        case Condition(field="unanswered", operator=Operator.IS, value=True):
            return True
        case Condition(field="unanswered_since", operator=operator):
            return operator is not Operator.IS_NOT_SET
        case Condition(field="bot", operator=Operator.IS_SET):
            return True
        case Condition(field="reopenings", operator=Operator.GREATER, value=value):
            return bool(value >= 0)
        case Condition(field="finalized_from", operator=Operator.IS | Operator.IN, value=value):
            return "inbox" not in (value if isinstance(value, tuple) else (value,))
        case Condition(field="priority", operator=Operator.IS | Operator.IN, value=value):
            return not {"low", "normal"} & set(value if isinstance(value, tuple) else (value,))
        case _:
            return False


def holding(moment: datetime) -> Sql:
    """The condition on a version, and beside `unchanged` on a row, for having held at ``moment``."""
    return "recorded_at <= %s and until > %s", [moment, moment]


def held_at(moment: datetime) -> Sql:
    """As a table: the versions that held at ``moment``. Where an index has all that is asked, no row is looked at."""
    text, values = holding(moment)
    return f"(select * from past where node = any(%s::bigint[]) and {text})", [past.nodes_of(moment), *values]


def unchanged(moment: datetime) -> Sql:
    """The condition on the listing for rows that held then."""
    # The second half says nothing new: nothing is recorded before it happened. An index begins there, not at its end.
    return "recorded_at <= %s and last_activity_at <= %s", [moment, moment]


def unchanged_in_order(moment: datetime) -> Sql:
    """As `unchanged`, for a page.

    PostgreSQL would take the two for a coincidence, and expect so few rows that it sorts all of them.
    """
    return "coalesce(recorded_at <= %s, false) and last_activity_at <= %s", [moment, moment]


def in_order(moment: datetime, columns: Sql, found: Sql, order: str, limit: int | None) -> Sql:
    """``columns`` of the first versions that held at ``moment`` and are ``found``, in ``order``.

    They are looked for among those that held, never among all that there are.
    """
    held, values = held_at(moment)
    held, values = f"(select * from {held} listing where {found[0]} offset 0)", [*values, *found[1]]
    if limit is None:
        text = f"select {columns[0]} from {_shown(held)} order by {order}"
        return text, [*columns[1], *values]
    first = _again(f"select {_KEY} from {held} listing order by {order} limit %s")
    text = f"with first as materialized ({first}) select {columns[0]} from {_shown('first')} order by {order}"
    return text, [*values, limit, *columns[1]]


def _shown(versions: str) -> str:
    """As a table: ``versions``, with what they do not hold as it is now."""
    return f"(select past.*, {_SHOWN_AS_NOW} from {versions} past join listing now using (workspace_id, id)) listing"


def _again(keys: str) -> str:
    """The versions of ``keys``, whole."""
    return f"select past.* from ({keys}) keys join past using ({_KEY})"


@dataclass(frozen=True, slots=True)
class Part:
    """Which rows of what is found are a page, and what is shown of them."""

    columns: Sql
    column: str
    """What they are in the order of."""
    is_descending: bool
    begins: Sql
    """Conditions on the order's index, where the page begins."""
    limit: int

    @property
    def order(self) -> str:
        """As SQL has it."""
        direction = "desc" if self.is_descending else "asc"
        return f"{self.column} {direction}, id {direction}"


def page(looked: Looked, part: Part) -> Sql:
    """The first rows and versions that held, merged."""
    is_passed = part.column in _PASSED_IN_ORDER and not looked.is_narrow
    last = "min" if part.is_descending else "max"
    steps = {
        **_common(looked),
        **(_met(looked, part) if looked.sought is not None else {}),
        "unchanged": _unchanged(looked, part),
        "last": (f"select {last}({part.column}) as value from unchanged having count(*) >= %s", [part.limit]),
        **(_near(looked, part) if is_passed else {}),
        "first": _first(looked, part, is_passed=is_passed),
    }
    shown = f"select {part.columns[0]} from {_shown('first')} union all select * from unchanged"
    return _with(steps, (f"{shown} order by {part.order} limit %s", [*part.columns[1], part.limit]))


def _met(looked: Looked, part: Part) -> dict[str, Sql]:
    """The unchanged rows that are met in the order of the page, where more than a few conversations have the text."""
    (begins, begun), (found, values) = all_of([part.begins, unchanged_in_order(looked.moment)]), looked.rows
    met = (
        f"select {part.columns[0]} from (select * from listing where {begins}{_few(looked)[1]}"
        f" order by {part.order} limit {NEAR}) listing where {found} order by {part.order} limit %s"
    )
    return {
        "met": (met, [*part.columns[1], *begun, *values, part.limit]),
        "all_met": ("select count(*) >= %s as is_so from met", [part.limit]),
    }


def _unchanged(looked: Looked, part: Part) -> Sql:
    """The first rows that have not changed since: no more than these can be beyond them in a page."""
    few, not_few = _few(looked)
    statements: list[Sql] = []
    if looked.sought is not None:
        all_met = "(select is_so from all_met)"
        statements.append((f"select * from met where {all_met}", []))
        not_few += f" and not {all_met}"
    tables = [(f"listing where true{not_few}", condition) for condition in looked.rows_in_parts]
    if looked.sought is not None:
        tables.append((f"sought listing where true{few}", looked.rest_of_rows))
    for table, condition in tables:
        text, values = all_of([condition, unchanged_in_order(looked.moment)])
        text = f"select {part.columns[0]} from {table} and {text} order by {part.order} limit %s"
        statements.append((text, [*part.columns[1], *values, part.limit]))
    every, given = union(statements)
    return f"select * from {every} listing order by {part.order} limit %s", [*given, part.limit]


def _near(looked: Looked, part: Part) -> dict[str, Sql]:
    """The versions that are met in the order of the page, and whether these are enough."""
    beyond, end = (">=", "-infinity") if part.is_descending else ("<=", "infinity")
    (begins, begun), (held, moment), (found, values) = part.begins, holding(looked.moment), looked.versions
    not_few = _few(looked)[1]
    passed = (
        f"select {part.column} as value from past where {begins}{not_few}"
        f" and {part.column} {beyond} (select value from reach) order by {part.order} offset {PASSED} limit 1"
    )
    near = (
        f"select * from (select * from past where {begins} and {held}"
        f" and {part.column} {beyond} (select value from edge) order by {part.order} offset 0) listing"
        f" where {found}{not_few} order by {part.order} limit %s"
    )
    enough = "select not exists (select from passed) or (select count(*) >= %s from near) as is_so"
    # Each bound is one value by itself: an index is entered by no more than that, where row-level security holds.
    return {
        "reach": (f"select coalesce((select value from last), '{end}') as value", []),
        "passed": (passed, begun),
        "edge": ("select coalesce((select value from passed), (select value from reach)) as value", []),
        "near": (near, [*begun, *moment, *values, part.limit]),
        "enough": (enough, [part.limit]),
    }


def _first(looked: Looked, part: Part, *, is_passed: bool) -> Sql:
    """The first versions, by whichever way leads to them."""
    beyond = ">=" if part.is_descending else "<="
    few, not_few = _few(looked)
    is_so = "(select is_so from enough)"
    statements: list[Sql] = [(f"select * from near where {is_so}", [])] if is_passed else []
    beside = f"{not_few}{f' and not {is_so}' if is_passed else ''}"
    for found, values in looked.versions_in_parts:
        # With an offset, or PostgreSQL, which cannot tell how many are found, might look for them among all versions.
        keys = (
            f"select {_KEY} from (select * from held listing where {found} offset 0) listing"
            f" where coalesce({part.column} {beyond} (select value from last), true){beside}"
            f" order by {part.order} limit %s"
        )
        statements.append((_again(keys), [*values, part.limit]))
    if looked.sought is not None:
        versions, of_sought = _versions(looked)
        text = f"select * from {versions} listing where {looked.rest[0]}{few} order by {part.order} limit %s"
        statements.append((text, [*of_sought, *looked.rest[1], part.limit]))
    return union(statements)


def _with(steps: Mapping[str, Sql], statement: Sql) -> Sql:
    """``statement`` after ``steps`` that it refers to by their names."""
    texts = [f"{name} as {'not ' if name == 'held' else ''}materialized ({text})" for name, (text, _) in steps.items()]
    values = [value for _, (_, values) in steps.items() for value in values]
    return f"with {', '.join(texts)} {statement[0]}", [*values, *statement[1]]


def _common(looked: Looked) -> dict[str, Sql]:
    """What all begins with: the versions that held, read where they are asked for; what is sought, found at once."""
    steps = {"held": held_at(looked.moment)}
    if looked.sought is not None:
        text, values = looked.sought
        steps["sought"] = (f"select {', '.join(COLUMNS)} from listing where {text} limit {FEW + 1}", values)
        steps["few"] = (f"select count(*) <= {FEW} as is_so from sought", [])
    return steps


def _few(looked: Looked) -> tuple[str, str]:
    """That few conversations were found by what is sought, and that they were not."""
    is_so = "(select is_so from few)"
    return ("", "") if looked.sought is None else (f" and {is_so}", f" and not {is_so}")


def _versions(looked: Looked) -> Sql:
    """As a table: of the conversations that were found by what is sought, the versions that held."""
    text, values = holding(looked.moment)
    versions = f"(select * from past where {text})"
    return f"(select past.* from sought join {versions} past using (workspace_id, opened_at, id))", values


def counts(looked: Looked, *, up_to: int | None) -> Sql:
    """How many there are in each status, counted up to so many; None: all."""
    since, few, not_few = unchanged(looked.moment), *_few(looked)
    places = [("listing", all_of([since, looked.rows])), *(("held listing", found) for found in looked.counted)]
    if up_to is None:
        every, given = union([(f"select status from {place} where {text}", values) for place, (text, values) in places])
        statement = f"select status, count(*) as count from {every} listing group by status", given
        return _with({"held": held_at(looked.moment)}, statement)
    statements: list[Sql] = []
    for status in Status:
        each, values = union(
            [
                (f"select 1 from {place} where {text} and status = %s{not_few}", [*values, status.value])
                for place, (text, values) in places
            ]
        )
        text = f"select %s as status, count(*) as count from (select from {each} _ limit %s) _"
        statements.append((text, [status.value, *values, up_to]))
    if looked.sought is not None:
        versions, of_sought = _versions(looked)
        (of_rows, rows), (of_versions, held) = all_of([since, looked.rest_of_rows]), looked.rest
        text = (
            f"select status, count(*) as count from (select status from sought listing where {of_rows}{few}"
            f" union all select status from {versions} listing where {of_versions}{few}) listing group by status"
        )
        statements.append((text, [*rows, *of_sought, *held]))
    every, given = union(statements)
    return _with(
        _common(looked), (f"select status, sum(count)::bigint as count from {every} listing group by status", given)
    )
