"""The store on PostgreSQL, with asyncpg or psycopg 3.

What differs: an append is one statement and one round trip (arrays instead of many rows, data-modifying CTEs instead of
lock, read and write) as long as the outbox is empty, and two statements in a transaction otherwise. The same statement
notifies the other nodes, once per batch and never in a user's transaction. One connection of the node, outside the
pool, listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    CTE,
    BigInteger,
    ColumnElement,
    Integer,
    TableValuedAlias,
    Text,
    Uuid,
    bindparam,
    cast,
    column,
    event,
    func,
    insert,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.sql.dml import ReturningInsert
from sqlalchemy.types import TypeEngine, UserDefinedType
from sqlalchemy.util.concurrency import greenlet_spawn

from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.events import Draft
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.base import DRAIN_LIMIT, Moved, Store
from eventbus_fastapi.store.driver_text import DriverText
from eventbus_fastapi.store.engines import at_level
from eventbus_fastapi.store.failures import FAILURES, first_line, is_contention, is_disconnect
from eventbus_fastapi.store.postgresql_groups import PostgreSQLGroups
from eventbus_fastapi.store.reader import BATCH_BYTES
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import EVENT_FIELDS, Query, expiry, now_micros
from eventbus_fastapi.store.time_limit import TimeLimit

PROBE_INTERVAL = 10.0
"""Seconds of silence after which the listening connection is asked whether it still lives."""
Append = Query | ReturningInsert[*tuple[Any, ...]]
"""A statement that appends, and returns the new last seq and the time."""
IS_PREPARED = "eventbus_is_prepared"
"""Where a connection keeps that its statements are prepared."""


class PostgreSQLStore(Store):
    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        if owns_engine and not settings.poll_only:  # a pooler's sessions are not ours to set
            event.listen(engine.sync_engine, "connect", _read_committed_alone)
        self._writing = at_level(engine, "READ COMMITTED")
        self._reading = at_level(engine, "AUTOCOMMIT")
        self.has_listener = not settings.poll_only
        # A channel is an identifier of at most 63 bytes; prefix and schema together may be longer.
        place = hashlib.sha256(f"{settings.db_schema or ''}.{settings.table_prefix}".encode()).hexdigest()
        self.channel = f"eventbus_{place[:16]}"
        self._notified_at = 0.0
        self._node = secrets.token_hex(8)  # names this store in its notifications: it need not hear itself
        self._fast = FastStatements(self.tables, self.channel if self.has_listener else None, self._node)
        self._is_asyncpg = engine.dialect.driver == "asyncpg"
        self._driver_failures = _driver_failures(engine)
        self._texts = {
            statement: DriverText(statement, engine.dialect)
            for statement in (
                self._fast.append_alone,
                self._fast.append_quietly,
                self._fast.append_one,
                self._fast.append_one_quietly,
                self.sql.read_small,
                self.sql.read_log,
                self.sql.sizes_of_log,
            )
        }

        if self._is_asyncpg:
            self.groups = PostgreSQLGroups(
                self,
                compile_text=lambda statement: DriverText(statement, engine.dialect).fill,
                lend=self._driver,
                failures=self._driver_failures,
            )

    async def _append_alone(self, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        """One statement of its own: its UPDATE of the head is the lock, held until it commits.

        Whatever was committed to the outbox before this call is in the statement's snapshot, so "empty" cannot be wrong
        about an event that must come first.
        """
        events = [(*draft[:6], draft.ttl) for draft in drafts]
        is_one = len(events) == 1
        parameters = _fields(events[0]) if is_one else {**_arrays(events), "count": len(events)}
        try:
            async with TimeLimit(self.settings.statement_timeout):
                row = await self._execute_append(self._append_statement(is_one), parameters)
                return None if row is None else (row[0], row[1])
        except TimeoutError as exc:
            raise self._translate(exc) from exc
        except (IntegrityError, *self._driver_failures):  # type: ignore[misc]  # a tuple of exceptions, made at start
            return None
        except FAILURES as exc:
            if is_contention(exc) or is_disconnect(exc):
                return None
            raise self._translate(exc) from exc

    def _append_statement(self, is_one: bool) -> Append:
        """Return the one that notifies, or the one that does not: each listening session wakes up for a notification,
        and with some of them that is as much work for the server as a small append.
        """
        now = time.monotonic()
        if now - self._notified_at < self.notifies_every:
            return self._fast.append_one_quietly if is_one else self._fast.append_quietly
        self._notified_at = now
        return self._fast.append_one if is_one else self._fast.append_alone

    async def _execute_append(self, statement: Append, parameters: dict[str, Any]) -> Sequence[Any] | None:
        """Ask asyncpg itself, as for a page: this is the way of almost every event."""
        if self._is_asyncpg:
            async with self._driver() as driver:
                row: Sequence[Any] | None = await driver.fetchrow(*self._texts[statement].fill(parameters))
                return row
        async with self._reading.connect() as connection:
            return (await connection.execute(statement, parameters)).one_or_none()

    @contextlib.asynccontextmanager
    async def _driver(self) -> AsyncIterator[Any]:
        """Lend the asyncpg connection of one in the pool, for a statement that is a transaction of its own.

        SQLAlchemy's connection around it would take as long again to make and to give back.
        """
        pooled = await self.engine.raw_connection()
        try:
            yield pooled.driver_connection
        finally:
            await greenlet_spawn(pooled.close)  # there is no transaction to end, so this waits for nothing

    async def _read_rows(self, query: Query, parameters: dict[str, int]) -> Sequence[Sequence[Any]]:
        """Ask asyncpg itself, which halves the time of a page. What fails is asked again the portable way, which knows
        what to do with the connection and the error.
        """
        if not self._is_asyncpg:
            return await super()._read_rows(query, parameters)
        with contextlib.suppress(*self._driver_failures):
            async with self._driver() as driver:
                rows: list[Sequence[Any]] = await driver.fetch(*self._texts[query].fill(parameters))
                return rows
        return await super()._read_rows(query, parameters)

    async def _isolate(self, connection: AsyncConnection) -> None:
        """The option of `_writing` has done it, without a round trip."""

    async def _lock_head(self, connection: AsyncConnection) -> tuple[int, bool]:
        """One statement instead of two. An outbox row that was committed before this call is in its snapshot, and one
        that another node moved while we waited for the lock is skipped by the DELETE.

        A node that freezes or loses its network now holds the lock, and the server may not notice for hours; so this
        transaction ends when it has been idle for longer than a whole one may take.
        """
        await self._prepare(connection)
        idle = str(max(1, int(self.settings.statement_timeout * 1000)))
        last_seq, oldest, _ = (await connection.execute(self._fast.lock_head_and_look, {"idle": idle})).one()
        return last_seq, oldest is not None

    async def _prepare(self, connection: AsyncConnection) -> None:
        """Have a new connection prepare what runs under the lock, by a run that does nothing.

        asyncpg takes a round trip of its own for it, between whose halves the server calls no transaction idle. Where
        nothing may stay prepared, that cannot be helped.
        """
        if not self._is_asyncpg or self.settings.poll_only or connection.info.get(IS_PREPARED):
            return
        await connection.execute(self._fast.move_outbox, {"head": 0, "base": 0, "limit": 0})
        await connection.execute(self._fast.add_to_log, {"head": 0, "base": 0, "last_seq": 0, **NO_EVENTS})
        connection.info[IS_PREPARED] = True

    async def _move_outbox(self, connection: AsyncConnection, last_seq: int, is_careful: bool) -> Moved:
        """One statement instead of many; with look-ups, the portable way."""
        if is_careful:
            return await super()._move_outbox(connection, last_seq, is_careful)
        new_last_seq, seen, _ = (
            await connection.execute(self._fast.move_outbox, {"head": 1, "base": last_seq, "limit": DRAIN_LIMIT})
        ).one()
        moved = new_last_seq - last_seq
        return Moved(moved, new_last_seq, is_all=moved == seen < DRAIN_LIMIT)

    async def _move_head(self, connection: AsyncConnection, last_seq: int) -> None:
        """Tell the other nodes, too."""
        await connection.execute(self._fast.move_head, {"last_seq": last_seq})

    async def _insert(self, connection: AsyncConnection, last_seq: int, events: Sequence[tuple[Any, ...]]) -> None:
        """One statement with an array per column, whatever the number of events."""
        await connection.execute(
            self._fast.add_to_log,
            {**_arrays(events), "head": 1, "base": last_seq, "last_seq": last_seq + len(events)},
        )

    async def listen(self, hear: Callable[[int | None], None]) -> None:
        """Hold one connection outside the pool that listens.

        Calls `hear` with None once it does (what was appended before is unheard), then with the last seq of each
        append.

        Raises:
            StoreUnavailable: the connection is lost; a probe after 10 seconds of silence finds half-open ones.
        """
        async with self._translated():
            connection = await self._reading.connect()
        driver: Any = None
        try:
            async with self._translated():
                driver = (await connection.get_raw_connection()).driver_connection
                await connection.run_sync(lambda sync_connection: sync_connection.detach())
            if self._is_asyncpg:
                await self._listen_asyncpg(driver, hear)
            else:
                await self._listen_psycopg(driver, hear)
        except self._driver_failures as exc:  # of the driver itself: SQLAlchemy is not asked here
            raise StoreUnavailable(f"stopped listening: {first_line(exc)}") from exc
        finally:
            await self._hang_up(connection, driver)

    def _hear(self, payload: str, hear: Callable[[int | None], None]) -> None:
        last_seq, _, node = payload.partition(" ")
        if node != self._node:
            hear(int(last_seq))

    async def _hang_up(self, connection: AsyncConnection, driver: Any) -> None:
        """Close a connection outside the pool without waiting for the server, which may not answer any more."""
        if driver is not None and self._is_asyncpg:
            driver.terminate()  # its close() would say goodbye and wait
        elif driver is not None:
            await driver.close()
        await connection.invalidate()  # or SQLAlchemy would roll back what is closed
        await connection.close()

    async def _listen_asyncpg(self, driver: Any, hear: Callable[[int | None], None]) -> None:
        lost = asyncio.Event()
        driver.add_termination_listener(lambda _: lost.set())
        async with self._translated():
            await driver.add_listener(self.channel, lambda *notice: self._hear(notice[-1], hear))
        hear(None)
        while True:
            try:
                async with asyncio.timeout(PROBE_INTERVAL):
                    await lost.wait()
            except TimeoutError:
                async with self._translated():
                    await driver.fetchval("SELECT 1")
            else:
                raise ConnectionError("the listening connection was closed")

    async def _listen_psycopg(self, driver: Any, hear: Callable[[int | None], None]) -> None:
        async with self._translated():
            await driver.execute(f"LISTEN {self.channel}")
        hear(None)
        while True:
            async for notice in driver.notifies(timeout=PROBE_INTERVAL):
                self._hear(notice.payload, hear)
            async with self._translated():
                await driver.execute("SELECT 1")


def _read_committed_alone(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    """Make single statements READ COMMITTED, too: no BEGIN says so for them, and a server's default may be stricter."""
    cursor = connection.cursor()
    cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")
    cursor.close()
    connection.commit()


def _driver_failures(engine: AsyncEngine) -> tuple[type[Exception], ...]:
    """Return what the driver itself raises, and its pool where SQLAlchemy does not translate; it is there if an engine
    uses it.
    """
    if engine.dialect.driver == "asyncpg":
        import asyncpg

        adapted: type[Exception] = engine.dialect.loaded_dbapi.Error
        # The last: the server has said goodbye on an idle connection and not hung up yet.
        return (adapted, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)
    import psycopg

    return (psycopg.Error, OSError)


class Untouched(UserDefinedType[Any]):
    """A parameter that goes to the driver as it is. SQLAlchemy's ARRAY would look at every element on its way."""

    cache_ok = True

    def get_col_spec(self, **options: Any) -> str:
        raise NotImplementedError("only for parameters inside a CAST")


COLUMN_TYPES: dict[str, TypeEngine[Any]] = {
    "message_id": Uuid(),
    "topic": Text(),
    "key": Text(),
    "payload": postgresql.BYTEA(),
    "content_type": Text(),
    "metadata": Text(),
    "ttl": BigInteger(),
}


NO_EVENTS: dict[str, Any] = {f"{name}_list": [] for name in COLUMN_TYPES}
"""What `_arrays` would make of none."""


def _arrays(events: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """Turn events (their fields and ttl) into a parameter per column."""
    columns = zip(*events, strict=True)
    return {f"{name}_list": list(values) for name, values in zip(COLUMN_TYPES, columns, strict=True)}


def _fields(event: tuple[Any, ...]) -> dict[str, Any]:
    """Turn an event (its fields and ttl) into a parameter per column."""
    return dict(zip((f"{name}_one" for name in COLUMN_TYPES), event, strict=True))


def _rows() -> TableValuedAlias:
    """The events of `_arrays` as rows, with their `place` from 1."""
    arrays = [
        cast(bindparam(f"{name}_list", type_=Untouched()), ARRAY(kind, dimensions=1))
        for name, kind in COLUMN_TYPES.items()
    ]
    columns = [column(name, kind) for name, kind in COLUMN_TYPES.items()]
    return func.unnest(*arrays).table_valued(*columns, with_ordinality="place", name="rows").render_derived()


class FastStatements:
    """The statements of an append as PostgreSQL can do them."""

    def __init__(self, tables: Tables, channel: str | None, node: str) -> None:
        log, outbox, head = tables.event, tables.outbox, tables.head
        target = ["seq", *EVENT_FIELDS, "created_at", "expires_at"]
        now = select(now_micros()).scalar_subquery()  # once per statement, not once per row
        base = bindparam("base", type_=BigInteger)
        head_id = bindparam("head", type_=Integer)  # 1; with another, and no events, the statement does nothing
        notified = null() if channel is None else func.pg_notify(channel, cast(head.c.last_seq, Text) + f" {node}")

        rows = _rows()
        added = (
            insert(log)
            .from_select(
                target,
                select(base + rows.c.place, *(rows.c[name] for name in EVENT_FIELDS), now, now + rows.c.ttl),
            )
            .cte("added")
        )
        self.add_to_log = (
            update(head)
            .where(head.c.id == head_id)
            .values(last_seq=bindparam("last_seq", type_=BigInteger))
            .returning(head.c.last_seq, notified)
            .add_cte(added)
        )
        """Parameters: an array per field (`topic_list` …), head, base, last_seq."""

        self.move_head = (
            update(head)
            .where(head.c.id == 1)
            .values(last_seq=bindparam("last_seq", type_=BigInteger))
            .returning(notified)
        )

        self.lock_head_and_look = (
            select(
                head.c.last_seq,
                select(func.min(outbox.c.id)).scalar_subquery(),
                func.set_config("idle_in_transaction_session_timeout", bindparam("idle", type_=Text), true()),
            )
            .where(head.c.id == 1)
            .with_for_update(of=head)
        )
        """The parameter is how long the transaction may be idle from here on, milliseconds as text."""

        self.append_alone = self._append(tables, notified)
        """Parameters: an array per field, count. Returns the new last seq and the time; no row if the outbox is not
        empty."""
        self.append_quietly = self._append(tables, null())
        """The same, and nobody is notified."""
        self.append_one = self._append_one(tables, notified)
        """For one event, without arrays, whose rows would be a tenth of the server's work. Parameters: one per field
        (`topic_one` …). Returns as the others do."""
        self.append_one_quietly = self._append_one(tables, null())

        size = func.length(outbox.c.payload)
        oldest = (
            select(outbox.c.id, (func.sum(size).over(order_by=outbox.c.id, rows=(None, 0)) - size).label("before"))
            .order_by(outbox.c.id)
            .limit(bindparam("limit", type_=Integer))
            .cte("oldest")
        )
        moved = (
            outbox.delete()
            .where(outbox.c.id == oldest.c.id, oldest.c.before < BATCH_BYTES)
            .returning(outbox.c.id, *(outbox.c[name] for name in EVENT_FIELDS), outbox.c.ttl)
            .cte("moved")
        )
        place = func.row_number().over(order_by=moved.c.id)
        added = (
            insert(log)
            .from_select(
                target,
                select(base + place, *(moved.c[name] for name in EVENT_FIELDS), now, expiry(now, moved.c.ttl)),
            )
            .cte("added")
        )
        self.move_outbox = (
            update(head)
            .where(head.c.id == head_id)
            .values(last_seq=base + select(func.count()).select_from(moved).scalar_subquery())
            .returning(head.c.last_seq, select(func.count()).select_from(oldest).scalar_subquery(), notified)
            .add_cte(oldest, moved, added)
        )
        """Parameters: head, base, limit. Returns the new last seq and how many rows were looked at."""

    def _append(self, tables: Tables, notified: ColumnElement[Any]) -> Query:
        log = tables.event
        count = bindparam("count", type_=BigInteger)
        moved_head = self._moved_head(tables, count, notified)
        rows = _rows()
        added = (
            insert(log)
            .from_select(
                ["seq", *EVENT_FIELDS, "created_at", "expires_at"],
                select(
                    moved_head.c.last_seq - count + rows.c.place,
                    *(rows.c[name] for name in EVENT_FIELDS),
                    moved_head.c.now,
                    moved_head.c.now + rows.c.ttl,
                ).select_from(moved_head.join(rows, true())),
            )
            .cte("added")
        )
        return select(moved_head.c.last_seq, moved_head.c.now).add_cte(added)

    def _append_one(self, tables: Tables, notified: ColumnElement[Any]) -> ReturningInsert[*tuple[Any, ...]]:
        log = tables.event
        moved_head = self._moved_head(tables, 1, notified)
        value = {name: cast(bindparam(f"{name}_one", type_=Untouched()), kind) for name, kind in COLUMN_TYPES.items()}
        return (
            insert(log)
            .from_select(
                ["seq", *EVENT_FIELDS, "created_at", "expires_at"],
                select(
                    moved_head.c.last_seq,
                    *(value[name] for name in EVENT_FIELDS),
                    moved_head.c.now,
                    moved_head.c.now + value["ttl"],
                ),
            )
            .returning(log.c.seq, log.c.created_at)
        )

    def _moved_head(self, tables: Tables, count: ColumnElement[int] | int, notified: ColumnElement[Any]) -> CTE:
        """The head, moved on by the number of events; no row if the outbox is not empty."""
        outbox, head = tables.outbox, tables.head
        return (
            update(head)
            .where(head.c.id == 1, ~select(outbox.c.id).exists())
            .values(last_seq=head.c.last_seq + count)
            .returning(head.c.last_seq, now_micros().label("now"), notified)
            .cte("moved_head")
        )
