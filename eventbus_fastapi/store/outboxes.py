"""The outboxes of several databases: an event goes into the one that the transaction's database has.

An engine that was named is known by its pool; another one is asked once, with the first event that goes through it,
which tables its database has. So engines of any driver work, sync ones beside async ones, as on the bus's own database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, inspect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import Pool

from eventbus_fastapi.errors import SchemaOutdated, quote
from eventbus_fastapi.store.forward_statements import ForwardStatements
from eventbus_fastapi.store.outbox import EXPECTED, OutboxWriter
from eventbus_fastapi.store.statements import Statements


class Other(NamedTuple):
    """An outbox in a database that is not the bus's."""

    statements: ForwardStatements
    ring: Callable[[], None]


class Outboxes(OutboxWriter):
    """Those of a bus and of other databases, see the module's docstring. `others` are by an engine on theirs."""

    def __init__(self, statements: Statements, ring: Callable[[], None], others: Mapping[AsyncEngine, Other]) -> None:
        super().__init__(statements, ring)
        self._head = statements.tables.head
        self._others = {engine: OutboxWriter(*other) for engine, other in others.items()}
        self._unnamed = {other.statements.tables.outbox: other.statements for other in others.values()}
        self._found: WeakKeyDictionary[Pool, OutboxWriter] = WeakKeyDictionary()

    def _writer_of(self, connection: Connection) -> OutboxWriter:
        pool = connection.engine.pool
        writer = self._found.get(pool)
        if writer is None:
            writer = self._found[pool] = self._named(pool) or self._look(connection)
        return writer

    def _named(self, pool: Pool) -> OutboxWriter | None:
        return next((writer for engine, writer in self._others.items() if engine.pool is pool), None)

    def _look(self, connection: Connection) -> OutboxWriter:
        """Ask the database which tables it has; the bus's own count first.

        Raises:
            SchemaOutdated: it has none.
        """
        inspector = inspect(connection)
        if inspector.has_table(self._head.name, self._head.schema):
            return self
        for outbox, statements in self._unnamed.items():
            if inspector.has_table(outbox.name, outbox.schema):
                return OutboxWriter(statements, self._ring_others)
        url = connection.engine.url
        named = f"{url.get_backend_name()} database {quote(url.database, 200)}"
        raise SchemaOutdated(
            f"the {named} of the transaction has neither the tables of the bus nor an outbox; {EXPECTED}, with its "
            "tables (eventbus migrate upgrade --outbox URL)"
        )

    def _ring_others(self) -> None:
        """Which of them it is, is not known; a ring for nothing is a look for nothing."""
        for writer in self._others.values():
            writer.ring()
