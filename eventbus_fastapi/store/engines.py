"""How the bus connects: one SQLAlchemy async engine per bus, set up for what the store relies on.

An engine that the user passes in is used as it is (its pool, its listeners); only execution options are added. An
engine made from a URL is the bus's own and is disposed with it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from sqlalchemy import URL, Connection, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, IsolationLevel
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from eventbus_fastapi.errors import SettingsError, quote
from eventbus_fastapi.settings import Settings

BEGIN = "eventbus_begin"
"""Execution option of a connection on SQLite: how its transactions begin. "IMMEDIATE" takes the write lock at once
(a transaction that reads first and writes later may otherwise fail without waiting); "NONE" begins none: each
statement stands alone. Default: DEFERRED."""

MYSQL = ("mysql", "mariadb")
CLOSE_TIMEOUT = 1.0
"""Seconds to wait for a server to close a connection."""

UNPREPARED: dict[str, dict[str, Any]] = {
    # SQLAlchemy names the statements that it prepares; without a name they last until the next one.
    "asyncpg": {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: "",
    },
    "psycopg": {"prepare_threshold": None},
}
"""By driver, what leaves no prepared statement behind: behind a transaction pooler, the next transaction may run in
another session."""
NUMBERS = (
    "command_timeout",
    "max_cacheable_statement_size",
    "max_cached_statement_lifetime",
    "prepare_threshold",
    "statement_cache_size",
    "timeout",
)
"""Options in a URL that PostgreSQL's drivers want as numbers."""

EXTRAS = {
    "asyncpg": "postgres",
    "asyncmy": "mysql",
}


def create_engine(settings: Settings) -> AsyncEngine:
    """Make the bus's own engine from `settings.database_url`.

    Raises:
        SettingsError: the URL cannot be parsed, has no async driver, or the driver is not installed.
    """
    try:
        url = parse_url(settings.database_url)
        if url.get_backend_name() == "sqlite":
            return _create_sqlite(url, settings)
        options: dict[str, Any] = {}
        if url.get_backend_name() in MYSQL:
            # A round trip each, and SQLAlchemy waits for it whatever is cancelled: the store ends its transactions.
            options["pool_reset_on_return"] = None
        return create_async_engine(
            url,
            pool_size=settings.pool_size,
            max_overflow=0,
            pool_timeout=2 * settings.statement_timeout,  # a statement's own limit is over before
            pool_use_lifo=True,  # the server's process that was busy last has all it needs at hand
            isolation_level="READ COMMITTED",
            hide_parameters=True,
            connect_args=connect_args(url, settings),
            **options,
        )
    except (NoSuchModuleError, InvalidRequestError) as exc:
        raise SettingsError(
            f"database URL needs an async driver, such as sqlite+aiosqlite, postgresql+asyncpg or mysql+asyncmy: {exc}"
        ) from exc
    except ModuleNotFoundError as exc:
        extra = EXTRAS.get(exc.name or "")
        remedy = f"; install eventbus-fastapi[{extra}]" if extra else ""
        raise SettingsError(f"the driver {exc.name} of the database URL is not installed{remedy}") from exc


def connect_args(url: URL, settings: Settings) -> dict[str, Any]:
    """Return what a driver is told besides the URL, or in other words.

    Raises:
        SettingsError: an option in the URL is no number and has to be one.
    """
    if url.get_backend_name() == "sqlite":
        return _sqlite_arguments(settings)
    if url.get_backend_name() != "postgresql":
        return {}
    arguments: dict[str, Any] = {name: _number(name, url.query[name]) for name in NUMBERS if name in url.query}
    if settings.poll_only:
        arguments.update(UNPREPARED.get(url.get_driver_name(), {}))
    return arguments


def _number(name: str, value: object) -> float:
    try:
        return int(str(value)) if str(value).isdecimal() else float(str(value))
    except ValueError:
        raise SettingsError(f"{name} in the database URL must be a number, got {quote(value)}") from None


def parse_url(text: str) -> URL:
    """Read a database URL.

    Raises:
        SettingsError: it cannot be read. It is not shown, nor what SQLAlchemy says of it: a password may be in both.
    """
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "database URL cannot be read; expected dialect+driver://user:password@host:port/database, "
            "such as postgresql+asyncpg://bus@localhost:5432/bus (EVENTBUS_DATABASE_URL)"
        ) from None


async def close_engine(engine: AsyncEngine) -> None:
    """Close an engine's connections, also those whose server does not answer any more."""
    while True:
        closing = asyncio.create_task(engine.dispose(), name="eventbus-close")
        while not closing.done():
            await asyncio.wait([closing], timeout=CLOSE_TIMEOUT)
            # The driver drops the connection that it was closing, and may go on with the next as if nothing were.
            closing.cancel()
        if not closing.cancelled():
            closing.result()
            return


def at_level(engine: AsyncEngine, level: IsolationLevel) -> AsyncEngine:
    """Return the engine with connections at another isolation level, on the same pool. For drivers that set it without
    asking the server.

    As an option of the engine SQLAlchemy would set it outside its own handling of errors: psycopg gives way to other
    tasks now and then, also where it has nothing to wait for, and a connection whose taking was cancelled just there
    would be lost to the pool until the garbage collector finds it.
    """
    levelled = engine.execution_options()

    @event.listens_for(levelled.sync_engine, "engine_connect")
    def set_level(connection: Connection) -> None:
        try:
            connection.execution_options(isolation_level=level)
        except BaseException:
            connection.invalidate()  # with half of its level it is good for nothing
            connection.close()
            raise

    return levelled


def create_session_engine(url: URL, settings: Settings) -> AsyncEngine:
    """Make an engine for the sessions of an app on the bus's database.

    Its pool is its own, so that neither side waits for the other's connections.

    On SQLite its transactions begin with the write lock. One that reads first and writes later would fail at once, with
    "database is locked", whenever somebody has written in between; with the lock it waits its turn.
    """
    engine = create_async_engine(url, hide_parameters=True, connect_args=connect_args(url, settings))
    if url.get_backend_name() != "sqlite":
        return engine
    prepare_sqlite(engine, settings)
    return engine.execution_options(**{BEGIN: "IMMEDIATE"})


def is_memory(url: URL) -> bool:
    """True if the URL means a database that lives in this process alone."""
    return url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:")


def _create_sqlite(url: URL, settings: Settings) -> AsyncEngine:
    if is_memory(url):
        # SQLite's memdb file system lets several connections of one process share one database with normal locks.
        url = url.set(database=f"file:/eventbus-{uuid4().hex}", query={"vfs": "memdb", "uri": "true"})
    engine = create_async_engine(
        url,
        pool_size=settings.pool_size,
        max_overflow=settings.pool_size,
        pool_timeout=2 * settings.statement_timeout,
        hide_parameters=True,
        connect_args=connect_args(url, settings),
    )
    prepare_sqlite(engine, settings)
    return engine


def _sqlite_arguments(settings: Settings) -> dict[str, Any]:
    return {"timeout": settings.busy_timeout, "factory": SQLiteConnection}


class SQLiteConnection(sqlite3.Connection):
    """A connection that gives up its locks when it is closed.

    SQLite keeps a closed connection, with its transaction and its locks, for as long as a statement of it lives, and a
    statement lives as long as its cursor: that of a cancelled call until Python collects the call's traceback.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cursors: WeakSet[sqlite3.Cursor] = WeakSet()

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        cursor = super().cursor(*arguments, **options)
        self._cursors.add(cursor)
        return cursor

    def close(self) -> None:
        for cursor in tuple(self._cursors):
            cursor.close()
        super().close()


def prepare_sqlite(engine: AsyncEngine, settings: Settings) -> None:
    """Make an engine's SQLite connections durable and their transactions explicit.

    WAL lets readers and the writer work side by side; `synchronous` is per connection; SQLAlchemy's own BEGIN replaces
    the driver's, which starts transactions late and breaks SAVEPOINT.
    """

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in pragmas(settings):
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        mode: Any = connection.get_execution_options().get(BEGIN, "DEFERRED")
        if mode != "NONE":
            connection.exec_driver_sql(f"BEGIN {mode}")


def pragmas(settings: Settings) -> tuple[str, ...]:
    """Return what every SQLite connection of the bus is set to."""
    return (
        f"PRAGMA busy_timeout={int(settings.busy_timeout * 1000)}",
        "PRAGMA journal_mode=WAL",
        f"PRAGMA synchronous={settings.sqlite_synchronous}",
    )


WAL_RESET_FIX = "3.51.3"
"""The SQLite that no longer has the WAL-reset bug; 3.50.7 and 3.44.6 have the fix, too."""


def sqlite_has_wal_reset_bug() -> bool:
    """True if SQLite may lose pages of the WAL when two connections write or checkpoint at the same moment."""
    version = sqlite3.sqlite_version_info
    has_fix = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return not has_fix
