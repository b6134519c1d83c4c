"""A process of its own that publishes to a bus, for tests with several: prints "ready", waits for a line, publishes.

Usage: python process.py DATABASE_URL NAME COUNT
"""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi.bus import EventBus


async def main(url: str, name: str, count: int) -> None:
    async with EventBus(url, poll_interval=0.02) as bus:
        print("ready", flush=True)  # noqa: T201 - its parent reads it
        await asyncio.to_thread(sys.stdin.readline)
        for number in range(count):
            if number % 2:
                await bus.publish("process.direct", [name, number])
            else:
                async with AsyncSession(bus.engine) as session, session.begin():
                    await bus.publish_txn(session, "process.transaction", [name, number])


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
