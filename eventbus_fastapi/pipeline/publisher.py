"""The publisher: many callers, one commit.

Callers hand over drafts and get a future. One commit takes whatever has gathered while the last one ran, in the order
of the hand-over, so a lone caller waits for nobody and a hundred share an fsync. Each caller learns its own result:
when the database refuses a batch, its parts are tried one by one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from eventbus_fastapi.errors import EventBusError, NotRunning, StoreUnavailable
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store import Appended, Store
from eventbus_fastapi.telemetry.meters import Meters

MOST_EVENTS = 1_000
MOST_BYTES = 4_194_304


class Unit(NamedTuple):
    """Drafts that are stored all or none, and where their receipts go."""

    drafts: Sequence[Draft]
    answer: asyncio.Future[list[Receipt]]


class Publisher:
    """See the module's docstring. `on_append` is called after every commit, and the next waits for its end."""

    name = "publisher"

    def __init__(
        self, store: Store, on_append: Callable[[Appended], Awaitable[None]], *, meters: Meters | None = None
    ) -> None:
        self.bell = Bell()
        self._store = store
        self._on_append = on_append
        self._meters = meters or Meters()
        self._waiting: deque[Unit] = deque()
        self._is_open = False
        self._idle = asyncio.Event()
        self._idle.set()

    def open(self) -> None:
        self._is_open = True

    @property
    def waiting(self) -> int:
        """Events that no commit has taken yet."""
        return sum(len(unit.drafts) for unit in self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for a commit."""
        return not self._idle.is_set()

    def submit(self, drafts: Sequence[Draft]) -> asyncio.Future[list[Receipt]]:
        """Take drafts to be stored, all or none; return a future of their receipts.

        The order of the calls is the order in the log. Cancelling the future withdraws drafts that no commit has taken.

        Raises:
            NotRunning: the node is not started or is stopping.
        """
        if not self._is_open:
            raise NotRunning("the bus is not running; use 'async with eventbus:' or mount its router")
        answer: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        if not drafts:
            answer.set_result([])
            return answer
        self._waiting.append(Unit(drafts, answer))
        self._idle.clear()
        self.bell.ring()
        return answer

    async def run_once(self) -> float | None:
        """Commit one batch."""
        batch = self._gather()
        if batch:
            await self._commit(batch)
        if self._waiting:
            return 0
        self._idle.set()
        return None

    async def close(self, timeout: float) -> None:
        """Take nothing more and wait until everything taken is committed, `timeout` seconds at most."""
        self._is_open = False
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            for unit in self._waiting:
                _fail(unit, StoreUnavailable("the bus stopped before the event was stored"))
            self._waiting.clear()

    def _gather(self) -> list[Unit]:
        batch: list[Unit] = []
        events = size = 0
        while self._waiting and events < MOST_EVENTS and size < MOST_BYTES:
            if batch and events + len(self._waiting[0].drafts) > MOST_EVENTS:
                break  # a large one goes alone: what becomes of it is not its neighbours' business
            unit = self._waiting.popleft()
            if unit.answer.cancelled():
                continue
            batch.append(unit)
            events += len(unit.drafts)
            size += sum(len(draft.payload) for draft in unit.drafts)
        return batch

    async def _commit(self, batch: list[Unit]) -> None:
        drafts = [draft for unit in batch for draft in unit.drafts]
        began = time.perf_counter()
        try:
            appended = await self._store.append(drafts)
        except StoreUnavailable as exc:
            self._meters.publish_failures += len(drafts)
            for unit in batch:
                _fail(unit, exc)
        except EventBusError as exc:
            if len(batch) == 1:
                self._meters.publish_failures += len(drafts)
                _fail(batch[0], exc)
                return
            for unit in batch:
                await self._commit([unit])
        except BaseException:
            for unit in batch:
                _fail(unit, StoreUnavailable("the bus stopped before the event was known to be stored"))
            raise
        else:
            start = 0
            for unit in batch:
                end = start + len(unit.drafts)
                if not unit.answer.done():
                    unit.answer.set_result(appended.receipts[start:end])
                start = end
            self._meters.commit.observe(time.perf_counter() - began)
            self._meters.note_stored(appended.receipts, drafts, is_all_new=appended.created_at is not None)
            await self._on_append(appended)


def _fail(unit: Unit, error: EventBusError) -> None:
    if not unit.answer.done():
        unit.answer.set_exception(error)
