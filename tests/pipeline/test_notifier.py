"""The notifier hears of appends by others, says whether it listens, and ends with its connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.pipeline.notifier import Notifier
from tests.drafts import draft, drafts
from tests.store.servers import end_sessions
from tests.waiting import eventually

pytestmark = pytest.mark.databases("postgresql")


class Ear:
    """A notifier that runs, and what it has said."""

    def __init__(self, bus: EventBus) -> None:
        self.told: list[int] = []
        self.looks = 0
        self.notifier = Notifier(bus.node.store, tell=self.told.append, look=self._look)
        self.task = asyncio.create_task(self.notifier.run_once())

    def _look(self) -> None:
        self.looks += 1


@pytest.fixture
async def other(open_bus: Callable[..., Awaitable[EventBus]]) -> EventBus:
    """Another node."""
    return await open_bus()


@pytest.fixture
async def ear(bus: EventBus) -> AsyncIterator[Ear]:
    ear = Ear(bus)
    await eventually(lambda: ear.notifier.is_alive)
    yield ear
    ear.task.cancel()
    await asyncio.gather(ear.task, return_exceptions=True)


async def test_it_asks_for_a_look_once_it_listens_since_it_may_have_missed_something(ear: Ear) -> None:
    assert ear.looks == 1
    assert ear.told == []


async def test_it_tells_how_far_another_node_has_written_the_log(ear: Ear, other: EventBus) -> None:
    await other.node.submit([draft()])
    await eventually(lambda: 1 in ear.told)
    await other.node.submit(drafts(5))
    await eventually(lambda: 6 in ear.told)


async def test_it_is_not_alive_before_it_listens_nor_after_it_ended(bus: EventBus) -> None:
    ear = Ear(bus)
    assert not ear.notifier.is_alive
    await eventually(lambda: ear.notifier.is_alive)
    ear.task.cancel()
    await asyncio.gather(ear.task, return_exceptions=True)
    assert not ear.notifier.is_alive


async def test_a_lost_connection_ends_it_with_an_error_that_passes(ear: Ear, own_tables: dict[str, Any]) -> None:
    end_sessions(own_tables["database_url"], "query LIKE 'LISTEN%'")
    with pytest.raises(StoreUnavailable, match="listening"):
        await ear.task
    assert not ear.notifier.is_alive
