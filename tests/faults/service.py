"""A service with a database of its own, which publishes in its transactions and knows no bus:

    python -m tests.faults.service DATABASE_URL --forward ws://…

Each transaction stores a row and publishes an event whose message_id is the row's id, so the table says which events
there must be, and in which order. A transaction begins once the last one was answered. Some roll back. With
`--forward` it carries its outbox to a bus itself. It goes on until it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi import Outbox, OutboxForwarder

THINGS = Table(
    "thing",
    MetaData(),
    Column("number", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False),
)
"""The service's own rows, numbered in the order of its transactions."""
ROLLBACKS = 0.2
TOPIC = "thing.created"


async def make_things(outbox: Outbox) -> None:
    async with outbox.engine.begin() as connection:
        await connection.run_sync(THINGS.metadata.create_all)


async def read_things(outbox: Outbox) -> list[UUID]:
    """Return the ids of what was committed, in the order in which it was."""
    async with outbox.engine.connect() as connection:
        rows = await connection.execute(select(THINGS.c.id).order_by(THINGS.c.number))
        return [UUID(row) for row in rows.scalars()]


class Abandoned(Exception):
    """The transaction rolls back, as after an error of the program."""


async def work(outbox: Outbox, ended: asyncio.Event, pause: float) -> None:
    """Run one transaction after the other, each of a few events."""
    chance = random.Random()
    while not ended.is_set():
        with contextlib.suppress(Abandoned):
            async with outbox.engine.begin() as connection:
                for _ in range(chance.randint(1, 3)):
                    await _add(outbox, connection)
                if chance.random() < ROLLBACKS:
                    raise Abandoned
        await asyncio.sleep(chance.uniform(0, pause))


async def _add(outbox: Outbox, connection: AsyncConnection) -> None:
    thing = uuid4()
    await connection.execute(insert(THINGS).values(id=str(thing)))
    await outbox.publish_txn(connection, TOPIC, {"id": str(thing), "note": "x" * 100}, message_id=thing)


async def main(database_url: str, url: str | None, pause: float) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with contextlib.AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(Outbox(database_url, busy_timeout=30))
        if url is not None:
            await stack.enter_async_context(OutboxForwarder(outbox, url))
        await work(outbox, ended, pause)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database_url")
    parser.add_argument("--forward", help="URL of the bus")
    parser.add_argument("--pause", type=float, default=0.01, help="longest pause after a transaction, seconds")
    options = parser.parse_args()
    asyncio.run(main(options.database_url, options.forward, options.pause))
