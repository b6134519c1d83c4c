"""A queue is scaled, paused and its group reset by the command, while events flow; no event is lost.

    python -m tests.faults.queue_control                  # on every database

Two worker processes serve one queue, whose handler takes down how many of it run at once. The queue is looked at once
a minute for what no bell tells of: what operators say must not wait for that.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.faults import command
from tests.faults.counting import COUNTED, GROUP, QUEUE, TOPIC, WORKERS
from tests.faults.processes import Processes, prepare
from tests.waiting import eventually

PROCESSES = 2
MANY = 10
BATCH = 20
AHEAD = 200
"""Events that wait, so that there is always something to do."""
TIMEOUT = 60.0


class Operator:
    """Who looks at the workers and gives orders, from a process beside theirs."""

    def __init__(self, processes: Processes, bus: EventBus, database_url: str) -> None:
        self.bus = bus
        self.published = 0
        self.slowest = 0.0
        """Seconds that the workers took at most to do as they were told, with the start of the command."""
        self._processes = processes
        self._database_url = database_url
        self._number = 0

    async def publish(self) -> None:
        """Publish as fast as events are handled; until cancelled."""
        while True:
            if self.published - len(await self.seqs()) < AHEAD:
                await self.bus.publish_many([(TOPIC, number) for number in range(BATCH)])
                self.published += BATCH
            await asyncio.sleep(0.05)

    async def order(self, *words: str) -> None:
        """Run a command."""
        self._number += 1
        arguments = ["-m", "eventbus_fastapi.cli", *words]
        process = self._processes.python(f"command-{self._number}", arguments, database_url=self._database_url)
        assert await process.wait(TIMEOUT) == 0, process.text()
        assert "warning" not in process.text(), process.text()

    async def until_served(self, *, workers: int, is_paused: bool) -> None:
        """Wait until every process serves the queue like this, and runs no more than that."""
        most = 0 if is_paused else workers
        began = time.monotonic()

        async def is_so() -> bool:
            found = [worker.queues[QUEUE] for worker in await self.bus.queues.workers()]
            is_served = [each[0] == workers and each[2] == is_paused and each[1] <= most for each in found]
            return len(found) == PROCESSES and all(is_served)

        await eventually(is_so, TIMEOUT)
        self.slowest = max(self.slowest, time.monotonic() - began)

    async def last(self) -> int:
        """Return the id of the last row."""
        async with self.bus.engine.connect() as connection:
            return (await connection.execute(select(func.max(COUNTED.c.id)))).scalar_one() or 0

    async def most_at_once(self, after: int, *, rows: int) -> int:
        """Return how many ran at once in a process at most, in the next rows."""

        async def counts() -> list[int]:
            async with self.bus.engine.connect() as connection:
                found = list(
                    (await connection.execute(select(COUNTED.c.at_once).where(COUNTED.c.id > after))).scalars()
                )
            return found if len(found) >= rows else []

        return max(await eventually(counts, TIMEOUT))

    async def seqs(self) -> set[int]:
        """Return what was handled so far."""
        async with self.bus.engine.connect() as connection:
            return set((await connection.execute(select(COUNTED.c.seq).distinct())).scalars())

    async def has_begun_anew(self) -> bool:
        """Say whether the first event was handled twice."""
        async with self.bus.engine.connect() as connection:
            rows = select(func.count()).select_from(COUNTED).where(COUNTED.c.seq == 1)
            return (await connection.execute(rows)).scalar_one() == 2


async def run(processes: Processes, database_url: str, *, rows: int = 100) -> Mapping[str, Any]:
    """Give all orders once, and look at so many events after each.

    Raises:
        AssertionError: more or fewer ran at once than was ordered, or an event was lost or counted as another attempt.
    """
    await prepare(database_url)
    bus = EventBus(settings=Settings(database_url=database_url))
    async with bus.engine.begin() as connection:
        await connection.run_sync(COUNTED.metadata.create_all)
    async with bus:
        await bus.groups.declare(GROUP, [TOPIC], start="earliest")
        for number in range(PROCESSES):
            serve = ["-m", "eventbus_fastapi.cli", "worker", "tests.faults.counting:eventbus"]
            processes.python(f"worker-{number}", serve, database_url=database_url)
        operator = Operator(processes, bus, database_url)
        publishing = asyncio.create_task(operator.publish())
        await operator.until_served(workers=WORKERS, is_paused=False)
        operator.slowest = 0.0
        numbers = await _give_orders(operator, rows)
        publishing.cancel()
        await asyncio.wait([publishing])
        assert publishing.cancelled(), publishing.exception()

        async def is_done() -> bool:
            now = (await bus.groups.group(GROUP)).figures
            return (now.lag, now.in_flight, now.retries) == (0, 0, 0)

        await eventually(is_done, 4 * TIMEOUT)
        assert (await bus.groups.group(GROUP)).figures.dead == 0
        assert await operator.seqs() == set(range(1, (await bus.head()).last_seq + 1)), "an event was lost"
        async with bus.engine.connect() as connection:
            attempts = (await connection.execute(select(func.max(COUNTED.c.attempt)))).scalar_one()
        assert attempts == 1, "an attempt was counted that nobody had finished"
    await bus.engine.dispose()
    return {"events": operator.published, **numbers, "seconds until an order was done at most": operator.slowest}


async def _give_orders(operator: Operator, rows: int) -> dict[str, int]:
    at_first = await operator.most_at_once(0, rows=rows)
    assert at_first == WORKERS, at_first

    await operator.order("queues", "scale", QUEUE, str(MANY))
    await operator.until_served(workers=MANY, is_paused=False)
    scaled = await operator.most_at_once(await operator.last(), rows=rows)
    assert scaled == MANY, scaled

    await operator.order("queues", "scale", QUEUE, "default")
    await operator.until_served(workers=WORKERS, is_paused=False)
    # One that ran until now takes down how many ran when it began.
    back = await operator.most_at_once(await operator.last() + PROCESSES * MANY, rows=rows)
    assert back == WORKERS, back

    await operator.order("queues", "pause", QUEUE)
    await operator.until_served(workers=WORKERS, is_paused=True)
    before = await operator.last()
    await operator.bus.publish_many([(TOPIC, number) for number in range(BATCH)])
    operator.published += BATCH
    await operator.order("groups", "reset", GROUP, "--to", "earliest")
    assert await operator.last() == before, "something was handled during the pause"

    await operator.order("queues", "resume", QUEUE)
    await operator.until_served(workers=WORKERS, is_paused=False)
    await eventually(operator.has_begun_anew, TIMEOUT)
    await operator.order("queues", "scale", QUEUE, str(MANY))
    await operator.until_served(workers=MANY, is_paused=False)
    await operator.order("groups", "reset", GROUP, "--to", "earliest")  # while it is served
    return {"at once at first": at_first, "at once when scaled": scaled, "at once when scaled back": back}


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, rows=options.rows)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=500)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
