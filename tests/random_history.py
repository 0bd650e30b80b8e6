"""A log of random commands, or what the rules have left of them: for tests of whatever is folded from a log."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from contact_keyring import keys_of

from adapters.command_handler import CommandHandler
from adapters.deciding import Request
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
    EraseContact,
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
TWO_WORKSPACES = (WORKSPACE, UUID(int=2))
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


def some_command(chance: random.Random, contacts: Sequence[UUID] = CONTACTS) -> Command:
    sector, agent = chance.choice([*SECTORS, None]), chance.choice([*AGENTS, None])
    message: dict[str, Any] = {"message_id": UUID(int=chance.getrandbits(128)), "text": "olá"}
    author = Actor(kind=ActorKind.AGENT, id=str(chance.choice(AGENTS)))
    return chance.choice(
        [
            lambda: OpenConversation(
                protocol=f"p{chance.randrange(99)}",
                channel="phone",
                contact_id=chance.choice(contacts),
                sector_id=sector,
                subject="assunto",
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
            lambda: ReassignContact(contact_id=chance.choice(contacts)),
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


def setting_up(chance: random.Random) -> list[Request]:
    """What must be there before the random commands: sectors, agents, contacts, definitions, views."""
    setup: list[tuple[UUID, Command]] = [(sector, CreateSector(name=f"s{sector.int}")) for sector in SECTORS]
    setup += [(agent, RegisterAgent(name=f"a{agent.int}")) for agent in AGENTS]
    setup += [(agent, JoinSector(sector_id=sector)) for agent in AGENTS for sector in SECTORS]
    setup += [(contact, RegisterContact(contact_id=contact, details=some_details(chance))) for contact in CONTACTS]
    setup += [(id_, command) for id_, command in attributes_and_views()]
    return [request(chance, *each, START) for each in setup]


def some_request(
    chance: random.Random,
    at: datetime,
    conversations: Sequence[UUID] = CONVERSATIONS,
    contacts: Sequence[UUID] = CONTACTS,
) -> Request:
    command = some_command(chance, contacts)
    streams = contacts if isinstance(command, ChangeContactDetails) else conversations
    return request(chance, chance.choice(streams), command, at)


def handle(handler: CommandHandler, requests: list[Request]) -> None:
    """What the rules refuse is left out of the log."""
    for answer in handler.handle(requests):
        assert not isinstance(answer, Exception) or isinstance(answer, DomainError), answer


def in_workspaces(workspaces: Sequence[UUID], requests: Sequence[Request]) -> list[Request]:
    """Each of ``requests`` in each of ``workspaces``, one after the other."""
    return [
        replace(each, stream=replace(each.stream, workspace_id=id_), caller=replace(each.caller, workspace_id=id_))
        for each in requests
        for id_ in workspaces
    ]


def a_random_history(database: str, seed: int, commands: int, workspaces: Sequence[UUID] = (WORKSPACE,)) -> None:
    """A log of what is left of random commands after the rules have refused their part; some contacts are erased.

    In several ``workspaces`` nearly the same happens under the same ids, as where one file is imported into each.
    """
    chance, where = random.Random(seed), random.Random(seed)
    handler = CommandHandler(database, keys_of(database), cached_states=100)
    setup = in_workspaces(workspaces, setting_up(chance))
    assert not any(isinstance(answer, Exception) for answer in handler.handle(setup))
    at, batch = START, []
    for number in range(commands):
        at += timedelta(seconds=chance.randrange(-30, 300))
        here = [each for each in workspaces[1:] if where.random() < 0.8]
        batch += in_workspaces([*here, workspaces[0]], [some_request(chance, at)])
        if number in {commands // 2, commands * 3 // 4}:
            erased = 4 * number // commands - 2
            erasure = request(random.Random(number), CONTACTS[erased], EraseContact(), at)
            batch += in_workspaces(workspaces[erased:] or workspaces, [erasure])  # the second one not in all of them
        if chance.random() < 0.2 or number == commands - 1:
            handle(handler, batch)
            batch = []
    handler.close()
