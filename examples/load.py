"""10,000 events through one socket: published, stored, and read back by the same client.

    python examples/load.py                         # EVENTBUS_PORT=3100 for another port than 3000

The server is a process of its own on a temporary SQLite file, and every event is on disk before it is answered.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress

from eventbus_fastapi import EventBusClient, Settings

EVENTS = 10_000
AT_ONCE = 1_000
"""Publishes that wait for their answer at the same time."""
URL = f"ws://127.0.0.1:{Settings().port}/ws"


@contextmanager
def server(directory: str) -> Iterator[None]:
    """Run `eventbus serve` as a process of its own while the block runs."""
    environment = {**os.environ, "EVENTBUS_DATABASE_URL": f"sqlite+aiosqlite:///{directory}/eventbus.db"}
    command = [sys.executable, "-m", "eventbus_fastapi.cli", "serve", "--log-level", "warning"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():  # it says where it serves, or on stderr why it does not
            sys.exit(1)
        try:
            yield
        finally:
            process.terminate()


async def publish(client: EventBusClient) -> None:
    for first in range(0, EVENTS, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, EVENTS))
        await asyncio.gather(*(client.publish("load.test", {"number": number}) for number in numbers))


async def main() -> None:
    async with EventBusClient(URL) as client, client.subscribe("load.*") as messages:
        started = time.perf_counter()
        publishing = asyncio.create_task(publish(client))
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("events", total=EVENTS)
            for number in range(EVENTS):
                message = await anext(messages)
                assert message.payload == {"number": number}, "an event is missing, or out of order"
                progress.advance(task)
        await publishing
        seconds = time.perf_counter() - started
    print(f"{EVENTS:,} events in {seconds:.2f} s, in order: {EVENTS / seconds:,.0f} events/s")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory, server(directory):
        asyncio.run(main())
