"""A hundred slow, silent, dribbling and flooding clients leave the others' delay as it was, and cost bounded memory.

    python -m tests.faults.hostile_crowd                    # 100 of them, 30 seconds, on SQLite and PostgreSQL
    python -m tests.faults.hostile_crowd --count 400 --seconds 60

The delay is that of one client's events on their way to another, published at a modest pace through the node that the
crowd attacks: without the crowd, then beside it, and at last beside a program that takes as much of the processors as
the crowd did and talks to nobody (`busy`): what that costs is the machine's, not the node's. The crowd comes from
another address, as it would, and has a processor only where nobody else wants it (nice 19): it would have a machine of
its own. What a machine of few processors feels nevertheless is told apart by two timers that do nothing but wait, one
in this program, one in the node's event loop, of which it is also told how long the node itself kept the processor
before it woke up (`timed_serve`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
from websockets.asyncio.client import connect

from eventbus_fastapi.client import ClientConfig, EventBusClient
from tests.faults import command, timed_serve
from tests.faults.followers import V1
from tests.faults.processes import Node, Process, Processes, prepare
from tests.waiting import eventually

TOPIC = "good"
PACE = 0.02
"""Seconds between two events: 50 a second."""
MEGABYTE = 1_000_000
LIMITS = {"publish_rate": 1_000, "publish_burst": 2_000, "max_connections_per_address": 1_000}
"""The defaults, which cases otherwise go without."""


class Delays:
    """What was measured in some time."""

    def __init__(self) -> None:
        self.events: list[float] = []
        self.timer: list[float] = []
        """How much too late a task of this program woke up."""
        self.loop: list[float] = []
        """How much too late a task of the node woke up."""
        self.own: list[float] = []
        """How long the node's loop had the processor before it did."""
        self.busy = self.crowd_busy = 0.0
        """How much of one processor the node had, and the crowd."""
        self.memory = 0

    def shown(self) -> str:
        return _times(self.events)


async def run(
    processes: Processes, database_url: str, *, count: int, seconds: float, kind: str | None = None, **settings: Any
) -> Mapping[str, Any]:
    """Run the case.

    Raises:
        AssertionError: an event did not arrive, or the node did not recover.
    """
    await prepare(database_url)
    node = await processes.node(database_url, by="timed", **{**LIMITS, **settings})
    before = await _measure(processes, node, seconds)

    program = ["-m", "tests.faults.hostile_client", str(node.port), "--count", str(count)]
    crowd = processes.python("crowd", program if kind is None else [*program, "--kind", kind])
    os.setpriority(os.PRIO_PROCESS, crowd.pid, 19)
    await eventually(lambda: crowd.exit_code is not None or node.process.connections(node.port) > 0, 30)
    beside = await _measure(processes, node, seconds, crowd)
    assert crowd.exit_code is None, crowd.text()
    crowd.kill()

    await eventually(lambda: node.process.connections(node.port) == 0, 90)
    async with httpx.AsyncClient(base_url=node.http, trust_env=False) as http:
        assert (await http.get("/readyz")).status_code == 200
    after = await _measure(processes, node, min(seconds, 5))
    busy = processes.python("busy", ["-m", "tests.faults.busy", f"{min(beside.crowd_busy, 1.0):.2f}"])
    os.setpriority(os.PRIO_PROCESS, busy.pid, 19)
    beside_busy = await _measure(processes, node, seconds)
    busy.kill()
    return {
        "hostile clients": count,
        "delay of others without them, median / p99 (ms)": before.shown(),
        "delay of others beside them, median / p99 (ms)": beside.shown(),
        "delay of others beside as busy a program, median / p99 (ms)": beside_busy.shown(),
        "a timer's delay without them, median / p99 (ms)": _times(before.timer),
        "a timer's delay beside them, median / p99 (ms)": _times(beside.timer),
        "the loop's delay without them, median / p99 (ms)": _times(before.loop),
        "the loop's delay beside them, median / p99 (ms)": _times(beside.loop),
        "its own work in that, without them (ms)": _times(before.own),
        "its own work in that, beside them (ms)": _times(beside.own),
        "processor of the node, without / beside them": f"{before.busy:.2f} / {beside.busy:.2f}",
        "processor of the crowd": beside.crowd_busy,
        "memory without them (MB)": before.memory / MEGABYTE,
        "memory beside them, at most (MB)": beside.memory / MEGABYTE,
        "memory when they are gone (MB)": after.memory / MEGABYTE,
    }


async def _measure(processes: Processes, node: Node, seconds: float, crowd: Process | None = None) -> Delays:
    """Publish for some seconds, and take down when the events arrive and what the node is doing."""
    found = Delays()
    count = int(seconds / PACE)
    began = time.monotonic()
    busy, crowd_busy = node.process.busy(), crowd.busy() if crowd else 0.0
    node.process.signal(signal.SIGUSR1)
    async with _reading(node, found), EventBusClient(ClientConfig(url=node.ws, proxy=None)) as client:
        for number in range(count):
            due = time.monotonic() + PACE
            await client.publish(TOPIC, {"number": number, "at": time.monotonic()})
            found.memory = max(found.memory, node.process.memory())
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
        await eventually(lambda: len(found.events) == count, 30)
    passed = time.monotonic() - began
    found.busy = (node.process.busy() - busy) / passed
    found.crowd_busy = (crowd.busy() - crowd_busy) / passed if crowd else 0.0
    late = processes.directory / timed_serve.LATE
    node.process.signal(signal.SIGUSR2)
    await eventually(late.exists, 30)
    for line in late.read_text().splitlines():
        wall, own = map(float, line.split())
        found.loop.append(wall)
        found.own.append(own)
    late.unlink()
    return found


@contextlib.asynccontextmanager
async def _reading(node: Node, found: Delays) -> AsyncIterator[None]:
    async with connect(node.ws, subprotocols=[V1], compression=None, proxy=None, open_timeout=30) as socket:
        await socket.send(json.dumps({"type": "subscribe", "id": 1, "pattern": TOPIC}))
        while json.loads(await socket.recv())["type"] != "ok":
            pass

        async def read() -> None:
            while True:
                frame = json.loads(await socket.recv())
                now = time.monotonic()
                for one in frame if isinstance(frame, list) else [frame]:
                    if one["type"] == "event":
                        assert one["payload"]["number"] == len(found.events)
                        found.events.append(now - one["payload"]["at"])

        async def wake() -> None:
            while True:
                due = time.monotonic() + PACE
                await asyncio.sleep(PACE)
                found.timer.append(time.monotonic() - due)

        tasks = [asyncio.create_task(read(), name="reader"), asyncio.create_task(wake(), name="timer")]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _times(delays: list[float]) -> str:
    return f"{command.percentile(delays, 0.5) * 1000:.1f} / {command.percentile(delays, 0.99) * 1000:.1f}"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--kind", help="only this kind of client, of hostile_client.KINDS")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, count=options.count, seconds=options.seconds, kind=options.kind)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=("sqlite", "postgresql"))
