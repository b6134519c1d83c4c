"""Events of foreign transactions enter the log when these commit, in that order, and not at all if they do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from eventbus_fastapi.bus import EventBus
from tests.faults import idle_transaction
from tests.faults.conftest import Standing
from tests.faults.followers import SocketFollower, following
from tests.faults.processes import Processes
from tests.faults.writer import async_engine
from tests.waiting import eventually

OPEN_FOR = 4.0
"""Seconds: who waited for the transaction would wait as long, and a loaded machine does not stand still as long."""


class Outside:
    """A program with an engine of its own, and a follower of a node on the same database. Topics have a prefix."""

    def __init__(self, standing: Standing) -> None:
        self.engine: AsyncEngine = async_engine(standing.database_url)
        self._bus = EventBus(standing.database_url)
        self._http = standing.node.http
        self._prefix = f"t{uuid4().hex}."
        self.follower = SocketFollower(standing.node.ws, pattern=f"{self._prefix}#", after=None)

    @property
    def topics(self) -> list[str]:
        """What the follower saw so far."""
        return [event.topic.removeprefix(self._prefix) for event in self.follower.seen]

    async def publish(self, connection: AsyncConnection, topic: str) -> None:
        await self._bus.publish_txn(connection, self._prefix + topic, {"of": topic})

    async def post(self, topic: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=self._http, trust_env=False, timeout=30) as client:
            return await client.post("/publish", json={"topic": self._prefix + topic, "payload": None})

    async def everything(self) -> list[str]:
        """Publish one more event, and return what the follower saw until then; the seqs must be dense."""
        assert (await self.post("last")).status_code == 201
        await eventually(lambda: self.topics[-1:] == ["last"])
        seqs = [event.seq for event in self.follower.seen]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
        return self.topics[:-1]


@pytest.fixture
async def outside(standing: Standing) -> AsyncIterator[Outside]:
    outside = Outside(standing)
    async with following(outside.follower):
        yield outside
    await outside.engine.dispose()


@pytest.mark.databases("postgresql", "mysql")
async def test_who_commits_first_comes_first_and_who_published_first_is_not_lost(outside: Outside) -> None:
    async with outside.engine.connect() as a, outside.engine.connect() as b:
        await outside.publish(a, "a")
        await outside.publish(b, "b")

        await b.commit()
        await eventually(lambda: outside.topics == ["b"])
        await a.commit()
        await eventually(lambda: outside.topics == ["b", "a"])

    assert await outside.everything() == ["b", "a"]


@pytest.mark.databases("postgresql", "mysql")
async def test_an_open_transaction_holds_nobody_back(processes: Processes, database_url: str) -> None:
    numbers = await idle_transaction.run(processes, database_url, seconds=OPEN_FOR)

    assert numbers["commit of another to subscriber, longest s"] < OPEN_FOR
    assert numbers["publish through the node, longest s"] < OPEN_FOR


@pytest.mark.databases("postgresql", "mysql")
@pytest.mark.parametrize("count", [5, 300])
async def test_a_transaction_of_many_events_passes_an_open_one(outside: Outside, count: int) -> None:
    async with outside.engine.connect() as open_one:
        await outside.publish(open_one, "open")
        async with outside.engine.begin() as other:
            for _ in range(count):
                await outside.publish(other, "other")
        await eventually(lambda: len(outside.topics) == count)
        await open_one.commit()

    assert await outside.everything() == ["other"] * count + ["open"]


@pytest.mark.databases("postgresql")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_the_isolation_of_the_publisher_does_not_matter(outside: Outside, level: Any) -> None:
    async with outside.engine.connect() as strict, outside.engine.connect() as other:
        await strict.execution_options(isolation_level=level)
        await strict.execute(text("SELECT 1"))
        await outside.publish(other, "other")
        await other.commit()
        await eventually(lambda: outside.topics == ["other"])
        await outside.publish(strict, "strict")
        await strict.commit()

    assert await outside.everything() == ["other", "strict"]


async def test_nothing_of_a_transaction_that_is_rolled_back_appears(outside: Outside) -> None:
    async with outside.engine.connect() as abandoned:
        await outside.publish(abandoned, "never")
        await outside.publish(abandoned, "never")
        await abandoned.rollback()
        await outside.publish(abandoned, "kept")
        await abandoned.commit()

    assert await outside.everything() == ["kept"]


async def test_a_savepoint_that_is_rolled_back_takes_its_own_events_only(outside: Outside) -> None:
    async with outside.engine.begin() as connection:
        await outside.publish(connection, "before")
        savepoint = await connection.begin_nested()
        await outside.publish(connection, "undone")
        inner = await connection.begin_nested()
        await outside.publish(connection, "undone.too")
        await inner.commit()
        await savepoint.rollback()
        kept = await connection.begin_nested()
        await outside.publish(connection, "kept")
        await kept.commit()
        await outside.publish(connection, "after")

    assert await outside.everything() == ["before", "kept", "after"]


async def test_a_program_that_dies_before_its_commit_has_published_nothing(outside: Outside) -> None:
    async with outside.engine.connect() as dying:
        await outside.publish(dying, "never")
        await dying.invalidate()

    assert await outside.everything() == []


# --- SQLite has one writer ---


@pytest.mark.databases("sqlite")
async def test_on_sqlite_a_publish_behind_an_open_transaction_is_refused_for_now(outside: Outside) -> None:
    async with outside.engine.connect() as open_one:
        await outside.publish(open_one, "open")

        refused = await outside.post("refused")
        await open_one.commit()

    assert (refused.status_code, refused.json()["code"], refused.json()["retry"]) == (503, "store.unavailable", True)
    assert await outside.everything() == ["open"]


@pytest.mark.databases("sqlite")
async def test_on_sqlite_a_transaction_that_only_reads_holds_nobody_back(standing: Standing, outside: Outside) -> None:
    reader = create_async_engine(standing.database_url)
    async with reader.connect() as reading:
        await reading.exec_driver_sql("BEGIN")
        before = (await reading.exec_driver_sql("SELECT count(*) FROM bus_event")).scalar_one()

        assert (await outside.post("other")).status_code == 201
        await eventually(lambda: outside.topics == ["other"])

        assert (await reading.exec_driver_sql("SELECT count(*) FROM bus_event")).scalar_one() == before
    await reader.dispose()
