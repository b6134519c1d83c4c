"""Tasks that wait for the next change of something, and are all woken by it."""

from __future__ import annotations

import asyncio

from eventbus_fastapi.errors import EventBusError


class Waiters:
    """Futures of tasks that wait. A task that is cancelled meanwhile leaves nothing behind."""

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Wait for the next `wake` or `fail`.

        Raises:
            EventBusError: what `fail` was given.
        """
        future = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        try:
            await future
        finally:
            self._futures.discard(future)
            if future.done() and not future.cancelled():
                future.exception()  # seen, even if this task was cancelled before it could raise it

    def wake(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def fail(self, error: EventBusError) -> None:
        for future in self._futures:
            if not future.done():
                future.set_exception(fresh(error))


def fresh(error: EventBusError) -> EventBusError:
    """Return the same error as an object of its own, as each task that raises it adds its own traceback."""
    copy = type(error).__new__(type(error), *error.args)
    copy.args = error.args
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    return copy
