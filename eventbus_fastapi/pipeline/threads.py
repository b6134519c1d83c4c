"""The threads that run the program's sync functions, so that they never block the event loop.

A thread cannot be killed. When the wait for a function is cancelled (its handler has timed out), the function runs on,
and its thread is taken until it returns: there are never more than `size` of them.

Neither pool at hand does this. AnyIO's counts a thread as free when the wait for it ends, though it is still running.
ThreadPoolExecutor's threads are joined when Python exits, so that one function that hangs would keep the process alive.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple["Future[Any]", Callable[[], Any]]


class Threads:
    """A pool of at most `size` threads, started when they are needed. For the calls of one event loop."""

    def __init__(self, size: int = 40) -> None:
        self.size = size
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._started = 0
        self._idle = threading.Semaphore(0)

    async def run(self, call: Callable[[], T]) -> T:
        """Call a function in a thread, in the caller's context, and return what it returns or raise what it raises.

        Waits for a free thread, in turn. Cancelling ends the wait, and the function only if it has not begun.
        """
        job = _new_job(call)
        if self._started < self.size and not self._idle.acquire(blocking=False):
            self._started += 1
            self._start(self._serve)
        self._jobs.put(job)
        return await asyncio.wrap_future(job[0])

    async def run_beyond(self, call: Callable[[], T]) -> T:
        """Call a function in a thread beyond the size, so that it waits for none.

        For giving back what others hold a thread for: if all were waiting for a connection, none would be left to
        return one.
        """
        future, work = _new_job(call)
        self._start(partial(_do, future, work))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads, each after what it does. Nobody waits for them."""
        for _ in range(self._started):
            self._jobs.put(None)
        self._started = 0

    def _start(self, target: Callable[[], None]) -> None:
        threading.Thread(target=target, name="eventbus-handler", daemon=True).start()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            _do(*job)
            del job  # or what it returned would live until the next one comes
            self._idle.release()


def _new_job(call: Callable[[], Any]) -> _Job:
    return Future(), partial(contextvars.copy_context().run, call)


def _do(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except StopIteration as exc:  # a future cannot hold it, and an await would take it for its own end
        error = RuntimeError("a sync function raised StopIteration")
        error.__cause__ = exc
        future.set_exception(error)
    except BaseException as exc:  # noqa: BLE001 - whoever waits gets it
        future.set_exception(exc)
    else:
        future.set_result(result)
