"""The dispatcher: reads what is new in the log once per node and gives it to the channels that match.

It holds no connection while it works, sends nothing, and waits for no reader. What its own node has just appended it
takes over without reading, if that is what comes next; so it does with what is given to it (`feed_to`), and then it
reads only what was there before. While nobody reads live it does not read either. `position` says how far it is; a
subscription that has read history that far may join (see `subscription`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.pipeline.channel import Channel, Page, Reader, Tail
from eventbus_fastapi.store import Store
from eventbus_fastapi.topics import PatternIndex

TOPICS_CACHED = 10_000
MESSAGE_OVERHEAD = 1_000
"""Bytes that a message takes in memory beside its payload and the payload's text for the wire; measured, rounded up."""


class Dispatcher:
    name = "dispatcher"

    def __init__(self, store: Store, *, page_size: int, tail_bytes: int) -> None:
        self.bell = Bell()
        self.position = 0
        self.dispatched = 0
        """Events read so far."""
        self._store = store
        self._page_size = page_size
        self._head = 0
        self._fed_to: int | None = None
        self.on_read: Callable[[], None] | None = None
        """Called after each page, when `position` has moved."""
        self._channels: dict[tuple[str, ...], Channel] = {}
        self._index: PatternIndex[Channel] = PatternIndex()
        self._by_topic: dict[str, tuple[Channel, ...]] = {}
        self._tail = Tail(tail_bytes)

    @property
    def head(self) -> int:
        """See `channel.Live`."""
        return self._head

    def tell(self, last_seq: int) -> None:
        """The log has reached `last_seq`; wake up if that is news."""
        if last_seq > self._head:
            self._head = last_seq
            if self._channels and self._fed_to is None:
                self.bell.ring()

    def feed_to(self, last_seq: int | None) -> None:
        """Read up to this seq, no further: what follows is given to it. None: read all, as nobody gives it anything."""
        self._fed_to = last_seq
        self.tell(last_seq or 0)
        if self._channels and self.is_behind:
            self.bell.ring()

    @property
    def has_readers(self) -> bool:
        """True if somebody reads live."""
        return bool(self._channels)

    @property
    def is_behind(self) -> bool:
        """True if there is something to read for it, as far as it knows."""
        return self.position < (self._head if self._fed_to is None else self._fed_to)

    async def run_once(self) -> float | None:
        """Read and dispatch one page."""
        if not self._channels or (self._fed_to is not None and not self.is_behind):
            return None
        after, head = self.position, self._head
        scan = await self._store.read(after, self._page_size)
        if scan.first != after + 1 and await self._is_gone(after + 1):
            self._end_all()  # retention was faster; each reader finds out in the log what it missed
            return None
        if after != self.position or not self._channels:
            return 0  # the last reader left and another came while we read
        # What the log no longer holds at its end (a TTL) was looked at too.
        self.position = max(scan.scanned_to, head) if scan.is_last else scan.scanned_to
        self._head = max(self._head, self.position)
        self.dispatch(scan.messages)
        if self.on_read is not None:
            self.on_read()
        # One turn of the loop for the readers between two pages.
        await asyncio.sleep(0)
        return None if scan.is_last else 0

    async def _is_gone(self, seq: int) -> bool:
        """Say whether retention removed it. Who reads on in the log then must not join again before the log's end."""
        head = await self._store.head()
        self._head = max(self._head, head.last_seq)
        return seq < head.first_seq

    def may_accept(self, position: int) -> bool:
        """True if everything up to this seq was dispatched, and nothing after it."""
        return bool(self._channels) and self.position == position

    def accept(self, messages: Sequence[Message], last_seq: int | None = None) -> None:
        """Take events, as if read from the log right after `position`, which then is their last seq or a later one.

        A page that is being read meanwhile begins at an older position and is thrown away.
        """
        self.position = messages[-1].seq if last_seq is None else last_seq
        self._head = max(self._head, self.position)
        if messages:
            self.dispatch(messages)

    def dispatch(self, messages: Sequence[Message]) -> None:
        """Give events to the channels that match."""
        by_channel: dict[Channel, list[Message]] = {}
        size = 0
        for message in messages:
            channels = self._by_topic.get(message.topic)
            if channels is None:
                channels = self._match(message.topic)
            if channels:
                size += 2 * len(message.body) + MESSAGE_OVERHEAD
            for channel in channels:
                by_channel.setdefault(channel, []).append(message)
        if not by_channel:
            return
        parts = [(channel, channel.append(matching)) for channel, matching in by_channel.items()]
        self._tail.add(Page(size, messages[-1].seq, parts))
        self.dispatched += len(messages)
        for channel in by_channel:
            channel.notify()

    def attach(self, reader: Reader, patterns: tuple[str, ...], position: int) -> Channel | None:
        """See `channel.Live`. The first reader of all decides where the dispatcher reads on."""
        channel = self._channels.get(patterns)
        if channel is None:
            if not self._channels:
                self.position = min(position, self._head)  # a reader may wait for a seq that is far ahead
            elif position < self.position:
                return None
            channel = self._open(patterns)
        elif position < channel.covered_from:
            return None
        channel.readers.add(reader)
        if self.is_behind:
            self.bell.ring()
        return channel

    def detach(self, reader: Reader, channel: Channel) -> None:
        """See `channel.Live`. A channel ends with its last reader."""
        channel.readers.discard(reader)
        if not channel.readers and self._channels.get(channel.patterns) is channel:
            self._close(channel)

    def _open(self, patterns: tuple[str, ...]) -> Channel:
        channel = self._channels[patterns] = Channel(patterns, self.position)
        for pattern in patterns:
            self._index.add(pattern, channel)
        self._by_topic.clear()
        return channel

    def _close(self, channel: Channel) -> None:
        del self._channels[channel.patterns]
        for pattern in channel.patterns:
            self._index.remove(pattern, channel)
        self._by_topic.clear()
        if not self._channels:
            self._tail.clear()

    def _end_all(self) -> None:
        for channel in tuple(self._channels.values()):
            for reader in tuple(channel.readers):
                reader.leave()

    def _match(self, topic: str) -> tuple[Channel, ...]:
        if len(self._by_topic) >= TOPICS_CACHED:
            self._by_topic.clear()
        channels = self._by_topic[topic] = tuple(self._index.match(topic))
        return channels
