"""How things stood: who may look back at what, and one conversation at any version or moment, folded from the log.

A moment is one of recording: what was imported counts from its import on.

Invariant: who looks back may read the history, and is recorded before anything is told. Whose scope a conversation is
in, and what names a person in the listing, is as it is now.
"""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from fastapi import Query, Request
from pydantic import Field

from adapters.accesses import Access, What, of_conversation, recording
from adapters.contact_keys import Ciphers
from adapters.event_log import COLUMNS, EventRow, in_clear, people_of, recorded, shown
from api.access import require
from api.queries import MAX_POSITION, Moment, fetch, invalid, wait_until_recorded
from domain.conversation import ConversationEvent
from domain.errors import ConversationNotFoundError, PermissionDeniedError
from domain.events import ConversationOpened
from domain.permissions import Caller, Permission, Scope, may
from projections.listing import COLUMNS as LISTING_COLUMNS
from projections.listing import ListingRow, fold, opened
from projections.scopes import owner_of

AsOf = Annotated[
    Moment | None,
    Field(
        description="as it stood when all that was recorded up to then had happened; needs `read-history` as well."
        " What names a person, and attributes, are as now",
        examples=[None],
    ),
]
Version = Annotated[int | None, Query(ge=1, le=MAX_POSITION, description="as it stood after this version")]
Then = Annotated[
    Moment | None,
    Query(description="as it stood when all that was recorded up to then had happened; needs `read-history` as well"),
]


async def look_back(request: Request, caller: Caller, as_of: datetime | None, place: str = "query") -> None:
    """See to it that ``caller`` may look at how the listing stood ``as_of`` a moment, and that it holds all of it.

    That they looked is recorded. A moment that is to come is an error.
    """
    if as_of is None:
        return
    require(caller, Permission.READ_HISTORY)
    _is_past(as_of, place)
    await wait_until_recorded(request, "listing", as_of)
    await fetch(request, caller, *recording(Access(caller, What.HISTORY, request.state.request_id)))


async def as_it_stood(
    request: Request, caller: Caller, now: dict[str, Any], version: int | None, as_of: datetime | None
) -> dict[str, Any]:
    """The row of a conversation, of which ``now`` is the present one, after a version or at a moment.

    Texts are those of that time, as the log has them; the contact's details are those of now, and nobody's where it was
    another contact's then.
    """
    if not may(caller, Permission.READ_HISTORY, owner_of(now)):
        raise PermissionDeniedError(f"This needs the permission '{Permission.READ_HISTORY}' for this conversation.")
    if version is not None and as_of is not None:
        raise invalid("as_of", "goes without version")
    if as_of is not None:
        _is_past(as_of, "query")
    access = of_conversation(caller, What.HISTORY, request.state.request_id, now["id"], owner_of(now))
    until = min(readable_until(caller, now, Permission.READ_HISTORY), version or MAX_POSITION)
    conditions, values = (
        "workspace_id = %s and stream_id = %s and version <= %s",
        [caller.workspace_id, now["id"], until],
    )
    if as_of is not None:
        conditions, values = f"{conditions} and recorded_at <= %s", [*values, as_of]
    query = f"select {COLUMNS} from events where {conditions} order by version"
    rows = await fetch(request, caller, *recording(access, query, values))
    if not rows:
        raise ConversationNotFoundError
    if version is not None and rows[-1]["version"] < version:
        raise invalid("version", f"is beyond the present one, {rows[-1]['version']}")
    events = [EventRow(**row) for row in rows]
    ciphers = await request.app.state.keys.find(people_of(shown(events)))
    row = await asyncio.to_thread(_folded, events, ciphers)
    then = {column: getattr(row, column) for column in LISTING_COLUMNS}
    columns = (column for column in now if column.startswith("contact_")) if row.contact_id == now["contact_id"] else ()
    persons = {column: now[column] for column in columns}
    return then | persons | {"sees_contact": may(caller, Permission.VIEW_CONTACT, owner_of(now))}


def readable_until(caller: Caller, conversation: dict[str, Any], permission: Permission) -> int:
    """The last version that ``caller`` may read: where their reach ends somewhere, that of the row by which it is seen.

    What came later, and the listing does not show yet, may be out of their scope.
    """
    version: int = conversation["version"]
    everywhere = {caller.scope(Permission.VIEW), caller.scope(permission)} == {Scope.ALL}
    return MAX_POSITION if everywhere else version


def _folded(rows: Sequence[EventRow], ciphers: Ciphers) -> ListingRow:
    clear = {row.version: in_clear(row, ciphers) for row in shown(rows)}
    events = [recorded(clear.get(row.version, row)) for row in rows]
    row = opened(events[0], cast("ConversationOpened", events[0].event))
    for event in events:
        fold(row, event, cast("ConversationEvent", event.event))
    return row


def _is_past(as_of: datetime, place: str) -> None:
    if as_of > datetime.now(UTC):
        raise invalid("as_of", "lies in the future", place)
