"""A writer: does the small writes of SQLite's happy path in a thread of its own, with a connection of its own.

    job ──▶ waiting ──▶ BEGIN IMMEDIATE, every job that waits, COMMIT ──▶ answers

Through the async driver each statement would cross threads twice; a job crosses them once. And as a commit waits for
the disk whatever is in it, what waits together is one transaction. If a job fails, the transaction is rolled back and
each is done by itself, so a job may run more than once and has to be a function of its connection alone.

The turn is the process's: all its writes queue for it in order, instead of polling for the file's lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.engines import pragmas
from eventbus_fastapi.store.failures import BUSY

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]


class NotWritten(Exception):
    """SQLite refused a job, or cannot be reached: the portable way finds out why."""


class Waiting(NamedTuple):
    """A job, and the future of what it returns."""

    job: Job
    answer: asyncio.Future[Any]


class SQLiteWriter:
    """See the module's docstring."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self.turn = asyncio.Lock()
        """Held by whoever writes to the file."""
        self._dialect, self._url = engine.dialect, engine.url
        self._settings = settings
        self._waiting: list[Waiting] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    def renew_turn(self) -> None:
        """Make the turn anew: it belongs to the event loop that first waits for it."""
        self.turn = asyncio.Lock()

    async def open(self) -> None:
        """Connect, if it works at once. A database in memory lives as long as this connection."""
        await self._in_thread(self._try_to_connect)

    async def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Do a job and commit it; return what it returns. If this is cancelled, it may be done or not.

        Raises:
            NotWritten: it failed; nothing of it was stored.
            StoreUnavailable: another process holds the file's lock.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(job, answer))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(
                self._write_all(), name="eventbus-writer", context=contextvars.Context()
            )
        return await answer

    async def close(self) -> None:
        """Do what waits, and disconnect."""
        if self._writing is not None:
            await asyncio.wait([self._writing])
        if self._thread is not None:
            thread, self._thread = self._thread, None
            thread.submit(self._disconnect)
            await asyncio.to_thread(thread.shutdown)

    # --- in the event loop ---

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                async with self.turn:  # each time anew: others wait for it, too
                    await self._write_waiting()
        finally:
            self._writing = None

    async def _write_waiting(self) -> None:
        waiting = [each for each in self._waiting if not each.answer.done()]
        self._waiting.clear()
        if not waiting:
            return
        try:
            outcomes = await self._in_thread(self._do, [each.job for each in waiting])
        except BaseException:  # the event loop ends
            for each in waiting:
                each.answer.cancel()
            raise
        for each, outcome in zip(waiting, outcomes, strict=True):
            if each.answer.done():
                continue
            if isinstance(outcome, Exception):
                each.answer.set_exception(outcome)
            else:
                each.answer.set_result(outcome)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eventbus-writer")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    # --- in the thread ---

    def _do(self, jobs: Sequence[Job]) -> list[Any]:
        """Return what each job returns, or the error that it ended with."""
        try:
            return self._transact(jobs)
        except StoreUnavailable as exc:
            return [StoreUnavailable(str(exc)) for _ in jobs]  # one each, as each is raised
        except Exception as exc:  # noqa: BLE001 - whoever wants the job done is told
            if len(jobs) == 1:
                return [exc]
        return [outcome for job in jobs for outcome in self._do([job])]

    def _transact(self, jobs: Sequence[Job]) -> list[Any]:
        try:
            connection = self._connection or self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                results = [job(connection) for job in jobs]
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
            raise NotWritten from exc
        except sqlite3.Error as exc:
            raise NotWritten from exc
        return results

    def _try_to_connect(self) -> None:
        if self._connection is None:
            with contextlib.suppress(sqlite3.Error):  # the first job tries again
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
