"""What tests of handlers share: an event as a handler gets it, and a way to call one function as a handler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi import codec
from eventbus_fastapi.events import Event, Message
from eventbus_fastapi.pipeline.dependencies import Overrides
from eventbus_fastapi.pipeline.executor import Executor
from eventbus_fastapi.pipeline.handlers import Handler, HandlerGroup
from eventbus_fastapi.settings import Settings


class UserCreated(Event, topic="user.created"):
    id: int
    name: str = ""


ADA = {"id": 1, "name": "Ada"}


def message_of(payload: Any = ADA, *, topic: str = "user.created", seq: int = 7) -> Message:
    """Return an event as it is read from the log."""
    body, content_type = codec.encode(payload)
    return Message(seq, codec.new_message_id(), topic, None, body, content_type, None, 1_790_000_000_000_000)


def handler_of(function: Callable[..., Any], **options: Any) -> Handler:
    """Register a function or class as the only handler of a group."""
    group = HandlerGroup()
    group.handler("user.*", **options)(function)
    (handler,) = group
    return handler


async def call(
    function: Callable[..., Any],
    payload: Any = ADA,
    *,
    attempt: int = 1,
    session: AsyncSession | None = None,
    overrides: Overrides | None = None,
    settings: Settings | None = None,
) -> Any:
    """Call a function as a handler, once, and return what it returns."""
    executor = Executor(settings or Settings(), overrides=overrides)
    try:
        return await executor.run(handler_of(function), message_of(payload), attempt, session=session)
    finally:
        executor.close()
