"""A feed: brings one subscription's events to its connection.

While one frame is being sent, events gather in the tail that all subscriptions share; the next frame carries all of
them. So an idle event leaves at once, and a busy subscription sends few large frames, whose text many connections
share. A feed holds what one `take` gave, never a queue.

        woken ──▶ one frame, nothing in its way ──▶ sent at once
              └─▶ history, a queue, a slow client ─▶ a task, until there is nothing left

A thousand feeds are woken by one event. So what can be sent without a wait is, and a task is only made where something
has to be waited for. It ends when nothing is left.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, assert_never

from eventbus_fastapi.errors import NotFound
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Batch, CaughtUp, Gap, Item
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.protocol.events import Sub
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.auto_ack import AutoAck
from eventbus_fastapi.server.dialects import Dialect
from eventbus_fastapi.server.outlet import ConnectionEnded, Outlet
from eventbus_fastapi.server.rounds import Rounds
from eventbus_fastapi.server.sent import Sent
from eventbus_fastapi.server.tasks import Work
from eventbus_fastapi.store import Ack

logger = logging.getLogger(__name__)

FRAME_BYTES = 262_144
"""About how much is joined into one frame, characters."""
SENT_AT_ONCE = 50
"""Frames that are sent before others get the loop."""
ACKS_AT_ONCE = 1_000


async def _fail(error: Exception) -> None:
    raise error


class Frame(NamedTuple):
    """A text to send, and what the client will know by it."""

    text: str
    messages: Sequence[Message] = ()
    gap: Gap | None = None
    is_last: bool = False
    """No other is made of the same items."""


Start = Callable[["Feed", Work], asyncio.Task[None]]


class Feed:
    """See the module's docstring.

    `start` starts the task that does some of its work, and deals with how that ends: SubscriptionClosed is the end of
    the subscription, ConnectionEnded that of the connection.
    """

    __slots__ = (
        "_ack_to",
        "_acknowledging",
        "_auto_ack",
        "_credit",
        "_dialect",
        "_is_closing",
        "_is_due",
        "_is_open",
        "_is_sending",
        "_made",
        "_node",
        "_outlet",
        "_rounds",
        "_sent",
        "_start",
        "sub",
        "subscription",
        "task",
    )

    def __init__(
        self,
        sub: Sub,
        subscription: Subscription,
        outlet: Outlet,
        node: Node,
        *,
        dialect: Dialect,
        acknowledging: asyncio.Lock,
        start: Start,
        rounds: Rounds,
        credit: int | None = None,
        auto_ack: AutoAck | None = None,
    ) -> None:
        self.sub = sub
        self.subscription = subscription
        self.task: asyncio.Task[None] | None = None
        self._outlet = outlet
        self._node = node
        self._dialect = dialect
        self._start = start
        self._rounds = rounds
        self._credit = None if credit is None else min(credit, node.settings.max_credit)
        self._auto_ack = auto_ack
        self._sent = Sent(subscription.after)
        self._acknowledging = acknowledging  # held while a range is marked, by one feed of the connection
        self._ack_to = 0
        self._made: Iterator[Frame] | None = None  # frames of events that were taken and not sent yet
        self._is_open = False
        self._is_due = False  # True: woken, and not served yet
        self._is_sending = False
        self._is_closing = False

    def open(self) -> None:
        """Begin to send."""
        self._is_open = True
        self.subscription.on_ready = self.wake
        self.wake()

    @property
    def is_idle(self) -> bool:
        """True while it is live and everything that it was given has been sent."""
        return self._is_open and not self._is_due and self.task is None and self.subscription.is_live

    @property
    def sent_to(self) -> int:
        """No event after this seq was sent."""
        return self._sent.last_seq

    @property
    def is_out_of_credit(self) -> bool:
        """True while the client has to allow more events."""
        return self._credit is not None and self._credit <= 0

    def allow(self, credit: int) -> None:
        """Allow that many more events, up to the server's limit; without effect where there is no limit."""
        if self._credit is not None:
            self._credit = min(self._credit + credit, self._node.settings.max_credit)
            self.wake()

    # --- sending ---

    def wake(self) -> None:
        """There may be something to send: send it in the next turn of the loop."""
        if self._is_open and not self._is_due and self.task is None:
            self._is_due = True
            self._rounds.ask(self)

    def serve(self) -> None:
        """See `Rounds`."""
        self._is_due = False
        work: Work = self.send_all
        try:
            if self._send_shared():
                return
            if self._has_work():
                self._send_at_once()
        except ConnectionEnded:
            return
        except Exception as exc:  # noqa: BLE001 - who starts the task deals with it
            work = partial(_fail, exc)
        else:
            if not self._has_work():
                return
        self.task = self._start(self, work)

    def _has_work(self) -> bool:
        if self._is_closing or self.is_out_of_credit:
            return False
        return self._made is not None or self.subscription.has_more

    def _send_shared(self) -> bool:
        """Send what came, if it is the same for all who read it, and nothing else is due; return whether that was so.

        It is what an event costs a thousand times: the text is there, and nothing is made or asked that need not be.
        """
        sharing = self._dialect.sharing
        if sharing is None or not self._is_unhindered:
            return False
        batch = self.subscription.take_next(self._credit)
        if batch is None:
            return False
        self._outlet.send_at_once(batch.text(sharing, self._dialect.events))
        self._note(batch.messages)
        return True

    @property
    def _is_unhindered(self) -> bool:
        """True while a frame may be sent at once."""
        return (
            self._made is None
            and not self._is_closing
            and self._outlet.is_free
            and (self._auto_ack is None or self._auto_ack.has_room)
        )

    def _send_at_once(self) -> None:
        """Send the next frame if nothing is in its way. What follows it, a task sends."""
        if not self.subscription.is_live or not self._is_unhindered:
            return
        made = self._frames(self.subscription.take_ready(self._credit))
        frame = next(made, None)
        if frame is None:
            return
        self._outlet.send_at_once(frame.text)
        self._note(frame.messages, frame.gap)
        if not frame.is_last:
            self._made = made

    async def send_all(self) -> None:
        """Send until nothing is left.

        Raises:
            SubscriptionClosed: the subscription has ended.
            ConnectionEnded: the connection has.
        """
        try:
            while self._has_work():
                if self.subscription.is_live:  # what it gets is shared with all others
                    await self._send_some()
                else:
                    async with self._outlet.history:
                        await self._send_some()
                if self._auto_ack is not None:
                    await self._auto_ack.room()
                await asyncio.sleep(0)  # a send need not wait, and others want the loop, too
        finally:
            self.task = None

    async def _send_some(self) -> None:
        made, self._made = self._made, None
        if made is None:
            made = self._frames(await self.subscription.take_some(self._credit))
        for number in itertools.count(1):
            frame = await self._send_next(made)
            if frame is None:
                return
            self._note(frame.messages, frame.gap)
            if number % SENT_AT_ONCE == 0:
                await asyncio.sleep(0)

    def stop(self) -> None:
        """Begin nothing more: its task is all that may go on."""
        self._is_closing = True
        self.subscription.on_close = self.subscription.on_ready = None
        self.subscription.close()

    async def close(self) -> None:
        """End it; nothing of it is sent any more when this returns."""
        self.stop()
        if self.task is None:
            return
        if self._is_sending:
            await asyncio.wait((self.task,))  # not cancelled: another send would begin to count its stall anew
        else:
            await tasks.end(self.task)

    async def acknowledge_up_to(self, seq: int) -> int:
        """Mark processed what was sent so far up to a seq; return how many events are.

        Calls take turns. The first one does what those that wait have asked for, and they find nothing left.
        """
        self._ack_to = max(self._ack_to, min(seq, self._sent.last_seq))
        acked = 0
        async with self._acknowledging:
            ack_to = self._ack_to
            while (run := self._sent.first_up_to(ack_to)) is not None:
                after, until = run
                page = await self._node.history(self.subscription.patterns, after, ACKS_AT_ONCE)
                acked += await self._acknowledge([message for message in page.messages if message.seq <= until])
                self._sent.forget(until if page.next is None else min(page.next, until))
        return acked

    async def _acknowledge(self, messages: Sequence[Message]) -> int:
        if not messages:
            return 0
        try:
            return await self._node.acknowledge([Ack(message.seq) for message in messages])
        except NotFound:  # one has expired since it was read; the others count
            return len(messages)

    async def _send_next(self, frames: Iterator[Frame]) -> Frame | None:
        self._is_sending = True
        try:
            return await self._outlet.send_next(frames)
        finally:
            self._is_sending = False

    def _note(self, messages: Sequence[Message], gap: Gap | None = None) -> None:
        """These were sent."""
        if self._credit is not None:  # what has expired on its way costs the client nothing
            self._credit -= len(messages)
        if messages:
            self._node.meters.delivered[self._outlet.kind] += len(messages)
            self._sent.note(messages)
            if self._auto_ack is not None:
                self._auto_ack.add(messages)
        if gap is not None:
            self._sent.note_gap(gap)

    # --- frames ---

    def _frames(self, items: Sequence[Item]) -> Iterator[Frame]:
        """Make frames, each when it is asked for: what has expired by then is left out."""
        return self._joined_frames(items) if self._dialect.is_joined else self._single_frames(items)

    def _single_frames(self, items: Sequence[Item]) -> Iterator[Frame]:
        last = items[-1].messages[-1] if items and isinstance(items[-1], Batch) else None
        for item in items:
            match item:
                case Batch():
                    for message in item.messages:
                        if self._is_closing:
                            return
                        if message.expires_at is None or message.expires_at > self._node.store.estimate_now():
                            yield Frame(self._dialect.events((message,)), (message,), is_last=message is last)
                case Gap():
                    if text := self._dialect.gap(item):
                        yield Frame(text, gap=item)
                        continue
                    logger.warning(
                        "a plain subscription missed events %d to %d (%s)", item.first_seq, item.last_seq, item.reason
                    )
                    self._sent.note_gap(item)
                case CaughtUp():
                    pass
                case _:
                    assert_never(item)

    def _joined_frames(self, items: Sequence[Item]) -> Iterator[Frame]:
        """Join what there is into arrays of about `FRAME_BYTES`; a gap ends a frame."""
        held: list[Frame] = []
        size = 0
        for item in items:
            part = self._part(item)
            if part is not None and held and size + len(part.text) > FRAME_BYTES:
                yield self._join(held)
                held, size = [], 0
                if isinstance(item, Batch) and item.expires:
                    part = self._part(item)  # some of it may have expired while the others were sent
            if self._is_closing:
                return
            if part is None:
                continue
            held.append(part)
            size += len(part.text)
            if part.gap is not None:
                yield self._join(held)
                held, size = [], 0
        if held:
            yield self._join(held)._replace(is_last=True)

    def _part(self, item: Item) -> Frame | None:
        match item:
            case Batch():
                fresh = self._without_expired(item)
                return Frame(self._text(fresh), fresh.messages) if fresh.messages else None
            case Gap():
                return Frame(self._dialect.gap(item), gap=item)
            case CaughtUp():
                return Frame(self._dialect.caught_up(item))
            case _:
                assert_never(item)

    def _without_expired(self, batch: Batch) -> Batch:
        if not batch.expires:
            return batch
        now = self._node.store.estimate_now()
        fresh = [message for message in batch.messages if message.expires_at is None or message.expires_at > now]
        return batch if len(fresh) == len(batch.messages) else Batch(fresh)

    def _text(self, batch: Batch) -> str:
        sharing = self._dialect.sharing
        if sharing is None:
            return self._dialect.events(batch.messages)
        return batch.text(sharing, self._dialect.events)

    def _join(self, parts: list[Frame]) -> Frame:
        if len(parts) == 1:
            return parts[0]
        messages = [message for part in parts for message in part.messages]
        return Frame(self._dialect.join([part.text for part in parts]), messages, parts[-1].gap)
