"""A consumer: what this node does for one group. It takes events of the log for it, and hands them to whoever asks.

    subscription ──▶ buffer ──claim──▶ deliveries ──▶ take() … settle()
                                 ▲
              retries that are due

Events come from a subscription, as for any other reader, so a log is read once per node however many groups there are.
Nothing of the buffer is the node's until a claim has moved the group's cursor over it; where another node was faster,
what it took is dropped here. A take claims no more than it asks for.

In a group that is ordered by key, one event of a key is out at a time; when it is to be tried again, those behind it
go back to the store, where they wait for it. In one that is ordered by the log, who takes sees to it (see `Groups`),
and where another claimed last, that one may go on: this one claims once the group has stood still for a while, or once
there is something that was given back or rescued.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice

from eventbus_fastapi.errors import EventBusError, GroupNotFound, NotRunning, SubscriptionClosed, quote
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.pipeline.channel import Batch, Gap
from eventbus_fastapi.pipeline.courtesy import Courtesy
from eventbus_fastapi.pipeline.delivery import Delivery, Release, Settled
from eventbus_fastapi.pipeline.outcome import Ack, Dead, Discard, Retry, Snooze
from eventbus_fastapi.pipeline.settler import Settler
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.settings import LARGEST_CLAIM
from eventbus_fastapi.store.group import Claim, Group, Look
from eventbus_fastapi.store.groups import Groups
from eventbus_fastapi.store.limits import Room
from eventbus_fastapi.telemetry.meters import Meters

logger = logging.getLogger(__name__)

BUFFER = 2_000
"""Events that are read ahead of the claims."""
POLL_INTERVAL = 1.0
"""Seconds between two looks at a group, where nobody says otherwise."""
PASS_OVER = 1_000
"""Events that do not match after which the cursor is moved over them, though there is nothing to claim."""
PASS_OVER_AFTER = 5.0
"""Seconds after which it is moved over fewer."""

CLOSE_GRACE = 1.0
"""Seconds that a claim may take to end when its consumer is closed."""

OpenSubscription = Callable[[Sequence[str], int], Awaitable[Subscription]]


class Consumer:
    """See the module's docstring. Made by `Node.consume`; one per group and node, whoever takes from it."""

    def __init__(
        self,
        groups: Groups,
        group: Group,
        *,
        open_subscription: OpenSubscription,
        settler: Settler,
        owner: str,
        lease: float,
        poll_interval: float,
        courtesy: Courtesy,
        meters: Meters | None = None,
    ) -> None:
        self.queue = ""
        """The queue whose workers take from it in this process; empty: none does."""
        self._meters = meters or Meters()
        self.group = group
        """The group as this node knows it; its cursor is where the next claim begins."""
        self.poll_interval = poll_interval
        """Seconds between two looks at the group, for what no bell tells of."""
        self._groups = groups
        self._open = open_subscription
        self._settler = settler
        self._owner = owner
        self._lease = lease
        self._courtesy = courtesy
        self._bell = Bell()
        self._space = asyncio.Event()
        self._turn = asyncio.Lock()
        self._buffer: deque[Message] = deque()
        self._ready: deque[Delivery] = deque()
        self._behind: dict[str, deque[Delivery]] = {}
        self._out: set[Delivery] = set()
        self._subscription: Subscription | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._filling: asyncio.Task[None] | None = None
        self._ending: EventBusError | None = None
        self._retry_at: float | None = 0.0  # in the loop's time; at first it is not known
        self._room_at: float | None = None  # when a limit of the group may have room again; None: it may have now
        self._is_first: bool | None = None  # ordered by the log: whether the last claim was ours; None: none is known
        self._turn_at: float | None = None  # when another may claim, if the group stands still until then
        self._passed_over_at = 0.0
        self._freed = 0  # how often nobody had a lease of a group ordered by the log
        self._is_claiming = False
        self._is_passing_over = False

    # --- life ---

    def start(self) -> None:
        self._feeding = asyncio.create_task(self._feed(), name=f"eventbus-consumer-{self.group.name}")

    async def close(self) -> None:
        """End; what is held is given back by the settler, without an attempt counted."""
        self._end(NotRunning("the consumer was closed"))
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.wait([self._feeding])
        if (filling := self._filling) is not None:
            _, hanging = await asyncio.wait([filling], timeout=CLOSE_GRACE)
            if hanging:  # the database does not answer; what was claimed is found when its lease ends
                filling.cancel()
                await asyncio.wait([filling], timeout=CLOSE_GRACE)
        for delivery in [*self._ready, *(each for behind in self._behind.values() for each in behind), *self._out]:
            self._settler.settle(delivery, delivery.given_back)
        self._ready.clear()
        self._behind.clear()
        self._out.clear()

    # --- deliveries ---

    @property
    def has_ended(self) -> bool:
        """True once nothing can be taken any more: it was closed, or its group is gone."""
        return self._ending is not None

    @property
    def has_work(self) -> bool:
        """True if there is something to take, as far as this node knows."""
        return self._ending is None and (bool(self._ready) or self._can_claim)

    @property
    def is_live(self) -> bool:
        """True while it reads what is published now, False while it catches up with the log."""
        return self._subscription is not None and self._subscription.is_live

    @property
    def is_claiming(self) -> bool:
        """True while it takes hold of events that somebody waits for."""
        return self._filling is not None

    async def take(
        self, limit: int | Callable[[], int], *, on_nothing: Callable[[], None] = lambda: None
    ) -> list[Delivery]:
        """Wait for events and hold up to `limit` of them for the group; return them.

        `limit` may be a function, asked when there is something to take: if it says 0, nothing is taken or returned.
        `on_nothing` is called where there is nothing to take, also where there seemed to be: the group has no room, or
        another node was faster.

        Raises:
            GroupNotFound: the group was deleted.
            NotRunning: the consumer was closed.
            StoreUnavailable: the database is away; take again.
        """
        async with self._turn:
            while True:
                if self._ending is not None:
                    raise self._ending
                if not self.has_work:
                    on_nothing()
                    await self._bell.wait(self._wait())
                    continue
                most = min(limit if isinstance(limit, int) else limit(), LARGEST_CLAIM)
                if most <= 0:
                    return []
                if not self._ready:
                    await self._fill(most)
                if taken := self._take_ready(most):
                    return taken

    def settle(self, delivery: Delivery, settled: Settled) -> None:
        """Take the outcome of a delivery; it is written soon."""
        self._after(delivery, settled)
        # What a limit of the group counts is what the store has; others may wait for it.
        self._settler.settle(delivery, settled, is_urgent=self.group.max_in_flight is not None)

    def settle_and_tell(self, delivery: Delivery, settled: Settled) -> asyncio.Future[None]:
        """Take the outcome of a delivery; return a future that is set after the commit. See `Settler`."""
        self._after(delivery, settled)
        return self._settler.settle_and_tell(delivery, settled)

    def forget(self, delivery: Delivery, settled: Settled) -> None:
        """Its outcome was written in a transaction of somebody else's."""
        self._after(delivery, settled)
        self._settler.forget(delivery, settled)

    def give_back(self) -> None:
        """Give back what was claimed and not taken yet."""
        for waiting in self._behind.values():
            while waiting:
                self._settler.settle(waiting.popleft(), Release())
        for delivery in self._ready:
            self.settle(delivery, Release())
        self._ready.clear()

    async def note(self, look: Look | None) -> None:
        """Learn how the group is, every now and then; None: it was deleted. Whoever takes is told of that."""
        if self._ending is not None:
            return
        with suppress(GroupNotFound):
            if look is None:
                await self._look_again()
            else:
                await self._note(look)

    async def _note(self, look: Look) -> None:
        clock = asyncio.get_running_loop().time
        due_at = None if look.retry_due is None else clock() + (look.retry_due - look.now) / 1_000_000
        if due_at is not None:
            self._expect_retry(due_at)
        if look.lease_ends is None and look.group.ordered_by == "log":
            self._note_free_turn(due_at)
        is_elsewhere = look.group.cursor != self.group.cursor and not self._is_claiming
        if is_elsewhere or look.group._replace(cursor=0, lost=0) != self.group._replace(cursor=0, lost=0):
            await self._look_again()
        elif not self._buffer and not self._is_claiming:
            passed = self._reached - self.group.cursor
            if passed >= PASS_OVER or (passed > 0 and clock() >= self._passed_over_at + PASS_OVER_AFTER):
                self._passed_over_at = clock()
                await self._claim([], self._reached)

    # --- taking ---

    @property
    def _can_claim(self) -> bool:
        has_any = bool(self._buffer) or self._is_retry_due()
        return not self.group.is_paused and self._may_have_room() and has_any and self._has_turn()

    @property
    def _reached(self) -> int:
        """All that matches, from where the group is up to this seq, is in the buffer; 0: nobody knows."""
        return 0 if self._subscription is None or self._is_passing_over else self._subscription.reached

    def _take_ready(self, limit: int) -> list[Delivery]:
        taken = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        taken = [delivery for delivery in taken if not delivery.is_lost]
        self._out.update(taken)
        return taken

    def _may_have_room(self) -> bool:
        if self._room_at is not None and self._room_at <= asyncio.get_running_loop().time():
            self._room_at = None
        return self._room_at is None

    def _has_turn(self) -> bool:
        if self.group.ordered_by != "log" or self._is_first is not False:
            return True
        now = asyncio.get_running_loop().time()
        if self._turn_at is None:
            self._turn_at = now + self.poll_interval
        return self._turn_at <= now

    def _note_free_turn(self, due_at: float | None) -> None:
        """In a group ordered by the log nobody has a lease. What waits there to be tried again is anyone's when it is
        due, also what another holds: if that one lives, it is held for longer by then.
        """
        self._freed += 1
        self._room_at = None
        if due_at is not None and not self._is_first:
            self._turn_at = due_at
        self._bell.ring()

    def _is_retry_due(self) -> bool:
        return self._retry_at is not None and self._retry_at <= asyncio.get_running_loop().time()

    async def _fill(self, limit: int) -> None:
        """Hold what is due or new.

        Whoever waits for it may be cancelled while it commits; it goes on then, and what it brings is for the next.
        """
        if self._filling is None:
            self._filling = asyncio.create_task(self._hold(limit), name=f"eventbus-claim-{self.group.name}")
            self._filling.add_done_callback(self._note_filled)
        await asyncio.shield(self._filling)

    def _note_filled(self, filling: asyncio.Task[None]) -> None:
        self._filling = None
        if not filling.cancelled():
            filling.exception()  # whoever still waits for it is told

    async def _hold(self, limit: int) -> None:
        await self._give_way()
        if not await self._has_room(limit):
            return
        if self._is_retry_due():
            await self._hold_retries(limit)  # meanwhile `limit` may have changed: what is new is asked for anew
        elif self._buffer:
            await self._claim_new(limit)
        await self._give_way()  # handing out what it brought is work, too

    async def _give_way(self) -> None:
        """Let live events of the node pass, unless the group is live itself."""
        if not self.is_live:
            await self._courtesy.give_way()

    async def _has_room(self, limit: int) -> bool:
        """Look whether the group's limits leave any, or note when they may."""
        room = await self._groups.room(self.group, limit) if self.group.is_limited else Room(limit)
        if room.events == 0:
            # The limit may be changed meanwhile, and no bell tells of that.
            wait = min(room.wait / 1_000_000, self.poll_interval)
            self._room_at = asyncio.get_running_loop().time() + wait
        return room.events > 0

    async def _hold_retries(self, limit: int) -> None:
        began = asyncio.get_running_loop().time()
        self._retry_at = None
        next_in = await self._groups.next_retry(self.group)  # first: what becomes due in between is held
        held = await self._groups.hold_retries(self.group, limit=limit, owner=self._owner, lease=self._lease)
        if held:
            self._is_first, self._turn_at = True, None
        if held or not await self._has_room(limit):  # another may have taken the room since it was looked at
            self._retry_at = 0.0  # there may be more
        elif next_in is not None:
            self._expect_retry(asyncio.get_running_loop().time() + next_in)
        self._receive(
            [
                Delivery(
                    item.message,
                    group_id=self.group.id,
                    token=item.token,
                    attempt=item.attempt,
                    errors=item.errors,
                    is_retry=True,
                )
                for item in held
            ],
            began,
        )

    async def _claim_new(self, limit: int) -> None:
        self._drop_up_to(self.group.cursor)  # another node has taken it
        messages = list(islice(self._buffer, limit))
        if not messages:
            return
        is_all = len(messages) == len(self._buffer)
        up_to = max(messages[-1].seq, self._reached) if is_all else messages[-1].seq
        began, freed = asyncio.get_running_loop().time(), self._freed
        claim = await self._claim(messages, up_to)
        if claim is not None:
            held = set(claim.seqs)
            claimed = [message for message in messages if message.seq <= claim.up_to]
            self._receive(
                [
                    Delivery(message, group_id=self.group.id, token=claim.token)
                    for message in claimed
                    if message.seq in held
                ],
                began,
            )
            if len(held) < len(claimed):
                self._expect_retry(0.0)  # some wait for others of their keys
            if not claimed and self.group.ordered_by == "log":  # another has the turn, or retries come first
                if self._freed == freed:  # it was not rescued in this very moment
                    self._room_at = asyncio.get_running_loop().time() + self.poll_interval
                self._expect_retry(0.0)

    async def _claim(self, messages: Sequence[Message], up_to: int) -> Claim | None:
        self._is_claiming = True
        if messages:
            self._turn_at = None
        try:
            claim = await self._groups.claim(self.group, messages, up_to=up_to, owner=self._owner, lease=self._lease)
        finally:
            self._is_claiming = False
        if messages:
            self._is_first = bool(claim and claim.seqs)
            if self._is_first:
                self._turn_at = None
        if claim is None:
            self._meters.missed_claims += 1
            await self._look_again()
            return None
        self._meters.claims += 1
        self.group = self.group._replace(cursor=claim.up_to)
        self._drop_up_to(claim.up_to)
        return claim

    async def _look_again(self) -> None:
        """The group is not as this node knows it: learn how it is."""
        before = self.group
        try:
            group = await self._groups.get_by_id(before.id)
            if group.name != before.name:  # SQLite gives the id of a group that was deleted to the next
                raise GroupNotFound(f"the group {quote(before.name)} was deleted")
            self.group = group
        except GroupNotFound as exc:
            self._end(exc)
            raise
        subscription = self._subscription
        if subscription is not None and (
            self.group.cursor < before.cursor
            or self.group.patterns != before.patterns
            or self.group.cursor > subscription.position + BUFFER
        ):
            self._buffer.clear()
            subscription.close()  # and read on from where the group is
        self._drop_up_to(self.group.cursor)
        self._room_at = None
        if self.group.cursor != before.cursor:
            self._turn_at = None  # another goes on
            self._is_first = bool(self._is_first)
        self._bell.ring()

    def _drop_up_to(self, seq: int) -> None:
        """Forget what is not to be claimed any more; it may be less than when the claim began."""
        while self._buffer and self._buffer[0].seq <= seq:
            self._buffer.popleft()
        if not self._buffer:
            self._turn_at = None
        self._space.set()

    def _receive(self, deliveries: Sequence[Delivery], since: float) -> None:
        for delivery in deliveries:
            delivery.on_gone = self._note_lost
            delivery.archive = self.group.archive
            delivery.queue = self.queue
        self._settler.hold(deliveries, since=since)
        if self.group.ordered_by != "key":
            self._ready.extend(deliveries)
            return
        for delivery in deliveries:
            key = delivery.message.key
            if key is None:
                self._ready.append(delivery)
            elif key in self._behind:
                self._behind[key].append(delivery)
            else:
                self._behind[key] = deque()
                self._ready.append(delivery)

    def _after(self, delivery: Delivery, settled: Settled) -> None:
        """What the end of a delivery means for others."""
        self._out.discard(delivery)
        if isinstance(settled, Retry | Snooze):
            delivery.on_written = partial(self._note_written, settled.after or 0)
        elif isinstance(settled, Release):
            delivery.on_written = partial(self._note_written, 0)
        elif self.group.max_in_flight is not None:
            delivery.on_written = self._note_written
        if self.group.ordered_by != "key" or delivery.message.key is None:
            return
        behind = self._behind.pop(delivery.message.key, None)
        if not behind:
            if isinstance(settled, Ack | Discard | Dead):
                delivery.on_written = partial(self._note_written, 0)  # others of its key may wait in the store
            return
        if isinstance(settled, Ack | Discard | Dead):
            self._ready.append(behind.popleft())
            self._behind[delivery.message.key] = behind
            self._bell.ring()
            return
        for waiting in behind:
            self._settler.settle(waiting, Release())  # it is found when what fails now is settled

    def _note_lost(self, delivery: Delivery) -> None:
        """A delivery is another's now, and so is what was claimed with it."""
        self._out.discard(delivery)
        if self.group.ordered_by == "key" and delivery.message.key is not None:
            for waiting in self._behind.pop(delivery.message.key, ()):
                self._settler.settle(waiting, Release())

    def _note_written(self, retry_in: float | None = None) -> None:
        """An outcome was written now: there may be room, and that is when the delay of a retry has begun."""
        if self._room_at is not None and (self.group.max_in_flight is not None or self.group.ordered_by == "log"):
            self._room_at = None
            self._bell.ring()
        if retry_in is not None:
            self._expect_retry(asyncio.get_running_loop().time() + retry_in)

    def _expect_retry(self, at: float) -> None:
        if self._retry_at is None or at < self._retry_at:
            self._retry_at = at
            self._bell.ring()

    def _wait(self) -> float | None:
        """Seconds until there may be something to take without a bell; None: there is nothing to wait for."""
        if self.group.is_paused:
            return None
        times = [] if self._retry_at is None else [self._retry_at]
        if barriers := [at for at in (self._room_at, self._turn_at) if at is not None]:
            # Until then nothing is taken whatever is due.
            times = [max(barriers)] if self._buffer else [max(*barriers, time) for time in times]
        return max(0.0, min(times) - asyncio.get_running_loop().time()) if times else None

    # --- reading ---

    async def _feed(self) -> None:
        """Read ahead, from where the group is, until the end."""
        while self._ending is None:
            group = self.group
            try:
                async with await self._open(group.patterns, group.cursor) as subscription:
                    if self.group.patterns != group.patterns or self.group.cursor < group.cursor:
                        continue  # it was declared anew or reset meanwhile
                    self._buffer.clear()  # what is left of another subscription comes again
                    self._subscription = subscription
                    await self._read(subscription)
            except SubscriptionClosed:
                continue  # the group is elsewhere, or the node stops
            except EventBusError as exc:
                if not exc.retry or isinstance(exc, NotRunning):
                    self._end(exc)
                    return
                logger.warning("group %s waits: %s", self.group.name, exc)
                await asyncio.sleep(1.0)
            finally:
                self._subscription = None

    async def _read(self, subscription: Subscription) -> None:
        """Read ahead, until a gap turns out to begin behind where the group is: then from there again."""
        while True:
            await self._give_way()
            for item in await subscription.take(BUFFER):
                if isinstance(item, Batch):
                    self._buffer.extend(message for message in item.messages if message.seq > self.group.cursor)
                elif isinstance(item, Gap):
                    await self._pass_over(item)
                    if self.group.cursor < item.last_seq:
                        return
            if self._buffer:
                self._bell.ring()
            while len(self._buffer) >= BUFFER:
                self._space.clear()
                await self._space.wait()

    async def _pass_over(self, gap: Gap) -> None:
        """Retention was faster than the group."""
        self._is_passing_over = True  # what was taken with the gap is not in the buffer yet
        try:
            self.group = await self._groups.pass_over(self.group, gap.last_seq + 1)
        finally:
            self._is_passing_over = False
        logger.error("group %s lost the events %d to %d: %s", self.group.name, gap.first_seq, gap.last_seq, gap.reason)

    def _end(self, error: EventBusError) -> None:
        if self._ending is None:
            self._ending = error
            self._bell.ring()
            self._space.set()
            with suppress(EventBusError):
                if self._subscription is not None:
                    self._subscription.close()
