"""A stream in memory that nodes of one test share: what NATS does for the fan-out, and what it may do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import UUID

from eventbus_fastapi.pipeline.fanout import StreamReader, StreamUnavailable


class Hub:
    """Where the streams of the nodes meet. What `passes` says no to is lost on its way, for everybody."""

    def __init__(self) -> None:
        self.pushed: list[bytes] = []
        """Everything that was ever stored."""
        self.streams: list[MemoryStream] = []
        self.passes: Callable[[bytes], bool] = lambda encoded: True
        self.is_away = False
        self._ids: set[str] = set()

    def stream(self) -> MemoryStream:
        """Return a stream for one more node."""
        self.streams.append(MemoryStream(self))
        return self.streams[-1]

    def store(self, encoded: bytes, push_id: str | None) -> bool:
        if push_id is not None and push_id in self._ids:
            return False
        self._ids.add(push_id or "")
        self.pushed.append(encoded)
        if self.passes(encoded):
            self.tell(encoded)
        return True

    def tell(self, encoded: bytes) -> None:
        """Have all nodes hear something."""
        for stream in self.streams:
            stream.hear(encoded)

    def go(self) -> None:
        """Break all connections, and let nobody in."""
        self.is_away = True
        for stream in self.streams:
            stream.lose("the hub went")

    def come_back(self) -> None:
        """Let everybody in again, to an empty stream."""
        self._ids.clear()
        self.is_away = False


class MemoryStream:
    """A `pipeline.fanout.Stream`."""

    name = "memory"

    def __init__(self, hub: Hub) -> None:
        self.most_bytes = 1_048_576
        self.is_idle = True
        """See `Stream`."""
        self.is_deaf = False
        """It hears nothing, and does not know."""
        self._hub = hub
        self._reader: StreamReader | None = None
        self._epoch = UUID(int=0)

    async def open(self, epoch: UUID, reader: StreamReader) -> None:
        await asyncio.sleep(0)
        if self._hub.is_away:
            raise StreamUnavailable("the hub is away")
        self._epoch, self._reader = epoch, reader

    async def push(self, encoded: bytes, push_id: str | None = None) -> None:
        await asyncio.sleep(0)
        if self._reader is None:
            raise StreamUnavailable("the connection is closed")
        is_new = self._hub.store(encoded, push_id)
        if self._reader is not None:
            self._reader.note_pushed(is_new)

    async def close(self) -> None:
        self._reader = None

    def hear(self, encoded: bytes) -> None:
        if self._reader is not None and not self.is_deaf:
            self._reader.hear(encoded)

    def close_quietly(self) -> None:
        """Be closed, which nobody is told before the next push."""
        self._reader = None

    def lose(self, reason: str) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.note_lost(reason)
