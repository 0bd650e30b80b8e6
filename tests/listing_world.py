"""Conversations in which all sorts of things happened, in a real database; filters, and who asks for them.

What the tests of the listing, of now and of the past, draw from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4, uuid5

import psycopg
from contact_keyring import keys_of
from hypothesis import strategies as st
from psycopg.rows import dict_row

from adapters.command_handler import CommandHandler
from adapters.deciding import Request
from adapters.projector import Projector, create_missing
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    ChangeContactDetails,
    ChangePriority,
    Command,
    CreateSector,
    Finalize,
    FinalizeAutomatically,
    HandOffFromBot,
    HandOffToBot,
    JoinSector,
    MarkPending,
    OpenConversation,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    Reopen,
    SendMessage,
    SetAttribute,
    Transfer,
)
from domain.envelope import Stream
from domain.errors import DomainError
from domain.events import Actor, ActorKind, ContactDetails, FinalizationCause, Priority, Surface
from domain.permissions import BUILT_IN_ROLES, Caller, Permission, Scope
from projections.filter_sql import where
from projections.filters import CHOICES, FIELDS, FILTER, OPERATORS, Kind, Operator
from projections.listing_query import Page, pages

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

Row = dict[str, Any]
START = datetime(2026, 1, 10, 12, tzinfo=UTC)
NOW = datetime(2026, 1, 20, 9, 30, tzinfo=UTC)
SECTORS = [UUID(int=0x100 + n) for n in range(3)]
AGENTS = [UUID(int=0x200 + n) for n in range(5)]
LABELS = ["vip", "troca", "vip-2", "atraso", "zelo"]
CONTACTS = [UUID(int=0x300 + n) for n in range(4)]
PEOPLE = [
    ContactDetails(
        name="Zoé Ação 100%_ok",
        phones=("+55 (11) 98765-4321", "123"),
        emails=("zoe@example.com",),
        attributes={
            "plano": "ouro",
            "idade": 41,
            "nasceu": "1985-01-15",
            "vip": True,
            "cidades": ["São Paulo", "Olinda"],
        },
    ),
    ContactDetails(
        name="zoe acao",
        emails=("b.lima@x.org", "ZOE@x.org"),
        attributes={
            "plano": "Prata\\",
            "idade": 41.5,
            "nasceu": "2026-01-19",
            "vip": False,
            "cidades": [],
            "saiu": None,
        },
    ),
    ContactDetails(name="Bruno d'Ávila-Lima", phones=("021 3333 4444",), attributes={"plano": 3, "idade": "41"}),
    ContactDetails(),
]
VALUES = ["ouro", "Ouró", 0, 3, -1.5, True, False, "2026-01-15", "2026-01-20", ["ouro", "2026-01-19"], []]
KEYS = ("plano", "idade", "nasceu", "vip", "cidades", "saiu")


def some_message(text: str = "olá") -> dict[str, Any]:
    return {"message_id": uuid4(), "text": text}


def agent(number: int) -> Actor:
    return Actor(kind=ActorKind.AGENT, id=str(AGENTS[number]))


STEPS: list[Any] = [
    partial(HandOffToBot, bot="ada"),
    partial(HandOffToBot, bot="bob"),
    partial(HandOffFromBot, sector_id=SECTORS[1]),
    MarkPending,
    partial(MarkPending, sector_id=SECTORS[2]),
    partial(Assume, agent_id=AGENTS[0]),
    partial(Assume, agent_id=AGENTS[1]),
    partial(Transfer, sector_id=SECTORS[0], reason="x"),
    partial(Transfer, sector_id=SECTORS[1], agent_id=AGENTS[1], reason="x"),
    partial(Finalize, surface=Surface.INBOX, outcome="Solução"),
    partial(Finalize, surface=Surface.LISTING, outcome=""),
    partial(FinalizeAutomatically, cause=FinalizationCause.INACTIVITY),
    Reopen,
    partial(Reopen, agent_id=AGENTS[0]),
    lambda: ReceiveMessage(**some_message()),
    lambda: SendMessage(**some_message(), author=agent(0)),
    lambda: SendMessage(**some_message(), author=Actor(kind=ActorKind.BOT, id="ada")),
    lambda: AddNote(**some_message(), author=agent(1)),
    *(partial(AddLabel, label=label) for label in LABELS[:3]),
    *(partial(ChangePriority, priority=priority) for priority in Priority),
    *(partial(SetAttribute, key=key, value=value) for key in KEYS[:2] for value in VALUES),
    *(partial(AddLabel, label=label) for label in LABELS[3:]),
    *(partial(Transfer, sector_id=SECTORS[2], agent_id=agent_id, reason="x") for agent_id in AGENTS[2:]),
]


@dataclass
class Story:
    """One conversation: how it was opened, then what was asked for, each so many seconds after the one before."""

    contact: int
    channel: str
    sector: UUID | None
    subject: str | None
    protocol: str
    steps: list[tuple[int, Any]]


stories = st.lists(
    st.builds(
        Story,
        contact=st.integers(0, len(PEOPLE) - 1),
        channel=st.sampled_from(["whatsapp", "webchat", "phone"]),
        sector=st.sampled_from([*SECTORS, None]),
        subject=st.sampled_from([None, "", "Pedido não chegou", "troca"]),
        protocol=st.sampled_from(["2026-000123", "2026-000124", "INC0000045", "ação/1"]),
        steps=st.lists(st.tuples(st.sampled_from([0, 1, 30, 3600, 86_400, -600]), st.sampled_from(STEPS)), max_size=8),
    ),
    min_size=4,
    max_size=14,
)


# Filters

TEXTS: list[str] = [
    *("zoe", "Zoé", "AÇÃO", "acao", "100%_ok", "%", "_", "\\", "'", "d'á", "lima", "x.org", "b.lima@x.org"),
    *("ZOE@x.org", "zoe@example.com", "Bruno d'Ávila-Lima", "2026-000123", "2026", "inc0", "000123", "whatsapp"),
    *(
        "webchat",
        "ada",
        "bob",
        "vip",
        "vip-2",
        "tro",
        "troca",
        "Solução",
        "solu",
        "",
        "Pedido não chegou",
        "pedido nao",
    ),
    *("ouro", "our", "olinda", "Prata\\", "41", "2026-01-15"),
    *("system:x", f"agent:{AGENTS[0]}", "bot:ada", "bot:", f"contact:{CONTACTS[0]}"),
]
NUMBERS: list[float] = [0, 1, 2, 3, 30, 31, 60, 3600, 3600.5, 86_400, 90_000, 5e6, 41, 41.5]
PHONES = ["+55 11 98765-4321", "(11) 987", "4321", "55", "02133334444", "123", "9"]
MOMENTS = [START + timedelta(seconds=s) for s in (-600, 0, 1, 30, 31, 3600, 3601, 86_400, 90_000)]
TIMES = [m.isoformat() for m in MOMENTS] + ["2026-01-10T09:00:00-03:00", "2026-01-11T00:00:00+14:00"]
DATES = ["1985-01-15", "2026-01-15", "2026-01-19", "2026-01-20", "2026-12-31"]
IDS = [str(id_) for id_ in (*SECTORS, *AGENTS, *CONTACTS, UUID(int=9))]
DAYS = [1, 5, 8, 9, 10, 11, 365, 36_500]
SEARCHED = [*TEXTS[:-5], *PHONES, "zoe acao", "ação 2026", "bruno inc", "inc0 bruno lima", "2026-0001", "%%%", "1 2"]


def candidates(field: str, kind: Kind) -> list[Any]:
    """Single values that may stand beside an operator of equality or size."""
    match kind:
        case Kind.CHOICE | Kind.RANK:
            return list(CHOICES[field])
        case Kind.PHONES:
            return PHONES
        case Kind.ID | Kind.IDS:
            return IDS
        case Kind.COUNT:
            return [0, 1, 2, 3, 30, 2**40]
        case Kind.DURATION:
            return NUMBERS
        case Kind.FLAG:
            return [True, False]
        case Kind.SEARCH:
            return SEARCHED
        case Kind.ATTRIBUTE:
            return ["ouro", "olinda", "41", "2026-01-15", 3, 0, -1.5, 41, 41.5, True, False]
        case Kind.TIME:
            return TIMES
        case _:
            return TEXTS


def values(field: str, kind: Kind, operator: Operator) -> st.SearchStrategy[Any]:
    match operator:
        case Operator.IS_SET | Operator.IS_NOT_SET:
            return st.none()
        case Operator.IN | Operator.NOT_IN:
            return st.lists(st.sampled_from(candidates(field, kind)), min_size=1, max_size=4)
        case Operator.CONTAINS | Operator.NOT_CONTAINS | Operator.STARTS_WITH:
            given_ = PHONES if kind is Kind.PHONES else SEARCHED if kind is Kind.SEARCH else TEXTS
            return st.sampled_from([text for text in given_ if text])
        case Operator.IN_LAST_DAYS | Operator.MORE_THAN_DAYS_AGO:
            return st.sampled_from(DAYS)
        case Operator.BETWEEN if kind is Kind.ATTRIBUTE:
            return pairs(DATES) | pairs(NUMBERS)
        case Operator.BETWEEN:
            return pairs(candidates(field, kind))
        case Operator.BEFORE | Operator.AFTER if kind is Kind.ATTRIBUTE:
            return st.sampled_from(DATES)
        case Operator.GREATER | Operator.LESS if kind is Kind.ATTRIBUTE:
            return st.sampled_from(NUMBERS)
        case _:
            return st.sampled_from(candidates(field, kind))


def pairs(of: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(of), min_size=2, max_size=2)


PAIRS = [
    (field, kind, operator)
    for field, kind in [
        *FIELDS.items(),
        *((f"{prefix}attributes.{key}", Kind.ATTRIBUTE) for prefix in ("", "contact.") for key in KEYS),
    ]
    for operator in OPERATORS[kind]
]
"""Every field with every operator that it takes."""


@st.composite
def conditions(draw: DrawFn) -> dict[str, Any]:
    field, kind, operator = draw(st.sampled_from(PAIRS))
    value = draw(values(field, kind, operator))
    return {"field": field, "operator": operator.value} | ({} if value is None else {"value": value})


filters = st.recursive(
    conditions(),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda some: {"and": some})
        | st.lists(inner, max_size=3).map(lambda some: {"or": some})
        | inner.map(lambda one: {"not": one})
    ),
    max_leaves=6,
)


# Who asks


def caller(workspace: UUID, view: Scope = Scope.ALL, view_contact: Scope | None = Scope.ALL) -> Caller:
    grants = {Permission.VIEW: view} | ({Permission.VIEW_CONTACT: view_contact} if view_contact else {})
    return Caller(workspace, agent(0), grants, agent_id=AGENTS[0], sectors=frozenset(SECTORS[:1]))


def reaches(scope: Scope | None, row: Row) -> bool:
    own = row["agent_id"] == AGENTS[0]
    return (
        scope is Scope.ALL or (scope is not None and own) or (scope is Scope.SECTOR and row["sector_id"] == SECTORS[0])
    )


WHO = [
    (Scope.ALL, Scope.ALL),
    (Scope.ALL, Scope.SECTOR),
    (Scope.SECTOR, Scope.OWN),
    (Scope.ALL, None),
    (Scope.OWN, Scope.ALL),
]


# The data


class World:
    """One database that the examples share, each in a workspace of its own."""

    def __init__(self, conninfo: str) -> None:
        create_missing(conninfo)
        self.handler = CommandHandler(conninfo, keys_of(conninfo), cached_states=1_000)
        self.projector = Projector(conninfo, keys=keys_of(conninfo))
        self.connection = psycopg.connect(conninfo, row_factory=dict_row, autocommit=True)
        self.connection.execute("set timezone to 'UTC'")

    def close(self) -> None:
        self.handler.close()
        self.projector.close()
        self.connection.close()

    def tell(self, told: list[Story]) -> tuple[UUID, list[Row]]:
        """A new workspace in which ``told`` has happened; its rows, whatever the rules refused."""
        workspace = uuid4()
        setup: list[tuple[UUID, Command]] = [(sector, CreateSector(name="s")) for sector in SECTORS]
        setup += [(id_, RegisterAgent(name="a")) for id_ in AGENTS]
        setup += [(id_, JoinSector(sector_id=sector)) for id_ in AGENTS for sector in SECTORS]
        setup += [(id_, RegisterContact(contact_id=id_, details=d)) for id_, d in zip(CONTACTS, PEOPLE, strict=True)]
        asked = [self.request(workspace, id_, command, START) for id_, command in setup]
        for number, story in enumerate(told):
            id_, at = uuid5(workspace, str(number)), START + timedelta(minutes=number % 3)
            opening = OpenConversation(
                protocol=story.protocol,
                channel=story.channel,
                contact_id=CONTACTS[story.contact],
                sector_id=story.sector,
                subject=story.subject,
            )
            asked.append(self.request(workspace, id_, opening, at))
            for seconds, step in story.steps:
                at += timedelta(seconds=seconds)
                asked.append(self.request(workspace, id_, step(), at))
        changed = ChangeContactDetails(details=replace_name(PEOPLE[2], "Bruno Ávila Lima"))
        asked.append(self.request(workspace, CONTACTS[2], changed, START))
        for start in range(0, len(asked), 200):
            for answer in self.handler.handle(asked[start : start + 200]):
                assert not isinstance(answer, Exception) or isinstance(answer, DomainError), answer
        self.projector.catch_up()
        return workspace, self.rows("select * from listing where workspace_id = %s", [workspace])

    def request(self, workspace: UUID, id_: UUID, command: Command, at: datetime) -> Request:
        actor = Actor(kind=ActorKind.SYSTEM, id="x")
        if isinstance(command, Finalize | Assume) or (isinstance(command, OpenConversation) and command.subject):
            actor = agent(0)
        grants = BUILT_IN_ROLES["admin"]
        agent_id = AGENTS[0] if actor.kind is ActorKind.AGENT else None
        who = Caller(workspace, actor, grants, agent_id=agent_id)
        return Request(
            Stream(workspace, command.STREAM, id_), command, who, Surface.API, uuid4(), uuid4(), occurred_at=at
        )

    def rows(self, statement: str, values_: list[Any]) -> list[Row]:
        return self.connection.execute(statement, values_).fetchall()

    def found(self, who: Caller, wanted: dict[str, Any]) -> set[UUID]:
        text, values_ = where(who, FILTER.validate_python(wanted), now=NOW)
        return {row["id"] for row in self.rows(f"select id from listing where {text}", values_)}

    def walked(self, who: Caller, page: Page) -> list[UUID]:
        """The ids of all pages of ``page``'s size, one after the other."""
        assert page.limit is not None
        walked: list[UUID] = []
        while True:
            rows: list[Row] = []
            for statement in pages(who, replace(page, limit=page.limit + 1)):
                rows += self.rows(*statement)
                if len(rows) > page.limit:
                    break
            more, rows = len(rows) > page.limit, rows[: page.limit]
            walked += [row["id"] for row in rows]
            if not more:
                return walked
            page = replace(page, after=(rows[-1]["sort_value"], rows[-1]["id"]))


def replace_name(details: ContactDetails, name: str) -> ContactDetails:
    return details.model_copy(update={"name": name})


def everything() -> list[Story]:
    """Each step in some conversation, after some others; and many labels and agents in some, by ever other turns."""
    told = []
    for number, step in enumerate(STEPS):
        before = [STEPS[(number * 7) % len(STEPS)], STEPS[14], STEPS[5 + number % 8], STEPS[(number * 3) % len(STEPS)]]
        steps = [(((number * 37) % 4) * 1_800 + 1, each) for each in (*before[: number % 5], step)]
        sector = [*SECTORS, None][number % 4]
        protocol = ("2026-000123", "INC0000045", "ação/1")[number % 3]
        subject = (None, "Pedido não chegou", "troca")[number % 3]
        channel = ("whatsapp", "webchat")[number % 2]
        told.append(Story(number % len(PEOPLE), channel, sector, subject, protocol, steps))
    for turn in range(len(AGENTS)):
        given_to = (*AGENTS[turn:], *AGENTS[:turn])[: turn + 1]
        moved = [partial(Transfer, sector_id=SECTORS[0], agent_id=agent_id, reason="x") for agent_id in given_to]
        labelled = [partial(AddLabel, label=label) for label in LABELS[turn:]]
        steps = [(60 + turn, step) for step in (*moved, *labelled)]
        told.append(Story(turn % len(PEOPLE), "phone", SECTORS[0], None, "2026-000123", steps))
    return told


def every_value(field: str, kind: Kind, operator: Operator) -> list[Any]:
    """Values for one condition, deterministic: all single ones, some lists and pairs."""
    match operator:
        case Operator.IS_SET | Operator.IS_NOT_SET:
            return [None]
        case Operator.IN | Operator.NOT_IN:
            single = candidates(field, kind)
            return [single, single[:1], single[::2]]
        case Operator.BETWEEN:
            lists = [DATES, NUMBERS] if kind is Kind.ATTRIBUTE else [candidates(field, kind)]
            return [[a, b] for some in lists for a, b in zip(some, some[2:], strict=False)]
        case Operator.CONTAINS | Operator.NOT_CONTAINS | Operator.STARTS_WITH:
            given_ = PHONES if kind is Kind.PHONES else SEARCHED if kind is Kind.SEARCH else TEXTS
            return [text for text in given_ if text]
        case Operator.IN_LAST_DAYS | Operator.MORE_THAN_DAYS_AGO:
            return DAYS
        case Operator.BEFORE | Operator.AFTER if kind is Kind.ATTRIBUTE:
            return DATES
        case Operator.GREATER | Operator.LESS if kind is Kind.ATTRIBUTE:
            return NUMBERS
        case _:
            return candidates(field, kind)
