"""A program that publishes inside its own transactions and has no bus of its own running:

    python -m tests.faults.writer DATABASE_URL --count 2000

Each transaction stores a row and publishes an event whose message_id is the row's id, so the table says which events
there must be. Some pause before the commit, some roll back, some undo a SAVEPOINT with a row and an event in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Column, MetaData, String, Table, create_engine, event, insert, select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventbus_fastapi.bus import EventBus
from tests.databases import as_sync, kind_of

THINGS = Table("thing", MetaData(), Column("id", String(36), primary_key=True))
"""The writer's own rows."""
LOCK_TIMEOUT = 60.0
"""Seconds that a writer waits for SQLite's one write lock."""


class Abandoned(Exception):
    """The transaction rolls back, as after an error of the program."""


class Writer:
    """Runs transactions one after the other."""

    def __init__(
        self, database_url: str, *, topic: str, rollbacks: float, savepoints: float, pause: float, seed: int
    ) -> None:
        self._bus = EventBus(database_url)
        self._url = database_url
        self._topic = topic
        self._rollbacks = rollbacks
        self._savepoints = savepoints
        self._pause = pause
        self._random = random.Random(seed)

    async def run(self, count: int) -> int:
        """Run so many transactions through an async engine; return how many committed."""
        engine = async_engine(self._url)
        committed = 0
        for _ in range(count):
            with contextlib.suppress(Abandoned):
                async with engine.begin() as connection:
                    await self._add(connection)
                    if self._random.random() < self._savepoints:
                        with contextlib.suppress(Abandoned):
                            async with connection.begin_nested():
                                await self._add(connection)
                                raise Abandoned
                    await asyncio.sleep(self._random.uniform(0, self._pause))
                    self._perhaps_abandon()
                committed += 1
        await engine.dispose()
        return committed

    def run_sync(self, count: int) -> int:
        """Do the same with a sync engine and its driver."""
        engine = sync_engine(self._url)
        committed = 0
        for _ in range(count):
            with contextlib.suppress(Abandoned):
                with engine.begin() as connection:
                    self._add_sync(connection)
                    if self._random.random() < self._savepoints:
                        with contextlib.suppress(Abandoned), connection.begin_nested():
                            self._add_sync(connection)
                            raise Abandoned
                    time.sleep(self._random.uniform(0, self._pause))
                    self._perhaps_abandon()
                committed += 1
        engine.dispose()
        return committed

    async def _add(self, connection: AsyncConnection) -> None:
        thing = uuid4()
        await connection.execute(insert(THINGS).values(id=str(thing)))
        await self._bus.publish_txn(connection, self._topic, _payload(thing), message_id=thing)

    def _add_sync(self, connection: Connection) -> None:
        thing = uuid4()
        connection.execute(insert(THINGS).values(id=str(thing)))
        self._bus.publish_txn_sync(connection, self._topic, _payload(thing), message_id=thing)

    def _perhaps_abandon(self) -> None:
        if self._random.random() < self._rollbacks:
            raise Abandoned


def _payload(thing: UUID) -> dict[str, Any]:
    return {"id": str(thing), "note": "x" * 100}


def sync_engine(database_url: str) -> Any:
    """Make an engine as a program of its own would; on SQLite one that waits for its turn to write."""
    if kind_of(database_url) != "sqlite":
        return create_engine(as_sync(database_url))
    engine = create_engine(as_sync(database_url), connect_args={"timeout": LOCK_TIMEOUT, "isolation_level": None})
    _begin_immediate(engine)
    return engine


def async_engine(database_url: str) -> AsyncEngine:
    """Make an async engine, likewise."""
    if kind_of(database_url) != "sqlite":
        return create_async_engine(database_url)
    engine = create_async_engine(database_url, connect_args={"timeout": LOCK_TIMEOUT, "isolation_level": None})
    _begin_immediate(engine.sync_engine)
    return engine


def _begin_immediate(engine: Any) -> None:
    """Begin with the write lock: a transaction that reads first could not wait for it later."""
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def make_things(database_url: str) -> None:
    """Make the writers' own table."""
    engine = sync_engine(database_url)
    THINGS.metadata.create_all(engine)
    engine.dispose()


def read_things(database_url: str) -> set[str]:
    """Return the ids of all rows that were committed."""
    engine = sync_engine(database_url)
    with engine.connect() as connection:
        things = set(connection.execute(select(THINGS.c.id)).scalars())
    engine.dispose()
    return things


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database_url")
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--topic", default="thing.created")
    parser.add_argument("--rollbacks", type=float, default=0.2, help="share of transactions that roll back")
    parser.add_argument("--savepoints", type=float, default=0.1, help="share with a SAVEPOINT that is undone")
    parser.add_argument("--pause", type=float, default=0.01, help="longest pause before a commit, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sync", action="store_true")
    options = parser.parse_args(arguments)
    writer = Writer(
        options.database_url,
        topic=options.topic,
        rollbacks=options.rollbacks,
        savepoints=options.savepoints,
        pause=options.pause,
        seed=options.seed,
    )
    if options.sync:
        writer.run_sync(options.count)
    else:
        asyncio.run(writer.run(options.count))


if __name__ == "__main__":
    main()
