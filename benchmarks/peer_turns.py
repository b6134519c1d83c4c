"""What a peer measures by turns; it reads how many events a turn has, and prints what it measured as a line of JSON:

    python peer_turns.py pgqueuer|procrastinate|rabbitmq DSN

Of the queues on PostgreSQL, how long each event took from the call that publishes it to the start of its handler, in
milliseconds, at 50 a second. Of RabbitMQ, how many events a second four members take and ack, of a queue that is full.
It runs in the environment of `peers.txt` and imports nothing of the bus.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

INTERVAL = 1 / 50
NOTE = "y" * 150
MEMBERS = 4
PREFETCH = 100
QUEUE = "bench"

Turn = Callable[[int], Awaitable[Any]]


async def publish_evenly(publish: Callable[[float], Awaitable[object]], taken: list[float], count: int) -> list[float]:
    """Publish so many at 50 a second; return how long each took, when all have arrived."""
    taken.clear()
    for _ in range(count):
        await publish(time.perf_counter())
        await asyncio.sleep(INTERVAL)
    while len(taken) < count:  # noqa: ASYNC110 - a bell rung by each handler would be measured, too
        await asyncio.sleep(INTERVAL)
    return taken


@asynccontextmanager
async def pgqueuer(dsn: str) -> AsyncIterator[Turn]:
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.queries import Queries

    queries = Queries(AsyncpgDriver(await asyncpg.connect(dsn)))
    await queries.install()
    peer = PgQueuer(AsyncpgDriver(await asyncpg.connect(dsn)))
    taken: list[float] = []

    @peer.entrypoint("bench")
    async def handle(job: Any) -> None:
        taken.append((time.perf_counter() - json.loads(job.payload)["at"]) * 1_000)

    async def publish(at: float) -> None:
        await queries.enqueue("bench", json.dumps({"at": at, "note": NOTE}).encode(), 0)

    running = asyncio.create_task(peer.run(batch_size=10))
    await asyncio.sleep(1)  # it listens by now
    yield lambda count: publish_evenly(publish, taken, count)
    running.cancel()


@asynccontextmanager
async def procrastinate(dsn: str) -> AsyncIterator[Turn]:
    from procrastinate import App, PsycopgConnector

    app = App(connector=PsycopgConnector(conninfo=dsn))
    taken: list[float] = []

    @app.task(name="bench")
    async def handle(at: float, note: str) -> None:
        taken.append((time.perf_counter() - at) * 1_000)

    async def publish(at: float) -> None:
        await handle.defer_async(at=at, note=NOTE)

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        running = asyncio.create_task(app.run_worker_async(concurrency=10, install_signal_handlers=False))
        await asyncio.sleep(1)
        yield lambda count: publish_evenly(publish, taken, count)
        running.cancel()


@asynccontextmanager
async def rabbitmq(url: str) -> AsyncIterator[Turn]:
    import aio_pika

    connections = [await aio_pika.connect(url) for _ in range(MEMBERS + 1)]
    publisher, *channels = [await connection.channel() for connection in connections]
    await publisher.queue_delete(QUEUE)
    await publisher.declare_queue(QUEUE, durable=True)
    for channel in channels:
        await channel.set_qos(prefetch_count=PREFETCH)
    queues = [await channel.get_queue(QUEUE) for channel in channels]

    async def turn(count: int) -> float:
        body = json.dumps({"id": 1, "note": NOTE}).encode()
        event = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        for start in range(0, count, 500):
            events = min(500, count - start)
            await asyncio.gather(*(publisher.default_exchange.publish(event, QUEUE) for _ in range(events)))
        done, left = asyncio.Event(), count

        async def handle(message: Any) -> None:
            nonlocal left
            await message.ack()
            left -= 1
            if left == 0:
                done.set()

        began = time.perf_counter()
        tags = [await queue.consume(handle) for queue in queues]
        await done.wait()
        taken = time.perf_counter() - began
        for queue, tag in zip(queues, tags, strict=True):
            await queue.cancel(tag)
        return count / taken

    yield turn
    await publisher.queue_delete(QUEUE)


async def main(name: str, where: str) -> None:
    loop = asyncio.get_running_loop()
    async with {"pgqueuer": pgqueuer, "procrastinate": procrastinate, "rabbitmq": rabbitmq}[name](where) as turn:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await turn(int(line))), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
