"""The observer: looks at what only the database knows, for those who watch a bus: the log, the outbox, the groups.

However many ask, it looks at most once every few seconds, and whoever asks waits a bounded time. While the database is
away there is nothing to see, and it says so; a look that is under way goes on, so that no connection is lost with it.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import NamedTuple

from eventbus_fastapi.store import Head, Store
from eventbus_fastapi.store.group import Figures, Group

FRESH_FOR = 5.0
"""Seconds for which what was seen is shown again."""
PATIENCE = 1.0
"""Seconds that whoever asks waits for a look."""


class Sight(NamedTuple):
    """What was seen."""

    head: Head
    outbox_age: float
    """Seconds since the oldest event was committed that has no seq yet; 0: there is none."""
    groups: list[tuple[Group, Figures]]


class Observer:
    """See the module's docstring. It has no loop: it looks when it is asked."""

    def __init__(self, store: Store, *, fresh_for: float = FRESH_FOR, patience: float = PATIENCE) -> None:
        self._store = store
        self._fresh_for = fresh_for
        self._patience = patience
        self._looking: asyncio.Task[Sight] | None = None
        self._seen: Sight | None = None
        self._seen_at = 0.0  # in the loop's time

    async def see(self) -> Sight | None:
        """Return how things are, or were a few seconds ago; None: the database does not answer in time."""
        if self.seen is None:
            await asyncio.wait([self.begin()], timeout=self._patience)
        return self.seen

    @property
    def seen(self) -> Sight | None:
        """What was seen a few seconds ago at most; None: nothing was."""
        now = asyncio.get_running_loop().time()
        return self._seen if now < self._seen_at + self._fresh_for else None

    def begin(self) -> asyncio.Task[Sight]:
        """Have a look under way; return it."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="eventbus-look", context=contextvars.Context())
            self._looking.add_done_callback(self._note)
        return self._looking

    async def stop(self) -> None:
        """End a look that is under way."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def _note(self, looking: asyncio.Task[Sight]) -> None:
        self._looking = None
        if not looking.cancelled() and looking.exception() is None:
            self._seen, self._seen_at = looking.result(), asyncio.get_running_loop().time()

    async def _look(self) -> Sight:
        head = await self._store.head()
        age = await self._store.outbox_age()
        groups = await self._store.groups.all()
        figures = await self._store.groups.all_figures()
        return Sight(head, age, [(group, figures[group.id]) for group in groups if group.id in figures])
