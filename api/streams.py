"""Live over HTTP as server-sent events: the log, the listing under a filter, one conversation.

Every stream begins with an event `ready`. One that cannot go on ends with `resync`: connect again, and load anew what
you show. A row or conversation that is out of the filter or out of sight is told as `leave`.

Invariant: nothing out of the caller's scope is sent, and no stream outlives its token by more than 5 seconds.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated, Any, Self, cast

import orjson
import psycopg
from fastapi import APIRouter, Header, Query, Request
from psycopg_pool import PoolTimeout, TooManyRequests
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapters import background
from adapters.accesses import Access, What, of_conversation, recording
from adapters.command_handler import UnavailableError
from adapters.contact_keys import AWAY
from adapters.event_log import COLUMNS, EventRow, opened, people_of, recorded
from adapters.live import Live, LogTopic, Subscriber
from adapters.live_listing import ListingTopic
from adapters.presence import Presences
from api.access import QUERY_PROBLEMS, authenticate, needs
from api.conversations import ConversationId
from api.history import SCANNED, event_view, require_all
from api.listing import BarParameters, filter_of
from api.problems import UnauthenticatedError
from api.queries import AtLeast, Position, fetch, fetch_status, invalid, wait_for
from api.reading import Written, message_view
from domain import permissions
from domain.conversation import ConversationEvent
from domain.envelope import RecordedEvent
from domain.errors import ConversationNotFoundError
from domain.permissions import Caller, Permission, may
from projections.filter_sql import where
from projections.filters import FILTER, Filter, fields_of
from projections.history import Standing, stand
from projections.listing_query import one
from projections.scopes import owner_of

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["live"])

HEARTBEAT_SECONDS = 15.0
SEND_SECONDS = 30.0
"""How long a client may take to accept what is sent before it is given up."""
CHECK_SECONDS = 1.5
"""Pause between two looks at whether tokens still hold; a token's rights are remembered for some time besides."""
UNKNOWN_SECONDS = 3.0
"""How long a stream goes on while it cannot be found out whether its token holds."""
_PAGE = 500
_MOST_DIGITS = 18
_LAST = "select version, position from events where workspace_id = %s and stream_id = %s order by version desc limit 1"
_AWAY = (psycopg.Error, PoolTimeout, TooManyRequests, UnavailableError, *AWAY)


def sent_event(name: str, data: Any, id_: int | None = None) -> bytes:
    """A server-sent event."""
    number = b"" if id_ is None else b"id: %d\n" % id_
    return b"%bevent: %b\ndata: %b\n\n" % (number, name.encode(), orjson.dumps(data))


class EventStream(Response):
    """A response that lasts: what it begins with, then what its subscriber is told, until either side ends it."""

    media_type = "text/event-stream"

    def __init__(self, streams: "Streams", subscriber: Subscriber, beginning: AsyncIterator[bytes]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._streams = streams
        self._subscriber = subscriber
        self._beginning = beginning

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send until the client goes away or the subscriber is ended."""
        caller = self._subscriber.caller
        telling = asyncio.create_task(self._tell(send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            with self._streams.presences.kept(caller.workspace_id, caller.agent_id):
                await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._streams.close(self._subscriber)
            await background.end(telling, leaving)
            failure = None if telling.cancelled() else telling.exception()
            if failure is not None and not isinstance(failure, OSError | TimeoutError):
                log.error("a stream failed", exc_info=failure)

    async def _tell(self, send: Send) -> None:
        subscriber = self._subscriber
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for message in self._beginning:
                await _send(send, message)
                if subscriber.ending is not None:
                    break
        except _AWAY as error:
            log.warning("a stream could not begin: %s", error)
            subscriber.end("unavailable")
        while True:
            message = await subscriber.next(HEARTBEAT_SECONDS)
            if message:
                await _send(send, message)
            elif subscriber.ending is None:
                await _send(send, b": still here\n\n")
            else:
                break
        last = "leave" if subscriber.ending == "out-of-scope" else "resync"
        await _send(send, sent_event(last, {"reason": subscriber.ending}), more=False)


async def _send(send: Send, message: bytes, *, more: bool = True) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await send({"type": "http.response.body", "body": message, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@dataclass(slots=True)
class _Holder:
    """A token under which streams are open, and since when it is not known whether it still holds."""

    request: Request
    subscribers: set[Subscriber] = field(default_factory=set)
    unknown_since: float | None = None


class Streams:
    """The open streams of this process and the tokens that they are open under."""

    def __init__(self, live: Live, presences: Presences) -> None:
        self.live = live
        self.presences = presences
        self._holders: dict[bytes, _Holder] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        """Begin to follow."""
        work = (self.live.run(), self.presences.run(), self._check_tokens())
        self._tasks = [asyncio.create_task(each) for each in work]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        self.live.end_all()
        await background.end(*self._tasks)

    async def open(self, request: Request, caller: Caller) -> Subscriber:
        """A subscriber for ``caller``; `close` it."""
        if caller.agent_id is not None:
            await self.presences.renew([(caller.workspace_id, caller.agent_id)])
        subscriber = await self.live.open_stream(caller)
        key = _authorization(request)
        self._holders.setdefault(key, _Holder(request)).subscribers.add(subscriber)

        def leave() -> None:
            self._holders[key].subscribers.discard(subscriber)
            if not self._holders[key].subscribers:
                del self._holders[key]

        subscriber.leaving.append(leave)
        return subscriber

    def close(self, subscriber: Subscriber) -> None:
        """Forget ``subscriber``."""
        self.live.close_stream(subscriber)

    async def _check_tokens(self) -> None:
        """End the streams of tokens that hold no longer, or not with the same rights; again and again."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            for holder in list(self._holders.values()):
                await self._check(holder)

    async def _check(self, holder: _Holder) -> None:
        reason, caller = "unauthenticated", None
        try:
            caller = await authenticate(holder.request)
            holder.unknown_since = None
        except UnauthenticatedError:
            pass
        except _AWAY:
            reason = "unavailable"
            holder.unknown_since = holder.unknown_since or monotonic()
            if monotonic() - holder.unknown_since < UNKNOWN_SECONDS:
                return
        for subscriber in list(holder.subscribers):
            if caller is None:
                subscriber.end(reason)
            elif caller != subscriber.caller:
                subscriber.end("rights-changed")


def _authorization(request: Request) -> bytes:
    """What a request was let in by: its token, else the cookie of its session."""
    headers = dict(request.scope["headers"])
    return bytes(headers.get(b"authorization") or headers[b"cookie"])


After = Annotated[Position | None, Query(description="what follows is told first; without it only what is new")]
LastEventId = Annotated[str | None, Header(description="as `after`: what browsers send to go on")]


def _start(after: int | None, last_event_id: str | None, last: int) -> int:
    """After which number the stream begins; ``last`` is the one there is."""
    start = last if after is None else after
    if last_event_id is not None:
        if not (last_event_id.isdecimal() and last_event_id.isascii()) or len(last_event_id) > _MOST_DIGITS:
            raise invalid("Last-Event-ID", "is not one of ours; connect again without it")
        start = int(last_event_id)
    if start > last:
        raise invalid("after", f"is beyond the end, which is {last}")
    return start


_SENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "Server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
}
LASTING: dict[str, Any] = {
    "status_code": 200,
    "response_class": EventStream,
    "response_model": None,
    "responses": QUERY_PROBLEMS | _SENT,
}
"""What the routes of streams have in common."""


@router.get("/events/stream", summary="Follow the log", **LASTING)
async def follow_events(
    request: Request,
    caller: Annotated[Caller, needs(Permission.READ_HISTORY, permissions.Scope.ALL)],
    after: After = None,
    last_event_id: LastEventId = None,
) -> Response:
    """Every event of the workspace as it happens, as `GET /v1/events` shows it; its id is its position.

    That you follow is recorded.
    """
    require_all(caller)
    await fetch(request, caller, *recording(Access(caller, What.STREAM, request.state.request_id)))
    streams: Streams = request.app.state.streams
    [log_] = await fetch_status(request, "select coalesce(max(position), 0) as head from events")
    start = _start(after, last_event_id, log_["head"])
    subscriber = await streams.open(request, caller)
    return EventStream(streams, subscriber, _log_from(request, subscriber, start))


async def _log_from(request: Request, subscriber: Subscriber, start: int) -> AsyncIterator[bytes]:
    """What is in the log after ``start`` already; then the subscriber is told what follows."""
    live: Live = request.app.state.streams.live
    position = start
    yield sent_event("ready", {"position": position}, position)
    await live.reach(position, subscriber)
    while position < live.position:
        end = min(live.position, position + SCANNED)
        rows = await fetch(
            request,
            subscriber.caller,
            f"select {COLUMNS} from events"
            " where position > %s and position <= %s and workspace_id = %s order by position limit %s",
            (position, end, subscriber.caller.workspace_id, _PAGE),
        )
        position = rows[-1]["position"] if len(rows) == _PAGE else end
        yield b"".join(_envelope(recorded(EventRow(**row))) for row in rows)
    live.follow_log(subscriber, LogTopic(subscriber.caller.workspace_id, _envelope, Permission.READ_HISTORY))


def _envelope(event: RecordedEvent) -> bytes:
    return sent_event("event", event_view(event), event.position)


@router.get(
    "/conversations/stream",
    summary="Follow the listing",
    **LASTING,
)
async def follow_listing(
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    wanted: Annotated[BarParameters, Query()],
) -> Response:
    """What changes in the listing under a filter: `{"id", "change": "upsert" | "leave", "row"}`.

    After `ready`, load your page with `at_least` the position that it tells, unless what you show tells a position as
    high: from there on nothing is missed. A row that time alone takes out of a filter is not told; a `leave` may come
    for a row that you do not show. That you follow is recorded, unless you may see only what is your own.
    """
    streams: Streams = request.app.state.streams
    chosen = filter_of(wanted)
    if caller.scope(Permission.VIEW) is not permissions.Scope.OWN:
        await fetch(request, caller, *recording(Access(caller, What.STREAM, request.state.request_id)))
    subscriber = await streams.open(request, caller)
    return EventStream(streams, subscriber, _listing(streams.live, subscriber, chosen))


async def _listing(live: Live, subscriber: Subscriber, filter: Filter) -> AsyncIterator[bytes]:
    caller = subscriber.caller
    sees = (caller.scope(Permission.VIEW), caller.scope(Permission.VIEW_CONTACT))
    is_everybodys = set(sees) == {permissions.Scope.ALL}
    whose = None if is_everybodys else (caller.agent_id, caller.bot, caller.sectors)
    key = (caller.workspace_id, sees, whose, FILTER.dump_json(filter))
    topic = ListingTopic[Subscriber](caller, lambda: where(caller, filter), frozenset(fields_of(filter)))
    live.follow_listing(subscriber, key, topic)
    yield sent_event("ready", {"position": live.listed})


@router.get(
    "/conversations/{id}/stream",
    summary="Watch a conversation",
    **LASTING,
)
async def watch_conversation(
    id: ConversationId,
    request: Request,
    caller: Annotated[Caller, needs(Permission.VIEW)],
    after: After = None,
    last_event_id: LastEventId = None,
    at_least: AtLeast = None,
) -> Response:
    """One conversation as it goes on: each `message`, and with `read-history` each `event`; its version is the id.

    Whoever watches takes no part in it; unless it is their own, it is recorded that they do.
    """
    streams: Streams = request.app.state.streams
    await wait_for(request, "listing", at_least)
    rows = await fetch(request, caller, *one(caller, id))
    if not rows:
        raise ConversationNotFoundError
    [row] = rows
    [last] = await fetch(request, caller, _LAST, (caller.workspace_id, id))
    start = _start(after, last_event_id, last["version"])
    subscriber = await streams.open(request, caller)
    try:
        access = of_conversation(caller, What.STREAM, request.state.request_id, id, owner_of(row))
        await fetch(request, caller, *recording(access))
    except BaseException:
        streams.close(subscriber)
        raise
    return EventStream(streams, subscriber, _conversation(request, subscriber, row, start, last["position"]))


async def _conversation(
    request: Request, subscriber: Subscriber, row: dict[str, Any], start: int, last_position: int
) -> AsyncIterator[bytes]:
    """What follows version ``start`` of the conversation already; then the subscriber is told what follows.

    ``row`` is the conversation in the listing, which may be behind, ``last_position`` that of its last event.
    """
    live: Live = request.app.state.streams.live
    caller = subscriber.caller
    standing = Standing(row["status"], owner_of(row))
    told, folded, position = start, row["version"], -1
    yield sent_event("ready", {"version": told}, told)
    await live.reach(last_position, subscriber)
    while position < live.position:
        limit = live.position
        rows = await fetch(
            request,
            caller,
            f"select {COLUMNS} from events where workspace_id = %s and stream_id = %s and version > %s"
            " and position <= %s order by version limit %s",
            (caller.workspace_id, row["id"], min(told, folded), limit, _PAGE),
        )
        events = [EventRow(**each) for each in rows]
        ciphers = await request.app.state.keys.find(people_of(events))
        for event in (opened(each, ciphers) for each in events):
            if event.version > folded:
                standing, folded = stand(standing, cast("ConversationEvent", event.event)), event.version
            if not may(caller, Permission.VIEW, standing.owner):
                subscriber.end("out-of-scope")
                return
            if event.version > told:
                told = event.version
                yield _message(event)
                if may(caller, Permission.READ_HISTORY, standing.owner):
                    yield _event(event)
        position = rows[-1]["position"] if len(rows) == _PAGE else limit
    for encode, permission in ((_message, Permission.VIEW), (_event, Permission.READ_HISTORY)):
        topic = LogTopic(caller.workspace_id, encode, permission, row["id"], standing)
        if may(caller, permission):
            live.follow_log(subscriber, topic)


def _message(event: RecordedEvent) -> bytes:
    """A message or note as told; nothing for other events."""
    if isinstance(event.event, Written):
        return sent_event("message", message_view(event), event.version)
    return b""


def _event(event: RecordedEvent) -> bytes:
    """What is no message, as told; nothing for messages."""
    return b"" if _message(event) else sent_event("event", event_view(event), event.version)
