"""A worker: calls handlers with the events of their groups.

    consumer ─▶ puller ─▶ jobs ─▶ one of the queue's runners ─▶ executor ─▶ outcome ─▶ consumer
    (per group)  (per handler)    (as many as may run at once)

A queue serves some handlers with a number of runners. A puller takes no more than its queue can start soon, judged by
how long its handler has taken so far, so that an event does not wait behind a slow one while another node is idle. Of
several handlers that have events ready, the one with the highest priority is served first.

A handler that asks for the bus's transaction has its effects and its ack in one commit: its events are claimed one by
one, so that each ack is a row of its own.

A stop pulls nothing more, gives back what has not begun, and lets what runs end within a grace time; what does not is
cancelled and given back, without an attempt counted.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
from collections.abc import Callable, Iterable
from functools import partial

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import (
    EventBusError,
    GroupNotFound,
    LeaseLost,
    NotRunning,
    StoreUnavailable,
)
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.delivery import Delivery, Release
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.pipeline.handlers import Handler
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.outcome import Ack, Dead, Discard, Outcome, Retry, Snooze
from eventbus_fastapi.pipeline.queue import Queue

logger = logging.getLogger(__name__)

AHEAD = 0.1
"""Seconds of work that a puller may hold ready."""
TURN = 64
"""Jobs after which a runner lets others run, though none of its jobs waited for anything."""
CANCEL_GRACE = 2.0
"""Seconds that cancelled handlers have to end."""


class Worker:
    """See the module's docstring. Made for one start."""

    def __init__(self, node: Node, executor: Executor, engine: AsyncEngine) -> None:
        self._node = node
        self._executor = executor
        self._engine = engine
        self._pools: list[_Pool] = []

    async def start(self, handlers: Iterable[Handler], queues: Callable[[str], Queue] = Queue) -> None:
        """Serve handlers; `queues` says of each queue, by its name, how.

        Raises:
            StoreUnavailable, NotRunning: the groups cannot be made now.
        """
        by_queue: dict[str, list[Handler]] = {}
        for handler in handlers:
            by_queue.setdefault(handler.queue, []).append(handler)
        await self._executor.prepare(handler for served in by_queue.values() for handler in served)
        for name, served in by_queue.items():
            queue = queues(name)
            pool = _Pool(self, queue)
            self._pools.append(pool)
            for handler in served:
                consumer = await self._node.consume(
                    handler.group,
                    handler.patterns,
                    ordered_by=handler.ordered_by,
                    max_attempts=handler.max_attempts,
                    is_declared=True,
                    poll_interval=queue.poll_interval,
                )
                pool.serve(handler, consumer)

    def shutdown(self) -> None:
        """Take no more events, and give back those that have not begun."""
        for pool in self._pools:
            pool.end_pulling()

    async def join(self, timeout: float) -> bool:
        """Wait until nothing runs any more, cancel what does after `timeout` seconds; return whether all was done."""
        self.shutdown()
        pools, self._pools = self._pools, []
        return all(await asyncio.gather(*(pool.stop(timeout) for pool in pools)))

    async def run(self, handler: Handler, consumer: Consumer, delivery: Delivery) -> None:
        """Handle one delivery and settle it."""
        if handler.is_transactional:
            await self._run_in_transaction(handler, consumer, delivery)
        else:
            outcome = await self._executor.execute(handler, delivery.message, delivery.attempt)
            _settle(handler, consumer, delivery, outcome)

    async def _run_in_transaction(self, handler: Handler, consumer: Consumer, delivery: Delivery) -> None:
        settler = self._node.consumers.settler
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            outcome = await self._executor.execute(handler, delivery.message, delivery.attempt, session=session)
            if isinstance(outcome, Ack | Discard | Snooze):
                settlement = settler.settlement(delivery, outcome)
                try:
                    await self._node.store.groups.settle_in(await session.connection(), settlement)
                    await session.commit()
                except LeaseLost:
                    await session.rollback()
                    settler.lose(delivery)
                    logger.warning("rolled %s back at seq %d: its lease was lost", handler.group, delivery.message.seq)
                except Exception as exc:  # noqa: BLE001 - a deferred constraint, perhaps: the attempt failed
                    await session.rollback()
                    _settle(handler, consumer, delivery, self._executor.decide(handler, exc, delivery.attempt))
                else:
                    consumer.forget(delivery, outcome)
                return
            await session.rollback()
        _settle(handler, consumer, delivery, outcome)

    async def give_back(self, consumer: Consumer) -> None:
        await self._node.consumers.close(consumer)


def _settle(handler: Handler, consumer: Consumer, delivery: Delivery, outcome: Outcome) -> None:
    consumer.settle(delivery, outcome)
    if isinstance(outcome, Retry) and outcome.error is not None:
        logger.warning(
            "%s failed at seq %d, attempt %d, next in %.1f s: %s: %s",
            handler.group,
            delivery.message.seq,
            delivery.attempt,
            outcome.after,
            outcome.error.type,
            outcome.error.message,
        )
    elif isinstance(outcome, Dead):
        logger.error(
            "%s gave up seq %d after %d attempts: %s: %s",
            handler.group,
            delivery.message.seq,
            delivery.attempt,
            outcome.error.type,
            outcome.error.message,
        )


class _Served:
    """A handler and the consumer of its group."""

    def __init__(self, handler: Handler, consumer: Consumer) -> None:
        self.handler = handler
        self.consumer = consumer
        self.seconds: float | None = None
        """How long it takes, smoothed; None: not known yet."""
        self.queued = 0
        """Jobs that wait for a runner."""

    def is_before(self, other: _Served) -> bool:
        return self.handler.priority > other.handler.priority

    def note(self, seconds: float) -> None:
        self.seconds = seconds if self.seconds is None else 0.8 * self.seconds + 0.2 * seconds


Job = tuple[int, int, _Served, Delivery]
"""Ordered by priority, then by the order in which they were taken."""


class _Pool:
    """The runners of a queue, and who fills it."""

    def __init__(self, worker: Worker, queue: Queue) -> None:
        self._worker = worker
        self._queue = queue
        self._served: list[_Served] = []
        self._jobs: asyncio.PriorityQueue[Job] = asyncio.PriorityQueue()
        self._number = itertools.count()
        self._room = asyncio.Event()
        self._busy = 0
        self._pullers: list[asyncio.Task[None]] = []
        self._runners = [
            _start(self._run(), f"eventbus-runner-{queue.name}-{number}") for number in range(queue.workers)
        ]

    def serve(self, handler: Handler, consumer: Consumer) -> None:
        served = _Served(handler, consumer)
        self._served.append(served)
        self._pullers.append(_start(self._pull(served), f"eventbus-puller-{handler.group}"))

    def end_pulling(self) -> None:
        """Take nothing more, and give back what has not begun."""
        for puller in self._pullers:
            puller.cancel()
        while not self._jobs.empty():
            _, _, served, delivery = self._jobs.get_nowait()
            served.consumer.settle(delivery, Release())

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
            logger.warning("gave back %d events of queue %s that were not done in time", self._busy, self._queue.name)
        for runner in self._runners:
            runner.cancel()
        _, hanging = await asyncio.wait(self._runners, timeout=CANCEL_GRACE)
        if hanging:
            logger.error("%d handlers of queue %s do not end though cancelled", len(hanging), self._queue.name)
        await asyncio.gather(*(self._worker.give_back(served.consumer) for served in self._served))
        return is_done

    async def _pull(self, served: _Served) -> None:
        pauses = FullJitter(base=0.05, cap=1.0)
        failures = 0
        while True:
            try:
                deliveries = await served.consumer.take(partial(self._wanted, served))
            except StoreUnavailable as exc:
                if failures == 0:
                    logger.warning("%s waits: %s", served.handler.group, exc)
                failures += 1
                await asyncio.sleep(pauses.delay(failures))
                continue
            except (GroupNotFound, NotRunning) as exc:
                logger.warning("%s is not served any more: %s", served.handler.group, exc)
                self._room.set()  # those of a lower priority may have waited for us
                return
            except EventBusError:
                logger.exception("%s cannot take events", served.handler.group)
                failures += 1
                await asyncio.sleep(pauses.delay(failures))
                continue
            failures = 0
            if not deliveries:
                self._room.clear()
                await self._room.wait()
                continue
            for delivery in deliveries:
                self._jobs.put_nowait((-served.handler.priority, next(self._number), served, delivery))
            served.queued += len(deliveries)
            self._room.set()  # those of a lower priority may have waited for us

    def _wanted(self, served: _Served) -> int:
        """Return how many more events of a handler may wait for a runner."""
        if any(each.is_before(served) and each.consumer.has_work for each in self._served):
            return 0
        free = self._queue.workers - self._busy - self._jobs.qsize()
        if served.handler.is_transactional:
            return min(1, free)
        if served.seconds is None:
            return min(free, self._queue.batch_size)
        batch = self._queue.batch_size
        soon = min(int(AHEAD * self._queue.workers / max(served.seconds, 1e-6)), 2 * batch)
        wanted = min(batch, max(free, soon - served.queued))
        # A claim costs the same whatever it takes: many small ones would be slow where the handler is fast.
        return wanted if free > 0 or 2 * wanted >= min(batch, soon) else 0

    async def _run(self) -> None:
        done = 0
        while True:
            _, _, served, delivery = await self._jobs.get()
            served.queued -= 1
            if not delivery.is_lost:
                await self._handle(served, delivery)
            self._room.set()
            done += 1
            if done % TURN == 0:
                await asyncio.sleep(0)

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


def _start(coroutine: object, name: str) -> asyncio.Task[None]:
    """Start a task in a context of its own: nothing of a request that caused the start."""
    loop = asyncio.get_running_loop()
    return loop.create_task(coroutine, name=name, context=contextvars.Context())  # type: ignore[arg-type]
