"""A program whose events are handled as they come:

    EVENTBUS_DATABASE_URL=… python -m tests.faults.live --rate 50

It publishes at an even pace and handles what it publishes in a group of its own. It prints a line for each event: when
it was published, and how long that took until its handler had it, in seconds of the machine's monotonic clock. A group
that catches up, `LATE`, is served by the same node as soon as it is not paused any more. As `eventbus worker` does, it
keeps what was imported from the garbage collector: a full collection would stop all for 0.2 s, every second or so.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import time

from eventbus_fastapi import Event, EventBus, Settings
from tests.faults.processes import Process
from tests.faults.tally import Counted

LATE = "late"


class Live(Event, topic="live"):
    at: float
    """When it was published, on the machine's monotonic clock."""


def delays(process: Process) -> list[tuple[float, float]]:
    """Return when events were published, and how long each was on its way."""
    text = process.text()
    lines = (line.split() for line in text[: text.rfind("\n") + 1].splitlines())
    return [(float(line[1]), float(line[2])) for line in lines if len(line) == 3 and line[0] == "took"]


async def main(rate: float) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    eventbus = EventBus(settings=Settings(), workers=True)

    @eventbus.handler(Live, group="live", queue="live")
    async def handle(event: Live) -> None:
        print("took", event.at, time.monotonic() - event.at, flush=True)  # noqa: T201

    @eventbus.handler(Counted, group=LATE, queue=LATE)
    async def catch_up(event: Counted) -> None:
        pass

    gc.collect()
    gc.freeze()
    async with eventbus:
        due = loop.time()
        while not ended.is_set():
            await eventbus.publish(Live(at=time.monotonic()))
            due = max(due + 1 / rate, loop.time())
            await asyncio.sleep(due - loop.time())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0)
    asyncio.run(main(parser.parse_args().rate))
