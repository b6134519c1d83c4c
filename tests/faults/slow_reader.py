"""A subscriber that does not read while many events are published costs its node little, and others nothing.

    python -m tests.faults.slow_reader                      # 200,000 events, every database, both dialects

The node's memory is that of its process, at most, less what it was before the first event. The delay is that of another
subscriber, from the call that publishes a batch to the arrival of its last event, without and with the slow one. The
slow one reads on when all is published, finds out that it was closed with 4100, comes back and resumes; with `--gone`
it reads on only after the server has given it up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from websockets.asyncio.client import connect

from tests.faults import command
from tests.faults.followers import V1, SocketFollower, following
from tests.faults.loader import TOPIC
from tests.faults.processes import Node, Process, Processes, prepare
from tests.faults.raw_socket import RawSocket
from tests.waiting import eventually

Dialect = Literal["plain", "v1"]
MEGABYTE = 1_000_000
SAMPLE = 0.05
"""Seconds between two looks at the memory."""


class QuickReader:
    """Another subscriber, which reads at once and takes down how long events were on their way."""

    def __init__(self, url: str) -> None:
        self.delays: list[float] = []
        self.number = -1
        """The last event that it got."""
        self._url = url
        self._is_ready = asyncio.Event()

    async def run(self) -> None:
        async with connect(self._url, subprotocols=[V1], compression=None, max_size=None, proxy=None) as socket:
            await socket.send(json.dumps({"type": "subscribe", "id": 1, "pattern": TOPIC}))
            while True:
                frame = json.loads(await socket.recv())
                now = time.monotonic()
                for one in frame if isinstance(frame, list) else [frame]:
                    if one["type"] == "event":
                        self._note(one["payload"], now)
                    elif one["type"] == "ok":
                        self._is_ready.set()

    def _note(self, payload: dict[str, Any], now: float) -> None:
        assert payload["number"] == self.number + 1, f"got {payload['number']} after {self.number}"
        self.number = payload["number"]
        self.delays.append(now - payload["at"])

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.run(), name="quick-reader")
        try:
            await asyncio.wait_for(self._is_ready.wait(), 10)
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def run(
    processes: Processes,
    database_url: str,
    *,
    dialect: Dialect,
    count: int,
    is_gone: bool = False,
    timeout: float = 60.0,
    **settings: Any,
) -> Mapping[str, Any]:
    """Run the case.

    Raises:
        AssertionError: the slow one was not closed with 41xx, or missed or doubled events when it resumed.
    """
    await prepare(database_url)
    node = await processes.node(database_url, by="serve", **settings)
    alone, memory_alone = await _publish(processes, node, count, timeout)
    await node.restart()

    slow = RawSocket(node.ws, dialect)
    slow.send(type="subscribe", id=1, pattern=TOPIC)
    beside, memory_beside = await _publish(processes, node, count, timeout)
    await eventually(lambda: "with 4100" in node.process.text(), timeout)
    if is_gone:
        await eventually(lambda: "gave up" in node.process.text(), timeout)
    was_given_up = "gave up" in node.process.text()  # it also is if publishing takes longer than `close_timeout`
    seqs = [frame["seq"] for frame in await asyncio.to_thread(list, slow.read()) if _is_event(frame)]
    slow.close()
    assert slow.close_code == (None if was_given_up else 4100)

    last = seqs[-1] if seqs else count
    again = SocketFollower(node.ws, dialect=dialect, pattern=TOPIC, after=last)
    async with following(again):
        await eventually(lambda: len(seqs) + len(again.seen) >= count, timeout)
    assert seqs + [event.seq for event in again.seen] == list(range(count + 1, 2 * count + 1))
    return {
        "dialect": dialect,
        "events": count,
        "memory grew by, without the slow one (MB)": memory_alone / MEGABYTE,
        "memory grew by, with it (MB)": memory_beside / MEGABYTE,
        "delay of another without it, median / p99 (ms)": _times(alone),
        "delay of another with it, median / p99 (ms)": _times(beside),
        "median delay, with / without": command.percentile(beside, 0.5) / command.percentile(alone, 0.5),
        "close code of the slow one": slow.close_code or "none, it was given up",
        "it had got / it got after it came back": f"{len(seqs):,} / {len(again.seen):,}",
    }


async def _publish(processes: Processes, node: Node, count: int, timeout: float) -> tuple[list[float], int]:
    """Publish events while another subscriber reads; return its delays, and by how much the node's memory grew."""
    quick = QuickReader(node.ws)
    async with quick.reading():
        before = most = node.process.memory()
        loading = processes.python("loader", ["-m", "tests.faults.loader", node.ws, "--count", str(count)])
        deadline = time.monotonic() + timeout
        while not _is_done(loading, quick, count):
            assert time.monotonic() < deadline, f"only {quick.number + 1:,} of {count:,} events came"
            await asyncio.sleep(SAMPLE)
            most = max(most, node.process.memory())
    return quick.delays, most - before


def _is_done(loading: Process, quick: QuickReader, count: int) -> bool:
    assert loading.exit_code in (None, 0), loading.text()
    return loading.exit_code == 0 and quick.number + 1 == count


def _is_event(frame: Mapping[str, Any]) -> bool:
    return str(frame.get("type", "event")) == "event"


def _times(delays: list[float]) -> str:
    return f"{command.percentile(delays, 0.5) * 1000:.1f} / {command.percentile(delays, 0.99) * 1000:.1f}"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--dialect", choices=("plain", "v1"), default="v1")
    parser.add_argument("--gone", action="store_true", help="read on only after the server has given up")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(
        processes, database_url, dialect=options.dialect, count=options.count, is_gone=options.gone, timeout=600
    )


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
