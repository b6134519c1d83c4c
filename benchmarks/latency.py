"""Publish call to in-process subscriber at 50 a second: against a hand-written insert, NOTIFY and select."""

from __future__ import annotations

import asyncio
import statistics
import time

import asyncpg
from pydantic_core import from_json, to_json

from benchmarks.measuring import Figure, database, dsn, migrate
from eventbus_fastapi import EventBus

EVENTS = 400
INTERVAL = 1 / 50


async def run(repeat: int) -> list[Figure]:
    with database("postgresql") as url:
        eventbus = EventBus(url)
        await migrate(eventbus)
        rounds = []
        async with eventbus:
            for _ in range(max(1, repeat // 2)):
                rounds.append((await _by_hand(url), await _by_bus(eventbus)))  # noqa: PERF401 - measured one by one
    figures = []
    for name, place, target in (("p50", 0.5, 1.5), ("p99", 0.99, 2.0)):
        pairs = [(_quantile(hand, place), _quantile(bus, place)) for hand, bus in rounds]
        figures.append(
            Figure(
                f"publish to subscriber at 50/s, {name}, PostgreSQL",
                statistics.median(pair[0] for pair in pairs),
                statistics.median(pair[1] for pair in pairs),
                statistics.median(pair[1] / pair[0] for pair in pairs),
                target,
                unit="ms",
                is_lower_better=True,
            )
        )
    return figures


def _quantile(values: list[float], place: float) -> float:
    return sorted(values)[int(len(values) * place)]


async def _every_interval() -> None:
    await asyncio.sleep(INTERVAL)


async def _by_hand(url: str) -> list[float]:
    writer, listener, reader = [await asyncpg.connect(dsn(url)) for _ in range(3)]
    await writer.execute("DROP TABLE IF EXISTS by_hand")
    await writer.execute("CREATE TABLE by_hand (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, payload bytea)")
    bell = asyncio.Event()
    await listener.add_listener("by_hand", lambda *_: bell.set())
    taken: list[float] = []

    async def read() -> None:
        last = 0
        while len(taken) < EVENTS:
            await bell.wait()
            bell.clear()
            for row in await reader.fetch("SELECT id, payload FROM by_hand WHERE id > $1 ORDER BY id", last):
                last = row["id"]
                taken.append((time.perf_counter() - from_json(row["payload"])["at"]) * 1_000)

    reading = asyncio.create_task(read())
    for _ in range(EVENTS):
        payload = to_json({"at": time.perf_counter(), "note": "y" * 150})
        async with writer.transaction():
            await writer.execute("INSERT INTO by_hand (payload) VALUES ($1)", payload)
            await writer.execute("NOTIFY by_hand")
        await _every_interval()
    await reading
    for connection in (writer, listener, reader):
        await connection.close()
    return taken


async def _by_bus(eventbus: EventBus) -> list[float]:
    taken: list[float] = []
    subscription = await eventbus.subscribe("bench.latency")

    async def read() -> None:
        async for message in subscription:
            taken.append((time.perf_counter() - message.payload["at"]) * 1_000)
            if len(taken) == EVENTS:
                return

    reading = asyncio.create_task(read())
    for _ in range(EVENTS):
        await eventbus.publish("bench.latency", {"at": time.perf_counter(), "note": "y" * 150})
        await _every_interval()
    await reading
    subscription.close()
    return taken
