"""Filters as SQL.

A filter becomes a statement that is true or not for a row, as in `projections.filters`: ``not`` is pushed down to the
conditions, where it is ``is not true``, so that what is null to SQL is false to us at every depth.

Invariant: every condition names the workspace and the caller's scope.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never

from psycopg.types.json import Jsonb

from domain.events import Priority
from domain.permissions import Caller, Permission, Scope
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
from projections.listing import PRIORITY_RANKS
from projections.scopes import visible
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
from projections.sql import NOTHING, Sql, all_of, any_of

COLUMNS = {
    "contact.name": "contact_name",
    "contact.phone": "contact_phones",
    "contact.email": "contact_emails",
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
class Asked:
    """Who asks, and for which moment."""

    caller: Caller
    now: datetime
    """From which days and running waits are counted."""
    of_versions: bool = False
    """Whether it is about versions of the past; what they do not hold is read from the conversation's row of now."""
    is_past: bool = False
    """Whether nothing can have happened later: what is asked about is what was recorded until `now`."""

    def reach(self, *permissions: Permission) -> list[Sql]:
        """What makes a conversation one that the caller has ``permissions`` on: as it is now, however it was."""
        conditions: list[Sql] = []
        for permission in permissions:
            conditions += [each for each in visible(self.caller, permission)[1:] if each not in conditions]
        return [self.of_now(conditions)] if conditions and self.of_versions else conditions

    def of_now(self, conditions: Sequence[Sql], lookup: Sequence[Sql] = ()) -> Sql:
        """That ``conditions`` hold for the row of now. No `id in (…)`: denied, it compares each with a list of all.

        Where a ``lookup`` finds few that they hold for, each is compared with these, and no row is looked at.
        """
        ours = visible(self.caller)[0]
        text, values = all_of([ours, ("now.id = listing.id", []), *conditions])
        one_by_one = f"exists (select from listing now where {text})"
        if not lookup:
            return one_by_one, values
        text, found = all_of([ours, *lookup, *conditions])
        few = f"select now.id from listing now where {text} limit {FEW + 1}"
        is_few = f"(select count(*) <= {FEW} from ({few}) _)"
        return f"case when {is_few} then listing.id in ({few}) else {one_by_one} end", [*found, *found, *values]


FEW = 1_000
"""So many conversations of now are found at once, rather than looked up for each version."""


def where(
    caller: Caller,
    wanted: Filter,
    permission: Permission = Permission.VIEW,
    *,
    now: datetime | None = None,
    as_of: datetime | None = None,
    of_versions: bool = False,
) -> Sql:
    """The condition on ``listing`` for what ``caller`` may see, has ``permission`` on, and ``wanted`` holds for.

    ``now`` is the moment from which days and running waits are counted; the present one unless it is given. With
    ``as_of`` it is that, and the condition is on rows that held then (``of_versions``: on what `past` has of them), of
    conversations whose history they may read.
    """
    asked = Asked(caller, as_of or now or datetime.now(UTC), of_versions, is_past=as_of is not None)
    reach = asked.reach(Permission.VIEW, permission, *([Permission.READ_HISTORY] if as_of else []))
    return all_of([visible(caller)[0], *reach, compiled(wanted, asked)])


def compiled(wanted: Filter, asked: Asked, *, holds: bool = True) -> Sql:
    """``wanted`` as SQL, or its opposite unless it ``holds``; null counts as false, and is found at no other place."""
    match wanted:
        case Condition(operator=operator):
            is_denied = holds is (operator in NEGATIONS)
            positive = _condition(wanted, NEGATIONS.get(operator, operator), asked, is_denied=is_denied)
            return (f"({positive[0]}) is not true", positive[1]) if is_denied else positive
        case And(filters=filters) | Or(filters=filters):
            combine = all_of if isinstance(wanted, And) is holds else any_of
            return combine([compiled(each, asked, holds=holds) for each in filters])
        case Not(filter=inner):
            return compiled(inner, asked, holds=not holds)
        case _:
            assert_never(wanted)


def _condition(condition: Condition, operator: Operator, asked: Asked, *, is_denied: bool) -> Sql:
    """``condition`` with ``operator``, which is no negation, in place of its own."""
    field, value = condition.field, condition.value
    is_of_now = asked.of_versions and (
        field in _READ_NOW or kind_of(field) is Kind.ATTRIBUTE or looks_at_the_contact(field)
    )
    if asked.is_past and kind_of(field) is Kind.TIME and _begins_later(operator, value, asked.now):
        return NOTHING
    if field == "text":
        conditions = [_text_search(value, asked.caller)]
    else:
        words_ = [] if is_of_now else _words_in(field, operator, value)  # by its id the row is found without them
        conditions = [*words_, _on_the_row(field, operator, value, asked.now)]
    if looks_at_the_contact(field):  # elsewhere the contact is not shown: there is nothing for it to compare
        conditions += replace(asked, of_versions=False).reach(Permission.VIEW_CONTACT)
    if field == "waiting_since" and asked.of_versions:  # these stand together in the index
        conditions.append(("status = 'pending'", []))
    if is_of_now:
        return asked.of_now(conditions, _lookup(field, operator, value, conditions) if is_denied else ())
    return all_of(conditions)


def _lookup(field: str, operator: Operator, value: Any, conditions: Sequence[Sql]) -> Sequence[Sql]:
    """What finds all that ``conditions``, which are these in SQL, hold for; nothing where there is no index."""
    if field == "text":
        return conditions
    words_ = [_words_in(field, Operator.IS, each) for each in value] if operator is Operator.IN else []
    return [any_of([each for [each] in words_])] if words_ and all(words_) else _words_in(field, operator, value)


def _begins_later(operator: Operator, value: Any, moment: datetime) -> bool:
    """Whether it asks for times after ``moment``."""
    start = value[0] if operator is Operator.BETWEEN else value if operator is Operator.AFTER else None
    return isinstance(start, datetime) and start > moment


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
    kind, column = kind_of(field), COLUMNS.get(field, field)
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
        return ago(now, seconds)

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


def ago(now: datetime, seconds: float) -> datetime:
    """``seconds`` before ``now``, within the times there are."""
    try:
        return now - timedelta(seconds=seconds)
    except OverflowError:
        return _EARLIEST if seconds > 0 else _LATEST


def _one_of_several(column: str, type_: str, operator: Operator, value: Any) -> Sql:
    match operator:
        case Operator.IS_SET:
            return f"{column} <> '{{}}'", []
        case Operator.IS | Operator.IN if column in {"labels", "agents"}:
            values = [value] if operator is Operator.IS else list(value)
            found = any_of([_at(place, column, type_, values) for place in _PLACES])
            return all_of([(f"{column} <> '{{}}'", []), found])  # so that a partial index fits
        case Operator.IS:
            return f"({column} <> '{{}}' and {column} @> %s::{type_}[])", [[value]]
        case Operator.IN:
            return f"({column} <> '{{}}' and {column} && %s::{type_}[])", [list(value)]
        case _:
            like, values = _like("one", operator, value)
            return f"({column} <> '{{}}' and exists (select from unnest({column}) one where {like}))", values


INDEXED_PLACES = 3
"""Of a list: what stands beyond them is found by looking at the few that are so long."""
_PLACES = range(1, INDEXED_PLACES + 2)


def _at(place: int, column: str, type_: str, values: Sequence[Any]) -> Sql:
    """That one of ``values`` has this place in the list; for the last of the places: this or one beyond."""
    if place > INDEXED_PLACES:
        return f"({column}[{place}] is not null and {column}[{place}:] && %s::{type_}[])", [values]
    if len(values) == 1:  # of a single value the index keeps the order of what follows
        return f"{column}[{place}] = %s", [values[0]]
    return f"{column}[{place}] = any(%s::{type_}[])", [values]


def parted(wanted: Filter) -> list[tuple[Filter, list[Sql]]]:
    """``wanted`` in parts that share no row and have an index each, in order: a filter, and what holds besides."""
    match wanted:
        case Condition(field="label", operator=Operator.IS, value=label):
            return [(EVERYTHING, [_at(place, "labels", "text", [label])]) for place in _PLACES]
        case Condition(field="ever_with_agent", operator=Operator.IS, value=agent_id):
            return [(EVERYTHING, [_at(place, "agents", "uuid", [agent_id])]) for place in _PLACES]
        case And(filters=filters) if any(map(_is_ever_with_agent, filters)):
            agent, *others = sorted(filters, key=_is_ever_with_agent, reverse=True)
            return [(And.model_construct(filters=tuple(others)), besides) for _, besides in parted(agent)]
        case _:
            return [(wanted, [])]


def _is_ever_with_agent(wanted: Filter) -> bool:
    return isinstance(wanted, Condition) and (wanted.field, wanted.operator) == ("ever_with_agent", Operator.IS)


def parted_in_the_past(wanted: Filter) -> list[tuple[Filter, list[Sql]]]:
    """As `parted`, for counts of versions: those that are in the sector stand in an index, the others are looked at."""
    match wanted:
        case Condition(field="ever_in_sector", operator=Operator.IS, value=sector_id):
            is_there = Condition.model_construct(field="sector", operator=Operator.IS, value=sector_id)
            is_not = Condition.model_construct(field="sector", operator=Operator.IS_NOT, value=sector_id)
            was_elsewhere = ("sectors <> '{}' and sectors <> array[sector_id]", list[Any]())
            return [(is_there, []), (And.model_construct(filters=(is_not, wanted)), [was_elsewhere])]
        case And(filters=filters):
            for number, each in enumerate(filters):
                parts = parted_in_the_past(each)
                if len(parts) > 1:
                    others = (*filters[:number], *filters[number + 1 :])
                    return [(And.model_construct(filters=(part, *others)), besides) for part, besides in parts]
            return [(wanted, [])]
        case _:
            return [(wanted, [])]


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
            return any_of([_holds(column, key, each) for each in wanted])
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
            found = any_of([(f"({_WORDS_MATCH}) is true", [protocol.exact]), *may_look])
            return all_of([_search(either), found])


# Texts


def sought(wanted: Filter, asked: Asked) -> Sql | None:
    """What finds few rows by a telling text in ``wanted``; None: nothing does."""
    texts = texts_in(wanted)
    if not any(map(_is_telling, texts)):
        return None
    return all_of([visible(asked.caller)[0], *(compiled(each, asked) for each in texts)])


def texts_in(wanted: Filter) -> list[Filter]:
    """What of ``wanted`` is found by a text: what holds where all of them do."""
    match wanted:
        case Condition(field=field, operator=operator, value=value):
            is_sought = field == "text" and operator is Operator.CONTAINS
            is_looked_up = is_sought or bool(_words_in(field, operator, value))
            return [wanted] if is_looked_up and joined(value) else []
        case And(filters=filters):
            return [each for one in filters for each in texts_in(one)]
        case Or(filters=filters):
            return [wanted] if filters and all(map(texts_in, filters)) else []
        case Not():
            return []
        case _:
            assert_never(wanted)


def is_common(wanted: Filter) -> bool:
    """Whether many rows may well have the texts in ``wanted``: words of a name, or digits but few."""
    found = [joined(each.value) if isinstance(each, Condition) else "" for each in texts_in(wanted)]
    return all(len(text) <= _FEW_DIGITS or text.isalpha() for text in found)


_FEW_DIGITS = 3


def _is_telling(wanted: Filter) -> bool:
    """Whether few rows have the text: several words, or digits enough; one word of a name is in many."""
    return isinstance(wanted, Condition) and (len(words(wanted.value)) > 1 or len(digits(wanted.value)) >= _MANY_DIGITS)


_MANY_DIGITS = 6
