"""Courtesy: what catches up lets live events pass."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from eventbus_fastapi.events import make_draft
from eventbus_fastapi.pipeline import courtesy
from eventbus_fastapi.pipeline.consumer import Consumer
from eventbus_fastapi.pipeline.consumers import Consumers
from eventbus_fastapi.pipeline.courtesy import PATIENCE, STEP, Courtesy
from eventbus_fastapi.pipeline.delivery import Delivery
from eventbus_fastapi.pipeline.node import GROUP_PAGE, Node
from eventbus_fastapi.pipeline.outcome import ACK
from tests.waiting import eventually

PAST = 5_000
"""Events that are more than a group reads ahead."""


async def test_where_nothing_live_is_under_way_it_costs_no_turn_of_the_loop() -> None:
    turns: list[None] = []
    asyncio.get_running_loop().call_soon(turns.append, None)
    await Courtesy(lambda: False).give_way()
    assert not turns


async def test_it_waits_until_the_live_event_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(courtesy, "PATIENCE", 60.0)
    looks = iter([True, True, True, False])
    await Courtesy(lambda: next(looks)).give_way()
    assert not list(looks)


async def test_it_waits_no_longer_than_it_has_worked() -> None:
    """However much is live, it keeps half of its pace."""
    looks: list[None] = []

    def is_always_busy() -> bool:
        looks.append(None)
        return True

    patient = Courtesy(is_always_busy)
    async with asyncio.timeout(5):
        await patient.give_way()
    assert len(looks) <= 3 + PATIENCE / STEP
    looks.clear()
    await patient.give_way()  # it has done nothing since
    assert len(looks) <= 5


async def test_two_steps_of_a_group_may_wait_together() -> None:
    is_busy = True
    patient = Courtesy(lambda: is_busy)
    waiting = [asyncio.create_task(patient.give_way()) for _ in range(2)]
    await asyncio.sleep(0)
    is_busy = False
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_a_group_that_catches_up_takes_nothing_while_a_live_event_is_under_way(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courtesy, "PATIENCE", 60.0)
    await node.submit([make_draft("a", number, max_payload=100) for number in range(PAST)])
    cursors: list[int] = []

    def is_live_under_way() -> bool:
        cursors.append(late.group.cursor)
        return len(cursors) < 10

    late, end = await _consume(node, is_live_under_way, after=0)
    assert len(await late.take(100)) == 100
    assert cursors[:10] == [0] * 10
    await end()


async def test_a_live_group_does_not_ask_whether_others_are(node: Node) -> None:
    asked: list[int] = []

    def is_live_under_way() -> bool:
        asked.append(live.group.cursor)
        return False

    live, end = await _consume(node, is_live_under_way, after=0)
    await eventually(lambda: live.is_live)
    asked.clear()
    await node.submit([make_draft("a", 1, max_payload=100)])
    assert len(await live.take(100)) == 1
    assert asked == []
    await end()


async def test_an_event_is_under_way_from_the_call_that_publishes_it_until_a_live_group_has_it(node: Node) -> None:
    live = await node.consume("live", ["a"], start="now")
    await eventually(lambda: live.is_live and not node.is_live_under_way())
    publishing = node.submit([make_draft("a", 1, max_payload=100)])
    assert node.is_live_under_way()
    await publishing
    taking = asyncio.create_task(live.take(1))
    await eventually(lambda: live.is_claiming or taking.done())
    assert node.is_live_under_way() or taking.done()
    await taking
    await eventually(lambda: not node.is_live_under_way())


async def test_where_nobody_reads_live_nothing_is_under_way(node: Node) -> None:
    """A group that falls behind its own publisher is held up by nobody."""
    publishing = node.submit([make_draft("a", 1, max_payload=100)])
    assert not node.is_live_under_way()
    await publishing


async def test_what_is_settled_is_gone_without_the_garbage_collector(node: Node) -> None:
    """Collecting each event that was handled would stop all others for milliseconds, many times a second."""
    consumer = await node.consume("billing", ["a"], start="now")
    await node.submit([make_draft("a", number, max_payload=100) for number in range(20)])
    gc.collect()
    gc.disable()
    try:
        await _handle(consumer, lambda count: count == 20)
        await eventually(lambda: node.consumers.settler.held == 0)
        left = [each for each in gc.get_objects() if isinstance(each, Delivery)]
    finally:
        gc.enable()
    assert left == []


async def _handle(consumer: Consumer, is_all: Callable[[int], bool]) -> None:
    count = 0
    while not is_all(count):
        for delivery in await consumer.take(10):
            consumer.settle(delivery, ACK)
            count += 1


async def _consume(
    node: Node, is_live_under_way: Callable[[], bool], *, after: int
) -> tuple[Consumer, Callable[[], Awaitable[None]]]:
    """Serve a group as the node does, with another view of what is under way; return also what ends that."""
    consumers = Consumers(
        node.store.groups,
        open_subscription=partial(node.subscribe, include_processed=True, overflow="catch_up", page_size=GROUP_PAGE),
        lease=30.0,
        is_live_under_way=is_live_under_way,
    )
    return consumers.open(await node.store.groups.ensure("billing", ["a"], after=after)), consumers.stop
