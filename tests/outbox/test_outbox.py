"""An outbox in a database that is not the bus's: what goes in, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from eventbus_fastapi import Event, EventBus, Outbox
from eventbus_fastapi.errors import InvalidTopic, PayloadTooLarge, SchemaOutdated, SettingsError
from eventbus_fastapi.settings import Settings
from tests.databases import as_sync
from tests.outbox.reading import payloads, publish, until_forwarded


class OrderPaid(Event, topic="order.paid"):
    id: int


async def test_an_event_is_in_the_outbox_if_and_only_if_the_transaction_commits(outbox: Outbox) -> None:
    async with AsyncSession(outbox.engine) as session:
        await outbox.publish_txn(session, OrderPaid(id=1))
        await session.rollback()
    assert (await outbox.figures()).waiting == 0

    async with AsyncSession(outbox.engine) as session, session.begin():
        receipt = await outbox.publish_txn(session, OrderPaid(id=2))

    assert receipt.seq is None
    assert (await outbox.figures()).waiting == 1


async def test_a_sync_session_of_another_driver_publishes_too(outbox: Outbox, database_url: str) -> None:
    engine = create_engine(as_sync(database_url))
    with engine.begin() as connection:
        outbox.publish_txn_sync(connection, OrderPaid(id=1))
    engine.dispose()

    assert (await outbox.figures()).waiting == 1


@pytest.mark.databases("sqlite")
async def test_what_cannot_be_published_is_refused_before_anything_is_written(outbox: Outbox) -> None:
    async with outbox.engine.begin() as connection:
        with pytest.raises(InvalidTopic):
            await outbox.publish_txn(connection, "order.*", 1)
        with pytest.raises(PayloadTooLarge):
            await outbox.publish_txn(connection, "order.paid", "x" * (outbox.settings.max_payload + 1))

    assert (await outbox.figures()).waiting == 0


async def test_a_database_without_the_tables_is_told_the_command(database_url: str) -> None:
    outbox = Outbox(database_url)
    with pytest.raises(SchemaOutdated, match=r"eventbus migrate upgrade --outbox URL"):
        async with outbox.engine.begin() as connection:
            await outbox.publish_txn(connection, "order.paid", 1)
    if "sqlite" not in database_url:
        with pytest.raises(SchemaOutdated, match=r"no tables of an outbox .* run `eventbus migrate upgrade --outbox"):
            await outbox.start()
    await outbox.stop()


@pytest.mark.databases("sqlite")
async def test_sqlite_makes_its_tables_by_itself(database_url: str) -> None:
    async with Outbox(database_url) as outbox:
        await publish(outbox, 1)
        assert (await outbox.figures()).waiting == 1


@pytest.mark.parametrize("database", [3, None])
def test_what_is_no_database_is_refused(database: Any) -> None:
    with pytest.raises(SettingsError, match="expected a database URL or an AsyncEngine"):
        Outbox(database)


# --- the same call of the bus --------------------------------------------------------------------


async def test_the_bus_s_own_call_takes_sessions_on_either_database(outbox: Outbox, bus: EventBus) -> None:
    async with AsyncSession(outbox.engine) as session, session.begin():
        await bus.publish_txn(session, OrderPaid(id=1))
    await until_forwarded(outbox)
    async with AsyncSession(bus.engine) as session, session.begin():
        await bus.publish_txn(session, OrderPaid(id=2))
    await bus.publish("order.paid", {"id": 3})

    assert await payloads(bus) == [{"id": 1}, {"id": 2}, {"id": 3}]


async def test_engines_that_the_bus_was_not_given_are_known_by_their_tables(
    outbox: Outbox, bus: EventBus, database_url: str, bus_tables: dict[str, Any]
) -> None:
    of_outbox, of_bus = create_engine(as_sync(database_url)), create_async_engine(bus_tables["database_url"])
    with of_outbox.begin() as connection:
        bus.publish_txn_sync(connection, "order.paid", 1, delay=0.001)
    await until_forwarded(outbox)
    async with of_bus.begin() as connection:
        await bus.publish_txn(connection, "order.paid", 2)
    of_outbox.dispose()
    await of_bus.dispose()

    await bus.publish("order.paid", 3)
    assert sorted(await payloads(bus)) == [1, 2, 3]


@pytest.mark.databases("sqlite")
async def test_a_session_on_any_other_database_is_refused_in_words(bus: EventBus, tmp_path: Any) -> None:
    elsewhere = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/elsewhere.db")
    async with elsewhere.begin() as connection:
        with pytest.raises(SchemaOutdated, match=r"'.*elsewhere.db' .* neither the tables of the bus nor an outbox"):
            await bus.publish_txn(connection, "order.paid", 1)
        await connection.execute(text("SELECT 1"))  # the transaction is untouched
    await elsewhere.dispose()


async def test_a_bus_without_outboxes_says_what_it_expected(database_url: str, bus_tables: dict[str, Any]) -> None:
    bus = EventBus(settings=Settings(**bus_tables))
    elsewhere = create_async_engine(database_url)
    with pytest.raises(SchemaOutdated, match="expected a session or connection on the bus's database"):
        async with elsewhere.begin() as connection:
            await bus.publish_txn(connection, "order.paid", 1)
    await elsewhere.dispose()


@pytest.mark.parametrize(("given", "words"), [("sqlite://", "expected a list"), ([3], "expected a database URL")])
def test_what_are_no_outboxes_is_refused(given: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        EventBus("sqlite+aiosqlite://", outboxes=given)


def test_two_outboxes_of_one_name_are_refused(tmp_path: Any) -> None:
    urls = [f"sqlite+aiosqlite:///{tmp_path}/{folder}/app.db" for folder in "ab"]
    with pytest.raises(SettingsError, match="two of them are called 'app'"):
        EventBus("sqlite+aiosqlite://", outboxes=urls)
