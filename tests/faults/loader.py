"""A program that publishes batches through a node, one after the other:

    python -m tests.faults.loader ws://127.0.0.1:3000/ws --count 200000

Each payload says when its batch was handed over, on the machine's monotonic clock, so that a reader knows its delay.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from eventbus_fastapi.client import ClientConfig, EventBusClient

TOPIC = "bulk"
PADDING = "x" * 160
"""Makes a payload about 200 bytes of JSON."""


async def load(url: str, count: int, batch: int) -> None:
    async with EventBusClient(ClientConfig(url=url, proxy=None)) as client:
        for start in range(0, count, batch):
            now = time.monotonic()
            numbers = range(start, min(start + batch, count))
            events: list[Any] = [(TOPIC, {"number": number, "at": now, "padding": PADDING}) for number in numbers]
            await client.publish_many(events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=200)
    options = parser.parse_args()
    asyncio.run(load(options.url, options.count, options.batch))


if __name__ == "__main__":
    main()
