"""Conditions as a form, and back: the same filter, and nothing typed lost."""

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from starlette.datastructures import QueryParams

from api.pages.filter_form import MISTAKES, Part, act, filter_of_form, form_of, form_of_filter
from api.pages.formats import Formats
from projections.filters import FIELDS, FILTER, OPERATORS, Kind, Operator

FORMATS = Formats("pt", ZoneInfo("America/Sao_Paulo"))
ID, OTHER = "0190a000-0000-7000-8000-000000000001", "0190a000-0000-7000-8000-000000000002"
VALUES: dict[Kind, list[Any]] = {
    Kind.TEXT: ["Ação; 50%", " a b"],
    Kind.TEXTS: ["troca", "vip"],
    Kind.PHONES: ["+55 11 98765-4321", "4711"],
    Kind.ID: [ID, OTHER],
    Kind.IDS: [ID, OTHER],
    Kind.TIME: ["2026-11-22T10:00:00-03:00", "2026-11-23T10:00:30-03:00"],
    Kind.COUNT: [0, 12],
    Kind.DURATION: [90.0, 3600.0],
    Kind.RANK: ["low", "urgent"],
    Kind.FLAG: [True, False],
    Kind.SEARCH: ["ana 98765", "x"],
    Kind.ATTRIBUTE: ["ouro", "10"],
}
CHOICES = {
    "status": ["pending", "finalized"],
    "finalized_from": ["inbox", "listing"],
    "finalized_cause": ["bot", "import"],
}


def conditions() -> list[dict[str, Any]]:
    """Each field with each of its operators."""
    found = []
    for field, kind in {**FIELDS, "attributes.plano": Kind.ATTRIBUTE}.items():
        for operator in OPERATORS[kind]:
            values: list[Any] = CHOICES.get(field) or VALUES[kind]
            if kind is Kind.ATTRIBUTE and operator in {Operator.GREATER, Operator.LESS}:
                values = [10, 2.5]
            if kind is Kind.ATTRIBUTE and operator in {Operator.BEFORE, Operator.AFTER, Operator.BETWEEN}:
                values = ["2026-01-31", "2026-12-01"]
            match operator:
                case Operator.IS_SET | Operator.IS_NOT_SET:
                    found.append({"field": field, "operator": operator.value})
                    continue
                case Operator.IN_LAST_DAYS | Operator.MORE_THAN_DAYS_AGO:
                    value: Any = 7
                case Operator.IN | Operator.NOT_IN | Operator.BETWEEN:
                    value = values
                case _:
                    value = values[0]
            found.append({"field": field, "operator": operator.value, "value": value})
    return found


def sent(part: Part) -> list[tuple[str, str]]:
    """What a browser sends for the form."""
    if part.join:
        return [(f"{part.place}.join", part.join), *(pair for each in part.parts for pair in sent(each))]
    fields = [
        ("field", part.name),
        ("key", part.key),
        ("operator", part.operator),
        *(("value", v) for v in part.values),
    ]
    return [(f"{part.place}.{name}", value) for name, value in fields]


def back(filter_: dict[str, Any]) -> Any:
    """The filter that the form of ``filter_`` makes once it was sent."""
    return filter_of_form(form_of(QueryParams(sent(form_of_filter(filter_, FORMATS)))), FORMATS)


@pytest.mark.parametrize("condition", conditions(), ids=lambda each: f"{each['field']}-{each['operator']}")
def test_a_condition_is_the_same_after_a_form(condition: dict[str, Any]) -> None:
    made = back(condition)
    assert made is not None
    assert FILTER.validate_python(made) == FILTER.validate_python({"and": [condition]})


A, B = ({"field": "label", "operator": "is", "value": value} for value in "ab")


@pytest.mark.parametrize(
    "filter_",
    [
        {"and": [A, {"or": [B, {"not": A}]}]},
        {"or": []},
        {"not": {"or": [A, B]}},
        {"and": [{"not": {"and": [A, B]}}, {"not": {"not": B}}]},
        {"and": [{"and": [{"and": [{"and": [{"and": [{"and": [A]}]}]}]}]}]},
    ],
)
def test_groups_are_the_same_after_a_form(filter_: dict[str, Any]) -> None:
    assert back(filter_) == filter_


@pytest.mark.parametrize(
    ("condition", "mistake"),
    [
        ({"field": "opened", "operator": "after", "value": "ontem"}, "moment"),
        ({"field": "opened", "operator": "in_last_days", "value": "x"}, "days"),
        ({"field": "opened", "operator": "in_last_days", "value": "0"}, "other"),
        ({"field": "unread", "operator": "greater", "value": "muitas"}, "number"),
        ({"field": "unread", "operator": "is", "value": "1,5"}, "other"),
        ({"field": "label", "operator": "is", "value": " "}, "value"),
        ({"field": "contact", "operator": "is", "value": "ana"}, "id"),
        ({"field": "attributes.", "operator": "is", "value": "x"}, "key"),
        ({"field": "unread", "operator": "between", "value": "1"}, "value"),
    ],
)
def test_what_is_wrong_is_told_and_stays(condition: dict[str, str], mistake: str) -> None:
    fields = [("0.join", "and"), *((f"0.0.{name}", value) for name, value in condition.items())]
    root = form_of(QueryParams(fields))
    assert filter_of_form(root, FORMATS) is None
    assert (root.parts[0].mistake, root.parts[0].values) == (MISTAKES[mistake], [condition["value"]])


def test_buttons_add_and_remove_parts() -> None:
    root = form_of(QueryParams())
    for action in ("add:0", "group:0", "add:0.1", "remove:0.0", "remove:9", "add:", "fly:0", ""):
        act(root, action)
    assert [part.place for part in root.all()] == ["0", "0.1", "0.1.0", "0.1.1"]
    assert root.parts[0].join == "or"


@pytest.mark.parametrize(
    "query", ["0.join=and&0.0.field=nothing", "0.join=x", "0.0=1&0.0.0.0.0.0.0.0.0.0.field=a", "0.field=label"]
)
def test_an_address_that_nobody_made_is_no_bug(query: str) -> None:
    root = form_of(QueryParams(query))
    filter_of_form(root, FORMATS)
    assert list(root.all())


def test_too_many_conditions_or_levels_are_told() -> None:
    root = Part("0", "and", [form_of_filter(A, FORMATS, f"0.{n}") for n in range(51)])
    assert filter_of_form(root, FORMATS) is None
    assert root.mistake == MISTAKES["many"]
    deep: dict[str, Any] = {"and": [A]}
    for _ in range(8):
        deep = {"and": [deep]}
    root = form_of_filter(deep, FORMATS)
    assert filter_of_form(root, FORMATS) is None
    assert root.mistake == MISTAKES["deep"]
