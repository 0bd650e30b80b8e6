"""Filters as somebody might put them together: any field with any operator, nested; values from rows that there are.

Attributes are left out: the real log has none to speak of.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from domain.events import Priority
from projections.filter_sql import COLUMNS
from projections.filters import CHOICES, FIELDS, OPERATORS, Kind, Operator

Row = Mapping[str, Any]
Json = dict[str, Any]
_COLUMNS = COLUMNS | {"text": "contact_name", "messages": "messages_received"}
_PIECE = 5
"""Characters of a text that is searched for."""


def some_filter(chance: random.Random, rows: Sequence[Row], depth: int = 0) -> Json:
    """One condition mostly; in three of eight draws several, joined or denied, three deep at most."""
    match chance.randrange(8) if depth < 3 else 0:
        case 1:
            return {"and": [some_filter(chance, rows, depth + 1) for _ in range(chance.randint(1, 3))]}
        case 2:
            return {"or": [some_filter(chance, rows, depth + 1) for _ in range(chance.randint(1, 3))]}
        case 3:
            return {"not": some_filter(chance, rows, depth + 1)}
        case _:
            return _some_condition(chance, rows)


def _some_condition(chance: random.Random, rows: Sequence[Row]) -> Json:
    field = chance.choice(sorted(FIELDS))
    operator = chance.choice(OPERATORS[FIELDS[field]])
    condition: Json = {"field": field, "operator": operator.value}
    if operator in {Operator.IS_SET, Operator.IS_NOT_SET}:
        return condition
    if operator in {Operator.IN_LAST_DAYS, Operator.MORE_THAN_DAYS_AGO}:
        return condition | {"value": chance.randint(1, 60)}
    several = {Operator.IN: 3, Operator.NOT_IN: 3, Operator.BETWEEN: 2}.get(operator)
    found = [_some_value(chance, rows, field, operator) for _ in range(several or 1)]
    if operator is Operator.BETWEEN:
        found.sort()
    return condition | {"value": found if several else found[0]}


def _some_value(chance: random.Random, rows: Sequence[Row], field: str, operator: Operator) -> Any:
    """As a row drawn at random has it; where that has none, as the next one has."""
    column, kind = _COLUMNS.get(field, field), FIELDS[field]
    if kind is Kind.FLAG:
        return chance.random() < 0.5
    start = chance.randrange(len(rows))
    values = (row[column] for row in (*rows[start:], *rows[:start]) if row[column] not in (None, []))
    value = next(values, None)
    if isinstance(value, list):
        value = chance.choice(value)
    if value is None:  # no row has any
        nothing = {Kind.TIME: rows[start]["opened_at"], Kind.DURATION: 60}
        value = CHOICES[field][0] if field in CHOICES else nothing.get(kind, "nothing")
    if kind is Kind.RANK:
        return list(Priority)[int(value)].value
    if operator in {Operator.CONTAINS, Operator.NOT_CONTAINS, Operator.STARTS_WITH}:
        if kind is Kind.SEARCH:
            return str(value)
        begin = 0 if operator is Operator.STARTS_WITH else chance.randrange(max(1, len(str(value)) - _PIECE))
        return str(value)[begin : begin + _PIECE].strip() or str(value)
    return json.loads(json.dumps(value, default=lambda it: it.isoformat() if hasattr(it, "isoformat") else str(it)))
