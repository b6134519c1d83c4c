"""Reads subscriptions in tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Batch, CaughtUp, Gap, Item
from eventbus_fastapi.pipeline.subscription import Subscription


async def read(messages: AsyncIterator[Message], count: int) -> list[Message]:
    """Read `count` messages."""
    found: list[Message] = []
    async with asyncio.timeout(20):
        while len(found) < count:
            found.append(await anext(messages))
    return found


async def read_seqs(messages: AsyncIterator[Message], count: int) -> list[int]:
    return [message.seq for message in await read(messages, count)]


async def read_payloads(messages: AsyncIterator[Message], count: int) -> list[Any]:
    return [message.payload for message in await read(messages, count)]


async def take_until(subscription: Subscription, last: Item | int) -> list[Any]:
    """Take items until `last` (an item, or the seq of an event), as a flat list of seqs, gaps and caught-ups."""
    found: list[Any] = []
    async with asyncio.timeout(20):
        while last not in found:
            for item in await subscription.take():
                found += [message.seq for message in item.messages] if isinstance(item, Batch) else [item]
    return found


async def take_what_is_there(subscription: Subscription) -> list[Any]:
    """Take items until there is nothing for a moment, as a flat list."""
    found: list[Any] = []
    while True:
        try:
            async with asyncio.timeout(0.05):
                items = await subscription.take()
        except TimeoutError:
            return found
        for item in items:
            found += [message.seq for message in item.messages] if isinstance(item, Batch) else [item]


__all__ = ["CaughtUp", "Gap", "read", "read_payloads", "read_seqs", "take_until", "take_what_is_there"]
