"""A worker: calls handlers with the events of their groups.

    pools (one per queue) ─▶ executor ─▶ outcome ─▶ consumer

It has a pool for each queue that it serves, and a foreman, who brings to the pools what operators say.

A handler that asks for the bus's transaction has its effects and its ack in one commit: its events are claimed one by
one, so that each ack is a row of its own.

A stop pulls nothing more, gives back what has not begun, and lets what runs end within a grace time; what does not is
cancelled and given back, without an attempt counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from eventbus_fastapi.errors import (
    InvalidHandler,
    LeaseLost,
    NotFound,
    quote,
)
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.delivery import Delivery
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.pipeline.foreman import Foreman
from eventbus_fastapi.pipeline.handlers import Handler
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.outcome import Ack, Dead, Discard, Outcome, Retry, Snooze
from eventbus_fastapi.pipeline.pool import Pool
from eventbus_fastapi.pipeline.queue import Queue
from eventbus_fastapi.pipeline.settler import LOST, OUTCOMES
from eventbus_fastapi.store.limits import RateLimit
from eventbus_fastapi.store.roster import Serving

logger = logging.getLogger(__name__)


class Worker:
    """See the module's docstring. Made for one start."""

    def __init__(self, node: Node, executor: Executor, engine: AsyncEngine) -> None:
        self._node = node
        self._executor = executor
        self._engine = engine
        self._pools: list[Pool] = []
        self._foreman: Foreman | None = None
        self._running: dict[service.Stage, asyncio.Task[None]] = {}

    @property
    def is_alive(self) -> bool:
        """True while all that takes events still does, or ends as it was told to."""
        return all(pool.is_alive for pool in self._pools) and not any(task.done() for task in self._running.values())

    async def start(
        self,
        handlers: Iterable[Handler],
        queues: Callable[[str], Queue] = Queue,
        limits: Mapping[str, RateLimit] | None = None,
    ) -> None:
        """Serve handlers; `queues` says of each queue, by its name, how, and `limits` what their rate limits are.

        Raises:
            InvalidHandler: the limit that one of them names is nowhere.
            StoreUnavailable, NotRunning: the groups cannot be made now.
        """
        handlers = list(handlers)
        by_queue: dict[str, list[Handler]] = {}
        for handler in handlers:
            by_queue.setdefault(handler.queue, []).append(handler)
        await self._declare(limits or {}, handlers)
        await self._executor.prepare(handler for served in by_queue.values() for handler in served)
        self._pools = [Pool(self, queues(name), served, meters=self._node.meters) for name, served in by_queue.items()]
        self._foreman = Foreman(self._node.store, self._node.consumers.owner, self._pools)
        await self._foreman.run_once()  # before anything is taken of a queue that is paused
        self._running = {self._foreman: service.start(self._foreman, self._node.meters.failures)}
        for pool in self._pools:
            await pool.serve()

    async def _declare(self, limits: Mapping[str, RateLimit], handlers: Iterable[Handler]) -> None:
        """Have the store know the limits that handlers name; those that the program does not describe it must know."""
        store = self._node.store.groups.limits
        for handler in handlers:
            if handler.rate_limit is None:
                continue
            if handler.rate_limit in limits:
                await store.declare(limits[handler.rate_limit])
            else:
                try:
                    await store.get(handler.rate_limit)
                except NotFound:
                    name = quote(handler.rate_limit)
                    raise InvalidHandler(
                        handler.group, f"there is no rate limit {name}; say eventbus.rate_limit({name}, …, per=…)"
                    ) from None

    def serving(self) -> dict[str, Serving]:
        """Tell how each queue is served now, by its name."""
        return {pool.name: pool.serving() for pool in self._pools}

    def shutdown(self) -> None:
        """Take no more events, and give back those that have not begun."""
        for pool in self._pools:
            pool.end_pulling()

    async def join(self, timeout: float) -> bool:
        """Wait until nothing runs any more, cancel what does after `timeout` seconds; return whether all was done."""
        self.shutdown()
        is_done = all(await asyncio.gather(*(pool.stop(timeout) for pool in self._pools)))
        self._pools = []
        await service.end(self._running)
        self._running = {}
        if self._foreman is not None:
            await self._foreman.leave()
        return is_done

    async def consume(self, handler: Handler, queue: Queue) -> Consumer:
        """Declare the group of a handler, and serve it."""
        return await self._node.consume(
            handler.group,
            handler.patterns,
            ordered_by=handler.ordered_by,
            max_attempts=handler.max_attempts,
            max_in_flight=handler.max_in_flight,
            rate_limit=handler.rate_limit,
            archive=queue.archive,
            is_declared=True,
            poll_interval=queue.poll_interval,
            queue=queue.name,
        )

    async def run(self, handler: Handler, consumer: Consumer, delivery: Delivery) -> None:
        """Handle one delivery and settle it."""
        if (spans := self._node.tracing.spans()) is None:
            await self._handle(handler, consumer, delivery)
            return
        with spans.handling(
            delivery.message,
            group=handler.group,
            attempt=delivery.attempt,
            patterns=handler.patterns,
            queue=handler.queue,
        ) as handling:
            outcome = await self._handle(handler, consumer, delivery)
            error = getattr(outcome, "error", None)
            handling.note(LOST if outcome is None else OUTCOMES[type(outcome)], None if error is None else error.type)

    async def _handle(self, handler: Handler, consumer: Consumer, delivery: Delivery) -> Outcome | None:
        """Handle one delivery and settle it; return the outcome, None: it is another's."""
        if handler.is_transactional:
            return await self._handle_in_transaction(handler, consumer, delivery)
        outcome = await self._execute(handler, delivery)
        _settle(handler, consumer, delivery, outcome)
        return outcome

    async def _handle_in_transaction(self, handler: Handler, consumer: Consumer, delivery: Delivery) -> Outcome | None:
        settler = self._node.consumers.settler
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            outcome = await self._execute(handler, delivery, session)
            if isinstance(outcome, Ack | Discard | Snooze):
                settlement = settler.settlement(delivery, outcome)
                try:
                    await self._node.store.groups.settle_in(await session.connection(), settlement)
                    await session.commit()
                except LeaseLost:
                    await session.rollback()
                    settler.lose(delivery)
                    logger.warning("rolled %s back at seq %d: its lease was lost", handler.group, delivery.message.seq)
                    return None
                except Exception as exc:  # noqa: BLE001 - a deferred constraint, perhaps: the attempt failed
                    await session.rollback()
                    outcome = self._executor.decide(handler, exc, delivery.attempt)
                    _settle(handler, consumer, delivery, outcome)
                else:
                    consumer.forget(delivery, outcome)
                return outcome
            await session.rollback()
        _settle(handler, consumer, delivery, outcome)
        return outcome

    async def _execute(self, handler: Handler, delivery: Delivery, session: AsyncSession | None = None) -> Outcome:
        delivery.begin()
        outcome = await self._executor.execute(handler, delivery.message, delivery.attempt, session=session)
        delivery.end()
        return outcome

    async def give_back(self, consumer: Consumer) -> None:
        await self._node.consumers.close(consumer)


def _settle(handler: Handler, consumer: Consumer, delivery: Delivery, outcome: Outcome) -> None:
    consumer.settle(delivery, outcome)
    if isinstance(outcome, Retry) and outcome.error is not None:
        logger.warning(
            "%s failed at seq %d, attempt %d, next in %.1f s: %s",
            handler.group,
            delivery.message.seq,
            delivery.attempt,
            outcome.after,
            outcome.error.summary,
        )
    elif isinstance(outcome, Dead):
        logger.error(
            "%s gave up seq %d after %d attempts: %s",
            handler.group,
            delivery.message.seq,
            delivery.attempt,
            outcome.error.summary,
        )
