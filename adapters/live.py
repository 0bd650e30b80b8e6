"""Following the log and the listing for all open streams of a process, by one reader.

What happens is read once, put into bytes once for all streams that are told the same, and left in each one's queue.

Invariant: a stream that was told of position N was told of all before N that concern it, or to start anew; no queue
outgrows its limit.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from adapters.command_handler import UnavailableError
from adapters.contact_keys import AWAY, KeyReader
from adapters.event_log import COLUMNS, EventRow, event_row, opened, people_of, recorded
from adapters.live_listing import ListingTopic, Rows, changed_between
from adapters.postgres import LIMITS, LISTING_CHANNEL, LOG_CHANNEL, Role, with_settings
from adapters.writer import QueueFullError
from domain.conversation import ConversationEvent
from domain.envelope import RecordedEvent
from domain.permissions import Caller, Permission, may
from projections.history import Standing, stand

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 50
"""Told without a pause, so that only those fall behind who cannot keep pace."""
POSITIONS_AT_ONCE = 500
GATHERING_SECONDS = 0.03
"""What happens within so much time is told together: a burst costs few looks at the database."""
POLL_SECONDS = 0.5
READY_SECONDS = 5.0
QUEUE_LIMIT = 1_000
"""Messages that may wait for a client; they are shared between queues, so that one costs a reference."""

SENT_AT_ONCE_BYTES = 65_536

_AWAY = (psycopg.Error, PoolTimeout, TooManyRequests, *AWAY)
_POSITIONS = """
select (select coalesce(max(position), 0) from events),
       (select position from projection_positions where name = 'listing')"""
_EVENTS = f"""
select {COLUMNS} from events where position > %s and position <= %s
and (workspace_id = any(%s::uuid[]) or stream_id = any(%s::uuid[])) order by position limit %s"""


class TooManyStreamsError(QueueFullError):
    """As many streams are open as this process serves."""


class Subscriber:
    """An open stream: what it is still to be told, and whether it has to end."""

    __slots__ = ("_limit", "_queue", "_something", "caller", "ending", "leaving")

    def __init__(self, caller: Caller, limit: int = QUEUE_LIMIT) -> None:
        self.caller = caller
        self.ending: str | None = None
        """Why it ends once its queue is empty; None: it goes on."""
        self.leaving: list[Callable[[], None]] = []
        """What takes it off the topics that it follows."""
        self._limit = limit
        self._queue: deque[bytes] = deque()
        self._something = asyncio.Event()

    def tell(self, message: bytes) -> None:
        """Leave ``message`` for it; one that does not keep up is told to start anew instead."""
        if self.ending is not None:
            return
        if len(self._queue) >= self._limit:
            self._queue.clear()
            self.end("slow")
            return
        self._queue.append(message)
        self._something.set()

    def end(self, reason: str) -> None:
        """Let it end, after what is in its queue."""
        self.ending = self.ending or reason
        self._something.set()

    async def next(self, timeout_seconds: float) -> bytes:
        """What there is to tell, as soon as there is any; nothing after ``timeout_seconds`` or at the end."""
        if not self._queue and self.ending is None:
            self._something.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._something.wait()
            except TimeoutError:
                return b""
        told: list[bytes] = []
        size = 0
        while self._queue and size < SENT_AT_ONCE_BYTES:
            told.append(self._queue.popleft())
            size += len(told[-1])
        return b"".join(told)


@dataclass(slots=True)
class LogTopic:
    """Streams that are told the same of the log: of a workspace's events, or of one conversation's."""

    workspace_id: UUID
    encode: Callable[[RecordedEvent], bytes]
    """An event as told; nothing for one that is not told."""
    permission: Permission
    """What it takes to be told."""
    conversation_id: UUID | None = None
    standing: Standing | None = None
    """How the conversation stands, which decides who may see it."""
    subscribers: set[Subscriber] = field(default_factory=set)

    def tell(self, event: RecordedEvent) -> None:
        """Tell all of ``event`` who may see it; whoever no longer may is let go."""
        if self.conversation_id is not None:
            self.standing = stand(self.standing, cast("ConversationEvent", event.event))
        message = self.encode(event)
        owner = self.standing.owner if self.standing else None
        for subscriber in self.subscribers:
            if self.conversation_id is not None and not may(subscriber.caller, Permission.VIEW, owner):
                subscriber.end("out-of-scope")
            elif message and may(subscriber.caller, self.permission, owner):
                subscriber.tell(message)


class Live:
    """The reader and the open streams of a process. Belongs to one event loop."""

    def __init__(self, conninfo: str, pool: AsyncConnectionPool[Any], keys: KeyReader, limit: int) -> None:
        self.position = 0
        """Up to here subscribers of the log were told."""
        self.listed = 0
        """Up to here subscribers of the listing were told."""
        self.open: set[Subscriber] = set()
        self._conninfo = with_settings(conninfo, LIMITS | {"role": Role.ACCESS.value}, application="conversas-live")
        self._pool = pool
        self._keys = keys
        self._limit = limit
        self._log_topics: dict[tuple[UUID, UUID | None], dict[Any, LogTopic]] = {}
        self._listing_topics: dict[Any, ListingTopic[Subscriber]] = {}
        self._rows = Rows()
        self._wanted = asyncio.Event()
        self._ready = asyncio.Event()
        self._moved = asyncio.Event()
        self._closed = False

    async def open_stream(self, caller: Caller, queue_limit: int = QUEUE_LIMIT) -> Subscriber:
        """A new subscriber, who follows nothing yet; `close_stream` it.

        Raises `TooManyStreamsError`, or `UnavailableError` where the reader cannot read.
        """
        if self._closed or len(self.open) >= self._limit:
            msg = f"As many streams are open as this process serves ({self._limit}); try again in a moment."
            raise TooManyStreamsError(msg)
        subscriber = Subscriber(caller, queue_limit)
        self.open.add(subscriber)
        self._wanted.set()
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._ready.wait()
        except TimeoutError:
            self.close_stream(subscriber)
            raise UnavailableError("The database cannot be reached; try again in a moment.") from None
        except BaseException:
            self.close_stream(subscriber)
            raise
        return subscriber

    def close_stream(self, subscriber: Subscriber) -> None:
        """Forget ``subscriber`` and what only it followed."""
        self.open.discard(subscriber)
        for leave in subscriber.leaving:
            leave()
        if not self.open:
            self._wanted.clear()

    def follow_log(self, subscriber: Subscriber, topic: LogTopic) -> None:
        """Tell ``subscriber`` from now on, which is after `position`, what ``topic`` tells."""
        place, encode = (topic.workspace_id, topic.conversation_id), topic.encode
        topics = self._log_topics.setdefault(place, {})
        topics.setdefault(encode, topic).subscribers.add(subscriber)

        def leave() -> None:
            topics[encode].subscribers.discard(subscriber)
            if not topics[encode].subscribers:
                del topics[encode]
            if not topics:
                self._log_topics.pop(place, None)

        subscriber.leaving.append(leave)

    def follow_listing(self, subscriber: Subscriber, key: Any, topic: ListingTopic[Subscriber]) -> None:
        """Tell ``subscriber`` from now on, which is after `listed`, what the topic under ``key`` tells."""
        followed = self._listing_topics.setdefault(key, topic)
        followed.subscribers.add(subscriber)

        def leave() -> None:
            followed.subscribers.discard(subscriber)
            if not followed.subscribers:
                self._listing_topics.pop(key, None)

        subscriber.leaving.append(leave)

    async def reach(self, position: int, subscriber: Subscriber) -> None:
        """Return once ``position``, which the log has, was read, or ``subscriber`` has to end."""
        while self.position < position and subscriber.ending is None:
            await self._moved.wait()

    def end_all(self) -> None:
        """End every stream and open no more: the process stops."""
        self._closed = True
        for subscriber in self.open:
            subscriber.end("stopping")
        self._wake()

    async def run(self) -> None:
        """Read while anybody wants to know, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
                    await self._follow(connection)
            except _AWAY as error:
                log.warning("streams wait, their source is away: %s", error)
                await asyncio.sleep(1.0)

    async def _follow(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute(f"listen {LOG_CHANNEL}")
        await connection.execute(f"listen {LISTING_CHANNEL}")
        if not self._ready.is_set():
            self.position, self.listed = await _positions(connection)
            self._rows.clear()
            self._ready.set()
        while self.open:
            if not await self._advance(connection):
                async for _ in connection.notifies(timeout=POLL_SECONDS, stop_after=1):
                    pass
            await asyncio.sleep(GATHERING_SECONDS)
        self._ready.clear()

    def _wake(self) -> None:
        """Let those go on who wait for the log to be read on."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def _advance(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        """Tell what is new, up to a limit; whether there was any."""
        head, listed = await _positions(connection)
        before = (self.position, self.listed)
        if head > self.position:
            await self._tell_log(connection, head)
        if listed > self.listed:
            await self._tell_listing(connection, min(listed, self.listed + POSITIONS_AT_ONCE))
        elif listed < self.listed:  # it is being rebuilt, or a crash has set it back: what was told may be untrue
            self._start_anew(self._listing_topics.values())
            self.listed = listed
        return (self.position, self.listed) != before

    async def _tell_log(self, connection: psycopg.AsyncConnection[Any], head: int) -> None:
        wanted = self._log_topics.keys()
        asked = set(wanted)
        rows: Sequence[EventRow] = []
        if asked:
            workspaces = [workspace_id for workspace_id, conversation_id in asked if conversation_id is None]
            conversations = [conversation_id for _, conversation_id in asked if conversation_id is not None]
            async with connection.cursor(row_factory=event_row, binary=True) as cursor:
                await cursor.execute(_EVENTS, (self.position, head, workspaces, conversations, EVENTS_AT_ONCE))
                rows = await cursor.fetchall()
        watched = [row for row in rows if (row.workspace_id, row.stream_id) in asked]
        ciphers = await self._keys.find(people_of(watched))
        if not wanted <= asked:  # somebody came meanwhile, from the same position on: read for them as well
            return
        for row in rows:
            event = opened(row, ciphers) if (row.workspace_id, row.stream_id) in asked else recorded(row)
            for key in ((event.stream.workspace_id, None), (event.stream.workspace_id, event.stream.id)):
                for topic in self._log_topics.get(key, {}).values():
                    topic.tell(event)
        self.position = rows[-1].position if len(rows) == EVENTS_AT_ONCE else head
        self._wake()

    async def _tell_listing(self, connection: psycopg.AsyncConnection[Any], end: int) -> None:
        """Tell what changed in the listing up to ``end``; whoever comes meanwhile looks at it as of ``end``."""
        start, self.listed = self.listed, end
        by_workspace: dict[UUID, list[ListingTopic[Subscriber]]] = {}
        for topic in self._listing_topics.values():
            by_workspace.setdefault(topic.caller.workspace_id, []).append(topic)
        self._rows.keep_only(by_workspace.keys())
        try:
            changes = await changed_between(connection, start, end, list(by_workspace)) if by_workspace else {}
            for workspace_id, events in changes.items():
                async with self._pool.connection() as reading, reading.transaction():
                    await reading.execute("set transaction isolation level repeatable read read only")
                    await reading.execute("select set_config('conversas.workspace', %s, true)", (str(workspace_id),))
                    if not await self._rows.tell(reading, workspace_id, events, by_workspace[workspace_id]):
                        self._start_anew(by_workspace[workspace_id])
        except BaseException:
            self.listed = start  # told again: that a row is as it is may be said twice
            raise

    def _start_anew(self, topics: Iterable[ListingTopic[Subscriber]]) -> None:
        for topic in topics:
            for subscriber in topic.subscribers:
                subscriber.end("start-anew")


async def _positions(connection: psycopg.AsyncConnection[Any]) -> tuple[int, int]:
    row = await (await connection.execute(_POSITIONS)).fetchone()
    assert row is not None, "a select without a from gives one row"
    return row[0], row[1] or 0
