"""Durations that users give: seconds or a timedelta, as the microseconds that are stored."""

from __future__ import annotations

from datetime import timedelta

from eventbus_fastapi.backoff import LONGEST
from eventbus_fastapi.errors import InvalidEvent, quote

MAX_DURATION = LONGEST
"""Longest ttl or delay, seconds: about a century."""


def microseconds(name: str, duration: object) -> int:
    """Return the microseconds of a duration.

    Raises:
        InvalidEvent: it is neither a number nor a timedelta, or longer than `MAX_DURATION`.
    """
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    # bool is an int to Python, and `ttl=True` is a slip to us. The comparison is false for NaN, too.
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidEvent(f"{name} must be seconds (a number) or a timedelta, got {quote(duration)}")
    if not -MAX_DURATION <= seconds <= MAX_DURATION:
        raise InvalidEvent(f"{name} must be at most {MAX_DURATION:,} seconds, got {quote(duration)}")
    # Too little to count is still more than nothing, or less.
    return round(seconds * 1_000_000) or (seconds > 0) - (seconds < 0)


def positive_microseconds(name: str, duration: object) -> int:
    """Return the microseconds of a duration of more than nothing.

    Raises:
        InvalidEvent: see `microseconds`; or it is 0 or less.
    """
    found = microseconds(name, duration)
    if found <= 0:
        raise InvalidEvent(f"{name} must be more than 0 seconds, got {quote(duration)}")
    return found
