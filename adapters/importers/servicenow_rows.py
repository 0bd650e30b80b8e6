"""The service-desk log as rows, case by case; what a row becomes is said in `servicenow`, and so is which are rejected.

Invariant: the rows of a case come together, in the file's order.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter

from adapters.importers.loading import ImportStoppedError, Lines
from adapters.importers.report import Rejected

NUMBER_LIMIT = 64
VALUE_LIMIT = 200
READ = (
    *("number", "sys_mod_count", "sys_updated_at", "sys_updated_by", "opened_at", "incident_state", "caller_id"),
    *("contact_type", "assignment_group", "assigned_to", "reopen_count", "closed_code"),
)
TIME = re.compile(r"(\d{1,2})/(\d{1,2})/(\d{4}) (\d{1,2}):(\d{2})", re.ASCII)
COUNT = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(slots=True)
class Row:
    """A row whose values can be used; "" stands for what is not known."""

    line: int
    values: list[str]
    number: str
    count: int
    when: datetime
    opened_at: datetime
    state: str
    caller: str
    channel: str
    group: str
    person: str
    reopenings: int
    outcome: str
    updated_by: str
    id: str = ""


def header_of(lines: Lines) -> list[str]:
    """The names of the columns; raises `ImportStoppedError` where those that are needed are not among them."""
    first = next(iter(lines), (0, b""))[1] or b""
    try:
        header = next(csv.reader([first.decode("utf-8-sig", "replace")]), [])
    except csv.Error:
        header = []
    missing = [name for name in READ if name not in header]
    if missing:
        msg = f"the first line does not name the columns of the service-desk log; missing: {', '.join(missing)}"
        raise ImportStoppedError(msg)
    return header


def rows_by_case(lines: Lines, header: Sequence[str], now: datetime) -> Iterator[list[Row] | Rejected]:
    """The rows of each case, in the file's order; times after ``now`` are rejected."""
    grouped = _neighbours if _stands_together(lines, header.index("number")) else _gathered
    return grouped(_rows(lines, header, now))


def _neighbours(rows: Iterable[Row | Rejected]) -> Iterator[list[Row] | Rejected]:
    """The rows of each case, which stand together; one case in memory."""
    case: list[Row] = []
    for row in rows:
        if isinstance(row, Rejected):
            yield row
            continue
        if case and case[0].number != row.number:
            yield case
            case = []
        case.append(row)
    if case:
        yield case


def _gathered(rows: Iterable[Row | Rejected]) -> Iterator[list[Row] | Rejected]:
    """The rows of each case, wherever they stand; all rows in memory."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row, Rejected):
            yield row
        else:
            cases.setdefault(row.number, []).append(row)
    yield from cases.values()


def _stands_together(lines: Lines, column: int) -> bool:
    """Whether no case is left and come back to; holds the numbers of the cases only."""
    seen: set[bytes] = set()
    before = None
    for _, line in lines:
        number = (line or b"").split(b",", column + 1)[column : column + 1]
        if number and number[0] != before:
            before = number[0]
            if before in seen:
                return False
            seen.add(before)
    return True


def _rows(lines: Lines, header: Sequence[str], now: datetime) -> Iterator[Row | Rejected]:
    parse = _Parser(header, now)
    for number, line in lines:
        if number == 1 or line == b"":
            continue
        try:
            yield parse(number, line)
        except ValueError as error:
            yield Rejected(number, str(error))


class _Parser:
    """Lines to rows; raises `ValueError` with the reason for those that cannot be used."""

    def __init__(self, header: Sequence[str], now: datetime) -> None:
        self._width = len(header)
        self._names = READ
        self._pick = itemgetter(*(header.index(name) for name in READ))
        self._now = now

    def __call__(self, line: int, content: bytes | None) -> Row:
        """The row on ``line``."""
        values = self._values(content)
        picked = [_known(value) for value in self._pick(values)]
        if max(map(len, picked)) > VALUE_LIMIT:
            name = next(name for name, value in zip(READ, picked, strict=True) if len(value) > VALUE_LIMIT)
            msg = f"{name} is longer than {VALUE_LIMIT} characters"
            raise ValueError(msg)
        number, count, when, updated_by, opened, state, caller, channel, group, person, reopenings, outcome = picked
        if not 0 < len(number) <= NUMBER_LIMIT:
            msg = f"number must have 1 to {NUMBER_LIMIT} characters"
            raise ValueError(msg)
        happened = self._time("sys_updated_at", when)
        return Row(
            line=line,
            values=values,
            number=number,
            count=_count("sys_mod_count", count),
            when=happened,
            opened_at=self._time("opened_at", opened) if opened else happened,
            state=state,
            caller=caller,
            channel=channel,
            group=group,
            person=person,
            reopenings=_count("reopen_count", reopenings),
            outcome=outcome,
            updated_by=updated_by,
        )

    def _values(self, content: bytes | None) -> list[str]:
        if content is None:
            msg = "the line is too long"
            raise ValueError(msg)
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            msg = f"not UTF-8 at byte {error.start + 1} of the line"
            raise ValueError(msg) from error
        if "\0" in text:
            msg = "it holds a NUL, which cannot be stored"
            raise ValueError(msg)
        try:
            values = next(csv.reader([text])) if '"' in text else text.split(",")
        except csv.Error as error:
            msg = f"no CSV: {error}"
            raise ValueError(msg) from error
        if len(values) != self._width:
            msg = f"{len(values)} columns instead of {self._width}"
            raise ValueError(msg)
        return values

    def _time(self, name: str, text: str) -> datetime:
        time = _time(text)
        if time is None:
            msg = f"{name} is no time such as 29/2/2016 01:23"
            raise ValueError(msg)
        if time > self._now:
            msg = f"{name} lies in the future"
            raise ValueError(msg)
        return time


def _known(value: str) -> str:
    return "" if value == "?" else value


def _count(name: str, text: str) -> int:
    if not COUNT.fullmatch(text):
        msg = f"{name} is no number of up to nine digits"
        raise ValueError(msg)
    return int(text)


@lru_cache(maxsize=4_096)
def _time(text: str) -> datetime | None:
    """Day/month/year hour:minute, read as UTC; None where it is none."""
    match = TIME.fullmatch(text)
    if match is None:
        return None
    day, month, year, hour, minute = map(int, match.groups())
    try:
        return datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None
