"""The longest values that the rules let in have room in every index: an entry has 2,704 bytes, or the projector stands.

Random characters of four bytes each: PostgreSQL cannot make them shorter.
"""

import random
from collections.abc import Iterator
from contextlib import closing
from typing import get_args

import psycopg
import pytest
from annotated_types import MaxLen
from listing_world import START, Story, World

from domain.events import Actor, Line
from projections import past

SLUG = 64
"""Characters; their pattern says so."""


def longest(annotated: object) -> int:
    [limit] = [
        each.max_length
        for field in get_args(annotated)[1:]
        for each in getattr(field, "metadata", [field])
        if isinstance(each, MaxLen)
    ]
    return limit


def text(characters: int) -> str:
    chance = random.Random(characters)
    return "".join(chr(chance.randrange(0x20000, 0x2A000)) for _ in range(characters))


@pytest.fixture
def row(database: str) -> Iterator[psycopg.Connection]:
    """A database with one conversation, changed so that it is as long as one may be."""
    id_ = next(each for each in Actor.model_fields["id"].metadata if isinstance(each, MaxLen)).max_length
    actor, slug = f"integration:{text(id_)}", "s" * SLUG
    with closing(World(database)) as world:
        world.tell([Story(0, "whatsapp", None, None, "P-1", [])])
        connection = world.connection
        connection.execute(
            "update listing set channel = %(slug)s, bot = %(slug)s, opened_by = %(actor)s, finalized_by = %(actor)s,"
            " finalized_from = 'automatically', finalized_cause = 'inactivity', outcome = %(line)s,"
            " labels = array[%(slug)s, %(slug)s], finalized_at = opened_at, unanswered_since = opened_at,"
            " waiting_since = opened_at, priority = 3, reopenings = 1",
            {"slug": slug, "actor": actor, "line": text(longest(Line))},
        )
        yield connection


def leave_a_version(connection: psycopg.Connection) -> None:
    columns = ", ".join(past.COLUMNS)
    connection.execute(
        f"insert into past ({columns}, until, node) select {columns}, now(), %s from listing".encode(),
        [past.nodes_of(START)[0]],
    )


def test_the_longest_row_of_the_listing_and_its_version_stand_in_all_indexes(row: psycopg.Connection) -> None:
    leave_a_version(row)


def test_canary_an_outcome_beside_the_actors_has_no_room(row: psycopg.Connection) -> None:
    row.execute("create index on past (workspace_id) include (outcome, opened_by, finalized_by)")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        leave_a_version(row)
