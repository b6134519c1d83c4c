"""The publish rate: how many events one principal may publish through this node, over HTTP and WebSocket together.

A bucket per principal holds up to `publish_burst` events and fills with `publish_rate` a second. A publish is taken if
there is anything in it, and may leave it in debt: so a batch of any size is published sometime, and the average holds.

A WebSocket client that is refused is told how long to wait. What it had sent before it could know is refused as well,
so that the order stays, and is not held against it; sending on and on is (`Pace`). A client that says of each publish
which wave it belongs to lets us know what it had sent before, however long that was on its way. Of others it is known
by the time only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from eventbus_fastapi.errors import PublishTooFast
from eventbus_fastapi.settings import Settings

SHORTEST_WAIT = 1.0
"""Seconds that a WebSocket client is told to wait at least: what is under way has arrived after half of it."""
DRAG = 0.02
"""Seconds that a client which ignores its wait is not read on after each publish: refusing costs something, too."""
LONGEST_ON_ITS_WAY = 60.0
"""Seconds after a refusal in which a publish of the same wave may come and is not held against the client."""
MAX_IGNORED = 5
"""Waits in a row that a client may ignore before its connection ends."""
SWEEP_AT = 1_000
"""Buckets that are kept at least; beyond twice what was needed, those that are full are forgotten."""


class _Bucket(NamedTuple):
    level: float
    at: float


class PublishRate:
    """See the module's docstring. `clock` gives seconds that never go back; None: the loop's."""

    def __init__(self, limits: Settings, clock: Callable[[], float] | None = None) -> None:
        self.rate = limits.publish_rate
        self._burst = float(limits.publish_burst)
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}
        self._sweep_at = SWEEP_AT

    def check(self, principal: str) -> None:
        """Refuse who may publish nothing now, before its events are read.

        Raises:
            PublishTooFast: wait first.
        """
        level = self._level(principal, self._now())
        if level < 1:
            raise PublishTooFast(self.rate, (1 - level) / self.rate)

    def take(self, principal: str, events: int) -> None:
        """Take events out of a principal's bucket.

        Raises:
            PublishTooFast: there are none in it.
        """
        self.check(principal)
        now = self._now()
        self._buckets[principal] = _Bucket(self._level(principal, now) - events, now)
        if len(self._buckets) > self._sweep_at:
            self._sweep(now)

    def _level(self, principal: str, now: float) -> float:
        bucket = self._buckets.get(principal)
        return self._burst if bucket is None else min(self._burst, bucket.level + (now - bucket.at) * self.rate)

    def _sweep(self, now: float) -> None:
        """Forget full buckets: they are as good as none."""
        self._buckets = {name: kept for name, kept in self._buckets.items() if self._level(name, now) < self._burst}
        self._sweep_at = max(SWEEP_AT, 2 * len(self._buckets))

    def _now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()


class Pace:
    """How one WebSocket client keeps to the rate."""

    __slots__ = ("_clock", "_half", "_ignored", "_is_ignored", "_late", "_rate", "_until", "_wave", "drag")

    def __init__(self, rate: PublishRate, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._until = 0.0
        self._half = 0.0
        self._is_ignored = False
        self._ignored = 0
        self._wave: int | None = None
        """That of the last publish, if it was refused; None: it was not, or the client does not say."""
        self._late = 0.0
        """When the last of that wave should have come."""
        self.drag = 0.0
        """Seconds that the client is not to be read on after its last publish."""

    @property
    def is_hopeless(self) -> bool:
        """True once the client has ignored too many waits in a row."""
        return self._ignored >= MAX_IGNORED

    def take(self, principal: str, events: int, wave: int | None = None) -> None:
        """Take events out of the principal's bucket, unless the client has to wait.

        Args:
            wave: see `Publish`.

        Raises:
            PublishTooFast: it has, or it had when it sent this one.
        """
        now = self._clock()
        self.drag = 0.0
        if wave is not None and wave == self._wave and now < self._late:
            raise PublishTooFast(self._rate.rate, max(self._until - now, 0.0))
        try:
            self._take(principal, events, now)
        except PublishTooFast:
            if wave != self._wave:
                self._wave, self._late = wave, now + LONGEST_ON_ITS_WAY
            raise
        if wave != self._wave:
            self._wave = None

    def _take(self, principal: str, events: int, now: float) -> None:
        if now < self._until:
            self._note_ignored(now)
            self.drag = DRAG if self._ignored else 0.0
            raise PublishTooFast(self._rate.rate, self._until - now)
        try:
            self._rate.take(principal, events)
        except PublishTooFast as exc:
            wait = max(exc.retry_after or 0, SHORTEST_WAIT)
            if not self._is_ignored:
                self._ignored = 0
            self._is_ignored = False
            self._half, self._until = now + wait / 2, now + wait
            raise PublishTooFast(self._rate.rate, wait) from None
        if not self._is_ignored:
            self._ignored = 0

    def _note_ignored(self, now: float) -> None:
        if now >= self._half and not self._is_ignored:
            self._is_ignored = True
            self._ignored += 1
