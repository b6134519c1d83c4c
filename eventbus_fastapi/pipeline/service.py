"""The loop that runs a stage, written once.

A stage does one piece of work in `run_once()` and says how long it can wait for the next; its bell ends the wait early.
A failure is logged with the stage's name and the stage goes on after a pause: no failure ends a loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import NotForwarded, SchemaOutdated, StoreUnavailable
from eventbus_fastapi.pipeline.bell import Bell

logger = logging.getLogger(__name__)

END_GRACE = 2.0
"""Seconds that a stage may take to finish what it is doing when it is to end."""


class Stage(Protocol):
    """One running part of a node."""

    name: str
    bell: Bell

    async def run_once(self) -> float | None:
        """Do what there is to do; return the seconds until there may be more (0: at once, None: only the bell)."""


async def run(stage: Stage, failed: Counter[str] | None = None) -> None:
    """Run a stage until its bell is closed, or it is cancelled. Failures are counted in `failed`, by its name."""
    failed = Counter() if failed is None else failed
    pauses = FullJitter(base=0.05, cap=1.0)
    failures = 0
    while not stage.bell.is_closed:
        try:
            delay = await stage.run_once()
        except Exception as exc:
            _end_if_cancelled(exc)
            if not isinstance(exc, StoreUnavailable | SchemaOutdated | NotForwarded):
                logger.exception("%s failed", stage.name)
            elif failures == 0:
                logger.warning("%s paused: %s", stage.name, exc)
            failures += 1
            failed[stage.name] += 1
            await asyncio.sleep(pauses.delay(failures))
            continue
        if failures:
            logger.info("%s resumed after %d failures", stage.name, failures)
            failures = 0
        if delay is None or delay > 0:
            await stage.bell.wait(delay)


def _end_if_cancelled(exc: Exception) -> None:
    """Let the cancellation through that an error took the place of, as when a driver fails to close a connection. A
    loop that went on would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError from exc


def start(stage: Stage, failed: Counter[str] | None = None) -> asyncio.Task[None]:
    """Start a stage's loop as a task; see `run`. It gets a context of its own: nothing of a request that caused the
    start.
    """
    return asyncio.get_running_loop().create_task(
        run(stage, failed), name=f"eventbus-{stage.name}", context=contextvars.Context()
    )


async def end(running: Mapping[Stage, asyncio.Task[None]]) -> None:
    """End stages after what they are doing now; cancel what takes too long.

    A statement that is cancelled costs its connection, which the driver may not have closed yet when the pool ends.
    """
    if not running:
        return
    for stage in running:
        stage.bell.close()
    await asyncio.wait(running.values(), timeout=END_GRACE)
    for task in running.values():
        task.cancel()
    await asyncio.gather(*running.values(), return_exceptions=True)
