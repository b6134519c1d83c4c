"""The workers of a bus in this process: which queues they serve, and when they begin and end.

stopped ──start──▶ running ──shutdown──▶ ending ──(all done, or the time of join is over)──▶ stopped

Companions, such as relays, begin and end with them in a process that serves all queues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import InvalidHandler, quote
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.pipeline.handlers import HandlerGroup
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.queue import Queue
from eventbus_fastapi.pipeline.worker import Worker
from eventbus_fastapi.store.limits import RateLimit, check_limit
from eventbus_fastapi.store.roster import Serving

logger = logging.getLogger(__name__)

JOIN_TIMEOUT = 30.0


class Companion(Protocol):
    """What begins and ends with the workers."""

    @property
    def name(self) -> str:
        """That of its group."""

    @property
    def is_alive(self) -> bool:
        """True while it works, or waits for something that it needs."""

    async def start(self) -> None:
        """Begin. Starting twice is once."""

    def shutdown(self) -> None:
        """Begin nothing more; see `join`."""

    async def join(self, timeout: float) -> bool:
        """Wait for the end, give back what is not done after `timeout` seconds; return whether all was done."""


class Workers:
    """See the module's docstring."""

    def __init__(self, node: Node, handlers: HandlerGroup, engine: Callable[[], AsyncEngine]) -> None:
        self.dependency_overrides: MutableMapping[Callable[..., Any], Callable[..., Any]] = {}
        """Called in the place of dependencies of handlers. May be an app's `dependency_overrides`."""
        self.companions: list[Companion] = []
        """What starts and ends with them."""
        self._started: list[Companion] = []
        self._node = node
        self._handlers = handlers
        self._engine = engine
        self._queues: dict[str, Queue] = {}
        self._limits: dict[str, RateLimit] = {}
        self._served: list[str] = []
        self._worker: Worker | None = None
        self._executor: Executor | None = None

    @property
    def is_running(self) -> bool:
        """True from `start` until `join` has ended."""
        return self._worker is not None

    @property
    def is_alive(self) -> bool:
        """True while the workers run and each part of them does; a database that is away changes nothing of it."""
        is_alive = self._worker is not None and self._worker.is_alive
        return is_alive and all(each.is_alive for each in self._started)

    @property
    def groups(self) -> list[str]:
        """The groups that are served now."""
        return self._served if self._worker is not None else []

    @property
    def serving(self) -> dict[str, Serving]:
        """How each queue is served in this process now, by its name."""
        return self._worker.serving() if self._worker is not None else {}

    def describe(self, queue: Queue) -> None:
        """Say how a queue is served, from the next start on. What the settings say about it has the last word."""
        self._queues[queue.name] = queue

    def limit(self, limit: RateLimit) -> None:
        """Say how often attempts of the handlers that name it may begin, from the next start on."""
        check_limit(limit)
        self._limits[limit.name] = limit

    def described(self, name: str) -> Queue:
        """Return how a queue is served, from the next start on."""
        queue = self._queues.get(name, Queue(name))
        settings = self._node.settings.queues.get(name)
        return queue if settings is None else queue.replaced_by(settings)

    async def start(self, queues: Sequence[str] | None = None) -> None:
        """Serve the handlers of some queues; None: of all. Starting twice is once.

        Raises:
            InvalidHandler: no handler is of a queue that was named, or one names a limit that is nowhere.
            NotRunning, StoreUnavailable: the bus is not started, or the database is away.
        """
        if self._worker is not None:
            return
        served = [handler for handler in self._handlers if queues is None or handler.queue in queues]
        for name in queues or ():
            if name not in {handler.queue for handler in served}:
                known = ", ".join(sorted({handler.queue for handler in self._handlers})) or "none"
                raise InvalidHandler(
                    name, f"no handler is of the queue {quote(name)}; there are: {known}", kind="queue"
                )
        self._executor = Executor(
            self._node.settings, node=self._node.consumers.owner, overrides=self.dependency_overrides
        )
        self._worker = Worker(self._node, self._executor, self._engine())
        try:
            await self._worker.start(served, self.described, self._limits)
            for companion in self.companions if queues is None else ():
                await companion.start()
                self._started.append(companion)
        except BaseException:
            self.shutdown()
            await self.join(0)
            raise
        self._served = [*(handler.group for handler in served), *(each.name for each in self._started)]
        for name in self._node.settings.queues.keys() - {handler.queue for handler in self._handlers}:
            logger.warning("the settings say something about queue %s, which no handler is of", quote(name))
        logger.info("serving %d handlers", len(served))

    def shutdown(self) -> None:
        """Take no more events, and give back those that have not begun; what runs goes on. See `join`."""
        if self._worker is not None:
            self._worker.shutdown()
        for companion in self._started:
            companion.shutdown()

    async def join(self, timeout: float = JOIN_TIMEOUT) -> bool:
        """Wait for the end after a `shutdown`; what is not done after `timeout` seconds is cancelled and given back,
        without an attempt counted. Return whether all was done.
        """
        if self._worker is None or self._executor is None:
            return True
        started, self._started = self._started, []
        ends = (self._worker.join(timeout), *(companion.join(timeout) for companion in started))
        is_done = all(await asyncio.gather(*ends))
        self._executor.close()
        self._worker = self._executor = None
        return is_done
