"""Reading the log: pages, single events, its head, the clock. Nothing here writes or takes a lock.

A page is bounded by its events and by their bytes, and no connection is held when it is handed over.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import NotFound
from eventbus_fastapi.events import Message
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.database import Database
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.store.statements import EVENT_FIELDS, Query, Statements

BATCH_BYTES = 4_194_304
"""Payload bytes with which a batch or a page ends: it is neither slow nor big because its events are large."""
LARGEST_SEQ = 2**63 - 1
"""No log will reach it; beyond it, drivers refuse a seq as no number of the database."""
PAYLOAD = 1 + EVENT_FIELDS.index("payload")
"""Where the payload is in a row of the log."""


class Head(NamedTuple):
    """The state of the log."""

    last_seq: int
    """The newest seq given; 0 for an empty log."""
    first_seq: int
    """The oldest seq that retention by age or count has kept."""
    epoch: UUID
    """Identifies this log; another one after the tables were made anew."""


class Peek(NamedTuple):
    """What there is to do, seen without a lock."""

    last_seq: int
    has_outbox: bool
    next_due: int | None
    """Unix microseconds of the next scheduled event; None: none is scheduled."""
    now: int


class Scan(NamedTuple):
    """A page of the log."""

    messages: list[Message]
    scanned_to: int
    """The last seq looked at, delivered or expired; the position to read on from."""
    is_last: bool
    """True if the log ended here when it was read."""
    first: int | None
    """The first seq looked at. Where it is not the one right after the position asked for, a TTL or retention removed
    something. None: the page is empty."""


class StoredEvent(NamedTuple):
    """One event of the log with its status."""

    message: Message
    status: Literal["pending", "processed"]


class LogReader(Database):
    """See the module's docstring."""

    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        self.tables = Tables.shared(settings.table_prefix, settings.db_schema)
        self.sql = self.tables.statements(Statements)
        self._clock_ahead = 0
        self.pages_read = 0
        """Pages of the log that this store has read."""

    async def peek(self) -> Peek:
        """Look, without a lock, whether there is something to sequence or to promote."""
        row = await self._read_row(self.sql.peek)
        self._note_clock(row[3])
        return Peek(row[0], row[1] is not None, row[2], row[3])

    async def head(self) -> Head:
        """Return the state of the log."""
        row = await self._read_row(self.sql.read_head)
        return Head(row[0], row[1], row[2])

    async def outbox_age(self) -> float:
        """Return for how many seconds the oldest event has waited that is committed and has no seq; 0: none waits."""
        async with self._translated(), self._reader() as connection:
            age = (await connection.execute(self.sql.outbox_age)).scalar()
        return 0.0 if age is None else max(0, age) / 1_000_000

    async def now(self) -> int:
        """Return the database's clock, unix microseconds."""
        row = await self._read_row(self.sql.now)
        self._note_clock(row[0])
        return int(row[0])

    async def moment(self) -> int:
        """Return a time before which every ack so far was stored, and no later one will be; unix microseconds."""
        return await self.now() + 1

    def estimate_now(self) -> int:
        """Return about what the database's clock says, unix microseconds: this host's clock, corrected by the
        difference last seen. For what cannot wait for a round trip.
        """
        return time.time_ns() // 1_000 + self._clock_ahead

    def _note_clock(self, now: int) -> None:
        self._clock_ahead = now - time.time_ns() // 1_000

    async def read(self, after: int, limit: int) -> Scan:
        """Return up to `limit` events with seq > `after` in order, without those that have expired.

        A page ends early with the event that makes its payloads 4 MiB.
        """
        self.pages_read += 1
        async with self._translated():
            rows, is_last = await self._read_page(min(after, LARGEST_SEQ), limit)
        if not rows:
            return Scan([], after, is_last=True, first=None)
        messages = [Message(*row) for row in rows]
        scanned_to = messages[-1].seq
        if any(message.expires_at is not None for message in messages):
            now = await self.now()
            messages = [message for message in messages if message.expires_at is None or message.expires_at > now]
        return Scan(messages, scanned_to, is_last, first=rows[0][0])

    async def _read_page(self, after: int, limit: int) -> tuple[Sequence[Sequence[Any]], bool]:
        """Return the rows of a page, and whether the log ended with it.

        Small payloads come at once. Only if there is a larger one is it asked how many events fit.
        """
        page = {"after": after, "limit": limit}
        rows = await self._read_rows(self.sql.read_small, {**page, "small": BATCH_BYTES // limit})
        if all(row[PAYLOAD] is not None for row in rows):
            return rows, len(rows) < limit
        sizes = await self._read_rows(self.sql.sizes_of_log, page)
        fitting = count_fitting(size for _, size in sizes)
        rows = await self._read_rows(self.sql.read_log, {**page, "limit": fitting})
        return rows, fitting == len(sizes) < limit

    async def _read_rows(self, query: Query, parameters: dict[str, int]) -> Sequence[Sequence[Any]]:
        async with self._reader() as connection:
            return (await connection.execute(query, parameters)).all()

    async def get(self, seq: int) -> StoredEvent:
        """Return one event.

        Raises:
            NotFound: there is none at this seq, or it has expired.
        """
        if not 0 < seq <= LARGEST_SEQ:
            raise NotFound(f"no event at seq {seq}")
        async with self._translated(), self._reader() as connection:
            row = (await connection.execute(self.sql.read_one, {"seq": seq})).first()
        if row is None or (row.expires_at is not None and row.expires_at <= await self.now()):
            raise NotFound(f"no event at seq {seq}")
        return StoredEvent(Message(*row[:-1]), "pending" if row[-1] is None else "processed")

    async def processed(self, after: int, up_to: int, before: int) -> set[int]:
        """Return which seqs in (after, up_to] were processed before a time (unix microseconds)."""
        parameters = {"after": after, "up_to": up_to, "before": before}
        async with self._translated(), self._reader() as connection:
            rows = await connection.execute(self.sql.processed_between, parameters)
            return set(rows.scalars())

    async def seek(self, time: int) -> int:
        """Return the seq after which every event entered the log at or after `time` (unix microseconds).

        Events enter the log in the order of the database's clock, so a binary search over the seqs finds the place in
        about log2(n) look-ups by primary key.
        """
        head = await self.head()
        low, high = head.first_seq, head.last_seq + 1
        async with self._translated(), self._reader() as connection:
            while low < high:
                middle = (low + high) // 2
                row = (await connection.execute(self.sql.first_from, {"seq": middle})).first()
                if row is None or row.created_at >= time:
                    high = middle
                else:
                    low = row.seq + 1
        return low - 1


def count_fitting(sizes: Iterable[int]) -> int:
    """Return how many, from the first on, make up a batch."""
    total = count = 0
    for size in sizes:
        count += 1
        total += size
        if total >= BATCH_BYTES:
            break
    return count
