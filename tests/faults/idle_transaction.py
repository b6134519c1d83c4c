"""A transaction that has published stays open and idle; what others publish meanwhile arrives at once.

    python -m tests.faults.idle_transaction                 # a minute on PostgreSQL and MariaDB

SQLite has one writer, so there the others wait for it; see test_commit_order.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.bus import EventBus
from tests.faults import command
from tests.faults.followers import SocketFollower, following
from tests.faults.processes import Processes, prepare
from tests.faults.writer import async_engine
from tests.waiting import eventually

PACE = 0.2
"""Seconds between two others."""


async def run(processes: Processes, database_url: str, *, seconds: float) -> Mapping[str, Any]:
    """Keep a transaction open for so many seconds while others publish, then commit it."""
    await prepare(database_url)
    node = await processes.node(database_url)
    follower = SocketFollower(node.ws)
    bus, engine = EventBus(database_url), async_engine(database_url)
    in_transactions: list[float] = []
    through_the_node: list[float] = []
    async with following(follower), httpx.AsyncClient(base_url=node.http, trust_env=False) as client:
        async with engine.begin() as idle:
            await bus.publish_txn(idle, "idle", 0)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                in_transactions.append(await _publish_in_transaction(bus, engine, follower))
                through_the_node.append(await _publish_through(client, follower))
                await asyncio.sleep(PACE)
        await eventually(lambda: follower.seen[-1].topic == "idle")
    await engine.dispose()
    topics = [event.topic for event in follower.seen]
    assert topics == ["other"] * (len(topics) - 1) + ["idle"]
    assert [event.seq for event in follower.seen] == list(range(1, len(topics) + 1))
    return {
        "events while the transaction was open": len(topics) - 1,
        "commit of another to subscriber, median s": command.percentile(in_transactions, 0.5),
        "commit of another to subscriber, longest s": max(in_transactions),
        "publish through the node, median s": command.percentile(through_the_node, 0.5),
        "publish through the node, longest s": max(through_the_node),
    }


async def _publish_in_transaction(bus: EventBus, engine: AsyncEngine, follower: SocketFollower) -> float:
    """Publish in a transaction of another; return the seconds from its commit until the follower has it."""
    async with engine.begin() as other:
        message_id = (await bus.publish_txn(other, "other", 0)).message_id
    return await _until_seen(str(message_id), follower)


async def _publish_through(client: httpx.AsyncClient, follower: SocketFollower) -> float:
    answer = await client.post("/publish", json={"topic": "other", "payload": 0})
    assert answer.status_code == 201, answer.text
    return await _until_seen(answer.json()["message_id"], follower)


async def _until_seen(message_id: str, follower: SocketFollower) -> float:
    began = time.monotonic()
    await eventually(lambda: follower.seen and follower.seen[-1].message_id == message_id)
    return max(0.0, follower.seen[-1].at - began)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0)


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, seconds=options.seconds)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=("postgresql", "mysql"))
