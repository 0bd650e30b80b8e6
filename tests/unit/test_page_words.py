"""Every code that pages show has a name that people read."""

from collections.abc import Collection
from enum import EnumMeta

import pytest

from api.pages import columns, words
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
