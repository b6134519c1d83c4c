"""The store on MySQL 8 and MariaDB 10.6 or newer.

What differs: a transaction of ours that has been idle for longer than a whole one may take is ended by MariaDB; it may
hold the lock of the head, and its node may be frozen or have lost its network. MySQL has no such limit, so there the
other nodes wait until the server notices that the connection is dead (TCP keepalive). On an engine of the program's own
the limit, like the isolation, is set for our transactions only.

And rows leave the outbox in one statement that is bound to look each of them up. The optimizer answers a
plain list of ids, and even a range, by a scan where the table is small; a DELETE that scans waits for every row that an
open transaction has inserted, and so an idle one would hold the log back.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sqlalchemy import Table, TextClause, event, literal_column, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.pool import ConnectionPoolEntry

from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.base import BATCH_STEPS, Store
from eventbus_fastapi.store.reader import BATCH_BYTES, PAYLOAD
from eventbus_fastapi.store.statements import Query

IS_LIMITED = "eventbus_is_limited"
"""Where a connection of the program's own keeps that the limit of its idle transactions is ours for now."""
PACKET_OVERHEAD = 65_536
"""Bytes of a statement beside the payload, each of whose bytes may be escaped by another one."""


class MySQLStore(Store):
    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        if owns_engine:
            event.listen(engine.sync_engine, "connect", self._limit_idle_transactions)
        self._is_wary = True
        self._idle_limit = math.ceil(settings.statement_timeout)
        quoted = engine.dialect.identifier_preparer.format_table
        self._removals = {table: removal(quoted(table)) for table in (self.tables.outbox, self.tables.scheduled)}

    def _limit_idle_transactions(self, connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("SHOW VARIABLES LIKE 'idle_transaction_timeout'")
        if cursor.fetchone():
            cursor.execute(f"SET SESSION idle_transaction_timeout = {self._idle_limit}")
        cursor.close()

    async def start(self) -> None:
        """Connect, check the schema, that locks last and that the server takes the largest event.

        Raises:
            SchemaOutdated, StoreUnavailable: see `Store.start`.
            SettingsError: the engine commits each statement alone. Or the server's packets are too small for
                `max_payload`. On a larger one it would close the connection, which looks like a server that went away.
        """
        await super().start()
        needed = 2 * self.settings.max_payload + PACKET_OVERHEAD
        variables: Query = select(literal_column("@@max_allowed_packet"), literal_column("@@autocommit"))
        allowed, commits_alone = await self._read_row(variables)
        if commits_alone:
            raise SettingsError(
                "the engine commits each statement alone (AUTOCOMMIT), so that no lock lasts; give EventBus one with "
                "transactions, or the URL"
            )
        if allowed < needed:
            raise SettingsError(
                f"max_payload (EVENTBUS_MAX_PAYLOAD) is {self.settings.max_payload:,} bytes, for which the server's "
                f"max_allowed_packet must be at least {needed:,}; it is {allowed:,}"
            )

    async def _lock_head(self, connection: AsyncConnection) -> tuple[int, bool]:
        if not self._owns_engine and connection.dialect.is_mariadb:  # type: ignore[attr-defined]  # this dialect has it
            limit = f"SESSION idle_transaction_timeout = {self._idle_limit}"
            await connection.exec_driver_sql(f"SET @eventbus_idle = @@idle_transaction_timeout, {limit}")
            connection.info[IS_LIMITED] = True
        return await super()._lock_head(connection)

    @contextlib.asynccontextmanager
    async def _writer(self) -> AsyncIterator[AsyncConnection]:
        async with super()._writer() as connection:
            try:
                yield connection
            finally:
                if not connection.invalidated and connection.info.pop(IS_LIMITED, False):
                    await connection.exec_driver_sql("SET SESSION idle_transaction_timeout = @eventbus_idle")

    async def _read_page(self, after: int, limit: int) -> tuple[Sequence[Sequence[Any]], bool]:
        """In steps, unless the last page was of small events: to tell how long a payload is the server reads it, and
        of a thousand large ones that takes long.
        """
        steps = (*BATCH_STEPS[:-1], limit) if self._is_wary else (limit,)
        self._is_wary = True  # until this page is there
        for step in steps:
            rows, is_last = await super()._read_page(after, min(step, limit))
            is_large = sum(len(row[PAYLOAD]) for row in rows) > BATCH_BYTES // 2
            if is_last or is_large or len(rows) < step:
                break
        self._is_wary = is_large
        return rows, is_last

    async def _take_out(self, connection: AsyncConnection, table: Table, ids: Sequence[int]) -> None:
        """One statement instead of one round trip per row, which would take a hundred times as long."""
        await connection.execute(self._removals[table], {"ids": json.dumps(ids)})


def removal(table: str) -> TextClause:
    """Return the DELETE of the rows whose ids are in a JSON array; STRAIGHT_JOIN begins with the array."""
    return text(
        "DELETE waiting FROM JSON_TABLE(:ids, '$[*]' COLUMNS (id BIGINT PATH '$')) AS wanted "
        f"STRAIGHT_JOIN {table} AS waiting ON waiting.id = wanted.id"
    )
