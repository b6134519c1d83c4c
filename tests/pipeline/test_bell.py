"""A bell wakes one waiter, from any thread, and remembers that it rang."""

from __future__ import annotations

import asyncio
import threading

from eventbus_fastapi.pipeline.bell import Bell


async def test_without_a_ring_the_wait_ends_after_its_timeout() -> None:
    assert await Bell().wait(0.001) is False


async def test_a_ring_ends_the_wait() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(None))
    await asyncio.sleep(0)
    bell.ring()
    assert await waiting is True


async def test_a_ring_before_the_wait_is_not_lost() -> None:
    bell = Bell()
    bell.ring()
    assert await bell.wait(None) is True


async def test_many_rings_are_one() -> None:
    bell = Bell()
    for _ in range(5):
        bell.ring()
    assert await bell.wait(None) is True
    assert await bell.wait(0.001) is False


async def test_a_ring_from_another_thread_ends_the_wait() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(None))
    await asyncio.sleep(0)
    threading.Thread(target=bell.ring).start()
    assert await waiting is True


async def test_a_ring_from_another_thread_before_anybody_waited_is_not_lost() -> None:
    bell = Bell()
    await asyncio.to_thread(bell.ring)
    assert await bell.wait(None) is True


def test_a_ring_after_the_loop_has_closed_does_no_harm() -> None:
    bell = Bell()
    asyncio.run(bell.wait(0.001))
    bell.ring()


async def test_a_wait_that_is_cancelled_leaves_the_bell_as_it_was() -> None:
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(None))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    bell.ring()
    assert await bell.wait(None) is True
