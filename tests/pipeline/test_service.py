"""The loop of a stage: it works, waits as the stage says or its bell rings, and survives every failure."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.bell import Bell
from tests.waiting import eventually


class Counting:
    """A stage that counts its turns; `work` says what each does."""

    name = "counting"

    def __init__(self, work: Callable[[int], float | None]) -> None:
        self.bell = Bell()
        self.turns = 0
        self._work = work

    async def run_once(self) -> float | None:
        self.turns += 1
        return self._work(self.turns)


@contextlib.asynccontextmanager
async def running(stage: Counting) -> AsyncIterator[asyncio.Task[None]]:
    task = service.start(stage)
    yield task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def fail(error: Exception) -> None:
    raise error


async def test_a_stage_that_has_more_to_do_goes_on_at_once() -> None:
    stage = Counting(lambda turn: 0 if turn < 5 else None)
    async with running(stage):
        await eventually(lambda: stage.turns == 5)


async def test_a_stage_without_a_time_waits_for_its_bell() -> None:
    stage = Counting(lambda turn: None)
    async with running(stage):
        await eventually(lambda: stage.turns == 1)
        stage.bell.ring()
        await eventually(lambda: stage.turns == 2)


async def test_a_stage_with_a_time_goes_on_after_it() -> None:
    stage = Counting(lambda turn: 0.001)
    async with running(stage):
        await eventually(lambda: stage.turns >= 3)


async def test_the_bell_ends_a_long_wait() -> None:
    stage = Counting(lambda turn: 3_600)
    async with running(stage):
        await eventually(lambda: stage.turns == 1)
        stage.bell.ring()
        await eventually(lambda: stage.turns == 2)


async def test_a_database_that_is_away_is_a_pause_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stage = Counting(lambda turn: fail(StoreUnavailable("away")) if turn <= 3 else None)
    async with running(stage):
        await eventually(lambda: stage.turns == 4 and len(caplog.records) == 2)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "counting paused: away"),
        ("INFO", "counting resumed after 3 failures"),
    ]


async def test_a_fault_is_logged_with_the_stages_name_and_the_loop_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    stage = Counting(lambda turn: fail(ValueError("a bug")) if turn == 1 else None)
    async with running(stage) as task:
        await eventually(lambda: stage.turns == 2)
        assert not task.done()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == "counting failed"
    assert record.exc_info is not None


async def test_cancelling_ends_the_loop() -> None:
    stage = Counting(lambda turn: None)
    async with running(stage) as task:
        await eventually(lambda: stage.turns == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("error", [StoreUnavailable("away"), OSError("a driver failed to close")])
async def test_an_error_that_comes_of_cancelling_does_not_keep_the_loop_alive(error: Exception) -> None:
    class Failing(Counting):
        async def run_once(self) -> float | None:
            self.turns += 1
            try:
                await asyncio.Event().wait()
            finally:
                raise error

    stage = Failing(lambda turn: None)
    async with running(stage) as task:
        await eventually(lambda: stage.turns == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)


async def test_the_task_is_named_and_knows_nothing_of_the_request_that_started_it() -> None:
    request = contextvars.ContextVar[str]("request")
    request.set("of a user")
    seen: list[str | None] = []
    stage = Counting(lambda turn: seen.append(request.get(None)))
    async with running(stage) as task:
        assert task.get_name() == "eventbus-counting"
        await eventually(lambda: bool(seen))
    assert seen == [None]
