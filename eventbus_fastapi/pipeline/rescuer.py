"""The rescuer: turns leases that have ended into retries, whosever they were, and tells consumers what is due.

It looks at the group of each consumer as often as that asks for, and at those of several at once where it can. Where a
lease ends before the next look is due, it looks when that lease ends: who waits for it can go on at once. In a group
that is ordered by the log, what is held for another attempt is such a lease, too.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store.group import Group, Look
from eventbus_fastapi.store.groups import Groups

logger = logging.getLogger(__name__)

EARLY = 0.25
"""Part of its interval that a group may be looked at early, together with others: several looks are one read."""
AGAIN = 0.05
"""Seconds until the next look at a lease that has ended, and that somebody else is about to rescue or to settle."""


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
        self._lease_ends: dict[Consuming, float] = {}  # the first of its group; infinite: there was none

    async def run_once(self) -> float | None:
        """Look once at every group that this node serves and whose time it is."""
        now = asyncio.get_running_loop().time()
        serving = self._consumers()
        self._looked_at = {each: self._looked_at[each] for each in serving if each in self._looked_at}
        self._lease_ends = {each: self._lease_ends[each] for each in serving if each in self._lease_ends}
        if any(self._next_look(each) <= now for each in serving):
            due = [each for each in serving if self._next_look(each) <= now + EARLY * each.poll_interval]
            await self._look_at({each.group.id: each for each in due})
            self._looked_at |= dict.fromkeys(due, now)
        return max(0.0, min(map(self._next_look, serving)) - now) if serving else None

    def _next_look(self, consumer: Consuming) -> float:
        looked_at = self._looked_at.get(consumer)
        if looked_at is None:
            return 0.0
        return min(looked_at + consumer.poll_interval, self._lease_ends.get(consumer, math.inf))

    async def _look_at(self, consumers: Mapping[int, Consuming]) -> None:
        looks = await self._groups.look(list(consumers))
        if any(_left(look) <= 0 for look in looks):
            rescued = await self._groups.rescue()
            if rescued:
                logger.warning("took over ranges of %d groups whose leases had ended", len(rescued))
                looks = await self._groups.look(list(consumers))
        now = asyncio.get_running_loop().time()  # after the database's, so that the next look is not too early
        for look in looks:
            consumer = consumers[look.group.id]
            self._lease_ends[consumer] = now + min(max(AGAIN, _left(look)), _left_of_retry(look))
            await consumer.note(look)
        for group_id in consumers.keys() - {look.group.id for look in looks}:
            await consumers[group_id].note(None)


def _left(look: Look) -> float:
    """Return the seconds until the first lease of a group ends; infinite: there is none."""
    return math.inf if look.lease_ends is None else (look.lease_ends - look.now) / 1_000_000


def _left_of_retry(look: Look) -> float:
    """Return the seconds until others may take what is held or waits, in a group ordered by the log."""
    due = look.retry_due
    if due is None or due <= look.now or look.group.ordered_by != "log":
        return math.inf
    return (due - look.now) / 1_000_000
