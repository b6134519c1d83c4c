"""Asking a callable of the app, whether it is async or not: where it is not, in a thread, as FastAPI does."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

A = TypeVar("A")
T = TypeVar("T")


async def ask(asked: Callable[[A], T | Awaitable[T]], about: A) -> T:
    """Return what a callable says about something."""
    called = getattr(asked, "__call__", None)  # noqa: B004 - an instance whose __call__ is async
    if inspect.iscoroutinefunction(asked) or inspect.iscoroutinefunction(called):
        said = asked(about)
    else:
        said = await run_in_threadpool(asked, about)
    return await said if inspect.isawaitable(said) else said
