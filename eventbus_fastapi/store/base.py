"""The store: the log, its outbox and its head in one database. The only part of the bus that runs SQL.

`Store` is correct on every database here; `sqlite`, `postgresql` and `mysql` override only what they can do faster or
must do differently, and say why.

How the log is written. There is one way into the log, `append`: in one short transaction it takes the row lock of
`head`, moves what the outbox holds to the log, then adds the node's own new events, numbering both densely, and moves
the head. The lock is released by the commit, so seqs become visible in order and nothing can appear late. Any node may
do it at any time, so there is no leader. What the outbox held before the call always comes first.

An event whose `message_id` is in the log already is not stored again. Collisions are rare, so the transaction runs as
if there were none; a unique violation rolls it back and runs it once more with a look-up.

Errors of the driver leave this package only as `StoreUnavailable` (try again) or `StoreError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import Table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from eventbus_fastapi.errors import (
    AckMismatch,
    EventBusError,
    NotFound,
    StoreError,
)
from eventbus_fastapi.events import Draft, Message, Receipt
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.archive import Archive
from eventbus_fastapi.store.database import AnyRow, Collision, chunks
from eventbus_fastapi.store.dead_letters import DeadLetters
from eventbus_fastapi.store.engines import close_engine
from eventbus_fastapi.store.groups import Groups
from eventbus_fastapi.store.log_entries import LogEntries
from eventbus_fastapi.store.queues import Queues
from eventbus_fastapi.store.reader import LARGEST_SEQ, LogReader, count_fitting
from eventbus_fastapi.store.recurring import RecurringEvents
from eventbus_fastapi.store.roster import Roster
from eventbus_fastapi.store.statements import EVENT_FIELDS, Query
from eventbus_fastapi.store.unique_appends import UniqueAppends

T = TypeVar("T")

DRAIN_LIMIT = 1_000
"""Outbox rows that move to the log in one transaction."""
BATCH_STEPS = (16, 128, DRAIN_LIMIT)
"""How many sizes are asked for until the bytes are enough: MySQL reads a payload to tell how long it is."""


class Appended(NamedTuple):
    """What an append did."""

    receipts: list[Receipt]
    last_seq: int
    """The last seq of the log."""
    drafts: Sequence[Draft]
    created_at: int | None = None
    """When the drafts entered the log, if they entered it together and are its last events; else None."""

    def messages(self) -> list[Message]:
        """Return the drafts as a reader gets them from the log. Only where `created_at` is known."""
        now = self.created_at
        assert now is not None
        first = self.last_seq - len(self.drafts) + 1
        return [
            Message(seq, *draft[:6], now, None if draft.ttl is None else now + draft.ttl)
            for seq, draft in enumerate(self.drafts, start=first)
        ]


class Moved(NamedTuple):
    """What a transaction moved from the outbox to the log."""

    rows: int
    """Rows that left the outbox."""
    last_seq: int
    is_all: bool
    """False if a limit was hit: perhaps there is more."""


class Ack(NamedTuple):
    """One acknowledgement: the event at `seq`, which must be `message_id` where that is given."""

    seq: int
    message_id: UUID | None = None
    may_read: Callable[[str], bool] | None = None
    """Says of a topic whether whoever acknowledges may see it; else it counts as not there. None: they may."""


class Store(LogReader):
    """The portable store; see the module's docstring. Use `open_store` to get the right dialect's."""

    has_listener = False
    """True if `listen` tells of appends by other nodes; else only polling does."""

    def __init__(self, engine: AsyncEngine, settings: Settings, *, owns_engine: bool) -> None:
        super().__init__(engine, settings, owns_engine=owns_engine)
        self.entries = LogEntries(self)
        self.groups = Groups(self)
        self.dead_letters = DeadLetters(self, self.groups)
        self.archive = Archive(self)
        self.recurring = RecurringEvents(self)
        self.queues = Queues(self)
        self.roster = Roster(self)
        self.unique = UniqueAppends(self)
        self.notifies_every = 0.0
        """Seconds between two appends of which other nodes are told, where it can tell them: they hear of those between
        in another way. 0: they are told of each."""
        self.sequenced = 0
        """Rows that this store has moved from the outbox to the log, with whichever call."""
        self._renew_locks()

    def _renew_locks(self) -> None:
        """Make the locks of this process, which belong to the event loop that first waits for one."""
        self._append_lock = asyncio.Lock()  # the head lock admits one anyway; waiting here costs no connection

    # --- life ---

    async def start(self) -> None:
        """Connect and check the schema.

        Raises:
            SchemaOutdated: the tables are missing or of another version.
            StoreUnavailable: the database cannot be reached.
        """
        self._renew_locks()
        await self.check()

    async def check(self) -> None:
        """Ask whether the database answers and its tables are of this version.

        Raises:
            SchemaOutdated, StoreUnavailable: see `start`.
        """
        async with self._translated(), self._reader() as connection:
            await connection.run_sync(migrations.check, self.tables)

    async def stop(self) -> None:
        """Disconnect, if the engine is our own."""
        if self._owns_engine:
            await close_engine(self.engine)

    # --- publishing ---

    async def append(self, drafts: Sequence[Draft]) -> Appended:
        """Append events to the log in one commit, after whatever the outbox holds.

        Scheduled ones are stored to wait for their time, in the same commit; their receipts have no seq.

        Raises:
            StoreUnavailable: not known whether it was stored; the same drafts may be given again.
        """
        has_twins = len({draft.message_id for draft in drafts}) < len(drafts)
        is_mixed = any(draft.delay is not None or draft.publish_at is not None for draft in drafts)
        if not has_twins and not is_mixed:
            async with self._append_lock:
                appended = await self._append_alone(drafts)
            if appended is not None:
                last_seq, created_at = appended
                first = last_seq - len(drafts) + 1
                receipts = [Receipt(draft.message_id, seq) for seq, draft in enumerate(drafts, start=first)]
                return Appended(receipts, last_seq, drafts, created_at)

        moved = 0

        async def work(connection: AsyncConnection, is_careful: bool) -> tuple[list[Receipt], int] | None:
            nonlocal moved
            moved = 0
            last_seq, has_outbox = await self._lock_head(connection)
            if has_outbox:
                moved, last_seq, is_all = await self._move_outbox(connection, last_seq, is_careful)
                if not is_all:
                    return None  # the rest comes first; commit this much and go on
            if is_mixed:
                return await self._add_mixed(connection, last_seq, drafts)
            if is_careful:
                return await self._add_careful(connection, last_seq, drafts)
            receipts = [Receipt(draft.message_id, last_seq + place) for place, draft in enumerate(drafts, start=1)]
            await self._add(connection, last_seq, drafts)
            return receipts, last_seq + len(drafts)

        while (done := await self._append(work, is_careful=has_twins)) is None:
            self.sequenced += moved
        self.sequenced += moved
        return Appended(*done, drafts)

    async def _append_alone(self, drafts: Sequence[Draft]) -> tuple[int, int] | None:
        """Append while the outbox is empty, where a dialect has a shorter way; return the new last seq and the time.

        None: nothing was stored, or it is not known (a dead connection); the portable way does it, or finds it done. So
        a shorter way gives up at anything out of the ordinary.
        """
        return None

    async def sequence(self) -> tuple[int, int]:
        """Move up to 1,000 events and about 4 MiB from the outbox to the log; return how many left the outbox, and the
        last seq.
        """

        async def work(connection: AsyncConnection, is_careful: bool) -> tuple[int, int]:
            last_seq, has_outbox = await self._lock_head(connection)
            if not has_outbox:
                return 0, last_seq
            return (await self._move_outbox(connection, last_seq, is_careful))[:2]

        moved, last_seq = await self._append(work)
        self.sequenced += moved
        return moved, last_seq

    async def promote(self) -> int:
        """Move scheduled events that are due to the outbox, at most 1,000 and about 4 MiB; return how many."""

        async def work(connection: AsyncConnection) -> int:
            rows, _ = await self._batch(connection, self.sql.due)
            ids = [row.id for row in rows]
            for chunk in chunks(ids):
                await connection.execute(self.sql.copy_to_outbox, {"ids": chunk})
            if ids:
                await self._take_out(connection, self.tables.scheduled, ids)
            return len(ids)

        return await self.transact(work)

    # --- acknowledging ---

    async def acknowledge(self, acks: Collection[Ack]) -> list[EventBusError | None]:
        """Mark events processed in one commit; return per ack None or the reason why it was refused."""
        seqs = sorted({ack.seq for ack in acks if 0 < ack.seq <= LARGEST_SEQ})

        async def work(connection: AsyncConnection) -> list[EventBusError | None]:
            found: dict[int, AnyRow] = {}
            for chunk in chunks(seqs):
                for row in await connection.execute(self.sql.state_of_seqs, {"seqs": chunk}):
                    found[row[0]] = row
            verdicts = [_judge(ack, found.get(ack.seq)) for ack in acks]
            accepted = {ack.seq for ack, refusal in zip(acks, verdicts, strict=True) if refusal is None}
            fresh = [{"seq": seq} for seq in sorted(accepted) if found[seq][2] is None]
            if fresh:
                await connection.execute(self.sql.mark_processed, fresh)
            return verdicts

        return await self.transact(work, retry_on_integrity=True)

    # --- retention ---

    async def find(self, message_ids: Sequence[UUID]) -> dict[UUID, int | None]:
        """Return the seqs of those of these events that are stored; None: it has none yet."""
        async with self._translated(), self._reader() as connection:
            waiting = await self._waiting(connection, list(message_ids))  # first: in between one may enter the log
            return {**dict.fromkeys(waiting), **await self._known(connection, list(message_ids))}

    async def remove_expired(self, limit: int = 1_000) -> int:
        """Remove up to `limit` events whose TTL is over; return how many. While there are none, nothing is locked."""
        async with self._translated(), self._reader() as connection:
            seqs = list((await connection.execute(self.sql.expired, {"limit": limit})).scalars())
        return await self._remove(seqs)

    async def trim(
        self, *, before: int | None, keep: int | None, overtake: int | None = None, limit: int = 1_000
    ) -> int:
        """Remove up to `limit` of the oldest events; return how many. While there are none, nothing is locked.

        `before`: those that entered the log before this time (unix microseconds). `keep`: those beyond the newest
        `keep`. What some group has not read or has in flight stays, unless it entered the log before `overtake`; None:
        always. The head's `first_seq` moves in the same commit, so a reader that asks for what is gone can be told.
        """
        head = await self.head()
        async with self._translated(), self._reader() as connection:
            rows = (await connection.execute(self.sql.oldest_of_log, {"limit": limit})).all()
        newest = 0 if keep is None else head.last_seq - keep
        old: list[tuple[int, int]] = []
        for seq, created_at in rows:
            if seq > newest and (before is None or created_at >= before):
                break
            old.append((seq, created_at))
        needed = await self.groups.floor() if old else None
        if needed is not None:
            old = [row for row in old if row[0] < needed or (overtake is not None and row[1] < overtake)]
        return await self._remove([seq for seq, _ in old], is_oldest=True)

    async def _remove(self, seqs: list[int], *, is_oldest: bool = False) -> int:
        if not seqs:
            return 0

        async def work(connection: AsyncConnection) -> None:
            for chunk in chunks(seqs):
                await connection.execute(self.sql.remove_from_log, {"seqs": chunk})
                await connection.execute(self.sql.remove_from_processed, {"seqs": chunk})
            if is_oldest:  # last, so that the head's lock is held for no longer than the commit
                await connection.execute(self.sql.raise_floor, {"floor": seqs[-1] + 1})

        await self.transact(work)
        return len(seqs)

    # --- the steps of an append; the head is locked ---

    async def _lock_head(self, connection: AsyncConnection) -> tuple[int, bool]:
        """Lock the head; return the last seq and whether the outbox holds something.

        Two statements on purpose: what the outbox holds is looked at after the lock is ours.
        """
        (last_seq,) = (await connection.execute(self.sql.lock_head)).one()
        oldest, _ = (await connection.execute(self.sql.look_at_outbox)).one()
        return last_seq, oldest is not None

    async def _move_outbox(self, connection: AsyncConnection, last_seq: int, is_careful: bool) -> Moved:
        """Move the oldest of the outbox to the log, inside the database, and move the head."""
        rows, is_all = await self._batch(connection, self.sql.oldest_of_outbox)
        fresh = rows
        if is_careful:
            known = await self._known(connection, [row.message_id for row in rows])
            first_of = {row.message_id: row for row in reversed(rows)}  # of twins in the outbox the older counts
            fresh = [row for row in rows if row.message_id not in known and first_of[row.message_id] is row]
        if fresh:
            now = (await connection.execute(self.sql.now)).scalar_one()
            for ids in chunks([row.id for row in fresh]):
                await connection.execute(self.sql.copy_to_log, {"ids": ids, "base": last_seq, "now": now})
                last_seq += len(ids)
            await self._move_head(connection, last_seq)
        if rows:
            await self._take_out(connection, self.tables.outbox, [row.id for row in rows])
        return Moved(len(rows), last_seq, is_all)

    async def _batch(self, connection: AsyncConnection, oldest: Query) -> tuple[Sequence[AnyRow], bool]:
        """Return the oldest rows that one transaction may move, at least one, and whether there are no more."""
        for limit in BATCH_STEPS:
            rows = (await connection.execute(oldest, {"limit": limit})).all()
            fitting = count_fitting(row.size for row in rows)
            if fitting < len(rows) or len(rows) < limit:
                break
        return rows[:fitting], fitting == len(rows) < limit

    async def _take_out(self, connection: AsyncConnection, table: Table, ids: Sequence[int]) -> None:
        """Remove rows of the outbox or of the scheduled, each looked up on its own.

        A list of ids may be answered by a scan, and on MySQL that waits for rows which open transactions have inserted.
        """
        await connection.execute(self.sql.removals[table], [{"row": row} for row in ids])

    async def _add(self, connection: AsyncConnection, last_seq: int, drafts: Sequence[Draft]) -> None:
        """Append new events to the log and move the head."""
        await self._insert(connection, last_seq, [(*draft[:6], draft.ttl) for draft in drafts])

    async def _add_careful(
        self, connection: AsyncConnection, last_seq: int, drafts: Sequence[Draft]
    ) -> tuple[list[Receipt], int]:
        """Append those events whose message_id is not in the log, and answer the others with the first one's seq."""
        known = await self._known(connection, [draft.message_id for draft in drafts])
        receipts, fresh = [], []
        for draft in drafts:
            if (seq := known.get(draft.message_id)) is not None:
                receipts.append(Receipt(draft.message_id, seq, duplicate=True))
                continue
            fresh.append(draft)
            known[draft.message_id] = last_seq + len(fresh)
            receipts.append(Receipt(draft.message_id, last_seq + len(fresh)))
        if fresh:
            await self._add(connection, last_seq, fresh)
        return receipts, last_seq + len(fresh)

    async def _add_mixed(
        self, connection: AsyncConnection, last_seq: int, drafts: Sequence[Draft]
    ) -> tuple[list[Receipt], int]:
        """Store the scheduled ones for later and append the others.

        One that is in the log or waits already is not stored again. An immediate one is, though another of its id may
        wait: that one will find it in the log.
        """
        immediate = [draft for draft in drafts if not draft.is_scheduled]
        answered, last_seq = await self._add_careful(connection, last_seq, immediate)
        message_ids = [draft.message_id for draft in drafts if draft.is_scheduled]
        known = await self._known(connection, message_ids)
        waiting = await self._waiting(connection, message_ids)
        answers = iter(answered)
        receipts = []
        for draft in drafts:
            if not draft.is_scheduled:
                receipts.append(next(answers))
            elif (seq := known.get(draft.message_id)) is not None:
                receipts.append(Receipt(draft.message_id, seq, duplicate=True))
            else:
                is_duplicate = draft.message_id in waiting
                if not is_duplicate:
                    await connection.execute(*self.sql.insert_draft(draft))
                    waiting.add(draft.message_id)
                receipts.append(Receipt(draft.message_id, None, is_duplicate))
        return receipts, last_seq

    async def _insert(self, connection: AsyncConnection, last_seq: int, events: Sequence[tuple[Any, ...]]) -> None:
        """Write events (their fields and ttl) to the log after `last_seq`, and move the head."""
        now = (await connection.execute(self.sql.now)).scalar_one()
        await connection.execute(
            self.sql.add_to_log,
            [
                {
                    "seq": seq,
                    **dict(zip(EVENT_FIELDS, event, strict=False)),
                    "created_at": now,
                    "expires_at": None if event[-1] is None else now + event[-1],
                }
                for seq, event in enumerate(events, start=last_seq + 1)
            ],
        )
        await self._move_head(connection, last_seq + len(events))

    async def _move_head(self, connection: AsyncConnection, last_seq: int) -> None:
        await connection.execute(self.sql.move_head, {"last_seq": last_seq})

    async def _known(self, connection: AsyncConnection, message_ids: list[UUID]) -> dict[UUID, int]:
        known: dict[UUID, int] = {}
        for chunk in chunks(message_ids):
            rows = await connection.execute(self.sql.seqs_of_message_ids, {"message_ids": chunk})
            known.update((row[0], row[1]) for row in rows)
        return known

    async def _waiting(self, connection: AsyncConnection, message_ids: list[UUID]) -> set[UUID]:
        waiting: set[UUID] = set()
        for chunk in chunks(message_ids):
            for query in self.sql.waiting_of_message_ids:
                waiting.update((await connection.execute(query, {"message_ids": chunk})).scalars())
        return waiting

    # --- again, with look-ups ---

    async def _append(self, work: Callable[[AsyncConnection, bool], Awaitable[T]], *, is_careful: bool = False) -> T:
        """Run a transaction that writes to the log; again, with look-ups, if a message_id was there already."""
        async with self._append_lock:
            if not is_careful:
                try:
                    return await self.transact(lambda connection: work(connection, False), is_optimistic=True)
                except Collision:
                    pass
            return await self.transact(lambda connection: work(connection, True), retry_on_integrity=True)

    # --- being told ---

    async def listen(self, hear: Callable[[int | None], None]) -> None:
        """Call `hear` whenever another node has appended, until the connection fails. Only where `has_listener`."""
        raise StoreError(f"{self.engine.dialect.name} has no notifications; the node polls")


def _judge(ack: Ack, row: AnyRow | None) -> EventBusError | None:
    if row is None or (ack.may_read is not None and not ack.may_read(row[3])):
        return NotFound(f"no event at seq {ack.seq}")
    if ack.message_id is not None and ack.message_id != row[1]:
        return AckMismatch(f"the event at seq {ack.seq} has message_id {row[1]}, got {ack.message_id}")
    return None
