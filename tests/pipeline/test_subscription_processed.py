"""A replay skips what was acknowledged before it began, unless it asks for it; nothing else is skipped."""

from __future__ import annotations

import pytest

from eventbus_fastapi.errors import AckMismatch, NotFound, NotRunning
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.store import Ack
from tests.drafts import draft, drafts
from tests.pipeline.conftest import OpenNode
from tests.pipeline.reading import CaughtUp, read, read_seqs, take_until


async def test_a_replay_skips_what_was_acknowledged(node: Node) -> None:
    await node.submit(drafts(6))
    assert await node.acknowledge([Ack(2), Ack(3), Ack(6)]) == 3
    assert await take_until(await node.subscribe(["#"], 0), CaughtUp(6)) == [1, 4, 5, CaughtUp(6)]


async def test_a_replay_may_ask_for_what_was_acknowledged_too(node: Node) -> None:
    await node.submit(drafts(3))
    await node.acknowledge([Ack(2)])
    assert await read_seqs(await node.subscribe(["#"], 0, include_processed=True), 3) == [1, 2, 3]


async def test_a_message_acknowledges_itself(node: Node) -> None:
    await node.submit(drafts(2))
    one, _ = await read(await node.subscribe(["#"], 0), 2)
    await one.ack()
    await one.ack()
    assert [(await node.get(seq)).status for seq in (1, 2)] == ["processed", "pending"]


async def test_a_reader_that_resumes_does_not_see_again_what_it_acknowledged(node: Node) -> None:
    await node.submit(drafts(4))
    for message in await read(await node.subscribe(["#"], 0), 3):
        await message.ack()
    assert await read_seqs(await node.subscribe(["#"], 0), 1) == [4]


async def test_live_events_are_never_skipped(node: Node) -> None:
    subscription = await node.subscribe(["#"])
    await take_until(subscription, CaughtUp(0))
    await node.submit(drafts(2))
    await node.acknowledge([Ack(1)])
    assert await read_seqs(subscription, 2) == [1, 2]


async def test_what_others_acknowledge_meanwhile_is_not_skipped(open_node: OpenNode) -> None:
    """A slow reader of the same events had holes, wherever a fast one was ahead of it."""
    node = await open_node(page_size=2)
    await node.submit(drafts(4))
    await node.acknowledge([Ack(1)])
    subscription = await node.subscribe(["#"], 0)
    await node.submit(drafts(4))
    await node.acknowledge([Ack(seq) for seq in (2, 4, 6, 8)])
    assert await read_seqs(subscription, 7) == [2, 3, 4, 5, 6, 7, 8]


async def test_what_is_acknowledged_right_before_a_subscription_is_skipped_and_right_after_it_is_not(
    node: Node,
) -> None:
    """Whatever the clock of the database can tell apart."""
    for seq in range(1, 30, 2):
        await node.submit(drafts(2))
        await node.acknowledge([Ack(seq)])
        subscription = await node.subscribe(["#"], seq - 1)
        await node.acknowledge([Ack(seq + 1)])
        assert await read_seqs(subscription, 1) == [seq + 1]
        subscription.close()


async def test_a_reader_that_resumes_gets_what_others_acknowledged_meanwhile(node: Node) -> None:
    await node.submit(drafts(6))
    await node.acknowledge([Ack(2)])
    first = await node.subscribe(["#"], 0)
    await node.acknowledge([Ack(5)])
    subscription = await node.subscribe(["#"], 0, processed_before=first.processed_before)
    assert await take_until(subscription, CaughtUp(6)) == [1, 3, 4, 5, 6, CaughtUp(6)]


async def test_a_replay_of_nothing_but_processed_events_reaches_live(node: Node) -> None:
    await node.submit(drafts(5))
    await node.acknowledge([Ack(seq) for seq in range(1, 6)])
    subscription = await node.subscribe(["#"], 0)
    assert await take_until(subscription, CaughtUp(5)) == [CaughtUp(5)]
    await node.submit(drafts(1))
    assert await read_seqs(subscription, 1) == [6]


async def test_a_mistaken_ack_is_refused_and_changes_nothing(node: Node) -> None:
    await node.submit(drafts(1))
    with pytest.raises(NotFound):
        await node.acknowledge([Ack(2)])
    with pytest.raises(AckMismatch):
        await node.acknowledge([Ack(1, draft().message_id)])
    assert (await node.get(1)).status == "pending"


async def test_an_event_that_was_not_stored_needs_no_ack(node: Node) -> None:
    subscription = await node.subscribe(["#"])
    await take_until(subscription, CaughtUp(0))
    node.publish_live(draft())
    (message,) = await read(subscription, 1)
    await message.ack()


async def test_a_stopped_node_takes_no_acks(open_node: OpenNode) -> None:
    node = await open_node()
    await node.submit(drafts(1))
    (message,) = await read(await node.subscribe(["#"], 0), 1)
    await node.stop()
    with pytest.raises(NotRunning):
        await message.ack()
