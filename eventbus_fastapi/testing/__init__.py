"""For the test suites of applications: a bus in memory whose handlers run when the test says so.

    pytest_plugins = ["eventbus_fastapi.testing"]      # in conftest.py: the fixtures `eventbus` and `bus`

    async def test_a_user_is_welcomed(bus):
        async with bus:                                # or the app's lifespan, as in a TestClient
            await bus.eventbus.publish(UserCreated(id=1, username="alice"))
            await bus.assert_published(UserCreated, username="alice")
            await bus.drain()

A `BusTester` puts an `EventBus` on a database in memory, with the log, the outbox, the groups, the retries and the dead
letters of the real one. No workers run: `drain` claims, calls and settles as they do, one event after the other. It
never sleeps: what is due later becomes due when the test moves the clock. In a block of `bus.inline()` publishing
drains by itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.testing.clock import Clock
from eventbus_fastapi.testing.drain import Handled
from eventbus_fastapi.testing.swap import IN_MEMORY, swap
from eventbus_fastapi.testing.tester import BusTester

__all__ = ["BusTester", "Clock", "Handled", "bus", "eventbus", "swap"]


@pytest.fixture
def eventbus() -> EventBus:
    """The bus under test: an empty one. Override it to return your app's, wherever its database is."""
    return EventBus(IN_MEMORY)


@pytest.fixture
def bus(eventbus: EventBus) -> Iterator[BusTester]:
    """The bus of the fixture `eventbus`, in memory; see `BusTester`. It is not started."""
    with swap(eventbus) as tester:
        yield tester
