"""Laws that hold for any history, found wanting by Hypothesis if they do not.

Invariant: strategies are made from the classes themselves, so that a new event, command or state is tested from the
moment it exists; what they cannot make is an error, never left out.
"""

import re
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import annotated_types
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pydantic import AwareDatetime, BaseModel, HttpUrl, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from domain import commands
from domain.commands import (
    Assume,
    Command,
    CreateSector,
    DefineRole,
    Finalize,
    FinalizeAutomatically,
    HandOffFromBot,
    HandOffToBot,
    IssueToken,
    MarkPending,
    OpenConversation,
    ReceiveMessage,
    RegisterAgent,
    RegisterContact,
    Reopen,
    SendMessage,
    Transfer,
)
from domain.contact import Contact
from domain.conversation import Conversation
from domain.decider import DECIDERS, State, handle
from domain.directory import Agent, Known, Sector
from domain.envelope import StreamType
from domain.errors import DomainError
from domain.events import (
    EVENTS,
    Actor,
    ActorKind,
    AttributeTarget,
    AttributeType,
    ContactDetails,
    ConversationReopened,
    Event,
    FinalizationCause,
    Owner,
    Presence,
    Status,
    Surface,
    ViewContents,
)
from domain.permissions import Caller, Permission, Scope

Class = TypeVar("Class")


def below(kind: type[Class]) -> Iterator[type[Class]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from below(sub)


COMMANDS = [kind for kind in below(Command) if not kind.__subclasses__() and kind.__module__ == commands.__name__]

# Strategies from types


def _text(pattern: str | None, shortest: int, longest: int | None) -> st.SearchStrategy[str]:
    alphabet = st.characters(codec="utf-8", exclude_characters="\x00")
    if pattern in {None, r"^[^\x00]*$"}:
        return st.text(alphabet, min_size=shortest, max_size=min(longest or 40, 40))
    # Python and Rust differ on what a letter of another script is, and agree on spaces.
    flags = re.ASCII if r"\w" in str(pattern) else re.NOFLAG
    made = st.from_regex(re.compile(str(pattern), flags), fullmatch=True, alphabet=alphabet)
    return made.filter(lambda text: shortest <= len(text) <= (longest or len(text)))


OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def _moments() -> st.SearchStrategy[datetime]:
    return st.datetimes(timezones=st.one_of(st.none(), OFFSETS))


def _urls() -> st.SearchStrategy[HttpUrl]:
    path = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
    return st.builds("{}://{}.example/{}".format, st.sampled_from(["http", "https"]), st.sampled_from("ab"), path).map(
        HttpUrl
    )


class Made:
    """Strategies for types; ``few`` maps a type, or the name of a field, to a small choice that makes values meet."""

    def __init__(self, few: Mapping[Any, st.SearchStrategy[Any]] | None = None) -> None:
        self.few = few or {}

    def of(self, kind: Any, metadata: Sequence[Any] = (), name: str = "") -> st.SearchStrategy[Any]:
        """Values of ``kind``, a class or any annotation, within the limits that ``metadata`` sets."""
        chosen = self._chosen(kind, name)
        if chosen is not None:
            return chosen
        origin, args = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self.of(args[0], [*metadata, *args[1:]], name)
        if origin in {Union, types.UnionType}:
            return st.one_of([self.of(arg, (), name) for arg in args])
        if origin is Literal:
            return st.sampled_from(args)
        if origin in {tuple, list}:
            some = st.lists(self.of(args[0]), max_size=3)
            return some.map(tuple) if origin is tuple else some
        if origin in {dict, Mapping}:
            return st.dictionaries(self.of(args[0]), self.of(args[1]), max_size=3)
        return self._plain(kind, _limits(metadata))

    def _chosen(self, kind: Any, name: str) -> st.SearchStrategy[Any] | None:
        if name in self.few:
            return self.few[name]
        return self.few.get(kind) if isinstance(kind, type) else None

    def _plain(self, kind: Any, limits: Mapping[str, Any]) -> st.SearchStrategy[Any]:
        if kind in PLAIN:
            return PLAIN[kind]
        if kind is str:
            return _text(limits.get("pattern"), limits.get("min_length", 0), limits.get("max_length"))
        if kind is int:
            return st.integers(min_value=limits.get("ge"), max_value=limits.get("le"))
        if issubclass(kind, Enum):
            return st.sampled_from(kind)
        if issubclass(kind, BaseModel):
            parts = {name: self.of(field.annotation, field.metadata, name) for name, field in kind.model_fields.items()}
            return st.fixed_dictionaries(parts).map(lambda values: kind(**values))
        if not (isinstance(kind, type) and is_dataclass(kind)):
            msg = f"no strategy for {kind}: add one"
            raise TypeError(msg)
        hints = get_type_hints(kind, include_extras=True)
        parts = {field.name: self.of(hints[field.name], (), field.name) for field in fields(kind)}
        return st.fixed_dictionaries(parts).map(lambda values: kind(**values))


PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    float: st.floats(allow_nan=False, allow_infinity=False),
    UUID: st.uuids(),
    datetime: _moments(),
    AwareDatetime: st.datetimes(timezones=OFFSETS),
    HttpUrl: _urls(),
}


def _limits(metadata: Sequence[Any]) -> dict[str, Any]:
    """Pydantic's constraints as a dictionary; an unknown constraint does no harm, the class itself will refuse."""
    limits: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, FieldInfo):
            limits |= _limits(item.metadata)
        elif isinstance(item, annotated_types.GroupedMetadata):
            limits |= _limits(list(item))
        else:
            names = ("pattern", "min_length", "max_length", "ge", "le")
            limits |= {name: getattr(item, name) for name in names if getattr(item, name, None) is not None}
    return limits


ANYTHING = Made()

# A small world, so that commands meet: some are there, one has gone, one is unknown

CRM = Actor(kind=ActorKind.INTEGRATION, id="crm")
FIRST, SECOND, GONE, UNKNOWN = IDS = [UUID(int=n) for n in range(1, 5)]
WORLD = Known(
    contacts={
        FIRST: Contact(FIRST, ContactDetails()),
        SECOND: Contact(SECOND, ContactDetails()),
        GONE: Contact(GONE, ContactDetails(), erased=True),
    },
    sectors={FIRST: Sector("First"), SECOND: Sector("Second"), GONE: Sector("Gone", active=False)},
    agents={
        FIRST: Agent("Ana", "agent", sectors=(FIRST, SECOND)),
        SECOND: Agent("Bia", "agent", sectors=(SECOND,)),
        GONE: Agent("Gone", "agent", sectors=(FIRST,), active=False),
    },
    presence={FIRST: Presence.ONLINE},
)
ANYBODY = Caller(
    workspace_id=UUID(int=1),
    actor=Actor(kind=ActorKind.SYSTEM, id="test"),
    grants=dict.fromkeys(Permission, Scope.ALL),
)
BOTS = st.sampled_from(["helper", "seller"])
FEW = Made(
    {
        UUID: st.sampled_from([FIRST, FIRST, FIRST, SECOND, SECOND, GONE, UNKNOWN]),
        Actor: st.one_of(
            st.builds(Actor, kind=st.just(ActorKind.AGENT), id=st.sampled_from([str(FIRST), str(SECOND)])),
            st.builds(Actor, kind=st.just(ActorKind.BOT), id=BOTS),
        ),
        ContactDetails: st.builds(ContactDetails, name=st.sampled_from(["Maria", "João", None])),
        "bot": BOTS,
        "label": st.sampled_from(["a", "b"]),
        "key": st.sampled_from(["a", "b"]),
        "channel": st.just("phone"),
        "protocol": st.sampled_from(["1", "2"]),
        "owner": st.just(ANYBODY.actor),  # one keeps views of one's own only
        "role": st.sampled_from(["agent", "admin"]),
        "slug": st.sampled_from(["one", "two"]),
        "name": st.sampled_from(["one", "two"]),
        "secret_sha256": st.sampled_from(["a" * 64, "b" * 64]),
        "value": st.one_of(st.none(), st.booleans(), st.integers(0, 2), st.floats(0, 2), st.sampled_from(["", "x"])),
    }
)


@st.composite
def asked(draw: st.DrawFn, kind: type[Command]) -> Command:
    """A command of ``kind`` that could come in; one that contradicts itself never gets this far."""
    parts = {name: FEW.of(field.annotation, field.metadata, name) for name, field in kind.model_fields.items()}
    values = draw(st.fixed_dictionaries(parts))
    try:
        return kind(**values)
    except ValidationError:
        reject()


def answered(command: Command, state: State | None) -> list[Event] | None:
    """The events that come of it; None: refused."""
    try:
        return handle(command, state, WORLD, ANYBODY)
    except DomainError:
        return None


_OPEN = OpenConversation(protocol="1", channel="phone", contact_id=FIRST, sector_id=FIRST)
_REGISTER = RegisterAgent(name="one")
BEGINNINGS: dict[StreamType, list[list[Command]]] = {
    StreamType.CONVERSATION: [
        [_OPEN],
        [_OPEN, Assume(agent_id=FIRST), commands.AddLabel(label="a")],
        [_OPEN, HandOffToBot(bot="helper")],
        [_OPEN, Finalize(surface=Surface.LISTING)],
    ],
    StreamType.CONTACT: [[RegisterContact(contact_id=FIRST, details=ContactDetails(name="Maria"))]],
    StreamType.WORKSPACE: [],
    StreamType.SECTOR: [[CreateSector(name="one")]],
    StreamType.AGENT: [[_REGISTER], [_REGISTER, commands.JoinSector(sector_id=FIRST)]],
    StreamType.ROLE: [[DefineRole(name="one", grants={})]],
    StreamType.ATTRIBUTE: [
        [
            commands.DefineAttribute(
                target=AttributeTarget.CONTACT, key="a", type=AttributeType.LIST, label="one", options=("x", "y")
            )
        ]
    ],
    StreamType.VIEW: [
        [
            commands.SaveView(
                owner=ANYBODY.actor, contents=ViewContents(name="one", filter="{}"), sort="opened_at", shared=True
            )
        ]
    ],
    StreamType.IDENTITY: [
        [
            commands.LinkIdentity(
                issuer="https://login.example.com", subject="one", agent_id=FIRST, role=WORLD.agent(FIRST).role
            )
        ]
    ],
    StreamType.TOKEN: [
        [
            IssueToken(
                name="one", secret_sha256="a" * 64, actor=Actor(kind=ActorKind.INTEGRATION, id="crm"), role="agent"
            )
        ]
    ],
}
"""Ways in which a stream may begin, so that walks get somewhere; one that begins with nothing is always among them."""


def of(stream: StreamType) -> list[type[Command]]:
    return [kind for kind in COMMANDS if kind.STREAM is stream]


def walks(stream: StreamType) -> st.SearchStrategy[list[Command]]:
    """Commands in a row, of which some will be refused."""
    onward = st.lists(st.sampled_from(of(stream)).flatmap(asked), min_size=1, max_size=14)
    return st.tuples(st.sampled_from([*BEGINNINGS[stream], []]), onward).map(lambda parts: parts[0] + parts[1])


def histories(stream: StreamType) -> st.SearchStrategy[list[Event]]:
    """Events of a stream as accepted commands made them."""
    return walks(stream).map(lambda walk: _accepted(stream, walk))


def _accepted(stream: StreamType, walk: list[Command]) -> list[Event]:
    events, state = list[Event](), None
    for command in walk:
        new = answered(command, state) or []
        state = DECIDERS[stream].fold(new, state)
        events += new
    return events


SOME = settings(max_examples=20, deadline=None)
MORE = settings(max_examples=50, deadline=None)


# The laws


@pytest.mark.parametrize("stream", StreamType)
def test_a_repeated_command_adds_nothing(stream: StreamType) -> None:
    changed = Counter[type[Command]]()
    fold = DECIDERS[stream].fold

    def after_twice(command: Command, state: State | None) -> State | None:
        events = answered(command, state)
        if events is None:
            return state
        state = fold(events, state)
        changed[type(command)] += bool(events)
        assert answered(command, state) == [], command
        return state

    @MORE
    @given(walk=walks(stream), one_of_each=st.tuples(*map(asked, of(stream))))
    def law(walk: list[Command], one_of_each: tuple[Command, ...]) -> None:
        state = None
        for command in walk:
            state = after_twice(command, state)
        for command in one_of_each:
            after_twice(command, state)

    def untested() -> list[str]:
        return [kind.__name__ for kind in of(stream) if not changed[kind]]

    law()
    for _ in range(10):  # a command that few walks give anything to do waits for its turn
        if untested():
            law()
    assert untested() == [], "no walk let these change anything, so that the law was not tested for them"


@pytest.mark.parametrize("stream", StreamType)
def test_deciding_is_pure_and_a_refusal_changes_nothing(stream: StreamType) -> None:
    fold = DECIDERS[stream].fold

    @SOME
    @given(walk=walks(stream))
    def law(walk: list[Command]) -> None:
        *before, command = walk
        history = _accepted(stream, before)
        state = fold(history)
        assert answered(command, state) == answered(command, state)
        assert state == fold(history)

    law()


@MORE
@given(history=histories(StreamType.CONVERSATION))
def test_after_any_history_status_and_owner_agree(history: list[Event]) -> None:
    state: Conversation | None = None
    episode = 1
    for event in history:
        state = DECIDERS[StreamType.CONVERSATION].evolve(state, event)
        episode += isinstance(event, ConversationReopened)
        assert state is not None
        match state.status:
            case Status.WITH_BOT:
                assert state.owner.bot is not None
                assert state.owner.agent_id is None
            case Status.PENDING:
                assert state.owner == Owner(sector_id=state.owner.sector_id)
            case Status.IN_PROGRESS:
                assert state.owner.agent_id is not None
                assert state.owner.bot is None
            case Status.FINALIZED:
                assert state.owner.agent_id is None or state.owner.bot is None
        assert state.labels == tuple(sorted(set(state.labels)))
        assert state.episode == episode


@SOME
@given(history=histories(StreamType.CONVERSATION), cut=st.integers(0, 20))
def test_a_fold_may_stop_anywhere_and_go_on_from_there(history: list[Event], cut: int) -> None:
    fold = DECIDERS[StreamType.CONVERSATION].fold
    assert fold(history[cut:], fold(history[:cut])) == fold(history)


@pytest.mark.parametrize("event_class", list(below(Event)), ids=lambda kind: kind.__name__)
def test_every_event_comes_back_from_json_as_it_was(event_class: type[Event]) -> None:
    assert EVENTS[event_class.TOPIC] is event_class

    @SOME
    @given(event=ANYTHING.of(event_class))
    def law(event: Event) -> None:
        stored = event.model_dump_json()
        again = event_class.model_validate_json(stored)
        assert again == event
        assert again.model_dump_json() == stored
        assert _kinds(again.model_dump()) == _kinds(event.model_dump())

    law()


@pytest.mark.parametrize("kind", COMMANDS, ids=lambda kind: kind.__name__)
def test_every_command_comes_back_from_json_as_it_was(kind: type[Command]) -> None:
    @settings(SOME, max_examples=10)
    @given(command=asked(kind))
    def law(command: Command) -> None:
        assert kind.model_validate_json(command.model_dump_json()) == command

    law()


@pytest.mark.parametrize("stream", StreamType)
def test_every_state_comes_back_from_a_snapshot_as_it_was(stream: StreamType) -> None:
    adapter: TypeAdapter[State] = TypeAdapter(DECIDERS[stream].state)

    @SOME
    @given(state=st.one_of(ANYTHING.of(DECIDERS[stream].state), histories(stream).map(DECIDERS[stream].fold)))
    def law(state: State | None) -> None:
        if state is None:
            return
        stored = adapter.dump_json(state)
        again = adapter.validate_json(stored)
        assert again == state
        assert adapter.dump_json(again) == stored
        assert _kinds(adapter.dump_python(again)) == _kinds(adapter.dump_python(state))

    law()


def _kinds(value: Any) -> Any:
    """The shape of ``value`` with a type for every leaf, for Python holds 1, 1.0 and True to be equal."""
    if isinstance(value, Mapping):
        return {key: _kinds(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_kinds(item) for item in value]
    return datetime if isinstance(value, datetime) else type(value)


# A toy of the lifecycle, written from the table of the specification

SECTORS = st.sampled_from([FIRST, SECOND])
AGENTS = st.sampled_from([FIRST, SECOND])
MAYBE_SECTORS = st.one_of(st.none(), SECTORS)
ALREADY_SO = "already so"


class AToyConversation(RuleBasedStateMachine):
    """A conversation beside a toy: a status, and a bot, an agent and a sector that may be somebody or nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Conversation | None = None
        self.toy: dict[str, Any] = {}
        self.messages = 0

    def does(self, command: Command, outcome: str, **toy: Any) -> None:
        """``command`` gives an event of this name, nothing, or this refusal; the toy is told what changes."""
        try:
            events = handle(command, self.state, WORLD, ANYBODY)
            said = type(events[-1]).__name__ if events else ALREADY_SO
        except DomainError as refusal:
            events, said = [], refusal.code
        assert said == outcome
        self.state = DECIDERS[StreamType.CONVERSATION].fold(events, self.state)
        self.toy |= toy

    @property
    def status(self) -> str:
        return str(self.toy["status"])

    @initialize(sector=MAYBE_SECTORS, for_themself=st.booleans())
    def open(self, sector: UUID | None, for_themself: bool) -> None:
        agent = FIRST if for_themself else None
        status = "in_progress" if for_themself else "pending"
        opening = OpenConversation(protocol="1", channel="phone", contact_id=FIRST, sector_id=sector, agent_id=agent)
        self.does(opening, "ConversationOpened", status=status, sector=sector, agent=agent, bot=None, episode=1)
        self.does(opening, ALREADY_SO)

    @rule(bot=BOTS)
    def hand_off_to_bot(self, bot: str) -> None:
        command = HandOffToBot(bot=bot)
        match self.status:
            case "finalized":
                self.does(command, "conversation-already-finalized")
            case "with_bot":
                self.does(command, ALREADY_SO if bot == self.toy["bot"] else "conversation-with-bot")
            case _:
                self.does(command, "ConversationHandedOffToBot", status="with_bot", bot=bot, agent=None)

    @rule(sector=MAYBE_SECTORS)
    def hand_off_from_bot(self, sector: UUID | None) -> None:
        command, there = HandOffFromBot(sector_id=sector), sector or self.toy["sector"]
        match self.status:
            case "finalized":
                self.does(command, "conversation-already-finalized")
            case "with_bot":
                self.does(command, "ConversationHandedOffByBot", status="pending", bot=None, sector=there)
            case "pending" if there == self.toy["sector"]:
                self.does(command, ALREADY_SO)
            case _:
                self.does(command, "conversation-not-with-bot")

    @rule(sector=MAYBE_SECTORS)
    def mark_pending(self, sector: UUID | None) -> None:
        command, there = MarkPending(sector_id=sector), sector or self.toy["sector"]
        match self.status:
            case "finalized":
                self.does(command, "conversation-already-finalized")
            case "with_bot":
                self.does(command, "conversation-with-bot")
            case "pending":
                self.does(command, ALREADY_SO if there == self.toy["sector"] else "conversation-already-pending")
            case _:
                self.does(command, "ConversationMarkedPending", status="pending", agent=None, sector=there)

    @rule(agent=AGENTS)
    def assume(self, agent: UUID) -> None:
        command = Assume(agent_id=agent)
        match self.status:
            case "finalized":
                self.does(command, "conversation-already-finalized")
            case "in_progress":
                self.does(command, ALREADY_SO if agent == self.toy["agent"] else "conversation-already-assumed")
            case _:
                self.does(command, "ConversationAssumed", status="in_progress", agent=agent, bot=None)

    @rule(sector=SECTORS)
    def transfer_to_sector(self, sector: UUID) -> None:
        command = Transfer(sector_id=sector)
        if self.status == "finalized":
            self.does(command, "conversation-already-finalized")
        elif self.status == "pending" and self.toy["sector"] == sector:
            self.does(command, ALREADY_SO)
        else:
            self.does(command, "ConversationTransferred", status="pending", sector=sector, agent=None, bot=None)

    @rule(sector=SECTORS, agent=AGENTS)
    def transfer_to_agent_in_sector(self, sector: UUID, agent: UUID) -> None:
        command, asked_for = Transfer(sector_id=sector, agent_id=agent), {"sector": sector, "agent": agent}
        if self.status == "finalized":
            self.does(command, "conversation-already-finalized")
        elif self.status == "in_progress" and asked_for.items() <= self.toy.items():
            self.does(command, ALREADY_SO)
        elif (sector, agent) == (FIRST, SECOND):
            self.does(command, "agent-not-in-sector")
        else:
            self.does(command, "ConversationTransferred", status="in_progress", bot=None, **asked_for)

    @rule(surface=st.sampled_from([Surface.INBOX, Surface.LISTING]))
    def finalize(self, surface: Literal[Surface.INBOX, Surface.LISTING]) -> None:
        where = f"ConversationFinalizedFrom{surface.value.capitalize()}"
        outcome = ALREADY_SO if self.status == "finalized" else where
        self.does(Finalize(surface=surface), outcome, status="finalized")

    @rule(cause=st.sampled_from(FinalizationCause))
    def finalize_automatically(self, cause: FinalizationCause) -> None:
        outcome = ALREADY_SO if self.status == "finalized" else "ConversationFinalizedAutomatically"
        self.does(FinalizeAutomatically(cause=cause), outcome, status="finalized")

    @rule()
    def reopen_for_the_queue(self) -> None:
        if self.status == "finalized":
            episode = self.toy["episode"] + 1
            self.does(Reopen(), "ConversationReopened", status="pending", agent=None, bot=None, episode=episode)
        else:
            self.does(Reopen(), ALREADY_SO)

    @rule(agent=AGENTS)
    def reopen_for_oneself(self, agent: UUID) -> None:
        if self.status == "finalized":
            new = {"status": "in_progress", "agent": agent, "bot": None, "episode": self.toy["episode"] + 1}
            self.does(Reopen(agent_id=agent), "ConversationReopened", **new)

    @rule()
    def receive_message(self) -> None:
        self.messages += 1
        new = {"status": "pending", "agent": None, "bot": None, "episode": self.toy["episode"] + 1}
        message = ReceiveMessage(message_id=UUID(int=self.messages), text="hello")
        self.does(message, "MessageReceived", **(new if self.status == "finalized" else {}))
        self.does(message, ALREADY_SO)

    @rule(bot=BOTS)
    def bot_writes(self, bot: str) -> None:
        self.messages += 1
        author = Actor(kind=ActorKind.BOT, id=bot)
        in_charge = self.toy["status"] == "with_bot" and self.toy["bot"] == bot
        self.does(
            SendMessage(message_id=UUID(int=self.messages), author=author, text="hello"),
            "MessageSent" if in_charge else "bot-not-in-charge",
        )

    @invariant()
    def is_where_the_toy_is(self) -> None:
        if self.state is None:
            return
        owner = Owner(sector_id=self.toy["sector"], agent_id=self.toy["agent"], bot=self.toy["bot"])
        assert (self.state.status.value, self.state.owner) == (self.toy["status"], owner)
        assert self.state.episode == self.toy["episode"]


AToyConversation.TestCase.settings = settings(max_examples=70, stateful_step_count=30, deadline=None)
TestAConversationDoesAsItsToyDoes = AToyConversation.TestCase
