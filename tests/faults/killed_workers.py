"""Workers are killed and stopped at random; every event is handled, and none twice without a reason on record.

    python -m tests.faults.killed_workers                  # 20,000 events on every database

Three worker processes serve one group. One after the other they are killed and started again; one of them is stopped
for longer than its lease now and then, and goes on with what is no longer its own. Its late acks change nothing: every
event ends once, with the last attempt that was made, and the loss of each earlier one is on its record.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
from collections.abc import Mapping
from typing import Any

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.archive import ArchiveEntry
from tests.faults import command
from tests.faults.handling import GROUP, HANDLED, TOPIC, read_endings, read_handled
from tests.faults.processes import Process, Processes, prepare, stopped
from tests.waiting import eventually

WORKERS = 3
LEASE = 2.0
BATCH = 500


class Staff:
    """The worker processes, one of which is always in trouble."""

    def __init__(self, processes: Processes, database_url: str, lease: float) -> None:
        self.kills = self.stops = 0
        self._processes = processes
        self._settings: dict[str, Any] = {"database_url": database_url, "lease": lease}
        self._lease = lease
        self._names = (f"worker-{number}" for number in range(1_000_000))
        self._running: list[Process] = [self._start() for _ in range(WORKERS)]

    def _start(self) -> Process:
        name = next(self._names)
        return self._processes.python(name, ["-m", "tests.faults.handling", name], **self._settings)

    async def be_in_trouble(self, pause: float) -> None:
        """Kill one and start another, or stop one for longer than its lease; until cancelled."""
        chance = random.Random(7)
        while True:
            await asyncio.sleep(chance.uniform(pause, 2 * pause))
            place = chance.randrange(WORKERS)
            if chance.random() < 0.6:
                self._running[place].kill()
                self._running[place] = self._start()
                self.kills += 1
            else:
                with stopped([self._running[place].itself()]):
                    await asyncio.sleep(1.5 * self._lease)
                self.stops += 1

    def end(self) -> None:
        for process in self._running:
            process.kill()


async def run(
    processes: Processes,
    database_url: str,
    *,
    count: int,
    lease: float = LEASE,
    pause: float = 1.0,
    timeout: float = 60,
) -> Mapping[str, Any]:
    """Have so many events handled.

    Raises:
        AssertionError: an event was not handled, was handled twice without a reason on record, or an ack counted that
            was late.
    """
    await prepare(database_url)
    bus = EventBus(settings=Settings(database_url=database_url))
    async with bus.engine.begin() as connection:
        await connection.run_sync(HANDLED.metadata.create_all)
    async with bus:
        groups = bus.node.store.groups
        group = await groups.ensure(GROUP, [TOPIC], after=0, max_attempts=51)
        staff = Staff(processes, database_url, lease)
        trouble = asyncio.create_task(staff.be_in_trouble(pause))
        for start in range(0, count, BATCH):
            await bus.publish_many([(TOPIC, number) for number in range(start, min(count, start + BATCH))])

        async def is_done() -> bool:
            now = await groups.figures(group)
            return (now.lag, now.in_flight, now.retries) == (0, 0, 0)

        await eventually(is_done, timeout=timeout)
        trouble.cancel()
        await asyncio.wait([trouble])
        dead = await groups.dead_letters(group)
        staff.end()
        endings = await read_endings(bus)
    rows = await read_handled(bus.engine)
    await bus.engine.dispose()

    attempts = collections.Counter((row.seq, row.attempt) for row in rows)
    handled = {row.seq for row in rows}
    assert not trouble.done() or trouble.cancelled(), trouble.exception()
    assert dead == [], f"{len(dead)} events were given up"
    assert handled == set(range(1, count + 1)), f"{count - len(handled)} events were not handled"
    twice = [place for place, times in attempts.items() if times > 1]
    assert not twice, f"{len(twice)} attempts were made twice: {twice[:5]}"
    _check_record(attempts, endings)
    return {
        "events": count,
        "workers killed": staff.kills,
        "workers stopped for longer than their lease": staff.stops,
        "events handled more than once, each as another attempt": len(rows) - count,
        "attempts of one event at most": max(row.attempt for row in rows),
        "lost attempts on record": sum(len(ending.errors) for ending in endings.values()),
    }


def _check_record(attempts: Mapping[tuple[int, int], int], endings: Mapping[int, ArchiveEntry]) -> None:
    """Raise if an event has not ended with its last attempt, or one before it has no reason on record."""
    for seq, attempt in attempts:
        ending = endings[seq]
        assert attempt <= ending.attempt, f"event {seq} ended with attempt {ending.attempt}, and had {attempt}"
        reasons = {error["attempt"]: error["type"] for error in ending.errors}
        if attempt < ending.attempt:
            assert reasons.get(attempt) == "LeaseLost", f"event {seq}, attempt {attempt}: on record is {reasons}"
    unmade = [seq for seq, ending in endings.items() if (seq, ending.attempt) not in attempts]
    assert not unmade, f"{len(unmade)} events ended with an attempt that nobody made: {unmade[:5]}"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=20_000)


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, count=options.count, timeout=900)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
