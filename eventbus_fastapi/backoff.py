"""How long to wait before trying again.

    FullJitter   spreads programs that come back to the same server; its retries are counted from 0
    Exponential  after a handler's failure: longer each time, with jitter
    Fixed        always the same
    Sequence     these delays, then no more

The last three are a `Backoff`, as any callable is that does the same: it takes the number of the attempt that failed,
counted from 1, and returns the seconds until the next one, or None for no more. Pure arithmetic over a source of
randomness. Nothing here sleeps or counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from eventbus_fastapi.errors import quote

Duration: TypeAlias = float | timedelta
"""Seconds, or a timedelta."""

Backoff: TypeAlias = Callable[[int], Duration | None]
"""Attempt that failed, counted from 1 → seconds until the next one; None: no more, the event is a dead letter."""

LONGEST = 100 * 366 * 86_400
"""Longest duration, seconds: about a century, as for a delay or a ttl."""


def seconds(name: str, duration: object) -> float:
    """Return a duration in seconds. `name` is what the error calls it.

    Raises:
        ValueError: it is no number of seconds or timedelta from nothing to `LONGEST`.
    """
    value = duration.total_seconds() if isinstance(duration, timedelta) else duration
    # bool is an int to Python, and `after=True` is a slip to us. The comparison is false for NaN, too.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LONGEST:
        raise ValueError(f"{name} must be 0 to {LONGEST:,} seconds (a number) or a timedelta, got {quote(duration)}")
    return float(value)


@dataclass(frozen=True, slots=True)
class FullJitter:
    """Delays drawn evenly from 0 to a ceiling that grows by `factor` with each attempt, up to `cap`.

    Programs that lost the same server at the same moment spread out over the whole time, and do not come back together.

    Raises:
        ValueError: `base` or `cap` is not a number above 0, or `factor` is below 1.
    """

    base: float
    """Ceiling of the first delay, seconds."""
    cap: float
    """Highest ceiling, seconds."""
    random: Callable[[], float] = random.random
    """Source of numbers from 0 to 1. Defaults to `random.random`."""
    factor: float = 2.0
    """What each ceiling is of the one before. Defaults to 2."""

    def __post_init__(self) -> None:
        # `not >` rather than `<=`: NaN compares false with everything.
        if not self.base > 0 or not self.cap > 0:
            raise ValueError(f"base and cap must be seconds above 0, got base={self.base!r}, cap={self.cap!r}")
        if not self.factor >= 1:
            raise ValueError(f"factor must be a number of at least 1, got {self.factor!r}")

    def ceiling(self, attempt: int) -> float:
        """Return the longest delay, seconds, before retry number `attempt`, counted from 0."""
        if attempt < 0:
            raise ValueError(f"attempts are counted from 0, got {attempt}")
        try:
            return min(self.cap, self.base * float(self.factor) ** attempt)
        except OverflowError:  # no float is as large; every cap is reached by then
            return self.cap

    def delay(self, attempt: int) -> float:
        """Return a delay, seconds, before retry number `attempt`, counted from 0."""
        return self.random() * self.ceiling(attempt)


@dataclass(frozen=True, slots=True)
class Exponential:
    """A backoff that grows by `factor` with each attempt, up to `cap`, less a random part.

    With its defaults, ten retries spread over one to two and a half hours: longer than most outages last.

    Raises:
        ValueError: an argument cannot be used.
    """

    base: Duration = 10.0
    """Longest delay after the first attempt, seconds or a timedelta. Defaults to 10 seconds."""
    factor: float = 2.0
    """What each delay is of the one before, at least 1. Defaults to 2."""
    cap: Duration = 3600.0
    """Longest delay of all, seconds or a timedelta. Defaults to an hour."""
    jitter: float = 0.5
    """The part of a delay that is random, from 0 (none of it) to 1 (all of it), so that events that failed together are
    not tried again together. Defaults to a half: a delay of 10 seconds is 5 to 10."""
    random: Callable[[], float] = field(default=random.random, repr=False)
    """Source of numbers from 0 to 1. Defaults to `random.random`."""
    _growth: FullJitter = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.jitter, bool) or not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be a number from 0 to 1, got {self.jitter!r}")
        growth = FullJitter(seconds("base", self.base), seconds("cap", self.cap), self.random, self.factor)
        object.__setattr__(self, "_growth", growth)

    def __call__(self, attempt: int) -> float:
        retry = _retry_of(attempt)
        return self._growth.ceiling(retry) - self.jitter * self._growth.delay(retry)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A backoff that is always the same, seconds or a timedelta.

    Raises:
        ValueError: the delay is no duration.
    """

    delay: Duration

    def __post_init__(self) -> None:
        object.__setattr__(self, "delay", seconds("delay", self.delay))

    def __call__(self, attempt: int) -> Duration:
        return self.delay


@dataclass(frozen=True, slots=True, init=False)
class Sequence:
    """A backoff of these delays, one after the other, seconds or timedeltas; after the last one there is no more.

        Sequence([30 * 60, 60 * 60, 90 * 60])

    Raises:
        ValueError: there is no delay, or one is no duration.
    """

    delays: tuple[float, ...]

    def __init__(self, delays: Iterable[Duration]) -> None:
        found = tuple(seconds(f"delay {number}", delay) for number, delay in enumerate(delays, 1))
        if not found:
            raise ValueError("expected at least one delay; max_retries=0 says that nothing is tried again")
        object.__setattr__(self, "delays", found)

    def __len__(self) -> int:
        return len(self.delays)

    def __call__(self, attempt: int) -> float | None:
        retry = _retry_of(attempt)
        return self.delays[retry] if retry < len(self.delays) else None


def _retry_of(attempt: int) -> int:
    """Return the number, counted from 0, of the retry that follows an attempt."""
    if attempt < 1:
        raise ValueError(f"attempts are counted from 1, got {attempt}")
    return attempt - 1
