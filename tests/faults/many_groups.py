"""A hundred groups read one log: its publisher is as fast as with one.

    python -m tests.faults.many_groups                      # 1 and 100 groups by turns, 20 s each, on every database
    python -m tests.faults.many_groups --groups 20 --seconds 5 --turns 1

One program publishes 200 events a second, one after the other. A node in another process serves the groups, each with a
no-op typed handler for every event. Nothing is written per group when an event is published, so what is measured is how
far groups that handle keep a publisher waiting. The lag is that of the slowest group when the publisher stops.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.faults import command
from tests.faults.command import percentile
from tests.faults.processes import Processes, prepare
from tests.faults.tally import GROUP, PADDING, Counted, Counter
from tests.waiting import eventually

RATE = 200.0
"""Events per second."""
ASKED = 0.95
"""The rate with many groups, as a share of that with one."""


class Published(NamedTuple):
    """What a publisher has measured in one turn."""

    rate: float
    delays: list[float]
    """How long each publish took, milliseconds."""
    lag: int
    """Events that the slowest group had not looked at when the publisher stopped."""
    drained: float
    """Seconds that it took until all groups had handled everything."""


async def run(processes: Processes, database_url: str, *, groups: int, seconds: float, turns: int) -> Mapping[str, Any]:
    """Publish to one group and to many by turns.

    Raises:
        AssertionError: an event was not handled, or was handled twice by a group.
    """
    await prepare(database_url)
    one: list[Published] = []
    many: list[Published] = []
    async with EventBus(settings=Settings(database_url=database_url)) as bus:
        for turn in range(turns):
            one.append(await _turn(processes, bus, f"one-{turn}", 1, seconds))
            many.append(await _turn(processes, bus, f"many-{turn}", groups, seconds))
    await bus.engine.dispose()
    by_one, by_many = _mean(one), _mean(many)
    return {
        "published per second, 1 group": by_one,
        f"published per second, {groups} groups": by_many,
        f"{groups} groups / 1 group (asked ≥ {ASKED})": by_many / by_one,
        "publish p50 / p99, 1 group (ms)": _delays(one),
        f"publish p50 / p99, {groups} groups (ms)": _delays(many),
        "lag at the end, 1 group": max(each.lag for each in one),
        f"lag of the slowest at the end, {groups} groups": max(each.lag for each in many),
        f"seconds until {groups} groups had handled all": max(each.drained for each in many),
    }


async def _turn(processes: Processes, bus: EventBus, name: str, groups: int, seconds: float) -> Published:
    counter = Counter.start(processes, name, groups=groups, database_url=bus.settings.database_url)
    await eventually(lambda: counter.has_started, 60)
    began = time.monotonic()
    delays: list[float] = []
    while (now := time.monotonic()) < began + seconds:
        await bus.publish(Counted(id=len(delays), username=PADDING))
        delays.append((time.monotonic() - now) * 1_000)
        # One that is behind goes on at once: its rate is what it achieves, 200 a second at most.
        await asyncio.sleep(max(0.0, began + len(delays) / RATE - time.monotonic()))
    ended = time.monotonic()
    lag = max(figures.lag for _, figures in await bus.groups.groups())
    await eventually(lambda: counter.handled() >= len(delays) * groups, 60 + len(delays) * groups / 500)
    drained = time.monotonic() - ended
    twice = await counter.end()
    assert twice == 0, f"{twice} events were handled twice"
    assert counter.handled() == len(delays) * groups
    for number in range(groups):
        await bus.groups.delete(f"{GROUP}-{number}")
    return Published(len(delays) / (ended - began), delays, lag, drained)


def _mean(turns: list[Published]) -> float:
    return sum(each.rate for each in turns) / len(turns)


def _delays(turns: list[Published]) -> str:
    delays = [delay for each in turns for delay in each.delays]
    return f"{percentile(delays, 0.5):.1f} / {percentile(delays, 0.99):.1f}"


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn")
    parser.add_argument("--turns", type=int, default=2, help="of one group and of many, each")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    numbers = await run(processes, database_url, groups=options.groups, seconds=options.seconds, turns=options.turns)
    command.show("measured", numbers)
    ratio = numbers[f"{options.groups} groups / 1 group (asked ≥ {ASKED})"]
    assert ratio >= ASKED, f"with {options.groups} groups the rate was {ratio:.2f} of that with one, asked {ASKED}"
    return {}


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
