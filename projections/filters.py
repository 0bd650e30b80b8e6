"""The filter grammar: conditions on a conversation, nested with and / or / not, and the table of what goes together.

A condition holds or does not; there is no third way. Where nothing is set, ``is`` and its like do not hold, so
``is_not``, ``not_in`` and ``not_contains`` do. A moment or date that stands in a condition belongs to what is after
it: ``before`` is earlier than it, ``after`` is at it or later, ``between`` holds its start and not its end. Between
two numbers holds both.

Invariant: whatever is a `Filter` can be compiled: fields, operators and values were checked against `FIELDS` and
`OPERATORS`.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from domain.events import FinalizationCause, Flag, Integer, Line, Priority, Real, Status

MOST_CONDITIONS = 50
MOST_LEVELS = 8
MOST_VALUES = 200
MOST_DAYS = 36_500
MOST_SECONDS = 10_000_000_000
MOST_CHARACTERS = 500


class Operator(StrEnum):
    """How a field is compared with a value."""

    IS = "is"
    IS_NOT = "is_not"
    IN = "in"
    NOT_IN = "not_in"
    CONTAINS = "contains"
    NOT_CONTAINS = "not_contains"
    STARTS_WITH = "starts_with"
    IS_SET = "is_set"
    IS_NOT_SET = "is_not_set"
    BEFORE = "before"
    AFTER = "after"
    BETWEEN = "between"
    IN_LAST_DAYS = "in_last_days"
    MORE_THAN_DAYS_AGO = "more_than_days_ago"
    GREATER = "greater"
    LESS = "less"


NEGATIONS: Mapping[Operator, Operator] = {
    Operator.IS_NOT: Operator.IS,
    Operator.NOT_IN: Operator.IN,
    Operator.NOT_CONTAINS: Operator.CONTAINS,
    Operator.IS_NOT_SET: Operator.IS_SET,
}
"""Operators that hold exactly where another does not."""


class Kind(StrEnum):
    """What a field holds, which decides on its operators; plural: of several, one must fit."""

    CHOICE = "one of its words"
    TEXT = "text"
    TEXTS = "texts"
    PHONES = "phone numbers"
    ID = "an id"
    IDS = "ids"
    TIME = "a time"
    COUNT = "a count"
    DURATION = "seconds"
    RANK = "a priority"
    FLAG = "true or false"
    SEARCH = "the text box"
    ATTRIBUTE = "an attribute: text, number, date, true or false, or a list of texts"


_EQUAL = (Operator.IS, Operator.IS_NOT, Operator.IN, Operator.NOT_IN)
_SET = (Operator.IS_SET, Operator.IS_NOT_SET)
_LIKE = (Operator.CONTAINS, Operator.NOT_CONTAINS, Operator.STARTS_WITH)
_PERIOD = (*(Operator.BEFORE, Operator.AFTER, Operator.BETWEEN, Operator.IN_LAST_DAYS, Operator.MORE_THAN_DAYS_AGO),)
_SIZE = (Operator.GREATER, Operator.LESS, Operator.BETWEEN)

OPERATORS: Mapping[Kind, tuple[Operator, ...]] = {
    Kind.CHOICE: (*_EQUAL, *_SET),
    Kind.TEXT: (*_EQUAL, *_LIKE, *_SET),
    Kind.TEXTS: (*_EQUAL, *_LIKE, *_SET),
    Kind.PHONES: (*_EQUAL, *_LIKE, *_SET),
    Kind.ID: (*_EQUAL, *_SET),
    Kind.IDS: (*_EQUAL, *_SET),
    Kind.TIME: (*_PERIOD, *_SET),
    Kind.COUNT: (*_EQUAL, *_SIZE),
    Kind.DURATION: (*_EQUAL, *_SIZE, *_SET),
    Kind.RANK: (*_EQUAL, Operator.GREATER, Operator.LESS),
    Kind.FLAG: (Operator.IS, Operator.IS_NOT),
    Kind.SEARCH: (Operator.CONTAINS, Operator.NOT_CONTAINS),
    Kind.ATTRIBUTE: (*_EQUAL, *_LIKE, *_SET, *_PERIOD, Operator.GREATER, Operator.LESS),
}
"""Which operators which kind of field takes."""

FIELDS: Mapping[str, Kind] = {
    "status": Kind.CHOICE,
    "channel": Kind.TEXT,
    "sector": Kind.ID,
    "agent": Kind.ID,
    "bot": Kind.TEXT,
    "label": Kind.TEXTS,
    "opened": Kind.TIME,
    "last_activity": Kind.TIME,
    "finalized": Kind.TIME,
    "waiting_since": Kind.TIME,
    "unanswered_since": Kind.TIME,
    "text": Kind.SEARCH,
    "protocol": Kind.TEXT,
    "subject": Kind.TEXT,
    "contact": Kind.ID,
    "contact.name": Kind.TEXT,
    "contact.phone": Kind.PHONES,
    "contact.email": Kind.TEXTS,
    "finalized_from": Kind.CHOICE,
    "finalized_by": Kind.TEXT,
    "finalized_cause": Kind.CHOICE,
    "outcome": Kind.TEXT,
    "opened_by": Kind.TEXT,
    "participants": Kind.TEXTS,
    "ever_in_sector": Kind.IDS,
    "ever_with_agent": Kind.IDS,
    "ever_with_bot": Kind.TEXTS,
    "priority": Kind.RANK,
    "unanswered": Kind.FLAG,
    "unread": Kind.COUNT,
    "episode": Kind.COUNT,
    "transfers": Kind.COUNT,
    "reopenings": Kind.COUNT,
    "messages": Kind.COUNT,
    "messages_received": Kind.COUNT,
    "messages_sent": Kind.COUNT,
    "notes": Kind.COUNT,
    "waiting_seconds": Kind.DURATION,
    "first_response_seconds": Kind.DURATION,
    "resolution_seconds": Kind.DURATION,
}
"""Every field but the attributes; actors (``opened_by``, ``finalized_by``, ``participants``) are ``kind:id``."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "status": tuple(Status),
    "finalized_from": ("inbox", "listing", "automatically"),
    "finalized_cause": tuple(FinalizationCause),
    "priority": tuple(Priority),
}
ATTRIBUTES = ("attributes.", "contact.attributes.")
"""A field may also be one of these and the attribute's key."""
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ACCENTS = re.compile("[\u0300-\u036f]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def plain(text: str) -> str:
    """``text`` as contains and starts_with compare it: without accents, in lower case."""
    return _ACCENTS.sub("", unicodedata.normalize("NFKD", text)).lower()


def kind_of(field: str) -> Kind | None:
    """What ``field`` holds; None: there is no such field."""
    if field in FIELDS:
        return FIELDS[field]
    return Kind.ATTRIBUTE if any(_KEY.fullmatch(field[len(p) :]) for p in ATTRIBUTES if field.startswith(p)) else None


def looks_at_the_contact(field: str) -> bool:
    """Whether ``field`` is a detail of the contact, which only some may see (part of ``text`` is, too)."""
    return field.startswith("contact.")


def fields_of(wanted: "Filter") -> set[str]:
    """The fields that ``wanted`` looks at."""
    match wanted:
        case Condition(field=name):
            return {name}
        case And(filters=filters) | Or(filters=filters):
            return {name for each in filters for name in fields_of(each)}
        case Not(filter=inner):
            return fields_of(inner)


def looks_for_somebody(wanted: "Filter") -> bool:
    """Whether what is found by ``wanted`` tells something of a contact's details, were it only that there are such."""
    return any(field == "text" or looks_at_the_contact(field) for field in fields_of(wanted))


class _Node(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, serialize_by_alias=True, validate_by_name=True
    )


class Condition(_Node):
    """A field compared with a value: a list of them for in, not_in and between, none for is_set and is_not_set."""

    field: Annotated[str, Field(max_length=100, examples=["status", "contact.name", "attributes.plano"])]
    operator: Operator
    value: Annotated[Any, Field(validate_default=True, examples=["pending"])] = None

    @field_validator("field")
    @classmethod
    def _is_a_field(cls, field: str) -> str:
        if kind_of(field) is None:
            raise _wrong(f"expected one of {', '.join(FIELDS)}, attributes.KEY, contact.attributes.KEY")
        return field

    @field_validator("operator")
    @classmethod
    def _goes_with_the_field(cls, operator: Operator, info: ValidationInfo) -> Operator:
        kind = kind_of(info.data.get("field", ""))
        if kind is not None and operator not in OPERATORS[kind]:
            raise _wrong(f"'{info.data['field']}' holds {kind.value}; expected one of {', '.join(OPERATORS[kind])}")
        return operator

    @field_validator("value")
    @classmethod
    def _fits_both(cls, value: Any, info: ValidationInfo) -> Any:
        if "field" not in info.data or "operator" not in info.data:
            return value
        return _value(info.data["field"], NEGATIONS.get(info.data["operator"], info.data["operator"]), value)


class And(_Node):
    """All of them hold; of none: everything."""

    filters: Annotated[tuple["Filter", ...], Field(alias="and", max_length=MOST_CONDITIONS)]


class Or(_Node):
    """One of them holds at least; of none: nothing."""

    filters: Annotated[tuple["Filter", ...], Field(alias="or", max_length=MOST_CONDITIONS)]


class Not(_Node):
    """It does not hold."""

    filter: Annotated["Filter", Field(alias="not")]


def _tag(value: Any) -> str:
    if isinstance(value, _Node):
        return type(value).__name__
    keys = value if isinstance(value, dict) else {}
    return next((node.__name__ for key, node in _GROUPS.items() if key in keys), Condition.__name__)


_GROUPS: Mapping[str, type[_Node]] = {"and": And, "or": Or, "not": Not}


def _checked(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Check the size before anything else, and leave the names of our classes out of the places of errors."""
    _size(value, 1)
    try:
        return handler(value)
    except ValidationError as error:
        found = [
            InitErrorDetails(
                type=PydanticCustomError(each["type"], "{message}", {"message": each["msg"]}),
                loc=each["loc"][1:],
                input=None,
            )
            for each in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise ValidationError.from_exception_data("Filter", found, hide_input=True) from None


def _size(value: Any, level: int) -> int:
    """How many conditions stand in ``value``; an empty group counts as one."""
    if level > MOST_LEVELS:
        raise _wrong(f"nests deeper than {MOST_LEVELS} levels")
    below = next((value[key] for key in _GROUPS if key in value), None) if isinstance(value, dict) else None
    conditions = 0
    for each in below if isinstance(below, list) else [] if below is None else [below]:
        conditions += _size(each, level + 1)
        if conditions > MOST_CONDITIONS:
            raise _wrong(f"has more than {MOST_CONDITIONS} conditions")
    return max(1, conditions)


Filter = Annotated[
    Annotated[Condition, Tag("Condition")]
    | Annotated[And, Tag("And")]
    | Annotated[Or, Tag("Or")]
    | Annotated[Not, Tag("Not")],
    Discriminator(_tag),
    WrapValidator(_checked),
]
"""A condition, or conditions nested with and / or / not."""

And.model_rebuild()
Or.model_rebuild()
Not.model_rebuild()
FILTER: TypeAdapter[Filter] = TypeAdapter(Filter)
"""Reads a filter from JSON and writes it back: ``FILTER.dump_python(filter, mode="json")``."""
EVERYTHING = And(filters=())


def all_of(filters: Iterable[Filter]) -> Filter:
    """The filter that holds where all of ``filters`` do."""
    given = tuple(each for each in filters if each != EVERYTHING)
    # What was checked is not checked again: put together, valid filters may have more conditions than one may have.
    return given[0] if len(given) == 1 else And.model_construct(filters=given)


# Values

_LINE: TypeAdapter[str] = TypeAdapter(Line, config=ConfigDict(strict=True))
_MOMENT: TypeAdapter[datetime] = TypeAdapter(AwareDatetime)
_COUNT: TypeAdapter[int] = TypeAdapter(Integer)
_NUMBER: TypeAdapter[int | float] = TypeAdapter(Integer | Real)
_FLAG: TypeAdapter[bool] = TypeAdapter(Flag)
_DAYS: TypeAdapter[int] = TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=MOST_DAYS)])


def _value(field: str, operator: Operator, value: Any) -> Any:
    """``value`` as what ``field`` is compared with by ``operator``, which is no negation."""
    kind = kind_of(field)
    match operator:
        case Operator.IS_SET:
            if value is not None:
                raise _wrong("expected no value")
            return None
        case Operator.IN:
            if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_VALUES:
                raise _wrong(f"expected a list of 1 to {MOST_VALUES} values")
            return tuple(_one(field, kind, operator, each) for each in value)
        case Operator.BETWEEN:
            if not isinstance(value, list | tuple) or len(value) != 2:  # noqa: PLR2004  # from and until
                raise _wrong("expected a list of two values, from and until")
            start, end = (_one(field, kind, operator, each) for each in value)
            if isinstance(start, str) is not isinstance(end, str):
                raise _wrong("expected two values of one type")
            return start, end
        case Operator.IN_LAST_DAYS | Operator.MORE_THAN_DAYS_AGO:
            return _parsed(_DAYS, value, f"a whole number of days from 1 to {MOST_DAYS}")
        case _:
            return _one(field, kind, operator, value)


def _one(field: str, kind: Kind | None, operator: Operator, value: Any) -> Any:
    match kind:
        case Kind.CHOICE | Kind.RANK:
            if not isinstance(value, str) or value not in CHOICES[field]:
                raise _wrong(f"expected one of {', '.join(CHOICES[field])}")
            return str(value)
        case Kind.TEXT | Kind.TEXTS | Kind.SEARCH:
            return _text(operator, value)
        case Kind.PHONES:
            text = _text(operator, value)
            if not any(character in "0123456789" for character in text):
                raise _wrong("expected a text with digits")
            return text
        case Kind.ID | Kind.IDS:
            return _id(value)
        case Kind.TIME:
            return _moment(value)
        case Kind.COUNT:
            return _parsed(_COUNT, value, "a whole number")
        case Kind.DURATION:
            seconds = _parsed(_NUMBER, value, "a number of seconds")
            if not 0 <= seconds <= MOST_SECONDS:
                raise _wrong(f"expected a number of seconds from 0 to {MOST_SECONDS}")
            return round(float(seconds), 6)  # as exact as times are
        case Kind.FLAG:
            return _parsed(_FLAG, value, "true or false")
        case _:
            return _attribute(operator, value)


def _attribute(operator: Operator, value: Any) -> Any:
    """By the type that a value in JSON has: text, number, true or false; a date is a text of its form."""
    match operator:
        case Operator.CONTAINS | Operator.STARTS_WITH:
            return _text(operator, value)
        case Operator.GREATER | Operator.LESS:
            return _parsed(_NUMBER, value, "a number")
        case Operator.BEFORE | Operator.AFTER:
            return _date(value)
        case Operator.BETWEEN:
            return _date(value) if isinstance(value, str) else _parsed(_NUMBER, value, "two numbers or two dates")
        case _:
            if isinstance(value, bool):
                return value
            if isinstance(value, int | float):
                return _parsed(_NUMBER, value, "a number")
            return _parsed(_LINE, value, f"a text of up to {MOST_CHARACTERS} characters, a number, or true or false")


def _text(operator: Operator, value: Any) -> str:
    text: str = _parsed(_LINE, value, f"a text of up to {MOST_CHARACTERS} characters")
    if operator in {Operator.CONTAINS, Operator.STARTS_WITH} and not plain(text).strip():
        raise _wrong("expected a text that is not empty")
    return text


def _id(value: Any) -> UUID:
    try:
        return value if isinstance(value, UUID) else UUID(value)
    except (ValueError, AttributeError, TypeError):
        raise _wrong("expected a UUID") from None


def _moment(value: Any) -> datetime:
    # A bare number would be taken for seconds or milliseconds since 1970, by guessing.
    written_out = isinstance(value, datetime) or (isinstance(value, str) and value[:5].endswith("-"))
    expected = "a date and time with a time zone, such as 2026-11-22T10:00:00Z"
    found: datetime = _parsed(_MOMENT, value if written_out else None, expected)
    return found


def _date(value: Any) -> str:
    try:
        if isinstance(value, str) and _DATE.fullmatch(value):
            return date.fromisoformat(value).isoformat()
    except ValueError:
        pass
    raise _wrong("expected a date such as 2026-11-22")


def _parsed(type_: TypeAdapter[Any], value: Any, expected: str) -> Any:
    try:
        return type_.validate_python(value)
    except ValidationError:
        raise _wrong(f"expected {expected}") from None


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("filter", "{message}", {"message": message})
