"""The writer of SQLite: what waits together is one commit, and what fails alone fails alone."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.engines import create_engine
from eventbus_fastapi.store.sqlite_writer import NotWritten, SQLiteWriter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.db"


@pytest.fixture
async def writer(path: Path) -> AsyncIterator[SQLiteWriter]:
    """A writer of a file with a table of unique numbers."""
    settings = Settings(database_url=f"sqlite+aiosqlite:///{path}", busy_timeout=0.05)
    engine = create_engine(settings)
    writer = SQLiteWriter(engine, settings)
    await writer.open()
    await writer.write(lambda connection: connection.execute("CREATE TABLE number (n INTEGER UNIQUE)"))
    yield writer
    await writer.close()
    await engine.dispose()


def add(number: int) -> Callable[[sqlite3.Connection], int]:
    """A job that adds a number and returns it."""

    def job(connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO number VALUES (?)", (number,))
        return number

    return job


def numbers(path: Path) -> list[int]:
    with sqlite3.connect(path) as connection:
        found = [row[0] for row in connection.execute("SELECT n FROM number ORDER BY n")]
    connection.close()
    return found


async def test_jobs_that_wait_together_are_one_transaction(writer: SQLiteWriter) -> None:
    commits: list[str] = []
    await writer.write(lambda connection: connection.set_trace_callback(commits.append))
    answers = await asyncio.gather(*(writer.write(add(number)) for number in range(5)))
    assert answers == [0, 1, 2, 3, 4]
    assert commits.count("COMMIT") == 2  # the first is of the job that began to listen


async def test_a_job_that_fails_fails_alone(writer: SQLiteWriter, path: Path) -> None:
    answers = await asyncio.gather(*(writer.write(add(number)) for number in (1, 1, 2)), return_exceptions=True)
    assert answers[0] == 1
    assert isinstance(answers[1], NotWritten)
    assert answers[2] == 2
    assert numbers(path) == [1, 2]


async def test_a_fault_of_a_job_is_told_to_whoever_wants_it_done(writer: SQLiteWriter, path: Path) -> None:
    answers = await asyncio.gather(writer.write(add(1)), writer.write(add(2**70)), return_exceptions=True)
    assert answers[0] == 1
    assert isinstance(answers[1], OverflowError)
    assert numbers(path) == [1]


async def test_a_job_whose_caller_is_gone_before_its_turn_is_not_done(writer: SQLiteWriter, path: Path) -> None:
    async with writer.turn:
        gone = asyncio.create_task(writer.write(add(1)))
        stays = asyncio.create_task(writer.write(add(2)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
    assert await stays == 2
    assert numbers(path) == [2]


async def test_the_lock_of_another_process_is_told_to_each(writer: SQLiteWriter, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    answers = await asyncio.gather(writer.write(add(1)), writer.write(add(2)), return_exceptions=True)
    other.execute("ROLLBACK")
    other.close()
    assert [type(answer) for answer in answers] == [StoreUnavailable, StoreUnavailable]
    assert await writer.write(add(1)) == 1


async def test_closing_does_what_waits(writer: SQLiteWriter, path: Path) -> None:
    waiting = asyncio.create_task(writer.write(add(1)))
    await asyncio.sleep(0)
    await writer.close()
    assert await waiting == 1
    assert numbers(path) == [1]
