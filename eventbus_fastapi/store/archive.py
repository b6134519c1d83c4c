"""The archive: how events have ended in the groups that keep it, one row per ending.

An event that was acked, discarded or given up in a group has ended there. A dead letter that was tried again and then
acked has ended twice, and has two rows. What a TTL or retention takes before a handler is done with it has not ended.

Rows are written with what settles the events, in the same transaction. They have the event as the node that handled it
had it in memory: so it costs one statement for many, the same on every database, and the log may have lost the event.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, Delete, Insert, String, bindparam, delete, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.errors import NotFound
from eventbus_fastapi.events import Message
from eventbus_fastapi.store import pages
from eventbus_fastapi.store.database import AnyRow
from eventbus_fastapi.store.group import Ended, Ending, Group, errors_text
from eventbus_fastapi.store.reader import LARGEST_SEQ, LogReader
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import EVENT_FIELDS, Query


class ArchiveEntry(NamedTuple):
    """An ending in a list: without the event's payload."""

    id: int
    group_id: int
    seq: int
    message_id: UUID
    topic: str
    key: str | None
    outcome: Ended
    attempt: int
    """Attempts that counted, the last one too."""
    duration: int | None
    """Of the last attempt, microseconds; None: nobody knows."""
    owner: str
    """The node that made it."""
    finished_at: int
    """Unix microseconds."""
    tags: tuple[str, ...]
    errors: list[dict[str, Any]]
    """What went wrong, oldest first."""


class ArchivedEvent(NamedTuple):
    """An ending with all that is known of it."""

    entry: ArchiveEntry
    message: Message


class ArchiveFilter(NamedTuple):
    """Which endings are meant: those to which all of it applies; by default all."""

    patterns: tuple[str, ...] = ()
    """Its topic matches any of these; empty: any topic."""
    outcome: Ended | None = None
    """None: any."""
    error: str | None = None
    """The type of its last error, with its module or without: `httpx.ConnectError`, `ConnectError`."""
    since: int = 0
    """It ended at this time or later, unix microseconds."""
    until: int = LARGEST_SEQ
    """It ended before this time."""
    tags: tuple[str, ...] = ()
    """It has all of these."""

    def accepts(self, entry: ArchiveEntry) -> bool:
        """Say whether an ending is meant, as far as the database has not looked at it."""
        return pages.is_meant(entry, patterns=self.patterns, tags=self.tags, error=self.error)


class ArchivePage(NamedTuple):
    """Endings that were found."""

    entries: list[ArchiveEntry]
    next: int | None
    """The id to go on after; None: there are no more."""


class Archive:
    """See the module's docstring."""

    def __init__(self, store: LogReader) -> None:
        self._store = store
        self._sql = store.tables.statements(ArchiveStatements)

    async def add(self, connection: AsyncConnection, group_id: int, endings: Sequence[Ending]) -> None:
        """Write endings in a transaction of the caller's."""
        if not endings:
            return
        now = (await connection.execute(self._store.sql.now)).scalar_one()
        await connection.execute(self._sql.add, [_row(group_id, ending, now) for ending in endings])

    async def find(
        self, group: Group | None, wanted: ArchiveFilter, *, after: int = 0, limit: int = 100
    ) -> ArchivePage:
        """Return up to `limit` endings in a group, or in all, in the order of their ids, from behind one.

        What is rare may give fewer, or none, with a `next` to go on after: one call looks at a part of them.
        """

        async def read(after: int) -> list[ArchiveEntry]:
            return await self._page(group, wanted, after)

        return ArchivePage(*await pages.find(read, wanted.accepts, after=after, limit=limit))

    async def get(self, ending_id: int) -> ArchivedEvent:
        """Return one ending with the event.

        Raises:
            NotFound: there is none of this id.
        """
        async with self._store._translated(), self._store._reader() as connection:
            row = (await connection.execute(self._sql.read, {"ending_id": ending_id})).first()
        if row is None:
            raise NotFound(f"nothing in the archive has the id {ending_id}")
        entry = _entry(row)
        content = (row.payload, row.content_type, row.metadata, row.created_at, row.expires_at)
        return ArchivedEvent(entry, Message(entry.seq, entry.message_id, entry.topic, entry.key, *content))

    async def remove(self, *, before: int, limit: int = 1_000) -> int:
        """Remove up to `limit` of the endings before a time (unix microseconds), the oldest; return how many."""
        return await self._remove(self._sql.old, {"before": before, "limit": limit})

    async def remove_of_group(self, group_id: int, *, limit: int = 1_000) -> int:
        """Remove up to `limit` of the endings in a group; return how many."""
        return await self._remove(self._sql.of_group, {"group_id": group_id, "limit": limit})

    # --- parts ---

    async def _page(self, group: Group | None, wanted: ArchiveFilter, after: int) -> list[ArchiveEntry]:
        query = self._sql.list_all if group is None else self._sql.list_group
        parameters = {
            "after": after,
            "since": wanted.since,
            "until": wanted.until,
            "outcome": wanted.outcome,
            "limit": pages.PAGE,
            **({} if group is None else {"group_id": group.id}),
        }
        async with self._store._translated(), self._store._reader() as connection:
            rows = (await connection.execute(query, parameters)).all()
        return [_entry(row) for row in rows]

    async def _remove(self, chosen: Query, parameters: dict[str, Any]) -> int:
        """Look first, so that nothing is locked while there are none."""
        async with self._store._translated(), self._store._reader() as connection:
            ids = list((await connection.execute(chosen, parameters)).scalars())

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._sql.remove, {"ids": ids})

        if ids:
            await self._store.transact(work)
        return len(ids)


LISTED = (
    *("id", "group_id", "seq", "message_id", "topic", "key"),
    *("outcome", "attempt", "duration", "owner", "finished_at", "metadata", "errors"),
)
"""What makes an `ArchiveEntry`, in its order; of the metadata the tags."""


class ArchiveStatements:
    """The statements over one set of tables."""

    def __init__(self, tables: Tables) -> None:
        archive = tables.archive
        self.add: Insert = insert(archive).inline()
        """Parameters: the columns without `id`."""
        listed = [archive.c[name] for name in LISTED]
        outcome = bindparam("outcome", type_=String)
        self.list_all: Query = (
            select(*listed)
            .where(
                archive.c.id > bindparam("after", type_=BigInteger),
                archive.c.finished_at >= bindparam("since", type_=BigInteger),
                archive.c.finished_at < bindparam("until", type_=BigInteger),
                or_(outcome.is_(None), archive.c.outcome == outcome),
            )
            .order_by(archive.c.id)
            .limit(bindparam("limit"))
        )
        """Without payloads; parameters: after, since, until, outcome, limit."""
        of_group = archive.c.group_id == bindparam("group_id", type_=BigInteger)
        self.list_group: Query = self.list_all.where(of_group)
        shown = ("payload", "content_type", "created_at", "expires_at")
        self.read: Query = select(*listed, *(archive.c[name] for name in shown)).where(
            archive.c.id == bindparam("ending_id", type_=BigInteger)
        )
        limit: Any = bindparam("limit")
        self.old: Query = (
            select(archive.c.id)
            .where(archive.c.finished_at < bindparam("before", type_=BigInteger))
            .order_by(archive.c.finished_at)
            .limit(limit)
        )
        self.of_group: Query = select(archive.c.id).where(of_group).order_by(archive.c.id).limit(limit)
        self.remove: Delete = delete(archive).where(archive.c.id.in_(bindparam("ids", expanding=True)))


def _entry(row: AnyRow) -> ArchiveEntry:
    known = row[: len(LISTED) - 2]
    return ArchiveEntry._make((*known, pages.tags_in(row.metadata), json.loads(row.errors)))


def _row(group_id: int, ending: Ending, now: int) -> dict[str, Any]:
    message = ending.message
    fields = (
        *(message.message_id, message.topic, message.key),
        *(message.body, message.content_type, message.metadata_json),
    )
    return {
        "group_id": group_id,
        "seq": message.seq,
        **dict(zip(EVENT_FIELDS, fields, strict=True)),
        "created_at": message.created_at,
        "expires_at": message.expires_at,
        "outcome": ending.outcome,
        "attempt": ending.attempt,
        "duration": ending.duration,
        "owner": ending.owner,
        "errors": errors_text(ending.errors),
        "finished_at": now,
    }
