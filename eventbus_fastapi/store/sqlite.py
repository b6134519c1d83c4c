"""The store on SQLite: one file, one writer.

What differs: a transaction begins with BEGIN IMMEDIATE, which is the head's lock (SQLite has no row locks), and all
writes of the process take turns before the file's lock, so that they queue in order instead of polling for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.base import Store
from eventbus_fastapi.store.engines import BEGIN

logger = logging.getLogger(__name__)


class SQLiteStore(Store):
    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        self._writing = engine.execution_options(**{BEGIN: "IMMEDIATE"})
        self._reading = engine.execution_options(**{BEGIN: "NONE"})

    def _renew_locks(self) -> None:
        super()._renew_locks()
        self._write_turn = asyncio.Lock()

    async def start(self) -> None:
        """Create or upgrade the tables, as an embedded database should; several processes may start at once."""
        self._renew_locks()
        async with self._translated(), self._writing.connect() as connection, connection.begin():
            await connection.run_sync(migrations.upgrade, self.tables)

    @contextlib.asynccontextmanager
    async def _writer(self) -> AsyncIterator[AsyncConnection]:
        async with self._write_turn, self._writing.connect() as connection:
            yield connection

    async def _lock_head(self, connection: AsyncConnection) -> tuple[int, bool]:
        """BEGIN IMMEDIATE holds the file's write lock, so one look is enough."""
        last_seq, oldest, _ = (await connection.execute(self.sql.look_at_head_and_outbox)).one()
        return last_seq, oldest is not None
