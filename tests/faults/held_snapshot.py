"""Under full load, another session holds an old snapshot for a minute: the rate stays within 15 %.

    python -m tests.faults.held_snapshot                    # 60 s without, 60 s with it; PostgreSQL
    python -m tests.faults.held_snapshot --seconds 20

One process publishes batches of 100 as fast as a group in another process keeps up with them. Meanwhile no dead row can
be removed: each update of the head and of the group leaves one behind. Where a queue looks for its work among the dead,
its rate falls for as long as the snapshot is held. It prints both rates and their curve.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.faults import command
from tests.faults.processes import Processes, prepare
from tests.faults.tally import GROUP, PADDING, Counted, Counter, rate
from tests.waiting import eventually

BATCH = 100
AHEAD = 5_000
"""Events that the publisher may be ahead of the group."""
WARM_UP = 5.0
SLICES = 6
"""Parts of a stretch whose rates are its curve."""
ASKED = 0.85


async def run(processes: Processes, database_url: str, *, seconds: float) -> Mapping[str, Any]:
    """Measure without a snapshot and with one, `seconds` each.

    Raises:
        AssertionError: an event was handled twice.
    """
    await prepare(database_url)
    counter = Counter.start(processes, "counting", database_url=database_url)
    await eventually(lambda: counter.has_started, 30)
    async with EventBus(settings=Settings(database_url=database_url)) as bus:
        flooding = asyncio.create_task(_flood(bus))
        await asyncio.sleep(WARM_UP)
        without = await _measure(seconds)
        async with _held_snapshot(database_url):
            held = await _measure(seconds)
        dead = await _dead_rows(database_url)
        flooding.cancel()
        await asyncio.wait([flooding])
        assert flooding.cancelled(), flooding.exception()
    twice = await counter.end()
    assert twice == 0, f"{twice} events were handled twice"
    lines = counter.lines()
    before, during = rate(lines, *without), rate(lines, *held)
    return {
        "handled per second without": f"{before:,.0f}",
        "handled per second with a held snapshot": f"{during:,.0f}",
        "curve without": _curve(lines, without),
        "curve with it": _curve(lines, held),
        "dead rows at its end": dead,
        f"with / without (asked ≥ {ASKED})": during / before,
    }


async def _flood(bus: EventBus) -> None:
    """Publish, as fast as the group keeps up."""
    groups = bus.node.store.groups
    published = 0
    while True:
        group = await groups.get(f"{GROUP}-0")
        while published < group.cursor + AHEAD:
            events = [Counted(id=published + each, username=PADDING) for each in range(BATCH)]
            published = (await bus.publish_many(events))[-1].seq or 0
        await asyncio.sleep(0.01)


async def _measure(seconds: float) -> tuple[float, float]:
    since = time.monotonic()
    await asyncio.sleep(seconds)
    return since, time.monotonic()


def _curve(lines: list[tuple[float, int]], stretch: tuple[float, float]) -> str:
    since, until = stretch
    width = (until - since) / SLICES
    return " ".join(f"{rate(lines, since + part * width, since + (part + 1) * width):,.0f}" for part in range(SLICES))


@contextlib.asynccontextmanager
async def _held_snapshot(database_url: str) -> AsyncIterator[None]:
    """Keep a transaction open that has taken its snapshot."""
    engine = create_async_engine(database_url, isolation_level="REPEATABLE READ")
    async with engine.connect() as connection:
        await connection.execute(text("SELECT count(*) FROM bus_group"))
        yield
    await engine.dispose()


async def _dead_rows(database_url: str) -> str:
    engine = create_async_engine(database_url)
    query = "SELECT relname, n_dead_tup FROM pg_stat_user_tables WHERE n_dead_tup > 0 ORDER BY 2 DESC"
    async with engine.connect() as connection:
        rows = (await connection.execute(text(query))).all()
    await engine.dispose()
    return ", ".join(f"{table} {count:,}" for table, count in rows)


def check(numbers: Mapping[str, Any]) -> None:
    """Raise if the rate has fallen."""
    ratio = numbers[f"with / without (asked ≥ {ASKED})"]
    assert ratio >= ASKED, f"with the snapshot the rate was {ratio:.2f} of that without, asked {ASKED}"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=60.0, help="with the snapshot, and as long without it")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    numbers = await run(processes, database_url, seconds=options.seconds)
    command.show("measured", numbers)
    check(numbers)
    return {}


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=["postgresql"])
