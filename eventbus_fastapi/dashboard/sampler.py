"""The sampler: notes every few seconds how the bus is, so that the overview has something to plot.

It runs from the start of the bus where its router starts it, else from the first look. The samples are this process's;
what they say of the log, its groups and dead letters is that of the whole bus.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from eventbus_fastapi.errors import NotRunning, StoreUnavailable
from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.pipeline.node import Node

INTERVAL = 3.0
"""Seconds between two samples."""
SHARE = 20.0
"""The time between two samples is at least so many times what one took: a database that is busy is left alone."""
KEPT = 600.0
"""Seconds that samples are kept."""


class Sample(NamedTuple):
    """How the bus was at a time."""

    time: float
    """Seconds of a clock that never goes back."""
    last_seq: int
    delivered: int
    """Events that this node gave to its subscriptions so far."""
    groups: int
    lag: int
    """Of the group that is furthest behind, events."""
    lag_seconds: float
    in_flight: int
    retries: int
    dead: int


class Sampler:
    """See the module's docstring."""

    name = "dashboard sampler"

    def __init__(self, node: Node, clock: Callable[[], float] = time.monotonic) -> None:
        self.bell = Bell()
        self._node = node
        self._clock = clock
        self._samples: deque[Sample] = deque()
        self._task: asyncio.Task[None] | None = None
        self._fresh = asyncio.Event()
        self.watchers = 0
        """Streams that wait for samples."""

    @property
    def has_ended(self) -> bool:
        """Whether the bus has stopped."""
        return self._task is None or self._task.done() or self.bell.is_closed

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count one more who waits for samples."""
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1

    @property
    def samples(self) -> Sequence[Sample]:
        """The samples so far, oldest first."""
        return self._samples

    @property
    def now(self) -> float:
        return self._clock()

    def ensure(self) -> None:
        """Run, if it does not; also after the bus was stopped and started again. It ends with the bus.

        Raises:
            NotRunning: the bus does not run.
        """
        if self.has_ended:
            self.bell = Bell()
            self._task = self._node.run(self)

    async def run_once(self) -> float | None:
        """Take a sample."""
        began = self._clock()
        with suppress(NotRunning, StoreUnavailable):  # others log it, and the plots have a gap
            await self.sample()
        return max(INTERVAL, SHARE * (self._clock() - began))

    async def sample(self) -> Sample:
        """Take a sample and keep it.

        Raises:
            NotRunning, StoreUnavailable: there is none to be had.
        """
        head = await self._node.head()
        figures = [status.figures for status in await self._node.steward.groups()]
        behind = max(figures, key=lambda each: each.lag, default=None)
        sample = Sample(
            self._clock(),
            head.last_seq,
            self._node.dispatcher.dispatched,
            len(figures),
            behind.lag if behind else 0,
            max((each.lag_seconds for each in figures), default=0.0),
            sum(each.in_flight for each in figures),
            sum(each.retries for each in figures),
            sum(each.dead for each in figures),
        )
        if self._samples and sample.last_seq < self._samples[-1].last_seq:
            self._samples.clear()  # another log
        self._samples.append(sample)
        while self._samples[0].time < sample.time - KEPT:
            self._samples.popleft()
        self.wake()
        return sample

    def wake(self) -> None:
        """Have those who wait look up."""
        self._fresh.set()
        self._fresh = asyncio.Event()

    async def next(self, timeout: float) -> bool:
        """Wait for the next sample; False: there was none for `timeout` seconds, or somebody has said to look up."""
        self.ensure()
        newest = self._samples[-1] if self._samples else None
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._fresh.wait()
        return bool(self._samples) and self._samples[-1] is not newest


def rates(samples: Sequence[Sample], of: Callable[[Sample], int]) -> list[tuple[float, float]]:
    """Return (time, growth per second) between each two samples; a counter that began anew grew by nothing."""
    pairs = zip(samples, list(samples)[1:], strict=False)
    return [(b.time, max(0, of(b) - of(a)) / max(b.time - a.time, 0.001)) for a, b in pairs]
