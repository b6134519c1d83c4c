"""One worker process drains no-op typed events: against pgqueuer, procrastinate and huey, in processes of their own."""

from __future__ import annotations

import asyncio
import tempfile

from benchmarks import environment
from benchmarks.measuring import Figure, compare, database, dsn, migrate, rate
from eventbus_fastapi import Event, EventBus

SCRIPT = environment.HERE / "peers.py"
GROUP = "bench"
EVENTS = 50_000
SLOW_PEER = 2_000
"""Events for a peer that would take minutes."""


class Made(Event, topic="bench.made"):
    id: int
    username: str


async def run(repeat: int) -> list[Figure]:
    await environment.install()
    return [
        await _figure("postgresql", "pgqueuer, batches of 100", "pgqueuer", EVENTS, 3.0, repeat),
        await _figure("postgresql", "procrastinate, concurrency 10", "procrastinate", SLOW_PEER, 50.0, repeat),
        await _figure("sqlite", "huey on SQLite", "huey", 10_000, 5.0, repeat),
    ]


async def _figure(kind: str, title: str, peer: str, count: int, target: float, repeat: int) -> Figure:
    return await compare(
        f"drain by one worker, {title}",
        lambda: _drain_by_peer(peer, kind, count),
        lambda: _drain(kind),
        target=target,
        repeat=repeat,
    )


async def _drain(kind: str) -> float:
    """Return how many events a second one worker handles, of a log that is there."""
    with database(kind) as url:
        eventbus = EventBus(url)
        if kind != "sqlite":
            await migrate(eventbus)
        done, left = asyncio.Event(), EVENTS

        @eventbus.handler(Made, group=GROUP)
        async def handle(event: Made) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done.set()

        async with eventbus:
            await eventbus.node.store.groups.ensure(GROUP, [Made.__topic__], after=0)
            for start in range(0, EVENTS, 1_000):
                await eventbus.publish_many([Made(id=start + each, username="x" * 150) for each in range(1_000)])
            await eventbus.workers.start()
            return await rate(EVENTS, done.wait())


async def _drain_by_peer(peer: str, kind: str, count: int) -> float:
    if kind == "sqlite":
        with tempfile.TemporaryDirectory() as directory:
            return float(await environment.python(SCRIPT, peer, f"{directory}/huey.db", str(count)))
    with database(kind) as url:
        return float(await environment.python(SCRIPT, peer, dsn(url), str(count)))
