"""Memory per idle connection, at 1,000 of them: against a bare WebSocket on the same uvicorn, which only echoes."""

from __future__ import annotations

import asyncio
import sys

import psutil

from benchmarks.fanout import EVENTBUS
from benchmarks.measuring import Figure, compare
from benchmarks.sockets import Dialect, connected, free_port, running

SOCKETS = 1_000
ECHO = Dialect("eventbus.v1", "hello", b"hello", b"-")


async def per_connection(kind: str, dialect: Dialect) -> float:
    """Return KiB of resident memory that each connection adds to a server that has just started."""
    port = free_port()
    async with running([sys.executable, "-m", "benchmarks.fanout_server", kind, str(port)], port) as process:
        server = psutil.Process(process.pid)
        async with connected(port, dialect, 10):  # what the first ones load is not theirs
            pass
        await asyncio.sleep(1)
        before = server.memory_info().rss
        async with connected(port, dialect, SOCKETS):
            await asyncio.sleep(1)
            return (server.memory_info().rss - before) / SOCKETS / 1_024


async def run(repeat: int) -> list[Figure]:
    figure = await compare(
        f"memory per idle connection, {SOCKETS:,} sockets, an echo",
        lambda: per_connection("echo", ECHO),
        lambda: per_connection("bus", EVENTBUS),
        target=1.5,
        repeat=repeat,
    )
    return [Figure(figure.name, figure.limit, figure.bus, figure.ratio, figure.target, " KiB", is_lower_better=True)]
