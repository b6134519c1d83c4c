"""Every store that must pass the conformance suite: each dialect's on each driver, the portable one on each engine."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store, create_engine, open_store
from eventbus_fastapi.store.engines import BEGIN
from eventbus_fastapi.store.sqlite import CLOCK_TICK


class Variant(NamedTuple):
    """A store to test."""

    kind: str
    """The database, one of `databases.KINDS`."""
    driver: str
    is_portable: bool = False

    def __str__(self) -> str:
        return f"{self.kind}-{self.driver}{'-portable' if self.is_portable else ''}"


VARIANTS = (
    Variant("sqlite", "aiosqlite"),
    Variant("postgresql", "asyncpg"),
    Variant("postgresql", "psycopg"),
    Variant("mysql", "asyncmy"),
    Variant("sqlite", "aiosqlite", is_portable=True),
    Variant("postgresql", "asyncpg", is_portable=True),
    Variant("postgresql", "psycopg", is_portable=True),
    Variant("mysql", "asyncmy", is_portable=True),
)


class PortableOnSQLite(Store):
    """The portable store, with transactions that begin as SQLite needs.

    It has no isolation levels and no row locks; BEGIN IMMEDIATE is the head's lock. Every step is the portable one.
    """

    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        self._writing = engine.execution_options(**{BEGIN: "IMMEDIATE"})
        self._reading = engine.execution_options(**{BEGIN: "NONE"})

    async def moment(self) -> int:
        """Wait until this tick of the clock is over, as `SQLiteStore` must too."""
        now = await self.now()
        await asyncio.sleep(2 * CLOCK_TICK / 1_000_000)
        return now + CLOCK_TICK


def make_store(variant: Variant, settings: Settings) -> Store:
    """Make a store with an engine of its own; it is not started."""
    if not variant.is_portable:
        return open_store(settings)
    kind = PortableOnSQLite if variant.kind == "sqlite" else Store
    return kind(create_engine(settings), settings, owns_engine=True)
