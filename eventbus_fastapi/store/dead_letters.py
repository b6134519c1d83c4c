"""Dead letters by filter: found, tried again, forgotten, in bounded steps.

Each has an id beside its seq, in the order in which they died. What the databases cannot all look for (patterns, tags,
the types of errors) is looked for in pages and without payloads: a group may have a million of them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi import codec
from eventbus_fastapi.errors import GroupNotFound, quote
from eventbus_fastapi.store import pages
from eventbus_fastapi.store.database import chunks
from eventbus_fastapi.store.group import Group, errors_text
from eventbus_fastapi.store.groups import Groups
from eventbus_fastapi.store.reader import LARGEST_SEQ, LogReader

FOREIGN_SEQS = 2**52
"""The seqs of what has no place in the log begin here; the log does not get there."""


class Refused(NamedTuple):
    """What another system has sent and cannot enter the log, as a dead letter keeps it."""

    message_id: UUID
    topic: str
    body: bytes
    metadata: str
    """A JSON object: what is needed to try it again."""
    errors: list[dict[str, Any]]

    @property
    def seq(self) -> int:
        """A number of its own, the same for the same message_id; it is no place in the log."""
        return FOREIGN_SEQS + int.from_bytes(sha256(self.message_id.bytes).digest()[:8], "big") % FOREIGN_SEQS


Change = Callable[[Group, Sequence[int]], Awaitable[int]]


class DeadEntry(NamedTuple):
    """A dead letter in a list: without its payload."""

    id: int
    group_id: int
    seq: int
    message_id: UUID
    topic: str
    key: str | None
    attempt: int
    """Attempts begun."""
    died_at: int
    """Unix microseconds."""
    tags: tuple[str, ...]
    errors: list[dict[str, Any]]
    """What went wrong, oldest first."""


class DeadFilter(NamedTuple):
    """Which dead letters are meant: those to which all of it applies; by default all."""

    patterns: tuple[str, ...] = ()
    """Its topic matches any of these; empty: any topic."""
    error: str | None = None
    """The type of its last error, with its module or without: `httpx.ConnectError`, `ConnectError`."""
    since: int = 0
    """It died at this time or later, unix microseconds."""
    until: int = LARGEST_SEQ
    """It died before this time."""
    attempts: int = 0
    """So many attempts were begun, or more."""
    tags: tuple[str, ...] = ()
    """It has all of these."""

    def accepts(self, entry: DeadEntry) -> bool:
        """Say whether a dead letter is meant, as far as the database has not looked at it."""
        return pages.is_meant(entry, patterns=self.patterns, tags=self.tags, error=self.error)


class DeadPage(NamedTuple):
    """Dead letters that were found."""

    entries: list[DeadEntry]
    next: int | None
    """The id to go on after; None: there are no more."""


class Changed(NamedTuple):
    """What was done with dead letters that a filter means."""

    done: int
    """How many there were."""
    next: int | None
    """The id to go on after; None: all were looked at."""


class DeadLetters:
    """See the module's docstring."""

    def __init__(self, store: LogReader, groups: Groups) -> None:
        self._store = store
        self._groups = groups
        self._sql = groups.sql

    async def find(self, group: Group | None, wanted: DeadFilter, *, after: int = 0, limit: int = 100) -> DeadPage:
        """Return up to `limit` dead letters of a group, or of all, in the order in which they died, from behind an id.

        What is rare may give fewer, or none, with a `next` to go on after: one call looks at a part of them.
        """

        async def read(after: int) -> list[DeadEntry]:
            return await self._page(group, wanted, after)

        return DeadPage(*await pages.find(read, wanted.accepts, after=after, limit=limit))

    async def bury(self, group: Group, refused: Sequence[Refused]) -> None:
        """Keep what could not enter the log as dead letters of a group, each once however often it comes.

        Raises:
            GroupNotFound: the group was deleted.
        """
        letters = {letter.seq: letter for letter in refused}

        async def work(connection: AsyncConnection) -> None:
            # The lock first: of two that bury the same at the same time the second finds it.
            if (await connection.execute(self._sql.lock_group, {"group_id": group.id})).first() is None:
                raise GroupNotFound(f"no group {quote(group.name)}")
            known: set[int] = set()
            for seqs in chunks(list(letters)):
                rows = await connection.execute(self._sql.dead_of_seqs, {"group_id": group.id, "seqs": seqs})
                known.update(rows.scalars())
            for seq, letter in letters.items():  # one by one: they may be large
                if seq not in known:
                    await connection.execute(self._sql.bury_foreign, _row_of(group.id, letter))

        await self._store.transact(work)

    async def revive(self, group: Group, wanted: DeadFilter, *, after: int = 0) -> Changed:
        """Have those of a group that are meant tried again at once, with all their attempts and without their TTL."""
        return await self._change(self._groups.revive, group, wanted, after)

    async def discard(self, group: Group, wanted: DeadFilter, *, after: int = 0) -> Changed:
        """Forget those of a group that are meant."""
        return await self._change(self._groups.discard, group, wanted, after)

    async def remove(self, *, before: int, limit: int = 1_000) -> int:
        """Remove up to `limit` that died before a time (unix microseconds), the oldest; return how many."""
        async with self._store._translated(), self._store._reader() as connection:
            rows = (await connection.execute(self._sql.oldest_dead, {"limit": limit})).all()
        ids = [row.id for row in itertools.takewhile(lambda row: row.died_at < before, rows)]

        async def work(connection: AsyncConnection) -> None:
            await connection.execute(self._sql.remove_dead_ids, {"ids": ids})

        if ids:
            await self._store.transact(work)
        return len(ids)

    async def _change(self, change: Change, group: Group, wanted: DeadFilter, after: int) -> Changed:
        """Change them page by page, but none that dies meanwhile: one that is tried again may die again at once."""
        newest = await self._newest()
        count = 0
        for _ in range(pages.PAGES):
            page = await self._page(group, wanted, after)
            seqs = [entry.seq for entry in page if entry.id <= newest and wanted.accepts(entry)]
            if seqs:
                count += await change(group, seqs)
            if len(page) < pages.PAGE or page[-1].id >= newest:
                return Changed(count, None)
            after = page[-1].id
        return Changed(count, after)

    async def _newest(self) -> int:
        async with self._store._translated(), self._store._reader() as connection:
            return (await connection.execute(self._sql.newest_dead)).scalar_one() or 0

    async def _page(self, group: Group | None, wanted: DeadFilter, after: int) -> list[DeadEntry]:
        query = self._sql.list_all_dead if group is None else self._sql.list_dead
        parameters = {
            "after": after,
            "since": wanted.since,
            "until": wanted.until,
            "attempts": wanted.attempts,
            "limit": pages.PAGE,
            **({} if group is None else {"group_id": group.id}),
        }
        async with self._store._translated(), self._store._reader() as connection:
            rows = (await connection.execute(query, parameters)).all()
        return [DeadEntry._make((*row[:-2], pages.tags_in(row.metadata), json.loads(row.errors))) for row in rows]


def _row_of(group_id: int, letter: Refused) -> dict[str, Any]:
    return {
        "group_id": group_id,
        "seq": letter.seq,
        "message_id": letter.message_id,
        "topic": letter.topic,
        "key": None,
        "payload": letter.body,
        "content_type": codec.BINARY,
        "metadata": letter.metadata,
        "expires_at": None,
        "errors": errors_text(letter.errors),
    }
