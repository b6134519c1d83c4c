"""Events outlive the server, and a reader outlives it too.

    python examples/persistence.py                  # EVENTBUS_PORT=3100 for another port than 3000

A server is killed while a subscriber reads. The next one serves the same file: the subscriber finds it by itself and
goes on where it was, and whoever comes later reads everything from the beginning.
"""

import asyncio
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from eventbus_fastapi import EventBusClient, Message, Settings

URL = f"ws://127.0.0.1:{Settings().port}/ws"

logging.getLogger("eventbus_fastapi.client").setLevel(logging.ERROR)  # it warns while the server is away


@contextmanager
def server(directory: str) -> Iterator[None]:
    """Run `eventbus serve` as a process of its own while the block runs, then kill it."""
    environment = {**os.environ, "EVENTBUS_DATABASE_URL": f"sqlite+aiosqlite:///{directory}/eventbus.db"}
    command = [sys.executable, "-m", "eventbus_fastapi.cli", "serve", "--log-level", "error"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():  # it says where it serves, or on stderr why it does not
            sys.exit(1)
        try:
            yield
        finally:
            process.kill()


async def main(directory: str) -> None:
    async with EventBusClient(URL) as client:
        messages = client.subscribe("order.*")
        with server(directory):
            await messages.wait_started()
            await client.publish("order.placed", {"order": 1})
            await client.publish("order.placed", {"order": 2})
            print(f"live:     {describe(await anext(messages))}")
        print("the server is killed, and started again")
        with server(directory):
            print(f"resumed:  {describe(await anext(messages))}")
            await client.publish("order.paid", {"order": 1})
            print(f"live:     {describe(await anext(messages))}")
            async with client.subscribe("order.*", start="earliest") as replay:
                for _ in range(3):
                    print(f"replayed: {describe(await anext(replay))}")


def describe(message: Message) -> str:
    return f"seq {message.seq}, {message.topic} {message.payload}"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(directory))
