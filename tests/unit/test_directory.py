"""Workspaces, sectors, agents with memberships, roles and access tokens: every command in every state."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.commands import (
    ChangeAgentRole,
    Command,
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
    RoleDefined,
    SectorCreated,
    SectorDeactivated,
    SectorRenamed,
    TokenIssued,
    TokenRevoked,
    WorkspaceCreated,
)
from domain.permissions import Permission, Scope

Given = Callable[..., Any]

SALES, SUPPORT, CLOSED, NOWHERE = UUID(int=0x51), UUID(int=0x52), UUID(int=0x53), UUID(int=0x5F)

workspace = WorkspaceCreated(slug="acme", name="Acme")
sector = SectorCreated(name="Sales")
sector_closed = SectorDeactivated()
agent = AgentRegistered(name="Ana", role="agent")
joined = AgentJoinedSector(sector_id=SALES)
agent_left = AgentDeactivated()
role = RoleDefined(name="night-shift", grants={Permission.VIEW: Scope.SECTOR})
TOKEN: dict[str, Any] = {
    "name": "crm",
    "secret_sha256": "a" * 64,
    "actor": Actor(kind=ActorKind.INTEGRATION, id="crm"),
    "role": "integration",
    "expires_at": datetime(2030, 1, 1, tzinfo=UTC),
}
token = TokenIssued(**TOKEN)
revoked = TokenRevoked(reason="leaked")

History = tuple[Event, ...]
NOTHING: History = ()

ANSWERS: list[tuple[History, Command, History | str]] = [
    (NOTHING, IssueToken(**TOKEN, asked_at=TOKEN["expires_at"] - timedelta(seconds=1)), (token,)),
    (NOTHING, IssueToken(**TOKEN, asked_at=TOKEN["expires_at"]), "invalid-command"),
    ((token,), IssueToken(**TOKEN, asked_at=TOKEN["expires_at"]), NOTHING),
    (NOTHING, CreateWorkspace(slug="acme", name="Acme"), (workspace,)),
    ((workspace,), CreateWorkspace(slug="acme", name="Acme"), NOTHING),
    ((workspace,), CreateWorkspace(slug="acme", name="Other"), "already-exists"),
    ((workspace,), CreateWorkspace(slug="other", name="Acme"), "already-exists"),
    (NOTHING, CreateSector(name="Sales"), (sector,)),
    ((sector,), CreateSector(name="Sales"), NOTHING),
    ((sector,), CreateSector(name="Support"), "already-exists"),
    (NOTHING, RenameSector(name="Vendas"), "sector-not-found"),
    ((sector,), RenameSector(name="Vendas"), (SectorRenamed(before="Sales", after="Vendas"),)),
    ((sector,), RenameSector(name="Sales"), NOTHING),
    (NOTHING, DeactivateSector(), "sector-not-found"),
    ((sector,), DeactivateSector(), (sector_closed,)),
    ((sector, sector_closed), DeactivateSector(), NOTHING),
    (NOTHING, RegisterAgent(name="Ana", role="agent"), (agent,)),
    ((agent,), RegisterAgent(name="Ana", role="agent"), NOTHING),
    ((agent,), RegisterAgent(name="Bia", role="agent"), "already-exists"),
    ((agent,), RegisterAgent(name="Ana", role="admin"), "already-exists"),
    (NOTHING, ChangeAgentRole(role="supervisor"), "agent-not-found"),
    ((agent,), ChangeAgentRole(role="supervisor"), (AgentRoleChanged(before="agent", after="supervisor"),)),
    ((agent,), ChangeAgentRole(role="agent"), NOTHING),
    (NOTHING, JoinSector(sector_id=SALES), "agent-not-found"),
    ((agent,), JoinSector(sector_id=SALES), (joined,)),
    ((agent, joined), JoinSector(sector_id=SALES), NOTHING),
    ((agent, joined), JoinSector(sector_id=SUPPORT), (AgentJoinedSector(sector_id=SUPPORT),)),
    ((agent,), JoinSector(sector_id=NOWHERE), "sector-not-found"),
    ((agent,), JoinSector(sector_id=CLOSED), "sector-inactive"),
    ((agent, AgentJoinedSector(sector_id=CLOSED)), JoinSector(sector_id=CLOSED), NOTHING),
    (NOTHING, LeaveSector(sector_id=SALES), "agent-not-found"),
    ((agent, joined), LeaveSector(sector_id=SALES), (AgentLeftSector(sector_id=SALES),)),
    ((agent, joined), LeaveSector(sector_id=SUPPORT), NOTHING),
    ((agent, AgentJoinedSector(sector_id=CLOSED)), LeaveSector(sector_id=CLOSED), (AgentLeftSector(sector_id=CLOSED),)),
    (NOTHING, DeactivateAgent(), "agent-not-found"),
    ((agent,), DeactivateAgent(), (agent_left,)),
    ((agent, agent_left), DeactivateAgent(), NOTHING),
    (NOTHING, DefineRole(name="night-shift", grants={Permission.VIEW: Scope.SECTOR}), (role,)),
    ((role,), DefineRole(name="night-shift", grants={Permission.VIEW: Scope.SECTOR}), NOTHING),
    (
        (role,),
        DefineRole(name="night-shift", grants={Permission.VIEW: Scope.ALL}),
        (RoleDefined(name="night-shift", grants={Permission.VIEW: Scope.ALL}),),
    ),
    ((role,), DefineRole(name="night-shift", grants={}), (RoleDefined(name="night-shift", grants={}),)),
    (NOTHING, IssueToken(**TOKEN), (token,)),
    ((token,), IssueToken(**TOKEN), NOTHING),
    ((token,), IssueToken(**TOKEN | {"secret_sha256": "b" * 64}), "already-exists"),
    ((token,), IssueToken(**TOKEN | {"role": "admin"}), "already-exists"),
    ((token,), IssueToken(**TOKEN | {"name": "erp"}), "already-exists"),
    ((token,), IssueToken(**TOKEN | {"expires_at": None}), "already-exists"),
    ((token,), IssueToken(**TOKEN | {"actor": Actor(kind=ActorKind.BOT, id="crm")}), "already-exists"),
    ((token, revoked), IssueToken(**TOKEN), "already-exists"),
    (NOTHING, RevokeToken(), "token-not-found"),
    ((token,), RevokeToken(reason="leaked"), (revoked,)),
    ((token, revoked), RevokeToken(reason="again"), NOTHING),
]


def _sentence(answer: tuple[History, Command, History | str]) -> str:
    happened, command, _ = answer
    return f"{'+'.join(type(event).__name__ for event in happened) or 'nothing'}-then-{type(command).__name__}"


@pytest.mark.parametrize(("happened", "command", "answer"), ANSWERS, ids=map(_sentence, ANSWERS))
def test_each_directory_command_is_answered_with_its_event_nothing_or_a_refusal(
    given: Given, happened: History, command: Command, answer: History | str
) -> None:
    outcome = given(*happened).when(command)
    if isinstance(answer, str):
        outcome.then(answer)
    else:
        outcome.then(*answer)


def test_a_sector_goes_by_its_new_name(given: Given) -> None:
    assert given(sector).when(RenameSector(name="Vendas")).state.name == "Vendas"


def test_a_closed_sector_is_not_active(given: Given) -> None:
    assert given(sector).when(DeactivateSector()).state.active is False


def test_an_agent_serves_in_sectors_in_the_order_they_joined_them(given: Given) -> None:
    support_too = AgentJoinedSector(sector_id=SUPPORT)
    assert given(agent, joined).when(JoinSector(sector_id=SUPPORT)).state.sectors == (SALES, SUPPORT)
    assert given(agent, joined, support_too).when(LeaveSector(sector_id=SALES)).state.sectors == (SUPPORT,)


def test_a_later_definition_of_a_role_replaces_the_earlier(given: Given) -> None:
    outcome = given(role).when(DefineRole(name="night-shift", grants={Permission.EXPORT: Scope.ALL}))
    assert outcome.state.grants == {Permission.EXPORT: Scope.ALL}


def test_a_revoked_token_does_not_work_any_more(given: Given) -> None:
    assert given(token).when(RevokeToken()).state.revoked is True
