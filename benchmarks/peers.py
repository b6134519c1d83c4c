"""Drains a queue of no-op jobs with a peer, and prints how many a second:

    python peers.py pgqueuer|procrastinate|huey DSN_OR_FILE COUNT

It runs in the environment of `peers.txt` and imports nothing of the bus.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

PAYLOAD = {"id": 1, "username": "x" * 150}


async def pgqueuer(dsn: str, count: int) -> float:
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    driver = AsyncpgDriver(await asyncpg.connect(dsn))
    queries = Queries(driver)
    await queries.install()
    for _ in range(0, count, 1_000):
        await queries.enqueue(["bench"] * 1_000, [repr(PAYLOAD).encode()] * 1_000, [0] * 1_000)
    peer, done = PgQueuer(driver), 0

    @peer.entrypoint("bench")
    async def handle(job: Any) -> None:
        nonlocal done
        done += 1
        if done == count:
            peer.shutdown.set()

    start = time.perf_counter()
    await peer.run(batch_size=100)
    return count / (time.perf_counter() - start)


async def procrastinate(dsn: str, count: int) -> float:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=dsn))

    @app.task(name="bench")
    async def handle(**event: Any) -> None:
        pass

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for _ in range(0, count, 1_000):
            await handle.batch_defer_async(*[PAYLOAD] * 1_000)
        start = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=10, install_signal_handlers=False)
        return count / (time.perf_counter() - start)


async def huey(path: str, count: int) -> float:
    from huey import SqliteHuey

    queue = SqliteHuey(filename=path)

    @queue.task()
    def handle(event: Any) -> None:
        pass

    for _ in range(count):
        handle(PAYLOAD)
    start = time.perf_counter()
    while (task := queue.dequeue()) is not None:
        queue.execute(task)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    name, where, number = sys.argv[1:]
    print(asyncio.run({"pgqueuer": pgqueuer, "procrastinate": procrastinate, "huey": huey}[name](where, int(number))))
