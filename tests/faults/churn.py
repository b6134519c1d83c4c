"""Subscriptions and connections come and go by the thousand, and leave nothing behind in the node.

    python -m tests.faults.churn                            # 10,000 subscriptions, 5,000 connections

The memory of the node is taken down after each quarter. The first one fills pools and caches; after that it stays.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
from websockets.asyncio.client import connect

from tests.faults import command
from tests.faults.followers import V1
from tests.faults.processes import Node, Processes, prepare
from tests.waiting import eventually

QUARTERS = 4
TOGETHER = 50
"""Subscriptions of one frame, and connections at the same time."""
MEGABYTE = 1_000_000


async def run(processes: Processes, database_url: str, *, subscriptions: int, connections: int) -> Mapping[str, Any]:
    """Run the case.

    Raises:
        AssertionError: the node did not answer as it should, or is not well afterwards.
    """
    await prepare(database_url)
    node = await processes.node(database_url, by="serve")
    subscribed = await _by_quarters(node, subscriptions, _subscribe_and_unsubscribe)
    connected = await _by_quarters(node, connections, _connect_and_leave)
    await eventually(lambda: node.process.connections(node.port) == 0, 30)
    async with httpx.AsyncClient(base_url=node.http, trust_env=False) as http:
        assert (await http.get("/readyz")).status_code == 200
    return {
        f"memory after each quarter of {subscriptions:,} subscriptions (MB)": subscribed,
        f"memory after each quarter of {connections:,} connections (MB)": connected,
    }


async def _by_quarters(node: Node, count: int, work: Callable[[Node, int], Awaitable[None]]) -> list[float]:
    found = []
    for _ in range(QUARTERS):
        await work(node, count // QUARTERS)
        found.append(round(node.process.memory() / MEGABYTE, 1))
    return found


async def _subscribe_and_unsubscribe(node: Node, count: int) -> None:
    """On one connection, each with patterns and an id of its own."""
    async with connect(node.ws, subprotocols=[V1], compression=None, proxy=None, max_size=None) as socket:
        for start in range(0, count, TOGETHER):
            frames: list[dict[str, Any]] = []
            for number in range(start, start + TOGETHER):
                sub = f"sub-{number}"
                frames.append({"type": "subscribe", "id": 1, "sub": sub, "patterns": [f"a.{number}.#", "*.b.#"]})
                frames.append({"type": "unsubscribe", "id": 2, "sub": sub})
            await socket.send(json.dumps(frames))
            await _answers(socket, len(frames))


async def _answers(socket: Any, count: int) -> None:
    while count:
        said = json.loads(await socket.recv())
        for frame in said if isinstance(said, list) else [said]:
            assert frame["type"] != "error", frame
            count -= frame["type"] == "ok"


async def _connect_and_leave(node: Node, count: int) -> None:
    """With a subscription, and without a goodbye."""
    gate = asyncio.Semaphore(TOGETHER)

    async def once() -> None:
        async with gate, connect(node.ws, subprotocols=[V1], compression=None, proxy=None, open_timeout=60) as socket:
            await socket.send(json.dumps({"type": "subscribe", "pattern": "#", "after": 0}))
            socket.transport.abort()

    await asyncio.gather(*(once() for _ in range(count)))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subscriptions", type=int, default=10_000)
    parser.add_argument("--connections", type=int, default=5_000)


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, subscriptions=options.subscriptions, connections=options.connections)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=("sqlite",))
