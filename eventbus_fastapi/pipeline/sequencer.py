"""The sequencer: gives committed events of the outbox their place in the log, and lets scheduled ones in when due.

Every node runs one; the store's head lock orders them, so there is no leader to elect or to lose. It wakes by the bell
that a commit in this process rings, and by polling: quickly after something happened, at `poll_interval` when idle. Its
look also tells how far the log is, so it is the node's one poll for appends of others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store import Store
from eventbus_fastapi.telemetry.meters import Meters

SHORTEST_POLL = 0.002
"""Seconds until the second look after something happened; doubles with each look that finds nothing."""
REST = 9
"""Under load it rests so many times as long as it worked: many commits share one step, and the time is theirs."""
LONGEST_REST = 0.05
"""Seconds of rest at most; what commits after an idle time is sequenced at once."""


class Sequencer:
    """See the module's docstring. `on_append` is called with the last seq after every look."""

    name = "sequencer"

    def __init__(
        self,
        store: Store,
        on_append: Callable[[int], None],
        *,
        poll_interval: float,
        is_told: Callable[[], bool] = lambda: False,
        meters: Meters | None = None,
    ) -> None:
        self.bell = Bell()
        self._meters = meters or Meters()
        self._store = store
        self._on_append = on_append
        self._is_told = is_told  # of appends of others: that there was one is no reason to look for the next
        self._poll_interval = poll_interval
        self._delay = poll_interval
        self._last_seq = 0
        self._rests_until = 0.0
        self.sequenced = 0
        """Outbox rows moved so far by this node."""

    def expect(self) -> None:
        """A transaction of this process commits about now: look at once, and soon again if it was too early."""
        self._delay = SHORTEST_POLL
        self.bell.ring()

    def hear(self, last_seq: int) -> None:
        """The log has grown, and whoever needs to know was told: no reason to look more often."""
        self._last_seq = max(self._last_seq, last_seq)

    async def run_once(self) -> float | None:
        """Look once; promote what is due, then sequence what is committed."""
        clock = asyncio.get_running_loop().time
        await asyncio.sleep(self._rests_until - clock())
        started = clock()
        seen = await self._store.peek()
        last_seq, moved, promoted = seen.last_seq, 0, 0
        if seen.next_due is not None and seen.next_due <= seen.now:
            promoted = await self._store.promote()
        if seen.has_outbox or promoted:
            began = time.perf_counter()
            moved, last_seq = await self._store.sequence()
            self._meters.sequence.observe(time.perf_counter() - began)
            self.sequenced += moved
            self._rests_until = clock() + min(REST * (clock() - started), LONGEST_REST)
        has_grown = last_seq > self._last_seq
        self.hear(last_seq)
        self._on_append(last_seq)
        if moved:
            self._delay = SHORTEST_POLL
            return 0
        if has_grown and not self._is_told():
            self._delay = SHORTEST_POLL
        delay, self._delay = self._delay, min(self._delay * 2, self._poll_interval)
        if seen.next_due is not None and not promoted:
            delay = min(delay, max(0.001, (seen.next_due - seen.now) / 1_000_000))
        return delay
