"""The sentence that unit tests are written in: ``given(events).when(command).then(events or a refusal's code)``.

Invariant: a test says nothing of who asks unless that is its subject; the caller here may do everything.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

import pytest

from domain.commands import Command
from domain.contact import Contact
from domain.decider import DECIDERS, State, handle
from domain.directory import Agent, Known, Sector
from domain.errors import DomainError
from domain.events import Actor, ActorKind, ContactDetails, Event, Presence
from domain.permissions import Caller, Permission, Scope

SALES, SUPPORT, CLOSED = UUID(int=0x51), UUID(int=0x52), UUID(int=0x53)
ANA, BIA, CAIO, GONE = UUID(int=0xA1), UUID(int=0xA2), UUID(int=0xA3), UUID(int=0xA4)
MARIA, JOAO, ERASED = UUID(int=0xC1), UUID(int=0xC2), UUID(int=0xC3)

EVERYTHING = Caller(
    workspace_id=UUID(int=1),
    actor=Actor(kind=ActorKind.SYSTEM, id="test"),
    grants=dict.fromkeys(Permission, Scope.ALL),
)
WORLD = Known(
    contacts={
        MARIA: Contact(id=MARIA, details=ContactDetails(name="Maria")),
        JOAO: Contact(id=JOAO, details=ContactDetails(name="João")),
        ERASED: Contact(id=ERASED, details=ContactDetails(), erased=True),
    },
    sectors={SALES: Sector(name="Sales"), SUPPORT: Sector(name="Support"), CLOSED: Sector("Closed", active=False)},
    agents={
        ANA: Agent(name="Ana", role="agent", sectors=(SUPPORT, SALES)),
        BIA: Agent(name="Bia", role="agent", sectors=(SALES,)),
        CAIO: Agent(name="Caio", role="agent"),
        GONE: Agent(name="Gone", role="agent", sectors=(SUPPORT,), active=False),
    },
    presence={ANA: Presence.ONLINE, BIA: Presence.AWAY},
)


@dataclass(frozen=True)
class Outcome:
    """What came of a command: events and the state after them, or the code of a refusal."""

    events: list[Event] = field(default_factory=list)
    state: State | None = None
    refusal: str | None = None

    def then(self, *expected: Event | str) -> "Outcome":
        """Exactly these events; a single string: refused with that code; nothing: already so."""
        if len(expected) == 1 and isinstance(expected[0], str):
            assert (self.refusal, self.events) == (expected[0], [])
        else:
            assert (self.refusal, self.events) == (None, list(expected))
        return self


@dataclass(frozen=True)
class Given:
    """A history that has happened, in a world."""

    events: tuple[Event, ...]
    known: Known

    def when(self, command: Command, caller: Caller = EVERYTHING) -> Outcome:
        """What comes of ``command`` after the history."""
        decider = DECIDERS[command.STREAM]
        state = decider.fold(self.events)
        try:
            events = handle(command, state, self.known, caller)
        except DomainError as refusal:
            return Outcome(state=state, refusal=refusal.code)
        return Outcome(events=events, state=decider.fold(events, state))


@pytest.fixture
def given() -> Callable[..., Given]:
    """Start a sentence with what has happened; ``known`` replaces the usual world."""

    def happened(*events: Event, known: Known = WORLD) -> Given:
        return Given(events, known)

    return happened


@pytest.fixture
def world() -> Known:
    """The usual sectors, agents and contacts."""
    return WORLD
