"""A bus that stands still: a clock of its database that only a test moves, and nodes whose stages only a test runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.sqlite import SQLiteStore
from tests.databases import as_sync, kind_of

BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
EPOCH_AS_JULIAN_DAY = 2_440_587.5

TIME_OF_POSTGRESQL = """
CREATE TABLE stopped_clock (now bigint);
INSERT INTO stopped_clock VALUES (0);
CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE plpgsql AS
    $$ BEGIN RETURN (SELECT timestamptz 'epoch' + now * interval '1 microsecond' FROM stopped_clock); END $$;
"""
"""A function that the statements of the bus find before the server's own, given the search path below."""
TIME_OF_MYSQL = "UTC_TIMESTAMP(6)"


class StoppedClock:
    """The clock of one database, which stands still until it is moved. Whoever asks the database sees it, each in the
    way of the store: no statement of the bus is another than in production.
    """

    def __init__(self, url: str) -> None:
        self.now = (BEGINNING - EPOCH) // timedelta(microseconds=1)
        """Unix microseconds, whole milliseconds: SQLite has no finer ones."""
        self._kind = kind_of(url)
        self._server: psycopg.Connection[Any] | None = None
        if self._kind == "postgresql":
            url = as_sync(url).replace("+psycopg", "")
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(TIME_OF_POSTGRESQL)
                connection.execute(f"ALTER DATABASE {connection.info.dbname} SET search_path = public, pg_catalog")
            self._server = psycopg.connect(url, autocommit=True)
            self.move(0)

    def move(self, micros: int) -> None:
        self.now += micros
        if self._server is not None:
            self._server.execute("UPDATE stopped_clock SET now = %s", (self.now,))

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    def drive(self, engine: Engine) -> None:
        """Have the connections of an engine see it, those to come."""
        if self._kind == "sqlite":
            event.listen(engine, "connect", lambda connection, record: self.drive_sqlite(connection))
        elif self._kind == "mysql":
            event.listen(engine, "before_cursor_execute", self._say_time, retval=True)

    def drive_sqlite(self, connection: Any) -> None:
        """A function of a connection goes before SQLite's own of the same name."""
        connection.create_function("julianday", 1, lambda _: EPOCH_AS_JULIAN_DAY + self.now / 86_400_000_000)

    def _say_time(
        self, connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        time = EPOCH + timedelta(microseconds=self.now)
        return statement.replace(TIME_OF_MYSQL, f"TIMESTAMP'{time:%Y-%m-%d %H:%M:%S.%f}'"), parameters


@contextmanager
def stages_standing_still() -> Iterator[None]:
    """Have nodes that are started meanwhile begin no stage: what is to run, the test runs (`run_once`)."""

    def stand_still(stage: service.Stage, *_: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(asyncio.sleep(0), name=stage.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "start", stand_still)
        yield


def make_bus(clock: StoppedClock, **settings: Any) -> EventBus:
    """Make a bus, which is a node of its own, whose database and process have the time of the clock."""
    bus = EventBus(settings=Settings(**settings))
    store = bus.node.store
    for engine in (store.engine, bus.engine):
        clock.drive(engine.sync_engine)
    vars(store)["estimate_now"] = lambda: clock.now  # the time of this host is no other
    return bus


async def start(bus: EventBus, clock: StoppedClock) -> None:
    """Start it. After a crash it knows nothing of before: it is made anew but for its SQL, which is slow to build."""
    bus.node._is_running = False
    await bus.start()
    store = bus.node.store
    if isinstance(store, SQLiteStore):
        clock.drive_sqlite(store._small_writes._connection)


async def crash(bus: EventBus, work: Sequence[AsyncConnection | AsyncSession]) -> None:
    """End a bus and its open transactions without a word: nothing is written, given back or rolled back by it."""
    for each in work:
        await each.invalidate()
        await each.close()
    await bus.node.store.stop()
    await bus.engine.dispose()
