"""Nothing is written per event and group where all goes well: at most 5 row writes per 100 events.

    python -m tests.faults.row_writes                       # 100,000 events through one group; PostgreSQL

All events are published first. What is counted afterwards, in PostgreSQL's own statistics, is what handling them took:
every row inserted, updated or removed in a table of the bus, by a worker that takes batches of 100.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.faults import command
from tests.faults.processes import Processes, prepare
from tests.waiting import eventually

GROUP = "counted"
TOPIC = "work"
BATCH = 100
PUBLISHED = 1_000
"""Events of one publish."""
ASKED = 5.0
"""Row writes per 100 events."""
WRITES = """
    SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables
    WHERE n_tup_ins + n_tup_upd + n_tup_del > 0"""
OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"""


async def run(database_url: str, *, count: int) -> Mapping[str, Any]:
    """Have so many events handled by one group; return the row writes that this took, by table.

    Raises:
        AssertionError: it took more than was asked, or an event was not handled.
    """
    await prepare(database_url)
    settings = Settings(database_url=database_url)
    async with EventBus(settings=settings) as bus:
        await bus.node.store.groups.ensure(GROUP, [TOPIC], after=0)
        for start in range(0, count, PUBLISHED):
            await bus.publish_many([(TOPIC, number) for number in range(start, min(count, start + PUBLISHED))])
    await bus.engine.dispose()
    published = await _writes(database_url)
    await _handle(settings, count)
    handled = await _writes(database_url)

    by_table = {table: writes - published.get(table, 0) for table, writes in handled.items()}
    per_hundred = sum(by_table.values()) * 100 / count
    shown = ", ".join(f"{table} {writes:,}" for table, writes in sorted(by_table.items()) if writes)
    assert per_hundred <= ASKED, f"{per_hundred:.2f} row writes per 100 events, asked at most {ASKED:g}: {shown}"
    return {"events": count, "row writes": shown, f"row writes per 100 events (asked ≤ {ASKED:g})": per_hundred}


async def _handle(settings: Settings, count: int) -> None:
    bus = EventBus(settings=settings, workers=True)
    bus.queue("default", batch_size=BATCH)
    is_done = asyncio.Event()
    seen: set[int] = set()

    @bus.handler(TOPIC, group=GROUP)
    async def handle(number: int) -> None:
        seen.add(number)
        if len(seen) == count:
            is_done.set()

    async with bus:
        await asyncio.wait_for(is_done.wait(), 30 + count / 500)
    await bus.engine.dispose()


async def _writes(database_url: str) -> dict[str, int]:
    """Return the row writes so far, by table. A session reports its own when it ends at the latest."""
    engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT")

    async def is_alone() -> bool:
        async with engine.connect() as connection:
            return int((await connection.execute(text(OTHERS))).scalar_one()) == 0

    try:
        await eventually(is_alone, 30)
        async with engine.connect() as connection:
            return {row[0]: row[1] for row in await connection.execute(text(WRITES))}
    finally:
        await engine.dispose()


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=100_000)


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    return await run(database_url, count=options.count)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=["postgresql"])
