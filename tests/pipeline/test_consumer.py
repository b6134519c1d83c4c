"""A consumer: how much it takes of its group."""

from __future__ import annotations

from eventbus_fastapi.events import make_draft
from eventbus_fastapi.pipeline.node import Node
from tests.waiting import eventually


async def test_what_may_be_taken_is_asked_for_anew_after_a_look_for_retries(node: Node) -> None:
    """The look takes a while, in which another may have taken what there was room for."""
    consumer = await node.consume("billing", ["a"], start="now")
    await node.submit([make_draft("a", 1, max_payload=100)])
    await eventually(lambda: consumer._buffer)
    rooms = [1, 0]
    assert await consumer.take(lambda: rooms.pop(0)) == []
    assert (await node.store.groups.get("billing")).cursor == 0
