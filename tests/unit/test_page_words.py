"""Every code that pages show has a name that people read."""

from collections.abc import Collection
from enum import EnumMeta
from pathlib import Path

import pytest

from api.history import HistoryFilter
from api.pages import columns, statics, words
from api.pages.history import FIELDS
from api.pages.overview import COLORS
from domain.events import EVENTS, FinalizationCause, MessageKind, Presence, Priority, Status, Surface


@pytest.mark.parametrize(
    ("codes", "names"),
    [
        (EVENTS, words.EVENT_NAMES),
        (Status, columns.STATUS_NAMES),
        (Surface, words.SURFACE_NAMES),
        (Presence, words.PRESENCE_NAMES),
        (Priority, columns.PRIORITY_NAMES),
        (MessageKind, words.KIND_NAMES),
        (FinalizationCause, words.CAUSE_NAMES),
    ],
    ids=["events", "statuses", "surfaces", "presences", "priorities", "kinds", "causes"],
)
def test_every_code_has_a_name(codes: EnumMeta | Collection[str], names: dict[str, str]) -> None:
    assert set(codes) == set(names)


def test_the_history_is_searched_by_all_that_the_api_searches_by() -> None:
    assert set(FIELDS) == set(HistoryFilter.model_fields) - {"lang", "tz", "at_least"}


def test_the_legend_of_a_chart_has_the_colours_of_its_lines() -> None:
    sheet = (Path(statics.__file__).parent / "static" / "conversation.css").read_text()
    for number, color in enumerate(COLORS):
        assert f".line-{number}::before {{ background: {color}; }}" in sheet
