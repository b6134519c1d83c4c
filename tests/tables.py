"""Tables for tests as the migrations leave them, without migrating for each test.

Migrating takes a tenth of a second and more, which was most of what a short test took. So a SQLite file is a copy of
one that was migrated once, and on a server tests use the same tables one after another, emptied in between.
"""

from __future__ import annotations

import functools
import tempfile
from collections import deque
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError

from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables
from tests.databases import as_sync, kind_of

SPARE = 4
"""How many other tests get tables before a test's are used again: a server may still be busy with a lost session."""
MOST_ROWS = 1_000
"""Rows beyond which tables are not used again: what is left of them would slow down the next test."""
LOCK_TIMEOUTS = {
    "postgresql": ["SET LOCAL lock_timeout = '1s'"],
    "mysql": ["SET innodb_lock_wait_timeout = 1", "SET lock_wait_timeout = 1"],
}


def new_prefix() -> str:
    """Return a prefix of tables that nobody else has."""
    return f"t{uuid4().hex[:12]}_"


def log_at(path: Path) -> str:
    """Return the URL of a SQLite file; make it if it is not there, with the bus's tables and an epoch of its own."""
    if not path.exists():
        content, epoch = _migrated_file()
        path.write_bytes(content.replace(epoch, uuid4().bytes))
    return f"sqlite+aiosqlite:///{path}"


@functools.cache
def _migrated_file() -> tuple[bytes, bytes]:
    """Return the content of a file that was migrated, and the epoch in it."""
    tables = Tables()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "migrated.db"
        engine = create_engine(f"sqlite:///{path}")
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            migrations.upgrade(connection, tables)
            epoch = connection.execute(tables.head.select()).one().epoch
            connection.commit()
        engine.dispose()
        content = path.read_bytes()
    assert isinstance(epoch, UUID)
    assert content.count(epoch.bytes) == 1
    return content, epoch.bytes


class TablePool:
    """The tables in one database of a server, each set of them lent to one test at a time."""

    def __init__(self, url: str) -> None:
        self._engine = create_engine(as_sync(url), pool_pre_ping=True)
        self._kind = kind_of(url)
        self._seeds: dict[str, list[Any]] = {}  # what the migrations have inserted, by table without the prefix
        self._given_back: deque[Tables] = deque()

    def take(self) -> Tables:
        """Return tables that hold what they hold after the migrations, and whose epoch is new."""
        while len(self._given_back) > SPARE:
            tables = self._given_back.popleft()
            if self._empty(tables):
                return tables
        return self._make()

    def give_back(self, tables: Tables) -> None:
        """Let another test have them, some tests later."""
        self._given_back.append(tables)

    def close(self) -> None:
        self._engine.dispose()

    def _make(self) -> Tables:
        tables = Tables(new_prefix())
        with self._engine.connect() as connection:
            migrations.upgrade(connection, tables)
            connection.commit()
            if not self._seeds:
                for table in tables.metadata.sorted_tables:
                    rows = connection.execute(table.select()).mappings().all()
                    self._seeds[table.name.removeprefix(tables.prefix)] = [dict(row) for row in rows]
        return tables

    def _empty(self, tables: Tables) -> bool:
        """Remove what a test has left; False if these tables are not fit for another one.

        A session of the test may still hold a lock, or the test may have dropped a table.
        """
        names = [table.name for table in tables.metadata.sorted_tables]
        try:
            with self._engine.begin() as connection:
                for statement in LOCK_TIMEOUTS[self._kind]:
                    connection.exec_driver_sql(statement)
                removed = sum(connection.exec_driver_sql(f"DELETE FROM {name}").rowcount for name in names)
                self._plant(connection, tables)
        except DBAPIError:
            return False
        return removed <= MOST_ROWS

    def _plant(self, connection: Connection, tables: Tables) -> None:
        """Insert what the migrations insert, and have keys begin at 1 where that is cheap."""
        for table in tables.metadata.sorted_tables:
            if self._kind == "postgresql" and table.autoincrement_column is not None:
                connection.exec_driver_sql(f"SELECT setval('{table.name}_id_seq', 1, false)")
            for row in self._seeds[table.name.removeprefix(tables.prefix)]:
                connection.execute(table.insert(), {**row, **({"epoch": uuid4()} if "epoch" in row else {})})
