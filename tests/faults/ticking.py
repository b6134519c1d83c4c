"""A node for `killed_recurrers`: it does nothing but publish recurring events.

python -m tests.faults.ticking
"""

from __future__ import annotations

import asyncio

from eventbus_fastapi.bus import EventBus

DECLARED = "declared-by-every-node"
PAUSE = 0.02
"""Seconds until it looks again; on its own it would wait for the ticks that it knows."""


async def main() -> None:
    bus = EventBus()
    bus.recurring(DECLARED, "0 0 1 1 *", "tick", None)
    async with bus:
        while True:
            bus.node.recurrer.bell.ring()
            await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    asyncio.run(main())
