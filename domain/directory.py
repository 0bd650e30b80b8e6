"""The directory: workspaces, sectors, agents with memberships, roles and access tokens; who is inside and may do what.

Invariant: an agent's sectors change only by joining and leaving, so that who could see what, when, can be replayed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar, assert_never
from uuid import UUID

from domain.attributes import Attribute
from domain.commands import (
    ChangeAgentRole,
    CreateSector,
    CreateWorkspace,
    DeactivateAgent,
    DeactivateSector,
    DefineRole,
    IssueToken,
    JoinSector,
    LeaveSector,
    RegisterAgent,
    RenameSector,
    RevokeToken,
    agent_of,
    role_id,
)
from domain.contact import Contact
from domain.errors import (
    AgentInactiveError,
    AgentNotFoundError,
    AlreadyExistsError,
    ContactAlreadyErasedError,
    ContactNotFoundError,
    InvalidCommandError,
    RoleBuiltInError,
    RoleNotFoundError,
    SectorInactiveError,
    SectorNotFoundError,
    TokenNotFoundError,
)
from domain.events import (
    Actor,
    ActorKind,
    AgentDeactivated,
    AgentJoinedSector,
    AgentLeftSector,
    AgentRegistered,
    AgentRoleChanged,
    Event,
    Presence,
    RoleDefined,
    SectorCreated,
    SectorDeactivated,
    SectorRenamed,
    TokenIssued,
    TokenNarrowed,
    TokenRevoked,
    WorkspaceCreated,
)
from domain.permissions import BUILT_IN_ROLES, Grants, Permission, Scope, within

if TYPE_CHECKING:
    from domain.conversation import Conversation

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Workspace:
    """A company's room."""

    slug: str
    name: str


@dataclass(frozen=True, slots=True)
class Sector:
    """A team."""

    name: str
    active: bool = True


@dataclass(frozen=True, slots=True)
class Agent:
    """A person inside; ``sectors`` in the order they were joined."""

    name: str
    role: str
    sectors: tuple[UUID, ...] = ()
    active: bool = True


@dataclass(frozen=True, slots=True)
class Role:
    """What a role of the workspace grants."""

    name: str
    grants: Mapping[Permission, Scope]


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, known by its hash."""

    name: str
    secret_sha256: str
    actor: Actor
    role: str
    expires_at: datetime | None
    revoked: bool = False
    grants: Grants | None = None
    """What it was narrowed to; None: it may do what its role may."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a command's rules may see of other aggregates: the streams it names, as they stand in the same step."""

    contacts: Mapping[UUID, Contact] = field(default_factory=dict)
    sectors: Mapping[UUID, Sector] = field(default_factory=dict)
    agents: Mapping[UUID, Agent] = field(default_factory=dict)
    roles: Mapping[UUID, Role] = field(default_factory=dict)
    attributes: Mapping[UUID, Attribute] = field(default_factory=dict)
    conversations: Mapping[UUID, "Conversation"] = field(default_factory=dict)
    presence: Mapping[UUID, Presence] | None = None
    """Who can be reached right now, absent meaning offline; None: not known, as for the past."""

    def contact(self, id_: UUID) -> Contact:
        """The contact, who must exist and not be erased."""
        contact = self.contacts.get(id_)
        if contact is None:
            raise ContactNotFoundError
        if contact.erased:
            raise ContactAlreadyErasedError
        return contact

    def sector(self, id_: UUID) -> Sector:
        """The sector, which must exist and be active."""
        sector = self.sectors.get(id_)
        if sector is None:
            raise SectorNotFoundError
        if not sector.active:
            raise SectorInactiveError
        return sector

    def agent(self, id_: UUID) -> Agent:
        """The agent, who must exist and be active."""
        agent = self.agents.get(id_)
        if agent is None:
            raise AgentNotFoundError
        if not agent.active:
            raise AgentInactiveError
        return agent

    def grants(self, role: str) -> Grants:
        """What the role grants, which must be built in or defined by the workspace."""
        if role in BUILT_IN_ROLES:
            return BUILT_IN_ROLES[role]
        own = self.roles.get(role_id(role))
        if own is None:
            raise RoleNotFoundError
        return own.grants


def decide_workspace(command: CreateWorkspace, state: Workspace | None) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    if state is None:
        return [WorkspaceCreated(slug=command.slug, name=command.name)]
    if (state.slug, state.name) == (command.slug, command.name):
        return []
    raise AlreadyExistsError


def evolve_workspace(_: Workspace | None, event: WorkspaceCreated) -> Workspace:
    """The workspace after ``event``."""
    return Workspace(slug=event.slug, name=event.name)


def decide_sector(command: CreateSector | RenameSector | DeactivateSector, state: Sector | None) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    if isinstance(command, CreateSector):
        if state is None:
            return [SectorCreated(name=command.name)]
        if state.active and state.name == command.name:
            return []
        raise AlreadyExistsError
    if state is None:
        raise SectorNotFoundError
    match command:
        case RenameSector():
            return [] if state.name == command.name else [SectorRenamed(before=state.name, after=command.name)]
        case DeactivateSector():
            return [SectorDeactivated()] if state.active else []
        case _:
            assert_never(command)


def evolve_sector(state: Sector | None, event: SectorCreated | SectorRenamed | SectorDeactivated) -> Sector:
    """The sector after ``event``."""
    match event:
        case SectorCreated():
            return Sector(name=event.name)
        case SectorRenamed():
            return replace(_existing(state), name=event.after)
        case SectorDeactivated():
            return replace(_existing(state), active=False)
        case _:
            assert_never(event)


AgentCommand = RegisterAgent | ChangeAgentRole | JoinSector | LeaveSector | DeactivateAgent
AgentEvent = AgentRegistered | AgentRoleChanged | AgentJoinedSector | AgentLeftSector | AgentDeactivated


def decide_agent(command: AgentCommand, state: Agent | None, known: Known) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    if isinstance(command, RegisterAgent):
        if state is None:
            return [AgentRegistered(name=command.name, role=command.role)]
        if (state.name, state.role, state.active) == (command.name, command.role, True):
            return []
        raise AlreadyExistsError
    if state is None:
        raise AgentNotFoundError
    match command:
        case ChangeAgentRole():
            return [] if state.role == command.role else [AgentRoleChanged(before=state.role, after=command.role)]
        case JoinSector():
            if command.sector_id in state.sectors:
                return []
            known.sector(command.sector_id)
            return [AgentJoinedSector(sector_id=command.sector_id)]
        case LeaveSector():
            return [AgentLeftSector(sector_id=command.sector_id)] if command.sector_id in state.sectors else []
        case DeactivateAgent():
            return [AgentDeactivated()] if state.active else []
        case _:
            assert_never(command)


def evolve_agent(state: Agent | None, event: AgentEvent) -> Agent:
    """The agent after ``event``."""
    match event:
        case AgentRegistered():
            return Agent(name=event.name, role=event.role)
        case AgentRoleChanged():
            return replace(_existing(state), role=event.after)
        case AgentJoinedSector():
            return replace(_existing(state), sectors=(*_existing(state).sectors, event.sector_id))
        case AgentLeftSector():
            left = tuple(sector for sector in _existing(state).sectors if sector != event.sector_id)
            return replace(_existing(state), sectors=left)
        case AgentDeactivated():
            return replace(_existing(state), active=False)
        case _:
            assert_never(event)


def decide_role(command: DefineRole, state: Role | None) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    if command.name in BUILT_IN_ROLES:
        raise RoleBuiltInError
    if state is not None and (state.name, state.grants) == (command.name, command.grants):
        return []
    return [RoleDefined(name=command.name, grants=command.grants)]


def evolve_role(_: Role | None, event: RoleDefined) -> Role:
    """The role after ``event``."""
    return Role(name=event.name, grants=event.grants)


def decide_token(command: IssueToken | RevokeToken, state: Token | None, known: Known) -> list[Event]:
    """The events that ``command`` causes; none where it is already so."""
    match command:
        case IssueToken():
            if state is None:
                if command.expires_at and command.asked_at and command.expires_at <= command.asked_at:
                    raise InvalidCommandError("'expires_at' has passed: the token would never work.")
                if command.actor.kind is ActorKind.AGENT:
                    agent = known.agent(agent_of(command.actor) or UUID(int=0))
                    if command.role != agent.role:
                        raise InvalidCommandError(f"An agent's token has the agent's role, which is '{agent.role}'.")
                if command.grants is not None and not within(command.grants, known.grants(command.role)):
                    raise InvalidCommandError("A token may do less than its role grants, not more.")
                narrowed = [TokenNarrowed(grants=command.grants)] if command.grants is not None else []
                return [_issued(command), *narrowed]
            if state == replace(evolve_token(None, _issued(command)), grants=command.grants):
                return []
            raise AlreadyExistsError
        case RevokeToken():
            if state is None:
                raise TokenNotFoundError
            return [] if state.revoked else [TokenRevoked(reason=command.reason)]
        case _:
            assert_never(command)


def _issued(command: IssueToken) -> TokenIssued:
    return TokenIssued(**{name: value for name, value in command if name not in {"grants", "asked_at"}})


def evolve_token(state: Token | None, event: TokenIssued | TokenNarrowed | TokenRevoked) -> Token:
    """The token after ``event``."""
    match event:
        case TokenIssued():
            return Token(
                name=event.name,
                secret_sha256=event.secret_sha256,
                actor=event.actor,
                role=event.role,
                expires_at=event.expires_at,
            )
        case TokenNarrowed():
            return replace(_existing(state), grants=event.grants)
        case TokenRevoked():
            return replace(_existing(state), revoked=True)
        case _:
            assert_never(event)


def _existing(state: State | None) -> State:
    assert state is not None, "the log holds an event before the one that creates its stream"
    return state
