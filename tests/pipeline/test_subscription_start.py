"""A subscription begins where it was asked to, reads history, then live, and says where one becomes the other."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventbus_fastapi.errors import InvalidEvent, InvalidPattern, NotRunning
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Batch
from eventbus_fastapi.pipeline.node import Node
from tests.drafts import draft, drafts
from tests.pipeline.conftest import OpenNode
from tests.pipeline.reading import CaughtUp, read, read_payloads, read_seqs, take_until
from tests.waiting import eventually


async def publish(node: Node, *topics: str) -> None:
    await node.submit([draft(topic) for topic in topics])


async def next_moment(node: Node) -> None:
    """Wait until the database's clock, which may have milliseconds only, shows another time."""
    before = await node.store.now()

    async def has_passed() -> bool:
        return await node.store.now() > before + 2_000

    await eventually(has_passed)


async def test_from_now_on_only_what_follows_is_read(node: Node) -> None:
    await publish(node, "a", "a")
    subscription = await node.subscribe(["a"])
    await publish(node, "a")
    assert await read_seqs(subscription, 1) == [3]
    assert subscription.after == 2


async def test_it_is_in_place_when_it_is_open_though_nobody_has_read_yet(node: Node) -> None:
    subscription = await node.subscribe(["#"])
    await publish(node, "a", "b")
    assert await read_seqs(subscription, 2) == [1, 2]


async def test_from_the_earliest_everything_is_read(node: Node) -> None:
    await publish(node, "a", "b", "a")
    subscription = await node.subscribe(["#"], "earliest")
    assert await read_seqs(subscription, 3) == [1, 2, 3]
    assert subscription.after == 0


async def test_from_a_seq_what_comes_after_it_is_read(node: Node) -> None:
    await publish(node, *"abcde")
    subscription = await node.subscribe(["#"], 3)
    assert await read_seqs(subscription, 2) == [4, 5]
    await publish(node, "f")
    assert await read_seqs(subscription, 1) == [6]


async def test_from_a_time_it_begins_with_the_first_event_at_or_after_it(node: Node) -> None:
    messages: list[Message] = []
    for _ in range(3):
        await publish(node, "a")
        messages.append((await node.get(len(messages) + 1)).message)
        await next_moment(node)
    subscription = await node.subscribe(["#"], messages[1].timestamp)
    assert await read_seqs(subscription, 2) == [2, 3]
    in_another_zone = messages[2].timestamp.astimezone(tz=None) + timedelta(milliseconds=-1)
    assert await read_seqs(await node.subscribe(["#"], in_another_zone), 1) == [3]


async def test_from_a_time_before_the_log_everything_is_read(node: Node) -> None:
    await publish(node, "a", "b")
    assert await read_seqs(await node.subscribe(["#"], datetime(1980, 1, 1, tzinfo=UTC)), 2) == [1, 2]


async def test_from_a_time_to_come_only_what_follows_is_read(node: Node) -> None:
    await publish(node, "a", "b")
    subscription = await node.subscribe(["#"], datetime(2100, 1, 1, tzinfo=UTC))
    await publish(node, "c")
    assert await read_seqs(subscription, 1) == [3]


async def test_from_a_seq_to_come_it_waits_for_what_follows_that(node: Node) -> None:
    await publish(node, "a")
    subscription = await node.subscribe(["#"], 3)
    await publish(node, *"bcde")
    assert await read_seqs(subscription, 2) == [4, 5]


async def test_who_waits_for_a_seq_far_away_delays_nobody(node: Node) -> None:
    await node.subscribe(["#"], 2**62)
    far = await node.subscribe(["#"], 10**9)
    waiting = asyncio.create_task(far.take())
    one, other = await node.subscribe(["a"]), await node.subscribe(["#"], "earliest")
    await publish(node, "a", "a")
    assert await read_seqs(one, 2) == [1, 2]
    assert await read_seqs(other, 2) == [1, 2]
    waiting.cancel()


@pytest.mark.parametrize("start", [-1, True, "later", None, 1.5, datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)])
async def test_any_other_start_is_refused_with_what_was_expected(node: Node, start: Any) -> None:
    with pytest.raises(InvalidEvent, match="start"):
        await node.subscribe(["#"], start)


@pytest.mark.parametrize("pattern", ["", "a..b", "a b", "a.**", "#a"])
async def test_a_pattern_must_follow_the_grammar(node: Node, pattern: str) -> None:
    with pytest.raises(InvalidPattern):
        await node.subscribe(["fine", pattern])


async def test_a_stopped_node_has_no_subscriptions(open_node: OpenNode) -> None:
    node = await open_node()
    await node.stop()
    with pytest.raises(NotRunning):
        await node.subscribe(["#"])


# --- patterns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["now", "earliest"])
async def test_history_and_live_agree_on_what_matches(node: Node, start: Any) -> None:
    topics = ["logs", "logs.app", "logs.app.error", "log", "user.created", "a.logs"]
    patterns = {"logs.#": [1, 2, 3], "logs.*": [2], "*": [1, 4], "#.error": [3], "*.logs": [6], "user.created": [5]}
    if start == "earliest":
        await publish(node, *topics)
    subscriptions = {pattern: await node.subscribe([pattern], start) for pattern in patterns}
    if start == "now":
        await publish(node, *topics)
    for pattern, expected in patterns.items():
        assert await read_seqs(subscriptions[pattern], len(expected)) == expected, pattern


async def test_several_patterns_give_each_event_once(node: Node) -> None:
    await publish(node, "a.b", "a.c", "d")
    subscription = await node.subscribe(["a.*", "*.b", "a.b", "a.*"], "earliest")
    await publish(node, "a.b", "d")
    assert await read_seqs(subscription, 3) == [1, 2, 4]
    assert subscription.patterns == ("a.*", "*.b", "a.b")


# --- history and live ----------------------------------------------------------------------------


async def test_it_says_where_history_ends(node: Node) -> None:
    await publish(node, "a", "b", "a")
    subscription = await node.subscribe(["a"], "earliest")
    assert await take_until(subscription, CaughtUp(3)) == [1, 3, CaughtUp(3)]
    assert subscription.is_live
    await publish(node, "a")
    assert await take_until(subscription, 4) == [4]


async def test_from_now_on_it_is_caught_up_at_once(node: Node) -> None:
    await publish(node, "a")
    assert await take_until(await node.subscribe(["#"]), CaughtUp(1)) == [CaughtUp(1)]


async def test_history_of_many_pages_comes_in_order(open_node: OpenNode) -> None:
    node = await open_node(page_size=7)
    await node.submit(drafts(100))
    assert await read_payloads(await node.subscribe(["#"], "earliest"), 100) == list(range(1, 101))


async def test_a_rare_event_is_found_behind_pages_of_others(open_node: OpenNode) -> None:
    node = await open_node(page_size=5)
    await publish(node, *(["other"] * 30), "rare", *(["other"] * 30))
    subscription = await node.subscribe(["rare"], "earliest")
    assert await take_until(subscription, CaughtUp(61)) == [31, CaughtUp(61)]


async def test_two_readers_of_one_pattern_get_the_same_events_wherever_they_begin(open_node: OpenNode) -> None:
    node = await open_node(page_size=3)
    await node.submit(drafts(10))
    subscriptions = [await node.subscribe(["#"], start) for start in (0, 4, 9, 10)]
    await node.submit(drafts(5))
    for subscription in subscriptions:
        after = subscription.after
        assert await read_seqs(subscription, 15 - after) == list(range(after + 1, 16))


async def test_what_expired_in_the_past_is_passed_over(node: Node) -> None:
    await node.submit([draft(payload="over", ttl=1e-6), draft(payload="kept", ttl=3_600), draft(payload="ever")])
    await next_moment(node)
    subscription = await node.subscribe(["#"], "earliest")
    assert await read_payloads(subscription, 2) == ["kept", "ever"]


async def test_position_says_how_far_it_has_looked(node: Node) -> None:
    await publish(node, "a", "b", "b")
    subscription = await node.subscribe(["a"], "earliest")
    await take_until(subscription, CaughtUp(3))
    assert subscription.position == 3


# --- reading it ----------------------------------------------------------------------------------


async def test_a_message_carries_everything_of_its_event(node: Node) -> None:
    event = draft("a.b", {"x": [1, None]}, key="k", metadata={"trace": "t"}, ttl=60)
    await node.submit([event])
    (message,) = await read(await node.subscribe(["#"], "earliest"), 1)
    assert (message.seq, message.topic, message.key, message.payload) == (1, "a.b", "k", {"x": [1, None]})
    assert (message.message_id, message.metadata) == (event.message_id, {"trace": "t"})
    assert abs(message.timestamp - datetime.now(UTC)) < timedelta(minutes=1)
    assert message.is_durable


@pytest.mark.parametrize("start", ["now", "earliest"])
async def test_take_returns_no_more_events_than_asked_for_and_loses_none(node: Node, start: Any) -> None:
    if start == "earliest":
        await node.submit(drafts(10))
    subscription = await node.subscribe(["#"], start)
    if start == "now":
        await node.submit(drafts(10))
    sizes: list[int] = []
    seen: list[int] = []
    while len(seen) < 10:
        items = await subscription.take(limit=3)
        seqs = [message.seq for item in items if isinstance(item, Batch) for message in item.messages]
        sizes.append(len(seqs))
        seen += seqs
    assert seen == list(range(1, 11))
    assert max(sizes) == 3


async def test_readers_of_the_same_patterns_share_their_batches(node: Node) -> None:
    one, two = await node.subscribe(["#"]), await node.subscribe(["#"])
    for subscription in (one, two):
        await take_until(subscription, CaughtUp(0))
    await node.submit(drafts(5))
    assert (await one.take())[0] is (await two.take())[0]


async def test_closing_ends_the_loop_over_its_messages(node: Node) -> None:
    subscription = await node.subscribe(["#"])

    async def loop() -> list[Message]:
        return [message async for message in subscription]

    reading = asyncio.create_task(loop())
    await publish(node, "a")
    await eventually(lambda: subscription.position == 1)
    subscription.close()
    assert [message.seq for message in await reading] == [1]


async def test_stopping_the_node_ends_the_loop_over_its_messages(open_node: OpenNode) -> None:
    node = await open_node()
    subscription = await node.subscribe(["#"])

    async def loop() -> list[Message]:
        return [message async for message in subscription]

    reading = asyncio.create_task(loop())
    await publish(node, "a")
    await eventually(lambda: subscription.position == 1)
    await node.stop()
    assert [message.seq for message in await reading] == [1]


async def test_a_read_that_is_cancelled_loses_nothing(open_node: OpenNode) -> None:
    node = await open_node(page_size=4)
    await node.submit(drafts(40))
    subscription = await node.subscribe(["#"], "earliest")
    seen: list[int] = []

    async def read_on() -> None:
        while True:
            for item in await subscription.take(limit=2):
                if isinstance(item, Batch):
                    seen.extend(message.seq for message in item.messages)

    turn = 0
    while len(seen) < 50:
        turn += 1
        reading = asyncio.create_task(read_on())
        for _ in range(turn % 13):
            await asyncio.sleep(0)
        if turn % 3 == 0:
            await asyncio.sleep(0.003)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        if turn == 20:
            await node.submit(drafts(10))
    assert seen == list(range(1, 51))
