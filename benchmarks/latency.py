"""Publish call to in-process subscriber at 50 a second: against a hand-written insert, NOTIFY and select.

Both take turns of half a second, so that a disk that stalls now and then does so for both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import asyncpg
from pydantic_core import from_json, to_json

from benchmarks.measuring import Figure, database, dsn, migrate, quantile
from eventbus_fastapi import EventBus

INTERVAL = 1 / 50
TURN = 25
"""Events of one turn."""
TURNS = 20
"""Turns of each side in a round."""

Publish = Callable[[dict[str, float | str]], Awaitable[object]]


async def run(repeat: int) -> list[Figure]:
    by_hand: list[float] = []
    by_bus: list[float] = []
    with database("postgresql") as url:
        eventbus = EventBus(url)
        await migrate(eventbus)
        async with eventbus, _hand(url, by_hand) as publish_by_hand, _bus(eventbus, by_bus) as publish_by_bus:
            for _ in range(repeat * TURNS):
                await _take_turn(publish_by_hand)
                await _take_turn(publish_by_bus)
    return [
        Figure(
            f"publish to subscriber at 50/s, {name}, PostgreSQL",
            quantile(by_hand, place),
            quantile(by_bus, place),
            quantile(by_bus, place) / quantile(by_hand, place),
            target,
            unit="ms",
            is_lower_better=True,
        )
        for name, place, target in (("p50", 0.5, 1.5), ("p99", 0.99, 2.0))
    ]


def _take(taken: list[float], payload: dict[str, float]) -> None:
    taken.append((time.perf_counter() - payload["at"]) * 1_000)


async def _take_turn(publish: Publish) -> None:
    for _ in range(TURN):
        await publish({"at": time.perf_counter(), "note": "y" * 150})
        await _every_interval()


async def _every_interval() -> None:
    await asyncio.sleep(INTERVAL)


@asynccontextmanager
async def _hand(url: str, taken: list[float]) -> AsyncIterator[Publish]:
    writer, listener, reader = [await asyncpg.connect(dsn(url)) for _ in range(3)]
    await writer.execute("CREATE TABLE by_hand (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, payload bytea)")
    bell = asyncio.Event()
    await listener.add_listener("by_hand", lambda *_: bell.set())

    async def read() -> None:
        last = 0
        while True:
            await bell.wait()
            bell.clear()
            for row in await reader.fetch("SELECT id, payload FROM by_hand WHERE id > $1 ORDER BY id", last):
                last = row["id"]
                _take(taken, from_json(row["payload"]))

    async def publish(payload: dict[str, float | str]) -> None:
        async with writer.transaction():
            await writer.execute("INSERT INTO by_hand (payload) VALUES ($1)", to_json(payload))
            await writer.execute("NOTIFY by_hand")

    async with _reading(read()):
        yield publish
    for connection in (writer, listener, reader):
        await connection.close()


@asynccontextmanager
async def _bus(eventbus: EventBus, taken: list[float]) -> AsyncIterator[Publish]:
    async def read() -> None:
        async for message in subscription:
            _take(taken, message.payload)

    async with eventbus.subscribe("bench.latency") as subscription, _reading(read()):
        yield lambda payload: eventbus.publish("bench.latency", payload)


@asynccontextmanager
async def _reading(read: Awaitable[None]) -> AsyncIterator[None]:
    task = asyncio.ensure_future(read)
    yield
    task.cancel()
    await asyncio.wait([task])
