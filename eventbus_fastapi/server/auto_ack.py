"""Automatic acks: marks events processed after they were sent, many to one commit, beside the sending.

What waits is bounded: a sender that is far faster than the database waits for it (`room`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import EventBusError, StoreUnavailable
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.server import tasks
from eventbus_fastapi.store import Ack

logger = logging.getLogger(__name__)

MAX_WAITING = 50_000
"""Most events that may wait to be marked."""
AT_ONCE = 1_000
"""Events marked by one call."""


class AutoAck:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._waiting: list[Ack] = []
        self._room = asyncio.Event()
        self._room.set()
        self._marking: asyncio.Task[None] | None = None

    def add(self, messages: Sequence[Message]) -> None:
        """Mark the events processed, soon."""
        self._waiting.extend(Ack(message.seq) for message in messages if message.is_durable)
        if len(self._waiting) >= MAX_WAITING:
            self._room.clear()
        if self._waiting and (self._marking is None or self._marking.done()):
            self._marking = asyncio.create_task(self._mark(), name="websocket-auto-ack")

    @property
    def has_room(self) -> bool:
        """True if more events may be added now."""
        return self._room.is_set()

    async def room(self) -> None:
        """Wait until more events may be added."""
        await self._room.wait()

    async def close(self, timeout: float) -> None:
        """Mark what waits, within `timeout` seconds. What is left then stays unmarked, so replays show it again."""
        if self._marking is None:
            return
        await asyncio.wait((self._marking,), timeout=timeout)
        await tasks.end(self._marking)
        if self._waiting:
            logger.warning("could not mark %d sent events as processed", len(self._waiting))

    async def _mark(self) -> None:
        pauses, attempt = FullJitter(base=0.1, cap=2.0), 0
        while self._waiting:
            acks = self._waiting[:AT_ONCE]
            try:
                await self._node.acknowledge(acks)
            except StoreUnavailable:
                await asyncio.sleep(pauses.delay(attempt))
                attempt += 1
                continue
            except EventBusError as exc:
                # An event that has expired since it was sent is refused; the others of the call count all the same.
                logger.debug("some of %d sent events were not marked as processed: %s", len(acks), exc.code)
            attempt = 0
            del self._waiting[: len(acks)]
            if len(self._waiting) < MAX_WAITING:
                self._room.set()
