"""Timeouts of many short pieces of work, with one timer for all of them.

`asyncio.timeout` sets a timer for each, which costs more than calling a handler does (7 µs, against 1 µs here). This
timer is set for the deadline that is next. Most work ends long before its own, so that the timer is hardly ever moved:
when it goes off it looks who is left.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any


class Timeouts:
    """The timeouts of what runs in one event loop."""

    def __init__(self) -> None:
        self._running: set[Limit] = set()
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float) -> Limit:
        """Limit what a `with` block may take: its task is cancelled then, and leaving the block raises TimeoutError.

        It does so whatever the block made of the cancellation, unless the task was cancelled by somebody else as well.
        Ask `has_expired` to tell that TimeoutError from one of the block's own.
        """
        return Limit(self, seconds)

    def close(self) -> None:
        """Forget the timer. What runs is limited no more."""
        self._running.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self, limit: Limit, loop: asyncio.AbstractEventLoop) -> None:
        self._running.add(limit)
        if self._timer is None or limit.until < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(limit.until, self._go_off, loop)

    def _go_off(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._timer is not None
        now = max(loop.time(), self._timer.when())  # a loop may be early by its clock's resolution
        self._timer = None
        for limit in sorted(self._running, key=lambda limit: limit.until):
            if limit.until <= now:
                limit.expire()
                self._running.discard(limit)
        if self._running:
            self._timer = loop.call_at(min(limit.until for limit in self._running), self._go_off, loop)


class Limit:
    """What one piece of work may take."""

    __slots__ = ("_cancelling", "_owner", "_seconds", "_task", "has_expired", "until")

    def __init__(self, owner: Timeouts, seconds: float) -> None:
        self._owner = owner
        self._seconds = seconds
        self._task: asyncio.Task[Any]
        self._cancelling = 0
        self.until = 0.0
        """When it expires, by the loop's clock."""
        self.has_expired = False

    def expire(self) -> None:
        self.has_expired = True
        self._task.cancel()

    def __enter__(self) -> Limit:
        task = asyncio.current_task()
        assert task is not None
        loop = task.get_loop()
        self._task = task
        self._cancelling = task.cancelling()
        self.until = loop.time() + self._seconds
        self._owner._start(self, loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        self._owner._running.discard(self)
        if not self.has_expired:
            return
        others = self._task.uncancel() > self._cancelling
        if exc is None or isinstance(exc, Exception) or (isinstance(exc, asyncio.CancelledError) and not others):
            raise TimeoutError from exc
