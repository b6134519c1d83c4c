"""The time limit of a database operation: it does not count how long this process itself stood still.

When a machine slept or was moved, when a process got no CPU or collected garbage for long, the time of
`asyncio.timeout` is over as soon as the event loop runs again, though the database's answer is there and has only to be
picked up.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

PARTS = 4
"""In how many parts the time is counted. A standstill counts as one of them at most."""


class TimeLimit:
    """Bounds a block like `asyncio.timeout`, by the time in which the event loop runs.

    Raises:
        TimeoutError: the block has taken `seconds`.
    """

    def __init__(self, seconds: float) -> None:
        self._part = seconds / PARTS
        self._timeout = asyncio.timeout(None)

    @property
    def is_over(self) -> bool:
        return self._timeout.expired()

    async def __aenter__(self) -> TimeLimit:
        await self._timeout.__aenter__()
        self._loop = asyncio.get_running_loop()
        self._count(PARTS)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)

    def _count(self, left: int) -> None:
        if left:
            self._timer = self._loop.call_later(self._part, self._count, left - 1)
        else:
            self._timeout.reschedule(self._loop.time())
