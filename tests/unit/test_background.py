"""Work in the background ends, even where a cancellation is lost."""

import asyncio

import pytest

from adapters import background


async def deaf(times: int) -> None:
    """Loses so many cancellations, as `asyncio.wait_for` of Python 3.11 now and then does."""
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            times -= 1
            if times < 0:
                raise


def ends(times: int, *, seconds: float = 10) -> bool:
    async def run() -> bool:
        task = asyncio.create_task(deaf(times))
        await asyncio.sleep(0)
        async with asyncio.timeout(seconds):
            await background.end(task)
        return task.cancelled()

    return asyncio.run(run())


def test_what_loses_cancellations_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CANCEL_SECONDS", 0.01)
    assert ends(0)
    assert ends(3)


def test_canary_one_cancellation_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CANCEL_SECONDS", None)
    with pytest.raises(TimeoutError):
        ends(1, seconds=0.1)


def test_nothing_to_end_is_ended_and_failures_are_left_to_who_asks() -> None:
    async def fail() -> None:
        raise ValueError("no")

    async def run() -> BaseException | None:
        await background.end()
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        await background.end(task)
        return task.exception()

    assert isinstance(asyncio.run(run()), ValueError)
