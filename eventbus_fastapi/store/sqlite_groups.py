"""The groups on SQLite: the two steps of the happy path are jobs of the writer.

So a claim or a settlement crosses to a thread once instead of with each statement, and those of several groups, and
what is published meanwhile, share a commit. Everything else, and whatever fails, is done the portable way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from uuid import UUID, uuid4

from sqlalchemy import Dialect, bindparam, delete

from eventbus_fastapi.events import Message
from eventbus_fastapi.store.driver_text import DriverText
from eventbus_fastapi.store.group import Claim, Group, Settlement
from eventbus_fastapi.store.groups import Groups, expected, micros
from eventbus_fastapi.store.reader import LogReader
from eventbus_fastapi.store.seqs import encode_seqs
from eventbus_fastapi.store.sqlite_writer import NotWritten, SQLiteWriter


class SQLiteGroups(Groups):
    """See the module's docstring."""

    def __init__(self, store: LogReader, writer: SQLiteWriter, dialect: Dialect) -> None:
        super().__init__(store)
        lease = store.tables.lease
        columns = [column.name for column in lease.c if column is not lease.c.until]
        self._writer = writer
        self._move_cursor = DriverText(self.sql.move_cursor, dialect)
        self._add_lease = DriverText(self.sql.add_lease, dialect, columns=columns)
        self._shrink_lease = DriverText(self.sql.shrink_lease, dialect)
        self._remove_lease = DriverText(delete(lease).where(lease.c.token == bindparam("held")), dialect)

    async def claim(
        self, group: Group, messages: Sequence[Message], *, up_to: int, owner: str, lease: float
    ) -> Claim | None:
        if not messages or group.ordered_by is not None or group.is_limited:
            return await super().claim(group, messages, up_to=up_to, owner=owner, lease=lease)
        claim = Claim(uuid4(), tuple(message.seq for message in messages), up_to)
        moving = self._move_cursor.values({**expected(group), "cursor": up_to})
        leasing = self._add_lease.values(
            {
                "token": claim.token.bytes,
                "group_id": group.id,
                "owner": owner,
                "first_seq": claim.seqs[0],
                "pending": encode_seqs(claim.seqs),
                "key_seqs": None,
                "duration": micros(lease),
            }
        )

        def job(connection: sqlite3.Connection) -> Claim | None:
            if connection.execute(self._move_cursor.text, moving).rowcount != 1:
                return None
            connection.execute(self._add_lease.text, leasing)
            return claim

        try:
            async with self._store._translated():
                return await self._writer.write(job)
        except NotWritten:
            return await super().claim(group, messages, up_to=up_to, owner=owner, lease=lease)

    async def settle(self, settlements: Sequence[Settlement]) -> set[tuple[UUID, int]]:
        if any(item.pending is None or item.again or item.dead or item.endings for item in settlements):
            return await super().settle(settlements)

        def job(connection: sqlite3.Connection) -> set[tuple[UUID, int]]:
            return {
                (item.token, seq)
                for item in settlements
                if not self._write_lease(connection, item.token, item.pending or ())
                for seq in item.seqs
            }

        try:
            async with self._store._translated():
                return await self._writer.write(job)
        except NotWritten:
            return await super().settle(settlements)

    def _write_lease(self, connection: sqlite3.Connection, token: UUID, pending: Sequence[int]) -> bool:
        """Write what is left of a lease; return False where it is somebody else's by now."""
        if pending:
            text = self._shrink_lease
            values = text.values({"held": token.bytes, "left": encode_seqs(pending), "first": min(pending)})
        else:
            text = self._remove_lease
            values = text.values({"held": token.bytes})
        return connection.execute(text.text, values).rowcount == 1
