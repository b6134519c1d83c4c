"""The bus of a worker that takes down how many of its events run at once:

    EVENTBUS_DATABASE_URL=… eventbus worker tests.faults.counting:eventbus

Its handler writes a row for every attempt, in a transaction that has nothing to do with the bus.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import Column, Integer, MetaData, Table, insert

from eventbus_fastapi import Attempt, EventBus, Message

COUNTED = Table(
    "counted",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("at_once", Integer, nullable=False),
)
GROUP = "counting"
QUEUE = "counted"
TOPIC = "work"
WORKERS = 2

eventbus = EventBus()
eventbus.queue(QUEUE, workers=WORKERS, batch_size=20, poll_interval=60)
running: set[object] = set()


@eventbus.handler(TOPIC, group=GROUP, queue=QUEUE)
async def count(message: Message, attempt: Attempt) -> None:
    itself = object()
    running.add(itself)
    try:
        at_once = len(running)
        await asyncio.sleep(0.02)
        async with eventbus.engine.begin() as connection:
            values = {"seq": message.seq, "attempt": attempt, "at_once": at_once}
            await connection.execute(insert(COUNTED).values(values))
    finally:
        running.discard(itself)
