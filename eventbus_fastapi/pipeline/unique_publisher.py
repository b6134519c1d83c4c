"""The publisher of unique events: each call a transaction of its own, which may wait for one that publishes the same.

So it shares no commit with anybody, and whoever publishes something else meanwhile overtakes it. Those that publish the
same go one after the other, in the order of their calls: the last one is what replaces in the end, and only one of them
has a connection while all of them wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from contextlib import AsyncExitStack
from functools import partial

from eventbus_fastapi.errors import EventBusError, NotRunning, StoreUnavailable
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.time_limit import TimeLimit
from eventbus_fastapi.telemetry.meters import Meters

MOST_TRANSACTIONS = 2
"""At the same time: each has a connection while it waits, and others need some, too."""


class UniquePublisher:
    """See the module's docstring. `on_append` is called with the last seq after every commit."""

    def __init__(self, store: Store, on_append: Callable[[int], None], *, meters: Meters | None = None) -> None:
        self._store = store
        self._on_append = on_append
        self._meters = meters or Meters()
        self._turn = asyncio.Semaphore(MOST_TRANSACTIONS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: dict[str, asyncio.Task[None]] = {}  # of those that publish the same, by fingerprint
        self._is_open = False

    def open(self) -> None:
        self._is_open = True

    def submit(self, drafts: Sequence[Draft]) -> asyncio.Future[list[Receipt]]:
        """Take drafts to be stored, all or none; return a future of their receipts.

        Cancelling the future withdraws drafts that no transaction has taken.

        Raises:
            NotRunning: the node is not started or is stopping.

        The future gets StoreUnavailable where it was not its turn within `statement_timeout`, or see
        `UniqueAppends.append`.
        """
        if not self._is_open:
            raise NotRunning("the bus is not running; use 'async with eventbus:' or mount its router")
        answer: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        digests = {draft.unique.digest for draft in drafts if draft.unique is not None}
        before = {self._last[digest] for digest in digests if digest in self._last}
        task = asyncio.create_task(self._publish(drafts, answer, before), name="eventbus-unique")
        self._tasks.add(task)
        self._last.update(dict.fromkeys(digests, task))
        task.add_done_callback(partial(self._note_end, digests))
        return answer

    def _note_end(self, digests: Collection[str], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        for digest in digests:
            if self._last.get(digest) is task:
                del self._last[digest]

    async def close(self, timeout: float) -> None:
        """Take nothing more and wait until everything taken is committed, `timeout` seconds at most."""
        self._is_open = False
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=timeout)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _publish(
        self, drafts: Sequence[Draft], answer: asyncio.Future[list[Receipt]], before: Collection[asyncio.Task[None]]
    ) -> None:
        try:
            async with AsyncExitStack() as turn:
                await self._wait_for_turn(turn, before)
                if answer.cancelled():
                    return
                receipts, last_seq = await self._store.unique.append(drafts)
        except EventBusError as exc:
            self._meters.publish_failures += len(drafts)
            _fail(answer, exc)
        except BaseException as exc:
            _fail(answer, StoreUnavailable("the bus stopped before the event was known to be stored"))
            if not isinstance(exc, asyncio.CancelledError):
                raise
        else:
            if not answer.done():
                answer.set_result(receipts)
            self._on_append(last_seq)
            self._meters.note_stored(receipts, drafts, is_all_new=False)

    async def _wait_for_turn(self, turn: AsyncExitStack, before: Collection[asyncio.Task[None]]) -> None:
        timeout = self._store.settings.statement_timeout
        try:
            async with TimeLimit(timeout):
                if before:
                    await asyncio.wait(before)
                await turn.enter_async_context(self._turn)
        except TimeoutError:
            raise StoreUnavailable(
                f"the event was not stored: for {timeout:g} s it waited for others that publish unique events"
            ) from None


def _fail(answer: asyncio.Future[list[Receipt]], error: EventBusError) -> None:
    if not answer.done():
        answer.set_exception(error)
