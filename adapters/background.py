"""Ending work that goes on in the background of an event loop."""

import asyncio

CANCEL_SECONDS = 1.0
"""After so long without an end a task is cancelled again."""


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel ``tasks`` until each has ended.

    Once is not enough: `asyncio.wait_for` of Python 3.11, which connection pools wait with, loses the cancellation when
    what it waits for comes in the same turn of the loop (https://github.com/python/cpython/issues/86296).
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
