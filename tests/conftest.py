"""Fixtures for all tests: a fresh database of each kind."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import settings as hypothesis_settings

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables
from tests.databases import KINDS, DatabaseFactory, kind_of, open_factory

hypothesis_settings.register_profile("default", deadline=None)  # a loaded machine is slow, not wrong
hypothesis_settings.load_profile("default")


def pytest_configure() -> None:
    """Forget the settings of whoever runs the tests: a test says itself what differs from the defaults."""
    for name in [name for name in os.environ if name.startswith("EVENTBUS_")]:
        if not name.startswith("EVENTBUS_TEST_"):
            del os.environ[name]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what takes `database_url` or `own_tables` on every kind of database, or on those that `databases` names."""
    marker = metafunc.definition.get_closest_marker("databases")
    for name in ("database_url", "own_tables"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, marker.args if marker else KINDS, indirect=True)


@pytest.fixture(scope="session")
def database_factory(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], DatabaseFactory]]:
    """The factory for one of KINDS. Its server is found or started when first asked for, and ends with the run."""
    factories: dict[str, DatabaseFactory] = {}
    with contextlib.ExitStack() as stack:

        def factory(kind: str) -> DatabaseFactory:
            if kind not in factories:
                opening = open_factory(kind, tmp_path_factory.mktemp(kind))
                factories[kind] = stack.enter_context(opening)
            return factories[kind]

        yield factory


@pytest.fixture
def new_database(database_factory: Callable[[str], DatabaseFactory]) -> Iterator[Callable[[str], str]]:
    """Make an empty database of one of KINDS and return its async URL. For tests that need several."""
    urls: list[str] = []

    def make(kind: str) -> str:
        urls.append(database_factory(kind).create())
        return urls[-1]

    yield make
    for url in urls:
        database_factory(kind_of(url)).drop(url)


@pytest.fixture(scope="session")
def shared_database(database_factory: Callable[[str], DatabaseFactory]) -> Iterator[Callable[[str], str]]:
    """Return the async URL of the one database of a kind that tests share, each with a `table_prefix` of its own.

    Much faster than a database per test, for those that need no more than their own tables.
    """
    urls: dict[str, str] = {}

    def find(kind: str) -> str:
        if kind not in urls:
            urls[kind] = database_factory(kind).create()
        return urls[kind]

    yield find
    for kind, url in urls.items():
        database_factory(kind).drop(url)


@pytest.fixture
def table_prefix() -> str:
    """A prefix that no other test has."""
    return f"t{uuid4().hex[:12]}_"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    """The async URL of an empty database of this test's own, on each of KINDS in turn."""
    kind: str = request.param
    return new_database(kind)


@pytest.fixture
def own_tables(
    request: pytest.FixtureRequest,
    new_database: Callable[[str], str],
    shared_database: Callable[[str], str],
    table_prefix: str,
) -> dict[str, Any]:
    """Settings of a bus with tables of this test's own, which are not there yet, on each of KINDS in turn."""
    kind: str = request.param
    if kind == "sqlite":
        return {"database_url": new_database(kind)}
    return {"database_url": shared_database(kind), "table_prefix": table_prefix}


OpenBus = Callable[..., Awaitable[EventBus]]


@pytest.fixture
async def open_bus(own_tables: dict[str, Any]) -> AsyncIterator[OpenBus]:
    """Start a bus on the test's tables, as a node of its own; `settings` may differ. All are stopped at the end."""
    started: list[EventBus] = []

    async def open_bus(**settings: Any) -> EventBus:
        bus = EventBus(settings=Settings(**{**own_tables, **settings}))
        started.append(bus)
        await bus.start()
        return bus

    where = Settings(**own_tables)
    await migrations.run(where, Tables(where.table_prefix), migrations.upgrade)
    yield open_bus
    for bus in reversed(started):
        await bus.stop()


@pytest.fixture
async def bus(open_bus: OpenBus) -> EventBus:
    """A running bus with the default settings, on each of KINDS in turn."""
    return await open_bus()
