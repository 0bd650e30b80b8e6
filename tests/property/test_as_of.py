"""The listing as of a moment is what a naive reading of the log up to that moment gives: rows, order, counts, scope.

The log is written by the real handler; then its times of recording are spread over months, some of them equal, and the
real read model folds it in batches of any size into a real database.

Invariant of the comparison: what names a person, and who may see what, is as it is now.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import naive_listing
import psycopg
import pytest
from campaign import CAMPAIGN
from contact_keyring import keys_of
from databases import new_database
from listing_world import (
    CONTACTS,
    PAIRS,
    PEOPLE,
    START,
    STEPS,
    WHO,
    Row,
    Story,
    World,
    caller,
    every_value,
    everything,
    reaches,
)

from adapters.event_log import EventLog
from domain.commands import RegisterContact
from domain.envelope import StreamType
from domain.permissions import Caller, Permission, Scope
from projections import filter_sql, past, past_query
from projections.filters import FIELDS, FILTER, Kind, Operator
from projections.listing import Listing
from projections.listing_query import Page, Sort, counts, pages

if TYPE_CHECKING:
    from domain.envelope import RecordedEvent

MOMENTS = 1_000 if CAMPAIGN else 40
CONVERSATIONS = 120 if CAMPAIGN else 45
NOW_COLUMNS = (
    *("protocol", "subject", "attributes", "words"),
    *("contact_name", "contact_phones", "contact_emails", "contact_attributes"),
)
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)
GAPS = (0, 0, 0.000_001, 0.5, 1, 40, 3_600, 30_000, 86_400)
"""Seconds between two recordings."""


@dataclass
class Past:
    """A workspace with a long past, in the database and as a list of events."""

    world: World
    workspace: UUID
    events: list[RecordedEvent]
    people: dict[UUID, dict[str, Any]]

    @property
    def recorded(self) -> list[datetime]:
        return [event.recorded_at for event in self.events]

    def rows(self, moment: datetime) -> list[tuple[Row, Row]]:
        """Each row as it stood at ``moment``, but for what names a person; and as it stands now."""
        theirs: dict[UUID, list[RecordedEvent]] = defaultdict(list)
        for event in self.events:
            if event.stream.type is StreamType.CONVERSATION:
                theirs[event.stream.id].append(event)
        found = []
        for events in theirs.values():
            until = bisect_right([event.recorded_at for event in events], moment)
            if until:
                now = naive_listing.row(events, self.people)
                then = naive_listing.row(events[:until], self.people)
                found.append((then | {column: now[column] for column in NOW_COLUMNS}, now))
        return found


def some_stories(chance: random.Random) -> list[Story]:
    told = everything()
    for number in range(CONVERSATIONS - len(told)):
        steps = [(chance.choice([0, 60, 7_200, 200_000]), chance.choice(STEPS)) for _ in range(chance.randrange(12))]
        told.append(Story(number % 4, "whatsapp", None, None, f"P-{number}", steps))
    return told


@pytest.fixture(scope="module")
def whole(postgres_url: str) -> Iterator[Past]:
    chance = random.Random(4)
    with new_database(postgres_url) as conninfo, closing(World(conninfo)) as world:
        workspace, _ = world.tell(some_stories(chance))
        with closing(keys_of(conninfo)) as keys, EventLog(conninfo, keys=keys) as log:
            events = log.read(0, 100_000)
        yield spread(world, workspace, events, chance)


def spread(world: World, workspace: UUID, events: list[RecordedEvent], chance: random.Random) -> Past:
    """Record ``events`` again, mixed as they happened and over a long time, and fold them anew."""
    directory = [event for event in events if event.stream.type is not StreamType.CONVERSATION]
    mixed = [event for event in events if event.stream.type is StreamType.CONVERSATION]
    turns = {event.stream.id: chance.random() * 30 for event in mixed}
    mixed.sort(key=lambda event: turns[event.stream.id] + event.version * (1 + turns[event.stream.id] / 10))
    told, at = [], START
    for position, event in enumerate((*directory, *mixed), start=1):
        at = max(at, event.metadata.occurred_at) + timedelta(seconds=chance.choice(GAPS))
        happened = event.metadata.occurred_at if position % 3 else at  # some are recorded as they happen
        metadata = replace(event.metadata, occurred_at=happened)
        told.append(replace(event, position=position, recorded_at=at, metadata=metadata))
    people = {
        event.stream.id: (event.event.personal.after if "changed" in event.event.TOPIC else event.event.personal)  # type: ignore[attr-defined]
        for event in told
        if event.stream.type is StreamType.CONTACT
    }
    model, start = Listing(), 0
    world.connection.execute(f"truncate {', '.join(model.tables)}".encode())
    with psycopg.connect(world.connection.info.dsn) as connection:
        while start < len(told):
            size = chance.choice((1, 2, 7, 100))
            model.apply(connection, told[start : start + size])
            start += size
    return Past(world, workspace, told, {id_: person.model_dump(mode="json") for id_, person in people.items()})


def some_moment(whole: Past, chance: random.Random) -> datetime:
    """Any, at a recording, or just before one."""
    first, last = whole.recorded[0] - timedelta(days=1), whole.recorded[-1] + timedelta(days=1)
    return chance.choice(
        (
            first + chance.random() * (last - first),
            chance.choice(whole.recorded),
            chance.choice(whole.recorded) - timedelta(microseconds=1),
        )
    )


def some_condition(chance: random.Random, field: str, kind: Kind, operator: Operator) -> dict[str, Any]:
    value = chance.choice(every_value(field, kind, operator))
    return {"field": field, "operator": operator.value} | ({} if value is None else {"value": value})


def some_filter(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    match chance.randrange(8) if depth < 3 else 0:
        case 1:
            return {"and": [some_filter(chance, depth + 1) for _ in range(chance.randrange(4))]}
        case 2:
            return {"or": [some_filter(chance, depth + 1) for _ in range(chance.randrange(1, 4))]}
        case 3:
            return {"not": some_filter(chance, depth + 1)}
        case _:
            return some_condition(chance, *chance.choice(PAIRS))


def auditor(whole: Past, view: Scope, view_contact: Scope | None, history: Scope) -> Caller:
    who = caller(whole.workspace, view, view_contact)
    return replace(who, grants={**who.grants, Permission.READ_HISTORY: history})


def expected(whole: Past, moment: datetime, wanted: dict[str, Any], *scopes: Scope | None) -> list[Row]:
    view, view_contact, history = scopes
    return [
        then
        for then, now in whole.rows(moment)
        if reaches(view, now)
        and reaches(history, now)
        and naive_listing.holds(wanted, then, moment, sees_contact=reaches(view_contact, now))
    ]


def check(whole: Past, chance: random.Random, wanted: dict[str, Any] | None = None) -> int:
    """Compare at one moment: rows and order for one filter, and counts; by whichever way leads to them."""
    moment, wanted = some_moment(whole, chance), wanted or some_filter(chance)
    scopes = (*chance.choice(WHO), chance.choice((Scope.ALL, Scope.ALL, Scope.SECTOR)))
    who, rows = auditor(whole, *scopes), expected(whole, moment, wanted, *scopes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(past_query, "PASSED", chance.choice((0, 3, 5_000)))
        patch.setattr(past_query, "FEW", chance.choice((0, 2_000)))
        patch.setattr(past_query, "NEAR", chance.choice((3, 2_000)))
        patch.setattr(filter_sql, "FEW", chance.choice((0, 1_000)))
        check_pages(whole, who, wanted, moment, rows, chance)
        check_counts(whole, who, wanted, moment, rows)
        all_ = {"and": []}  # which an index alone answers
        check_counts(whole, who, all_, moment, expected(whole, moment, all_, *scopes))
    return len(rows)


def check_pages(
    whole: Past, who: Caller, wanted: Any, moment: datetime, rows: list[Any], chance: random.Random
) -> None:
    sort, descending = chance.choice(list(Sort)), chance.random() < 0.5
    ordered = [row["id"] for row in naive_listing.in_order(rows, sort.value, moment, descending=descending)]
    page = Page(FILTER.validate_python(wanted), sort, descending, limit=chance.choice((1, 3, 50)), as_of=moment)
    assert whole.world.walked(who, page) == ordered, (moment, wanted, sort, descending, who)


def check_counts(whole: Past, who: Caller, wanted: Any, moment: datetime, rows: list[Any]) -> None:
    statuses = [row["status"] for row in rows]
    for exact in (True, False):
        counted = whole.world.rows(*counts(who, FILTER.validate_python(wanted), exact=exact, as_of=moment))
        assert {row["status"]: row["count"] for row in counted if row["count"]} == {
            status: statuses.count(status) for status in statuses
        }, (moment, wanted, who)


@pytest.mark.faults  # for its full size
def test_as_of_any_moment_any_filter_sort_and_scope_finds_what_a_naive_fold_up_to_it_finds(whole: Past) -> None:
    chance = random.Random(7)
    found = [check(whole, chance) for _ in range(MOMENTS)]
    assert sum(number > 0 for number in found) > MOMENTS / 5


@pytest.mark.parametrize("field", FIELDS)
def test_as_of_every_field_with_every_operator_finds_what_a_naive_fold_finds(whole: Past, field: str) -> None:
    chance = random.Random(field)
    for pair in PAIRS:
        if pair[0] == field:
            check(whole, chance, some_condition(chance, *pair))


@pytest.mark.parametrize("few", [0, 1, 1_000])
def test_as_of_what_is_denied_or_reopened_is_found_whichever_way_it_is_looked_for(
    whole: Past, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filter_sql, "FEW", few)
    one, other = (each.model_dump(mode="json") for each in PEOPLE[:2])
    denied = [
        ("contact.name", "is_not", one["name"]),
        ("contact.name", "not_in", [one["name"], other["name"]]),
        ("contact.phone", "not_in", [one["phones"][0]]),
        ("contact.email", "is_not", one["emails"][0]),
        ("protocol", "not_in", ["INC0000045", "2026-000123"]),
        ("text", "not_contains", "zoe"),
        ("episode", "is_not", 1),
        ("episode", "greater", 1),
        ("reopenings", "is_not", 0),
    ]
    chance, scopes = random.Random(3), (Scope.ALL, Scope.ALL, Scope.ALL)
    for field, operator, value in denied:
        wanted, found = {"field": field, "operator": operator, "value": value}, 0
        for moment in chance.sample(whole.recorded[50:], 4):
            rows = expected(whole, moment, wanted, *scopes)
            found += 0 < len(rows) < len(whole.rows(moment))
            check_counts(whole, auditor(whole, *scopes), wanted, moment, rows)
            check_pages(whole, auditor(whole, *scopes), wanted, moment, rows, chance)
        assert found, wanted


def test_as_of_a_moment_what_happened_just_then_is_found_and_what_is_later_is_told_from_the_filter(whole: Past) -> None:
    chance, scopes, instant = random.Random(5), (Scope.ALL, Scope.ALL, Scope.ALL), timedelta(microseconds=1)
    just_then = [
        each.recorded_at
        for each in whole.events
        if each.recorded_at == each.metadata.occurred_at and each.stream.type is StreamType.CONVERSATION
    ]
    fields = ("last_activity", "opened", "finalized", "waiting_since", "unanswered_since")
    found = Counter[tuple[str, int]]()
    for moment, later, field in product(just_then[::40], (-1, 0, 1), fields):
        start = (moment + later * instant).isoformat()
        for value in (start, [start, (moment + timedelta(days=1)).isoformat()]):
            wanted: dict[str, Any] = {"field": field, "operator": "after", "value": value}
            wanted |= {"operator": "between"} if isinstance(value, list) else {}
            for asked in (wanted, {"not": wanted}):
                rows = expected(whole, moment, asked, *scopes)
                found[field, later] += len(rows) * (asked is wanted)
                check_counts(whole, auditor(whole, *scopes), asked, moment, rows)
                check_pages(whole, auditor(whole, *scopes), asked, moment, rows, chance)
    assert found["last_activity", 0], found
    assert not any(found[field, 1] for field in fields)


def test_a_row_as_of_a_moment_is_the_naive_row_in_every_column(whole: Past) -> None:
    chance = random.Random(9)
    who = auditor(whole, Scope.ALL, Scope.ALL, Scope.ALL)
    for moment in sorted(some_moment(whole, chance) for _ in range(12)):
        [statement] = pages(who, Page(sort=Sort.OPENED, descending=False, limit=500, as_of=moment))
        found = whole.world.rows(*statement)
        rows = naive_listing.in_order([then for then, _ in whole.rows(moment)], "opened_at", moment, descending=False)
        assert len(found) == len(rows)
        for each, row in zip(found, rows, strict=True):
            assert {key: each[key] for key in row if key in each} == {key: row[key] for key in row if key in each}


def test_before_anything_there_was_nothing_and_after_everything_it_is_as_now(whole: Past) -> None:
    who = auditor(whole, Scope.ALL, Scope.ALL, Scope.ALL)
    page = Page(limit=50)
    early, late = whole.recorded[0] - timedelta(seconds=1), whole.recorded[-1] + timedelta(seconds=1)
    assert whole.world.walked(who, replace(page, as_of=early)) == []
    assert whole.world.walked(who, replace(page, as_of=late)) == whole.world.walked(who, page)


def test_nobody_without_read_history_finds_anything_in_the_past(whole: Past) -> None:
    who = caller(whole.workspace)
    assert whole.world.walked(who, Page(limit=50))
    assert whole.world.walked(who, Page(limit=50, as_of=whole.recorded[-1])) == []
    assert (
        sum(
            row["count"]
            for row in whole.world.rows(*counts(who, FILTER.validate_python({"and": []}), as_of=whole.recorded[-1]))
        )
        == 0
    )


def test_at_any_moment_exactly_one_version_of_a_conversation_holds(whole: Past) -> None:
    connection = whole.world.connection
    query = """
        select id, recorded_at, until from past union all select id, recorded_at, '9999-01-01Z' from listing
        order by id, recorded_at"""
    periods = connection.execute(query).fetchall()
    assert len(periods) > 2 * CONVERSATIONS
    for before, after in pairwise(periods):
        assert before["recorded_at"] < before["until"]
        assert before["until"] == (after["recorded_at"] if after["id"] == before["id"] else FOREVER)


def test_nothing_is_recorded_before_it_happened(whole: Past) -> None:
    """Whatever the clock of who tells it says: pages of a moment begin at that moment, in every order of times."""
    tomorrow, workspace = datetime.now(UTC) + timedelta(days=1), uuid4()
    request = whole.world.request(
        workspace, CONTACTS[0], RegisterContact(contact_id=CONTACTS[0], details=PEOPLE[0]), tomorrow
    )
    [answer] = whole.world.handler.handle([request])
    assert not isinstance(answer, Exception)
    [row] = whole.world.rows("select occurred_at, recorded_at from events where workspace_id = %s", [workspace])
    assert row["occurred_at"] == row["recorded_at"] < tomorrow


@pytest.mark.parametrize("seed", range(3))
def test_the_nodes_of_a_moment_find_all_periods_that_hold_it(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(2_000):
        since = START + timedelta(seconds=chance.choice((1, 1_000, 10**8)) * chance.random())
        until = (
            since + timedelta(microseconds=1) + timedelta(seconds=chance.choice((0, 2, 10**4, 10**8)) * chance.random())
        )
        node = past.fork(since, until)
        for moment in (since, until - timedelta(microseconds=1), since + chance.random() * (until - since)):
            assert node in past.nodes_of(moment)


def test_canary_versions_left_out_at_one_edge_are_noticed(whole: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends at a moment does not hold at it: in pages, and in counts."""
    holding = past_query.holding

    def wrong(moment: datetime) -> tuple[str, list[Any]]:
        text, values = holding(moment)
        return text.replace("until > %s", "until >= %s"), values

    monkeypatch.setattr(past_query, "holding", wrong)
    chance = random.Random(7)
    with pytest.raises(AssertionError):  # noqa: PT012  # one of many
        for _ in range(MOMENTS):
            check(whole, chance)


@pytest.mark.parametrize(
    ("told", "wrongly"),
    [
        ("not exists (select from passed) or", "true or"),  # what was passed is taken for all there is
        ("having count(*) >= %s", "having count(*) >= least(%s, 1)"),  # the last of a part of a page ends it
    ],
)
def test_canary_a_page_that_ends_too_early_is_noticed(
    whole: Past, monkeypatch: pytest.MonkeyPatch, told: str, wrongly: str
) -> None:
    page = past_query.page

    def wrong(looked: past_query.Looked, part: past_query.Part) -> tuple[str, list[Any]]:
        text, values = page(looked, part)
        return text.replace(told, wrongly), values

    monkeypatch.setattr(past_query, "page", wrong)
    monkeypatch.setattr(past_query, "PASSED", 0)
    chance, who, all_ = random.Random(7), auditor(whole, *[Scope.ALL] * 3), {"and": list[Any]()}
    with pytest.raises(AssertionError):  # noqa: PT012  # one of many
        for _ in range(MOMENTS):
            moment = some_moment(whole, chance)
            check_pages(whole, who, all_, moment, expected(whole, moment, all_, *[Scope.ALL] * 3), chance)
