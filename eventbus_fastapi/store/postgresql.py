"""The store on PostgreSQL, with asyncpg or psycopg 3.

What differs: an append is two statements in its transaction instead of five (arrays instead of many rows, data-modifying
CTEs instead of read and write), and the same statement notifies the other nodes, once per batch and never in a user's
transaction. One connection of the node, outside the pool, listens.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Integer,
    LargeBinary,
    Text,
    Uuid,
    bindparam,
    column,
    func,
    insert,
    null,
    select,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.base import DRAIN_LIMIT, Store
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import EVENT_FIELDS, now_micros

PROBE_INTERVAL = 10.0
"""Seconds of silence after which the listening connection is asked whether it still lives."""


class PostgreSQLStore(Store):
    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        self.has_listener = not settings.poll_only
        # A channel is an identifier of at most 63 bytes; prefix and schema together may be longer.
        place = hashlib.sha256(f"{settings.db_schema or ''}.{settings.table_prefix}".encode()).hexdigest()
        self.channel = f"eventbus_{place[:16]}"
        self._fast = FastStatements(self.tables, self.channel if self.has_listener else None)

    async def _lock_head(self, connection: AsyncConnection) -> tuple[int, bool]:
        """One statement instead of two. An outbox row that was committed before this call is in its snapshot, and one
        that another node moved while we waited for the lock is skipped by the DELETE."""
        last_seq, oldest = (await connection.execute(self.sql.lock_head_and_look)).one()
        return last_seq, oldest is not None

    async def _move_outbox(self, connection: AsyncConnection, last_seq: int, is_careful: bool) -> tuple[int, int]:
        """One statement instead of four; with look-ups, the portable way."""
        if is_careful:
            return await super()._move_outbox(connection, last_seq, is_careful)
        new_last_seq, _ = (
            await connection.execute(self._fast.move_outbox, {"base": last_seq, "limit": DRAIN_LIMIT})
        ).one()
        return new_last_seq - last_seq, new_last_seq

    async def _insert(self, connection: AsyncConnection, last_seq: int, events: Sequence[tuple[Any, ...]]) -> None:
        """One statement with an array per column, whatever the number of events."""
        names = (*EVENT_FIELDS, "ttl")
        columns = zip(*events, strict=True)
        parameters: dict[str, Any] = {f"{name}_list": list(values) for name, values in zip(names, columns, strict=True)}
        await connection.execute(
            self._fast.add_to_log, {**parameters, "base": last_seq, "last_seq": last_seq + len(events)}
        )

    async def listen(self, ring: Callable[[], None]) -> None:
        """Hold one connection outside the pool that listens; ring once it does, then after every append.

        Raises when the connection is lost: a probe after 10 seconds of silence finds half-open ones.
        """
        async with self._translated():
            connection = await self._reading.connect()
        try:
            async with self._translated():
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await connection.run_sync(lambda sync_connection: sync_connection.detach())
            if self.engine.dialect.driver == "asyncpg":
                await self._listen_asyncpg(driver, ring)
            else:
                await self._listen_psycopg(driver, ring)
        finally:
            await connection.invalidate()
            await connection.close()

    async def _listen_asyncpg(self, driver: Any, ring: Callable[[], None]) -> None:
        lost = asyncio.Event()
        driver.add_termination_listener(lambda _: lost.set())
        async with self._translated():
            await driver.add_listener(self.channel, lambda *_: ring())
        ring()
        while True:
            try:
                async with asyncio.timeout(PROBE_INTERVAL):
                    await lost.wait()
            except TimeoutError:
                async with self._translated():
                    await driver.fetchval("SELECT 1")
            else:
                raise ConnectionError("the listening connection was closed")

    async def _listen_psycopg(self, driver: Any, ring: Callable[[], None]) -> None:
        async with self._translated():
            await driver.execute(f"LISTEN {self.channel}")
        ring()
        while True:
            async for _ in driver.notifies(timeout=PROBE_INTERVAL):
                ring()
            async with self._translated():
                await driver.execute("SELECT 1")


class FastStatements:
    """The two statements of an append as PostgreSQL can do them."""

    def __init__(self, tables: Tables, channel: str | None) -> None:
        event, outbox, head = tables.event, tables.outbox, tables.head
        target = ["seq", *EVENT_FIELDS, "created_at", "expires_at"]
        now = select(now_micros()).scalar_subquery()  # once per statement, not once per row
        base = bindparam("base", type_=BigInteger)
        notified = null() if channel is None else func.pg_notify(channel, "")

        rows = func.unnest(
            bindparam("message_id_list", type_=ARRAY(Uuid(), dimensions=1)),
            bindparam("topic_list", type_=ARRAY(Text(), dimensions=1)),
            bindparam("key_list", type_=ARRAY(Text(), dimensions=1)),
            bindparam("payload_list", type_=ARRAY(postgresql.BYTEA(), dimensions=1)),
            bindparam("content_type_list", type_=ARRAY(Text(), dimensions=1)),
            bindparam("metadata_list", type_=ARRAY(Text(), dimensions=1)),
            bindparam("ttl_list", type_=ARRAY(BigInteger(), dimensions=1)),
        ).table_valued(
            column("message_id", Uuid()),
            column("topic", Text()),
            column("key", Text()),
            column("payload", LargeBinary()),
            column("content_type", Text()),
            column("metadata", Text()),
            column("ttl", BigInteger()),
            with_ordinality="place",
            name="rows",
        ).render_derived()
        added = (
            insert(event)
            .from_select(
                target,
                select(base + rows.c.place, *(rows.c[name] for name in EVENT_FIELDS), now, now + rows.c.ttl),
            )
            .cte("added")
        )
        self.add_to_log = (
            update(head)
            .where(head.c.id == 1)
            .values(last_seq=bindparam("last_seq", type_=BigInteger))
            .returning(head.c.last_seq, notified)
            .add_cte(added)
        )
        """Parameters: an array per field (`topic_list` …), base, last_seq."""

        oldest = select(outbox.c.id).order_by(outbox.c.id).limit(bindparam("limit", type_=Integer)).cte("oldest")
        moved = (
            outbox.delete()
            .where(outbox.c.id == oldest.c.id)
            .returning(outbox.c.id, *(outbox.c[name] for name in EVENT_FIELDS), outbox.c.ttl)
            .cte("moved")
        )
        place = func.row_number().over(order_by=moved.c.id)
        added = (
            insert(event)
            .from_select(target, select(base + place, *(moved.c[name] for name in EVENT_FIELDS), now, now + moved.c.ttl))
            .cte("added")
        )
        self.move_outbox = (
            update(head)
            .where(head.c.id == 1)
            .values(last_seq=base + select(func.count()).select_from(moved).scalar_subquery())
            .returning(head.c.last_seq, notified)
            .add_cte(oldest, moved, added)
        )
        """Parameters: base, limit."""
