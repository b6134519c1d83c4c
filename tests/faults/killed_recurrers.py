"""Nodes that publish recurring events are killed at random; every tick is published, and none twice.

    python -m tests.faults.killed_recurrers                # 2,000 recurring events on every database

Three processes declare the same, and publish whatever is due. Cron knows no seconds, so events whose ticks were missed
become due all the time: their rows are written with a next tick in the past.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import update

from eventbus_fastapi.cron import EPOCH, MICROSECOND, time_text
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store, open_store
from eventbus_fastapi.store.recurring import Declaration
from tests.faults import command
from tests.faults.processes import Processes, prepare
from tests.faults.ticking import DECLARED
from tests.waiting import eventually

NODES = 3
MINUTE = 60_000_000
TICKS = 5
"""Missed ticks of each event."""
BATCH = 20
"""Events that become due at once."""


class Nodes:
    """The processes, one of which is killed now and then."""

    def __init__(self, processes: Processes, database_url: str) -> None:
        self.kills = 0
        self._processes = processes
        self._settings: dict[str, Any] = {"database_url": database_url}
        self._names = (f"node-{number}" for number in range(1_000_000))
        self._running = [self._start() for _ in range(NODES)]

    def _start(self) -> Any:
        return self._processes.python(next(self._names), ["-m", "tests.faults.ticking"], **self._settings)

    async def die(self, pause: float) -> None:
        """Kill one and start another; until cancelled."""
        chance = random.Random(7)
        while True:
            await asyncio.sleep(chance.uniform(pause, 2 * pause))
            place = chance.randrange(NODES)
            self._running[place].kill()
            self._running[place] = self._start()
            self.kills += 1

    def end(self) -> None:
        for process in self._running:
            process.kill()


async def run(
    processes: Processes,
    database_url: str,
    *,
    count: int,
    kills: int = 0,
    pause: float = 1.0,
    timeout: float = 60,
) -> Mapping[str, Any]:
    """Have so many recurring events published by nodes of which at least so many are killed.

    Raises:
        AssertionError: a tick was not published, or twice.
    """
    await prepare(database_url)
    store = open_store(Settings(database_url=database_url))
    await store.start()
    nodes = Nodes(processes, database_url)
    try:
        trouble = asyncio.create_task(nodes.die(pause))
        await eventually(lambda: _is_there(store, DECLARED), timeout)
        expected: list[tuple[str, str]] = []
        while len(expected) < count * TICKS or nodes.kills < kills:
            expected += await _miss_ticks(store, [f"event-{len(expected) // TICKS + place}" for place in range(BATCH)])
            await eventually(lambda: _is_nearly_done(store), timeout)
        await eventually(lambda: _is_done(store), timeout)
        trouble.cancel()
        await asyncio.wait([trouble])
        published = await _published(store)
        declared = await store.recurring.all()
    finally:
        nodes.end()
        await store.stop()
    assert trouble.cancelled(), trouble.exception()
    missing, twice = set(expected) - set(published), [tick for tick, times in published.items() if times > 1]
    assert not missing, f"{len(missing)} ticks were not published: {sorted(missing)[:5]}"
    assert not twice, f"{len(twice)} ticks were published twice: {twice[:5]}"
    assert len(published) == len(expected), "something was published that was not due"
    assert [event.name for event in declared if event.is_declared] == [DECLARED]
    return {
        "recurring events": len(expected) // TICKS,
        "ticks, each published once": len(expected),
        "nodes killed": nodes.kills,
    }


async def _miss_ticks(store: Store, names: list[str]) -> list[tuple[str, str]]:
    """Make events whose last ticks of the day before yesterday were missed; return these ticks."""
    day = datetime.fromtimestamp((await store.now()) / 1_000_000, UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    end = (day - timedelta(days=1) - EPOCH) // MICROSECOND
    day -= timedelta(days=2)
    said = Declaration(f"* * {day.day} {day.month} *", "UTC", "tick", None, b"1", "application/json", None, None, "all")
    for name in names:
        await store.recurring.put(name, said)
    table = store.tables.recurring
    async with store._writing.connect() as connection, connection.begin():
        await connection.execute(update(table).where(table.c.name.in_(names)).values(next_at=end - TICKS * MINUTE))
    ticks = [time_text(end - number * MINUTE) for number in range(TICKS, 0, -1)]
    return [(name, tick) for name in names for tick in ticks]


async def _is_there(store: Store, name: str) -> bool:
    return bool(await store.recurring.get(name))


async def _is_nearly_done(store: Store) -> bool:
    """Nodes always have something to do: a kill meets them at it."""
    return len((await store.recurring.look()).names) < BATCH


async def _is_done(store: Store) -> bool:
    return not (await store.recurring.look()).names and not (await store.peek()).has_outbox


async def _published(store: Store) -> Mapping[tuple[str, str], int]:
    published: collections.Counter[tuple[str, str]] = collections.Counter()
    after, is_last = 0, False
    while not is_last:
        scan = await store.read(after, 1_000)
        published.update((each.metadata["recurring"], each.metadata["scheduled_at"]) for each in scan.messages)
        after, is_last = scan.scanned_to, scan.is_last
    return published


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=2_000)


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(processes, database_url, count=options.count, kills=20, timeout=900)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
