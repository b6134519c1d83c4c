"""A worker process that takes down what it handles:

    EVENTBUS_DATABASE_URL=… python -m tests.faults.handling NAME

Its handler writes a row of its own for every attempt, in a transaction that has nothing to do with the bus: what is in
the table was handled, whatever became of the process afterwards.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Row, String, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi import Attempt, EventBus, Message, Settings
from eventbus_fastapi.store.archive import ArchiveEntry, ArchiveFilter

HANDLED = Table(
    "handled",
    MetaData(),
    Column("seq", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", String(64), nullable=False),
)
GROUP = "handling"
TOPIC = "work"


def make_bus(name: str, *, workers: int = 5) -> EventBus:
    """Make a bus whose handler takes down what it handles."""
    eventbus = EventBus(settings=Settings(), workers=True)
    eventbus.queue("default", workers=workers, batch_size=20, archive="all")

    @eventbus.handler(TOPIC, group=GROUP, max_retries=50)
    async def handle(message: Message, attempt: Attempt) -> None:
        await asyncio.sleep(random.uniform(0, 0.01))
        async with eventbus.engine.begin() as connection:
            values = {"seq": message.seq, "attempt": attempt, "worker": name}
            await connection.execute(insert(HANDLED).values(values))

    return eventbus


async def read_handled(engine: AsyncEngine) -> Sequence[Row[Any]]:
    """Return every attempt that was taken down."""
    async with engine.connect() as connection:
        return (await connection.execute(select(HANDLED))).all()


async def read_endings(eventbus: EventBus) -> dict[int, ArchiveEntry]:
    """Return how each event has ended, by seq.

    Raises:
        AssertionError: one has ended twice.
    """
    store = eventbus.node.store
    group = await store.groups.get(GROUP)
    entries: list[ArchiveEntry] = []
    after: int | None = 0
    while after is not None:
        page = await store.archive.find(group, ArchiveFilter(), after=after, limit=1_000)
        entries += page.entries
        after = page.next
    endings = {entry.seq: entry for entry in entries}
    assert len(endings) == len(entries), f"{len(entries) - len(endings)} events have ended twice"
    return endings


async def main(name: str) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with make_bus(name):
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
