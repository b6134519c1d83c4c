"""What the tests of outboxes ask."""

from __future__ import annotations

from typing import Any

from eventbus_fastapi import EventBus, Message, Outbox
from tests.waiting import eventually


async def log(bus: EventBus) -> list[Message]:
    """Return all of it: an answer with history is bounded."""
    found: list[Message] = []
    after: int | None = 0
    while after is not None:
        page = await bus.node.history(["#"], after, 10_000)
        found += page.messages
        after = page.next
    return found


async def payloads(bus: EventBus) -> list[Any]:
    return [message.payload for message in await log(bus)]


async def until_forwarded(outbox: Outbox) -> None:
    """Wait until nothing waits any more."""

    async def is_empty() -> bool:
        return (await outbox.figures()).waiting == 0

    await eventually(is_empty)


async def publish(outbox: Outbox, *payloads: Any, topic: str = "order.paid", **options: Any) -> None:
    """Publish in one transaction."""
    async with outbox.engine.begin() as connection:
        for payload in payloads:
            await outbox.publish_txn(connection, topic, payload, **options)
