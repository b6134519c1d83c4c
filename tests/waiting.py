"""Waiting for what will be so soon, instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")

PAUSE = 0.005
"""Seconds between two looks."""
PATIENCE = 30.0
"""Seconds that are waited unless a test says otherwise: as long as a loaded machine may take for anything. A test of
how long something takes says itself how long it may."""


@overload
async def eventually(check: Callable[[], Awaitable[T]], timeout: float = PATIENCE) -> T: ...
@overload
async def eventually(check: Callable[[], T], timeout: float = PATIENCE) -> T: ...
async def eventually(check: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Call `check`, sync or async, until it returns something truthy, and return that.

    A check that raises has not come true yet.

    Raises:
        AssertionError: it did not come true within `timeout` seconds; says what it returned or raised last.
    """
    last = "it has not returned once"
    cause: Exception | None = None
    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            while True:
                try:
                    value = check()
                    if inspect.isawaitable(value):
                        value = await value
                except Exception as exc:  # noqa: BLE001 - whatever it is, the next look may find better
                    last, cause = f"it raised {exc!r} last", exc
                else:
                    if value:
                        return value
                    last, cause = f"it returned {value!r} last", None
                await asyncio.sleep(PAUSE)
    except TimeoutError:
        if not deadline.expired():
            raise
    raise AssertionError(f"did not come true within {timeout:g} s: {last}") from cause
