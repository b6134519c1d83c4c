"""A reader that does not keep up meets a named policy; it delays nobody, and the memory it can cost is bounded."""

from __future__ import annotations

import asyncio

import pytest

from eventbus_fastapi.errors import LogGap, SlowConsumer, SubscriptionClosed
from eventbus_fastapi.pipeline.channel import Batch
from eventbus_fastapi.pipeline.dispatcher import MESSAGE_OVERHEAD
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.settings import Overflow
from tests.databases import in_use
from tests.drafts import draft, drafts
from tests.pipeline.conftest import OpenNode
from tests.pipeline.reading import CaughtUp, Gap, read_seqs, take_until
from tests.waiting import eventually

POLICIES: tuple[Overflow, ...] = ("disconnect", "drop_oldest", "catch_up")


async def live(node: Node, *patterns: str, overflow: Overflow, buffer: int | None = None) -> Subscription:
    """Open a subscription that has reached live, and then stalls."""
    subscription = await node.subscribe(patterns or ("#",), overflow=overflow, buffer=buffer)
    while not subscription.is_live:
        await subscription.take()
    await drain(subscription)
    return subscription


async def drain(subscription: Subscription) -> None:
    """Take what is there already, which is only that it is caught up."""
    try:
        async with asyncio.timeout(0.02):
            while True:
                assert all(isinstance(item, CaughtUp) for item in await subscription.take())
    except TimeoutError:
        pass


async def keep_reading(node: Node) -> None:
    """Open a live subscription to nothing: while there is one, the node reads the log."""
    await live(node, "nothing.of.this", overflow="catch_up")


async def publish(node: Node, count: int, topic: str = "a", size: int = 10) -> None:
    """Publish events in separate commits, and see them dispatched."""
    for _ in range(count):
        await node.submit([draft(topic, bytes(size))])
    head = (await node.head()).last_seq
    await eventually(lambda: node.dispatcher.position >= head)


# --- disconnect ----------------------------------------------------------------------------------


async def test_disconnect_ends_a_reader_that_falls_more_than_its_buffer_behind(node: Node) -> None:
    subscription = await live(node, overflow="disconnect", buffer=5)
    await publish(node, 6)
    with pytest.raises(SlowConsumer, match="more than 5 events behind; resume after seq 0"):
        await subscription.take()


async def test_disconnect_leaves_a_reader_alone_that_is_no_further_behind_than_its_buffer(node: Node) -> None:
    subscription = await live(node, overflow="disconnect", buffer=5)
    for _ in range(4):
        await publish(node, 5)
        await read_seqs(subscription, 5)
    assert subscription.position == 20


async def test_disconnect_tells_the_owner_at_once_also_while_nobody_reads(node: Node) -> None:
    subscription = await live(node, overflow="disconnect", buffer=5)
    told: list[SubscriptionClosed] = []
    subscription.on_close = told.append
    await publish(node, 6)
    (reason,) = told
    assert isinstance(reason, SlowConsumer)
    assert reason.retry


async def test_after_a_disconnect_it_resumes_where_it_was_without_loss(node: Node) -> None:
    subscription = await live(node, overflow="disconnect", buffer=5)
    await publish(node, 3)
    assert await read_seqs(subscription, 3) == [1, 2, 3]
    await publish(node, 6)
    with pytest.raises(SlowConsumer, match="resume after seq 3"):
        await anext(subscription)
    resumed = await node.subscribe(["#"], subscription.position)
    assert await read_seqs(resumed, 6) == [4, 5, 6, 7, 8, 9]


async def test_the_seq_to_resume_from_counts_only_what_was_handed_out(node: Node) -> None:
    subscription = await live(node, overflow="disconnect", buffer=5)
    await node.submit(drafts(4))
    items = await subscription.take(limit=2)
    assert [message.seq for item in items if isinstance(item, Batch) for message in item.messages] == [1, 2]
    await publish(node, 6)
    with pytest.raises(SlowConsumer, match="resume after seq 2"):
        await subscription.take(limit=2)
    assert subscription.position == 2


# --- drop_oldest ---------------------------------------------------------------------------------


async def test_drop_oldest_goes_on_with_the_newest_and_says_what_is_missing(node: Node) -> None:
    subscription = await live(node, overflow="drop_oldest", buffer=5)
    await publish(node, 20)
    assert await take_until(subscription, 20) == [Gap(1, 15, "overflow"), 16, 17, 18, 19, 20]


async def test_drop_oldest_says_each_gap_in_its_place(node: Node) -> None:
    subscription = await live(node, overflow="drop_oldest", buffer=3)
    await publish(node, 2)
    assert await take_until(subscription, 2) == [1, 2]
    await publish(node, 5)
    assert await take_until(subscription, 7) == [Gap(3, 4, "overflow"), 5, 6, 7]
    await publish(node, 1)
    assert await take_until(subscription, 8) == [8]
    await publish(node, 4)
    assert await take_until(subscription, 12) == [Gap(9, 9, "overflow"), 10, 11, 12]


async def test_drop_oldest_counts_only_what_matches(node: Node) -> None:
    subscription = await live(node, "a", overflow="drop_oldest", buffer=3)
    for topic in "abbbbbabbbbba":
        await publish(node, 1, topic)
    assert await take_until(subscription, 13) == [1, 7, 13]


async def test_drop_oldest_speaks_of_no_gap_where_nothing_was_dropped(node: Node) -> None:
    subscription = await live(node, "a", overflow="drop_oldest", buffer=2)
    await publish(node, 3, "b")
    await node.submit([draft("a") for _ in range(4)])  # one batch, which is more than the buffer but is not cut
    await eventually(lambda: node.dispatcher.position == 7)
    assert await take_until(subscription, 7) == [4, 5, 6, 7]


async def test_drop_oldest_tells_of_what_was_dropped_before_an_event_that_is_not_stored(node: Node) -> None:
    subscription = await live(node, overflow="drop_oldest", buffer=2)
    await publish(node, 5)
    for _ in range(2):
        node.publish_live(draft("a"))
    assert await take_until(subscription, 0) == [Gap(1, 5, "overflow"), 0, 0]
    await publish(node, 1)
    assert await take_until(subscription, 6) == [6]


async def test_a_loop_over_messages_hears_of_the_gap_and_may_go_on(node: Node) -> None:
    subscription = await live(node, overflow="drop_oldest", buffer=5)
    await publish(node, 20)
    with pytest.raises(LogGap) as caught:
        await anext(subscription)
    assert (caught.value.first_seq, caught.value.last_seq, caught.value.reason) == (1, 15, "overflow")
    assert await read_seqs(subscription, 5) == [16, 17, 18, 19, 20]


# --- catch_up ------------------------------------------------------------------------------------


async def test_catch_up_loses_nothing_however_long_the_reader_stalls(open_node: OpenNode) -> None:
    node = await open_node(tail_bytes=65_536, page_size=7)
    await keep_reading(node)
    subscription = await live(node, overflow="catch_up", buffer=5)
    await publish(node, 150, size=1_000)  # more than the tail holds
    assert await read_seqs(subscription, 150) == list(range(1, 151))


async def test_catch_up_says_each_time_when_it_is_live_again(open_node: OpenNode) -> None:
    node = await open_node(tail_bytes=65_536)
    await keep_reading(node)
    subscription = await live(node, overflow="catch_up")
    await publish(node, 100, size=2_000)
    assert await take_until(subscription, CaughtUp(100)) == [*range(1, 101), CaughtUp(100)]
    await publish(node, 100, size=2_000)
    assert await take_until(subscription, CaughtUp(200)) == [*range(101, 201), CaughtUp(200)]


async def test_catch_up_is_the_default(node: Node) -> None:
    subscription = await node.subscribe(["#"], buffer=1)
    await subscription.take()
    await keep_reading(node)
    await publish(node, 30)
    assert await read_seqs(subscription, 30) == list(range(1, 31))


async def test_the_default_policy_and_buffer_are_settings(open_node: OpenNode) -> None:
    node = await open_node(overflow="disconnect", buffer=3)
    subscription = await node.subscribe(["#"])
    while not subscription.is_live:
        await subscription.take()
    await publish(node, 4)
    with pytest.raises(SlowConsumer, match="more than 3"):
        await subscription.take()


async def test_no_reader_gets_a_larger_buffer_than_the_settings_allow(open_node: OpenNode) -> None:
    node = await open_node(buffer=3)
    subscription = await live(node, overflow="disconnect", buffer=1_000)
    await publish(node, 4)
    with pytest.raises(SlowConsumer, match="more than 3"):
        await subscription.take()


# --- what it costs others ------------------------------------------------------------------------


async def kept(node: Node, subscriptions: list[Subscription]) -> int:
    """Count the bytes of events that the node holds for its readers, each once."""
    channels = {id(channel): channel for s in subscriptions if (channel := s._channel) is not None}
    found = {
        id(message): len(message.body) + MESSAGE_OVERHEAD
        for channel in channels.values()
        for batch in channel.batches
        for message in batch.messages
    }
    return sum(found.values())


@pytest.mark.parametrize("overflow", POLICIES)
async def test_readers_that_stall_hold_no_more_than_the_tail(open_node: OpenNode, overflow: Overflow) -> None:
    limit = 200_000
    node = await open_node(tail_bytes=limit, page_size=10)
    stalled = [
        await live(node, pattern, overflow=overflow) for pattern in ("#", "a", "*", "a.#", "b") for _ in range(3)
    ]
    for _ in range(40):
        await node.submit([draft("a", bytes(2_000)) for _ in range(10)])
        await eventually(lambda: node.dispatcher.position == node.dispatcher.head)
        assert await kept(node, stalled) <= limit


@pytest.mark.parametrize("overflow", POLICIES)
async def test_a_reader_that_stalls_delays_neither_others_nor_publishers(
    open_node: OpenNode, overflow: Overflow
) -> None:
    node = await open_node(tail_bytes=65_536, buffer=10)
    stalled = await live(node, overflow=overflow)
    other = await live(node, overflow="catch_up")
    for seq in range(1, 201):
        async with asyncio.timeout(5):
            await node.submit([draft("a", bytes(1_000))])
            assert await read_seqs(other, 1) == [seq]
    stalled.close()


async def test_readers_in_history_do_not_hinder_each_other_or_publishers(open_node: OpenNode) -> None:
    node = await open_node(page_size=5)
    await node.submit(drafts(100))
    waiting = [await node.subscribe(["#"], "earliest") for _ in range(50)]  # more than the pool has connections
    for subscription in waiting:
        await subscription.take(limit=1)  # each is in the middle of its history, and stalls
    async with asyncio.timeout(5):
        await node.submit([draft()])
        assert await read_seqs(await node.subscribe(["#"], "earliest"), 101) == list(range(1, 102))
    assert in_use(node.store.engine) == 0
