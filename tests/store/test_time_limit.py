"""How long a database operation may take, and what of that does not count."""

from __future__ import annotations

import asyncio

import pytest

from eventbus_fastapi.store.time_limit import PARTS, TimeLimit
from tests.store.standstill import stand_still

HOUR = 3_600.0


async def wait_for(answer: asyncio.Future[str], seconds: float) -> str:
    async with TimeLimit(seconds):
        return await answer


async def test_what_takes_longer_is_cancelled() -> None:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    began = loop.time()
    with pytest.raises(TimeoutError):
        await wait_for(answer, 0.05)
    assert loop.time() - began >= 0.05
    assert answer.cancelled()


async def test_an_error_inside_is_not_hidden() -> None:
    with pytest.raises(LookupError):
        async with TimeLimit(HOUR):
            raise LookupError


async def test_an_answer_that_comes_after_a_standstill_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process that stood still for longer than the limit, then it first looks what has come meanwhile."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[str] = loop.create_future()
    waiting = asyncio.create_task(wait_for(answer, HOUR))
    await asyncio.sleep(0)
    stand_still(monkeypatch, 2 * HOUR)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answer.set_result("it")
    assert await waiting == "it"


async def test_one_standstill_after_another_ends_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_for(answer, HOUR))
    for _ in range(PARTS):
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        stand_still(monkeypatch, 2 * HOUR)
    with pytest.raises(TimeoutError):
        await waiting
