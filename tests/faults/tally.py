"""A worker process that counts what it handles, for cases that measure:

    EVENTBUS_DATABASE_URL=… python -m tests.faults.tally --groups 100

Each group has one typed handler that does nothing else. It prints a line for each handled share of a second: when, on
the machine's monotonic clock, and how many events all groups together have handled by then. At its end it prints how
many events a group has handled more than once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import time
from typing import NamedTuple

from eventbus_fastapi import Event, EventBus, Message, Settings
from tests.faults.processes import Process, Processes

INTERVAL = 0.25
"""Seconds between two lines."""
PADDING = "x" * 150
TOPIC = "counted"
GROUP = "counting"


class Counted(Event, topic=TOPIC):
    id: int
    username: str


class Counter(NamedTuple):
    """A counting process, and what it has printed."""

    process: Process

    @classmethod
    def start(cls, processes: Processes, name: str, *, groups: int = 1, **settings: object) -> Counter:
        """Start one; its settings are those of the bus."""
        return cls(processes.python(name, ["-m", "tests.faults.tally", "--groups", str(groups)], **settings))

    def lines(self) -> list[tuple[float, int]]:
        """Return when how many were handled."""
        text = self.process.text()
        complete = text[: text.rfind("\n") + 1]
        found = [line.split()[1:] for line in complete.splitlines() if line.startswith("handled ")]
        return [(float(at), int(count)) for at, count in found]

    def handled(self) -> int:
        """Return how many it has handled."""
        return self.lines()[-1][1] if self.lines() else 0

    @property
    def has_started(self) -> bool:
        return bool(self.lines()) or self.process.exit_code is not None

    async def end(self) -> int:
        """End it; return how many events were handled more than once by the same group."""
        assert await self.process.terminate() == 0, self.process.text()
        return int(self.process.text().rpartition("twice ")[2])


def rate(lines: list[tuple[float, int]], since: float, until: float) -> float:
    """Return how many were handled per second in a stretch of time."""
    within = [line for line in lines if since <= line[0] <= until]
    (first, before), (last, after) = within[0], within[-1]
    return (after - before) / (last - first)


class Tally:
    """What has been handled."""

    def __init__(self) -> None:
        self.count = 0
        self.twice = 0
        """How often a group has handled an event again."""

    def add_to(self, eventbus: EventBus, group: str) -> None:
        """Add a group that counts."""
        seen: set[int] = set()

        @eventbus.handler(Counted, group=group)
        async def handle(event: Counted, message: Message) -> None:
            self.count += 1
            self.twice += message.seq in seen
            seen.add(message.seq)


async def main(groups: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    eventbus, tally = EventBus(settings=Settings(), workers=True), Tally()
    for number in range(groups):
        tally.add_to(eventbus, f"{GROUP}-{number}")
    async with eventbus:
        while not ended.is_set():
            print("handled", time.monotonic(), tally.count, flush=True)  # noqa: T201
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), INTERVAL)
    print("twice", tally.twice, flush=True)  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=1)
    asyncio.run(main(parser.parse_args().groups))
