"""Accesses: who read what that was not theirs.

The listing is what everybody works with all day: one record of it stands for the minutes that follow (`Lately`).

Invariant: an access is recorded durably before anything is told of what was read, in the same round trip; a recorded
one is never changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from cachetools import TTLCache

from domain.events import Owner
from domain.permissions import Caller, Permission, Scope, may


class What(StrEnum):
    """What was read."""

    MESSAGES = "messages"
    STREAM = "stream"
    HISTORY = "history"
    CONTACT = "contact"
    EXPORT = "export"
    LISTING = "listing"
    """Rows of the listing, in the `LISTING_MINUTES` from then on."""
    SEARCH = "search"
    """The listing, by what names a contact."""


@dataclass(frozen=True, slots=True)
class Access:
    """That ``caller`` reads something."""

    caller: Caller
    what: What
    request_id: UUID
    conversation_id: UUID | None = None
    contact_id: UUID | None = None


LISTING_MINUTES = 10

_INSERT = """
insert into accesses (workspace_id, actor_kind, actor_id, what, conversation_id, contact_id, request_id)
values (%s, %s, %s, %s, %s, %s, %s)"""


def of_conversation(caller: Caller, what: What, request_id: UUID, conversation_id: UUID, owner: Owner) -> Access | None:
    """That ``caller`` reads of a conversation; None where it is their own, which is no access to record."""
    as_owner = replace(caller, grants={Permission.VIEW: Scope.OWN})
    if may(as_owner, Permission.VIEW, owner):
        return None
    return Access(caller, what, request_id, conversation_id=conversation_id)


class Lately:
    """Who was recorded as reading the listing within the last `LISTING_MINUTES`, by this process."""

    def __init__(self) -> None:
        self._readers: TTLCache[tuple[UUID, str, str], None] = TTLCache(100_000, LISTING_MINUTES * 60)

    def of_rows(self, caller: Caller, request_id: UUID) -> Access | None:
        """That ``caller`` reads rows of the listing; None where that is recorded, or all that they see is their own."""
        if caller.scope(Permission.VIEW) is Scope.OWN or _reader(caller) in self._readers:
            return None
        return Access(caller, What.LISTING, request_id)

    def note(self, access: Access) -> None:
        """``access`` is recorded, for good."""
        if access.what is What.LISTING:
            self._readers[_reader(access.caller)] = None


def _reader(caller: Caller) -> tuple[UUID, str, str]:
    return caller.workspace_id, caller.actor.kind.value, caller.actor.id


def statement(access: Access) -> tuple[str, list[Any]]:
    """What records ``access``."""
    actor = access.caller.actor
    recorded: list[Any] = [access.caller.workspace_id, actor.kind.value, actor.id, access.what.value]
    return _INSERT, [*recorded, access.conversation_id, access.contact_id, access.request_id]


def recording(access: Access | None, query: str = "select 1", values: Sequence[Any] = ()) -> tuple[str, list[Any]]:
    """``query`` so that running it records ``access`` as well (None: nothing to record)."""
    if access is None:
        return query, list(values)
    insert, recorded = statement(access)
    return f"with recorded as ({insert} returning 1) {query}", [*recorded, *values]
