"""Identities of an outside issuer, and tokens that were narrowed: every command in every state."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

from domain.commands import IssueToken, LinkIdentity, RevokeToken, UnlinkIdentity, identity_id
from domain.events import (
    Actor,
    ActorKind,
    IdentityLinked,
    IdentityUnlinked,
    TokenIssued,
    TokenNarrowed,
)
from domain.permissions import BUILT_IN_ROLES, Caller, Permission, Scope, narrowed, within

Given = Callable[..., Any]
ANA, BIA, GONE, NOBODY = UUID(int=0xA1), UUID(int=0xA2), UUID(int=0xA4), UUID(int=0xAF)
WHO = {"issuer": "https://login.example.com", "subject": "ana@acme"}

linked, unlinked = IdentityLinked(**WHO, agent_id=ANA), IdentityUnlinked(agent_id=ANA)


def link(agent: UUID = ANA, role: str = "agent") -> LinkIdentity:
    return LinkIdentity(**WHO, agent_id=agent, role=role)


@pytest.mark.parametrize(
    ("history", "command", "expected"),
    [
        ((), link(), (linked,)),
        ((linked,), link(), ()),
        ((linked,), link(BIA), "identity-linked"),
        ((linked, unlinked), link(BIA), (IdentityLinked(**WHO, agent_id=BIA),)),
        ((linked, unlinked), link(), (linked,)),
        ((), link(NOBODY), "agent-not-found"),
        ((), link(GONE), "agent-inactive"),
        ((linked,), link(GONE), "agent-inactive"),
        ((), link(role="supervisor"), "invalid-command"),
        ((linked,), link(role="supervisor"), "invalid-command"),
        ((), link(role="no-such-role"), "role-not-found"),
        ((), UnlinkIdentity(), "identity-not-found"),
        ((linked,), UnlinkIdentity(), (unlinked,)),
        ((linked, unlinked), UnlinkIdentity(), ()),
    ],
)
def test_an_identity_is_linked_to_one_active_agent_with_that_agent_s_role(
    given: Given, history: tuple[Any, ...], command: Any, expected: Any
) -> None:
    outcome = given(*history).when(command)
    outcome.then(expected) if isinstance(expected, str) else outcome.then(*expected)


def test_an_identity_s_id_tells_issuers_and_subjects_apart() -> None:
    pairs = [("https://a.example", "b"), ("https://a.example/b", "b"), ("https://a.example", "B")]
    assert len({identity_id(*pair) for pair in pairs}) == len(pairs)


@pytest.mark.parametrize(
    "wrong",
    [
        {"issuer": "login.example.com"},
        {"issuer": "https://login.example.com "},
        {"issuer": "https://"},
        {"issuer": "https://x\n"},
        {"subject": ""},
        {"subject": " x"},
        {"subject": "x" * 256},
        {"subject": "x\0"},
        {"subject": "Íris"},
    ],
)
def test_an_identity_is_written_as_the_standard_has_it(wrong: dict[str, str]) -> None:
    """Else two that look the same would be two, and an issuer with a blank in it could be mistaken for another."""
    with pytest.raises(ValidationError):
        LinkIdentity(**WHO | wrong, agent_id=ANA, role="agent")


TOKEN: dict[str, Any] = {
    "name": "crm",
    "secret_sha256": "a" * 64,
    "actor": Actor(kind=ActorKind.INTEGRATION, id="crm"),
    "role": "agent",
}
VIEW_OWN = {Permission.VIEW: Scope.OWN}
issued, narrow = TokenIssued(**TOKEN), TokenNarrowed(grants=VIEW_OWN)


@pytest.mark.parametrize(
    ("history", "command", "expected"),
    [
        ((), IssueToken(**TOKEN, grants=VIEW_OWN), (issued, narrow)),
        ((), IssueToken(**TOKEN, grants={}), (issued, TokenNarrowed(grants={}))),
        ((), IssueToken(**TOKEN), (issued,)),
        ((issued, narrow), IssueToken(**TOKEN, grants=VIEW_OWN), ()),
        ((issued, narrow), IssueToken(**TOKEN), "already-exists"),
        ((issued,), IssueToken(**TOKEN, grants=VIEW_OWN), "already-exists"),
        ((), IssueToken(**TOKEN, grants={Permission.VIEW: Scope.ALL}), "invalid-command"),
        ((), IssueToken(**TOKEN, grants={Permission.EXPORT: Scope.OWN}), "invalid-command"),
    ],
)
def test_a_token_is_narrowed_when_it_is_issued_or_never(
    given: Given, history: tuple[Any, ...], command: Any, expected: Any
) -> None:
    outcome = given(*history).when(command)
    outcome.then(expected) if isinstance(expected, str) else outcome.then(*expected)


def test_a_narrowed_token_can_be_revoked(given: Given) -> None:
    assert given(issued, narrow).when(RevokeToken()).state.revoked


def test_narrowing_grants_nothing_to_whoever_has_less_than_the_role(given: Given) -> None:
    clerk = Caller(
        workspace_id=UUID(int=1),
        actor=Actor(kind=ActorKind.INTEGRATION, id="clerk"),
        grants={Permission.MANAGE_TOKENS: Scope.ALL, Permission.VIEW: Scope.ALL},
    )
    given().when(IssueToken(**TOKEN, grants=VIEW_OWN), clerk).then("permission-denied")


@pytest.mark.parametrize("role", BUILT_IN_ROLES)
def test_what_is_narrowed_lies_within_both(role: str) -> None:
    grants = BUILT_IN_ROLES[role]
    for scope in Scope:
        limit = dict.fromkeys(list(Permission)[::2], scope)
        both = narrowed(grants, limit)
        assert within(both, grants)
        assert within(both, limit)
        assert set(both) == set(grants) & set(limit)
