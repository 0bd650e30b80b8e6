"""Which agent of a workspace somebody is whom an outside issuer (OpenID Connect) has signed in.

Invariant: an identity is one agent's at most: its stream's id is made of issuer and subject.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, assert_never
from uuid import UUID

from domain.commands import LinkIdentity, UnlinkIdentity
from domain.errors import IdentityLinkedError, IdentityNotFoundError, InvalidCommandError
from domain.events import Event, IdentityLinked, IdentityUnlinked

if TYPE_CHECKING:
    from domain.directory import Known


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody as their issuer knows them; ``agent_id`` None: nobody here any more."""

    issuer: str
    subject: str
    agent_id: UUID | None


def decide(command: LinkIdentity | UnlinkIdentity, state: Identity | None, known: "Known") -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    match command:
        case LinkIdentity():
            agent = known.agent(command.agent_id)
            if command.role != agent.role:
                raise InvalidCommandError(f"An identity gets the agent's role, which is '{agent.role}'.")
            if state is None or state.agent_id is None:
                linked = IdentityLinked(issuer=command.issuer, subject=command.subject, agent_id=command.agent_id)
                return [linked]
            if state.agent_id != command.agent_id:
                raise IdentityLinkedError
            return []
        case UnlinkIdentity():
            if state is None:
                raise IdentityNotFoundError
            return [] if state.agent_id is None else [IdentityUnlinked(agent_id=state.agent_id)]
        case _:
            assert_never(command)


def evolve(state: Identity | None, event: IdentityLinked | IdentityUnlinked) -> Identity:
    """The identity after ``event``."""
    match event:
        case IdentityLinked():
            return Identity(issuer=event.issuer, subject=event.subject, agent_id=event.agent_id)
        case IdentityUnlinked():
            assert state is not None, "the log holds an event before the one that creates its stream"
            return replace(state, agent_id=None)
        case _:
            assert_never(event)
