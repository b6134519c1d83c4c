"""A node with many open sockets stops: all are told when to come back, not all at once, and it is gone in time.

    python -m tests.faults.stopping_crowd                   # 500 sockets, 20 of them not reading

Those that do not read have more waiting for them than the system takes, so their goodbye waits behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from eventbus_fastapi.client import ClientConfig, EventBusClient
from tests.faults import command
from tests.faults.followers import V1
from tests.faults.processes import Node, Processes, prepare
from tests.faults.raw_socket import RawSocket

BULK = ("bulk", "x" * 200_000)
PIECES = 50
"""10 MB for each socket that does not read: more than buffers hold."""
GRACE = 5.0
"""Seconds that `eventbus serve` gives its connections, unless told otherwise."""


class Farewell(NamedTuple):
    """What a client was told at the end."""

    after: float | None
    """Seconds after which to come back; None: it was not told."""
    code: int | None


async def run(processes: Processes, database_url: str, *, sockets: int, unread: int) -> Mapping[str, Any]:
    """Run the case.

    Raises:
        AssertionError: one that read was not told, or the node was not gone within its grace time.
    """
    await prepare(database_url)
    node = await processes.node(database_url, by="serve")
    async with contextlib.AsyncExitStack() as stack:
        readers = await _open(stack, node, sockets - unread)
        await _stall(stack, node, unread)
        reading = [asyncio.create_task(_read(reader), name="reader") for reader in readers]

        began = time.monotonic()
        node.process.signal(signal.SIGTERM)
        farewells = await asyncio.gather(*reading)
        told_within = time.monotonic() - began
        exit_code = await node.process.wait(60)
        gone_within = time.monotonic() - began

    assert exit_code == 0, node.process.text()
    assert gone_within < GRACE + 2, f"it took {gone_within:.1f} s"
    assert Counter(farewell.code for farewell in farewells) == {1012: len(readers)}
    times = sorted(farewell.after for farewell in farewells if farewell.after is not None)
    assert len(times) == len(readers)
    return {
        "sockets": sockets,
        "of them not reading": unread,
        "all that read were told within (s)": told_within,
        "the node was gone within (s)": gone_within,
        "told to come back after, least / median / most (s)": (
            f"{times[0]:.2f} / {command.percentile(times, 0.5):.2f} / {times[-1]:.2f}"
        ),
        "most of them within the same second": max(Counter(int(after) for after in times).values()),
    }


async def _open(stack: contextlib.AsyncExitStack, node: Node, count: int) -> list[ClientConnection]:
    gate = asyncio.Semaphore(20)

    async def open_one() -> ClientConnection:
        async with gate:
            socket = await stack.enter_async_context(
                connect(node.ws, subprotocols=[V1], compression=None, proxy=None, open_timeout=60, ping_interval=None)
            )
            await socket.send(json.dumps({"type": "subscribe", "id": 1, "pattern": "none"}))
            return socket

    return list(await asyncio.gather(*(open_one() for _ in range(count))))


async def _stall(stack: contextlib.AsyncExitStack, node: Node, count: int) -> None:
    """Open sockets that subscribe and do not read, and publish more than fits on the way to them."""
    for _ in range(count):
        socket = await asyncio.to_thread(RawSocket, node.ws, "v1")
        stack.callback(socket.close)
        socket.send(type="subscribe", id=1, pattern=BULK[0])
    async with EventBusClient(ClientConfig(url=node.ws, proxy=None)) as client:
        for _ in range(PIECES):
            await client.publish(*BULK)


async def _read(socket: ClientConnection) -> Farewell:
    after: float | None = None
    try:
        while True:
            said = json.loads(await socket.recv())
            for frame in said if isinstance(said, list) else [said]:
                if frame["type"] == "bye":
                    assert frame["reconnect"] is True
                    after = float(frame["after"])
    except ConnectionClosed as exc:
        return Farewell(after, None if exc.rcvd is None else exc.rcvd.code)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sockets", type=int, default=500)
    parser.add_argument("--unread", type=int, default=20)


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, sockets=options.sockets, unread=options.unread)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=("sqlite",))
