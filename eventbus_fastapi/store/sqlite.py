"""The store on SQLite: one file, one writer.

What differs: a transaction begins with BEGIN IMMEDIATE, which is the head's lock (SQLite has no row locks), and all
writes of the process take turns before the file's lock, so that they queue in order instead of polling for it. An
append runs as one call in a thread: through the async driver each of its statements would cross threads twice. Other
processes may write to the file as well; where the linked SQLite makes that risky, it is said once (`Writers`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.events import Draft
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.base import Store
from eventbus_fastapi.store.engines import BEGIN, WAL_RESET_FIX, pragmas, sqlite_has_wal_reset_bug
from eventbus_fastapi.store.failures import BUSY
from eventbus_fastapi.store.statements import Statements

T = TypeVar("T")
logger = logging.getLogger(__name__)

CLOCK_TICK = 1_000
"""What the clock of SQLite can tell apart, microseconds."""


class SQLiteStore(Store):
    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        self._writing = engine.execution_options(**{BEGIN: "IMMEDIATE"})
        self._reading = engine.execution_options(**{BEGIN: "NONE"})
        self._writers = Writers(engine.url.database or "")
        self._appender = Appender(engine, settings, self.sql, self._writers)

    def _renew_locks(self) -> None:
        super()._renew_locks()
        self._write_turn = asyncio.Lock()

    async def start(self) -> None:
        """Create or upgrade the tables, as an embedded database should; several processes may start at once."""
        self._renew_locks()
        await self._appender.open()
        async with self._translated(), self._writing.connect() as connection, connection.begin():
            await connection.run_sync(migrations.upgrade, self.tables)

    async def stop(self) -> None:
        await self._appender.close()
        await super().stop()

    async def moment(self) -> int:
        """Its clock ticks in milliseconds: wait until this one is over."""
        now = await self.now()
        await asyncio.sleep(2 * CLOCK_TICK / 1_000_000)
        return now + CLOCK_TICK

    @contextlib.asynccontextmanager
    async def _writer(self) -> AsyncIterator[AsyncConnection]:
        async with self._write_turn, self._writing.connect() as connection:
            yield connection

    async def _append_alone(self, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        """One call in the appender's thread."""
        async with self._translated(), self._write_turn:
            return await self._appender.append(drafts)

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


class Appender:
    """Appends to the log in a thread of its own, with a connection of its own."""

    def __init__(self, engine: AsyncEngine, settings: Settings, sql: Statements, writers: Writers) -> None:
        dialect = engine.dialect
        self._dialect, self._url = dialect, engine.url
        self._settings = settings
        self._writers = writers
        self._look = str(sql.look_at_head_and_outbox.compile(dialect=dialect))
        self._insert = str(sql.add_to_log.compile(dialect=dialect))
        self._move_head = str(sql.move_head.compile(dialect=dialect))
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Connect, if it works at once. A database in memory lives as long as this connection."""
        await self._in_thread(self._try_to_connect)

    async def append(self, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        """Append and commit; return the new last seq and the time, or None if nothing was stored."""
        return await self._in_thread(self._run, drafts)

    async def close(self) -> None:
        """Wait for a running append and disconnect."""
        if self._thread is not None:
            thread, self._thread = self._thread, None
            thread.submit(self._disconnect)
            await asyncio.to_thread(thread.shutdown)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eventbus-appender")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _run(self, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        try:
            connection = self._connection or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                appended = self._write(connection, drafts)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as exc:
            if (exc.sqlite_errorcode or 0) & 0xFF == BUSY:
                raise StoreUnavailable(
                    f"another writer held SQLite's lock for {self._settings.busy_timeout:g} s: the database is locked"
                ) from exc
            return None
        except sqlite3.Error:
            return None
        if appended is not None:
            self._writers.wrote(appended[0])
        return appended

    def _write(self, connection: sqlite3.Connection, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        last_seq, oldest, now = connection.execute(self._look, (1,)).fetchone()
        self._writers.found(last_seq)
        if oldest is not None:
            return None
        connection.executemany(
            self._insert,
            (
                (seq, draft[0].bytes, *draft[1:6], now, None if draft.ttl is None else now + draft.ttl)
                for seq, draft in enumerate(drafts, start=last_seq + 1)
            ),
        )
        last_seq += len(drafts)
        connection.execute(self._move_head, (last_seq, 1))
        return last_seq, now

    def _try_to_connect(self) -> None:
        if self._connection is None:
            with contextlib.suppress(sqlite3.Error):  # the first append tries again
                self._connect()

    def _connect(self) -> sqlite3.Connection:
        (path, *_), options = self._dialect.create_connect_args(self._url)
        connection = sqlite3.connect(path, uri=bool(options.get("uri")), isolation_level=None, check_same_thread=False)
        try:
            for pragma in pragmas(self._settings):
                connection.execute(pragma)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
