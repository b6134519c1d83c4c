"""The loop that runs a stage, written once.

A stage does one piece of work in `run_once()` and says how long it can wait for the next; its bell ends the wait early.
A failure is logged with the stage's name and the stage goes on after a pause: no failure ends a loop.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Protocol

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.pipeline.bell import Bell

logger = logging.getLogger(__name__)


class Stage(Protocol):
    """One running part of a node."""

    name: str
    bell: Bell

    async def run_once(self) -> float | None:
        """Do what there is to do; return the seconds until there may be more (0: at once, None: only the bell)."""


async def run(stage: Stage) -> None:
    """Run a stage until it is cancelled."""
    pauses = FullJitter(base=0.05, cap=1.0)
    failures = 0
    while True:
        try:
            delay = await stage.run_once()
        except StoreUnavailable as exc:
            _end_if_cancelled(exc)
            if failures == 0:
                logger.warning("%s paused: %s", stage.name, exc)
            failures += 1
            await asyncio.sleep(pauses.delay(failures))
            continue
        except Exception as exc:
            _end_if_cancelled(exc)
            logger.exception("%s failed", stage.name)
            failures += 1
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


def start(stage: Stage) -> asyncio.Task[None]:
    """Start a stage's loop as a task. It gets a context of its own: nothing of a request that caused the start."""
    return asyncio.get_running_loop().create_task(
        run(stage), name=f"eventbus-{stage.name}", context=contextvars.Context()
    )
