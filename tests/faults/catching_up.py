"""A group made today reads a log of a million events, while another group goes on with its latency unchanged.

    python -m tests.faults.catching_up                      # 1,000,000 events, on every database
    python -m tests.faults.catching_up --count 50000 --database postgresql

A live program publishes 50 events a second and handles them in a group of its own; it says how long each was on its way
from the call that publishes it to its handler. Before and while another group catches up with the whole log by a no-op
typed handler: first in a node of its own, then another group in the live node itself.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from typing import Any

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.databases import kind_of
from tests.faults import command
from tests.faults.command import percentile
from tests.faults.live import LATE, delays
from tests.faults.processes import Process, Processes, prepare
from tests.faults.tally import GROUP, PADDING, Counted, Counter
from tests.waiting import eventually

FILLED = 1_000
"""Events of one publish that fills the log."""
BEFORE = 10.0
"""Seconds of the latency without anybody who catches up."""
RATES = {"postgresql": 14_400, "sqlite": 7_500, "mysql": 0}
"""Events per second that are asked for: 3 × pgqueuer on the machine of benchmarks/README.md, 5 × huey; none."""
MOST = {0.5: (2.0, 5.0), 0.99: (2.0, 50.0)}
"""How much longer an event may take than before, at each share: so many times, or so many milliseconds more."""


async def run(processes: Processes, database_url: str, *, count: int, before: float = BEFORE) -> Mapping[str, Any]:
    """Have a log of so many events read by two groups, one after the other.

    Raises:
        AssertionError: an event was handled twice by one of them.
    """
    await prepare(database_url)
    numbers: dict[str, Any] = {}
    async with EventBus(settings=Settings(database_url=database_url)) as bus:
        numbers["filled per second"] = f"{await _fill(bus, count):,.0f}"
        groups = bus.node.store.groups
        await groups.ensure(LATE, [Counted.__topic__], after=0)
        await groups.pause(LATE)
        live = processes.python("live", ["-m", "tests.faults.live"], database_url=database_url)
        await eventually(lambda: len(delays(live)) > 50, 30)

        since = time.monotonic()
        await asyncio.sleep(before)
        until = time.monotonic()
        alone = _between(live, since, until)

        await groups.ensure(f"{GROUP}-0", [Counted.__topic__], after=0)
        counter = Counter.start(processes, "late", database_url=database_url)
        await eventually(lambda: counter.handled() > 0, 60)
        since, first = counter.lines()[0]
        await eventually(lambda: counter.handled() >= count, 60 + count / 200)
        until, last = next(line for line in counter.lines() if line[1] >= count)
        numbers |= _compare("another node", (last - first) / (until - since), alone, _between(live, since, until))
        twice = await counter.end()
        assert twice == 0, f"{twice} events were handled twice"

        await groups.resume(LATE)
        began = (await groups.get(LATE)).cursor
        since = time.monotonic()

        async def is_done() -> bool:
            return (await groups.get(LATE)).cursor >= count

        await eventually(is_done, 60 + count / 200)
        until = time.monotonic()
        numbers |= _compare("the same node", (count - began) / (until - since), alone, _between(live, since, until))
        assert await live.terminate() == 0, live.text()
    await bus.engine.dispose()
    return numbers


async def _fill(bus: EventBus, count: int) -> float:
    began = time.monotonic()
    for start in range(0, count, FILLED):
        numbers = range(start, min(count, start + FILLED))
        await bus.publish_many([Counted(id=number, username=PADDING) for number in numbers])
    return count / (time.monotonic() - began)


def _between(live: Process, since: float, until: float) -> list[float]:
    """Return the delays of what was published in a stretch of time, milliseconds."""
    return [1_000 * delay for at, delay in delays(live) if since <= at <= until]


def _compare(where: str, rate: float, alone: list[float], during: list[float]) -> dict[str, Any]:
    """Return the rate, and the delays without and with a group that catches up."""
    numbers: dict[str, Any] = {f"caught up by {where}, per second": rate}
    for share in MOST:
        title = f"{_delay(share)} before / during, {where} (ms)"
        numbers[title] = (percentile(alone, share), percentile(during, share))
    return numbers


def _delay(share: float) -> str:
    return f"delay p{round(share * 100)}"


def check(numbers: Mapping[str, Any], rate: float) -> None:
    """Raise if a group caught up slower than asked, or another one was held up."""
    failures = [
        f"{name}: {value:,.0f}, asked {rate:,.0f}"
        for name, value in numbers.items()
        if name.startswith("caught up") and value < rate
    ]
    for share, (times, more) in MOST.items():
        for name, value in numbers.items():
            if name.startswith(_delay(share)) and value[1] > max(times * value[0], value[0] + more):
                failures.append(f"{name}: {_shown(value)}, asked at most {times:g} times, or {more:g} ms more")
    assert not failures, "; ".join(failures)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=1_000_000, help="events of the log")
    parser.add_argument("--rate", type=float, help=f"events per second that are asked for; default: {RATES}")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    rate = RATES[kind_of(database_url)] if options.rate is None else options.rate
    numbers = await run(processes, database_url, count=options.count)
    command.show(
        f"{kind_of(database_url)}, asked: {rate:,} a second; p50 and p99 at most twice, or 5 and 50 ms more",
        {name: _shown(value) for name, value in numbers.items()},
    )
    check(numbers, rate)
    return {}


def _shown(value: Any) -> Any:
    if isinstance(value, tuple):
        return " / ".join(f"{part:.1f}" for part in value)
    return f"{value:,.0f}" if isinstance(value, float) else value


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
