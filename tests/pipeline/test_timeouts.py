"""Timeouts with one timer: who expires, when, and what their task gets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from eventbus_fastapi.pipeline.timeouts import Limit, Timeouts

SOON = 0.005
LATE = 60.0


@pytest.fixture
def timeouts() -> Iterator[Timeouts]:
    timeouts = Timeouts()
    yield timeouts
    timeouts.close()


async def wait_within(timeouts: Timeouts, seconds: float) -> None:
    with timeouts.within(seconds):
        await asyncio.Event().wait()


async def test_work_that_ends_in_time_notices_nothing(timeouts: Timeouts) -> None:
    with timeouts.within(LATE) as limit:
        await asyncio.sleep(0)
    assert not limit.has_expired


async def test_work_that_does_not_end_in_time_is_cancelled(timeouts: Timeouts) -> None:
    task = asyncio.create_task(wait_within(timeouts, SOON))
    with pytest.raises(TimeoutError):
        await task
    assert task.cancelling() == 0


async def test_each_expires_at_its_own_time_in_whichever_order_they_began(timeouts: Timeouts) -> None:
    ended: list[str] = []

    async def work(name: str, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await wait_within(timeouts, seconds)
        ended.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name, seconds in (("third", 5 * SOON), ("first", SOON), ("second", 3 * SOON)):
            tasks.create_task(work(name, seconds))
    assert ended == ["first", "second", "third"]


async def test_one_that_ended_does_not_keep_the_next_from_expiring(timeouts: Timeouts) -> None:
    with timeouts.within(SOON):
        pass
    with pytest.raises(TimeoutError):
        await wait_within(timeouts, 2 * SOON)


async def expire(limit: Limit) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    assert limit.has_expired


async def test_catching_the_cancellation_does_not_help(timeouts: Timeouts) -> None:
    with pytest.raises(TimeoutError), timeouts.within(SOON) as limit:
        await expire(limit)


async def test_another_error_in_place_of_the_cancellation_is_the_cause(timeouts: Timeouts) -> None:
    async def work() -> None:
        with timeouts.within(SOON) as limit:
            await expire(limit)
            raise ConnectionError

    with pytest.raises(TimeoutError) as caught:
        await work()
    assert isinstance(caught.value.__cause__, ConnectionError)


async def test_a_cancellation_by_somebody_else_passes_through(timeouts: Timeouts) -> None:
    task = asyncio.create_task(wait_within(timeouts, LATE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancellation_by_somebody_else_passes_through_when_it_expires_too(timeouts: Timeouts) -> None:
    async def work() -> None:
        with timeouts.within(SOON) as limit:
            await expire(limit)
            task.cancel()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_inner_one_leaves_the_outer_one_alone(timeouts: Timeouts) -> None:
    with timeouts.within(LATE) as outer:
        with pytest.raises(TimeoutError):
            await wait_within(timeouts, SOON)
        await asyncio.sleep(0)
    assert not outer.has_expired
