"""The outbox of a database that is not the bus's: read in order, emptied once the bus has answered.

Rows are read in the order of their ids, in one look. What was committed before another's INSERT began has the lower id
and is seen whenever that one is, so it never comes after it, however often a look is repeated.

One forwarder works at a time: whoever holds the lease, by the database's clock. The lease also guards what leaves the
outbox: a forwarder that was frozen, and has lost it meanwhile, removes nothing. Not even its repeats change the order:
what it read and the bus has not got is still here, in front of all that came later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.database import AnyRow, Database, chunks
from eventbus_fastapi.store.engines import BEGIN, MYSQL, at_level, close_engine, create_engine, is_memory
from eventbus_fastapi.store.forward_schema import ForwardTables
from eventbus_fastapi.store.forward_statements import ForwardStatements
from eventbus_fastapi.store.mysql import removal

BATCH = 1_000
"""Events that are read at once, at most."""
BATCH_BYTES = 524_288
"""Payload bytes with which a batch ends: a frame of a WebSocket holds about twice as many unless told otherwise."""
MOST_REASON = 1_000
"""Characters of the reason for a refusal that are kept."""


class Refusal(NamedTuple):
    """An event that the bus has refused for good."""

    row: int
    code: str
    """The `code` of the error."""
    reason: str


class Refused(NamedTuple):
    """An event that was refused, as it is listed."""

    id: int
    message_id: UUID
    topic: str
    key: str | None
    size: int
    """Of the payload, bytes."""
    refused_at: int
    """Unix microseconds, database clock."""
    code: str
    reason: str


class OutboxStore(Database):
    """See the module's docstring. Use `open_outbox`."""

    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        self.tables = ForwardTables.shared(settings.table_prefix, settings.db_schema)
        self.sql = self.tables.statements(ForwardStatements)
        self._turn = asyncio.Lock()
        dialect = engine.dialect.name
        if dialect == "sqlite":
            self._writing = engine.execution_options(**{BEGIN: "IMMEDIATE"})
            self._reading = engine.execution_options(**{BEGIN: "NONE"})
        elif dialect == "postgresql":
            self._writing = at_level(engine, "READ COMMITTED")
            self._reading = at_level(engine, "AUTOCOMMIT")
        self._makes_tables = dialect == "sqlite"
        self._sets_isolation = not owns_engine and dialect in MYSQL
        quoted = engine.dialect.identifier_preparer.format_table
        both = (self.tables.outbox, self.tables.refused)
        self._mysql_removals = {table: removal(quoted(table)) for table in both} if dialect in MYSQL else None

    # --- life ---

    async def start(self) -> None:
        """Connect; create or upgrade the tables on SQLite, check them elsewhere.

        Raises:
            SchemaOutdated: the tables are missing or of another version; the message names the command to run.
            StoreUnavailable: the database cannot be reached.
        """
        self._turn = asyncio.Lock()
        if not self._makes_tables:
            await self.check()
            return
        async with self._translated(), self._writing.connect() as connection, connection.begin():
            await connection.run_sync(migrations.upgrade, self.tables)

    async def check(self) -> None:
        """Ask whether the database answers and its tables are of this version; nothing is made."""
        async with self._translated(), self._reader() as connection:
            await connection.run_sync(migrations.check, self.tables)

    async def stop(self) -> None:
        """Disconnect, if the engine is our own."""
        if self._owns_engine:
            await close_engine(self.engine)

    # --- who forwards ---

    async def hold(self, token: UUID, lease: float) -> bool:
        """Be the one who forwards, for so many seconds from now; return False while another is."""
        parameters = {"mine": token, "lease": int(lease * 1_000_000)}

        async def work(connection: AsyncConnection) -> bool:
            return bool((await connection.execute(self.sql.hold, parameters)).rowcount)

        return await self.transact(work)

    async def release(self, token: UUID) -> None:
        """Let another forward at once."""

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self.sql.release, {"mine": token})

        await self.transact(work)

    # --- forwarding ---

    async def read(self, limit: int = BATCH) -> tuple[Sequence[AnyRow], bool]:
        """Return the oldest committed rows, as many as make a batch, and whether there were no more.

        A row has its id, the fields of `WAITING_FIELDS` and `now`, the database's clock.
        """
        async with self._translated(), self._reader() as connection:
            sizes = (await connection.execute(self.sql.sizes, {"limit": limit})).all()
            if not sizes:
                return [], True
            fitting = _count_fitting([row[1] for row in sizes])
            rows = (await connection.execute(self.sql.oldest, {"limit": fitting})).all()
        return rows, fitting == len(sizes) < limit

    async def remove(self, token: UUID, lease: float, ids: Sequence[int], refusals: Sequence[Refusal] = ()) -> bool:
        """Remove rows that the bus has answered, keep the refused ones apart, and renew the lease, in one commit.

        Return False, and change nothing, if another one forwards by now.
        """
        parameters = {"mine": token, "lease": int(lease * 1_000_000)}

        async def work(connection: AsyncConnection) -> bool:
            await self._limit_idleness(connection)
            if not (await connection.execute(self.sql.renew, parameters)).rowcount:
                return False
            for refusal in refusals:
                values = {"row": refusal.row, "code": refusal.code[:64], "reason": refusal.reason[:MOST_REASON]}
                await connection.execute(self.sql.refuse, values)
            await self._take_out(connection, self.tables.outbox, [*ids, *(refusal.row for refusal in refusals)])
            return True

        return await self.transact(work)

    async def _limit_idleness(self, connection: AsyncConnection) -> None:
        """Have the transaction end when nothing is heard of it: one that is frozen would hold the lease's row, and with
        it every other forwarder. MySQL has no such limit, and on MariaDB it would stay with an engine of the program's
        own: there it is up to the server to notice.
        """
        milliseconds = max(1, int(self.settings.statement_timeout * 1000))
        if self.engine.dialect.name == "postgresql":
            await connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {milliseconds}")
        elif self._owns_engine and getattr(connection.dialect, "is_mariadb", False):
            await connection.exec_driver_sql(f"SET SESSION idle_transaction_timeout = {math.ceil(milliseconds / 1000)}")

    async def _take_out(self, connection: AsyncConnection, table: Table, ids: Sequence[int]) -> None:
        """Remove rows, each looked up on its own: on MySQL a scan waits for what open transactions have inserted."""
        if self._mysql_removals is not None:
            await connection.execute(self._mysql_removals[table], {"ids": json.dumps(ids)})
        else:
            await connection.execute(self.sql.removals[table], [{"row": row} for row in ids])

    # --- looking after it ---

    async def figures(self) -> tuple[int, float, int]:
        """Return how many events wait, for how many seconds the oldest has, and how many were refused."""
        async with self._translated(), self._reader() as connection:
            waiting, age, refused = (await connection.execute(self.sql.figures)).one()
        return waiting, max(0, age or 0) / 1_000_000, refused

    async def refused(self, after: int = 0, limit: int = 100) -> list[Refused]:
        """Return events that the bus has refused, the oldest refusal first, behind the one with the id `after`."""
        async with self._translated(), self._reader() as connection:
            rows = (await connection.execute(self.sql.refusals, {"after": after, "limit": limit})).all()
        return [Refused(*row) for row in rows]

    async def retry(self, ids: Sequence[int]) -> int:
        """Put refused events back into the outbox, behind all that wait; return how many there were."""
        return await self._end_refusals(ids, puts_back=True)

    async def discard(self, ids: Sequence[int]) -> int:
        """Forget refused events for good; return how many there were."""
        return await self._end_refusals(ids, puts_back=False)

    async def _end_refusals(self, ids: Sequence[int], *, puts_back: bool) -> int:
        async def work(connection: AsyncConnection) -> int:
            found: list[int] = []
            for chunk in chunks(sorted(set(ids))):
                found += (await connection.execute(self.sql.hold_refused, {"ids": chunk})).scalars()
            for row in sorted(found) if puts_back else ():
                await connection.execute(self.sql.put_back, {"row": row})
            if found:
                await self._take_out(connection, self.tables.refused, found)
            return len(found)

        return await self.transact(work)

    # --- how ---

    async def _isolate(self, connection: AsyncConnection) -> None:
        """Elsewhere an option of the engine has done it."""
        if self._sets_isolation:
            await super()._isolate(connection)

    @contextlib.asynccontextmanager
    async def _writer(self) -> AsyncIterator[AsyncConnection]:
        if not self._makes_tables:
            async with super()._writer() as connection:
                yield connection
            return
        async with self._turn, super()._writer() as connection:  # SQLite's writers take turns, instead of polling
            yield connection


def open_outbox(settings: Settings, engine: AsyncEngine | None = None) -> OutboxStore:
    """Return the outbox in the database of `engine`, or of `settings.database_url`.

    Of a SQLite engine only the URL is taken: connections are needed that begin and sync in the bus's way.

    Raises:
        SettingsError: there is no outbox in such a database, or its URL cannot be used.
    """
    if engine is not None and engine.dialect.name == "sqlite":
        if is_memory(engine.url):
            raise SettingsError("a SQLite engine in memory cannot be shared; give its outbox the URL of a file")
        settings = settings.replace(database_url=engine.url.render_as_string(hide_password=False))
        engine = None
    owns_engine = engine is None
    engine = engine or create_engine(settings)
    if engine.dialect.name not in ("sqlite", "postgresql", *MYSQL):
        raise SettingsError(f"no outbox for {engine.dialect.name}; expected sqlite, postgresql, mysql or mariadb")
    return OutboxStore(engine, settings, owns_engine=owns_engine)


def _count_fitting(sizes: Sequence[int]) -> int:
    """Return how many, from the first on, make up a batch."""
    total = 0
    for count, size in enumerate(sizes, start=1):
        total += size
        if total > BATCH_BYTES:
            return max(1, count - 1)
    return len(sizes)
