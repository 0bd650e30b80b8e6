"""Who may do what: permissions, scopes, the built-in roles, and the one rule that all code asks.

Invariant: denied by default. Nothing outside this module decides on access; `may` is a pure function of the caller's
grants and of who owns the conversation.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from domain.events import Actor, Owner


class Permission(StrEnum):
    """Something that a role may grant."""

    VIEW = "view"
    REPLY = "reply"
    ASSUME = "assume"
    TRANSFER = "transfer"
    FINALIZE_FROM_INBOX = "finalize-from-inbox"
    FINALIZE_FROM_LISTING = "finalize-from-listing"
    REOPEN = "reopen"
    LABEL = "label"
    EXPORT = "export"
    VIEW_CONTACT = "view-contact"
    EDIT_CONTACT = "edit-contact"
    ERASE_CONTACT = "erase-contact"
    READ_HISTORY = "read-history"
    VERIFY_HISTORY = "verify-history"
    MANAGE_DIRECTORY = "manage-directory"
    MANAGE_TOKENS = "manage-tokens"


class Scope(StrEnum):
    """How far a permission reaches: the caller's own conversations, their sectors', or all of the workspace."""

    OWN = "own"
    SECTOR = "sector"
    ALL = "all"


Grants = Mapping[Permission, Scope]

_SERVING = (
    Permission.VIEW,
    Permission.REPLY,
    Permission.ASSUME,
    Permission.TRANSFER,
    Permission.FINALIZE_FROM_INBOX,
    Permission.REOPEN,
    Permission.LABEL,
)
_AUDITING = (Permission.VIEW, Permission.VIEW_CONTACT, Permission.EXPORT, Permission.READ_HISTORY)

BUILT_IN_ROLES: Mapping[str, Grants] = {
    "agent": dict.fromkeys(_SERVING, Scope.SECTOR)
    | {Permission.VIEW_CONTACT: Scope.SECTOR, Permission.EDIT_CONTACT: Scope.SECTOR},
    "supervisor": dict.fromkeys(_SERVING, Scope.ALL)
    | dict.fromkeys(_AUDITING, Scope.ALL)
    | {Permission.FINALIZE_FROM_LISTING: Scope.ALL, Permission.EDIT_CONTACT: Scope.ALL},
    "auditor": dict.fromkeys((*_AUDITING, Permission.VERIFY_HISTORY), Scope.ALL),
    "admin": dict.fromkeys(Permission, Scope.ALL),
    "integration": dict.fromkeys(_SERVING, Scope.ALL)
    | {Permission.VIEW_CONTACT: Scope.ALL, Permission.EDIT_CONTACT: Scope.ALL},
}
"""What each built-in role grants; what is absent is denied."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they were granted."""

    workspace_id: UUID
    actor: "Actor"
    grants: Grants
    agent_id: UUID | None = None
    sectors: frozenset[UUID] = field(default_factory=frozenset)
    token_id: UUID | None = None
    """The access token that was shown; what runs on later is done with the rights that it has then."""

    @property
    def bot(self) -> str | None:
        """The bot that the caller is, if any."""
        return self.actor.id if self.actor.kind == "bot" else None

    def scope(self, permission: Permission) -> Scope | None:
        """How far ``permission`` reaches for this caller; None: not granted."""
        return self.grants.get(permission)


def may(caller: Caller, permission: Permission, owner: "Owner | None" = None) -> bool:
    """Whether ``caller`` has ``permission`` on what ``owner`` holds (None: on what nobody holds, such as a contact).

    Sector scope includes the caller's own; without an owner any scope will do.
    """
    match caller.scope(permission):
        case None:
            return False
        case Scope.ALL:
            return True
        case _ if owner is None:
            return True
        case Scope.SECTOR:
            return (owner.sector_id is not None and owner.sector_id in caller.sectors) or _owns(caller, owner)
        case Scope.OWN:
            return _owns(caller, owner)


_NO_PERSONS = {"bot", "channel", "automation"}


def acts_from(caller: Caller, surface: str) -> bool:
    """Whether ``caller`` may say that they act from ``surface``: what a program does is not what a person did."""
    return caller.actor.kind != "agent" or surface not in _NO_PERSONS


def within(grants: Grants, held: Grants) -> bool:
    """Whether whoever holds ``held`` may hand out ``grants``: nobody may give more than they have."""
    reach = list(Scope)
    return all(name in held and reach.index(scope) <= reach.index(held[name]) for name, scope in grants.items())


def narrowed(grants: Grants, limit: Grants) -> Grants:
    """What both allow."""
    reach = list(Scope)
    return {name: min(scope, limit[name], key=reach.index) for name, scope in grants.items() if name in limit}


def _owns(caller: Caller, owner: "Owner") -> bool:
    if caller.agent_id is not None:
        return owner.agent_id == caller.agent_id
    return owner.bot is not None and caller.bot == owner.bot
