"""What is special to PostgreSQL: LISTEN and NOTIFY, how many connections a node has, schemas."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import SettingsError, StoreError
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Ack, migrations
from eventbus_fastapi.store import create_engine as create_bus_engine
from eventbus_fastapi.store import postgresql as postgresql_store
from eventbus_fastapi.store.postgresql import PostgreSQLStore
from eventbus_fastapi.store.schema import Tables
from tests.databases import as_psycopg, as_sync, impatient, in_use
from tests.pipeline.reading import CaughtUp, read_payloads, read_seqs, take_until
from tests.store.proxy import proxied
from tests.store.servers import administrator, end_sessions
from tests.waiting import eventually

OpenBus = Callable[..., Awaitable[EventBus]]
NEVER = 60.0
"""A poll interval that no test waits for: what is seen was told."""


@pytest.fixture(params=["asyncpg", "psycopg"])
def url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    """An empty database of the test's own, whose connections can be counted, over each driver."""
    url = new_database("postgresql")
    return as_psycopg(url) if request.param == "psycopg" else url


@pytest.fixture
async def open_bus(url: str) -> AsyncIterator[OpenBus]:
    started: list[EventBus] = []

    async def open_bus(**settings: Any) -> EventBus:
        bus = EventBus(settings=Settings(**{"database_url": url, **settings}))
        started.append(bus)
        await bus.start()
        return bus

    await migrations.run(Settings(database_url=url), Tables(), migrations.upgrade)
    yield open_bus
    for bus in reversed(started):
        await bus.stop()


def sessions(url: str) -> list[tuple[str, str]]:
    """Return state and query of everybody else's sessions on the database."""
    with administrator(url) as connection:
        rows = connection.execute(
            text(
                "SELECT state, query FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        return [(row.state, row.query) for row in rows]


def channel_of(bus: EventBus) -> str:
    assert isinstance(bus.node.store, PostgreSQLStore)
    return bus.node.store.channel


def listeners(url: str) -> int:
    return sum(query.startswith("LISTEN") for _, query in sessions(url))


def listening_pids(url: str) -> list[int]:
    """Return the server processes of the connections that listen, which may have been probed since."""
    with administrator(url) as connection:
        rows = connection.execute(
            text(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND (query LIKE 'LISTEN%' OR query = 'SELECT 1')"
            )
        )
        return list(rows.scalars())


def heard(listening: psycopg.Connection[Any], channel: str) -> int:
    """Return how many notifications a connection has had: those before one of its own, as they come in order."""
    listening.execute(f"NOTIFY {channel}, 'the last'")
    for number, notice in enumerate(listening.notifies(timeout=30)):
        if notice.payload == "the last":
            return number
    raise AssertionError("its own notification did not come")


async def has_no_problems(bus: EventBus) -> bool:
    return await bus.node.problems() == []


async def says(bus: EventBus, what: str) -> bool:
    return any(what in problem for problem in await bus.node.problems())


# --- the lock of the head ------------------------------------------------------------------------


async def test_nothing_is_prepared_under_the_lock(new_database: Callable[[str], str]) -> None:
    """While a statement is prepared no transaction is idle to the server; a node that froze there kept the lock."""
    settings = Settings(database_url=new_database("postgresql"))
    await migrations.run(settings, Tables(), migrations.upgrade)
    store = PostgreSQLStore(create_bus_engine(settings), settings, owns_engine=True)

    async def prepared(connection: AsyncConnection) -> set[str]:
        await store._lock_head(connection)
        return set((await connection.execute(text("SELECT statement FROM pg_prepared_statements"))).scalars())

    used = {
        str(used.compile(dialect=store.engine.dialect)) for used in (store._fast.move_outbox, store._fast.add_to_log)
    }
    assert used <= await store.transact(prepared)
    assert (await store.head()).last_seq == 0  # preparing has done nothing
    await store.stop()


# --- being told ----------------------------------------------------------------------------------


async def test_other_nodes_are_told_at_once(open_bus: OpenBus) -> None:
    one, two = await open_bus(poll_interval=NEVER), await open_bus(poll_interval=NEVER)
    await eventually(lambda: has_no_problems(two))
    subscription = await two.subscribe("#")
    await take_until(subscription, CaughtUp(0))
    for number in range(20):
        await one.publish("a", number)
        assert await read_payloads(subscription, 1) == [number]


async def test_other_nodes_are_told_of_what_a_sequencer_moved(open_bus: OpenBus) -> None:
    one, two = await open_bus(poll_interval=NEVER), await open_bus(poll_interval=NEVER)
    await eventually(lambda: has_no_problems(two))
    subscription = await two.subscribe("#")
    async with AsyncSession(one.engine) as session, session.begin():
        await one.publish_txn(session, "a", "from a transaction")
    assert await read_payloads(subscription, 1) == ["from a transaction"]


async def test_a_transaction_of_the_programs_own_never_notifies(url: str, open_bus: OpenBus) -> None:
    sender = EventBus(settings=Settings(database_url=url))  # not started: it has no sequencer
    channel = channel_of(sender)
    listening = psycopg.connect(as_sync(url).replace("+psycopg", ""), autocommit=True)
    listening.execute(f"LISTEN {channel}")
    for _ in range(3):
        async with AsyncSession(sender.engine) as session, session.begin():
            await sender.publish_txn(session, "a", 1)
    assert heard(listening, channel) == 0
    bus = await open_bus()
    await eventually(lambda: has_reached(bus, 3))
    assert heard(listening, channel) >= 1
    listening.close()
    await sender.engine.dispose()


async def test_a_batch_is_one_notification(url: str, open_bus: OpenBus) -> None:
    bus = await open_bus(poll_interval=NEVER)
    listening = psycopg.connect(as_sync(url).replace("+psycopg", ""), autocommit=True)
    channel = channel_of(bus)
    listening.execute(f"LISTEN {channel}")
    await bus.publish_many([("a", number) for number in range(500)])
    assert heard(listening, channel) == 1
    listening.close()


async def test_where_other_nodes_hear_in_another_way_only_some_appends_notify(url: str, open_bus: OpenBus) -> None:
    bus = await open_bus(poll_interval=NEVER)
    listening = psycopg.connect(as_sync(url).replace("+psycopg", ""), autocommit=True)
    channel = channel_of(bus)
    listening.execute(f"LISTEN {channel}")
    bus.node.store.notifies_every = 3_600
    for number in range(5):
        assert (await bus.publish("a", number)).seq == number + 1
    assert heard(listening, channel) <= 1
    bus.node.store.notifies_every = 0
    await bus.publish("a", 5)
    assert heard(listening, channel) == 1
    listening.close()


async def test_what_another_process_without_a_bus_commits_is_found_by_polling(url: str, open_bus: OpenBus) -> None:
    bus = await open_bus()  # the default interval
    subscription = await bus.subscribe("#")
    script = EventBus(settings=Settings(database_url=url))
    engine = create_engine(as_sync(url))
    with engine.begin() as connection:
        script.publish_txn_sync(connection, "a", "from a script")
    async with asyncio.timeout(10):
        assert await read_payloads(subscription, 1) == ["from a script"]
    engine.dispose()
    await script.engine.dispose()


async def has_reached(bus: EventBus, seq: int) -> bool:
    return (await bus.head()).last_seq >= seq


# --- the listening connection --------------------------------------------------------------------


async def test_the_listening_connection_heals_when_the_server_ends_it(url: str, open_bus: OpenBus) -> None:
    one, two = await open_bus(poll_interval=NEVER), await open_bus(poll_interval=NEVER)
    subscription = await two.subscribe("#")
    for number in range(3):
        await eventually(lambda: listeners(url) == 2)
        assert end_sessions(url, "query LIKE 'LISTEN%'") == 2
        await eventually(lambda: listeners(url) == 2)
        await one.publish("a", number)
        assert await read_payloads(subscription, 1) == [number]


async def test_while_it_is_lost_the_node_says_so_and_what_was_missed_is_read_afterwards(
    url: str, open_bus: OpenBus
) -> None:
    one, two = await open_bus(poll_interval=NEVER), await open_bus(poll_interval=NEVER)
    subscription = await two.subscribe("#")
    await one.publish("a", 0)
    assert await read_payloads(subscription, 1) == [0]
    await eventually(lambda: has_no_problems(two))
    await asyncio.gather(*(bus.head() for bus in (one, two) for _ in range(5)))  # no new connections from here on
    name = make_url(url).database
    elsewhere = make_url(url).set(database="postgres").render_as_string(hide_password=False)
    with administrator(elsewhere) as connection:
        connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                f" WHERE datname = '{name}' AND query LIKE 'LISTEN%'"
            )
        )
        # Where the pool was not full, others that need a connection say something as well.
        await eventually(lambda: says(two, "listening connection"))
        await one.publish("a", 1)
        connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    assert await read_payloads(subscription, 1) == [1]
    await eventually(lambda: has_no_problems(two))


async def test_a_listening_connection_that_fell_silent_is_found_by_a_probe(
    url: str, open_bus: OpenBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_store, "PROBE_INTERVAL", 0.1)
    async with proxied(url) as (behind, proxy):
        bus = await open_bus(database_url=behind, poll_interval=NEVER)
        await eventually(lambda: has_no_problems(bus))
        await eventually(lambda: in_use(bus.node.store.engine) == 0)
        with impatient(bus.node.store, 0.3):
            proxy.freeze()
            await eventually(lambda: not bus.node.notifier.is_alive, timeout=30)  # psycopg takes long to give up
        proxy.thaw()
        await eventually(lambda: bus.node.notifier.is_alive)
        await bus.stop()


async def test_a_server_that_says_goodbye_and_does_not_hang_up_is_a_pause_not_a_failure(
    url: str, open_bus: OpenBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a connection may come later than the server's last word; asyncpg says only that it is confused."""
    monkeypatch.setattr(postgresql_store, "PROBE_INTERVAL", 1.0)
    async with proxied(url) as (behind, proxy):
        bus = await open_bus(database_url=behind, poll_interval=NEVER)
        await eventually(lambda: has_no_problems(bus))
        with impatient(bus.node.store, 0.5):
            proxy.hold_ends()
            assert end_sessions(url, "query LIKE 'LISTEN%'") == 1
            await eventually(lambda: not bus.node.notifier.is_alive, timeout=30)  # psycopg takes long to give up
        await eventually(lambda: has_no_problems(bus), timeout=30)
        await bus.stop()
    said = [record for record in caplog.records if record.name.startswith("eventbus_fastapi.pipeline")]
    assert [record.getMessage() for record in said if record.levelname == "ERROR"] == []


async def test_an_idle_listening_connection_that_lives_is_kept(
    url: str, open_bus: OpenBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql_store, "PROBE_INTERVAL", 0.01)
    async with proxied(url) as (behind, _):
        bus = await open_bus(database_url=behind, poll_interval=NEVER)
        await eventually(lambda: has_no_problems(bus))
        (before,) = listening_pids(url)
        for _ in range(30):
            await asyncio.sleep(0.01)
            assert bus.node.notifier.is_alive
        assert listening_pids(url) == [before]
        await bus.stop()


# --- without LISTEN ------------------------------------------------------------------------------


async def test_poll_only_holds_no_listening_connection_and_sends_no_notification(url: str, open_bus: OpenBus) -> None:
    bus = await open_bus(poll_only=True, poll_interval=0.02)
    listening = psycopg.connect(as_sync(url).replace("+psycopg", ""), autocommit=True)
    channel = channel_of(bus)
    listening.execute(f"LISTEN {channel}")
    await bus.publish("a", 1)
    async with AsyncSession(bus.engine) as session, session.begin():
        await bus.publish_txn(session, "a", 2)
    await eventually(lambda: has_reached(bus, 2))
    assert heard(listening, channel) == 0
    listening.close()
    assert listeners(url) == 0
    assert await bus.node.problems() == []


async def test_poll_only_finds_what_other_nodes_append(open_bus: OpenBus) -> None:
    one, two = [await open_bus(poll_only=True, poll_interval=0.02) for _ in range(2)]
    subscription = await two.subscribe("#")
    for number in range(5):
        await one.publish("a", number)
        assert await read_payloads(subscription, 1) == [number]


async def test_poll_only_leaves_no_prepared_statement_in_any_session(url: str, open_bus: OpenBus) -> None:
    """Behind a transaction pooler the next transaction may run in another session, where it does not exist."""
    bus = await open_bus(poll_only=True, poll_interval=0.02, pool_size=3)
    store, again = bus.node.store, bus.draft("a", bytes(100_000))
    for number in range(10):  # psycopg prepares what it has seen five times
        await bus.publish("a", number)
        await bus.publish_many([again])
        async with AsyncSession(bus.engine) as session, session.begin():
            await bus.publish_txn(session, "a", number)
        await store.append([bus.draft("a", number), bus.draft("a", number, delay=60)])
        await store.read(0, 100)
        await store.acknowledge([Ack(1)])
    async with contextlib.AsyncExitStack() as stack:
        engines = [*[store.engine] * 3, bus.engine]
        for connection in [await stack.enter_async_context(engine.connect()) for engine in engines]:
            # Its own statement is prepared while it runs, if without a name.
            named = text("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''")
            assert (await connection.execute(named)).scalar_one() == 0


async def test_a_number_in_the_url_is_one_to_the_driver(url: str, open_bus: OpenBus) -> None:
    options = "prepare_threshold=3" if "psycopg" in url else "statement_cache_size=0&timeout=2.5"
    bus = await open_bus(database_url=f"{url}?{options}")
    assert (await bus.publish("a", 1)).seq == 1


def test_an_option_in_the_url_that_has_to_be_a_number_is_named() -> None:
    with pytest.raises(SettingsError, match=r"statement_cache_size in the database URL must be a number, got 'no'"):
        EventBus("postgresql+asyncpg://localhost/app?statement_cache_size=no")


async def test_a_server_that_lets_nobody_in_is_an_error_of_the_store(url: str, open_bus: OpenBus) -> None:
    bus = await open_bus(poll_interval=NEVER)
    name = make_url(url).database
    postgres = make_url(url).set(database="postgres").render_as_string(hide_password=False)
    with administrator(postgres) as connection:
        connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'))
        condition = text("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(condition, {"name": name})
        with pytest.raises(StoreError):
            await bus.publish("a", 1)
        with pytest.raises(StoreError):
            await bus.node.store.read(0, 1)
        connection.execute(text(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'))
    assert (await bus.publish("a", 1)).seq == 1


# --- connections ---------------------------------------------------------------------------------


async def test_a_node_has_a_bounded_number_of_connections_however_many_subscriptions(
    url: str, open_bus: OpenBus
) -> None:
    bus = await open_bus(pool_size=4, page_size=10)
    await bus.publish_many([("a.b", number) for number in range(100)])
    live = [await bus.subscribe("#", start="now") for _ in range(100)]
    replaying = [await bus.subscribe(f"a.{'b' if number % 2 else '*'}", start="earliest") for number in range(100)]
    reading = [asyncio.create_task(read_seqs(subscription, 110)) for subscription in replaying]
    reading += [asyncio.create_task(read_seqs(subscription, 10)) for subscription in live]
    worst = 0
    for number in range(10):
        await asyncio.gather(*(bus.publish("a.b", number) for _ in range(1)), bus.node.history(["#"], 0, 5))
        seen = await asyncio.to_thread(sessions, url)
        worst = max(worst, len(seen))
    await asyncio.gather(*reading)
    assert worst <= 4 + 1
    seen = sessions(url)
    assert len(seen) <= 4 + 1
    assert {state for state, _ in seen} == {"idle"}  # none of them "idle in transaction"


async def test_what_the_bus_runs_is_read_committed_whatever_the_servers_default(url: str, open_bus: OpenBus) -> None:
    name = make_url(url).database
    with administrator(url) as connection:
        connection.execute(text(f"ALTER DATABASE \"{name}\" SET default_transaction_isolation = 'serializable'"))
    store = (await open_bus()).node.store
    level = text("SHOW transaction_isolation")
    async with store._reader() as alone:
        assert (await alone.execute(level)).scalar_one() == "read committed"

    async def look(connection: AsyncConnection) -> str:
        return str((await connection.execute(level)).scalar_one())

    assert await store.transact(look) == "read committed"


async def test_a_stopped_node_has_no_connections(url: str, open_bus: OpenBus) -> None:
    bus = await open_bus()
    await asyncio.gather(*(bus.publish("a", number) for number in range(20)))
    await bus.stop()
    await eventually(lambda: sessions(url) == [])


async def test_an_idle_node_has_no_open_transaction(url: str, open_bus: OpenBus) -> None:
    bus = await open_bus(poll_interval=0.01)
    subscription = await bus.subscribe("#", start="earliest")
    await bus.publish("a", 1)
    await read_seqs(subscription, 1)
    for _ in range(10):
        states = [state for state, _ in await asyncio.to_thread(sessions, url)]
        assert "idle in transaction" not in states
        assert "idle in transaction (aborted)" not in states


# --- schemas and engines -------------------------------------------------------------------------


async def test_buses_in_two_schemas_of_a_database_are_apart(url: str) -> None:
    buses = []
    for schema in ("one", "two"):
        settings = Settings(database_url=url, db_schema=schema, poll_interval=NEVER)
        await migrations.run(settings, Tables(schema=schema), migrations.upgrade)
        buses.append(EventBus(settings=settings))
    one, two = buses
    async with one, two:
        assert channel_of(one) != channel_of(two)
        await one.publish_many([("a", 1), ("a", 2)])
        assert (await two.publish("a", 3)).seq == 1
        async with AsyncSession(two.engine) as session, session.begin():
            await two.publish_txn(session, "a", 4)
        assert await read_payloads(await two.subscribe("#", start="earliest"), 2) == [3, 4]
        assert await read_payloads(await one.subscribe("#", start="earliest"), 2) == [1, 2]


@pytest.mark.parametrize("isolation_level", ["SERIALIZABLE", "AUTOCOMMIT"])
async def test_an_engine_of_the_programs_own_is_used_and_stays_as_it_is(
    url: str, open_bus: OpenBus, isolation_level: str
) -> None:
    engine = create_async_engine(url, isolation_level=isolation_level)

    async def way() -> tuple[str, bool]:
        """Return the isolation of a transaction, and whether it has more than one statement."""
        async with engine.connect() as connection:
            number = text("SELECT pg_current_xact_id()::text")
            numbers = {(await connection.execute(number)).scalar_one() for _ in range(2)}
            return (await connection.execute(text("SHOW transaction_isolation"))).scalar_one(), len(numbers) == 1

    before = await way()
    bus = EventBus(engine, settings=Settings())
    async with bus:
        assert bus.engine is engine
        assert (await bus.publish("a", 1)).seq == 1
        async with AsyncSession(engine) as session, session.begin():
            await bus.publish_txn(session, "a", 2)
        assert await read_payloads(await bus.subscribe("#", start="earliest"), 2) == [1, 2]

        async def look(connection: AsyncConnection) -> tuple[str, int]:
            await bus.node.store._lock_head(connection)
            level = (await connection.execute(text("SHOW transaction_isolation"))).scalar_one()
            locks = text("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND mode = 'RowShareLock'")
            return str(level), (await connection.execute(locks)).scalar_one()

        level, locks = await bus.node.store.transact(look)
        assert level == "read committed"
        assert locks > 0  # they last beyond the statement
    assert await way() == before
    await engine.dispose()
