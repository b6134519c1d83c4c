"""Retention: removes events whose TTL is over, and the oldest beyond an age or a number, in small transactions.

A removal by age or count moves the log's `first_seq`, so that a reader who asks for what is gone gets a `gap`.
"""

from __future__ import annotations

import logging

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
        self._interval = settings.retention_interval

    async def run_once(self) -> float | None:
        """Remove one batch of each kind; come back at once while there is more."""
        expired = await self._store.remove_expired(BATCH)
        trimmed = 0
        if self._age is not None or self._count is not None:
            before = None if self._age is None else await self._store.now() - int(self._age * 1_000_000)
            trimmed = await self._store.trim(before=before, keep=self._count, limit=BATCH)
        if expired or trimmed:
            logger.info("removed %d expired and %d old events", expired, trimmed)
        # A short pause between batches leaves the database to those who publish.
        return 0.01 if BATCH in (expired, trimmed) else self._interval
