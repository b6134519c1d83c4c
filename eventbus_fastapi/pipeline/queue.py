"""A queue: how some handlers are served, as the program and its deployment say it.

What operators say while it runs is in the store, and not known here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import get_args

from eventbus_fastapi.errors import InvalidHandler, quote
from eventbus_fastapi.pipeline.consumer import POLL_INTERVAL
from eventbus_fastapi.settings import (
    LARGEST_CLAIM,
    LONGEST_POLL,
    MOST_WORKERS,
    SHORTEST_POLL,
    ArchiveMode,
    QueueSettings,
)


@dataclass(frozen=True, slots=True)
class Queue:
    """A pool that serves the handlers of a queue, in each process that does."""

    name: str = "default"
    workers: int = 10
    """Events that it handles at the same time. Defaults to 10."""
    batch_size: int = 100
    """Events that one claim takes at most. Defaults to 100."""
    poll_interval: float = POLL_INTERVAL
    """Seconds between two looks for what no bell tells of. Defaults to 1."""
    archive: ArchiveMode = "none"
    """Which endings of its events are kept in the archive. Defaults to none."""

    def __post_init__(self) -> None:
        for name, most in (("workers", MOST_WORKERS), ("batch_size", LARGEST_CLAIM)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                self._refuse(f"{name} must be an integer from 1 to {most:,}, got {quote(value)}")
        interval: object = self.poll_interval
        if type(interval) not in (int, float) or not SHORTEST_POLL <= self.poll_interval <= LONGEST_POLL:
            expected = f"a number of seconds from {SHORTEST_POLL} to {LONGEST_POLL:,.0f}"
            self._refuse(f"poll_interval must be {expected}, got {quote(interval)}")
        if self.archive not in get_args(ArchiveMode):
            self._refuse(f"archive must be one of {', '.join(get_args(ArchiveMode))}, got {quote(self.archive)}")

    def _refuse(self, reason: str) -> None:
        raise InvalidHandler(self.name, reason, kind="queue")

    def replaced_by(self, settings: QueueSettings) -> Queue:
        """Return the queue with what its deployment says in the place of what the program says."""
        return dataclasses.replace(self, **settings.model_dump(exclude_none=True))
