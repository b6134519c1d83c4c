"""Filters: which dead letters and which endings of events are meant, as users say it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import get_args

from eventbus_fastapi import codec
from eventbus_fastapi.errors import InvalidGroup, quote
from eventbus_fastapi.store.archive import ArchiveFilter
from eventbus_fastapi.store.dead_letters import DeadFilter
from eventbus_fastapi.store.group import Ended
from eventbus_fastapi.store.reader import LARGEST_SEQ
from eventbus_fastapi.topics import check_pattern

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def dead_filter(
    *patterns: str,
    error: str | None = None,
    died_after: datetime | None = None,
    died_before: datetime | None = None,
    attempts: int = 0,
    tags: Sequence[str] = (),
) -> DeadFilter:
    """Say which dead letters are meant: those to which all of it applies; without anything all.

    Args:
        patterns: their topic matches any of these; none: they have any topic.
        error: the type of their last error, with its module or without: `httpx.ConnectError`, `ConnectError`.
        died_after, died_before: they died at this time or later, and before this one; aware.
        attempts: so many attempts were begun, or more.
        tags: they have all of these.

    Raises:
        InvalidPattern, InvalidGroup, InvalidEvent: it cannot be used.
    """
    return DeadFilter(
        _patterns(patterns),
        error,
        _since("died_after", died_after),
        _until("died_before", died_before),
        attempts,
        _tags(tags),
    )


def archive_filter(
    *patterns: str,
    outcome: Ended | None = None,
    error: str | None = None,
    finished_after: datetime | None = None,
    finished_before: datetime | None = None,
    tags: Sequence[str] = (),
) -> ArchiveFilter:
    """Say which endings in the archive are meant: those to which all of it applies; without anything all.

    Args:
        patterns: their topic matches any of these; none: they have any topic.
        outcome: `acked`, `discarded` or `dead`; None: any.
        error: the type of their last error, with its module or without; `Discard` is that of one that was discarded.
        finished_after, finished_before: they ended at this time or later, and before this one; aware.
        tags: they have all of these.

    Raises:
        InvalidPattern, InvalidGroup, InvalidEvent: it cannot be used.
    """
    if outcome is not None and outcome not in get_args(Ended):
        raise InvalidGroup(f"outcome must be one of {', '.join(get_args(Ended))}, got {quote(outcome)}")
    return ArchiveFilter(
        _patterns(patterns),
        outcome,
        error,
        _since("finished_after", finished_after),
        _until("finished_before", finished_before),
        _tags(tags),
    )


def _patterns(patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(check_pattern(pattern) for pattern in patterns))


def _tags(tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(codec.check_tag(tag) for tag in tags))


def _since(name: str, time: datetime | None) -> int:
    return 0 if time is None else _micros(name, time)


def _until(name: str, time: datetime | None) -> int:
    return LARGEST_SEQ if time is None else _micros(name, time)


def _micros(name: str, time: datetime) -> int:
    if time.utcoffset() is None:
        raise InvalidGroup(f"{name} must have a time zone, got {quote(time.isoformat())}")
    return (time - EPOCH) // timedelta(microseconds=1)
