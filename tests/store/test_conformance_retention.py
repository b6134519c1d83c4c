"""Every store: what is too old, too many or expired goes; the head says where the log begins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from eventbus_fastapi.store import Store
from tests.drafts import draft, drafts
from tests.store.conftest import OpenStore
from tests.waiting import eventually


async def seqs(store: Store) -> list[int]:
    return [message.seq for message in (await store.read(0, 10_000)).messages]


async def later(store: Store) -> int:
    """Return a time of the database's clock that is past everything in the log and before everything that follows."""
    time = await store.now() + 1

    async def has_passed() -> bool:
        return await store.now() > time

    await eventually(has_passed)
    return time


def removing(work: Callable[[], Awaitable[int]], expected: int) -> Callable[[], Awaitable[bool]]:
    """Remove again and again, until as much as expected has gone."""
    total = 0

    async def look() -> bool:
        nonlocal total
        total += await work()
        return total == expected

    return look


async def test_by_count_the_newest_are_kept(store: Store) -> None:
    await store.append(drafts(10))
    assert await store.trim(before=None, keep=4) == 6
    assert await seqs(store) == [7, 8, 9, 10]
    assert (await store.head())[:2] == (10, 7)
    assert await store.trim(before=None, keep=4) == 0


async def test_a_count_beyond_the_log_removes_nothing(store: Store) -> None:
    await store.append(drafts(3))
    assert await store.trim(before=None, keep=3) == 0
    assert await store.trim(before=None, keep=100) == 0
    assert (await store.head())[:2] == (3, 1)


async def test_by_age_what_entered_before_a_time_goes(store: Store) -> None:
    await store.append(drafts(3))
    time = await later(store)
    await store.append(drafts(2))
    assert await store.trim(before=time, keep=None) == 3
    assert await seqs(store) == [4, 5]
    assert (await store.head())[:2] == (5, 4)


async def test_age_and_count_each_remove_what_is_theirs(store: Store) -> None:
    await store.append(drafts(3))
    time = await later(store)
    await store.append(drafts(4))
    assert await store.trim(before=time, keep=6) == 3  # the age asks for more
    await store.append(drafts(2))
    assert await store.trim(before=time, keep=2) == 4  # the count does
    assert await seqs(store) == [8, 9]


async def test_everything_may_go_and_seqs_go_on(store: Store) -> None:
    await store.append(drafts(3))
    assert await store.trim(before=await later(store), keep=None) == 3
    assert (await store.head())[:2] == (3, 4)
    assert await seqs(store) == []
    await store.append([draft()])
    assert await seqs(store) == [4]
    assert (await store.head())[:2] == (4, 4)


async def test_it_goes_in_batches_oldest_first(store: Store) -> None:
    await store.append(drafts(25))
    assert await store.trim(before=None, keep=5, limit=8) == 8
    assert (await store.head()).first_seq == 9
    assert await store.trim(before=None, keep=5, limit=8) == 8
    assert await store.trim(before=None, keep=5, limit=8) == 4
    assert await store.trim(before=None, keep=5, limit=8) == 0
    assert await seqs(store) == [21, 22, 23, 24, 25]


async def test_two_nodes_may_trim_while_others_append(store: Store, open_another: OpenStore) -> None:
    other = await open_another()
    await store.append(drafts(100))

    async def trim(node: Store) -> None:
        for _ in range(10):
            await node.trim(before=None, keep=50, limit=10)

    async def write() -> None:
        for _ in range(10):
            await store.append(drafts(5))

    await asyncio.gather(trim(store), trim(other), write())
    head = await store.head()
    assert head.last_seq == 150
    assert 51 <= head.first_seq <= 101
    assert await seqs(store) == list(range(head.first_seq, 151))


async def test_expired_events_are_removed_and_the_others_stay(store: Store) -> None:
    await store.append([draft(ttl=1e-6), draft(), draft(ttl=3_600), draft(ttl=1e-6)])
    await eventually(removing(store.remove_expired, 2))
    assert await seqs(store) == [2, 3]


async def test_a_ttl_is_no_retention_so_the_log_still_begins_where_it_did(store: Store) -> None:
    await store.append([draft(ttl=1e-6), draft()])
    await eventually(removing(store.remove_expired, 1))
    assert (await store.head())[:2] == (2, 1)


async def test_expired_events_go_in_batches(store: Store) -> None:
    await store.append(drafts(7, ttl=1e-6))

    async def remove() -> int:
        removed = await store.remove_expired(3)
        assert removed <= 3
        return removed

    await eventually(removing(remove, 7))
    assert await seqs(store) == []


@pytest.mark.parametrize("count", [1_000, 1_700])
async def test_a_count_counts_seqs_also_where_a_ttl_left_holes(store: Store, count: int) -> None:
    await store.append([draft(ttl=1e-6 if number % 2 else None) for number in range(count)])

    async def remove() -> int:
        return await store.remove_expired(10_000)

    await eventually(removing(remove, count // 2))
    while await store.trim(before=None, keep=10, limit=300):
        pass
    assert await seqs(store) == list(range(count - 9, count + 1, 2))
