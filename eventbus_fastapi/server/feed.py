"""A feed: brings one subscription's events to its connection.

While one frame is being sent, events gather in the tail that all subscriptions share; the next frame carries all of
them. So an idle event leaves at once, and a busy subscription sends few large frames, whose text many connections
share. A feed holds what one `take` gave, never a queue.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple, assert_never

from eventbus_fastapi.errors import NotFound
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Batch, CaughtUp, Gap, Item
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.protocol import frames
from eventbus_fastapi.protocol.events import Sub, event_frame, event_object
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.auto_ack import AutoAck
from eventbus_fastapi.server.outlet import Outlet
from eventbus_fastapi.server.sent import Sent
from eventbus_fastapi.store import Ack

logger = logging.getLogger(__name__)

FRAME_BYTES = 262_144
"""About how much is joined into one frame, characters."""
PLAIN_AT_ONCE = 50
"""Frames of the plain dialect that are sent before others get the loop."""
MAX_SHARED_SUB = 4
"""Texts are shared between connections for the subscription ids 1 to this, which most clients use. Ids are chosen by
clients: sharing them all would let a client fill the memory with texts that nobody shares."""
ACKS_AT_ONCE = 1_000


class Frame(NamedTuple):
    """A text to send, and what the client will know by it."""

    text: str
    messages: Sequence[Message] = ()
    gap: Gap | None = None


class Feed:
    """See the module's docstring. `run` is its task."""

    def __init__(
        self,
        sub: Sub,
        subscription: Subscription,
        outlet: Outlet,
        node: Node,
        *,
        acknowledging: asyncio.Lock,
        is_plain: bool,
        credit: int | None,
        auto_ack: AutoAck | None,
    ) -> None:
        self.sub = sub
        self.subscription = subscription
        self.task: asyncio.Task[None] | None = None
        self._outlet = outlet
        self._node = node
        self._is_plain = is_plain
        self._credit = credit
        self._has_credit = asyncio.Event()
        self._auto_ack = auto_ack
        self._sent = Sent(subscription.after)
        self._acknowledging = acknowledging  # held while a range is marked, by one feed of the connection
        self._ack_to = 0
        self._is_taking = False
        self._is_sending = False
        self._is_closing = False
        self.allow(0)

    @property
    def is_idle(self) -> bool:
        """True while it is live and everything that it was given has been sent."""
        return self._is_taking and self.subscription.is_live

    @property
    def is_out_of_credit(self) -> bool:
        """True while the client has to allow more events."""
        return not self._has_credit.is_set()

    def allow(self, credit: int) -> None:
        """Allow that many more events; without effect where there is no limit."""
        if self._credit is not None:
            self._credit += credit
        if self._credit is None or self._credit > 0:
            self._has_credit.set()

    async def run(self) -> None:
        """Send the subscription's events until it ends.

        Raises:
            SubscriptionClosed: it has ended.
            ConnectionEnded: the connection has.
        """
        while True:
            made = self._frames(await self._take())
            for number in itertools.count(1):
                frame = await self._send_next(made)
                if frame is None:
                    break
                self._note(frame)
                if number % PLAIN_AT_ONCE == 0:
                    await asyncio.sleep(0)
            if self._is_closing:
                return
            if self._auto_ack is not None:
                await self._auto_ack.room()
            await asyncio.sleep(0)  # a send need not wait, and others want the loop, too

    async def close(self) -> None:
        """End it; nothing of it is sent any more when this returns."""
        self.subscription.on_close = None
        self.subscription.close()
        self._is_closing = True
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

    async def _take(self) -> list[Item]:
        await self._has_credit.wait()
        self._is_taking = True
        try:
            return await self.subscription.take(self._credit)
        finally:
            self._is_taking = False

    async def _send_next(self, frames: Iterator[Frame]) -> Frame | None:
        self._is_sending = True
        try:
            return await self._outlet.send_next(frames)
        finally:
            self._is_sending = False

    def _note(self, frame: Frame) -> None:
        if self._credit is not None:  # what has expired on its way costs the client nothing
            self._credit -= len(frame.messages)
            if self._credit <= 0:
                self._has_credit.clear()
        if frame.messages:
            self._sent.note(frame.messages)
            if self._auto_ack is not None:
                self._auto_ack.add(frame.messages)
        if frame.gap is not None:
            self._sent.note_gap(frame.gap)

    # --- frames ---

    def _frames(self, items: Sequence[Item]) -> Iterator[Frame]:
        """Make frames, each when it is asked for: what has expired by then is left out."""
        return self._plain_frames(items) if self._is_plain else self._joined_frames(items)

    def _plain_frames(self, items: Sequence[Item]) -> Iterator[Frame]:
        for item in items:
            match item:
                case Batch():
                    for message in item.messages:
                        if self._is_closing:
                            return
                        if message.expires_at is None or message.expires_at > self._node.store.estimate_now():
                            yield Frame(event_object(message), (message,))
                case Gap():
                    # This dialect has no word for it.
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
                yield _join(held)
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
                yield _join(held)
                held, size = [], 0
        if held:
            yield _join(held)

    def _part(self, item: Item) -> Frame | None:
        match item:
            case Batch():
                fresh = self._without_expired(item)
                return Frame(self._text(fresh), fresh.messages) if fresh.messages else None
            case Gap(first_seq=first, last_seq=last, reason=reason):
                return Frame(frames.server_frame(frames.Gap(self.sub, first, last, reason)), gap=item)
            case CaughtUp(seq=seq):
                return Frame(frames.server_frame(frames.CaughtUp(self.sub, seq)))
            case _:
                assert_never(item)

    def _without_expired(self, batch: Batch) -> Batch:
        if not batch.expires:
            return batch
        now = self._node.store.estimate_now()
        fresh = [message for message in batch.messages if message.expires_at is None or message.expires_at > now]
        return batch if len(fresh) == len(batch.messages) else Batch(fresh)

    def _text(self, batch: Batch) -> str:
        if type(self.sub) is int and 1 <= self.sub <= MAX_SHARED_SUB:
            return batch.text(self.sub, self._render)
        return self._render(batch.messages)

    def _render(self, messages: Sequence[Message]) -> str:
        return event_frame(messages, self.sub)


def _join(parts: list[Frame]) -> Frame:
    if len(parts) == 1:
        return parts[0]
    messages = [message for part in parts for message in part.messages]
    return Frame(frames.joined([part.text for part in parts]), messages, parts[-1].gap)
