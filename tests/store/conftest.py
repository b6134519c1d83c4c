"""Fixtures for tests of the store: `store` on every variant, and further stores on the same database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store
from tests.databases import as_psycopg
from tests.store.variants import VARIANTS, Variant, make_store

OpenStore = Callable[..., Awaitable[Store]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what takes `variant`, or the fixtures built on it, on every store, or on those of the marker `databases`."""
    if "variant" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("databases")
    chosen = [variant for variant in VARIANTS if marker is None or variant.kind in marker.args]
    metafunc.parametrize("variant", chosen, ids=str)


@pytest.fixture
def place(variant: Variant, lend_tables: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Settings that say where the test's tables are: a file, or tables of its own on a server."""
    lent = lend_tables(variant.kind)
    if variant.driver == "psycopg":
        return {**lent, "database_url": as_psycopg(lent["database_url"])}
    return lent


@pytest.fixture
async def open_another(variant: Variant, place: dict[str, Any]) -> AsyncIterator[OpenStore]:
    """Open a further store on the test's database, as another node would; `settings` are its own."""
    stores: list[Store] = []

    async def open_another(**settings: Any) -> Store:
        store = make_store(variant, Settings(**place, **settings))
        stores.append(store)
        await store.start()
        return store

    yield open_another
    for store in stores:
        await store.stop()


@pytest.fixture
async def store(open_another: OpenStore) -> Store:
    """A started store on a fresh database."""
    return await open_another()
