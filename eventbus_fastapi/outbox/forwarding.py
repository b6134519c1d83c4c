"""Forwarding: the outboxes that a bus reaches itself, and their forwarders, which start and stop with it.

A database of an outbox that is away holds up nothing but its own events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import PayloadTooLarge, SettingsError, StoreUnavailable, quote
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.outbox.outbox import Outbox
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.forwarder import Forwarder
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import OutboxWriter
from eventbus_fastapi.store.engines import parse_url
from eventbus_fastapi.store.outboxes import Other, Outboxes
from eventbus_fastapi.store.statements import Statements

logger = logging.getLogger(__name__)


class Forwarding:
    """See the module's docstring."""

    def __init__(self, given: Iterable[Outbox | str | URL | AsyncEngine], node: Node) -> None:
        if isinstance(given, str | URL | AsyncEngine | Outbox) or not isinstance(given, Iterable):
            raise SettingsError(f"outboxes: expected a list of engines, URLs or Outboxes, got {type(given).__name__}")
        databases = list(given)
        self._node = node
        self.outboxes = tuple(_outbox_of(database, node.settings) for database in databases)
        self._own = [box for box, database in zip(self.outboxes, databases, strict=True) if box is not database]
        self._running: dict[service.Stage, asyncio.Task[None]] = {}
        self._forwarders: list[Forwarder] = []
        names = [outbox.name for outbox in self.outboxes]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise SettingsError(
                f"outboxes: two of them are called {quote(twice)}; give one a name: Outbox(engine, name=…)"
            )

    def writer(self, statements: Statements, ring: Callable[[], None]) -> OutboxWriter:
        """Return what adds events to transactions: those of the bus's database, and those of the outboxes'."""
        if not self.outboxes:
            return OutboxWriter(statements, ring)
        others = {outbox.engine: Other(outbox.store.sql, outbox.ring) for outbox in self.outboxes}
        return Outboxes(statements, ring, others)

    async def open(self) -> None:
        """Make the tables of the outboxes on SQLite; check them elsewhere.

        Raises:
            SchemaOutdated: one has none, or of another version.
        """
        for outbox in self.outboxes:
            try:
                await outbox.start()
            except StoreUnavailable as exc:
                logger.warning("the outbox %s is waited for: %s", outbox.name, exc)

    def run(self) -> None:
        """Begin to forward, unless that has begun. The node runs."""
        if self._running:
            return
        self._forwarders = [outbox.forwarder(self._deliver, meters=self._node.meters) for outbox in self.outboxes]
        self._running = {forwarder: self._node.run(forwarder) for forwarder in self._forwarders}

    async def stop(self) -> None:
        """Let batches that are under way end, and others take over; disconnect."""
        running, self._running = self._running, {}
        await service.end(running)
        for forwarder in self._forwarders:
            await forwarder.close()
        self._forwarders = []
        for outbox in self._own:
            await outbox.stop()

    async def _deliver(self, drafts: Sequence[Draft]) -> Sequence[Receipt]:
        """Publish them, after those that have been published here before."""
        limit = self._node.settings.max_payload
        for draft in drafts:
            if len(draft.payload) > limit:
                raise PayloadTooLarge(len(draft.payload), limit)
        return await self._node.submit(drafts)


def _outbox_of(given: Outbox | str | URL | AsyncEngine, settings: Settings) -> Outbox:
    """Return the outbox of a database, with the names of tables that the bus has."""
    if isinstance(given, Outbox):
        return given
    url: object = given.url if isinstance(given, AsyncEngine) else given
    if isinstance(url, str):
        url = parse_url(url)
    if isinstance(url, URL) and url.get_backend_name() != "postgresql":
        settings = settings.replace(db_schema=None)
    return Outbox(given, settings=settings)
