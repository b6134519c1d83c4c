"""The consumers of a node: one per group that it serves, and the stages that they share.

The stages run from the first group on, so a node that serves none pays nothing for them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

from eventbus_fastapi.errors import EventBusError
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.consumer import POLL_INTERVAL, Consumer, OpenSubscription
from eventbus_fastapi.pipeline.courtesy import Courtesy
from eventbus_fastapi.pipeline.rescuer import Rescuer
from eventbus_fastapi.pipeline.settler import Settler
from eventbus_fastapi.store.group import Group
from eventbus_fastapi.store.groups import Groups
from eventbus_fastapi.telemetry.meters import Meters

FLUSH_TIMEOUT = 5.0
"""Seconds that a stop waits until what was settled is written."""


def name_node() -> str:
    """Return a name for this process that no other has, and that tells an operator where it is."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{secrets.token_hex(4)}"


class Consumers:
    """See the module's docstring."""

    def __init__(
        self,
        groups: Groups,
        *,
        open_subscription: OpenSubscription,
        lease: float,
        is_live_under_way: Callable[[], bool] = lambda: False,
        meters: Meters | None = None,
    ) -> None:
        self.groups = groups
        self._is_live_under_way = is_live_under_way
        self.owner = name_node()
        self._meters = meters or Meters()
        self.settler = Settler(groups, lease=lease, owner=self.owner, meters=self._meters)
        self._rescuer = Rescuer(groups, lambda: tuple(self))
        self._open_subscription = open_subscription
        self._lease = lease
        self._consumers: dict[int, Consumer] = {}
        self._users: dict[int, int] = {}
        self._running: dict[service.Stage, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Consumer]:
        return iter(tuple(self._consumers.values()))

    def open(self, group: Group, *, poll_interval: float = POLL_INTERVAL, queue: str = "") -> Consumer:
        """Return the consumer of a group, for one more who takes from it. Each gives it back with `close`.

        The group is looked at as often as the most eager of them asks for.
        """
        if not self._running:
            stages: list[service.Stage] = [self.settler, self._rescuer]
            self._running = {stage: service.start(stage, self._meters.failures) for stage in stages}
        consumer = self._consumers.get(group.id)
        if consumer is None or consumer.has_ended:  # SQLite gives the id of a group that was deleted to the next
            self._users.pop(group.id, None)
            consumer = self._consumers[group.id] = Consumer(
                self.groups,
                group,
                open_subscription=self._open_subscription,
                settler=self.settler,
                owner=self.owner,
                lease=self._lease,
                poll_interval=poll_interval,
                courtesy=Courtesy(self._is_live_under_way),
                meters=self._meters,
            )
            consumer.start()
        consumer.queue = queue or consumer.queue
        consumer.poll_interval = min(consumer.poll_interval, poll_interval)
        self._rescuer.bell.ring()
        self._users[group.id] = self._users.get(group.id, 0) + 1
        return consumer

    async def close(self, consumer: Consumer) -> None:
        """Give a consumer back; it ends with the last who took from it."""
        group_id = consumer.group.id
        if self._consumers.get(group_id) is not consumer:
            return  # the node has stopped meanwhile
        self._users[group_id] -= 1
        if self._users[group_id] == 0:
            del self._users[group_id]
            del self._consumers[group_id]
            await consumer.close()

    async def stop(self) -> None:
        """Give back what is held and write what was settled."""
        for consumer in tuple(self._consumers.values()):
            await consumer.close()
        self._consumers.clear()
        self._users.clear()
        await service.end(self._running)
        self._running = {}
        # What cannot be written now is found by others when its lease ends.
        with suppress(EventBusError, TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT):
                await self.settler.flush()
