"""The store on SQLite: one file, one writer.

What differs: a transaction begins with BEGIN IMMEDIATE, which is the head's lock (SQLite has no row locks), and all
writes of the process take turns before the file's lock, so that they queue in order instead of polling for it. The way
of almost every event, an append, a claim and a settlement, is a job of the writer (`sqlite_writer`). Other processes
may write to the file as well; where the linked SQLite makes that risky, it is said once (`Writers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventbus_fastapi.events import Draft
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.base import Store
from eventbus_fastapi.store.driver_text import DriverText
from eventbus_fastapi.store.engines import BEGIN, WAL_RESET_FIX, sqlite_has_wal_reset_bug
from eventbus_fastapi.store.sqlite_groups import SQLiteGroups
from eventbus_fastapi.store.sqlite_writer import NotWritten, SQLiteWriter

logger = logging.getLogger(__name__)

CLOCK_TICK = 1_000
"""What the clock of SQLite can tell apart, microseconds."""


class SQLiteStore(Store):
    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        self._small_writes = SQLiteWriter(engine, settings)
        super().__init__(engine, settings, owns_engine=owns_engine)
        self._writing = engine.execution_options(**{BEGIN: "IMMEDIATE"})
        self._reading = engine.execution_options(**{BEGIN: "NONE"})
        self._writers = Writers(engine.url.database or "")
        self._look_text = DriverText(self.sql.look_at_head_and_outbox, engine.dialect)
        self._insert_text = DriverText(self.sql.add_to_log, engine.dialect)
        self._move_text = DriverText(self.sql.move_head, engine.dialect)
        self.groups = SQLiteGroups(self, self._small_writes, engine.dialect)

    def _renew_locks(self) -> None:
        super()._renew_locks()
        self._small_writes.renew_turn()

    async def start(self) -> None:
        """Create or upgrade the tables, as an embedded database should; several processes may start at once."""
        self._renew_locks()
        await self._small_writes.open()
        async with self._translated(), self._writing.connect() as connection, connection.begin():
            await connection.run_sync(migrations.upgrade, self.tables)

    async def stop(self) -> None:
        await self._small_writes.close()
        await super().stop()

    async def moment(self) -> int:
        """Its clock ticks in milliseconds: wait until this one is over."""
        now = await self.now()
        await asyncio.sleep(2 * CLOCK_TICK / 1_000_000)
        return now + CLOCK_TICK

    @contextlib.asynccontextmanager
    async def _writer(self) -> AsyncIterator[AsyncConnection]:
        async with self._small_writes.turn, self._writing.connect() as connection:
            yield connection

    async def _append_alone(self, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        """One job of the writer."""
        try:
            async with self._translated():
                return await self._small_writes.write(lambda connection: self._append_in(connection, drafts))
        except NotWritten:
            return None

    def _append_in(self, connection: sqlite3.Connection, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        last_seq, oldest, now = connection.execute(self._look_text.text, self._look_text.values({})).fetchone()
        self._writers.found(last_seq)
        if oldest is not None:
            return None
        connection.executemany(
            self._insert_text.text,
            (
                (seq, draft[0].bytes, *draft[1:6], now, None if draft.ttl is None else now + draft.ttl)
                for seq, draft in enumerate(drafts, start=last_seq + 1)
            ),
        )
        last_seq += len(drafts)
        connection.execute(self._move_text.text, self._move_text.values({"last_seq": last_seq}))
        self._writers.wrote(last_seq)  # here: the next job may look before whoever waits for this one goes on
        return last_seq, now

    async def _lock_head(self, connection: AsyncConnection) -> tuple[int, bool]:
        """BEGIN IMMEDIATE holds the file's write lock, so one look is enough."""
        last_seq, oldest, _ = (await connection.execute(self.sql.look_at_head_and_outbox)).one()
        self._writers.found(last_seq)
        return last_seq, oldest is not None

    async def _move_head(self, connection: AsyncConnection, last_seq: int) -> None:
        await super()._move_head(connection, last_seq)
        self._writers.wrote(last_seq)


class Writers:
    """Notices when another bus writes to the log, and warns once where SQLite has the WAL-reset bug.

    Every append of this bus tells, under the file's write lock, how far it found the log and how far it wrote it. What
    it finds beyond what it wrote is another's, most likely another process's. One that only fills the outbox is not
    noticed: its rows look like those of this process's own sessions.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._is_done = not sqlite_has_wal_reset_bug()
        self._written: int | None = None  # None: nothing yet, and what was there before says nothing

    def found(self, last_seq: int) -> None:
        if self._is_done or self._written is None or last_seq <= self._written:
            return
        self._is_done = True
        logger.warning(
            "another bus writes to %s, too, and SQLite %s can lose committed events or corrupt the file when two "
            "processes write at the same moment (WAL-reset bug); use SQLite %s or later, or let one process write",
            self._path,
            sqlite3.sqlite_version,
            WAL_RESET_FIX,
        )

    def wrote(self, last_seq: int) -> None:
        self._written = last_seq
