"""The foreman: has the pools of a worker do what operators say of their queues, and tells that the process lives.

It reads what is said of all queues at once, about once a second, and writes the process's row on the roster every few
seconds, and whenever something has changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from eventbus_fastapi.errors import EventBusError
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.queues import Control
from eventbus_fastapi.store.roster import Serving

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two looks at what operators say."""
SEEN_EVERY = 5.0
"""Seconds between two words that the process lives."""
FORGET_TIMEOUT = 2.0
"""Seconds that the end of a worker waits until its row is removed."""
NOTHING_SAID = Control(None, is_paused=False)


class Controlled(Protocol):
    """What the foreman needs of a pool."""

    name: str

    def control(self, control: Control) -> bool:
        """Do as operators say; return whether that has changed anything."""

    def serving(self) -> Serving:
        """Tell how the queue is served now."""


class Foreman:
    """See the module's docstring."""

    name = "foreman"

    def __init__(self, store: Store, owner: str, pools: Sequence[Controlled]) -> None:
        self.bell = Bell()
        self._pools = pools
        self._store = store
        self._owner = owner
        self._began_at = asyncio.get_running_loop().time()
        self._see_at = self._began_at

    async def run_once(self) -> float | None:
        """Do what operators say; write the row when it is time."""
        clock = asyncio.get_running_loop().time
        controls = await self._store.queues.controls()
        changed = [pool.name for pool in self._pools if pool.control(controls.get(pool.name, NOTHING_SAID))]
        if changed or clock() >= self._see_at:
            self._see_at = clock()  # again, if it fails now
            await self._see()
            self._see_at = clock() + (INTERVAL if self._is_changing() else SEEN_EVERY)
        return INTERVAL

    def _is_changing(self) -> bool:
        """Whether more runs of some queue than shall: an operator waits for that to end."""
        served = [pool.serving() for pool in self._pools]
        return any(each.busy > (0 if each.is_paused else each.workers) for each in served)

    async def _see(self) -> None:
        await self._store.roster.see(
            self._owner,
            {pool.name: pool.serving() for pool in self._pools},
            host=socket.gethostname()[:255],
            pid=os.getpid(),
            age=asyncio.get_running_loop().time() - self._began_at,
        )

    async def leave(self) -> None:
        """Remove the row: the process serves no more. Where the database is away, others remove it later."""
        with suppress(EventBusError, TimeoutError):
            async with asyncio.timeout(FORGET_TIMEOUT):
                await self._store.roster.forget(self._owner)
