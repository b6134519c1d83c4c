"""The only SQL of the bus: one schema, one set of statements, one store per database.

`open_store` picks the store by the engine's dialect. Nothing outside this package knows a table.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.base import Ack, Appended, Store
from eventbus_fastapi.store.engines import close_engine, create_engine, create_session_engine, is_memory
from eventbus_fastapi.store.mysql import MySQLStore
from eventbus_fastapi.store.outbox import AsyncTransaction, OutboxWriter, SyncTransaction
from eventbus_fastapi.store.postgresql import PostgreSQLStore
from eventbus_fastapi.store.reader import Head, Peek, Scan, StoredEvent
from eventbus_fastapi.store.sqlite import SQLiteStore

__all__ = [
    "Ack",
    "Appended",
    "AsyncTransaction",
    "Head",
    "OutboxWriter",
    "Peek",
    "Scan",
    "Store",
    "StoredEvent",
    "SyncTransaction",
    "close_engine",
    "create_engine",
    "create_session_engine",
    "open_store",
]

DIALECTS: dict[str, type[Store]] = {
    "sqlite": SQLiteStore,
    "postgresql": PostgreSQLStore,
    "mysql": MySQLStore,
    "mariadb": MySQLStore,
}


def open_store(settings: Settings, engine: AsyncEngine | None = None) -> Store:
    """Return the store for `engine`, or for an engine of its own made from `settings.database_url`.

    Of a SQLite engine only the URL is taken: the bus needs connections that begin and sync in its own way.

    Raises:
        SettingsError: there is no store for this database, or its URL cannot be used.
    """
    if engine is not None and engine.dialect.name == "sqlite":
        if is_memory(engine.url):
            raise SettingsError("a SQLite engine in memory cannot be shared; give EventBus the URL and use its engine")
        settings = settings.replace(database_url=engine.url.render_as_string(hide_password=False))
        engine = None
    owns_engine = engine is None
    engine = engine or create_engine(settings)
    kind = DIALECTS.get(engine.dialect.name)
    if kind is None:
        raise SettingsError(f"no store for {engine.dialect.name}; expected sqlite, postgresql, mysql or mariadb")
    return kind(engine, settings, owns_engine=owns_engine)
