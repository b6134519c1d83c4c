"""A node that stops in the middle of its work, as a machine that sleeps or loses its network, holds nobody up."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import psutil
import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.store.schema import Tables
from tests.faults.followers import SocketFollower, following, until_seen
from tests.faults.many_writers import LAST, publish_last, read_log
from tests.faults.processes import Node, Processes, prepare, stopped
from tests.waiting import eventually

TIMEOUT = 2.0
"""Seconds that a database operation of the nodes may take."""
PATIENCE = 15.0
"""Seconds after which a publish through another node has failed: it need not wait for much longer than `TIMEOUT`."""


@pytest.mark.databases("postgresql", "mysql")
async def test_a_node_that_freezes_with_the_heads_lock_loses_it(processes: Processes, database_url: str) -> None:
    await prepare(database_url)
    frozen = await processes.node(database_url, name="frozen", by="serve", statement_timeout=TIMEOUT)
    other = await processes.node(
        database_url, name="other", by="serve", statement_timeout=TIMEOUT, poll_interval=60, poll_only=True
    )
    follower = SocketFollower(frozen.ws)
    async with (
        following(follower),
        EventBusClient(ClientConfig(url=other.ws, max_reconnect_interval=1.0, proxy=None)) as client,
        _frozen_with_the_lock(frozen, database_url, follower),
        asyncio.timeout(PATIENCE),
    ):
        await client.publish("direct", 1)
    async with following(follower):
        await publish_last(other)
        await until_seen([follower], LAST, 30)

    assert [(event.seq, event.message_id) for event in follower.seen] == await read_log(other)


@contextlib.asynccontextmanager
async def _frozen_with_the_lock(node: Node, database_url: str, follower: SocketFollower) -> AsyncIterator[None]:
    """Freeze the node, inside the block, at a moment when it holds the lock of the head."""
    engine = create_async_engine(database_url)
    is_over = asyncio.Event()
    writing = asyncio.create_task(_commit_events(database_url, engine, is_over))
    async with contextlib.AsyncExitStack() as stack:
        try:
            # By then it has prepared its statements; a server does not call a transaction idle that is about to.
            await eventually(lambda: len(follower.seen) > 200, 20)
            await _freeze(node, engine, stack)
        finally:
            is_over.set()
            await writing
            await engine.dispose()
        yield


async def _freeze(node: Node, engine: AsyncEngine, stack: contextlib.AsyncExitStack) -> None:
    """Stop the node again and again, until it holds the lock; it runs on when the stack is closed."""
    process = psutil.Process(node.process.pid)
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(random.uniform(0, 0.02))  # it runs on for some time
            with contextlib.ExitStack() as frozen:
                frozen.enter_context(stopped([process]))
                if await _is_locked(engine):
                    stack.push(frozen.pop_all())
                    return


async def _commit_events(database_url: str, engine: AsyncEngine, is_over: asyncio.Event) -> None:
    """Give the nodes something to sequence."""
    bus = EventBus(database_url)
    while not is_over.is_set():
        async with engine.begin() as connection:
            await bus.publish_txn(connection, "committed", 1)


async def _is_locked(engine: AsyncEngine) -> bool:
    """Say whether somebody holds the lock of the head."""
    head = Tables("bus_").head
    try:
        async with engine.begin() as connection:
            await connection.execute(select(head.c.id).with_for_update(nowait=True))
    except DBAPIError:
        return True
    return False
