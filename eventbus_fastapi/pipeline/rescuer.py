"""The rescuer: turns leases that have ended into retries, whosever they were, and tells consumers what is due."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store.group import Group, Look
from eventbus_fastapi.store.groups import Groups

logger = logging.getLogger(__name__)

INTERVAL = 1.0
"""Seconds between two looks."""


class Consuming(Protocol):
    """What the rescuer needs of a consumer."""

    group: Group

    async def note(self, look: Look) -> None:
        """Learn how the group is."""


class Rescuer:
    """See the module's docstring."""

    name = "rescuer"

    def __init__(self, groups: Groups, consumers: Callable[[], Sequence[Consuming]]) -> None:
        self.bell = Bell()
        self._groups = groups
        self._consumers = consumers

    async def run_once(self) -> float | None:
        """Look once at every group that this node serves."""
        consumers = {consumer.group.id: consumer for consumer in self._consumers()}
        looks = await self._groups.look(list(consumers))
        if any(look.lease_ends is not None and look.lease_ends <= look.now for look in looks):
            rescued = await self._groups.rescue()
            if rescued:
                logger.warning("took over ranges of %d groups whose leases had ended", len(rescued))
                looks = await self._groups.look(list(consumers))
        for look in looks:
            await consumers[look.group_id].note(look)
        for group_id in consumers.keys() - {look.group_id for look in looks}:
            await consumers[group_id].note(Look(group_id, -1, False, None, None, 0))  # it was deleted
        return INTERVAL
