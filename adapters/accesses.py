"""Accesses: who read what that was not theirs.

Invariant: an access is recorded durably before anything is told of what was read, in the same round trip; a recorded
one is never changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from domain.events import Owner
from domain.permissions import Caller, Permission, Scope, may


class What(StrEnum):
    """What was read."""

    MESSAGES = "messages"
    STREAM = "stream"
    HISTORY = "history"
    CONTACT = "contact"
    EXPORT = "export"


@dataclass(frozen=True, slots=True)
class Access:
    """That ``caller`` reads something."""

    caller: Caller
    what: What
    request_id: UUID
    conversation_id: UUID | None = None
    contact_id: UUID | None = None


_INSERT = """
insert into accesses (workspace_id, actor_kind, actor_id, what, conversation_id, contact_id, request_id)
values (%s, %s, %s, %s, %s, %s, %s)"""


def of_conversation(caller: Caller, what: What, request_id: UUID, conversation_id: UUID, owner: Owner) -> Access | None:
    """That ``caller`` reads of a conversation; None where it is their own, which is no access to record."""
    as_owner = replace(caller, grants={Permission.VIEW: Scope.OWN})
    if may(as_owner, Permission.VIEW, owner):
        return None
    return Access(caller, what, request_id, conversation_id=conversation_id)


def recording(access: Access | None, query: str = "select 1", values: Sequence[Any] = ()) -> tuple[str, list[Any]]:
    """``query`` so that running it records ``access`` as well (None: nothing to record)."""
    if access is None:
        return query, list(values)
    actor = access.caller.actor
    recorded: list[Any] = [access.caller.workspace_id, actor.kind.value, actor.id, access.what.value]
    recorded += [access.conversation_id, access.contact_id, access.request_id]
    return f"with recorded as ({_INSERT} returning 1) {query}", [*recorded, *values]
