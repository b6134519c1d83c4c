"""Courtesy: a group that catches up lets the live events of its node pass.

All groups of a node share one event loop, and on SQLite the file's one writer. A live event needs them a dozen times on
its way from the publisher to its handler, for a moment each; a group with a long way to go needs them all the time. So
before it reads a page, claims a batch and hands it out, it looks whether a live event is on its way, and waits until
there is none. It waits no longer than it has worked: however much is live, it keeps half of its pace. Where nobody
reads live, or nothing is on its way, it waits for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE = 0.02
"""Seconds that it waits at most for one of its steps: several times what a live event takes."""
STEP = 0.001
"""Seconds between two looks. It sleeps meanwhile: a loop that is always busy keeps the driver's threads waiting."""


class Courtesy:
    """See the module's docstring. `is_live_under_way` is the node's."""

    def __init__(self, is_live_under_way: Callable[[], bool]) -> None:
        self._is_live_under_way = is_live_under_way
        self._turn = asyncio.Lock()
        self._patience = 0.0  # seconds: grows while it works, goes while it waits
        self._works_since = 0.0

    async def give_way(self) -> None:
        """Wait until no live event is on its way, or as long as is fair."""
        if not self._is_live_under_way():
            return
        # Of two of its steps that wait, the second finds what the first has left of the patience.
        async with self._turn:
            await self._wait(asyncio.get_running_loop().time)

    async def _wait(self, clock: Callable[[], float]) -> None:
        began = clock()
        patience = min(PATIENCE, self._patience + began - self._works_since)
        while self._is_live_under_way() and clock() < began + patience:  # noqa: ASYNC110 - many things end it
            await asyncio.sleep(STEP)
        self._works_since = clock()
        self._patience = max(0.0, patience - (self._works_since - began))
