"""Unique events that the bus itself appends: who is the first of those that are the same, and its seq, in one commit.

They go another way than all others, since they may wait for transactions of the caller that publish the same: in a
transaction of their own, which takes the lock of the head only when it waits for nobody any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.store.unique import UniqueEvents

if TYPE_CHECKING:
    from eventbus_fastapi.store.base import Store


class UniqueAppends:
    """See the module's docstring."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unique = UniqueEvents(store.tables)

    async def append(self, drafts: Sequence[Draft]) -> tuple[list[Receipt], int]:
        """Append as `Store.append` does, unless a unique event is the same as an earlier one.

        Returns the receipts, and the last seq of the log.

        It waits for transactions that publish the same, before it takes the head's lock: they hold up nobody else.

        Raises:
            StoreUnavailable: see `Store.append`; or such a transaction has not ended for the whole `statement_timeout`.
        """
        moved = 0

        async def work(connection: AsyncConnection) -> tuple[list[Receipt], int] | None:
            nonlocal moved
            moved = 0
            receipts: list[Receipt | None] = [await self._answer_early(connection, draft) for draft in drafts]
            immediate = [draft for draft, receipt in zip(drafts, receipts, strict=True) if receipt is None]
            last_seq, has_outbox = await self._store._lock_head(connection)
            if has_outbox:
                moved, last_seq, is_all = await self._store._move_outbox(connection, last_seq, is_careful=True)
                if not is_all:
                    await connection.rollback()  # the unique rows, too
                    return None
            answered, last_seq = await self._store._add_careful(connection, last_seq, immediate)
            answers = iter(answered)
            found = [next(answers) if receipt is None else receipt for receipt in receipts]
            return await self._with_seqs(connection, found), last_seq

        while (done := await self._store.transact(work, retry_on_integrity=True)) is None:
            await self._store.sequence()  # what the outbox holds comes first, and is more than one transaction may move
        self._store.sequenced += moved
        return done

    async def remove_ended(self, limit: int = 1_000) -> int:
        """Forget up to `limit` unique events that make nothing a duplicate any more; return how many were found."""
        async with self._store._translated(), self._store._reader() as connection:
            ended = await connection.run_sync(self._unique.ended, limit)
        if ended:
            await self._store.transact(lambda connection: connection.run_sync(self._unique.remove, ended))
        return len(ended)

    async def _answer_early(self, connection: AsyncConnection, draft: Draft) -> Receipt | None:
        """Return the receipt of a duplicate, and of one that is stored for later; None: it is to be appended."""
        if draft.unique is not None:
            first = await connection.run_sync(self._unique.first_of, draft)
            if first is not None:
                return Receipt(first, None, duplicate=True)
        return await self._schedule(connection, draft) if draft.is_scheduled else None

    async def _schedule(self, connection: AsyncConnection, draft: Draft) -> Receipt:
        """Store an event for later, unless it is in the log or waits already."""
        if await self._store._known(connection, [draft.message_id]) or await self._store._waiting(
            connection, [draft.message_id]
        ):
            return Receipt(draft.message_id, None, duplicate=True)
        await connection.execute(*self._store.sql.insert_draft(draft))
        return Receipt(draft.message_id, None)

    async def _with_seqs(self, connection: AsyncConnection, receipts: list[Receipt]) -> list[Receipt]:
        """Say of duplicates where the first one is, if it is in the log."""
        known = await self._store._known(connection, [receipt.message_id for receipt in receipts if receipt.duplicate])
        return [receipt._replace(seq=known.get(receipt.message_id, receipt.seq)) for receipt in receipts]
