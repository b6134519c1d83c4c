"""Rounds: serves in the next turn of the loop all who ask for it, in their order.

One event may wake a thousand feeds. A task, or a callback of its own, for each would be a thousand objects that live
just long enough for the garbage collector to look at everything there is, again and again.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

AT_ONCE = 100
"""Those that are served before others get the loop."""


class Served(Protocol):
    def serve(self) -> None:
        """Do what there is to do. Raises nothing."""


class Rounds:
    def __init__(self) -> None:
        self._waiting: list[Served] = []

    def ask(self, served: Served) -> None:
        """Serve it soon, once for each time that it asks."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._serve)
        self._waiting.append(served)

    def _serve(self) -> None:
        now, self._waiting = self._waiting[:AT_ONCE], self._waiting[AT_ONCE:]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._serve)
        for served in now:
            served.serve()
