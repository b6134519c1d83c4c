"""A bell: wakes the loop of a stage, from any thread. It carries nothing; whoever is woken looks for itself."""

from __future__ import annotations

import asyncio


class Bell:
    """Rung any number of times before the wait, it wakes once."""

    def __init__(self) -> None:
        self.is_closed = False
        """True after `close`: whoever waits for this bell has nothing more to do."""
        self._event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def ring(self) -> None:
        """Wake the waiter, now or when it waits next. Safe from any thread, also while nobody has ever waited."""
        loop = self._loop
        if loop is None or asyncio._get_running_loop() is loop:
            self._event.set()
        elif not loop.is_closed():
            loop.call_soon_threadsafe(self._event.set)

    def close(self) -> None:
        """Ring for the last time."""
        self.is_closed = True
        self.ring()

    async def wait(self, timeout: float | None) -> bool:
        """Wait for the bell, `timeout` seconds at most (None: for ever); return whether it rang.

        The bell is silent again when this returns, so look for work after it, never before.
        """
        self._loop = asyncio.get_running_loop()
        if not self._event.is_set():
            try:
                async with asyncio.timeout(timeout):
                    await self._event.wait()
            except TimeoutError:
                return False
        self._event.clear()
        return True
