"""What is special to SQLite: its pragmas, its one writer, its files and their other processes, `:memory:`."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventbus_fastapi.errors import SettingsError, StoreError, StoreUnavailable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import OutboxWriter, Store, open_store
from eventbus_fastapi.store.engines import BEGIN, sqlite_has_wal_reset_bug
from tests.drafts import draft, drafts
from tests.store.processes import publish_from_processes
from tests.waiting import eventually

MEMORY = "sqlite+aiosqlite:///:memory:"


@pytest.fixture
def url(new_database: Callable[[str], str]) -> str:
    return new_database("sqlite")


@pytest.fixture
async def open_on() -> AsyncIterator[Callable[..., Any]]:
    """Open and start a store on a URL, or on an engine of the user's."""
    stores: list[Store] = []

    async def open_on(url: str, engine: AsyncEngine | None = None, **settings: Any) -> Store:
        store = open_store(Settings(database_url=url, **settings), engine)
        stores.append(store)
        await store.start()
        return store

    yield open_on
    for store in stores:
        await store.stop()


async def pragma(store: Store, name: str) -> Any:
    async with store.engine.connect() as connection:
        return (await connection.exec_driver_sql(f"PRAGMA {name}")).scalar_one()


def driver_has_ended() -> bool:
    """Tell whether aiosqlite's threads have ended.

    After a failure it stops them without waiting, and they would complain that the test's loop is closed.
    """
    return not any("_connection_worker_thread" in thread.name for thread in threading.enumerate())


# --- connections ---------------------------------------------------------------------------------


async def test_a_file_is_in_wal_mode_and_every_commit_is_synced(url: str, open_on: Callable[..., Any]) -> None:
    store = await open_on(url)
    assert await pragma(store, "journal_mode") == "wal"
    assert await pragma(store, "synchronous") == 2  # FULL


async def test_synchronous_can_be_normal(url: str, open_on: Callable[..., Any]) -> None:
    assert await pragma(await open_on(url, sqlite_synchronous="NORMAL"), "synchronous") == 1


async def test_the_time_to_wait_for_the_lock_is_the_setting_on_every_connection(
    url: str, open_on: Callable[..., Any]
) -> None:
    store = await open_on(url, busy_timeout=1.25)
    async with store.engine.connect() as one, store.engine.connect() as two:
        for connection in (one, two):
            assert (await connection.exec_driver_sql("PRAGMA busy_timeout")).scalar_one() == 1_250


async def test_appends_wait_for_the_lock_of_another_connection(url: str, open_on: Callable[..., Any]) -> None:
    store = await open_on(url)
    other = sqlite3.connect(make_url(url).database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(store.append([draft()]))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    other.execute("COMMIT")
    assert (await waiting)[1] == 1
    other.close()


async def test_a_lock_held_for_too_long_is_unavailable_and_nothing_is_stored(
    url: str, open_on: Callable[..., Any]
) -> None:
    store = await open_on(url, busy_timeout=0.01)
    other = sqlite3.connect(make_url(url).database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.append([draft()])
    other.execute("COMMIT")
    other.close()
    assert (await store.head()).last_seq == 0


async def test_a_reader_in_the_middle_of_its_work_does_not_hinder_an_append(
    url: str, open_on: Callable[..., Any]
) -> None:
    store = await open_on(url, busy_timeout=0.05)
    await store.append(drafts(3))
    other = sqlite3.connect(make_url(url).database or "", isolation_level=None)
    other.execute("BEGIN")
    reading = other.execute("SELECT seq FROM bus_event ORDER BY seq")
    assert reading.fetchone() == (1,)
    assert (await store.append([draft()]))[1] == 4
    assert len(reading.fetchall()) == 2
    other.close()


async def test_after_a_stop_nothing_holds_the_file(url: str) -> None:
    store = open_store(Settings(database_url=url))
    await store.start()
    await store.append(drafts(3))
    await store.read(0, 10)
    await store.stop()
    path = make_url(url).database or ""
    assert os.path.exists(path)  # noqa: ASYNC240 - a look at a local directory
    assert not os.path.exists(f"{path}-wal")  # noqa: ASYNC240 - the last connection to close removes it


@pytest.mark.parametrize("mode", ["IMMEDIATE", "NONE"])
@pytest.mark.parametrize("place", ["file", "memory"])
async def test_a_connection_that_is_dropped_gives_its_locks_back_while_a_statement_of_it_lives(
    url: str, open_on: Callable[..., Any], mode: str, place: str
) -> None:
    """As the traceback of a cancelled call keeps one; writers had to wait until Python collected its garbage."""
    store = await open_on(url if place == "file" else MEMORY, busy_timeout=0.5)
    async with store.engine.connect() as connection:
        await connection.execution_options(**{BEGIN: mode})
        await connection.begin()
        driver: Any = (await connection.get_raw_connection()).driver_connection
        statement = await driver.cursor()
        await statement.execute("SELECT last_seq FROM bus_head UNION SELECT 2")
        await connection.invalidate()
    receipts, *_ = await store.append([draft()])
    assert receipts[0].seq == 1
    del statement


async def test_a_directory_that_does_not_exist_is_named_when_it_starts(tmp_path: Path) -> None:
    store = open_store(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/missing/bus.db"))
    with pytest.raises(StoreError, match="unable to open database file"):
        await store.start()
    await store.stop()
    await eventually(driver_has_ended)


async def test_a_file_that_is_no_database_is_refused_when_it_starts(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear reader, this is not a database, whatever its name.\n" * 100)
    store = open_store(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/letter.txt"))
    with pytest.raises(StoreError, match="not a database"):
        await store.start()
    await store.stop()
    await eventually(driver_has_ended)


async def test_a_file_named_by_a_uri_is_the_same_file(url: str, open_on: Callable[..., Any]) -> None:
    path = make_url(url).database
    by_uri = await open_on(f"sqlite+aiosqlite:///file:{path}?uri=true")
    assert (await by_uri.append(drafts(2)))[1] == 2
    assert (await (await open_on(url)).append(drafts(1)))[1] == 3


async def test_a_full_disk_is_unavailable_and_passes(url: str, open_on: Callable[..., Any]) -> None:
    store = await open_on(url)

    async def limit(pages: int) -> None:
        async with store.engine.connect() as connection:  # the pool has one so far, and this sets that
            await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    await limit(1)  # no less than there are already
    large = draft(payload=b"x" * 200_000, delay=60)  # a scheduled event goes through the pool
    with pytest.raises(StoreUnavailable, match="full"):
        await store.append([large])
    await limit(1_000_000)
    assert len((await store.append([large]))[0]) == 1


# --- memory --------------------------------------------------------------------------------------


async def test_memory_serves_concurrent_readers_and_writers(open_on: Callable[..., Any]) -> None:
    store = await open_on(MEMORY)

    async def write(number: int) -> None:
        await store.append(drafts(5))

    async def read() -> list[int]:
        return [message.seq for message in (await store.read(0, 1_000)).messages]

    for _ in range(5):
        _, pages = await asyncio.gather(
            asyncio.gather(*(write(number) for number in range(4))), asyncio.gather(*(read() for _ in range(4)))
        )
        for seqs in pages:
            assert seqs == list(range(1, len(seqs) + 1))
    assert await read() == list(range(1, 101))


async def test_memory_holds_transactions_of_the_programs_own(open_on: Callable[..., Any]) -> None:
    store = await open_on(MEMORY)
    outbox = OutboxWriter(store.sql, lambda: None)
    async with store.engine.connect() as connection:
        await outbox.add(connection, draft(payload="rolled back"))
        await connection.rollback()
        await outbox.add(connection, draft(payload="committed"))
        await connection.commit()
    await store.sequence()
    assert [message.payload for message in (await store.read(0, 10)).messages] == ["committed"]


async def test_two_memories_are_two_logs(open_on: Callable[..., Any]) -> None:
    one, two = await open_on(MEMORY), await open_on("sqlite+aiosqlite://")
    await one.append(drafts(3))
    assert (await two.head()).last_seq == 0


async def test_memory_keeps_its_events_when_the_pool_has_lost_its_connections(open_on: Callable[..., Any]) -> None:
    store = await open_on(MEMORY)
    async with store.engine.connect() as connection:  # the only one, as a cancelled statement would leave it
        await connection.invalidate()
    assert (await store.append(drafts(1)))[1] == 1


# --- an engine of the program's own --------------------------------------------------------------


async def test_an_engine_of_the_programs_own_says_which_file_and_stays_as_it_is(
    url: str, open_on: Callable[..., Any]
) -> None:
    engine = create_async_engine(url)
    store = await open_on("sqlite+aiosqlite:///not-this-one.db", engine)
    await store.append(drafts(2))
    await store.stop()
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM bus_event"))).scalar_one() == 2
        assert (await connection.exec_driver_sql("PRAGMA synchronous")).scalar_one() == 2
    await engine.dispose()


async def test_the_programs_own_engine_publishes_in_its_transactions_as_it_begins_them(
    url: str, open_on: Callable[..., Any]
) -> None:
    engine = create_async_engine(url)
    store = await open_on(url, engine)
    outbox = OutboxWriter(store.sql, lambda: None)
    async with engine.connect() as connection:
        await outbox.add(connection, draft(payload="rolled back"))
        await connection.rollback()
        await outbox.add(connection, draft(payload="committed"))
        await connection.commit()
    await store.append([draft(payload="after")])
    assert [message.payload for message in (await store.read(0, 10)).messages] == ["committed", "after"]
    await engine.dispose()


@pytest.mark.parametrize("memory", [MEMORY, "sqlite+aiosqlite://"])
def test_an_engine_of_a_database_in_memory_is_refused_with_what_to_do(memory: str) -> None:
    with pytest.raises(SettingsError, match="give EventBus the URL"):
        open_store(Settings(), create_async_engine(memory))


# --- several processes ---------------------------------------------------------------------------


async def test_processes_that_start_and_write_at_once_share_one_dense_log(
    url: str, open_on: Callable[..., Any]
) -> None:
    await publish_from_processes(url, ["a", "b", "c"], count=40)
    store = await open_on(url)
    while (await store.sequence())[0]:
        pass
    messages = (await store.read(0, 1_000)).messages
    assert [message.seq for message in messages] == list(range(1, 121))
    for name in ("a", "b", "c"):
        own = [message.payload[1] for message in messages if message.payload[0] == name]
        assert sorted(own) == list(range(40))
        # What was answered before the next one began is before it in the log, whichever way both were published.
        assert own == sorted(own)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def test_another_writer_is_warned_of_once_where_sqlite_has_the_wal_reset_bug(
    url: str, open_on: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))
    store = await open_on(url)
    await store.append(drafts(2))
    await publish_from_processes(url, ["other"], count=2)
    assert warnings_in(caplog) == []  # until this process writes again, too
    for _ in range(3):
        await store.append([draft()])
    (warning,) = warnings_in(caplog)
    assert str(make_url(url).database) in warning
    assert sqlite3.sqlite_version in warning
    assert "WAL-reset" in warning
    assert "3.51.3" in warning


async def test_another_writer_is_noticed_by_the_sequencer_too(
    url: str, open_on: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    store, other = await open_on(url), await open_on(url)
    outbox = OutboxWriter(store.sql, lambda: None)
    for node in (store, other, store, other, store):
        async with store.engine.begin() as connection:
            await outbox.add(connection, draft())
        await node.sequence()
    assert len(warnings_in(caplog)) == 2  # one each


@pytest.mark.parametrize("version", [(3, 51, 3), (3, 53, 0), (4, 0, 0), (3, 50, 7), (3, 44, 6)])
async def test_where_the_bug_is_fixed_nothing_is_said(
    url: str,
    open_on: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int, int],
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    store, other = await open_on(url), await open_on(url)
    for node in (store, other, store, other):
        await node.append([draft()])
    assert warnings_in(caplog) == []


async def test_one_process_alone_is_never_warned(
    url: str, open_on: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    earlier = await open_on(url)
    await earlier.append(drafts(5))
    await earlier.stop()
    store = await open_on(url)
    known = draft()

    async def use_the_outbox() -> None:
        for _ in range(10):
            async with store.engine.begin() as connection:
                await OutboxWriter(store.sql, lambda: None).add(connection, draft())
            await store.sequence()

    await asyncio.gather(
        use_the_outbox(),
        *(store.append([draft(), known]) for _ in range(10)),
        *(store.append(drafts(2, delay=60 * (number % 2) or None)) for number in range(10)),
    )
    await store.trim(before=None, keep=1)
    await store.append(drafts(2))
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(
    ("version", "has_bug"),
    [((3, 40, 1), True), ((3, 44, 5), True), ((3, 45, 0), True), ((3, 50, 6), True), ((3, 51, 2), True)],
)
def test_every_version_before_a_fix_has_the_bug(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], has_bug: bool
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    assert sqlite_has_wal_reset_bug() is has_bug
