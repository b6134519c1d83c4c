"""Ending the tasks that a connection has started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Work = Callable[[], Coroutine[Any, Any, None]]
"""What a task does."""


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when they have ended, however they did.

    Not with `gather`: when we are cancelled ourselves meanwhile, it raises a CancelledError of its own making, in which
    the anyio scope that cancelled us does not know its own cancellation again.
    """
    for task in tasks:
        task.cancel()
        task.add_done_callback(_take_error)
    if tasks:
        await asyncio.wait(tasks)


def _take_error(task: asyncio.Task[Any]) -> None:
    """Look at the error of a task that nobody waits for, which asyncio would report as forgotten."""
    if not task.cancelled():
        task.exception()
