"""Fixtures for all tests: a fresh database of each kind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.databases import KINDS, DatabaseFactory, kind_of, open_factory
from tests.tables import TablePool, log_at, new_prefix

hypothesis_settings.register_profile("default", deadline=None)  # a loaded machine is slow, not wrong
hypothesis_settings.load_profile("default")


IN_MEMORY = Path("/dev/shm")
"""A file system in memory, where there is one. SQLite waits for the disk at every commit, which is not under test."""
ROOM = 4 * 2**30
"""Bytes that must be free there: containers often have a few MB only."""


def pytest_configure() -> None:
    """Forget the settings of whoever runs the tests: a test says itself what differs from the defaults.

    Temporary directories are in memory if there is room, unless pytest's options or variables name another place.
    """
    if IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free >= ROOM:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))
    for name in [name for name in os.environ if name.startswith("EVENTBUS_")]:
        if not name.startswith("EVENTBUS_TEST_"):
            del os.environ[name]
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # tests that run in the background of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)  # else what tests start would not hear of Ctrl-C


def pytest_collection_finish() -> None:
    """Leave modules and tests, which stay to the end, out of garbage collections. Nothing else runs in the process
    during one, and on a loaded machine some took eight seconds.
    """
    gc.collect()
    gc.freeze()


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
    return new_prefix()


@pytest.fixture(scope="session")
def table_pool(shared_database: Callable[[str], str]) -> Iterator[Callable[[str], TablePool]]:
    """Return the tables in the shared database of a kind that tests use one after another."""
    pools: dict[str, TablePool] = {}

    def find(kind: str) -> TablePool:
        if kind not in pools:
            pools[kind] = TablePool(shared_database(kind))
        return pools[kind]

    yield find
    for pool in pools.values():
        pool.close()


@pytest.fixture
def lend_tables(
    table_pool: Callable[[str], TablePool], shared_database: Callable[[str], str], tmp_path: Path
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Return settings that name tables on one of KINDS, as the migrations leave them, for this test alone."""
    with contextlib.ExitStack() as stack:

        def lend(kind: str) -> dict[str, Any]:
            if kind == "sqlite":
                return {"database_url": log_at(tmp_path / f"{new_prefix()}.db")}
            pool = table_pool(kind)
            tables = pool.take()
            stack.callback(pool.give_back, tables)
            return {"database_url": shared_database(kind), "table_prefix": tables.prefix}

        yield lend


@pytest.fixture
def database_url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    """The async URL of an empty database of this test's own, on each of KINDS in turn."""
    kind: str = request.param
    return new_database(kind)


@pytest.fixture
def own_tables(request: pytest.FixtureRequest, lend_tables: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Settings of a bus with tables of this test's own, on each of KINDS in turn."""
    return lend_tables(request.param)


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

    yield open_bus
    for bus in reversed(started):
        await bus.stop()


@pytest.fixture
async def bus(open_bus: OpenBus) -> EventBus:
    """A running bus with the default settings, on each of KINDS in turn."""
    return await open_bus()
