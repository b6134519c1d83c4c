"""The ground that the other tests stand on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.databases import KINDS, DatabaseFactory, as_psycopg, as_sync, kind_of
from tests.waiting import eventually


async def test_a_database_answers_over_its_async_driver(database_url: str) -> None:
    assert await ask(database_url) == 1


def test_a_database_answers_over_its_sync_driver_and_is_empty(database_url: str) -> None:
    engine = create_engine(as_sync(database_url))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
        assert inspect(connection).get_table_names() == []
    engine.dispose()


@pytest.mark.databases("postgresql")
async def test_psycopg_serves_async_engines_too(database_url: str) -> None:
    assert await ask(as_psycopg(database_url)) == 1


async def test_async_and_sync_driver_see_the_same_database(database_url: str) -> None:
    engine = create_engine(as_sync(database_url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE seen (n INTEGER)"))
        connection.execute(text("INSERT INTO seen VALUES (7)"))
    engine.dispose()
    assert await ask(database_url, "SELECT n FROM seen") == 7


@pytest.mark.databases("sqlite", "mysql")
def test_the_marker_picks_the_databases(database_url: str) -> None:
    assert kind_of(database_url) in {"sqlite", "mysql"}


@pytest.mark.parametrize("kind", KINDS)
def test_databases_of_one_test_are_apart(new_database: Callable[[str], str], kind: str) -> None:
    assert new_database(kind) != new_database(kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_database_is_dropped_though_somebody_is_connected(
    database_factory: Callable[[str], DatabaseFactory], kind: str
) -> None:
    url = database_factory(kind).create()
    engine = create_engine(as_sync(url))
    connection = engine.connect()
    connection.execute(text("CREATE TABLE held (n INTEGER)"))

    database_factory(kind).drop(url)

    connection.invalidate()
    connection.close()
    engine.dispose()
    if kind != "sqlite":  # which makes the file when it is opened
        with pytest.raises(Exception, match=r"(?i)does not exist|unknown database"):
            await ask(url)


async def test_eventually_returns_what_came_true() -> None:
    looks: list[int] = []

    async def third_look() -> int:
        looks.append(1)
        return len(looks) if len(looks) == 3 else 0

    assert await eventually(third_look) == 3


async def test_eventually_says_what_it_saw_last() -> None:
    with pytest.raises(AssertionError, match=r"within 0\.02 s: it returned \[\] last"):
        await eventually(list, timeout=0.02)


async def test_eventually_says_what_was_raised_last() -> None:
    def look() -> bool:
        raise LookupError("no such node")

    with pytest.raises(AssertionError, match=r"it raised LookupError\('no such node'\) last") as caught:
        await eventually(look, timeout=0.02)
    assert isinstance(caught.value.__cause__, LookupError)


async def ask(url: str, question: str = "SELECT 1") -> object:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        answer: object = await connection.scalar(text(question))
    await engine.dispose()
    return answer
