"""Queues and the processes that serve them, on every store."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from eventbus_fastapi.errors import InvalidQueue
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.queues import Control
from eventbus_fastapi.store.roster import FORGET_AFTER, SILENCE, Serving

SERVED = {"größe": Serving(10, 3, False, ("shop.mail", "shop.audit")), "audit": Serving(1, 0, True, ())}


async def see(store: Store, worker_id: str, **changed: Any) -> None:
    await store.roster.see(worker_id, SERVED, **{"host": "web-1", "pid": 4711, "age": 0, **changed})


async def make_silent(store: Store, seconds: float) -> None:
    """Have all processes last seen so long ago."""
    worker = store.tables.worker

    async def work(connection: Any) -> None:
        await connection.execute(update(worker).values(seen_at=worker.c.seen_at - round(seconds * 1_000_000)))

    await store.transact(work)


async def test_a_queue_of_which_nothing_is_said_is_not_there(store: Store) -> None:
    await store.queues.resume("email")
    await store.queues.scale("email", None)
    assert await store.queues.controls() == {}


async def test_a_queue_is_paused_until_it_is_resumed(store: Store) -> None:
    for _ in range(2):
        await store.queues.pause("email")
    assert await store.queues.controls() == {"email": Control(None, True)}
    await store.queues.resume("email")
    assert await store.queues.controls() == {}


async def test_a_queue_is_scaled_and_back(store: Store) -> None:
    for workers in (2, 10, 10):
        await store.queues.scale("email", workers)
    assert await store.queues.controls() == {"email": Control(10, False)}
    await store.queues.scale("email", None)
    assert await store.queues.controls() == {}


async def test_a_pause_and_a_number_of_workers_do_not_touch_each_other(store: Store) -> None:
    await store.queues.pause("Email")
    await store.queues.scale("Email", 3)
    await store.queues.scale("email", 4)
    assert await store.queues.controls() == {"Email": Control(3, True), "email": Control(4, False)}
    await store.queues.resume("Email")
    assert (await store.queues.controls())["Email"] == Control(3, False)
    await store.queues.pause("Email")
    await store.queues.scale("Email", None)
    assert (await store.queues.controls())["Email"] == Control(None, True)


async def test_several_may_say_the_first_word_at_the_same_time(store: Store) -> None:
    await asyncio.gather(*(store.queues.pause("email") for _ in range(4)), store.queues.scale("email", 2))
    assert await store.queues.controls() == {"email": Control(2, True)}


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 256, "ü" * 128, "a\0", "\ud800", 5])
async def test_a_name_that_no_queue_can_have_is_refused(store: Store, name: Any) -> None:
    for call in (store.queues.pause(name), store.queues.resume(name), store.queues.scale(name, 1)):
        with pytest.raises(InvalidQueue, match="the name of a queue must be 1 to 255 bytes"):
            await call


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("workers", [0, 1_001, -1, 2.0, True, "5"])
async def test_a_number_of_workers_out_of_range_is_refused(store: Store, workers: Any) -> None:
    with pytest.raises(InvalidQueue, match="workers must be an integer from 1 to 1,000 or None"):
        await store.queues.scale("email", workers)
    assert await store.queues.controls() == {}


async def test_a_process_is_on_the_roster_from_its_start_to_its_end(store: Store) -> None:
    await see(store, "one", age=60.0)
    (worker,) = await store.roster.all()
    assert (worker.id, worker.host, worker.pid, worker.queues) == ("one", "web-1", 4711, SERVED)
    assert worker.seen_at - worker.started_at == pytest.approx(60_000_000, abs=10_000_000)
    assert (worker.is_alive, worker.age < SILENCE) == (True, True)
    await store.roster.forget("one")
    assert await store.roster.all() == []


async def test_a_process_that_is_seen_again_keeps_its_start(store: Store) -> None:
    await see(store, "one")
    await make_silent(store, 60)
    (before,) = await store.roster.all()
    await store.roster.see("one", {}, host="web-1", pid=4711, age=60)
    (after,) = await store.roster.all()
    assert (after.started_at, after.queues) == (before.started_at, {})
    assert after.seen_at > before.seen_at
    assert (before.is_alive, after.is_alive) == (False, True)


async def test_who_was_silent_for_minutes_is_forgotten_by_whoever_looks(store: Store) -> None:
    await see(store, "dead")
    await make_silent(store, FORGET_AFTER + 1)
    await see(store, "alive")
    assert [worker.id for worker in await store.roster.all()] == ["alive"]
    async with store.engine.connect() as connection:
        rows = (await connection.execute(store.tables.worker.select())).all()
    assert [row.id for row in rows] == ["alive"]
