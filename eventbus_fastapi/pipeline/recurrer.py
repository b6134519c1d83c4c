"""The recurrer: publishes the ticks of recurring events, and writes down those that the program declares.

Every node runs one; the store's row locks see to it that each tick is published once, so there is no leader. It sleeps
until the next tick of any of them, and looks in between for those that were declared or changed elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from eventbus_fastapi.cron import Cron, cron_of
from eventbus_fastapi.errors import InvalidInput
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.reader import BATCH_BYTES
from eventbus_fastapi.store.recurring import Declaration, RecurringEvent, Step

logger = logging.getLogger(__name__)

INTERVAL = 30.0
"""Seconds between two looks at most."""
BUSY = 1.0
"""Seconds until the next look while what is due is another node's, or cannot be used."""
SHORTEST = 0.001
IN_TIME = 60_000_000
"""Microseconds. A tick of an event that skips those that were missed is published if it is less late than that."""
MOST_TICKS = 1_000
"""Ticks that one transaction publishes."""


class Recurrer:
    """See the module's docstring. `ring` is called when events were given to the outbox."""

    name = "recurrer"

    def __init__(self, store: Store, declared: Mapping[str, Declaration], ring: Callable[[], None]) -> None:
        self.bell = Bell()
        self._store = store
        self._declared = declared
        self._ring = ring
        self._written: dict[str, Declaration] = {}
        self._refused: set[str] = set()  # those that were complained about

    async def run_once(self) -> float | None:
        """Write down what is declared, publish what is due; return when there may be more."""
        await self.write_declared()
        due = await self._store.recurring.look()
        if due.names:
            return 0 if await self._publish(due.names) else BUSY
        if due.next_at is None:
            return INTERVAL
        return min(INTERVAL, max(SHORTEST, (due.next_at - due.now) / 1_000_000))

    async def write_declared(self) -> None:
        """Write down what the program has declared since the start."""
        for name, declaration in tuple(self._declared.items()):
            if self._written.get(name) is not declaration:
                await self._store.recurring.put(name, declaration, by_program=True)
                self._written[name] = declaration

    async def publish_due(self) -> None:
        """Publish until nothing is due that this node can publish."""
        while await self._publish((await self._store.recurring.look()).names):
            pass

    async def _publish(self, names: Sequence[str]) -> bool:
        """Publish those that are due; return whether this node has moved any."""
        has_moved = has_published = False
        try:
            for name in names:
                try:
                    step = await self._store.recurring.publish_due(name, decide)
                except InvalidInput as exc:
                    # This host may know fewer time zones than the one that declared it, or somebody has edited the row.
                    if name not in self._refused:
                        logger.error("recurring event %r cannot be published by this node: %s", name, exc)
                    self._refused.add(name)
                    continue
                if step is None:
                    continue
                has_moved = True
                has_published = has_published or bool(step.ticks)
                if step.ticks:
                    logger.debug("published %d ticks of recurring event %r", len(step.ticks), name)
                else:
                    logger.warning("skipped ticks of recurring event %r, all late by a minute or more", name)
        finally:
            if has_published:
                self._ring()
        return has_moved


def decide(event: RecurringEvent, now: int) -> Step:
    """Say which ticks of an event that is due are published, and when the next one is.

    Raises:
        InvalidRecurring: its expression or time zone cannot be used here.
    """
    said = event.declaration
    cron = cron_of(said.cron, said.timezone)
    if said.missed == "all":
        return _each(cron, event, now)
    last = cron.last(event.next_at, now)
    is_late = said.missed == "skip" and now - last >= IN_TIME
    return Step(() if is_late else (last,), cron.after(last))


def _each(cron: Cron, event: RecurringEvent, now: int) -> Step:
    """All of them, or as many as one transaction may publish."""
    limit = min(MOST_TICKS, max(1, BATCH_BYTES // max(1, len(event.declaration.payload))))
    ticks: list[int] = []
    following = event.next_at
    while following <= now and len(ticks) < limit:
        ticks.append(following)
        following = cron.after(following)
    return Step(ticks, following)
