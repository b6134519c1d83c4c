"""A pool: the runners of a queue, and who fills it with events to handle.

    consumer ─▶ puller ─▶ jobs ─▶ one of the runners ─▶ worker
    (per group)  (per handler)    (as many as may run at once)

A puller takes no more than can start soon, judged by how long its handler has taken so far, so that an event does not
wait behind a slow one while another node is idle. Of several handlers that have events ready, the one with the highest
priority is served first.

Operators pause a queue or change the number of its runners while it is served; the foreman brings what they say. A
pause gives back what has not begun. Runners that are too many end after what they do.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Protocol

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import EventBusError, GroupNotFound, NotRunning, StoreUnavailable
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.delivery import Delivery, Release
from eventbus_fastapi.pipeline.handlers import Handler
from eventbus_fastapi.pipeline.queue import Queue
from eventbus_fastapi.store.queues import Control
from eventbus_fastapi.store.roster import Serving
from eventbus_fastapi.telemetry.meters import Meters

logger = logging.getLogger(__name__)

AHEAD = 0.1
"""Seconds of work that a puller may hold ready."""
TURN = 64
"""Jobs after which a runner lets others run, though none of its jobs waited for anything."""
CANCEL_GRACE = 2.0
"""Seconds that cancelled handlers have to end."""


class Handling(Protocol):
    """What a pool needs of its worker."""

    async def consume(self, handler: Handler, queue: Queue) -> Consumer:
        """Declare the group of a handler, and serve it."""

    async def run(self, handler: Handler, consumer: Consumer, delivery: Delivery) -> None:
        """Handle one delivery and settle it."""

    async def give_back(self, consumer: Consumer) -> None:
        """Serve a group no more."""


class _Served:
    """A handler and the consumer of its group."""

    def __init__(self, handler: Handler, consumer: Consumer) -> None:
        self.handler = handler
        self.consumer = consumer
        self.seconds: float | None = None
        """How long it takes, smoothed; None: not known yet."""
        self.queued = 0
        """Jobs that wait for a runner."""
        self.is_gone = False
        """True once the group was deleted."""

    def is_before(self, other: _Served) -> bool:
        return self.handler.priority > other.handler.priority

    def note(self, seconds: float) -> None:
        self.seconds = seconds if self.seconds is None else 0.8 * self.seconds + 0.2 * seconds


Job = tuple[int, int, _Served, Delivery]
"""Ordered by priority, then by the order in which they were taken."""


class Pool:
    """See the module's docstring. It takes nothing until `serve`."""

    def __init__(
        self, worker: Handling, queue: Queue, handlers: Sequence[Handler], *, meters: Meters | None = None
    ) -> None:
        self.name = queue.name
        self._meters = meters or Meters()
        self._worker = worker
        self._queue = queue
        self._handlers = handlers
        self._served: list[_Served] = []
        self._jobs: asyncio.PriorityQueue[Job] = asyncio.PriorityQueue()
        self._number = itertools.count()
        self._room = asyncio.Event()
        self._busy = 0
        self._is_paused = False
        self._is_ending = False
        self._pullers: list[asyncio.Task[None]] = []
        self._size = queue.workers
        self._runners: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()
        self._fit()

    async def serve(self) -> None:
        """Take events for the handlers from now on."""
        for handler in self._handlers:
            served = _Served(handler, await self._worker.consume(handler, self._queue))
            self._served.append(served)
            self._pullers.append(_start(self._pull(served), f"eventbus-puller-{handler.group}"))

    @property
    def is_alive(self) -> bool:
        return self._is_ending or not any(puller.done() for puller in self._pullers)

    def serving(self) -> Serving:
        """Tell how the queue is served now."""
        groups = tuple(handler.group for handler in self._handlers)
        return Serving(self._size, self._busy, self._is_paused, groups)

    # --- what operators say ---

    def control(self, control: Control) -> bool:
        """Do as operators say; return whether that has changed anything."""
        before = self._size, self._is_paused
        self._size = control.workers or self._queue.workers
        self._is_paused = control.is_paused
        if self._size < before[0] or self._is_paused > before[1]:
            self._give_back()
        self._runners = {runner for runner in self._runners if not runner.done()}
        self._fit()
        if (self._size, self._is_paused) == before:
            return False
        self._room.set()
        paused = ", paused" if self._is_paused else ""
        logger.info("queue %s is served by %d workers%s", self.name, self._size, paused)
        return True

    def _fit(self) -> None:
        """Have as many runners as the queue is to have; of those that are too many, the busy ones end by themselves."""
        for _ in range(self._size - len(self._runners)):
            self._runners.add(_start(self._run(), f"eventbus-runner-{self.name}-{next(self._number)}"))
        for runner in [*self._idle][: max(0, len(self._runners) - self._size)]:
            runner.cancel()  # it takes no job with it: one that it was woken for wakes another
            self._runners.discard(runner)
            self._idle.discard(runner)

    def _give_back(self) -> None:
        """Give back what has not begun."""
        while not self._jobs.empty():
            _, _, served, delivery = self._jobs.get_nowait()
            served.queued -= 1
            served.consumer.settle(delivery, Release())
        for served in self._served:
            served.consumer.give_back()

    # --- life ---

    def end_pulling(self) -> None:
        """Take nothing more, and give back what has not begun."""
        self._is_ending = True
        for puller in self._pullers:
            puller.cancel()
        self._give_back()

    async def stop(self, grace: float) -> bool:
        is_done = True
        if self._pullers:
            await asyncio.wait(self._pullers)
        try:
            async with asyncio.timeout(grace):
                while self._busy:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            is_done = False
            logger.warning("gave back %d events of queue %s that were not done in time", self._busy, self.name)
        for runner in self._runners:
            runner.cancel()
        _, hanging = await asyncio.wait(self._runners, timeout=CANCEL_GRACE)
        if hanging:
            logger.error("%d handlers of queue %s do not end though cancelled", len(hanging), self.name)
        await asyncio.gather(*(self._worker.give_back(served.consumer) for served in self._served))
        return is_done

    async def _pull(self, served: _Served) -> None:
        pauses = FullJitter(base=0.05, cap=1.0)
        failures = 0
        while True:
            try:
                if served.is_gone:
                    served = await self._serve_anew(served)
                # Those of a lower priority may wait for what turns out to be nothing.
                deliveries = await served.consumer.take(partial(self._wanted, served), on_nothing=self._room.set)
            except StoreUnavailable as exc:
                if failures == 0:
                    logger.warning("%s waits: %s", served.handler.group, exc)
                failures += 1
                await asyncio.sleep(pauses.delay(failures))
                continue
            except GroupNotFound:
                served.is_gone = True
                self._room.set()  # those of a lower priority may have waited for us
                continue
            except NotRunning as exc:
                logger.warning("%s is not served any more: %s", served.handler.group, exc)
                self._room.set()
                return
            except EventBusError:
                logger.exception("%s cannot take events", served.handler.group)
                failures += 1
                await asyncio.sleep(pauses.delay(failures))
                continue
            failures = 0
            if self._is_paused:  # since it began to take
                for delivery in deliveries:
                    served.consumer.settle(delivery, Release())
                served.consumer.give_back()
                deliveries = []
            if not deliveries:
                self._room.clear()
                await self._room.wait()
                continue
            for delivery in deliveries:
                self._jobs.put_nowait((-served.handler.priority, next(self._number), served, delivery))
            served.queued += len(deliveries)
            self._meters.delivered["worker"] += len(deliveries)
            self._room.set()  # those of a lower priority may have waited for us

    async def _serve_anew(self, served: _Served) -> _Served:
        """The group was deleted: serve one that is declared anew, if nobody has done so before, and reads from now."""
        consumer = await self._worker.consume(served.handler, self._queue)
        group = consumer.group
        logger.warning("group %s was deleted; it is served again, from after seq %d", group.name, group.cursor)
        renewed = _Served(served.handler, consumer)
        renewed.seconds = served.seconds
        self._served[self._served.index(served)] = renewed
        await self._worker.give_back(served.consumer)
        return renewed

    def _wanted(self, served: _Served) -> int:
        """Return how many more events of a handler may wait for a runner."""
        if self._is_paused:
            return 0
        if any(each.is_before(served) and each.consumer.has_work for each in self._served):
            return 0
        free = self._size - self._busy - self._jobs.qsize()
        if served.handler.is_transactional:
            return min(1, free)
        if served.seconds is None or served.consumer.group.is_limited:
            return min(free, self._queue.batch_size)
        batch = self._queue.batch_size
        soon = min(int(AHEAD * self._size / max(served.seconds, 1e-6)), 2 * batch)
        wanted = min(batch, max(free, soon - served.queued))
        # A claim costs the same whatever it takes: many small ones would be slow where the handler is fast.
        return wanted if free > 0 or 2 * wanted >= min(batch, soon) else 0

    async def _run(self) -> None:
        done = 0
        runner = asyncio.current_task()
        assert runner is not None
        while len(self._runners) <= self._size:
            self._idle.add(runner)
            try:
                _, _, served, delivery = await self._jobs.get()
            finally:
                self._idle.discard(runner)
            served.queued -= 1
            if not delivery.is_lost:
                await self._handle(served, delivery)
            self._room.set()
            done += 1
            if done % TURN == 0:
                await asyncio.sleep(0)
        self._runners.discard(runner)

    async def _handle(self, served: _Served, delivery: Delivery) -> None:
        clock = asyncio.get_running_loop().time
        task = asyncio.current_task()
        assert task is not None
        self._busy += 1
        delivery.on_lost = task.cancel
        began = clock()
        try:
            await self._worker.run(served.handler, served.consumer, delivery)
        except asyncio.CancelledError:
            if not delivery.is_lost:
                served.consumer.settle(delivery, Release())
                raise
            if task.cancelling() > 1:
                raise  # the runner is to end as well
            logger.warning("stopped %s at seq %d: its lease was lost", served.handler.group, delivery.message.seq)
        except Exception:
            logger.exception("%s could not be served at seq %d", served.handler.group, delivery.message.seq)
            served.consumer.settle(delivery, Release())
        finally:
            delivery.on_lost = None
            if delivery.is_lost:
                task.uncancel()  # only this delivery was another's
            self._busy -= 1
            served.note(clock() - began)


def _start(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Start a task in a context of its own: nothing of a request that caused the start."""
    loop = asyncio.get_running_loop()
    return loop.create_task(coroutine, name=name, context=contextvars.Context())
