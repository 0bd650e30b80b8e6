"""Live, rebuilt and naive folds of the log agree, row for row, whatever happened and however it was batched."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from agreement import check_that_all_agree
from contact_keyring import keys_of

from adapters.command_handler import CommandHandler, Request
from adapters.projector import Projector, create_missing
from domain.commands import (
    AddLabel,
    AddNote,
    Assume,
    ChangeContactDetails,
    ChangePriority,
    ChangeView,
    Command,
    CreateSector,
    DefineAttribute,
    Finalize,
    FinalizeAutomatically,
    HandOffFromBot,
    HandOffToBot,
    JoinSector,
    MarkPending,
    OpenConversation,
    ReassignContact,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    RemoveLabel,
    RemoveView,
    Reopen,
    RetireAttribute,
    SaveView,
    SendMessage,
    SetAttribute,
    Transfer,
    ViewCommand,
    attribute_id,
)
from domain.envelope import Stream
from domain.errors import DomainError
from domain.events import (
    Actor,
    ActorKind,
    AttributeTarget,
    AttributeType,
    ContactDetails,
    FinalizationCause,
    Priority,
    Surface,
    ViewContents,
)
from domain.permissions import BUILT_IN_ROLES, Caller

WORKSPACE = UUID(int=1)
SECTORS = [UUID(int=0x100 + n) for n in range(3)]
AGENTS = [UUID(int=0x200 + n) for n in range(3)]
CONTACTS = [UUID(int=0x300 + n) for n in range(4)]
CONVERSATIONS = [UUID(int=0x400 + n) for n in range(12)]
VIEWS = [UUID(int=0x500 + n) for n in range(2)]
SYSTEM = Actor(kind=ActorKind.SYSTEM, id="x")
START = datetime(2026, 1, 1, tzinfo=UTC)


def some_details(chance: random.Random) -> ContactDetails:
    return ContactDetails(
        name=chance.choice(["Ana", "João Ção", "李", None]),
        phones=tuple(chance.sample(["+55 11 98765-4321", "+1 202 555 0100"], chance.randrange(3))),
        attributes={"plano": chance.choice(["ouro", 3, True, ["a", "b"]])},
    )


def some_command(chance: random.Random) -> Command:
    sector, agent = chance.choice([*SECTORS, None]), chance.choice([*AGENTS, None])
    message: dict[str, Any] = {"message_id": UUID(int=chance.getrandbits(128)), "text": "olá"}
    author = Actor(kind=ActorKind.AGENT, id=str(chance.choice(AGENTS)))
    return chance.choice(
        [
            lambda: OpenConversation(
                protocol=f"p{chance.randrange(99)}",
                channel="phone",
                contact_id=chance.choice(CONTACTS),
                sector_id=sector,
            ),
            lambda: HandOffToBot(bot=chance.choice(["ada", "bob"])),
            lambda: HandOffFromBot(sector_id=sector),
            lambda: MarkPending(sector_id=sector),
            lambda: Assume(agent_id=chance.choice(AGENTS)),
            lambda: Transfer(sector_id=sector or SECTORS[0], agent_id=agent, reason="x"),
            lambda: Finalize(surface=chance.choice([Surface.INBOX, Surface.LISTING]), outcome="ok"),
            lambda: FinalizeAutomatically(cause=FinalizationCause.INACTIVITY),
            lambda: Reopen(agent_id=agent),
            lambda: ReceiveMessage(**message),
            lambda: ReceiveMessage(**message),
            lambda: SendMessage(**message, author=author),
            lambda: SendMessage(**message, author=Actor(kind=ActorKind.BOT, id="ada")),
            lambda: AddNote(**message, author=author),
            lambda: AddLabel(label=chance.choice(["vip", "novo"])),
            lambda: RemoveLabel(label=chance.choice(["vip", "novo"])),
            lambda: ChangePriority(priority=chance.choice(list(Priority))),
            lambda: SetAttribute(key="pedido", value=chance.choice([1, "dois", None])),
            lambda: ReassignContact(contact_id=chance.choice(CONTACTS)),
            lambda: ChangeContactDetails(details=some_details(chance)),
        ]
    )()


def request(chance: random.Random, id_: UUID, command: Command, at: datetime) -> Request:
    actor = Actor(kind=chance.choice([ActorKind.SYSTEM, ActorKind.INTEGRATION]), id="x")
    if chance.random() < 0.5:
        actor = Actor(kind=ActorKind.AGENT, id=str(chance.choice(AGENTS)))
    caller = Caller(WORKSPACE, SYSTEM, BUILT_IN_ROLES["admin"])
    in_own_name = SendMessage | AddNote | Assume | Reopen | OpenConversation | FinalizeAutomatically | ViewCommand
    if not isinstance(command, in_own_name):
        caller = Caller(WORKSPACE, actor, BUILT_IN_ROLES["admin"])
    stream = Stream(WORKSPACE, command.STREAM, id_)
    return Request(stream, command, caller, Surface.API, uuid4(), uuid4(), occurred_at=at)


def attributes_and_views() -> Iterator[tuple[UUID, Command]]:
    """Each kept, replaced, and of two one removed."""
    for target in AttributeTarget:
        for options in (("a",), ("a", "b")):
            define = DefineAttribute(
                target=target, key="origem", type=AttributeType.LIST, label="Origem", options=options
            )
            yield attribute_id(target, "origem"), define
    yield attribute_id(AttributeTarget.CONTACT, "origem"), RetireAttribute()
    view: dict[str, Any] = {"contents": ViewContents(name="Minhas", filter='{"and":[]}'), "sort": "opened_at"}
    for id_ in VIEWS:
        yield id_, SaveView(owner=SYSTEM, **view)
        yield id_, ChangeView(shared=True, columns=("protocol",), **view)
    yield VIEWS[0], RemoveView()


def a_random_history(database: str, seed: int, commands: int) -> None:
    """A log of what is left of random commands after the rules have refused their part."""
    chance = random.Random(seed)
    handler = CommandHandler(database, keys_of(database), cached_states=100)
    setup: list[tuple[UUID, Command]] = [(sector, CreateSector(name=f"s{sector.int}")) for sector in SECTORS]
    setup += [(agent, RegisterAgent(name=f"a{agent.int}")) for agent in AGENTS]
    setup += [(agent, JoinSector(sector_id=sector)) for agent in AGENTS for sector in SECTORS]
    setup += [(contact, RegisterContact(contact_id=contact, details=some_details(chance))) for contact in CONTACTS]
    setup += [(id_, command) for id_, command in attributes_and_views()]
    assert not any(isinstance(a, Exception) for a in handler.handle([request(chance, *c, START) for c in setup]))
    at, batch = START, []
    for number in range(commands):
        at += timedelta(seconds=chance.randrange(-30, 300))
        command = some_command(chance)
        id_ = chance.choice(CONTACTS if isinstance(command, ChangeContactDetails) else CONVERSATIONS)
        batch.append(request(chance, id_, command, at))
        if chance.random() < 0.2 or number == commands - 1:
            for answer in handler.handle(batch):
                assert not isinstance(answer, Exception) or isinstance(answer, DomainError), answer
            batch = []
    handler.close()


@pytest.mark.parametrize("seed", range(4))
def test_any_history_in_any_batches_gives_the_naive_rows(database: str, seed: int) -> None:
    create_missing(database)
    a_random_history(database, seed, commands=600)
    projector = Projector(database, keys=keys_of(database), batch_size=random.Random(seed).choice([1, 3, 50, 1_000]))
    projector.catch_up()
    projector.close()
    assert check_that_all_agree(database) > 200


@pytest.mark.parametrize(
    "change",
    [
        "update listing set unread = unread + 1 where id = (select id from listing limit 1)",
        "update episodes set transfers = transfers + 1 where episode = 2",
        "delete from episodes where episode = 2",
        "delete from timeline where position = (select max(position) from timeline)",
        "update views set name = 'x'",
        "update contacts set terms = '{}'",
    ],
)
def test_the_comparison_notices_a_row_that_is_wrong(database: str, change: str) -> None:
    create_missing(database)
    a_random_history(database, 0, commands=300)
    projector = Projector(database, keys=keys_of(database))
    projector.catch_up()
    projector.close()
    with psycopg.connect(database) as connection:
        assert connection.execute(change).rowcount > 0
    with pytest.raises(AssertionError):
        check_that_all_agree(database)
