"""Retention: removes events whose TTL is over, and the oldest beyond an age or a number, in small transactions.

A removal by age or count moves the log's `first_seq`, so that a reader who asks for what is gone gets a `gap`. It waits
for groups: what one of them has not read or has in flight stays, until it is older than `retention_group_limit`. A TTL
waits for nobody. The archive and dead letters have ages of their own, and hold nothing back. What is known of unique
events goes when it makes nothing a duplicate any more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Store

logger = logging.getLogger(__name__)

BATCH = 1_000


class Retention:
    name = "retention"

    def __init__(self, store: Store, settings: Settings) -> None:
        self.bell = Bell()
        self._store = store
        self._age = settings.retention_age
        self._count = settings.retention_count
        self._group_limit = settings.retention_group_limit
        self._archive_age = settings.archive_age
        self._dead_letter_age = settings.dead_letter_age
        self._interval = settings.retention_interval

    async def run_once(self) -> float | None:
        """Remove one batch of each kind; come back at once while there is more."""
        expired = await self._store.remove_expired(BATCH)
        trimmed = 0
        now = await self._store.now()
        if self._age is not None or self._count is not None:
            trimmed = await self._store.trim(
                before=_earlier(now, self._age),
                keep=self._count,
                overtake=_earlier(now, self._group_limit),
                limit=BATCH,
            )
        archived = await self._remove_older(self._store.archive.remove, now, self._archive_age)
        dead = await self._remove_older(self._store.dead_letters.remove, now, self._dead_letter_age)
        forgotten = await self._store.unique.remove_ended(BATCH)
        if expired or trimmed:
            logger.info("removed %d expired and %d old events", expired, trimmed)
        if archived or dead:
            logger.info("removed %d events from the archive and %d dead letters", archived, dead)
        # A short pause between batches leaves the database to those who publish.
        return 0.01 if BATCH in (expired, trimmed, archived, dead, forgotten) else self._interval

    async def _remove_older(self, remove: Callable[..., Awaitable[int]], now: int, age: float | None) -> int:
        before = _earlier(now, age)
        return 0 if before is None else await remove(before=before, limit=BATCH)


def _earlier(now: int, seconds: float | None) -> int | None:
    return None if seconds is None else now - int(seconds * 1_000_000)
