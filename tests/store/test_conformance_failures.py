"""Every store: what passes by itself is tried again, what does not is an error of ours, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.errors import SchemaOutdated, StoreError, StoreUnavailable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Ack, OutboxWriter, Store, create_engine, create_session_engine
from eventbus_fastapi.store.engines import BEGIN
from tests.databases import impatient, in_use
from tests.drafts import draft, drafts
from tests.store.conftest import OpenStore
from tests.store.servers import end_sessions, unreachable
from tests.store.standstill import stand_still
from tests.store.variants import Variant, make_store
from tests.tables import new_prefix
from tests.waiting import eventually

on_servers = pytest.mark.databases("postgresql", "mysql")


@contextlib.asynccontextmanager
async def head_lock(store: Store) -> AsyncIterator[AsyncConnection]:
    """Hold the lock that every append needs, as a node that hangs would."""
    engine = create_engine(store.settings)
    async with engine.connect() as connection:
        await connection.execution_options(**{BEGIN: "IMMEDIATE"})
        async with connection.begin():
            await connection.execute(store.sql.lock_head)
            yield connection
    await engine.dispose()


# --- starting ------------------------------------------------------------------------------------


@on_servers
async def test_without_tables_starting_names_the_command_to_run(variant: Variant, place: dict[str, Any]) -> None:
    store = make_store(variant, Settings(**{**place, "table_prefix": new_prefix()}))
    with pytest.raises(SchemaOutdated, match=r"run `eventbus migrate upgrade`"):
        await store.start()
    await store.stop()


@on_servers
async def test_a_server_that_cannot_be_reached_is_unavailable_at_once(variant: Variant, place: dict[str, Any]) -> None:
    store = make_store(variant, Settings(**{**place, "database_url": unreachable(place["database_url"])}))
    async with asyncio.timeout(5):
        for attempt in (store.start(), store.append([draft()]), store.read(0, 1), store.head(), store.peek()):
            with pytest.raises(StoreUnavailable) as caught:
                await attempt
            assert caught.value.retry
    await store.stop()


# --- going on ------------------------------------------------------------------------------------


@on_servers
async def test_after_the_server_ended_every_session_appending_goes_on_by_itself(store: Store) -> None:
    await asyncio.gather(*(store.read(0, 1) for _ in range(4)))  # several connections wait in the pool
    for number in range(3):
        assert end_sessions(store.settings.database_url) > 0
        receipts, *_ = await store.append([draft()])
        assert receipts[0].seq == number + 1


@on_servers
async def test_after_the_server_ended_every_session_the_outbox_and_acks_go_on_by_themselves(store: Store) -> None:
    await store.append(drafts(2))
    end_sessions(store.settings.database_url)
    assert await store.sequence() == (0, 2)
    end_sessions(store.settings.database_url)
    assert await store.acknowledge([Ack(1)]) == [None]
    end_sessions(store.settings.database_url)
    with contextlib.suppress(StoreUnavailable):  # it reads first, and a read is not tried again
        await store.remove_expired()
    assert await store.remove_expired() == 0


@on_servers
async def test_after_the_server_ended_every_session_reading_goes_on_after_one_failure_at_most(store: Store) -> None:
    await store.append(drafts(2))
    for _ in range(3):
        end_sessions(store.settings.database_url)
        with contextlib.suppress(StoreUnavailable):
            await store.read(0, 10)
        assert len((await store.read(0, 10)).messages) == 2


@on_servers
async def test_a_deadlock_is_run_again_until_both_transactions_are_done(store: Store, open_another: OpenStore) -> None:
    await store.append(drafts(2))
    other = await open_another()
    both_hold_one = asyncio.Barrier(2)
    runs = 0
    log = store.tables.event

    async def rename(node: Store, first: int, second: int) -> None:
        async def work(connection: AsyncConnection) -> None:
            nonlocal runs
            runs += 1
            await connection.execute(log.update().where(log.c.seq == first).values(key=log.c.topic))
            if runs <= 2:
                await both_hold_one.wait()
            await connection.execute(log.update().where(log.c.seq == second).values(content_type=log.c.topic))

        await node.transact(work)

    await asyncio.gather(rename(store, 1, 2), rename(other, 2, 1))
    assert runs == 3
    assert [(m.key, m.content_type) for m in (await store.read(0, 2)).messages] == [("test.event", "test.event")] * 2


# --- giving up -----------------------------------------------------------------------------------


async def test_an_append_that_waits_too_long_for_the_head_is_given_up(open_another: OpenStore) -> None:
    store = await open_another(busy_timeout=0.2)
    event = draft(payload="given up")
    async with head_lock(store):
        with impatient(store, 1.0), pytest.raises(StoreUnavailable):
            await store.append([event])
        assert (await store.head()).last_seq == 0  # reading does not wait
    (receipt,), *_ = await store.append([event])  # it may have been stored after all, and is answered the same
    assert receipt.seq == 1
    assert [message.payload for message in (await store.read(0, 10)).messages] == ["given up"]


async def test_an_answer_that_came_while_the_process_stood_still_is_taken(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a machine that slept, or one so busy that the process had to wait, then nothing counts as unavailable."""
    for work in (store.head, store.peek, lambda: store.append([draft()]), lambda: store.append(drafts(2, delay=60))):
        asked = asyncio.create_task(work())
        await asyncio.sleep(0)  # it waits for the database now
        stand_still(monkeypatch, 2 * store.settings.statement_timeout)
        await asked
    assert (await store.head()).last_seq == 1


async def test_what_is_cancelled_leaves_no_lock_no_event_and_no_connection_behind(open_another: OpenStore) -> None:
    store = await open_another(busy_timeout=0.2)
    async with head_lock(store):
        for work in (store.append(drafts(3)), store.sequence(), store.append(drafts(1, delay=60))):
            task = asyncio.create_task(work)
            await asyncio.sleep(0.02)  # it waits for the head now
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    await eventually(lambda: in_use(store.engine) == 0)
    async with asyncio.timeout(5):
        receipts, last_seq, *_ = await store.append([draft(payload="next")])
    assert [message.payload for message in (await store.read(0, 10)).messages][-1:] == ["next"]
    assert receipts[0].seq == last_seq


async def test_cancelled_at_any_moment_an_append_is_whole_or_absent_and_the_store_goes_on(store: Store) -> None:
    for turn in range(30):
        task = asyncio.create_task(store.append(drafts(2)))
        for _ in range(turn % 10):
            await asyncio.sleep(0)
        if turn % 3 == 0:
            await asyncio.sleep(0.001 * (turn % 7))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: in_use(store.engine) == 0)
    last_seq = (await store.append([draft(payload="last")]))[1]
    messages = (await store.read(0, 1_000)).messages
    assert [message.seq for message in messages] == list(range(1, last_seq + 1))
    assert [message.payload for message in messages] == [1, 2] * (last_seq // 2) + ["last"]


@pytest.mark.databases("postgresql")
async def test_a_connection_whose_taking_is_cancelled_goes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a busy loop psycopg gives way in every call, also in those that set the level of a connection. One that was
    cancelled just there was left to the garbage collector.
    """
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0.0)
    await store.append(drafts(2))
    for work in (lambda: store.append(drafts(2)), store.sequence, store.head):
        for steps in range(25):
            task = asyncio.create_task(work())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert in_use(store.engine) == 0
    assert [record.getMessage() for record in caplog.records if record.name.startswith("sqlalchemy.pool")] == []


async def test_cancelled_at_any_moment_reading_leaves_no_connection_behind(store: Store) -> None:
    await store.append(drafts(50))
    for turn in range(30):
        task = asyncio.create_task(store.read(0, 100))
        for _ in range(turn % 8):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await eventually(lambda: in_use(store.engine) == 0)
    assert len((await store.read(0, 100)).messages) == 50


async def test_a_refusal_says_what_the_database_said_and_no_payload(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        await store.append([draft(payload="the-secret")._replace(topic=None)])  # type: ignore[arg-type]
    assert not isinstance(caught.value, StoreUnavailable)
    assert "topic" in str(caught.value)
    assert "the-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_not_even_the_cause_of_a_refusal_shows_what_was_to_be_stored(store: Store) -> None:
    """As a traceback in a log does."""
    event = draft(payload="the-secret")._replace(topic=None)  # type: ignore[arg-type]
    users = create_session_engine(store.engine.url, store.settings)
    async with users.connect() as connection:
        with pytest.raises(StoreError) as in_a_session:
            await OutboxWriter(store.sql, lambda: None).add(connection, event)
    await users.dispose()
    with pytest.raises(StoreError) as in_an_append:
        await store.append([event])
    for caught in (in_a_session, in_an_append):
        assert isinstance(caught.value.__cause__, DBAPIError)
        assert "the-secret" not in str(caught.value.__cause__)


async def test_a_table_that_is_gone_is_an_error_of_ours(store: Store) -> None:
    async with store.engine.begin() as connection:
        await connection.execute(text(f"DROP TABLE {store.tables.event.name}"))
    for work in (store.append([draft()]), store.read(0, 1), store.get(1), store.remove_expired()):
        with pytest.raises(StoreError):
            await work
