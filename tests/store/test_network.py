"""A server that goes away, comes back or falls silent: every publisher hears it in time, and everything resumes."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables
from tests.databases import as_psycopg, impatient, in_use
from tests.pipeline.reading import read_seqs
from tests.store.proxy import Proxy, proxied
from tests.waiting import eventually

DRIVERS = ("asyncpg", "psycopg", "asyncmy")


@pytest.fixture(params=DRIVERS)
async def network(
    request: pytest.FixtureRequest, shared_database: Callable[[str], str], table_prefix: str
) -> AsyncIterator[tuple[dict[str, Any], Proxy]]:
    """Settings of a bus whose database is behind a proxy, on each driver, and the proxy."""
    kind = "mysql" if request.param == "asyncmy" else "postgresql"
    url = shared_database(kind)
    if request.param == "psycopg":
        url = as_psycopg(url)
    tables = {"table_prefix": table_prefix}
    await migrations.run(Settings(database_url=url, **tables), Tables(table_prefix), migrations.upgrade)
    async with proxied(url) as (behind, proxy):
        yield {"database_url": behind, "poll_interval": 0.05, **tables}, proxy


async def resumes(publish: Callable[[], Awaitable[Any]]) -> Any:
    """Publish again and again, as a program does that was told to retry, until it works."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await publish()
            except StoreUnavailable:
                await asyncio.sleep(0.05)


async def test_a_server_that_is_stopped_and_started_again(network: tuple[dict[str, Any], Proxy]) -> None:
    settings, proxy = network
    async with EventBus(settings=Settings(**settings)) as bus:
        subscription = await bus.subscribe("#")
        await bus.publish("a", 1)
        assert await read_seqs(subscription, 1) == [1]

        proxy.cut()
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable) as caught:
                await bus.publish("a", 2)
        assert caught.value.retry
        assert await eventually(bus.node.problems)

        proxy.heal()
        draft = bus.draft("a", 3)
        ((receipt,),) = [await resumes(lambda: bus.publish_many([draft]))]
        assert receipt.seq == 2
        assert await read_seqs(subscription, 1) == [2]
        assert await eventually(lambda: no_problems(bus))


async def test_a_server_that_falls_silent_and_answers_again(network: tuple[dict[str, Any], Proxy]) -> None:
    settings, proxy = network
    async with EventBus(settings=Settings(**settings)) as bus:
        subscription = await bus.subscribe("#")
        await bus.publish("a", 1)

        events = [bus.draft("a", number) for number in range(3)]
        with impatient(bus.node.store, 0.5):
            proxy.freeze()
            async with asyncio.timeout(30):  # psycopg waits ten seconds for the server to cancel a statement
                answers = await asyncio.gather(*(bus.publish_many([event]) for event in events), return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreUnavailable] * 3

        proxy.thaw()
        for event in events:  # whether or not the first attempt was stored after all
            await resumes(functools.partial(bus.publish_many, [event]))
        head = (await resumes(bus.head)).last_seq
        assert head == 4
        assert await read_seqs(subscription, 4) == [1, 2, 3, 4]


async def test_a_replay_waits_for_its_database_and_loses_nothing(network: tuple[dict[str, Any], Proxy]) -> None:
    settings, proxy = network
    async with EventBus(settings=Settings(**settings, page_size=5)) as bus:
        await bus.publish_many([("a", number) for number in range(30)])
        subscription = await bus.subscribe("#", start="earliest")
        assert await read_seqs(subscription, 5) == [1, 2, 3, 4, 5]
        proxy.cut()
        reading = asyncio.create_task(read_seqs(subscription, 25))
        await asyncio.sleep(0.2)
        assert not reading.done()
        proxy.heal()
        assert await reading == list(range(6, 31))


async def test_a_bus_stops_in_time_while_its_database_is_silent(network: tuple[dict[str, Any], Proxy]) -> None:
    settings, proxy = network
    bus = EventBus(settings=Settings(**settings))
    await bus.start()
    await bus.publish("a", 1)
    await eventually(lambda: in_use(bus.node.store.engine) == 0)  # so nothing waits with more patience
    with impatient(bus.node.store, 0.5):
        proxy.freeze()
        publishing = asyncio.create_task(bus.publish("a", 2))
        await asyncio.sleep(0.01)  # it waits for the database now
        async with asyncio.timeout(15):
            await bus.stop()
        with pytest.raises(StoreUnavailable):
            await publishing


async def no_problems(bus: EventBus) -> bool:
    return await bus.node.problems() == []


async def test_a_connection_that_was_just_made_is_trusted(network: tuple[dict[str, Any], Proxy]) -> None:
    """While it was made another task's statement was not answered; the pool took the new one for an old one and failed
    with an error that says nothing of trying again.
    """
    settings, _ = network
    bus = EventBus(settings=Settings(**settings))
    store = bus.node.store

    @event.listens_for(store.engine.sync_engine, "connect")
    def give_up_a_statement(*_: object) -> None:
        store._trusted_from = time.monotonic()

    async with bus:
        assert (await bus.head()).last_seq == 0
