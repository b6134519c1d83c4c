"""How the store talks to its database: bounded in time, whole transactions run again, errors of the driver translated.

It knows connections and transactions, never a table.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast

from sqlalchemy import Row, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.errors import SchemaOutdated, StoreError
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.engines import MYSQL
from eventbus_fastapi.store.failures import (
    FAILURES,
    first_line,
    hide_parameters,
    is_contention,
    is_disconnect,
    translate,
)
from eventbus_fastapi.store.statements import Query
from eventbus_fastapi.store.time_limit import TimeLimit

T = TypeVar("T")
AnyRow = Row[*tuple[Any, ...]]
logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a transaction runs when the database asks to run it again."""
FIRST_USED_AT = "eventbus_first_used_at"
"""Where a pooled connection keeps when it first left the pool."""
IN_LIMIT = 500
"""Most values in one IN list; SQLite's and PostgreSQL's planners like short ones."""


class Collision(Exception):
    """A unique value is there already; the transaction was rolled back."""


class Database:
    """See the module's docstring. `engine` is the pool; reads are single statements, writes are transactions.

    An isolation level is never an option of `connect` here, except where a driver sets it without asking the server
    (PostgreSQL's do): SQLAlchemy sets it when a connection leaves the pool, outside its own handling of errors, so that
    a connection which the server has closed would neither be recognised as dead nor go back.
    """

    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        self.engine = engine
        self.settings = settings
        self._owns_engine = owns_engine
        self._writing = engine
        self._reading = engine
        self._ends_reads = owns_engine and engine.dialect.name in MYSQL
        self._trusted_from = 0.0  # connections used earlier are not used again, in the time of time.monotonic()
        if owns_engine and engine.dialect.name != "sqlite":
            event.listen(engine.sync_engine, "checkout", self._refuse_distrusted)

    async def transact(
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        *,
        is_optimistic: bool = False,
        retry_on_integrity: bool = False,
    ) -> T:
        """Run `work` in a transaction of its own and commit it.

        The whole transaction runs again, a few times, when the database asked for that (deadlock, serialisation, busy),
        and once when its connection turned out to be dead, which is how a pool notices a restarted server.

        Raises:
            StoreUnavailable: the database cannot be reached, or is still busy after the retries.
            StoreError: it refused the work.
        """
        try:
            async with TimeLimit(self.settings.statement_timeout) as limit:  # of all attempts together
                return await self._attempt(work, limit, is_optimistic, retry_on_integrity)
        except TimeoutError as exc:
            raise self._translate(exc) from exc

    async def _attempt(
        self,
        work: Callable[[AsyncConnection], Awaitable[T]],
        limit: TimeLimit,
        is_optimistic: bool,
        retry_on_integrity: bool,
    ) -> T:
        delays = FullJitter(base=0.01, cap=0.5)
        for attempt in range(ATTEMPTS):
            try:
                async with self._writer() as connection, connection.begin():
                    await self._isolate(connection)
                    return await work(connection)
            except IntegrityError as exc:
                if is_optimistic:
                    raise Collision from exc
                hide_parameters(exc)
                if not retry_on_integrity or attempt == ATTEMPTS - 1:
                    raise StoreError(f"the database refused the write: {first_line(exc)}") from exc
            except FAILURES as exc:
                may_pass = is_contention(exc) or (is_disconnect(exc) and attempt == 0)
                if not may_pass or attempt == ATTEMPTS - 1 or limit.is_over:
                    raise self._translate(exc) from exc
                logger.info("ran a transaction again after: %s", first_line(exc))
            await asyncio.sleep(delays.delay(attempt))
        raise AssertionError("unreachable")

    async def _isolate(self, connection: AsyncConnection) -> None:
        """Make the transaction that begins READ COMMITTED, which every engine of our own is already."""
        if not self._owns_engine:
            await connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")

    @contextlib.asynccontextmanager
    async def _writer(self) -> AsyncIterator[AsyncConnection]:
        async with self._writing.connect() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[AsyncConnection]:
        async with self._reading.connect() as connection:
            try:
                await self._isolate(connection)
                yield connection
            finally:
                if self._ends_reads:  # else the pool does it, or there was no transaction
                    await connection.rollback()

    async def _read_row(self, statement: Query) -> AnyRow:
        async with self._translated(), self._reader() as connection:
            row = (await connection.execute(statement)).first()
        if row is None:
            raise SchemaOutdated("the head row is missing; run: eventbus migrate upgrade")
        return row

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """Bound a database operation in time and turn the driver's errors into ours."""
        try:
            async with TimeLimit(self.settings.statement_timeout):
                yield
        except FAILURES as exc:
            raise self._translate(exc) from exc

    def _translate(self, exc: BaseException) -> StoreError:
        """Turn the driver's error into ours, and remember what it says of the connections."""
        if isinstance(exc, TimeoutError):
            self._trusted_from = time.monotonic()
        return translate(exc)

    def _refuse_distrusted(self, connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
        """Have the pool make a connection anew, as it leaves the pool; never one that was just made, since the pool
        makes but one.
        """
        if record.info.setdefault(FIRST_USED_AT, time.monotonic()) >= self._trusted_from:
            return
        if self.engine.dialect.driver == "asyncpg":
            cast(Any, connection).driver_connection.terminate()  # its close() would say goodbye and wait
        raise DisconnectionError("the connection was open when a statement was not answered")


def chunks(values: list[T]) -> list[list[T]]:
    """Return values in lists that are short enough for one IN."""
    return [values[start : start + IN_LIMIT] for start in range(0, len(values), IN_LIMIT)]
