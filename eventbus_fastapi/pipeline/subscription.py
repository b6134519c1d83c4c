"""A subscription: every event of some patterns after a seq, once and in order, from history into live.

                 ┌────────────── overflow, policy catch_up ──────────────┐
                 ▼                                                       │
    start ──▶ history ──(position reached the dispatcher's)──▶ live ─────┴──▶ closed

History reads pages of the log at the reader's own pace. The step to live needs no look at the database and cannot be
interrupted: when the position is at least the dispatcher's, the subscription joins its channel; whatever the channel
already had is older, whatever comes next is newer. Nothing is queued for a reader: it remembers a place in the channel,
and how many events it may fall behind is bounded (`buffer`), with a named policy beyond.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple, Self, TypeVar, assert_never

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import LogGap, SlowConsumer, StoreUnavailable, SubscriptionClosed
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Batch, CaughtUp, Channel, Gap, Item, Live, cut
from eventbus_fastapi.pipeline.matcher import Matcher
from eventbus_fastapi.settings import Overflow
from eventbus_fastapi.store import Scan, Store
from eventbus_fastapi.telemetry.meters import Meters

T = TypeVar("T")
logger = logging.getLogger(__name__)

TAKE_BATCHES = 4
"""Batches that one `take` returns at most: about 1 MiB."""


class Policy(NamedTuple):
    """How a subscription reads."""

    overflow: Overflow
    buffer: int
    """Events that it may fall behind, under `disconnect` and `drop_oldest`; `catch_up` has the node's tail."""
    page_size: int


class Subscription:
    """See the module's docstring. Made by `Node.subscribe`.

    Use it as an async iterator of messages, or `take()` for batches. One task may read at a time.
    """

    __slots__ = (
        "_acknowledge",
        "_channel",
        "_closed",
        "_items",
        "_joined_at",
        "_joins_at",
        "_live",
        "_matcher",
        "_meters",
        "_next",
        "_on_end",
        "_on_gap",
        "_policy",
        "_reads",
        "_ready",
        "_replays_to",
        "_store",
        "_taken",
        "_waiter",
        "after",
        "on_close",
        "on_ready",
        "patterns",
        "position",
        "processed_before",
    )

    def __init__(
        self,
        patterns: tuple[str, ...],
        after: int,
        *,
        store: Store,
        live: Live,
        reads: asyncio.Semaphore,
        policy: Policy,
        head: int,
        processed_before: int,
        acknowledge: Callable[[Message], Awaitable[None]],
        gaps: Sequence[Gap] = (),
        on_gap: Callable[[Gap], None] | None = None,
        on_end: Callable[[Subscription], None] | None = None,
        meters: Meters | None = None,
    ) -> None:
        self.patterns = patterns
        self.after = after
        """Where it started: the seq after which it reads."""
        self.position = after
        """The last seq that was looked at for this reader."""
        self.processed_before = processed_before
        """A replay leaves out what was processed before this time (unix microseconds, the database's clock), not what
        somebody has processed since; 0: it leaves nothing out."""
        self.on_close: Callable[[SubscriptionClosed], None] | None = None
        """Called when its policy ends it, whether or not somebody waits in `take`."""
        self.on_ready: Callable[[], None] | None = None
        """Called when there may be something to take, for who does not wait in `take`. It must not take at once."""
        self._store = store
        self._live = live
        self._reads = reads
        self._replays_to = head  # what came later cannot have been processed before
        self._joins_at = head  # history up to here is read at the reader's own pace
        self._policy = policy
        self._acknowledge = acknowledge
        self._on_gap = on_gap
        self._meters = meters or Meters()
        self._on_end = on_end
        self._items: list[Item] = [*gaps]  # few; an empty deque takes more memory than all the rest
        self._channel: Channel | None = None
        self._next = 0  # number of the next batch of the channel
        self._taken = 0  # events of the channel before that batch
        self._joined_at = 0  # number of the first batch that came after it joined
        self._waiter: asyncio.Future[None] | None = None  # of who waits for something to take
        self._closed: SubscriptionClosed | None = None
        self._matcher: Matcher | None = None  # while it reads history
        self._ready: Iterator[Message] = iter(())
        self._join()  # at once where it can: events that are not stored reach only who is live

    # --- batches ---

    async def take(self, limit: int | None = None) -> list[Item]:
        """Wait until there is something to read and return all that is ready, at most `limit` events (None: about
        1 MiB).

        Raises:
            SlowConsumer: the overflow policy ended the subscription.
            SubscriptionClosed: it was closed.
        """
        while not (items := await self.take_some(limit)):
            await self._wait()
        return items

    async def take_some(self, limit: int | None = None) -> list[Item]:
        """Do as `take`, but wait for nothing except for the log: what is returned may be empty."""
        if self._channel is None and not self._items and self._closed is None:
            await self._read_history()
        return self.take_ready(limit)

    def take_ready(self, limit: int | None = None) -> list[Item]:
        """Do as `take`, but wait for nothing at all, and do not read the log."""
        if not self._items and self._channel is not None:
            self._apply_policy(self._channel)
            if self._channel is not None:
                self._collect(self._channel)
        if self._closed is not None:
            raise self._closed
        return self._without_expired(self._take_items(limit)) if self._items else []

    def take_next(self, limit: int | None = None) -> Batch | None:
        """Take the next batch of live events if that is all there is to take and this reader gets all of it, as any
        other does. None: nothing was taken, ask `take_ready`.
        """
        channel = self._channel
        if channel is None or self._items or self._next + 1 != channel.end or not channel.batches:
            return None
        batch = channel.batches[-1]
        messages = batch.messages
        if batch.expires or messages[0].seq <= self.position or (limit is not None and len(messages) > limit):
            return None
        self._next += 1
        self._taken = channel.events
        self.position = batch.last_seq
        return batch

    @property
    def has_more(self) -> bool:
        """False while it is live and nothing has come since the last `take`; an end counts as something."""
        return self._channel is None or bool(self._items) or self._next < self._channel.end

    async def _wait(self) -> None:
        """Wait until there may be something to take."""
        if self.has_more:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _rouse(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_ready is not None:
            self.on_ready()

    def close(self) -> None:
        """End the subscription; whoever waits in `take` gets SubscriptionClosed."""
        self._end(SubscriptionClosed("the subscription was closed"))

    @property
    def is_live(self) -> bool:
        """True while it reads what the dispatcher gives out, False while it reads history."""
        return self._channel is not None

    @property
    def reached(self) -> int:
        """Everything that matches, up to this seq, was handed out by `take`."""
        for item in self._items:
            if isinstance(item, Batch) and item.last_seq > 0:
                return item.messages[0].seq - 1
            if isinstance(item, Gap):
                return item.first_seq - 1
        if self._channel is None or self._next < self._channel.end:
            return self.position
        return max(self.position, self._live.position)

    # --- messages ---

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Return the next message; end after `close`. Raises as `next_messages`."""
        while True:
            for message in self._ready:
                if message.expires_at is None or not self._has_expired(message):
                    return message
            try:
                self._ready = iter(await self.next_messages())
            except SlowConsumer:
                raise
            except SubscriptionClosed:
                raise StopAsyncIteration from None

    async def next_messages(self) -> list[Message]:
        """Wait for messages and return those that are ready, at least one.

        Raises:
            LogGap: part of the log is not available and no `on_gap` was given. Reading goes on after the gap.
            SlowConsumer: the overflow policy ended the subscription.
            SubscriptionClosed: it was closed.
        """
        messages: list[Message] = []
        while not messages:
            items = deque(await self.take())
            while items:
                item = items.popleft()
                if isinstance(item, Batch):
                    messages.extend(item.messages)
                elif isinstance(item, Gap) and messages:
                    self._items[:0] = (item, *items)  # first what came before the gap
                    break
                elif isinstance(item, Gap):
                    self._items[:0] = items  # kept, whatever is raised now
                    if self._on_gap is None:
                        raise LogGap(item.first_seq, item.last_seq, item.reason)
                    self._on_gap(item)
                    break
        self._meters.delivered["local"] += len(messages)
        for message in messages:
            message._acknowledge = self._acknowledge
        return messages

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    # --- what the channel calls ---

    def notify(self) -> None:
        """A batch came: wake the reader, or apply the overflow policy."""
        if self._channel is not None:
            self._apply_policy(self._channel)
        self._rouse()

    def _apply_policy(self, channel: Channel) -> None:
        is_gone = self._next < channel.first
        is_behind = channel.events - self._taken > self._policy.buffer and self._policy.overflow != "catch_up"
        if is_gone or is_behind:
            self._overflow(channel)

    def _overflow(self, channel: Channel) -> None:
        match self._policy.overflow:
            case "disconnect":
                self._give_back()
                self._end(
                    SlowConsumer(
                        f"the subscription fell more than {self._policy.buffer:,} events behind; "
                        f"resume after seq {self.position}"
                    )
                )
            case "catch_up":
                self.leave()
            case "drop_oldest":
                self._drop_oldest(channel)
            case _:
                assert_never(self._policy.overflow)

    def _drop_oldest(self, channel: Channel) -> None:
        """Go on with the newest batches that fit the buffer, and tell what was left out."""
        lost_to = channel.covered_from if self._next < channel.first else 0
        number = max(self._next, channel.first)
        while number + 1 < channel.end and channel.events - channel.before(number) > self._policy.buffer:
            lost_to = max(lost_to, channel.batches[number - channel.first].last_seq)
            number += 1
        self._next, self._taken = number, channel.before(number)
        if lost_to > self.position:
            self._add_gap(Gap(self.position + 1, lost_to, "overflow"))
            self.position = lost_to

    def _add_gap(self, gap: Gap) -> None:
        """Add a gap, as one with the gap right before it: a reader that stalls must not gather them."""
        last = self._items[-1] if self._items else None
        if isinstance(last, Gap) and (last.last_seq + 1, last.reason) == (gap.first_seq, gap.reason):
            gap = Gap(last.first_seq, gap.last_seq, gap.reason)
            self._items.pop()
        self._items.append(gap)

    def _give_back(self) -> None:
        """Count what was collected and never handed out as not looked at."""
        for item in self._items:
            if isinstance(item, Batch) and item.last_seq > 0:
                self.position = item.messages[0].seq - 1
                break
            if isinstance(item, Gap):
                self.position = item.first_seq - 1
                break
        self._items.clear()

    # --- live ---

    def _collect(self, channel: Channel) -> None:
        """Take the next batches of the channel, without what history has shown already."""
        for batch in channel.since(self._next, TAKE_BATCHES):
            was_live = self._next >= self._joined_at
            self._next += 1
            self._taken = batch.before + len(batch.messages)
            fresh = self._unseen(batch, was_live)
            if fresh is not None:
                self._items.append(fresh)
                self.position = max(self.position, fresh.last_seq)

    def _unseen(self, batch: Batch, was_live: bool) -> Batch | None:
        if batch.last_seq == 0:  # not stored: for those who were there
            return batch if was_live else None
        if batch.messages[0].seq > self.position:
            return batch
        unseen = [message for message in batch.messages if message.seq > self.position]
        return Batch(unseen) if unseen else None

    def leave(self) -> None:
        """Go back from live to history."""
        if self._channel is not None:
            self._live.detach(self, self._channel)
            self._channel = None
            self._joins_at = self._live.head
        self._rouse()

    # --- history ---

    async def _read_history(self) -> None:
        """Read one page of the log; join the channel as soon as nothing lies between."""
        if self._join():
            return
        head = max(self._live.head, self._joins_at)
        scan, gap, messages = await self._patiently(self._read_page)
        if gap is not None:
            self._items.append(gap)
        self._items.extend(cut(messages))
        # At the end of the log everything up to its head was looked at, also what a TTL has removed.
        self.position = max(scan.scanned_to, head) if scan.is_last else scan.scanned_to
        self._join()

    async def _patiently(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read, however long the database is away."""
        pauses = FullJitter(base=0.05, cap=1.0)
        attempt = 0
        while True:
            try:
                async with self._reads:
                    return await read()
            except StoreUnavailable as exc:
                if attempt == 0:
                    logger.warning("a subscription waits at seq %d: %s", self.position, exc)
                attempt += 1
            await asyncio.sleep(pauses.delay(attempt))

    async def _read_page(self) -> tuple[Scan, Gap | None, list[Message]]:
        """Return a page after our position, what retention removed before it, and what is for this reader."""
        scan = await self._store.read(self.position, self._policy.page_size)
        gap = await self._find_gap(scan) if scan.first != self.position + 1 else None
        matcher = self._matcher = self._matcher or Matcher(self.patterns)
        messages = [message for message in scan.messages if matcher.matches(message.topic)]
        return scan, gap, await self._without_processed(messages)

    async def _find_gap(self, scan: Scan) -> Gap | None:
        last_removed = (await self._store.head()).first_seq - 1
        if scan.first is not None:
            last_removed = min(last_removed, scan.first - 1)
        if last_removed <= self.position:
            return None  # the hole is a TTL's: those events had expired
        return Gap(self.position + 1, last_removed, "retention")

    async def _without_processed(self, messages: list[Message]) -> list[Message]:
        old = [message.seq for message in messages if message.seq <= self._replays_to]
        if self.processed_before == 0 or not old:
            return messages
        processed = await self._store.processed(old[0] - 1, old[-1], self.processed_before)
        return [message for message in messages if message.seq not in processed]

    def _join(self) -> bool:
        """Step from history to live, if no event after our position would be missed."""
        if self._closed is not None or self.position < self._joins_at:
            return False
        channel = self._live.attach(self, self.patterns, self.position)
        if channel is None:
            return False
        self._channel = channel
        self._next = channel.find(self.position)
        self._taken = channel.before(self._next)
        self._joined_at = channel.end
        self._matcher = None
        self.patterns = channel.patterns  # the same, once for all
        self._items.append(CaughtUp(self.position))
        return True

    # --- the end ---

    def _end(self, reason: SubscriptionClosed) -> None:
        if self._closed is not None:
            return
        self._closed = reason
        self._give_back()
        self.leave()
        if self._on_end is not None:
            self._on_end(self)
        if self.on_close is not None:
            self.on_close(reason)

    def _without_expired(self, items: list[Item]) -> list[Item]:
        """Leave out what has expired since it was read: a reader may have let it wait."""
        kept: list[Item] = []
        for item in items:
            if not isinstance(item, Batch) or not item.expires:
                kept.append(item)
            elif fresh := [message for message in item.messages if not self._has_expired(message)]:
                kept.append(item if len(fresh) == len(item.messages) else Batch(fresh))
        return kept

    def _has_expired(self, message: Message) -> bool:
        return message.expires_at is not None and message.expires_at <= self._store.estimate_now()

    def _take_items(self, limit: int | None) -> list[Item]:
        if limit is None:
            items, self._items = self._items, []
            return items
        items = []
        while self._items and limit > 0:
            item = self._items.pop(0)
            if isinstance(item, Batch):
                if len(item.messages) > limit:
                    self._items.insert(0, Batch(item.messages[limit:]))
                    item = Batch(item.messages[:limit])
                limit -= len(item.messages)
            items.append(item)
        return items
