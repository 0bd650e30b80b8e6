"""Queueing: from many tasks of an event loop to the one thread that writes the log.

What arrives while a transaction is under way forms the next one: no timer, no delay when idle.

Invariant: a request is answered only after its transaction has committed; what cannot be taken is refused at once.
"""

import asyncio
import threading
from collections import Counter as Tally
from dataclasses import replace
from queue import SimpleQueue

from prometheus_client import Counter, Histogram

from adapters.command_handler import CommandHandler, UnavailableError
from adapters.deciding import Answer, Outcome, Request
from adapters.presence import Presences
from domain.commands import Transfer
from domain.errors import DomainError

BATCHES = Histogram(
    "conversas_writer_batch_commands", "Commands in one transaction", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
EVENTS = Counter("conversas_writer_events", "Events appended by this process")
ANSWERS = Counter("conversas_writer_answers", "Commands answered", ["outcome"])
"""By outcome: done, already (so), replayed, decided (a dry run), refused, failed."""


class QueueFullError(UnavailableError):
    """More is waiting than can be written soon; nothing was changed."""


class Writer:
    """A `CommandHandler` in a thread of its own, fed from an event loop by a bounded queue."""

    def __init__(
        self,
        handler: CommandHandler,
        *,
        queue_limit: int = 2_000,
        batch_limit: int = 500,
        presences: Presences | None = None,
    ) -> None:
        self._handler = handler
        self._presences = presences
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._queue_limit = queue_limit
        self._batch_limit = batch_limit
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    async def execute(self, request: Request) -> Outcome:
        """The outcome of ``request``, once it is committed.

        Raises the `DomainError` that refused it, or `UnavailableError` (`QueueFullError` where too many wait already).
        """
        if self._queue.qsize() >= self._queue_limit:
            msg = f"{self._queue_limit} commands are waiting already; try again in a moment"
            raise QueueFullError(msg)
        if isinstance(request.command, Transfer) and self._presences is not None:
            request = replace(request, presence=await self._presences.snapshot(request.stream.workspace_id))
        answer: asyncio.Future[Outcome] = self._loop.create_future()
        self._queue.put((request, answer))
        return await answer

    def depth(self) -> int:
        """How many requests wait for the next transaction."""
        return self._queue.qsize()

    def alive(self) -> bool:
        """Whether requests are still handled."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while (batch := self._next_batch()) is not None:
            answers = self._handler.handle([request for request, _ in batch])
            _count(answers)
            waiting = [future for _, future in batch]
            self._loop.call_soon_threadsafe(_deliver, waiting, answers)
        self._handler.close()

    def _next_batch(self) -> "list[_Waiting] | None":
        """Wait for a request, then take all that are there; None when closed."""
        first = self._queue.get()
        batch = []
        while first is not None:
            batch.append(first)
            if len(batch) == self._batch_limit or self._queue.empty():
                return batch
            first = self._queue.get()
        if batch:
            self._queue.put(None)
        return batch or None

    def close(self) -> None:
        """Finish what is queued, then stop."""
        self._queue.put(None)
        self._thread.join()


def _count(answers: list[Answer]) -> None:
    BATCHES.observe(len(answers))
    done = [answer for answer in answers if isinstance(answer, Outcome)]
    EVENTS.inc(sum(outcome.events for outcome in done if not outcome.replayed and not outcome.dry_run))
    for outcome, count in Tally(map(_outcome, answers)).items():
        ANSWERS.labels(outcome).inc(count)


def _outcome(answer: Answer) -> str:
    if isinstance(answer, Exception):
        return "refused" if isinstance(answer, DomainError) else "failed"
    if answer.replayed:
        return "replayed"
    if answer.dry_run:
        return "decided"
    return "done" if answer.events else "already"


_Waiting = tuple[Request, "asyncio.Future[Outcome]"]


def _deliver(waiting: list["asyncio.Future[Outcome]"], answers: list[Answer]) -> None:
    for future, answer in zip(waiting, answers, strict=True):
        if future.done():  # its client went away
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
