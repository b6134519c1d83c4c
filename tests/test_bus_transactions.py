"""`publish_txn`: the event exists if and only if the caller's transaction commits, whatever it goes through."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Connection, Engine, String, create_engine, event, select
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from eventbus_fastapi import Event, EventBus, Unique
from eventbus_fastapi.errors import InvalidInput, InvalidTopic, StoreError
from eventbus_fastapi.events import Options
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import AsyncTransaction, OutboxWriter, SyncTransaction
from tests.conftest import OpenBus
from tests.databases import as_psycopg, as_sync, kind_of
from tests.pipeline.reading import read_payloads

on_servers = pytest.mark.databases("postgresql", "mysql")
on_sqlite = pytest.mark.databases("sqlite")
NEVER = 60.0
"""A poll interval that no test waits for: what is seen was woken for."""


class UserCreated(Event, topic="user.created"):
    id: int


@pytest.fixture
async def watched(bus: EventBus) -> AsyncIterator[Callable[[int], Awaitable[list[Any]]]]:
    """Read the payloads that a subscriber sees, in the order in which it sees them."""
    async with bus.subscribe("#") as subscription:
        yield lambda count: read_payloads(subscription, count)


Watched = Callable[[int], Awaitable[list[Any]]]


async def log(bus: EventBus) -> list[Any]:
    return [message.payload for message in (await bus.node.history(["#"], 0, 1_000)).messages]


# --- every way into a transaction ----------------------------------------------------------------


@pytest.fixture(params=["the bus's", "the program's"])
async def engine(request: pytest.FixtureRequest, bus: EventBus) -> AsyncIterator[AsyncEngine]:
    """`bus.engine`, and one of the program's own: on PostgreSQL with psycopg, elsewhere as SQLAlchemy makes it."""
    if request.param == "the bus's":
        yield bus.engine
        return
    url = bus.settings.database_url
    engine = create_async_engine(as_psycopg(url) if kind_of(url) == "postgresql" else url)
    yield engine
    await engine.dispose()


async def in_session(engine: AsyncEngine, work: Callable[[AsyncTransaction], Awaitable[None]], commit: bool) -> None:
    async with AsyncSession(engine) as session:
        await work(session)
        await (session.commit() if commit else session.rollback())


async def in_scoped_session(
    engine: AsyncEngine, work: Callable[[AsyncTransaction], Awaitable[None]], commit: bool
) -> None:
    session = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    await work(session)
    await (session.commit() if commit else session.rollback())
    await session.remove()


async def in_connection(engine: AsyncEngine, work: Callable[[AsyncTransaction], Awaitable[None]], commit: bool) -> None:
    async with engine.connect() as connection:
        await work(connection)
        await (connection.commit() if commit else connection.rollback())


WAYS = (in_session, in_scoped_session, in_connection)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_an_event_exists_if_and_only_if_its_transaction_commits(
    bus: EventBus, watched: Watched, engine: AsyncEngine, way: Any
) -> None:
    async def publish_txn(transaction: AsyncTransaction) -> None:
        receipt = await bus.publish_txn(transaction, "a", "in a transaction")
        assert (receipt.seq, receipt.duplicate) == (None, False)
        assert await log(bus) == expected

    expected: list[str] = []
    await way(engine, publish_txn, False)
    assert await log(bus) == []
    await way(engine, publish_txn, True)
    assert await watched(1) == ["in a transaction"]


@pytest.fixture
def sync_engine(bus: EventBus) -> Iterator[Engine]:
    """An engine of a sync driver: sqlite3, psycopg or pymysql."""
    engine = create_engine(as_sync(bus.settings.database_url))
    yield engine
    engine.dispose()


def in_sync_session(engine: Engine, work: Callable[[SyncTransaction], None], commit: bool) -> None:
    with Session(engine) as session:
        work(session)
        (session.commit if commit else session.rollback)()


def in_sync_scoped_session(engine: Engine, work: Callable[[SyncTransaction], None], commit: bool) -> None:
    session = scoped_session(sessionmaker(engine))
    work(session)
    (session.commit if commit else session.rollback)()
    session.remove()


def in_sync_connection(engine: Engine, work: Callable[[SyncTransaction], None], commit: bool) -> None:
    with engine.connect() as connection:
        work(connection)
        (connection.commit if commit else connection.rollback)()


SYNC_WAYS = (in_sync_session, in_sync_scoped_session, in_sync_connection)


@pytest.mark.parametrize("way", SYNC_WAYS, ids=lambda way: way.__name__)
async def test_a_sync_transaction_publishes_from_its_thread(
    bus: EventBus, watched: Watched, sync_engine: Engine, way: Any
) -> None:
    def publish_txn(transaction: SyncTransaction) -> None:
        assert bus.publish_txn_sync(transaction, UserCreated(id=1)).seq is None

    await asyncio.to_thread(way, sync_engine, publish_txn, False)
    await asyncio.to_thread(way, sync_engine, publish_txn, True)
    assert await watched(1) == [{"id": 1}]
    assert len(await log(bus)) == 1


async def test_a_savepoint_that_is_rolled_back_takes_only_its_own_events(bus: EventBus, watched: Watched) -> None:
    async with AsyncSession(bus.engine) as session:
        await bus.publish_txn(session, "a", "before")
        savepoint = await session.begin_nested()
        await bus.publish_txn(session, "a", "inside")
        await savepoint.rollback()
        async with session.begin_nested():
            await bus.publish_txn(session, "a", "kept")
        await bus.publish_txn(session, "a", "after")
        await session.commit()
    assert await watched(3) == ["before", "kept", "after"]
    assert len(await log(bus)) == 3


async def test_a_savepoint_is_not_a_commit(bus: EventBus) -> None:
    async with AsyncSession(bus.engine) as session:
        async with session.begin_nested():
            await bus.publish_txn(session, "a", "lost")
        await session.rollback()
    await bus.publish("a", "other")
    assert await log(bus) == ["other"]


async def test_everything_that_may_be_said_about_an_event_goes_along(bus: EventBus, watched: Watched) -> None:
    options: Options = {"key": "k", "message_id": uuid4(), "metadata": {"trace": "t"}, "ttl": 60}
    async with AsyncSession(bus.engine) as session, session.begin():
        receipt = await bus.publish_txn(session, "a", b"\x00\xff", **options)
        await bus.publish_txn(session, "a", "late", delay=3_600)
    assert await watched(1) == [b"\x00\xff"]
    message = (await bus.get(1)).message
    assert (message.message_id, message.key, message.metadata) == (receipt.message_id, "k", {"trace": "t"})
    assert message.expires_at is not None
    assert len(await log(bus)) == 1


# --- with the rows of the program ----------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users_of_the_program"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)


@pytest.fixture
async def users(bus: EventBus) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    async with bus.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    yield async_sessionmaker(bus.engine)
    async with bus.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


async def test_rows_and_events_are_stored_together_or_not_at_all(
    bus: EventBus, watched: Watched, users: async_sessionmaker[AsyncSession]
) -> None:
    async def create(name: str) -> None:
        async with users() as session, session.begin():
            session.add(User(name=name))
            await bus.publish_txn(session, "user.created", name)

    answers = await asyncio.gather(create("ann"), create("bob"), create("ann"), return_exceptions=True)
    assert sum(isinstance(answer, Exception) for answer in answers) == 1
    assert sorted(await watched(2)) == ["ann", "bob"]
    assert len(await log(bus)) == 2
    async with users() as session:
        assert sorted((await session.scalars(select(User.name))).all()) == ["ann", "bob"]


async def test_publishing_flushes_nothing_of_the_programs(
    bus: EventBus, users: async_sessionmaker[AsyncSession]
) -> None:
    async with users() as session:
        user = User(name="ann")
        session.add(user)
        await bus.publish_txn(session, "user.created", "ann")
        assert user in session.new
        assert session.in_transaction()
        await session.rollback()


async def test_publishing_sends_one_statement(bus: EventBus) -> None:
    statements: list[str] = []
    async with AsyncSession(bus.engine) as session:
        connection = await session.connection()
        assert connection.sync_connection is not None
        event.listen(
            connection.sync_connection,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_: statements.append(statement),
        )
        await bus.publish_txn(session, "a", 1)
        await session.rollback()
    (statement,) = statements
    assert statement.startswith(f"INSERT INTO {bus.settings.table_prefix}outbox")


async def test_a_mistake_is_found_before_the_transaction_is_touched(bus: EventBus, watched: Watched) -> None:
    async with AsyncSession(bus.engine) as session:
        with pytest.raises(InvalidTopic):
            await bus.publish_txn(session, "a..b", 1)
        assert not session.in_transaction()
        await bus.publish_txn(session, "a", "fine")
        await session.commit()
    assert await watched(1) == ["fine"]


# --- order ---------------------------------------------------------------------------------------


@on_servers
async def test_what_commits_first_is_seen_at_once_while_the_other_stays_open(bus: EventBus, watched: Watched) -> None:
    async with AsyncSession(bus.engine) as slow, AsyncSession(bus.engine) as fast:
        await bus.publish_txn(slow, "a", "A")
        await bus.publish_txn(fast, "a", "B")
        await fast.commit()
        async with asyncio.timeout(10):
            assert await watched(1) == ["B"]
        await bus.publish("a", "C")
        assert await watched(1) == ["C"]
        await slow.commit()
    assert await watched(1) == ["A"]
    assert [(await bus.get(seq)).message.payload for seq in (1, 2, 3)] == ["B", "C", "A"]


@on_servers
async def test_of_a_transaction_that_rolls_back_late_nothing_ever_appears(bus: EventBus, watched: Watched) -> None:
    async with AsyncSession(bus.engine) as slow:
        await bus.publish_txn(slow, "a", "A")
        await bus.publish("a", "B")
        await slow.rollback()
    await bus.publish("a", "C")
    assert await watched(2) == ["B", "C"]
    assert (await bus.head()).last_seq == 2


@on_sqlite
async def test_on_sqlite_others_wait_for_an_open_transaction_that_published(bus: EventBus, watched: Watched) -> None:
    async with AsyncSession(bus.engine) as slow:
        await bus.publish_txn(slow, "a", "A")
        waiting = asyncio.create_task(bus.publish("a", "B"))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert await log(bus) == []  # reading goes on
        await slow.commit()
    await waiting
    assert await watched(2) == ["A", "B"]


async def test_what_was_committed_before_a_publish_began_comes_before_it(bus: EventBus, watched: Watched) -> None:
    for number in range(0, 20, 2):
        async with AsyncSession(bus.engine) as session, session.begin():
            await bus.publish_txn(session, "a", number)
        await bus.publish("a", number + 1)
    assert await watched(20) == list(range(20))


async def test_what_is_committed_one_after_the_other_keeps_that_order(bus: EventBus, watched: Watched) -> None:
    for number in range(30):
        async with AsyncSession(bus.engine) as session, session.begin():
            await bus.publish_txn(session, "a", number)
    assert await watched(30) == list(range(30))


async def test_a_message_id_that_is_in_the_log_already_is_dropped_and_holds_nothing_up(
    bus: EventBus, watched: Watched
) -> None:
    first = await bus.publish("a", "first")
    async with AsyncSession(bus.engine) as session, session.begin():
        await bus.publish_txn(session, "a", "before")
        await bus.publish_txn(session, "a", "again", message_id=first.message_id)
        await bus.publish_txn(session, "a", "after")
    assert await watched(3) == ["first", "before", "after"]
    await bus.publish("a", "last")
    assert await log(bus) == ["first", "before", "after", "last"]


async def test_many_sessions_at_once_lose_nothing_and_publish_nothing_that_was_rolled_back(
    bus: EventBus, watched: Watched
) -> None:
    async def work(number: int) -> None:
        async with AsyncSession(bus.engine) as session:
            await bus.publish_txn(session, "a", number)
            if number % 5 == 0:
                await session.rollback()
            else:
                await session.commit()

    await asyncio.gather(*(work(number) for number in range(60)))
    assert sorted(await watched(48)) == [number for number in range(60) if number % 5]
    assert (await bus.head()).last_seq == 48


# --- waking up -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_commit_in_this_process_wakes_the_bus(open_bus: OpenBus, way: Any) -> None:
    bus = await open_bus(poll_interval=NEVER)
    async with bus.subscribe("#") as subscription:
        for number in range(3):

            async def publish_txn(transaction: AsyncTransaction, number: int = number) -> None:
                await bus.publish_txn(transaction, "a", number)

            await way(bus.engine, publish_txn, True)
            assert await read_payloads(subscription, 1) == [number]


@pytest.mark.parametrize("way", SYNC_WAYS, ids=lambda way: way.__name__)
async def test_a_commit_in_a_thread_wakes_the_bus(open_bus: OpenBus, way: Any) -> None:
    bus = await open_bus(poll_interval=NEVER)
    engine = create_engine(as_sync(bus.settings.database_url))
    async with bus.subscribe("#") as subscription:
        for number in range(3):
            await asyncio.to_thread(
                way, engine, lambda transaction, number=number: bus.publish_txn_sync(transaction, "a", number), True
            )
            assert await read_payloads(subscription, 1) == [number]
    engine.dispose()


async def test_a_commit_of_a_program_without_a_running_bus_is_found_by_polling(
    bus: EventBus, own_tables: dict[str, Any], watched: Watched
) -> None:
    script = EventBus(settings=Settings(**own_tables))
    async with AsyncSession(script.engine) as session, session.begin():
        await script.publish_txn(session, "a", "from a script")
    async with asyncio.timeout(10):  # the default interval is 0.2
        assert await watched(1) == ["from a script"]
    await script.stop()


async def test_what_was_committed_while_no_bus_ran_is_there_when_one_starts(
    open_bus: OpenBus, own_tables: dict[str, Any]
) -> None:
    first = await open_bus()
    await first.stop()
    script = EventBus(settings=Settings(**own_tables))
    async with AsyncSession(script.engine) as session, session.begin():
        await script.publish_txn(session, "a", "meanwhile")
    await script.stop()
    bus = await open_bus()
    assert await read_payloads(await bus.subscribe("#", start="earliest"), 1) == ["meanwhile"]


# --- mistakes ------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("transaction", [None, "session", object()])
async def test_what_is_no_transaction_is_refused(bus: EventBus, transaction: Any) -> None:
    with pytest.raises(InvalidInput, match="expected an AsyncSession or AsyncConnection"):
        await bus.publish_txn(transaction, "a", 1)
    with pytest.raises(InvalidInput, match="expected a Session or Connection"):
        bus.publish_txn_sync(transaction, "a", 1)


@on_sqlite
async def test_async_and_sync_mixed_up_is_refused_with_what_to_call(bus: EventBus, sync_engine: Engine) -> None:
    wrong: Any
    with Session(sync_engine) as wrong, pytest.raises(InvalidInput, match="publish_txn_sync"):
        await bus.publish_txn(wrong, "a", 1)
    async with AsyncSession(bus.engine) as wrong:
        with pytest.raises(InvalidInput, match="await publish_txn"):
            bus.publish_txn_sync(wrong, "a", 1)


@on_sqlite
async def test_a_connection_that_is_not_started_is_refused(bus: EventBus) -> None:
    connection: AsyncConnection = bus.engine.connect()
    with pytest.raises(InvalidInput, match="async with"):
        await bus.publish_txn(connection, "a", 1)


@on_sqlite
async def test_a_session_that_cannot_tell_its_bind_is_refused_with_what_to_pass(
    bus: EventBus, watched: Watched, sync_engine: Engine
) -> None:
    async with AsyncSession(binds={User: bus.engine}) as session:
        with pytest.raises(InvalidInput, match=r"bind_arguments.* await"):
            await bus.publish_txn(session, "a", 1)
        await bus.publish_txn(await session.connection(bind_arguments={"mapper": User}), "a", 2)
        await session.commit()
    with Session(binds={User: sync_engine}) as sync_session, pytest.raises(InvalidInput, match="bind_arguments"):
        bus.publish_txn_sync(sync_session, "a", 3)
    assert await watched(1) == [2]


async def test_a_database_without_our_tables_refuses_with_an_error_of_ours(
    new_database: Callable[[str], str], bus: EventBus
) -> None:
    engine = create_async_engine(new_database(kind_of(bus.settings.database_url)))
    async with engine.connect() as connection:
        with pytest.raises(StoreError):
            await bus.publish_txn(connection, "a", 1)
    await engine.dispose()


def test_sessions_are_not_kept_alive_by_having_published(tmp_path: object) -> None:
    bus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db")
    asyncio.run(_start_and_stop(bus))
    engine = create_engine(f"sqlite:///{tmp_path}/bus.db")
    session = Session(engine)
    bus.publish_txn_sync(session, "a", 1)
    session.commit()
    session.close()
    known: weakref.ref[Session | Connection] = weakref.ref(session)
    del session
    gc.collect()
    assert known() is None
    engine.dispose()


async def _start_and_stop(bus: EventBus) -> None:
    async with bus:
        pass


async def test_a_session_is_watched_once_however_often_it_publishes(bus: EventBus) -> None:
    rings: list[int] = []
    outbox = OutboxWriter(bus.node.store.sql, lambda: rings.append(1))
    async with AsyncSession(bus.engine) as session:
        for _ in range(5):
            await outbox.add(session, bus.draft("a", 1))
        assert rings == []
        await session.commit()
        assert rings == [1]


# --- once ----------------------------------------------------------------------------------------

ONCE = Unique(within=3_600)


async def test_in_a_transaction_of_any_driver_the_same_is_published_once(
    bus: EventBus, engine: AsyncEngine, sync_engine: Engine
) -> None:
    def publish_sync(transaction: SyncTransaction) -> None:
        receipt = bus.publish_txn_sync(transaction, "a", 1, unique=ONCE)
        assert (receipt.message_id, receipt.duplicate) == (first.message_id, True)
        bus.publish_txn_sync(transaction, "a", 2, unique=ONCE)

    async with AsyncSession(engine) as session:
        first = await bus.publish_txn(session, "a", 1, unique=ONCE)
        await session.commit()
    await asyncio.to_thread(in_sync_session, sync_engine, publish_sync, False)
    await asyncio.to_thread(in_sync_session, sync_engine, publish_sync, True)
    again = await bus.publish("a", 2, unique=ONCE)
    assert again.duplicate
    async with AsyncSession(engine) as session:
        assert (await bus.publish_txn(session, "a", 1, unique=ONCE)).seq == 1
        assert (await session.execute(select(1))).scalar_one() == 1
    assert await log(bus) == [1, 2]


@on_servers
async def test_a_unique_event_is_refused_where_each_statement_commits_alone(bus: EventBus) -> None:
    async with bus.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        with pytest.raises(InvalidInput, match="needs a transaction"):
            await bus.publish_txn(connection, "a", 1, unique=ONCE)
