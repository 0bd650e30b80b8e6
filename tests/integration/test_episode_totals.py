"""Totals over episodes agree with a naive count over all episodes of the log, whatever filter, period and groups."""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import chain
from math import floor
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest
from agreement import all_events
from contact_keyring import keys_of
from databases import new_database, prepare, project
from in_process import id_of
from naive_episodes import episodes
from psycopg.rows import dict_row

from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from api import metrics
from domain.commands import (
    Assume,
    Command,
    CreateSector,
    Finalize,
    FinalizeAutomatically,
    HandOffToBot,
    JoinSector,
    MarkPending,
    OpenConversation,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    Reopen,
    SendMessage,
    Transfer,
)
from domain.envelope import RecordedEvent, Stream, StreamType
from domain.errors import DomainError
from domain.events import Actor, ActorKind, ContactDetails, FinalizationCause, Surface
from domain.permissions import BUILT_IN_ROLES, Caller, Permission, Scope
from projections.episode_totals import COUNTS, MEASURES, GroupBy, Moment, Wanted, totals
from projections.filters import EVERYTHING, FILTER, Filter

WORKSPACE, ELSEWHERE = id_of("totals"), id_of("totals elsewhere")
SECTORS = [id_of(f"totals sector {n}") for n in range(3)]
AGENTS = [id_of(f"totals agent {n}") for n in range(3)]
CONTACT = id_of("totals contact")
START = datetime(2026, 3, 1, tzinfo=UTC)
NOW = START + timedelta(days=9)
ADMIN = Actor(kind=ActorKind.SYSTEM, id="x")
ZONES = ("UTC", "America/Sao_Paulo", "Asia/Kolkata")


def some_command(chance: random.Random) -> Command:
    author = Actor(kind=ActorKind.AGENT, id=str(chance.choice(AGENTS)))
    message: dict[str, Any] = {"message_id": UUID(int=chance.getrandbits(128)), "text": "olá"}
    surface = chance.choice([Surface.INBOX, Surface.LISTING])
    return chance.choice(
        [
            lambda: HandOffToBot(bot="ada"),
            MarkPending,
            lambda: Assume(agent_id=chance.choice(AGENTS)),
            lambda: Transfer(sector_id=chance.choice(SECTORS)),
            lambda: Finalize(surface=surface, outcome=chance.choice(["ok", ""])),
            lambda: FinalizeAutomatically(cause=FinalizationCause.INACTIVITY),
            Reopen,
            lambda: ReceiveMessage(**message),
            lambda: SendMessage(**message, author=author),
            lambda: SendMessage(**message, author=ADMIN),
        ]
    )()


def history(chance: random.Random, workspace: UUID) -> Iterator[tuple[UUID, Command, datetime]]:
    """Conversations over a week."""
    for sector in SECTORS:
        yield sector, CreateSector(name="x"), START
    for agent in AGENTS:
        yield agent, RegisterAgent(name="x"), START
        yield agent, JoinSector(sector_id=SECTORS[0]), START
    yield CONTACT, RegisterContact(contact_id=CONTACT, details=ContactDetails()), START
    for number in range(60):
        id_, at = id_of(f"{workspace} {number}"), START + timedelta(minutes=chance.randrange(7 * 24 * 60))
        sector = chance.choice([*SECTORS, None])
        channel = chance.choice(["phone", "webchat"])
        yield id_, OpenConversation(protocol="1", channel=channel, contact_id=CONTACT, sector_id=sector), at
        for _ in range(chance.randrange(12)):
            at += timedelta(seconds=chance.randrange(20_000))
            yield id_, some_command(chance), at


@pytest.fixture(scope="module")
def filled(postgres_url: str) -> Iterator[str]:
    """A database with two workspaces full of episodes."""
    with new_database(postgres_url) as database:
        prepare(database)
        with closing(CommandHandler(database, keys_of(database))) as handler:
            for workspace in (WORKSPACE, ELSEWHERE):
                caller = Caller(workspace, ADMIN, BUILT_IN_ROLES["admin"])
                asked = [
                    Request(
                        Stream(workspace, command.STREAM, id_),
                        command,
                        caller,
                        Surface.API,
                        uuid4(),
                        uuid4(),
                        occurred_at=at,
                    )
                    for id_, command, at in history(random.Random(7), workspace)
                ]
                for answer in handler.handle(asked):
                    assert not isinstance(answer, Exception) or isinstance(answer, DomainError), answer
        project(database)
        yield database


def all_episodes(database: str) -> list[list[dict[str, Any]]]:
    """The naive episodes of each conversation of the workspace."""
    streams: dict[UUID, list[RecordedEvent]] = defaultdict(list)
    for event in all_events(database):
        if event.stream.type is StreamType.CONVERSATION and event.stream.workspace_id == WORKSPACE:
            streams[event.stream.id].append(event)
    return [list(episodes(events)) for events in streams.values()]


def percentile(values: Sequence[float], share: float) -> float | None:
    if not values:
        return None
    ordered, place = sorted(values), share * (len(values) - 1)
    low = ordered[floor(place)]
    return low + (ordered[min(floor(place) + 1, len(values) - 1)] - low) * (place - floor(place))


def naive(chosen: Sequence[dict[str, Any]], wanted: Wanted) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What `totals` should give, by group."""
    moment = {Moment.STARTED: "started_at", Moment.FINALIZED: "finalized_at"}[wanted.moment]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in chosen:
        at = row[moment]
        if at is None or (wanted.start and at < wanted.start) or (wanted.end and at >= wanted.end):
            continue
        day = at.astimezone(ZoneInfo(wanted.time_zone)).date()
        named = row | {"day": day} | {name: row[f"{name}_id"] for name in ("sector", "agent", "first_sector")}
        groups[tuple(named[group.value] for group in wanted.group_by)].append(row)
    if not wanted.group_by:
        groups.setdefault((), [])
    return {group: measured(rows, wanted.now) for group, rows in groups.items()}


def measured(rows: Sequence[dict[str, Any]], now: datetime) -> dict[str, Any]:
    found: dict[str, Any] = {
        "episodes": len(rows),
        "opened": sum(row["episode"] == 1 for row in rows),
        "reopened": sum(row["episode"] != 1 for row in rows),
        "finalized": sum(row["finalized_at"] is not None for row in rows),
        "returned": sum(row["reopened_at"] is not None for row in rows),
    }
    for name in ("transfers", "messages_received", "messages_sent"):
        found[name] = sum(row[name] for row in rows) if rows else None
    for name in ("waiting_seconds", "first_response_seconds", "resolution_seconds"):
        values = [row[name] for row in rows if row[name] is not None]
        if name == "waiting_seconds":
            values = [
                row[name] + (max(0.0, (now - row["waiting_since"]).total_seconds()) if row["waiting_since"] else 0)
                for row in rows
            ]
        found[f"{name}_average"] = pytest.approx(sum(values) / len(values)) if values else None
        shares = [percentile(values, 0.5), percentile(values, 0.9)]
        found[f"{name}_percentiles"] = pytest.approx(shares) if values else None
        found[f"{name}_count"] = len(values)
    return found


def totalled(database: str, caller: Caller, filter_: Filter, wanted: Wanted) -> dict[tuple[Any, ...], dict[str, Any]]:
    statement, values = totals(WORKSPACE, metrics.chosen(caller, filter_, wanted.now), wanted)
    with psycopg.connect(database, row_factory=dict_row) as connection:
        rows = connection.execute(statement, values).fetchall()
    keys = [f"group_{number}" for number in range(1, len(wanted.group_by) + 1)]
    return {tuple(row.pop(key) for key in keys): row for row in rows}


GROUPS: list[list[GroupBy]] = [
    [],
    *([group] for group in GroupBy if group is not GroupBy.FIRST_AGENT),
    [GroupBy.SECTOR, GroupBy.DAY],
    [GroupBy.DAY, GroupBy.CHANNEL, GroupBy.FINALIZED_FROM],
]
PERIODS = [
    (None, None),
    (START + timedelta(days=2), None),
    (START + timedelta(days=1, hours=5), START + timedelta(days=4)),
    (NOW, None),
]


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: ", ".join(groups) or "no groups")
@pytest.mark.parametrize("moment", Moment)
def test_totals_are_those_of_a_naive_count(filled: str, groups: list[GroupBy], moment: Moment) -> None:
    everybody = Caller(WORKSPACE, ADMIN, {Permission.VIEW: Scope.ALL})
    rows = list(chain.from_iterable(all_episodes(filled)))
    for start, end in PERIODS:
        for zone in ZONES if GroupBy.DAY in groups else ZONES[:1]:
            wanted = Wanted(groups, moment, start, end, zone, NOW)
            assert totalled(filled, everybody, EVERYTHING, wanted) == naive(rows, wanted)


CHOICES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Any], Any]] = {
    "what is pending": ("status", lambda found: found[-1]["status"], "pending"),
    "what came by phone": ("channel", lambda found: found[0]["channel"], "phone"),
    "what was reopened once": ("reopenings", lambda found: len(found) - 1, 1),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_filter_of_the_listing_chooses_conversations_of_which_all_episodes_count(filled: str, choice: str) -> None:
    field, property_, value = CHOICES[choice]
    filter_ = FILTER.validate_python({"field": field, "operator": "is", "value": value})
    chosen = [e for theirs in all_episodes(filled) if property_(theirs) == value for e in theirs]
    everybody = Caller(WORKSPACE, ADMIN, {Permission.VIEW: Scope.ALL})
    wanted = Wanted([GroupBy.CHANNEL], Moment.STARTED, None, None, "UTC", NOW)
    assert len(chosen) > 2
    assert totalled(filled, everybody, filter_, wanted) == naive(chosen, wanted)


@pytest.mark.parametrize("scope", Scope)
def test_only_conversations_within_the_callers_scope_count(filled: str, scope: Scope) -> None:
    agent, sector = AGENTS[1], SECTORS[2]
    caller = Caller(
        WORKSPACE,
        Actor(kind=ActorKind.AGENT, id=str(agent)),
        {Permission.VIEW: scope},
        agent_id=agent,
        sectors=frozenset({sector}),
    )

    def reached(last: dict[str, Any]) -> bool:
        own = last["agent_id"] == agent
        return scope is Scope.ALL or own or (scope is Scope.SECTOR and last["sector_id"] == sector)

    chosen = [e for theirs in all_episodes(filled) if reached(theirs[-1]) for e in theirs]
    wanted = Wanted([GroupBy.AGENT], Moment.STARTED, None, None, "UTC", NOW)
    assert len(chosen) > 2
    assert totalled(filled, caller, EVERYTHING, wanted) == naive(chosen, wanted)


def test_the_answer_is_bounded(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projections.episode_totals.MOST_GROUPS", 2)
    everybody = Caller(WORKSPACE, ADMIN, {Permission.VIEW: Scope.ALL})
    wanted = Wanted([GroupBy.DAY], Moment.STARTED, None, None, "UTC", NOW)
    assert len(totalled(filled, everybody, EVERYTHING, wanted)) == 3


def test_every_count_and_measure_was_compared() -> None:
    compared = set(measured([], NOW))
    expected = {f"{name}_{what}" for name in MEASURES for what in ("average", "percentiles", "count")}
    assert compared == expected | set(COUNTS)


def test_an_agreement_that_is_wrong_is_noticed(filled: str) -> None:
    """The canary: a naive count without the second episodes differs."""
    wanted = Wanted([], Moment.STARTED, None, None, "UTC", NOW)
    everybody = Caller(WORKSPACE, ADMIN, {Permission.VIEW: Scope.ALL})
    first_only = [theirs[0] for theirs in all_episodes(filled)]
    assert totalled(filled, everybody, EVERYTHING, wanted) != naive(first_only, wanted)
