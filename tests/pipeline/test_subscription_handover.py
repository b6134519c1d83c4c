"""Replay into live, on every database, while two nodes publish: no hole, no double, one order for all.

The pauses and the places to begin are random; a failure names the seed that repeats them.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import Batch, CaughtUp
from eventbus_fastapi.pipeline.dispatcher import Dispatcher
from eventbus_fastapi.pipeline.node import Start
from eventbus_fastapi.pipeline.subscription import TAKE_BATCHES, Policy, Subscription
from eventbus_fastapi.store import Store
from eventbus_fastapi.topics import matches
from tests.conftest import OpenBus
from tests.drafts import drafts

TOPICS = ("a", "a.b", "a.b.c", "b", "b.c", "logs", "logs.x", "x.y.z")
PATTERNS = (["#"], ["a.#"], ["a.*", "*.c"], ["logs.#", "b"], ["x.y.z"], ["#.c", "a", "a.b"])
EVENTS = 240


async def pause(choice: random.Random) -> None:
    """Let others run: not at all, for a turn of the loop, or for a moment."""
    kind = choice.random()
    if kind < 0.3:
        await asyncio.sleep(0)
    elif kind < 0.5:
        await asyncio.sleep(choice.random() * 0.01)


async def publish(bus: EventBus, choice: random.Random, count: int) -> None:
    while count > 0:
        size = min(count, choice.choice((1, 1, 2, 5, 17)))
        await bus.publish_many([(choice.choice(TOPICS), None) for _ in range(size)])
        count -= size
        await pause(choice)


async def follow(bus: EventBus, subscription: Subscription, choice: random.Random, until: int) -> list[tuple[int, str]]:
    """Read to the end of the log, in takes of random sizes with random pauses; return the seqs and topics."""
    seen: list[tuple[int, str]] = []
    while True:
        limit = choice.choice((None, 1, 3, 50))
        try:
            async with asyncio.timeout(0.3):
                items = await subscription.take(limit)
        except TimeoutError:
            if subscription.is_live and bus.node.dispatcher.position >= until:
                break
            continue
        for item in items:
            if isinstance(item, Batch):
                seen += [(message.seq, message.topic) for message in item.messages]
        await pause(choice)
    subscription.close()
    return seen


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_every_reader_sees_what_matches_once_and_in_order(open_bus: OpenBus, seed: int) -> None:
    choice = random.Random(seed)
    settings: dict[str, Any] = {"poll_interval": 0.05, "page_size": choice.choice((3, 20, 1_000)), "tail_bytes": 65_536}
    buses = [await open_bus(**settings), await open_bus(**settings)]
    await publish(buses[0], choice, EVENTS // 4)

    async def read(number: int) -> tuple[list[str], int, list[tuple[int, str]]]:
        own = random.Random(seed * 1_000 + number)
        await asyncio.sleep(own.random() * 0.2)  # each begins at another moment
        bus, patterns = own.choice(buses), own.choice(PATTERNS)
        starts: tuple[Start, ...] = ("now", "earliest", own.randrange(EVENTS))
        start = own.choice(starts)
        subscription = await bus.node.subscribe(patterns, start)
        after = subscription.after
        return patterns, after, await follow(bus, subscription, own, EVENTS)

    writers = [
        asyncio.create_task(publish(bus, random.Random(seed + number), EVENTS * 3 // 8))
        for number, bus in enumerate(buses)
    ]
    answers = await asyncio.gather(*(read(number) for number in range(14)))
    await asyncio.gather(*writers)

    log = [(message.seq, message.topic) for message in (await buses[0].node.store.read(0, 1_000)).messages]
    assert [seq for seq, _ in log] == list(range(1, EVENTS + 1))
    for patterns, after, seen in answers:
        wanted = [
            (seq, topic) for seq, topic in log if seq > after and any(matches(pattern, topic) for pattern in patterns)
        ]
        assert seen == wanted, f"seed {seed}: {patterns} after {after}"


async def test_a_reader_that_comes_and_goes_resumes_by_its_seq_alone(open_bus: OpenBus) -> None:
    buses = [await open_bus(poll_interval=0.05), await open_bus(poll_interval=0.05)]
    choice = random.Random(7)
    writing = asyncio.create_task(publish(buses[0], choice, 300))
    after = turn = 0
    seen: list[int] = []
    async with asyncio.timeout(60):
        while after < 300:
            subscription = await buses[turn % 2].node.subscribe(["#"], after)
            turn += 1
            for _ in range(choice.randrange(1, 4)):
                for item in await subscription.take(choice.randrange(1, 30)):
                    if isinstance(item, Batch):
                        seen += [message.seq for message in item.messages]
                after = seen[-1] if seen else 0
                if after >= 300:
                    break
            subscription.close()
    await writing
    assert seen == list(range(1, 301))
    assert turn > 5


async def test_subscribers_on_two_nodes_see_one_order(open_bus: OpenBus) -> None:
    buses = [await open_bus(poll_interval=0.05), await open_bus(poll_interval=0.05)]
    readers = [(bus, await bus.node.subscribe(["#"])) for bus in (*buses, *buses)]
    await asyncio.gather(*(publish(bus, random.Random(number), 100) for number, bus in enumerate(buses)))
    answers = await asyncio.gather(*(follow(bus, subscription, random.Random(1), 200) for bus, subscription in readers))
    assert all(answer == answers[0] for answer in answers)
    assert [seq for seq, _ in answers[0]] == list(range(1, 201))


async def test_a_reader_that_joined_ahead_of_the_dispatcher_does_not_wait_behind_what_history_has_shown(
    store: Store,
) -> None:
    """More batches than it takes at once were nothing new to it, so it waited, though the next one was."""
    dispatcher = Dispatcher(store, page_size=1, tail_bytes=1_000_000)

    async def acknowledge(message: Message) -> None:
        raise AssertionError("nobody acknowledges")

    def subscribe(after: int) -> Subscription:
        return Subscription(
            ("#",),
            after,
            store=store,
            live=dispatcher,
            reads=asyncio.Semaphore(1),
            policy=Policy("catch_up", buffer=100, page_size=1),
            head=after,
            processed_before=0,
            acknowledge=acknowledge,
        )

    subscribe(0)
    seen = TAKE_BATCHES + 1
    await store.append(drafts(seen + 1))
    ahead = subscribe(seen)
    assert await ahead.take() == [CaughtUp(seen)]
    while await dispatcher.run_once() == 0:
        pass
    async with asyncio.timeout(60):
        (batch,) = await ahead.take()
    assert isinstance(batch, Batch)
    assert [message.seq for message in batch.messages] == [seen + 1]
