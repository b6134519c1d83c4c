"""What was asked for and is gone is said, once and exactly; what a TTL took is no gap."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from eventbus_fastapi.errors import LogGap
from eventbus_fastapi.pipeline.node import Node
from tests.drafts import draft, drafts
from tests.pipeline.conftest import OpenNode
from tests.pipeline.reading import CaughtUp, Gap, read_seqs, take_until
from tests.waiting import eventually


async def trim(node: Node, keep: int) -> None:
    while await node.store.trim(before=None, keep=keep):
        pass


async def test_what_retention_removed_before_it_began_is_a_gap(node: Node) -> None:
    await node.submit(drafts(10))
    await trim(node, keep=3)
    subscription = await node.subscribe(["#"], 2)
    assert await take_until(subscription, 10) == [Gap(3, 7, "retention"), 8, 9, 10, CaughtUp(10)]
    assert subscription.after == 7


async def test_the_gap_is_said_also_when_nothing_is_left(node: Node) -> None:
    await node.submit(drafts(4))
    await trim(node, keep=0)
    assert await take_until(await node.subscribe(["#"], 1), CaughtUp(4)) == [Gap(2, 4, "retention"), CaughtUp(4)]


@pytest.mark.parametrize("start", ["earliest", "now", 7, 10])
async def test_who_asks_for_nothing_that_is_gone_hears_of_no_gap(node: Node, start: Any) -> None:
    await node.submit(drafts(10))
    await trim(node, keep=3)
    subscription = await node.subscribe(["#"], start)
    found = await take_until(subscription, CaughtUp(10))
    assert not [item for item in found if isinstance(item, Gap)]


async def test_what_retention_removes_under_a_slow_reader_of_history_is_a_gap(open_node: OpenNode) -> None:
    node = await open_node(page_size=3)
    await node.submit(drafts(20))
    subscription = await node.subscribe(["#"], "earliest")
    assert await read_seqs(subscription, 2) == [1, 2]  # it has read its first page, up to 3
    await trim(node, keep=5)
    found = [3, *await take_until(subscription, 20)][1:]
    assert found == [Gap(4, 15, "retention"), 16, 17, 18, 19, 20, CaughtUp(20)]


async def test_a_gap_and_the_events_around_it_never_overlap(open_node: OpenNode) -> None:
    node = await open_node(page_size=4)
    await node.submit(drafts(60))
    subscription = await node.subscribe(["#"], "earliest")
    seen: list[Any] = []
    for keep in (50, 44, 30, 12, 3):
        seen += [seq for item in await subscription.take(2) for seq in getattr(item, "messages", [item])]
        await trim(node, keep)
    seen += await take_until(subscription, 60)
    covered: list[int] = []
    for item in seen:
        if isinstance(item, Gap):
            covered += range(item.first_seq, item.last_seq + 1)
        elif not isinstance(item, CaughtUp):
            covered.append(item if isinstance(item, int) else item.seq)
    assert covered == list(range(1, 61))


async def test_a_loop_over_messages_raises_the_gap_in_its_place_and_may_go_on(open_node: OpenNode) -> None:
    node = await open_node(page_size=3)
    await node.submit(drafts(12))
    subscription = await node.subscribe(["#"], "earliest")
    assert await read_seqs(subscription, 3) == [1, 2, 3]
    await trim(node, keep=2)
    with pytest.raises(LogGap, match=r"events 4 to 10 are not available \(retention\)"):
        await anext(subscription)
    assert await read_seqs(subscription, 2) == [11, 12]


async def test_a_loop_may_take_gaps_by_a_callback_instead(open_node: OpenNode) -> None:
    node = await open_node()
    await node.submit(drafts(12))
    await trim(node, keep=2)
    gaps: list[Gap] = []
    subscription = await node.subscribe(["#"], 3, on_gap=gaps.append)
    assert await read_seqs(subscription, 2) == [11, 12]
    assert gaps == [Gap(4, 10, "retention")]


async def test_a_live_reader_that_retention_overtakes_hears_of_the_gap(open_node: OpenNode) -> None:
    node = await open_node(tail_bytes=65_536)
    subscription = await node.subscribe(["#"])
    await take_until(subscription, CaughtUp(0))
    await take_until(await node.subscribe(["nothing.of.this"]), CaughtUp(0))  # so that the node goes on reading
    await node.submit([draft("a", bytes(5_000)) for _ in range(30)])
    for _ in range(3):  # enough for the first to leave the tail
        await node.submit([draft("a", bytes(5_000)) for _ in range(30)])
    await eventually(lambda: node.dispatcher.position == 120)
    await trim(node, keep=10)
    found = await take_until(subscription, 120)
    (gap,) = [item for item in found if isinstance(item, Gap)]
    seqs = [item for item in found if isinstance(item, int)]
    assert gap.reason == "retention"
    assert [*range(1, gap.first_seq), *range(gap.last_seq + 1, 121)] == seqs


async def test_what_a_ttl_removed_is_no_gap(node: Node) -> None:
    await node.submit([draft(ttl=1e-6), draft(), draft(ttl=1e-6), draft(ttl=1e-6), draft(), draft(ttl=1e-6)])

    async def is_removed() -> bool:
        await node.store.remove_expired()
        async with node.store.engine.connect() as connection:
            return bool((await connection.exec_driver_sql("SELECT count(*) FROM bus_event")).scalar_one() == 2)

    await eventually(is_removed)
    assert await take_until(await node.subscribe(["#"], 0), CaughtUp(6)) == [2, 5, CaughtUp(6)]


# --- another log ---------------------------------------------------------------------------------


async def test_a_seq_of_another_log_means_nothing_here(node: Node) -> None:
    await node.submit(drafts(5))
    subscription = await node.subscribe(["#"], 3, epoch=uuid4())
    found = await take_until(subscription, CaughtUp(5))
    assert isinstance(found[0], Gap)
    assert found[0] == Gap(0, 0, "epoch")  # nothing of this log is missing
    assert found[1:] == [1, 2, 3, 4, 5, CaughtUp(5)]


async def test_a_seq_of_this_log_is_taken_as_it_is(node: Node) -> None:
    await node.submit(drafts(5))
    epoch = (await node.head()).epoch
    assert await take_until(await node.subscribe(["#"], 3, epoch=epoch), CaughtUp(5)) == [4, 5, CaughtUp(5)]
