"""Texts of SQL with the values for their placeholders, and how they are put together.

Invariant: values are parameters, never text.
"""

from collections.abc import Sequence
from typing import Any

Sql = tuple[str, list[Any]]
"""A text with placeholders and the values for them."""

NOTHING: Sql = ("false", [])


def all_of(conditions: Sequence[Sql]) -> Sql:
    """That all of ``conditions`` hold, as they do where there are none."""
    return _joined(" and ", conditions) if conditions else ("true", [])


def any_of(conditions: Sequence[Sql]) -> Sql:
    """That one of ``conditions`` holds."""
    return _joined(" or ", conditions) if conditions else NOTHING


def union(statements: Sequence[Sql]) -> Sql:
    """All rows of ``statements``, in brackets."""
    text, values = _joined(" union all ", [(f"({text})", values) for text, values in statements])
    return (text if len(statements) > 1 else f"({text})"), values


def _joined(by: str, parts: Sequence[Sql]) -> Sql:
    text = by.join(text for text, _ in parts)
    return text if len(parts) == 1 else f"({text})", [value for _, values in parts for value in values]


def limited(text: str, values: list[Any], limit: int | None) -> Sql:
    """``limit`` rows of a statement at most; None: all."""
    return (text, values) if limit is None else (f"{text} limit %s", [*values, limit])
