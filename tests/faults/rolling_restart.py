"""Nodes are restarted one after the other under load: no attempt is lost, and no event is handled twice.

    python -m tests.faults.rolling_restart                  # each node 5 times, on every database
    python -m tests.faults.rolling_restart --by uvicorn --rounds 2

Two nodes serve one group, each with 4 workers: `eventbus worker`, or an app by uvicorn. One gets SIGTERM, ends by
itself and is started again, then the other, while events are published all the time. Every event must have been handled
once, at its first attempt.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from typing import Any, Literal

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.faults import command
from tests.faults.handling import GROUP, HANDLED, TOPIC, read_endings, read_handled
from tests.faults.processes import Process, Processes, free_port, prepare
from tests.waiting import eventually

By = Literal["worker", "uvicorn"]
TARGET = "tests.faults.restarted"
NODES = 2
BATCH = 10
"""Events of one publish."""
PACE = 0.025
"""Seconds between two of them: 400 events a second."""
BETWEEN = 0.5
"""Seconds from a node's start to the end of the next one."""


class Staff:
    """The nodes, one of which is being restarted."""

    def __init__(self, processes: Processes, database_url: str, by: By) -> None:
        self.restarts = 0
        self.longest_stop = 0.0
        self._processes = processes
        self._settings: dict[str, Any] = {"database_url": database_url}
        self._by = by
        self._starts = 0
        self._running: list[Process] = []

    async def start(self) -> None:
        self._running = list(await asyncio.gather(*(self._start(place) for place in range(NODES))))

    async def _start(self, place: int) -> Process:
        self._starts += 1
        if self._by == "worker":
            command, sign = ["-m", "eventbus_fastapi.cli", "worker", f"{TARGET}:eventbus"], "serving "
        else:
            command = ["-m", "uvicorn", f"{TARGET}:app", "--port", str(free_port()), "--timeout-graceful-shutdown", "5"]
            sign = "Application startup complete"
        process = self._processes.python(f"node-{place}-{self._starts}", command, **self._settings)
        await eventually(lambda: sign in process.text() or process.exit_code is not None, 30)
        assert process.exit_code is None, process.text()
        return process

    async def restart_all(self, rounds: int) -> None:
        """Restart each node, one after the other, so many times."""
        for _ in range(rounds):
            for place in range(NODES):
                await asyncio.sleep(BETWEEN)
                began = time.monotonic()
                await self._stop(self._running[place])
                self.longest_stop = max(self.longest_stop, time.monotonic() - began)
                self._running[place] = await self._start(place)
                self.restarts += 1

    async def end(self) -> None:
        await asyncio.gather(*(self._stop(process) for process in self._running))

    async def _stop(self, process: Process) -> None:
        code = await process.terminate()
        # uvicorn ends with the signal that it was sent; before it has let everything end.
        assert code == 0 or (self._by == "uvicorn" and code == -15), process.text()


async def run(
    processes: Processes, database_url: str, *, rounds: int, by: By = "worker", timeout: float = 60
) -> Mapping[str, Any]:
    """Restart each node so many times.

    Raises:
        AssertionError: an event was not handled, was handled twice, or an attempt was lost.
    """
    await prepare(database_url)
    bus = EventBus(settings=Settings(database_url=database_url))
    async with bus.engine.begin() as connection:
        await connection.run_sync(HANDLED.metadata.create_all)
    async with bus:
        groups = bus.node.store.groups
        group = await groups.ensure(GROUP, [TOPIC], after=0, max_attempts=51)
        staff = Staff(processes, database_url, by)
        await staff.start()
        restarting = asyncio.create_task(staff.restart_all(rounds))
        began = time.monotonic()
        published = 0
        while not restarting.done():
            await bus.publish_many([(TOPIC, published + each) for each in range(BATCH)])
            published += BATCH
            await asyncio.sleep(PACE)
        restarting.result()
        took = time.monotonic() - began

        async def is_done() -> bool:
            now = await groups.figures(group)
            return (now.lag, now.in_flight, now.retries) == (0, 0, 0)

        await eventually(is_done, timeout)
        dead = await groups.dead_letters(group)
        await staff.end()
        endings = await read_endings(bus)
    rows = await read_handled(bus.engine)
    await bus.engine.dispose()

    assert dead == [], f"{len(dead)} events were given up"
    missing = set(range(1, published + 1)) - {row.seq for row in rows}
    assert not missing, f"{len(missing)} events were not handled: {sorted(missing)[:5]}"
    later = [(row.seq, row.attempt) for row in rows if row.attempt != 1]
    assert not later, f"{len(later)} events lost an attempt: {later[:5]}"
    assert len(rows) == published, f"{len(rows) - published} events were handled twice"
    failed = [seq for seq, ending in endings.items() if ending.errors or ending.outcome != "acked"]
    assert len(endings) == published, f"{published - len(endings)} events have not ended"
    assert not failed, f"{len(failed)} events have an error on record: {failed[:5]}"
    return {
        "events": published,
        "published per second": f"{published / took:,.0f}",
        "restarts": staff.restarts,
        "longest stop (s)": staff.longest_stop,
        "processes that handled": len({row.worker for row in rows}),
        "events handled twice / attempts lost (asked 0 / 0)": "0 / 0",
    }


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="restarts of each node")
    parser.add_argument("--by", choices=["worker", "uvicorn"], default="worker")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, rounds=options.rounds, by=options.by, timeout=300)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
