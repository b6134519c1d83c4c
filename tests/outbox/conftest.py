"""Fixtures: an outbox in a database of each kind, and a bus that keeps its log elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from eventbus_fastapi import EventBus, Outbox
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.forward_schema import ForwardTables

LendTables = Callable[[str], dict[str, Any]]


@pytest.fixture
async def outbox(database_url: str) -> AsyncIterator[Outbox]:
    """An outbox with its tables, in a database of its own, on each of KINDS in turn."""
    await migrations.run(Settings(database_url=database_url), ForwardTables(), migrations.upgrade)
    async with Outbox(database_url, name="service", poll_interval=0.05) as outbox:
        yield outbox


@pytest.fixture
def bus_tables(lend_tables: LendTables) -> dict[str, Any]:
    """Settings that name the tables of a bus, in another database."""
    return lend_tables("sqlite")


@pytest.fixture
async def bus(outbox: Outbox, bus_tables: dict[str, Any]) -> AsyncIterator[EventBus]:
    """A running bus that reaches the outbox."""
    async with EventBus(settings=Settings(**bus_tables), outboxes=[outbox]) as bus:
        yield bus
