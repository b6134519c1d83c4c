"""A group feed: makes a connection a member of a group. It sends the member what it may hold, and settles what the
member says.

    consumer ──take──▶ unsent ──▶ outlet ──▶ held ──ack | nack | reject──▶ consumer
                          │                   │  the ack wait ends, the connection is lost
                          ▼                   ▼
                       released             retry: the attempt counts

The member's *ack wait* is its time to settle each event. It is not the node's lease: that is renewed for as long as the
node lives, however long its members take. One timer per member watches over all that it holds.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, assert_never

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import AckMismatch, EventBusError, Forbidden, LeaseLost, StoreUnavailable
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.consumers import Consumers
from eventbus_fastapi.pipeline.delivery import Delivery, Release
from eventbus_fastapi.pipeline.error_record import ErrorRecord
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.outcome import ACK, DEFAULT_BACKOFF, Dead, Discard, Outcome, Retry
from eventbus_fastapi.protocol import frames
from eventbus_fastapi.protocol.commands import (
    DEFAULT_ACK_WAIT,
    DEFAULT_CREDIT,
    Acknowledge,
    AcknowledgeUpTo,
    Chosen,
    Extend,
    Nack,
    Reject,
    Subscribe,
)
from eventbus_fastapi.protocol.events import Sub, delivery_frame
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.holdings import Holdings
from eventbus_fastapi.server.outlet import ConnectionEnded, Outlet

logger = logging.getLogger(__name__)

FRAME_BYTES = 262_144
"""About how much is joined into one frame, characters."""
GATHER = 0.01
"""Seconds that a member whose credit is nearly used up gathers some before more is claimed for it: a claim costs the
same whatever it takes."""
MAX_PAUSE = 1.0
"""Longest pause between attempts to take events while the database is away, seconds."""

Answer = dict[str, int]


class Frame(NamedTuple):
    text: str


class GroupFeed:
    """See the module's docstring. `run` is its task; `leave` ends it."""

    def __init__(
        self,
        sub: Sub,
        consumer: Consumer,
        consumers: Consumers,
        outlet: Outlet,
        node: Node,
        command: Subscribe,
        *,
        connection: str,
        may_read: Callable[[str], bool],
    ) -> None:
        self.sub = sub
        self.consumer = consumer
        self.task: asyncio.Task[None] | None = None
        self.ack_wait = DEFAULT_ACK_WAIT if command.ack_wait is None else command.ack_wait
        most = node.settings.buffer
        self.credit = min(DEFAULT_CREDIT if command.credit is None else command.credit, most)
        """Events that the member may hold."""
        self._most = most
        self._consumers = consumers
        self._outlet = outlet
        self._node = node
        self._connection = connection
        self._may_read = may_read
        self._loop = asyncio.get_running_loop()
        self._holdings = Holdings(self.ack_wait)
        self._unsent: deque[Delivery] = deque()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._timer: asyncio.TimerHandle | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._leaving: asyncio.Task[None] | None = None
        self._is_sending = False
        self._is_closing = False
        self._is_quiet = False  # True: an ack wait has ended, and the client has not been heard of since

    # --- sending ---

    async def run(self) -> None:
        """Send the member its events until it ends.

        Raises:
            EventBusError: the group was deleted, or the node stops.
            ConnectionEnded: the connection has.
        """
        while True:
            await self._wait_for_room()
            self._unsent.extend(await self._take())
            made = self._frames()
            while await self._send_next(made) is not None:
                pass
            self._note_room()  # some may have expired unsent
            if self._is_closing:
                return
            await asyncio.sleep(0)  # a send need not wait, and others want the loop, too

    async def _wait_for_room(self) -> None:
        await self._has_room.wait()
        if self._room() < self.credit // 4:
            await asyncio.sleep(GATHER)
            await self._has_room.wait()

    async def _take(self) -> list[Delivery]:
        pauses = FullJitter(base=0.05, cap=MAX_PAUSE)
        for failures in itertools.count():
            try:
                # Asked when there is something: a member that has stalled meanwhile shall not have it.
                return await self.consumer.take(self._room)
            except StoreUnavailable as exc:
                if failures == 0:
                    logger.warning("a member of group %s waits: %s", self.consumer.group.name, exc)
                await asyncio.sleep(pauses.delay(failures))
        raise AssertionError

    async def _send_next(self, made: Iterator[Frame]) -> Frame | None:
        self._is_sending = True
        try:
            return await self._outlet.send_next(made)
        finally:
            self._is_sending = False

    def _frames(self) -> Iterator[Frame]:
        """Make frames of about `FRAME_BYTES`, each when it is asked for; what is in one counts as sent."""
        while self._unsent and not self._is_closing:
            sent: list[Delivery] = []
            size = 0
            now = self._node.store.estimate_now()
            while self._unsent and size < FRAME_BYTES:
                delivery = self._unsent.popleft()
                if delivery.is_lost:
                    continue
                if not self._may_read(delivery.message.topic):  # the group reads something else by now
                    self._unsent.extendleft(reversed([*sent, delivery]))
                    raise Forbidden("the group has events beyond what is granted")
                expires_at = delivery.message.expires_at
                if expires_at is not None and expires_at <= now:
                    self.consumer.settle(delivery, Discard("it expired before it was sent"))
                    continue
                sent.append(delivery)
                size += len(delivery.message.body)
            if sent:
                self._hold(sent)
                yield Frame(delivery_frame([(each.message, each.attempt) for each in sent], self.sub))

    def _hold(self, deliveries: Sequence[Delivery]) -> None:
        spans = self._node.tracing.spans()
        for delivery in deliveries:
            delivery.on_lost = lambda lost=delivery: self._on_lost(lost)
            delivery.begin()
            if spans is not None:
                delivery.span = spans.delivering(
                    delivery.message, group=self.consumer.group.name, attempt=delivery.attempt
                )
        self._node.meters.delivered["websocket"] += len(deliveries)
        self._holdings.hold(deliveries, self._loop.time())
        self._note_room()
        self._set_timer()

    # --- credit ---

    def allow(self, credit: int) -> None:
        """Let the member hold that many more, up to the server's limit."""
        self.credit = min(self.credit + credit, self._most)
        self._note_room()

    def hear(self) -> None:
        """The client has sent a frame."""
        if self._is_quiet:
            self._is_quiet = False
            self._note_room()

    def _room(self) -> int:
        """How many more may be taken for it now."""
        return 0 if self._is_quiet else self.credit - len(self._holdings) - len(self._unsent)

    def _note_room(self) -> None:
        if self._room() > 0:
            self._has_room.set()
        else:
            self._has_room.clear()

    # --- settling ---

    def settle(
        self, command: Acknowledge | AcknowledgeUpTo | Nack | Reject | Extend, *, is_awaited: bool
    ) -> asyncio.Future[Answer] | Answer:
        """Do what the member says of events that it holds. Return what is answered; where that is awaited, a task that
        has it after the commit.

        The others count where some are no longer the member's.

        Raises:
            AckMismatch: an event has another message_id; nothing was changed.
            LeaseLost: nothing is waited for, and some are no longer the member's.
        """
        match command:
            case Acknowledge(events=events, attempt=attempt):
                self._compare(command)
                chosen = Chosen([seq for seq, _ in events], attempt=attempt)
                return self._settle(chosen, lambda _: ACK, "acked", is_awaited=is_awaited)
            case AcknowledgeUpTo(up_to=up_to):
                return self._settle(Chosen(up_to=up_to), lambda _: ACK, "acked", is_awaited=is_awaited)
            case Nack(chosen=chosen, delay=delay, reason=reason):
                said = reason or "the member gave it back"
                return self._settle(
                    chosen,
                    lambda delivery: self._failed(delivery, "Nack", said, delay),
                    "nacked",
                    is_awaited=is_awaited,
                )
            case Reject(chosen=chosen, reason=reason):
                said = reason or "the member rejected it"
                return self._settle(
                    chosen,
                    lambda delivery: Dead(self._record(delivery, "Reject", said)),
                    "rejected",
                    is_awaited=is_awaited,
                )
            case Extend(chosen=chosen):
                return {"extended": self._extend(chosen)}
            case _:
                assert_never(command)

    def _compare(self, command: Acknowledge) -> None:
        for seq, message_id in command.events:
            delivery = self._holdings.find(seq)
            if message_id is not None and delivery is not None and delivery.message.message_id != message_id:
                raise AckMismatch(f"event {seq} has another message_id than {message_id}")

    def _settle(
        self, chosen: Chosen, outcome: Callable[[Delivery], Outcome], word: str, *, is_awaited: bool
    ) -> asyncio.Future[Answer] | Answer:
        settled: list[asyncio.Future[None]] = []
        lost: list[int] = []
        for seq in self._seqs(chosen):
            delivery = self._holdings.release(seq, chosen.attempt)
            if delivery is None:
                lost.append(seq)
                continue
            delivery.on_lost = None
            delivery.end()
            decided = outcome(delivery)
            if is_awaited or decided is not ACK:
                settled.append(self._write(delivery, decided))
            else:
                self.consumer.settle(delivery, decided)
        self._note_room()
        if is_awaited:
            return self._confirm(settled, lost, word)
        if lost:
            raise LeaseLost(lost)
        return {}

    def _confirm(self, settled: list[asyncio.Future[None]], lost: list[int], word: str) -> asyncio.Future[Answer]:
        """Return a future of the answer, set when the outcomes are written.

        It carries LeaseLost if some events were no longer the member's, and another EventBusError if some could not be
        written. A future and no task: members ack each event, thousands a second.
        """
        confirmed: asyncio.Future[Answer] = self._loop.create_future()
        waiting = len(settled)

        def note(_: object = None) -> None:
            nonlocal waiting
            waiting -= 1
            if waiting > 0 or confirmed.done():
                return
            answer = _outcome(settled, lost, word)
            if isinstance(answer, EventBusError):
                confirmed.set_exception(answer)
            else:
                confirmed.set_result(answer)

        for each in settled:
            each.add_done_callback(note)
        if not settled:
            note()
        return confirmed

    def _seqs(self, chosen: Chosen) -> Sequence[int]:
        return chosen.seqs if chosen.up_to is None else self._holdings.up_to(chosen.up_to)

    def _extend(self, chosen: Chosen) -> int:
        now = self._loop.time()
        if chosen.up_to is not None:
            seqs = [seq for seq in self._holdings.up_to(chosen.up_to) if self._holdings.find(seq) is not None]
        else:
            seqs = list(chosen.seqs)
        lost = [seq for seq in seqs if not self._holdings.extend(seq, chosen.attempt, now)]
        if lost:
            raise LeaseLost(lost)
        return len(seqs)

    def _write(self, delivery: Delivery, outcome: Outcome | Release) -> asyncio.Future[None]:
        """Have an outcome written at once: others may be waiting for the event."""
        answer = self.consumer.settle_and_tell(delivery, outcome)
        answer.add_done_callback(_look_at)
        return answer

    def _failed(self, delivery: Delivery, kind: str, message: str, after: float | None) -> Retry | Dead:
        record = self._record(delivery, kind, message)
        group = self.consumer.group
        if delivery.attempt >= group.max_attempts:
            logger.error(
                "group %s gave up seq %d after %d attempts: %s",
                group.name,
                delivery.message.seq,
                delivery.attempt,
                kind,
            )
            return Dead(record)
        return Retry(DEFAULT_BACKOFF(delivery.attempt) if after is None else after, error=record)

    def _record(self, delivery: Delivery, kind: str, message: str) -> ErrorRecord:
        return ErrorRecord(
            kind, message, time=self._node.store.estimate_now(), node=self._consumers.owner, attempt=delivery.attempt
        )

    # --- what the member loses ---

    def _set_timer(self) -> None:
        due = self._holdings.first_due
        if self._timer is None and due is not None and not self._is_closing:
            self._timer = self._loop.call_at(due, self._end_waits)

    def _end_waits(self) -> None:
        """Take back what the member has had for too long."""
        self._timer = None
        overdue = self._holdings.take_overdue(self._loop.time())
        if overdue:
            self._is_quiet = True
            logger.warning(
                "a member of group %s did not settle %d events within %g s",
                self.consumer.group.name,
                len(overdue),
                self.ack_wait,
            )
            for delivery in overdue:
                delivery.on_lost = None
                delivery.end()
                message = f"connection {self._connection} did not settle it within {self.ack_wait:g} seconds"
                self._write(delivery, self._failed(delivery, "AckWaitEnded", message, 0))
            self._tell_lost([delivery.message.seq for delivery in overdue])
            self._note_room()
        self._set_timer()

    def _on_lost(self, delivery: Delivery) -> None:
        """The node's lease is another's, or the group was reset."""
        self._holdings.take_back(delivery)
        self._tell_lost([delivery.message.seq])

    def _tell_lost(self, seqs: list[int]) -> None:
        if self._is_closing:
            return
        text = frames.server_frame(frames.Lost(self.sub, seqs))
        task = self._loop.create_task(self._say(text), name=f"websocket-{self._connection}-lost")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _say(self, text: str) -> None:
        with suppress(ConnectionEnded):
            await self._outlet.send(text)

    # --- the end ---

    async def close(self) -> None:
        """End it; nothing of it is sent any more when this returns, and all is given back."""
        self._is_closing = True
        if self.task is not None:
            if self._is_sending:
                await asyncio.wait((self.task,))  # not cancelled: another send would begin to count its stall anew
            else:
                await tasks.end(self.task)
        self.give_back("the member left before it settled it")
        await self.leave()

    def give_back(self, reason: str) -> None:
        """Let others have everything, now that its task has ended; the attempt counts where the event was sent."""
        self._is_closing = True
        if self._leaving is None:
            self._return_all(reason)
            # By itself, as whoever waits may be cancelled: the consumer would never end.
            self._leaving = asyncio.create_task(
                self._consumers.close(self.consumer), name=f"websocket-{self._connection}-leave"
            )

    async def leave(self) -> None:
        """Wait until what `give_back` began has ended."""
        await tasks.end(*self._telling)
        if self._leaving is not None:
            await asyncio.shield(self._leaving)

    def _return_all(self, reason: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for delivery in self._unsent:
            self._write(delivery, Release())
        self._unsent.clear()
        for delivery in self._holdings.clear():
            delivery.on_lost = None
            if not delivery.is_settled:  # it is where the node has stopped
                self._write(delivery, self._failed(delivery, "MemberLeft", reason, 0))


def _outcome(settled: list[asyncio.Future[None]], lost: list[int], word: str) -> Answer | EventBusError:
    """Return what to tell of outcomes that are all decided."""
    lost = [*lost]
    for answer in settled:
        error = None if answer.cancelled() else answer.exception()
        if isinstance(error, LeaseLost):
            lost.extend(error.seqs)
        elif isinstance(error, EventBusError):
            return error
    return LeaseLost(lost) if lost else {word: len(settled)}


def _look_at(answer: asyncio.Future[None]) -> None:
    """Look at the error of a future that perhaps nobody waits for, which asyncio would report as forgotten."""
    if not answer.cancelled():
        answer.exception()
