"""The log as a list: its events without their payloads, from the newest or the oldest, and the topics of a part of it.

Every look is bounded by its range of seqs or its number of rows, and goes along the primary key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, LargeBinary, bindparam, func, or_, select

from eventbus_fastapi.store.reader import LogReader
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import Query, now_micros

BEGINNING = 160
"""Bytes of a payload that a list shows at most."""


class LogEntry(NamedTuple):
    """An event of the log in a list: without its payload."""

    seq: int
    message_id: UUID
    topic: str
    key: str | None
    content_type: str
    size: int
    """Bytes of its payload."""
    created_at: int
    """When it entered the log, unix microseconds."""


class TopicCount(NamedTuple):
    """A topic in a part of the log."""

    topic: str
    events: int
    size: int
    """Bytes of their payloads."""
    last_seq: int
    last_at: int
    """When the last of them entered the log, unix microseconds."""


class LogEntries:
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self._sql = store.tables.statements(LogEntryStatements)

    async def page(self, after: int, before: int, limit: int, *, newest_first: bool) -> list[LogEntry]:
        """Return up to `limit` events between two seqs, exclusive, that have not expired."""
        query = self._sql.newest if newest_first else self._sql.oldest
        parameters = {"after": after, "before": before, "limit": limit}
        async with self._store._translated(), self._store._reader() as connection:
            return [LogEntry._make(row) for row in await connection.execute(query, parameters)]

    async def beginnings(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """Return the first bytes of the payloads of some events, by seq; at most a page of them."""
        if not seqs:
            return {}
        async with self._store._translated(), self._store._reader() as connection:
            rows = await connection.execute(self._sql.beginnings, {"seqs": list(seqs)})
            return {seq: bytes(payload or b"") for seq, payload in rows}  # of no bytes, SQLite's part is NULL

    async def topics(self, after: int, limit: int) -> list[TopicCount]:
        """Count the events after a seq by topic; return up to `limit` topics, those with the most events first."""
        parameters = {"after": after, "limit": limit}
        async with self._store._translated(), self._store._reader() as connection:
            rows = await connection.execute(self._sql.topics, parameters)
            return [TopicCount(row[0], row[1], int(row[2]), row[3], row[4]) for row in rows]


class LogEntryStatements:
    """The statements over one set of tables."""

    def __init__(self, tables: Tables) -> None:
        event = tables.event
        size = func.length(event.c.payload)
        after = event.c.seq > bindparam("after", type_=BigInteger)
        listed = (
            select(
                *(event.c[name] for name in ("seq", "message_id", "topic", "key", "content_type")),
                size,
                event.c.created_at,
            )
            .where(
                after,
                event.c.seq < bindparam("before", type_=BigInteger),
                or_(event.c.expires_at.is_(None), event.c.expires_at > now_micros()),
            )
            .limit(bindparam("limit"))
        )
        self.newest: Query = listed.order_by(event.c.seq.desc())
        """Parameters: after, before, limit."""
        self.oldest: Query = listed.order_by(event.c.seq)
        self.beginnings: Query = select(
            event.c.seq, func.substr(event.c.payload, 1, BEGINNING, type_=LargeBinary)
        ).where(event.c.seq.in_(bindparam("seqs", expanding=True)))
        count, last_seq = func.count(), func.max(event.c.seq)
        self.topics: Query = (
            select(event.c.topic, count, func.sum(size), last_seq, func.max(event.c.created_at))
            .where(after)
            .group_by(event.c.topic)
            .order_by(count.desc(), event.c.topic)
            .limit(bindparam("limit"))
        )
        """Parameters: after, limit."""
