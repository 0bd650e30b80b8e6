"""The state of the listing's page, which is all in its address: filters, order, columns, page, moment.

Invariant: an address is read as whoever wrote it meant it, or it is told what is wrong with it; the same state always
has the same address, with every moment in its zone, so that it shows the same to whoever opens it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import FormData, QueryParams

from api.listing import BarParameters, filter_of
from api.pages.columns import COLUMNS, DEFAULT_COLUMNS
from api.pages.formats import Formats
from api.pages.page import link
from api.pages.texts import N_
from projections.filters import FILTER

LISTS = ("status", "channel", "sector", "agent", "bot", "label")
TYPED_LISTS = ("bot", "label")
"""Lists that are typed into one field, with commas between."""
PERIODS = ("opened", "last_activity", "finalized")
MOMENTS = (*(f"{period}_{end}" for period in PERIODS for end in ("from", "until")), "as_of")
SINGLES = ("q", *MOMENTS, "filter", "sort", "order", "limit", "cursor")
BAR = (*LISTS, "q", *MOMENTS, "filter")
"""What chooses conversations; the rest is how they are shown."""

MISTAKES: Mapping[str, str] = {
    "q": N_("At most 500 characters, and none that cannot be seen."),
    "status": N_("There is no such status."),
    "channel": N_("There is no such channel."),
    "sector": N_("There is no such sector."),
    "agent": N_("There is no such agent."),
    "bot": N_("Lower-case letters, digits, '-', '_' and '.', with commas between several."),
    "label": N_("Lower-case letters, digits, '-', '_' and '.', with commas between several."),
    "filter": N_("These conditions are not right; open the advanced filters."),
    "sort": N_("It cannot be sorted by this."),
    "order": N_("It cannot be sorted by this."),
    "cursor": "",
    "limit": N_("From 1 to 500 rows on a page."),
    **dict.fromkeys(MOMENTS, N_("A date and a time, such as 2026-12-31 14:30.")),
    "as_of": N_("A moment that is past, please."),
}
"""What is said beside a field that the API does not take, or that cannot be read."""


@dataclass(frozen=True)
class State:
    """What the listing shows; texts as they stand in the address."""

    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    singles: Mapping[str, str] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    """None: the usual ones."""

    def __getitem__(self, name: str) -> Any:
        """The values of a list, or the text of anything else."""
        return self.lists.get(name, ()) if name in LISTS else self.singles.get(name, "")

    def but(self, **changes: Any) -> "State":
        """This state with other values (none: left out), from its first page."""
        lists = {
            name: tuple(changes.get(name) or ()) if name in changes else self.lists.get(name, ()) for name in LISTS
        }
        singles = {
            name: changes[name] if name in changes else self.singles.get(name, "")
            for name in SINGLES
            if name != "cursor" or "cursor" in changes
        }
        return replace(self, lists=lists, singles=singles, columns=tuple(changes.get("columns", self.columns)))

    def without(self, name: str, value: str | None = None) -> "State":
        """This state without a filter, or without one value of it."""
        return self.but(**{name: [each for each in self[name] if each != value] if value is not None else ""})

    def query(self, names: Sequence[str] = (*LISTS, *SINGLES)) -> list[tuple[str, str]]:
        """The parameters that are given, as the API takes them."""
        found = [(name, value) for name in LISTS if name in names for value in self.lists.get(name, ())]
        return found + [(name, value) for name in SINGLES if name in names and (value := self.singles.get(name, ""))]

    @property
    def address(self) -> str:
        """The address of this state."""
        return link("/", [*self.query(), *self.columns_query])

    @property
    def shown_columns(self) -> tuple[str, ...]:
        """The columns to show."""
        return self.columns or DEFAULT_COLUMNS

    @property
    def columns_query(self) -> list[tuple[str, str]]:
        """The columns as parameters; none where they are the usual ones."""
        return [("columns", each) for each in self.columns]

    @property
    def bare(self) -> "State":
        """This state without any filter."""
        return State({}, {name: self[name] for name in ("sort", "order", "limit") if self[name]}, self.columns)

    @property
    def periods(self) -> int:
        """How many ends of periods are given."""
        return sum(bool(self[name]) for name in MOMENTS if name != "as_of")

    @property
    def is_filtered(self) -> bool:
        """Whether anything but the status chooses."""
        return any(self[name] for name in BAR if name not in {"status", "as_of"})

    def filter_json(self) -> str:
        """All that chooses, as one filter of the API's grammar; raises `RequestValidationError`."""
        given: dict[str, Any] = {name: list(self[name]) for name in LISTS if self[name]}
        given |= {name: self[name] for name in ("q", "filter", *MOMENTS) if self[name] and name != "as_of"}
        try:
            bar = BarParameters(**given)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        return FILTER.dump_json(filter_of(bar), by_alias=True).decode()


def state_of(given: QueryParams | FormData, formats: Formats) -> State:
    """The state in an address or a form; what cannot be read stays as it is, for the API to refuse it."""
    lists = {name: tuple(_several(name, [str(each) for each in given.getlist(name)])) for name in LISTS}
    singles = {name: str(given.get(name, "")).strip() for name in SINGLES}
    for name in MOMENTS:
        if (at := formats.typed(singles[name])) is not None:
            singles[name] = at.isoformat()
    columns = tuple(dict.fromkeys(str(name) for name in given.getlist("columns") if name in COLUMNS))
    return State(lists, singles, () if columns == DEFAULT_COLUMNS else columns)


def _several(name: str, values: Sequence[str]) -> Iterator[str]:
    parts = [part for value in values for part in (value.split(",") if name in TYPED_LISTS else [value])]
    yield from dict.fromkeys(part.strip() for part in parts if part.strip())


def mistakes_of(problem: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong by field, from the API's problem document."""
    places = [error["in"] for error in problem.get("errors", []) if len(error.get("in", [])) > 1]
    return {place[1]: MISTAKES[place[1]] for place in places if place[1] in MISTAKES}
