"""Every store: of events that are the same one is stored, whoever publishes them, and a rollback leaves no trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.store import OutboxWriter, Store, create_engine
from eventbus_fastapi.unique import Unique
from tests.drafts import draft, drafts
from tests.store.conftest import OpenStore

on_servers = pytest.mark.databases("postgresql", "mysql")
PAST = datetime(2001, 1, 1, tzinfo=UTC)
HOUR = Unique(within=3_600)
WAITING = Unique(fields=["id"])
AGO = -3_600_000_000
"""Microseconds: makes the first one's time be over."""


@pytest.fixture
async def users(store: Store) -> AsyncIterator[AsyncEngine]:
    """The engine of the program that publishes in its own transactions."""
    engine = create_engine(store.settings)
    yield engine
    await engine.dispose()


@pytest.fixture
def outbox(store: Store) -> OutboxWriter:
    return OutboxWriter(store.sql, lambda: None)


async def publish(store: Store, *events: Draft) -> list[Receipt]:
    return (await store.unique.append(events))[0]


async def let_in(store: Store) -> list[Any]:
    """Let in what is due, and return the payloads of the log."""
    while await store.promote():
        pass
    while (await store.sequence())[0]:
        pass
    return [message.payload for message in (await store.read(0, 10_000)).messages]


async def rows(store: Store) -> int:
    async with store.engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(store.tables.unique))).scalar_one())


async def waiting(store: Store) -> int:
    async with store.engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(store.tables.scheduled))).scalar_one())


async def make_due(store: Store) -> None:
    """Let everything that is scheduled be due."""
    async with store.engine.begin() as connection:
        await connection.execute(store.tables.scheduled.update().values(publish_at=1))


async def pass_time(store: Store) -> None:
    """Let the time of everything that is unique be over."""
    async with store.engine.begin() as connection:
        await connection.execute(store.tables.unique.update().values(until=store.tables.unique.c.until + AGO))


# --- appended by the bus -------------------------------------------------------------------------


async def test_a_duplicate_is_not_stored_and_gets_the_receipt_of_the_first_one(store: Store) -> None:
    first, second = draft(unique=HOUR), draft(unique=HOUR)
    assert await publish(store, first) == [Receipt(first.message_id, 1)]
    assert await publish(store, second) == [Receipt(first.message_id, 1, duplicate=True)]
    receipts = await publish(store, draft("test.other", unique=HOUR), draft(payload="other", unique=HOUR))
    assert [receipt.seq for receipt in receipts] == [2, 3]
    assert await let_in(store) == ["hello", "hello", "other"]


async def test_when_the_time_is_over_the_next_one_is_the_first(store: Store) -> None:
    await publish(store, draft(unique=HOUR))
    await pass_time(store)
    second = draft(unique=HOUR)
    assert await publish(store, second, draft(unique=HOUR)) == [
        Receipt(second.message_id, 2),
        Receipt(second.message_id, 2, duplicate=True),
    ]


async def test_without_a_time_it_is_unique_while_it_waits(store: Store) -> None:
    first = draft(payload={"id": 1, "n": 1}, delay=60, unique=WAITING)
    assert await publish(store, first) == [Receipt(first.message_id, None)]
    assert await publish(store, draft(payload={"id": 1, "n": 2}, delay=60, unique=WAITING)) == [
        Receipt(first.message_id, None, duplicate=True)
    ]
    await make_due(store)
    assert await store.promote() == 1
    (receipt,) = await publish(store, draft(payload={"id": 1, "n": 3}, unique=WAITING))
    assert (receipt.seq, receipt.duplicate) == (2, False)
    assert await let_in(store) == [{"id": 1, "n": 1}, {"id": 1, "n": 3}]


async def test_a_batch_is_stored_in_order_without_its_own_duplicates(store: Store) -> None:
    one, two = draft(payload="one", unique=HOUR), draft(payload="two")
    later, again = (draft(payload="later", delay=60, unique=Unique()) for _ in range(2))
    receipts = await publish(store, one, later, two, draft(payload="one", unique=HOUR), again)
    assert receipts == [
        Receipt(one.message_id, 1),
        Receipt(later.message_id, None),
        Receipt(two.message_id, 2),
        Receipt(one.message_id, 1, duplicate=True),
        Receipt(later.message_id, None, duplicate=True),
    ]
    assert await let_in(store) == ["one", "two"]
    assert await waiting(store) == 1


async def test_the_same_message_id_again_is_a_duplicate_as_ever(store: Store) -> None:
    event, later = draft(unique=HOUR), draft(payload="later", delay=60, unique=HOUR)
    await publish(store, event, later)
    assert await publish(store, event, later) == [
        Receipt(event.message_id, 1, duplicate=True),
        Receipt(later.message_id, None, duplicate=True),
    ]
    assert await waiting(store) == 1


async def test_what_the_outbox_holds_comes_first_however_much_it_is(store: Store) -> None:
    async with store.engine.begin() as connection:
        values = [event._asdict() for event in drafts(1_100)]
        for each in values:
            del each["delay"], each["publish_at"], each["unique"]
        await connection.execute(store.sql.add_to_outbox, values)
    (receipt,) = await publish(store, draft(unique=HOUR))
    assert receipt.seq == 1_101
    assert await rows(store) == 1


async def test_of_many_at_once_one_is_stored(store: Store, open_another: OpenStore) -> None:
    nodes = [store, await open_another()]
    answers = await asyncio.gather(*(publish(nodes[n % 2], draft(unique=HOUR)) for n in range(8)))
    receipts = [receipt for answer in answers for receipt in answer]
    assert [receipt.duplicate for receipt in receipts].count(False) == 1
    assert {receipt[:2] for receipt in receipts} == {receipts[0][:2]}
    later = await open_another()
    assert await publish(later, draft(unique=HOUR)) == [receipts[0]._replace(duplicate=True)]
    assert await let_in(store) == ["hello"]


# --- replacing -----------------------------------------------------------------------------------


async def test_a_duplicate_replaces_the_payload_of_one_that_waits(store: Store) -> None:
    rule = Unique(fields=["id"], replace=["payload"])
    first = draft(payload={"id": 1, "n": 1}, delay=60, unique=rule)
    await publish(store, first)
    await publish(store, draft(payload={"id": 1, "n": 2}, metadata={"by": "me"}, ttl=60, unique=rule))
    assert await let_in(store) == []
    await make_due(store)
    assert await let_in(store) == [{"id": 1, "n": 2}]
    message = (await store.read(0, 1)).messages[0]
    assert (message.message_id, message.metadata, message.expires_at is None) == (first.message_id, {"by": "me"}, False)


@pytest.mark.parametrize("options", [{}, {"publish_at": PAST}])
async def test_a_duplicate_replaces_the_time_of_one_that_waits(store: Store, options: dict[str, Any]) -> None:
    rule = Unique(fields=["id"], replace=["schedule"])
    await publish(store, draft(payload={"id": 1, "n": 1}, delay=3_600, unique=rule))
    await publish(store, draft(payload={"id": 1, "n": 2}, delay=7_200, unique=rule))
    look = await store.peek()
    assert look.next_due is not None
    assert look.next_due - look.now > 3_600_000_000
    await publish(store, draft(payload={"id": 1, "n": 3}, unique=rule, **options))
    assert await let_in(store) == [{"id": 1, "n": 1}]


async def test_what_does_not_wait_any_more_is_not_replaced(store: Store) -> None:
    rule = Unique(fields=["id"], within=60, replace=["payload", "schedule"])
    first = draft(payload={"id": 1, "n": 1}, unique=rule)
    await publish(store, first)
    again = await publish(store, draft(payload={"id": 1, "n": 2}, delay=60, unique=rule))
    assert again == [Receipt(first.message_id, 1, duplicate=True)]
    assert await let_in(store) == [{"id": 1, "n": 1}]
    assert await waiting(store) == 0


@on_servers
@pytest.mark.parametrize("within", [None, 3_600])
async def test_what_is_being_let_in_is_not_replaced(
    store: Store, users: AsyncEngine, outbox: OutboxWriter, within: float | None
) -> None:
    """Without a time the next one is stored: what it was to replace left before that could be, and its payload was in
    no event. Found by its message_id with a lock, on MySQL the two were a deadlock.
    """
    rule = Unique(fields=["id"], within=within, replace=["payload"])
    await publish(store, draft(payload={"id": 1, "n": 1}, delay=3_600, unique=rule))
    await make_due(store)
    async with users.connect() as promoting, users.connect() as publishing:
        (row,) = (await promoting.execute(store.sql.due, {"limit": 10})).all()
        waits = asyncio.create_task(outbox.add(publishing, draft(payload={"id": 1, "n": 2}, unique=rule)))
        assert not (await asyncio.wait([waits], timeout=0.05))[0]
        await promoting.execute(store.sql.copy_to_outbox, {"ids": [row.id]})
        await promoting.execute(store.sql.removals[store.tables.scheduled], {"row": row.id})
        await promoting.commit()
        assert (await waits).duplicate is (within is not None)
        await publishing.commit()
    stored = [{"id": 1, "n": 1}, {"id": 1, "n": 2}]
    assert await let_in(store) == (stored if within is None else stored[:1])


# --- in transactions of the program --------------------------------------------------------------


async def test_in_a_transaction_the_second_one_is_a_duplicate(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    first = draft(unique=HOUR)
    async with users.begin() as connection:
        assert await outbox.add(connection, first) == Receipt(first.message_id, None)
        assert await outbox.add(connection, draft(unique=HOUR)) == Receipt(first.message_id, None, duplicate=True)
    await let_in(store)
    async with users.begin() as connection:
        assert await outbox.add(connection, draft(unique=HOUR)) == Receipt(first.message_id, 1, duplicate=True)
        await connection.execute(text("SELECT 1"))  # and the transaction is as it was
    assert await let_in(store) == ["hello"]


async def test_a_rollback_forgets_it(store: Store, users: AsyncEngine, outbox: OutboxWriter) -> None:
    async with users.connect() as connection:
        await outbox.add(connection, draft(unique=HOUR))
        await connection.rollback()
        savepoint = await connection.begin_nested()
        await outbox.add(connection, draft(unique=HOUR))
        await savepoint.rollback()
        assert not (await outbox.add(connection, draft(unique=HOUR))).duplicate
        await connection.rollback()
    assert not (await publish(store, draft(unique=HOUR)))[0].duplicate


@on_servers
@pytest.mark.parametrize("commits", [True, False])
async def test_who_publishes_the_same_waits_for_the_other_transaction(
    store: Store, users: AsyncEngine, outbox: OutboxWriter, commits: bool
) -> None:
    first, second = draft(unique=HOUR), draft(unique=HOUR)
    async with users.connect() as one, users.connect() as two:
        await outbox.add(one, first)
        waits = asyncio.create_task(outbox.add(two, second))
        assert not (await asyncio.wait([waits], timeout=0.05))[0]
        await (one.commit() if commits else one.rollback())
        assert await waits == Receipt((first if commits else second).message_id, None, duplicate=commits)
        await two.commit()
    assert len(await let_in(store)) == 1


@on_servers
@pytest.mark.parametrize("commits", [True, False])
async def test_the_bus_waits_for_the_other_transaction_and_holds_up_nobody(
    store: Store, users: AsyncEngine, outbox: OutboxWriter, commits: bool
) -> None:
    async with users.connect() as one:
        await outbox.add(one, draft(payload="same", unique=HOUR))
        waits = asyncio.create_task(publish(store, draft(payload="same", unique=HOUR)))
        assert not (await asyncio.wait([waits], timeout=0.05))[0]
        assert (await store.append([draft(payload="other")])).last_seq == 1
        await (one.commit() if commits else one.rollback())
        (receipt,) = await waits
    assert (receipt.seq, receipt.duplicate) == (2, commits)
    assert await let_in(store) == ["other", "same"]


@on_servers
@pytest.mark.parametrize("is_over", [True, False])
async def test_of_two_that_take_over_what_has_ended_one_wins(
    store: Store, users: AsyncEngine, outbox: OutboxWriter, is_over: bool
) -> None:
    """The second one waits for the row; when it has it, it must see the event that the first one has scheduled."""
    rule = HOUR if is_over else Unique()
    await publish(store, draft(delay=3_600, unique=rule))
    await make_due(store)
    await pass_time(store)
    await let_in(store)
    new = draft(delay=60, unique=rule)
    async with users.connect() as one, users.connect() as two:
        await outbox.add(one, new)
        waits = asyncio.create_task(outbox.add(two, draft(delay=60, unique=rule)))
        assert not (await asyncio.wait([waits], timeout=0.05))[0]
        await one.commit()
        assert await waits == Receipt(new.message_id, None, duplicate=True)
        await two.commit()
    assert await waiting(store) == 1


@pytest.mark.databases("mysql")
async def test_a_snapshot_of_the_transaction_does_not_hide_the_first_one(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    first = draft(delay=60, unique=Unique())
    strict = users.execution_options(isolation_level="REPEATABLE READ")
    async with strict.connect() as connection:
        if connection.dialect.is_mariadb:  # type: ignore[attr-defined]  # this dialect has it
            await connection.execute(text("SET SESSION innodb_snapshot_isolation = OFF"))
            await connection.commit()
        await connection.execute(select(store.tables.scheduled.c.id))
        await publish(store, first)
        assert await outbox.add(connection, draft(delay=60, unique=Unique())) == Receipt(first.message_id, None, True)
        await connection.commit()


# --- forgetting ----------------------------------------------------------------------------------


async def test_what_has_ended_is_forgotten_in_batches(store: Store) -> None:
    later = [draft(payload=n, delay=60, unique=Unique()) for n in range(3)]
    await publish(store, *later, *(draft(payload=n, unique=HOUR) for n in range(3, 6)))
    assert await store.unique.remove_ended() == 0
    await pass_time(store)
    assert await store.unique.remove_ended() == 3
    await make_due(store)
    await let_in(store)
    assert await store.unique.remove_ended(2) == 2
    assert await store.unique.remove_ended(2) == 1
    assert await rows(store) == 0


@on_servers
async def test_forgetting_passes_what_an_open_transaction_has_taken_over(
    store: Store, users: AsyncEngine, outbox: OutboxWriter
) -> None:
    await publish(store, draft(unique=HOUR), draft(payload="other", unique=HOUR))
    await pass_time(store)
    async with users.begin() as connection:
        await outbox.add(connection, draft(unique=HOUR))
        async with asyncio.timeout(5):
            await store.unique.remove_ended()
    assert await rows(store) == 1
    assert (await publish(store, draft(unique=HOUR)))[0].duplicate
