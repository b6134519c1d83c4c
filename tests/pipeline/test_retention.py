"""Retention removes what is expired, too old or too many, batch by batch."""

from __future__ import annotations

import pytest

from eventbus_fastapi.pipeline.retention import BATCH, Retention
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.archive import ArchiveFilter
from eventbus_fastapi.store.group import Death, Ending, Settlement
from eventbus_fastapi.unique import Unique
from tests.drafts import draft, drafts
from tests.waiting import eventually


def retention(store: Store, **settings: float) -> Retention:
    return Retention(store, Settings(**{"retention_interval": 7.0, **settings}))


async def seqs(store: Store) -> list[int]:
    return [message.seq for message in (await store.read(0, 10_000)).messages]


async def test_by_default_nothing_is_removed(store: Store) -> None:
    await store.append(drafts(3))
    assert await retention(store).run_once() == 7.0
    assert await seqs(store) == [1, 2, 3]


async def test_a_number_of_events_is_kept(store: Store) -> None:
    await store.append(drafts(30))
    await retention(store, retention_count=4).run_once()
    assert await seqs(store) == [27, 28, 29, 30]


async def test_events_beyond_an_age_go(store: Store) -> None:
    await store.append(drafts(3))
    stage = retention(store, retention_age=0.001)

    async def is_empty() -> bool:
        await stage.run_once()
        return await seqs(store) == []

    await eventually(is_empty)


async def test_younger_events_stay(store: Store) -> None:
    await store.append(drafts(3))
    await retention(store, retention_age=3_600).run_once()
    assert await seqs(store) == [1, 2, 3]


async def test_what_is_not_unique_any_more_is_forgotten(store: Store) -> None:
    await store.unique.append([draft(unique=Unique()), draft("b", unique=Unique(within=60))])
    assert await retention(store).run_once() == 7.0
    async with store.engine.connect() as connection:
        rows = await connection.exec_driver_sql("SELECT until IS NULL FROM bus_unique")
        assert rows.scalars().all() == [0]


async def test_the_archive_and_dead_letters_go_beyond_ages_of_their_own(store: Store) -> None:
    await store.append(drafts(2))
    group = await store.groups.ensure("g", ["#"], after=0)
    messages = (await store.read(0, 2)).messages
    claim = await store.groups.claim(group, messages, up_to=2, owner="one", lease=60)
    assert claim is not None
    endings = [Ending(message, "acked", 1, None, "one", []) for message in messages]
    dead = [Death(seq, 1, []) for seq in (1, 2)]
    await store.groups.settle([Settlement(group.id, claim.token, dead=dead, pending=(), endings=endings)])

    async def kept() -> tuple[int, int]:
        archive = await store.archive.find(group, ArchiveFilter())
        return len(archive.entries), len(await store.groups.dead_letters(group))

    assert await retention(store).run_once() == 7.0
    assert await kept() == (2, 2)
    old = retention(store, archive_age=0.001)

    async def has_gone() -> bool:
        await old.run_once()
        return await kept() == (0, 2)

    await eventually(has_gone)
    await retention(store, dead_letter_age=0.001).run_once()
    assert await kept() == (0, 0)


async def test_expired_events_go_without_any_setting(store: Store) -> None:
    await store.append([draft(ttl=1e-6), draft()])
    stage = retention(store)

    async def is_removed() -> bool:
        await stage.run_once()
        async with store.engine.connect() as connection:
            rows = await connection.exec_driver_sql("SELECT seq FROM bus_event")
            return rows.scalars().all() == [2]

    await eventually(is_removed)


async def test_events_that_a_group_has_not_read_stay(store: Store) -> None:
    await store.groups.ensure("slow", ["#"], after=2)
    await store.append(drafts(30))
    await retention(store, retention_count=4).run_once()
    assert await seqs(store) == list(range(3, 31))


async def test_events_beyond_the_limit_go_though_a_group_has_not_read_them(store: Store) -> None:
    await store.groups.ensure("slow", ["#"], after=2)
    await store.append(drafts(30))
    await retention(store, retention_count=4, retention_group_limit=3_600).run_once()
    assert await seqs(store) == list(range(3, 31))
    stage = retention(store, retention_count=4, retention_group_limit=0.001)

    async def are_gone() -> bool:
        await stage.run_once()
        return await seqs(store) == [27, 28, 29, 30]

    await eventually(are_gone)


async def test_the_limit_alone_removes_nothing(store: Store) -> None:
    await store.groups.ensure("slow", ["#"], after=0)
    await store.append(drafts(3))
    await retention(store, retention_group_limit=0.000_001).run_once()
    assert await seqs(store) == [1, 2, 3]


@pytest.mark.parametrize("extra", [0, 1])
async def test_while_a_batch_was_full_it_comes_back_at_once(store: Store, extra: int) -> None:
    await store.append(drafts(BATCH + extra + 1))
    stage = retention(store, retention_count=1)
    assert await stage.run_once() == 0.01
    assert await stage.run_once() == 7.0
    assert await seqs(store) == [BATCH + extra + 1]
