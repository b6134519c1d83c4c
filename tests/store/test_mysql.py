"""What is special to MySQL and MariaDB: isolation, collation, locks of its scans, the size of its packets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import SettingsError, StoreError
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Ack, OutboxWriter, Store, open_store
from tests.drafts import draft, drafts
from tests.pipeline.reading import read_payloads
from tests.store.servers import administrator

OpenStore = Callable[..., Awaitable[Store]]


@pytest.fixture
def place(lend_tables: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return lend_tables("mysql")


@pytest.fixture
async def open_on(place: dict[str, Any]) -> AsyncIterator[OpenStore]:
    """Open and start a store on the test's tables, by default with an engine of its own."""
    stores: list[Store] = []

    async def open_on(engine: AsyncEngine | None = None, **settings: Any) -> Store:
        store = open_store(Settings(**{**place, **settings}), engine)
        stores.append(store)
        await store.start()
        return store

    yield open_on
    for store in stores:
        await store.stop()


@pytest.fixture
async def users(place: dict[str, Any]) -> AsyncIterator[AsyncEngine]:
    """An engine of the program's own, with the server's default isolation."""
    engine = create_async_engine(place["database_url"])
    yield engine
    await engine.dispose()


async def isolation(connection: AsyncConnection) -> str:
    for name in ("@@transaction_isolation", "@@tx_isolation"):  # MySQL and MariaDB 11.1, older ones
        try:
            return str((await connection.execute(text(f"SELECT {name}"))).scalar_one())
        except Exception as exc:  # noqa: BLE001 - the next name
            last = exc
    raise last


# --- isolation -----------------------------------------------------------------------------------


async def test_every_connection_of_the_bus_is_read_committed(open_on: OpenStore) -> None:
    store = await open_on()
    async with store.engine.connect() as one, store.engine.connect() as two:
        assert await isolation(one) == "READ-COMMITTED"
        assert await isolation(two) == "READ-COMMITTED"


async def test_transactions_of_the_bus_on_an_engine_of_the_programs_own_are_read_committed(
    open_on: OpenStore, users: AsyncEngine
) -> None:
    store = await open_on(users)
    other = await open_on()

    async def look_twice(connection: AsyncConnection) -> tuple[int, int]:
        counts = []
        for _ in range(2):
            counts.append((await connection.execute(text(f"SELECT count(*) FROM {store.tables.event}"))).scalar_one())
            await other.append([draft()])
        return counts[0], counts[1]

    assert await store.transact(look_twice) == (0, 1)  # at REPEATABLE READ it would be (0, 0)


@pytest.mark.parametrize("isolation_level", ["SERIALIZABLE", "REPEATABLE READ", "READ UNCOMMITTED"])
async def test_on_an_engine_of_the_programs_own_nothing_waits_for_an_open_transaction_nor_sees_it(
    open_on: OpenStore, users: AsyncEngine, place: dict[str, Any], isolation_level: str
) -> None:
    """At SERIALIZABLE every read locked, and so waited for whoever had published and not committed."""
    strict = create_async_engine(place["database_url"], isolation_level=isolation_level)
    store = await open_on(strict)
    outbox = OutboxWriter(store.sql, lambda: None)
    async with users.begin() as slow:
        await outbox.add(slow, draft())
        async with asyncio.timeout(5):
            assert not (await store.peek()).has_outbox
            await store.append(drafts(3))
            assert await store.sequence() == (0, 3)
            assert len((await store.read(0, 10)).messages) == 3
            assert await store.acknowledge([Ack(1)]) == [None]
            assert await store.trim(before=None, keep=2) == 1
    assert await store.sequence() == (1, 4)
    await strict.dispose()


async def test_an_engine_that_commits_each_statement_alone_is_refused(place: dict[str, Any]) -> None:
    engine = create_async_engine(place["database_url"], isolation_level="AUTOCOMMIT")
    with pytest.raises(SettingsError, match="AUTOCOMMIT"):
        await open_store(Settings(**place), engine).start()
    await engine.dispose()


async def test_on_mariadb_whoever_holds_the_head_may_not_be_idle_for_long(
    open_on: OpenStore, users: AsyncEngine, place: dict[str, Any]
) -> None:
    """It may be frozen. On an engine of the program's own that is no limit for the program's transactions."""
    stores = [await open_on(), await open_on(users)]
    if not users.dialect.is_mariadb:  # type: ignore[attr-defined]  # known once it has connected
        pytest.skip("MySQL has no such limit")
    limit = text("SELECT @@idle_transaction_timeout")

    async def look(connection: AsyncConnection) -> int:
        await store._lock_head(connection)
        return int((await connection.execute(limit)).scalar_one())

    async def fail(connection: AsyncConnection) -> None:
        await look(connection)
        raise LookupError

    for store in stores:
        assert await store.transact(look) == 10
        with pytest.raises(LookupError):
            await store.transact(fail)
    async with users.connect() as connection:
        assert (await connection.execute(limit)).scalar_one() == 0


async def test_the_programs_own_transactions_keep_their_isolation(open_on: OpenStore, users: AsyncEngine) -> None:
    store = await open_on(users)
    await store.append(drafts(3))
    await store.sequence()
    async with users.connect() as connection:
        assert await isolation(connection) == "REPEATABLE-READ"


async def test_a_reader_always_sees_what_is_committed_now(open_on: OpenStore) -> None:
    one, two = await open_on(pool_size=3), await open_on()
    for number in range(1, 10):
        await two.append([draft()])
        assert (await one.head()).last_seq == number
        assert len((await one.read(0, 100)).messages) == number


async def test_reading_leaves_no_transaction_open(open_on: OpenStore, place: dict[str, Any]) -> None:
    store = await open_on()
    await store.append(drafts(3))
    await asyncio.gather(store.read(0, 10), store.get(1), store.head(), store.peek(), store.seek(0), store.now())
    with pytest.raises(StoreError):
        async with store._translated(), store._reader() as connection:
            await connection.execute(text("SELECT nothing FROM nowhere"))
    with administrator(place["database_url"]) as connection:
        # Dropping a table waits for every transaction that has read it.
        connection.execute(text("SET SESSION lock_wait_timeout = 3"))
        connection.execute(text(f"DROP TABLE {store.tables.event}"))


# --- tables --------------------------------------------------------------------------------------


async def test_every_text_compares_by_its_bytes(open_on: OpenStore, place: dict[str, Any]) -> None:
    store = await open_on()
    with administrator(place["database_url"]) as connection:
        rows = connection.execute(
            text(
                "SELECT table_name, column_name, collation_name FROM information_schema.columns"
                " WHERE table_schema = database() AND table_name LIKE :prefix AND collation_name IS NOT NULL"
            ),
            {"prefix": store.tables.prefix.replace("_", r"\_") + "%"},
        ).all()
    ours = [row for row in rows if row[0] != store.tables.version_table]
    assert len(ours) > 8
    assert {row[2] for row in ours} == {"utf8mb4_bin"}


async def test_every_table_has_transactions(open_on: OpenStore, place: dict[str, Any]) -> None:
    store = await open_on()
    with administrator(place["database_url"]) as connection:
        engines = connection.execute(
            text(
                "SELECT DISTINCT engine FROM information_schema.tables"
                " WHERE table_schema = database() AND table_name LIKE :prefix"
            ),
            {"prefix": store.tables.prefix.replace("_", r"\_") + "%"},
        ).scalars()
        assert set(engines) == {"InnoDB"}


# --- sizes ---------------------------------------------------------------------------------------


async def test_a_payload_of_many_megabytes_comes_back_whole(open_on: OpenStore) -> None:
    store = await open_on()
    payload = bytes(7_000_000)  # each of its bytes is escaped on the way
    await store.append([draft(payload=payload)])
    assert (await store.get(1)).message.body == payload


async def test_a_server_whose_packets_are_too_small_for_the_largest_payload_is_refused(open_on: OpenStore) -> None:
    with pytest.raises(SettingsError, match=r"is 16,000,000 bytes.* max_allowed_packet must be at least 32,065,536"):
        await open_on(max_payload=16_000_000)


# --- users' sessions -----------------------------------------------------------------------------


async def test_idle_transactions_at_repeatable_read_hold_nothing_back(open_on: OpenStore, users: AsyncEngine) -> None:
    store = await open_on()
    outbox = OutboxWriter(store.sql, lambda: None)
    await store.append(drafts(5))
    async with users.begin() as reader, users.begin() as writer:
        await reader.execute(text(f"SELECT * FROM {store.tables.outbox}"))
        await outbox.add(writer, draft(payload="idle"))
        async with asyncio.timeout(5):
            await store.append(drafts(5))
            assert await store.sequence() == (0, 10)
    assert await store.sequence() == (1, 11)


async def test_a_session_of_the_programs_own_publishes_with_its_rows(place: dict[str, Any], open_on: OpenStore) -> None:
    await open_on()
    async with EventBus(settings=Settings(**place)) as bus:
        async with AsyncSession(bus.engine) as session:
            await bus.publish_txn(session, "a", "rolled back")
            await session.rollback()
            await bus.publish_txn(session, "a", "committed")
            await session.commit()
        assert await read_payloads(await bus.subscribe("#", start="earliest"), 1) == ["committed"]
