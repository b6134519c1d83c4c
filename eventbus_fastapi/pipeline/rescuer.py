"""The rescuer: turns leases that have ended into retries, whosever they were, and tells consumers what is due.

It looks at the group of each consumer as often as that asks for, and at those of several at once where it can.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store.group import Group, Look
from eventbus_fastapi.store.groups import Groups

logger = logging.getLogger(__name__)

EARLY = 0.25
"""Part of its interval that a group may be looked at early, together with others: several looks are one read."""


class Consuming(Protocol):
    """What the rescuer needs of a consumer."""

    group: Group
    poll_interval: float
    """Seconds between two looks at it."""

    async def note(self, look: Look | None) -> None:
        """Learn how the group is; None: it was deleted."""


class Rescuer:
    """See the module's docstring."""

    name = "rescuer"

    def __init__(self, groups: Groups, consumers: Callable[[], Sequence[Consuming]]) -> None:
        self.bell = Bell()
        self._groups = groups
        self._consumers = consumers
        self._looked_at: dict[Consuming, float] = {}  # in the loop's time

    async def run_once(self) -> float | None:
        """Look once at every group that this node serves and whose time it is."""
        now = asyncio.get_running_loop().time()
        serving = self._consumers()
        self._looked_at = {each: self._looked_at[each] for each in serving if each in self._looked_at}
        if any(self._next_look(each) <= now for each in serving):
            due = [each for each in serving if self._next_look(each) <= now + EARLY * each.poll_interval]
            await self._look_at({each.group.id: each for each in due})
            self._looked_at |= dict.fromkeys(due, now)
        return max(0.0, min(map(self._next_look, serving)) - now) if serving else None

    def _next_look(self, consumer: Consuming) -> float:
        looked_at = self._looked_at.get(consumer)
        return 0.0 if looked_at is None else looked_at + consumer.poll_interval

    async def _look_at(self, consumers: Mapping[int, Consuming]) -> None:
        looks = await self._groups.look(list(consumers))
        if any(look.lease_ends is not None and look.lease_ends <= look.now for look in looks):
            rescued = await self._groups.rescue()
            if rescued:
                logger.warning("took over ranges of %d groups whose leases had ended", len(rescued))
                looks = await self._groups.look(list(consumers))
        for look in looks:
            await consumers[look.group.id].note(look)
        for group_id in consumers.keys() - {look.group.id for look in looks}:
            await consumers[group_id].note(None)
