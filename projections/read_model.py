"""What every read model has in common, so that one projector can run and rebuild them all.

Invariant: `apply` changes only the read model's own tables, named without a schema, so that a rebuild can fill a copy
in another schema beside the live one.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import psycopg

from domain.envelope import RecordedEvent

Connection = psycopg.Connection[Any]


class ReadModel(Protocol):
    """Tables derived from the log."""

    name: str
    tables: tuple[str, ...]
    """Its tables, without schema; queries that read several read them from the last to the first."""
    ddl: str
    """Statements that create them; run with the target schema first on the search path."""

    def apply(self, connection: Connection, events: Sequence[RecordedEvent]) -> None:
        """Fold ``events`` (in order, gapless after the last ones) into the tables, within the open transaction."""
