"""The writer of the outbox: hands an event to the caller's own transaction.

One INSERT goes through the caller's connection, whatever its driver, async or sync; it is committed, rolled back or
undone with a SAVEPOINT like any other row of the caller. A unique event has another row beside it (see `unique`).
Nothing is flushed, committed, or remembered in Python.

A commit in this process rings the sequencer's bell. The bell is only a hint: a spurious ring is a look for nothing, a
missing one is covered by polling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from eventbus_fastapi.errors import InvalidInput, SchemaOutdated, StoreError, quote
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.store.failures import FAILURES, first_line, hide_parameters, is_missing_table, translate
from eventbus_fastapi.store.forward_statements import ForwardStatements
from eventbus_fastapi.store.statements import Statements
from eventbus_fastapi.store.unique import UniqueEvents

OUTBOXES = "eventbus_outboxes"
"""Where a pooled connection keeps whom to ring when it is given back."""
EXPECTED = "expected a session or connection on the bus's database, or on that of an outbox which the bus knows"
LEGACY_CONTROL = -1
"""`sqlite3.LEGACY_TRANSACTION_CONTROL`, which Python 3.11 does not name."""

AsyncTransaction = AsyncSession | AsyncConnection | async_scoped_session[Any]
SyncTransaction = Session | Connection | scoped_session[Any]


class OutboxWriter:
    """See the module's docstring. `ring` is called, from whatever thread commits, about when a commit happens."""

    def __init__(self, statements: Statements | ForwardStatements, ring: Callable[[], None]) -> None:
        self._sql = statements
        # Elsewhere than in the bus's database it is the bus that decides what an event is a duplicate of.
        self._unique = UniqueEvents(statements.tables) if isinstance(statements, Statements) else None
        self.ring = ring
        self._watched: WeakSet[Connection | Pool] = WeakSet()  # those whose listener is in place

    async def add(self, transaction: AsyncTransaction, draft: Draft) -> Receipt:
        """Insert the event through an async session or connection: `add_sync` on the sync one inside it."""
        if isinstance(transaction, async_scoped_session):
            transaction = transaction()
        if not isinstance(transaction, AsyncSession | AsyncConnection):
            raise InvalidInput(
                f"expected an AsyncSession or AsyncConnection, got {type(transaction).__name__}{_hint(transaction)}"
            )
        if isinstance(transaction, AsyncConnection) and transaction.sync_connection is None:
            raise InvalidInput(
                "the AsyncConnection is not started; use it inside 'async with engine.begin() as connection'"
            )
        return await transaction.run_sync(self.add_sync, draft)

    def add_sync(self, transaction: SyncTransaction, draft: Draft) -> Receipt:
        """Insert the event through a sync session or connection, unless it is a duplicate of a unique one."""
        if isinstance(transaction, scoped_session):
            transaction = transaction()
        if not isinstance(transaction, Session | Connection):
            raise InvalidInput(
                f"expected a Session or Connection, got {type(transaction).__name__}{_hint(transaction)}"
            )
        writer = self
        try:
            connection = _connection_of(transaction)
            _refuse_false_savepoint(connection)
            writer = self._writer_of(connection)
            receipt = writer._insert(connection, draft)
        except FAILURES as exc:
            raise writer._translate(exc) from exc
        if commits_alone(connection):
            writer.ring()
        else:
            writer._watch(transaction, connection)
        return receipt

    def _writer_of(self, connection: Connection) -> OutboxWriter:
        """Return the one that writes into the database of a connection."""
        return self

    def _translate(self, exc: BaseException) -> StoreError:
        if not is_missing_table(exc):
            return translate(exc)
        hide_parameters(exc)
        remedy = f"with its tables ({self._sql.tables.command})"
        return SchemaOutdated(f"the transaction's database has no outbox: {first_line(exc)}; {EXPECTED}, {remedy}")

    def _insert(self, connection: Connection, draft: Draft) -> Receipt:
        if draft.unique is not None and self._unique is not None:
            if commits_alone(connection):
                raise InvalidInput(
                    "a unique event needs a transaction: the engine commits each statement alone (AUTOCOMMIT)"
                )
            if (first := self._unique.first_of(connection, draft)) is not None:
                return Receipt(first, self._unique.seq_of(connection, first), duplicate=True)
        connection.execute(*self._sql.insert_draft(draft))
        return Receipt(draft.message_id, None)

    def _watch(self, transaction: Session | Connection, connection: Connection) -> None:
        """Ring when the caller's transaction ends.

        A session gives its connection back to the pool right after its commit, and one listener of the pool costs less
        than one of each session. The caller may commit a connection of his own and keep it.
        """
        if isinstance(transaction, Session) and not isinstance(transaction.bind, Connection):
            connection.info.setdefault(OUTBOXES, set()).add(self)
            pool = connection.engine.pool
            if pool not in self._watched:
                self._watched.add(pool)
                if not event.contains(pool, "checkin", _ring_outboxes):  # another bus may have been first
                    event.listen(pool, "checkin", _ring_outboxes)
        elif connection not in self._watched:
            self._watched.add(connection)
            # SQLAlchemy tells this just before the COMMIT is sent; the sequencer looks again soon after.
            event.listen(connection, "commit", self._connection_commits)

    def _connection_commits(self, connection: Connection) -> None:
        self.ring()


def _ring_outboxes(connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    """A pool has a connection back."""
    for outbox in record.info.pop(OUTBOXES, ()):
        outbox.ring()


def _connection_of(transaction: Session | Connection) -> Connection:
    if isinstance(transaction, Connection):
        return transaction
    try:
        return transaction.connection()
    except UnboundExecutionError as exc:
        raise InvalidInput(
            "expected a session with a bind for every statement, got one without; pass the connection that takes the "
            'event: session.connection(bind_arguments={"mapper": …}), of an AsyncSession with await'
        ) from exc


def commits_alone(connection: Connection) -> bool:
    """True if a statement commits by itself (AUTOCOMMIT); no event of SQLAlchemy will tell."""
    of_engine = getattr(connection.dialect, "_on_connect_isolation_level", None)  # there is no public way to ask
    return connection.get_execution_options().get("isolation_level", of_engine) == "AUTOCOMMIT"


def _refuse_false_savepoint(connection: Connection) -> None:
    """Refuse a SAVEPOINT that commits.

    Left alone, the sqlite3 module sends no BEGIN before it, so its RELEASE ends the transaction, and what the caller
    rolls back later is in the log already.
    """
    if connection.dialect.name != "sqlite" or not connection.in_nested_transaction():
        return
    driver: Any = connection.connection.dbapi_connection
    driver = getattr(driver, "driver_connection", driver)
    if driver.isolation_level is not None and getattr(driver, "autocommit", LEGACY_CONTROL) == LEGACY_CONTROL:
        raise InvalidInput(
            "a SAVEPOINT on this SQLite engine begins no transaction, so a rollback could not take the event back; "
            "use eventbus.engine, or an engine with isolation_level=None that sends BEGIN itself"
        )


def _hint(transaction: object) -> str:
    """What to do when async and sync are mixed up."""
    if isinstance(transaction, Session | Connection | scoped_session):
        return "; use publish_txn_sync for it"
    if isinstance(transaction, AsyncSession | AsyncConnection | async_scoped_session):
        return "; use 'await publish_txn' for it"
    return f" ({quote(transaction)})"
