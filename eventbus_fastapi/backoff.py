"""How long to wait before trying again: full jitter.

Pure arithmetic over a source of randomness. Nothing here sleeps or counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

_MAX_EXPONENT = 1023
"""2.0 to a higher power is no float; by then every cap is reached."""


@dataclass(frozen=True, slots=True)
class FullJitter:
    """Delays drawn evenly from 0 to a ceiling that doubles with each attempt, up to `cap`.

    Programs that lost the same server at the same moment spread out over the whole time, and do not come back together.

    Raises:
        ValueError: `base` or `cap` is not a number above 0.
    """

    base: float
    """Ceiling of the first delay, seconds."""
    cap: float
    """Highest ceiling, seconds."""
    random: Callable[[], float] = random.random
    """Source of numbers from 0 to 1. Defaults to `random.random`."""

    def __post_init__(self) -> None:
        # `not >` rather than `<=`: NaN compares false with everything.
        if not self.base > 0 or not self.cap > 0:
            raise ValueError(f"base and cap must be seconds above 0, got base={self.base!r}, cap={self.cap!r}")

    def ceiling(self, attempt: int) -> float:
        """Return the longest delay, seconds, before retry number `attempt`, counted from 0."""
        if attempt < 0:
            raise ValueError(f"attempts are counted from 0, got {attempt}")
        return min(self.cap, self.base * 2.0 ** min(attempt, _MAX_EXPONENT))

    def delay(self, attempt: int) -> float:
        """Return a delay, seconds, before retry number `attempt`, counted from 0."""
        return self.random() * self.ceiling(attempt)
