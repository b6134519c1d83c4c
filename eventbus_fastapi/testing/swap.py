"""Swapping: a bus that exists moves into memory for a while, with its handlers, routes and settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.events import Draft
from eventbus_fastapi.store import create_engine, create_session_engine
from eventbus_fastapi.store.sqlite import SQLiteStore
from eventbus_fastapi.testing.tester import BusTester

IN_MEMORY = "sqlite+aiosqlite://"


@contextmanager
def swap(eventbus: EventBus) -> Iterator[BusTester]:
    """Put a bus that is not started on a database in memory, without workers, until the end of the block.

    Its settings, handlers, routes and listeners stay. `eventbus.engine` is on the database in memory, too.

    Raises:
        RuntimeError: the bus is started already; or still is at the end, and stays where it is.
    """
    _refuse_started(eventbus, "start it inside of swap")
    tester = BusTester(eventbus)
    node = eventbus.node
    before = eventbus.settings, node.store, eventbus.starts_workers
    engines = eventbus._session_engine, eventbus._owns_session_engine, eventbus._outbox
    settings = eventbus.settings.replace(database_url=IN_MEMORY, db_schema=None)
    store = _Store(create_engine(settings), settings, owns_engine=True)
    sessions = create_session_engine(store.engine.url, settings)
    for engine in (store.engine, sessions):
        tester.clock.drive(engine)
    eventbus.settings = node.settings = settings
    node.store, eventbus.starts_workers = store, False
    eventbus._session_engine, eventbus._owns_session_engine = sessions, True
    eventbus._outbox = eventbus._forwarding.writer(store.sql, eventbus._expect_commit)
    node._build()
    try:
        yield tester
    finally:
        _refuse_started(eventbus, "stop it inside of swap")
        eventbus.settings, node.store, eventbus.starts_workers = before
        node.settings = eventbus.settings
        eventbus._session_engine, eventbus._owns_session_engine, eventbus._outbox = engines
        node._build()


class _Store(SQLiteStore):
    """Appends through the engine, whose statements see the test's clock."""

    async def _append_alone(self, drafts: Sequence[Draft]) -> None:
        return None


def _refuse_started(eventbus: EventBus, remedy: str) -> None:
    if eventbus.node.is_running:
        raise RuntimeError(f"the bus is running; {remedy}")
