"""A reader that takes nothing any more, so that its window is zero, is gone in time, and what waited for it as well.

    python -m tests.faults.zero_window                      # with the default times; every way to read

It subscribes or asks, and never reads. Its system answers for it that it is still there, so no TCP timeout ends it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from eventbus_fastapi.client import ClientConfig, EventBusClient
from tests.faults import command
from tests.faults.processes import Node, Processes, prepare
from tests.faults.raw_socket import RECEIVE_BUFFER, RawSocket
from tests.waiting import eventually

Way = Literal["v1", "plain", "stream", "http"]
By = Literal["serve", "uvicorn"]
PIECE = ("bulk", "x" * 200_000)
PIECES = 150
"""30 MB: more than any buffer on the way holds."""
MEGABYTE = 1_000_000
REQUESTS = {"stream": "/events/stream?after=0", "http": "/events?limit=1000"}
PIPELINED = 20
"""Requests at once, of about a megabyte each: an answer may fit into the buffers of the system."""


async def run(
    processes: Processes, database_url: str, *, way: Way, by: By, within: float, **settings: Any
) -> Mapping[str, Any]:
    """Run the case. `within`: seconds in which the reader has to be gone.

    Raises:
        AssertionError: it is not.
    """
    await prepare(database_url)
    node = await processes.node(database_url, by=by, **settings)
    async with EventBusClient(ClientConfig(url=node.ws, proxy=None)) as client:
        for _ in range(PIECES):
            await client.publish(*PIECE)
    await eventually(lambda: node.process.connections(node.port) == 0)
    memory = node.process.memory()
    with _never_reading(node, way):
        began = time.monotonic()
        await eventually(lambda: node.process.connections(node.port) == 1)
        most = await _watch(node, within)
        gone_after = time.monotonic() - began
    left = node.process.memory() - memory
    return {
        "way to read": way,
        "served by": by,
        "it was gone after (s)": gone_after,
        "memory grew by, at most (MB)": (most - memory) / MEGABYTE,
        "and when it was gone (MB)": left / MEGABYTE,
    }


async def _watch(node: Node, within: float) -> int:
    """Wait until the reader is gone; return the most memory that the node had meanwhile."""
    most = 0

    def is_gone() -> bool:
        nonlocal most
        most = max(most, node.process.memory())
        return node.process.connections(node.port) == 0

    await eventually(is_gone, within)
    return most


@contextlib.contextmanager
def _never_reading(node: Node, way: Way) -> Iterator[None]:
    if way in REQUESTS:
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            reader.connect(("127.0.0.1", node.port))
            reader.sendall(f"GET {REQUESTS[way]} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * PIPELINED)
            yield
        return
    raw = RawSocket(node.ws, "v1" if way == "v1" else "plain")
    raw.send(type="subscribe", pattern="#", starting_seq=1)
    try:
        yield
    finally:
        raw.close()


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--way", choices=get_args(Way), action="append", help="one of them; may be given again")
    parser.add_argument("--by", choices=get_args(By), default="serve")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    ways: list[Way] = options.way or [*get_args(Way)]
    found: dict[str, Any] = {}
    for way in ways:
        numbers = await run(processes, database_url, way=way, by=options.by, within=90)
        found.update({f"{way}: {name}": number for name, number in numbers.items() if name != "way to read"})
        await asyncio.sleep(0)
    return found


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=("sqlite",))
