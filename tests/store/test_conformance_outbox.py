"""Every store: what a transaction leaves in the outbox enters the log after its commit, and only then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from eventbus_fastapi.errors import StoreError, StoreUnavailable
from eventbus_fastapi.events import Draft
from eventbus_fastapi.store import OutboxWriter, Store, create_engine
from tests.drafts import draft, drafts
from tests.store.conftest import OpenStore

on_servers = pytest.mark.databases("postgresql", "mysql")
on_sqlite = pytest.mark.databases("sqlite")


@pytest.fixture
async def users(store: Store) -> AsyncIterator[AsyncEngine]:
    """The engine of the program that publishes in its own transactions."""
    engine = create_engine(store.settings)
    yield engine
    await engine.dispose()


@pytest.fixture
def outbox(store: Store) -> OutboxWriter:
    return OutboxWriter(store.sql, lambda: None)


async def commit(users: AsyncEngine, outbox: OutboxWriter, *events: Draft) -> None:
    async with users.begin() as connection:
        for event in events:
            await outbox.add(connection, event)


def large(count: int) -> list[Draft]:
    """Events of which three fill a batch."""
    return [draft(payload=bytes(1_500_000)) for _ in range(count)]


async def payloads(store: Store) -> list[Any]:
    return [message.payload for message in (await store.read(0, 10_000)).messages]


async def left_in_outbox(store: Store) -> int:
    async with store.engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(store.tables.outbox))).scalar_one())


async def test_an_event_enters_the_log_when_its_transaction_has_committed(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    async with users.begin() as connection:
        await outbox.add(connection, draft(payload="A"))
        assert await payloads(store) == []
        assert not (await store.peek()).has_outbox
    assert (await store.peek()).has_outbox
    assert await store.sequence() == (1, 1)
    assert await payloads(store) == ["A"]
    assert await left_in_outbox(store) == 0


async def test_an_event_of_a_transaction_rolled_back_never_appears(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    async with users.connect() as connection:
        await outbox.add(connection, draft(payload="A"))
        await connection.rollback()
    assert await store.sequence() == (0, 0)
    assert await store.append([draft(payload="B")]) is not None
    assert await payloads(store) == ["B"]


async def test_a_savepoint_rolled_back_removes_only_its_own_events(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    async with users.begin() as connection:
        await outbox.add(connection, draft(payload="before"))
        savepoint = await connection.begin_nested()
        await outbox.add(connection, draft(payload="inside"))
        await savepoint.rollback()
        await outbox.add(connection, draft(payload="after"))
        async with connection.begin_nested():
            await outbox.add(connection, draft(payload="kept"))
    await store.sequence()
    assert await payloads(store) == ["before", "after", "kept"]


async def test_the_events_of_one_transaction_keep_their_order(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    await commit(users, outbox, *drafts(50))
    await store.sequence()
    assert await payloads(store) == list(range(1, 51))


@on_servers
async def test_what_commits_first_is_first_however_long_others_stay_open(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    async with users.begin() as slow:
        await outbox.add(slow, draft(payload="A"))
        await commit(users, outbox, draft(payload="B"))
        await store.sequence()
        assert await payloads(store) == ["B"]
        await store.append([draft(payload="C")])
        assert await payloads(store) == ["B", "C"]
    await store.sequence()
    assert await payloads(store) == ["B", "C", "A"]


@on_servers
@pytest.mark.parametrize("count", [2, 20, 500])
async def test_any_number_of_events_passes_an_open_transaction(
    store: Store, users: AsyncEngine, outbox: OutboxWriter, count: int
) -> None:
    # MySQL answers a DELETE of most rows by a scan, and that waits for the row of the open transaction.
    async with users.begin() as slow:
        await outbox.add(slow, draft(payload="slow"))
        await commit(users, outbox, *drafts(count))
        async with asyncio.timeout(5):
            assert await store.sequence() == (count, count)
    assert await store.sequence() == (1, count + 1)


@on_servers
async def test_an_open_transaction_that_rolls_back_leaves_no_hole(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    async with users.connect() as slow:
        await outbox.add(slow, draft(payload="A"))
        await commit(users, outbox, draft(payload="B"))
        await store.sequence()
        await slow.rollback()
    await store.append([draft(payload="C")])
    assert [message.seq for message in (await store.read(0, 10)).messages] == [1, 2]


@on_servers
@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_publishing_neither_waits_nor_fails_at_any_isolation_level(
    store: Store, users: AsyncEngine, outbox: OutboxWriter, isolation_level: str
) -> None:
    strict = users.execution_options(isolation_level=isolation_level)
    async with strict.begin() as one, strict.begin() as two:
        for connection in (one, two, one):
            await outbox.add(connection, draft())
            await store.append([draft()])
            await store.sequence()
    while (await store.sequence())[0]:
        pass
    assert (await store.head()).last_seq == 6


@on_sqlite
async def test_on_sqlite_an_open_transaction_that_published_holds_the_one_write_lock(
    open_another: OpenStore,
) -> None:
    store = await open_another(busy_timeout=0.01)
    users = create_engine(store.settings)
    async with users.begin() as slow:
        await OutboxWriter(store.sql, lambda: None).add(slow, draft(payload="A"))
        assert await payloads(store) == []  # reading goes on
        with pytest.raises(StoreUnavailable, match="locked"):
            await store.append([draft(payload="B")])
    await store.append([draft(payload="B")])
    assert await payloads(store) == ["A", "B"]
    await users.dispose()


async def test_a_committed_event_comes_before_one_that_is_appended_after_the_commit(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    await commit(users, outbox, draft(payload="first"))
    receipts, last_seq, *_ = await store.append([draft(payload="second"), draft(payload="third")])
    assert await payloads(store) == ["first", "second", "third"]
    assert [receipt.seq for receipt in receipts] == [2, 3]
    assert last_seq == 3
    assert await left_in_outbox(store) == 0


async def test_a_committed_event_comes_before_one_that_another_node_appends(
    store: Store, open_another: OpenStore, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    other = await open_another()
    for number in range(5):
        await commit(users, outbox, draft(payload=2 * number))
        await (store, other)[number % 2].append([draft(payload=2 * number + 1)])
    assert await payloads(store) == list(range(10))


async def test_an_append_comes_after_an_outbox_of_many_batches(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    async with users.begin() as connection:
        await connection.execute(store.sql.add_to_outbox, [_row(event) for event in drafts(2_500)])
    receipts, *_ = await store.append([draft(payload="last")])
    assert receipts[0].seq == 2_501
    assert await payloads(store) == [*range(1, 2_501), "last"]


async def test_a_node_sequences_a_thousand_at_once_and_says_what_it_moved(store: Store, users: AsyncEngine) -> None:
    async with users.begin() as connection:
        await connection.execute(store.sql.add_to_outbox, [_row(event) for event in drafts(1_500)])
    assert await store.sequence() == (1_000, 1_000)
    assert await store.sequence() == (500, 1_500)
    assert await store.sequence() == (0, 1_500)


async def test_large_events_leave_the_outbox_a_few_at_a_time(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    """A thousand of them took longer than a transaction may, were rolled back, and nothing was published any more."""
    known = draft()
    await store.append([known])
    await commit(users, outbox, *large(4), draft(), known, *large(3))
    assert await store.sequence() == (3, 4)
    assert await store.sequence() == (5, 8)
    assert await store.sequence() == (1, 9)


async def test_an_append_comes_after_an_outbox_of_large_events(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    await commit(users, outbox, *large(7))
    receipts, *_ = await store.append([draft()])
    assert receipts[0].seq == 8


async def test_an_event_larger_than_a_batch_enters_the_log_alone(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    await commit(users, outbox, draft(payload=bytes(5_000_000)), draft())
    assert await store.sequence() == (1, 1)
    assert await store.sequence() == (1, 2)


@pytest.mark.parametrize("ttl", [2**63 - 1, -(2**63)])
async def test_a_ttl_that_foreign_sql_wrote_blocks_nothing(store: Store, users: AsyncEngine, ttl: int) -> None:
    async with users.begin() as connection:
        await connection.execute(store.sql.add_to_outbox, [_row(draft()) | {"ttl": ttl}])
    (receipt,), *_ = await store.append([draft()])
    assert receipt.seq == 2
    assert (await store.get(2)).message.expires_at is None
    assert len((await store.read(0, 10)).messages) == 2 - (ttl < 0)


async def test_an_event_whose_message_id_is_in_the_log_is_dropped_and_blocks_nothing(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    known = draft(payload="known")
    await store.append([known])
    await commit(users, outbox, draft(payload="before"), known, draft(payload="after"))
    assert await store.sequence() == (3, 3)
    assert await payloads(store) == ["known", "before", "after"]
    assert await left_in_outbox(store) == 0


async def test_a_message_id_twice_in_the_outbox_enters_the_log_once(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    event = draft(payload="first")
    await commit(users, outbox, event)
    await commit(users, outbox, draft(payload="again", message_id=event.message_id), draft(payload="other"))
    await store.sequence()
    assert await payloads(store) == ["first", "other"]
    assert await left_in_outbox(store) == 0


async def test_a_message_id_in_the_outbox_wins_over_one_appended_later(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    event = draft(payload="outbox")
    await commit(users, outbox, event)
    receipts, last_seq, *_ = await store.append(
        [draft(payload="append", message_id=event.message_id), draft(payload="new")]
    )
    assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == [(1, True), (2, False)]
    assert last_seq == 2
    assert await payloads(store) == ["outbox", "new"]


async def test_nodes_that_sequence_and_append_at_once_number_densely_and_lose_nothing(
    store: Store, open_another: OpenStore, outbox: OutboxWriter
) -> None:
    nodes = [store, await open_another()]
    users = create_engine(store.settings)

    async def write(writer: int) -> None:
        for number in range(10):
            await commit(users, outbox, draft(payload=f"outbox {writer} {number}"))
            await nodes[writer % 2].sequence()

    async def append(writer: int) -> None:
        for number in range(10):
            await nodes[writer % 2].append([draft(payload=f"append {writer} {number}")])

    await asyncio.gather(*(write(writer) for writer in range(4)), *(append(writer) for writer in range(4)))
    while (await store.sequence())[0]:
        pass
    messages = (await store.read(0, 1_000)).messages
    assert [message.seq for message in messages] == list(range(1, 81))
    seen = [message.payload for message in messages]
    expected = {
        f"{way} {writer} {number}" for way in ("outbox", "append") for writer in range(4) for number in range(10)
    }
    assert set(seen) == expected
    for way in ("outbox", "append"):
        for writer in range(4):  # what one writer did one after the other stays in that order
            own = [payload for payload in seen if payload.startswith(f"{way} {writer} ")]
            assert own == [f"{way} {writer} {number}" for number in range(10)]
    await users.dispose()


async def test_a_ttl_begins_when_the_event_enters_the_log(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    await commit(users, outbox, draft(ttl=3_600))
    await store.sequence()
    message = (await store.get(1)).message
    assert message.expires_at is not None
    assert 0 <= message.expires_at - message.created_at - 3_600_000_000 < 1_000_000  # its clock may be read twice


async def test_the_commit_rings_once_and_the_insert_does_not(store: Store, users: AsyncEngine) -> None:
    rings: list[int] = []
    outbox = OutboxWriter(store.sql, lambda: rings.append(1))
    async with users.connect() as connection:
        await outbox.add(connection, draft())
        await outbox.add(connection, draft())
        assert rings == []
        await connection.commit()
        assert rings == [1]


@on_servers
@pytest.mark.parametrize("of_engine", [False, True])
async def test_where_a_statement_commits_alone_the_insert_rings(
    store: Store, users: AsyncEngine, of_engine: bool
) -> None:
    if of_engine:
        alone = create_async_engine(users.url, isolation_level="AUTOCOMMIT")
    else:
        alone = users.execution_options(isolation_level="AUTOCOMMIT")
    rings: list[int] = []
    outbox = OutboxWriter(store.sql, lambda: rings.append(1))
    async with alone.connect() as connection, AsyncSession(alone) as session:
        await outbox.add(connection, draft())
        await outbox.add(session, draft())
        assert rings == [1, 1]
        assert (await store.sequence())[0] == 2
    await alone.dispose()


async def test_an_event_that_the_database_refuses_is_an_error_of_ours(users: AsyncEngine, outbox: OutboxWriter) -> None:
    async with users.connect() as connection:
        with pytest.raises(StoreError, match="refused"):
            await outbox.add(connection, draft()._replace(topic=None))  # type: ignore[arg-type]


def _row(event: Draft) -> dict[str, Any]:
    values = event._asdict()
    del values["delay"], values["publish_at"], values["unique"]
    return values
