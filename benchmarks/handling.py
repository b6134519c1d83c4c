"""Publish call to handler start at 50 a second, on PostgreSQL: against pgqueuer and procrastinate.

Publisher and worker are one process, of the bus and of each peer. All take turns of half a second, so that a disk that
stalls now and then does so for all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks import environment
from benchmarks.environment import Ask
from benchmarks.measuring import Figure, database, dsn, migrate, quantile
from benchmarks.peer_turns import NOTE, publish_evenly
from eventbus_fastapi import Event, EventBus

TURN = 25
"""Events of one turn."""
TURNS = 20
"""Turns of each side in a round."""
SCRIPT = environment.HERE / "peer_turns.py"


class Timed(Event, topic="bench.timed"):
    at: float
    note: str


async def run(repeat: int) -> list[Figure]:
    await environment.install()
    taken: dict[str, list[float]] = {"bus": [], "pgqueuer": [], "procrastinate": []}
    with database("postgresql") as url, database("postgresql") as second, database("postgresql") as third:
        async with (
            _bus(url) as bus,
            environment.asking(SCRIPT, "pgqueuer", dsn(second)) as pgqueuer,
            environment.asking(SCRIPT, "procrastinate", dsn(third)) as procrastinate,
        ):
            sides = {"bus": bus, "pgqueuer": pgqueuer, "procrastinate": procrastinate}
            for turn in range(repeat * TURNS + 1):
                for name, ask in sides.items():
                    delays = await ask(TURN)
                    if turn > 0:  # the first warms up
                        taken[name] += delays
    return [
        _figure(peer, name, quantile(taken[peer], place), quantile(taken["bus"], place))
        for peer in ("pgqueuer", "procrastinate")
        for name, place in (("p50", 0.5), ("p99", 0.99))
    ]


def _figure(peer: str, name: str, by_peer: float, by_bus: float) -> Figure:
    title = f"publish to handler at 50/s, {name}, {peer}"
    return Figure(title, by_peer, by_bus, by_bus / by_peer, 1.0, unit="ms", is_lower_better=True)


@asynccontextmanager
async def _bus(url: str) -> AsyncIterator[Ask]:
    eventbus = EventBus(url, workers=True)
    await migrate(eventbus)
    taken: list[float] = []

    @eventbus.handler(Timed, group="bench")
    async def handle(event: Timed) -> None:
        taken.append((time.perf_counter() - event.at) * 1_000)

    async with eventbus:
        await asyncio.sleep(1)  # as long as the peers have to start
        yield lambda count: publish_evenly(lambda at: eventbus.publish(Timed(at=at, note=NOTE)), taken, count)
