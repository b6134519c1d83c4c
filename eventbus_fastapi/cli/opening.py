"""What the commands that look after a bus open: its database. The bus may be running elsewhere at the same time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from eventbus_fastapi.cli.options import is_missing_file, settings_of
from eventbus_fastapi.errors import SettingsError, quote
from eventbus_fastapi.pipeline.steward import Steward
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store, open_store
from eventbus_fastapi.store.engines import parse_url

T = TypeVar("T")


def with_steward(database_url: str | None, work: Callable[[Steward], Awaitable[T]]) -> T:
    """Do something with the groups of a database, and return what came of it; see `with_store`."""
    return with_store(database_url, lambda store, _: work(Steward(store)))


def with_store(database_url: str | None, work: Callable[[Store, Settings], Awaitable[T]]) -> T:
    """Do something with a database, and return what came of it. Nothing of a bus is started.

    Raises:
        SettingsError: there is no such file.
        SchemaOutdated: the database has no tables of a bus, or those of another version.
    """

    async def run() -> T:
        settings = settings_of(database_url=database_url)
        async with _open(settings) as store:
            return await work(store, settings)

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _open(settings: Settings) -> AsyncIterator[Store]:
    if is_missing_file(settings):
        raise SettingsError(f"there is no database at {quote(parse_url(settings.database_url).database)}")
    store = open_store(settings)
    try:
        await store.check()
        yield store
    finally:
        await store.stop()
