"""The steward: what it refuses, and what a node that serves a group makes of what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from eventbus_fastapi.errors import GroupNotFound, InvalidEvent, InvalidGroup, InvalidPattern, NotRunning
from eventbus_fastapi.pipeline.filters import dead_filter
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.outcome import Ack
from eventbus_fastapi.pipeline.retention import Retention
from eventbus_fastapi.pipeline.steward import Steward
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.group import Group
from tests.drafts import drafts
from tests.pipeline.conftest import OpenNode
from tests.waiting import eventually


async def take_one(node: Node, name: str) -> int:
    """Return the seq of the next event of a group, acked."""
    consumer = await node.consume(name, ["#"], start="earliest")
    (delivery,) = await consumer.take(1)
    await consumer.settle_and_tell(delivery, Ack())
    await node.consumers.close(consumer)
    return delivery.message.seq


@pytest.mark.parametrize(
    ("declared", "error", "words"),
    [
        ({"patterns": []}, InvalidGroup, "at least one pattern"),
        ({"patterns": ["a..b"]}, InvalidPattern, "segment 2"),
        ({"name": "a b"}, InvalidGroup, "without spaces"),
        ({"ordered_by": "topic"}, InvalidGroup, "'key' or None, got 'topic'"),
        ({"max_attempts": 0}, InvalidGroup, "max_attempts must be an int ≥ 1, got 0"),
        ({"max_attempts": True}, InvalidGroup, "got True"),
        ({"start": 7}, InvalidGroup, "the log ends at 0"),
        ({"start": "then"}, InvalidEvent, "start must be"),
        ({"start": datetime(2026, 1, 1)}, InvalidEvent, "no time zone"),  # noqa: DTZ001
    ],
)
async def test_a_group_that_cannot_be_is_refused_and_not_made(
    store: Store, declared: dict[str, Any], error: type[Exception], words: str
) -> None:
    steward = Steward(store)
    with pytest.raises(error, match=words):
        await steward.declare(**{"name": "g", "patterns": ["#"], **declared})
    assert await steward.groups() == []


async def test_a_declared_group_has_the_default_number_of_attempts(store: Store) -> None:
    status = await Steward(store).declare("g", ["a", "a"])
    assert (status.group.patterns, status.group.max_attempts, status.figures.dead) == (("a",), 10, 0)


async def test_a_group_that_is_not_there_is_not_found(store: Store) -> None:
    steward = Steward(store)
    for work in (steward.group, steward.retries, steward.blocked_keys, steward.dead_letters):
        with pytest.raises(GroupNotFound):
            await work("nobody")
    for change in (steward.retry_matching, steward.discard_matching):
        with pytest.raises(GroupNotFound):
            await change("nobody", dead_filter())


def test_a_filter_needs_a_time_zone() -> None:
    with pytest.raises(InvalidGroup, match="died_after must have a time zone, got '2026-01-01T00:00:00'"):
        dead_filter(died_after=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_filter_counts_microseconds_exactly() -> None:
    wanted = dead_filter("a", "a", died_after=datetime(2026, 1, 1, 0, 0, 0, 1, tzinfo=UTC))
    assert (wanted.patterns, wanted.since) == (("a",), 1_767_225_600_000_001)


async def test_on_a_node_it_needs_the_node_to_run(node: Node) -> None:
    await node.stop()
    with pytest.raises(NotRunning):
        await node.steward.groups()


async def test_a_group_that_another_process_pauses_and_resumes_goes_on_where_it_was(
    open_node: OpenNode, tmp_path: Any
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/eventbus.db"
    node, other = await open_node(database_url=url), await open_node(database_url=url)
    consumer = await node.consume("g", ["#"])
    await other.steward.pause("g")
    await node.submit(drafts(2))
    await eventually(lambda: consumer.group.is_paused)
    await other.steward.resume("g")
    taken = [(await consumer.take(1))[0].message.seq for _ in range(2)]
    assert taken == [1, 2]


async def test_a_group_that_another_process_resets_reads_again(open_node: OpenNode, tmp_path: Any) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/eventbus.db"
    node, other = await open_node(database_url=url), await open_node(database_url=url)
    consumer = await node.consume("g", ["#"])
    await node.submit(drafts(2))
    first = [(await consumer.take(1))[0] for _ in range(2)]
    await other.steward.reset("g", "earliest")
    again = [(await consumer.take(1))[0].message.seq for _ in range(2)]
    assert ([delivery.message.seq for delivery in first], again) == ([1, 2], [1, 2])


async def test_a_group_that_is_overtaken_goes_on_with_what_is_left_and_counts_what_it_lost(node: Node) -> None:
    await node.steward.declare("g", ["#"])
    await node.submit(drafts(5))
    stage = Retention(node.store, Settings(retention_count=2, retention_group_limit=0.000_001))

    async def has_removed() -> bool:
        await stage.run_once()
        return (await node.store.head()).first_seq == 4

    await eventually(has_removed)
    assert await take_one(node, "g") == 4
    assert (await node.steward.group("g")).group.lost == 3


async def test_whoever_takes_from_groups_that_are_deleted_is_told_and_the_others_go_on(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    deleted = [await node.consume(name, ["#"]) for name in ("one", "two")]
    taking = [asyncio.ensure_future(consumer.take(1)) for consumer in deleted]
    for consumer in deleted:
        await node.steward.delete(consumer.group.name)
    for take in taking:
        with pytest.raises(GroupNotFound):
            await asyncio.wait_for(take, 10)
    await node.consumers._rescuer.run_once()
    assert "failed" not in caplog.text


async def test_a_group_that_another_process_declares_anew_loses_nothing_to_who_knows_the_old_patterns(
    open_node: OpenNode, tmp_path: Any
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/eventbus.db"
    node, other = await open_node(database_url=url), await open_node(database_url=url)
    consumer = await node.consume("g", ["a"])
    await other.steward.declare("g", ["a", "b"])
    await node.submit(drafts(1, topic="b"))
    await node.submit(drafts(1, topic="a"))
    assert [(await consumer.take(1))[0].message.topic for _ in range(2)] == ["b", "a"]


async def test_a_group_that_is_reset_while_its_subscription_opens_reads_again_from_there(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began to read after its old place, and its first claim moved it over all that it was to read again."""
    await node.submit(drafts(2))
    assert [await take_one(node, "g") for _ in range(2)] == [1, 2]
    opens, goes_on = node.consumers._open_subscription, asyncio.Event()

    async def open_slowly(patterns: Sequence[str], after: int) -> Subscription:
        subscription = await opens(patterns, after)
        await goes_on.wait()
        return subscription

    monkeypatch.setattr(node.consumers, "_open_subscription", open_slowly)
    consumer = await node.consume("g", ["#"])
    await node.steward.reset("g", "earliest")
    await eventually(lambda: consumer.group.cursor == 0)
    goes_on.set()
    await node.submit(drafts(1))
    assert [(await consumer.take(1))[0].message.seq for _ in range(3)] == [1, 2, 3]


async def test_what_comes_after_a_gap_is_not_passed_over_while_the_gap_is_counted(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    await node.submit(drafts(5))
    while (await node.store.head()).first_seq < 4:
        await node.store.trim(before=None, keep=2, overtake=None, limit=10)
    group = await node.store.groups.ensure("g", ["#"], after=0)
    pass_over = node.store.groups.pass_over

    async def pass_over_late(group: Group, first_seq: int) -> Group:
        consumer._passed_over_at = float("-inf")
        await node.consumers._rescuer.run_once()
        return await pass_over(group, first_seq)

    monkeypatch.setattr(node.store.groups, "pass_over", pass_over_late)
    consumer = node.consumers.open(group)
    assert [(await consumer.take(1))[0].message.seq for _ in range(2)] == [4, 5]
    assert (await node.steward.group("g")).group.lost == 3


async def test_a_consumer_ends_soon_though_the_database_does_not_answer(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        claims.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(node.store.groups, "claim", hang)
    consumer = await node.consume("g", ["#"])
    await node.submit(drafts(1))
    taking = asyncio.ensure_future(consumer.take(1))
    await asyncio.wait_for(claims.wait(), 10)
    async with asyncio.timeout(10):
        await node.consumers.close(consumer)
    with pytest.raises((NotRunning, asyncio.CancelledError)):
        await taking
