"""Any filter, however it nests, finds over any data what a naive reading of the folded rows finds: rows, order, counts.

The data goes through the real writer's handler and the real projector into a real database, a workspace per example.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import naive_listing
import pytest
from databases import new_database
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from listing_world import (
    AGENTS,
    LABELS,
    NOW,
    PAIRS,
    WHO,
    Row,
    Story,
    World,
    caller,
    every_value,
    everything,
    filters,
    reaches,
    stories,
)

from domain.permissions import Scope
from projections import filter_sql, listing_query
from projections.filters import FILTER
from projections.listing_query import Page, Sort, counts
from projections.sql import Sql


@pytest.fixture(scope="module")
def world(postgres_url: str) -> Iterator[World]:
    with new_database(postgres_url) as database, closing(World(database)) as made:
        yield made


# The laws

BOUNDED = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],  # a smaller example would cost a workspace for each step on the way to it
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


def naively(rows: list[Row], wanted: dict[str, Any], view: Scope, view_contact: Scope | None) -> list[Row]:
    return [
        row
        for row in rows
        if reaches(view, row) and naive_listing.holds(wanted, row, NOW, sees_contact=reaches(view_contact, row))
    ]


@BOUNDED
@given(told=stories, asked=st.lists(filters, min_size=8, max_size=16), who=st.sampled_from(WHO))
def test_any_filter_over_any_data_finds_what_a_naive_reading_finds(
    world: World, told: list[Story], asked: list[dict[str, Any]], who: tuple[Scope, Scope | None]
) -> None:
    workspace, rows = world.tell(told)
    for wanted in asked:
        expected = naively(rows, wanted, *who)
        assert world.found(caller(workspace, *who), wanted) == {row["id"] for row in expected}, wanted
        opposite = {row["id"] for row in rows if reaches(who[0], row)} - {row["id"] for row in expected}
        assert world.found(caller(workspace, *who), {"not": wanted}) == opposite, wanted


@BOUNDED
@given(
    told=stories,
    asked=filters,
    orders=st.lists(st.tuples(st.sampled_from(Sort), st.booleans(), st.integers(1, 15)), min_size=4, max_size=8),
)
def test_any_sort_over_any_data_gives_each_row_once_in_order_on_pages_of_any_size(
    world: World, told: list[Story], asked: dict[str, Any], orders: list[tuple[Sort, bool, int]]
) -> None:
    workspace, rows = world.tell(told)
    who = caller(workspace)
    for filter_ in ({"and": []}, asked):
        expected = naively(rows, filter_, Scope.ALL, Scope.ALL)
        for sort, descending, limit in orders:
            page = Page(FILTER.validate_python(filter_), sort, descending, limit=limit, now=NOW)
            ordered = naive_listing.in_order(expected, sort.value, NOW, descending=descending)
            assert world.walked(who, page) == [row["id"] for row in ordered], (filter_, sort, descending, limit)
        for exact in (True, False):
            statement = counts(who, FILTER.validate_python(filter_), exact=exact, now=NOW)
            counted = {row["status"]: row["count"] for row in world.rows(*statement) if row["count"]}
            statuses = [row["status"] for row in expected]
            assert counted == {status: statuses.count(status) for status in statuses}


@pytest.fixture(scope="module")
def told(world: World) -> tuple[UUID, list[Row]]:
    return world.tell(everything())


@pytest.mark.parametrize("field", dict.fromkeys(field for field, _, _ in PAIRS))
def test_every_field_with_every_operator_that_it_takes_finds_what_a_naive_reading_finds(
    world: World, told: tuple[UUID, list[Row]], field: str
) -> None:
    workspace, rows = told
    tells_apart = False
    for _, kind, operator in [pair for pair in PAIRS if pair[0] == field]:
        for value in every_value(field, kind, operator):
            wanted = {"field": field, "operator": operator.value} | ({} if value is None else {"value": value})
            expected = {row["id"] for row in naively(rows, wanted, Scope.ALL, Scope.ALL)}
            assert world.found(caller(workspace), wanted) == expected, wanted
            tells_apart |= 0 < len(expected) < len(rows)
    assert tells_apart or field.endswith(
        ("attributes.nasceu", "attributes.vip", "attributes.cidades", "attributes.saiu")
    )


WORD, DIGITS, TELLING = "inc", "2026", "2026-000123"


@pytest.mark.parametrize("sort", Sort)
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize(("near", "few", "several"), [(2_000, 300, 5_000), (1, 1, 5_000), (5, 1, 1)])
def test_every_sort_both_ways_is_the_naive_order_on_pages_of_every_size(
    world: World,
    told: tuple[UUID, list[Row]],
    monkeypatch: pytest.MonkeyPatch,
    sort: Sort,
    descending: bool,
    near: int,
    few: int,
    several: int,
) -> None:
    workspace, rows = told
    bounds = {"NEAR": near, "FEW": few, "SEVERAL": several, "FEW_TOLD": few}
    for name, bound in bounds.items():
        monkeypatch.setattr(listing_query, name, bound)
    for text in ("", WORD, DIGITS, TELLING):
        wanted = {"field": "text", "operator": "contains", "value": text} if text else {"and": []}
        fitting = naively(rows, wanted, Scope.ALL, Scope.ALL)
        assert len(fitting) > 7
        expected = [row["id"] for row in naive_listing.in_order(fitting, sort.value, NOW, descending=descending)]
        for limit in (1, 2, 7, len(fitting) - 1, len(fitting), 500):
            page = Page(FILTER.validate_python(wanted), sort, descending, limit=limit, now=NOW)
            assert world.walked(caller(workspace), page) == expected, (text, limit)


@pytest.mark.parametrize("sort", [Sort.LAST_ACTIVITY, Sort.FINALIZED, Sort.WAITING, Sort.PRIORITY])
@pytest.mark.parametrize(
    ("field", "column", "values"), [("label", "labels", LABELS), ("ever_with_agent", "agents", AGENTS)]
)
def test_what_stands_at_any_place_of_a_list_is_found_once_and_in_order(
    world: World, told: tuple[UUID, list[Row]], field: str, column: str, values: list[Any], sort: Sort
) -> None:
    workspace, rows = told
    assert max(len(row[column]) for row in rows) > filter_sql.INDEXED_PLACES + 1
    for value in values:
        condition = {"field": field, "operator": "is", "value": str(value)}
        for wanted in (condition, {"and": [{"field": "channel", "operator": "is", "value": "phone"}, condition]}):
            fitting = naively(rows, wanted, Scope.ALL, Scope.ALL)
            assert fitting
            page = Page(FILTER.validate_python(wanted), sort, limit=2, now=NOW)
            ordered = naive_listing.in_order(fitting, sort.value, NOW, descending=True)
            assert world.walked(caller(workspace), page) == [row["id"] for row in ordered], wanted


def test_a_count_goes_no_further_than_one_beyond_its_limit_unless_it_is_exact(
    world: World, told: tuple[UUID, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, rows = told
    monkeypatch.setattr(listing_query, "COUNTED_TO", 3)
    for exact in (False, True):
        found = world.rows(*counts(caller(workspace), FILTER.validate_python({"and": []}), exact=exact))
        for status, count in ((row["status"], row["count"]) for row in found):
            there = sum(row["status"] == status for row in rows)
            assert count == (there if exact else min(4, there))
    assert max(row["count"] for row in found) > 4


def test_the_comparison_notices_a_null_that_leaks_through_a_negation(
    world: World, told: tuple[UUID, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary: ``not`` as SQL has it, with a third truth value."""
    workspace, rows = told
    compiled = filter_sql.compiled

    def leaking(*arguments: Any, holds: bool = True) -> Sql:
        text, values_ = compiled(*arguments, holds=True)
        return (text, values_) if holds else (f"not ({text})", values_)

    wanted = {"not": {"field": "agent", "operator": "is", "value": str(AGENTS[0])}}
    expected = {row["id"] for row in naively(rows, wanted, Scope.ALL, Scope.ALL)}
    assert world.found(caller(workspace), wanted) == expected
    monkeypatch.setattr(filter_sql, "compiled", leaking)
    assert world.found(caller(workspace), wanted) < expected
