"""The file that says that a worker process works: touched about every second, for whoever would restart one that hangs.

It is touched from the event loop, so a loop that a handler blocks stops it; and only while all that takes events does
so. A database that is away does not stop it: another process would not reach it either.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from eventbus_fastapi.cli.terminal import fail
from eventbus_fastapi.errors import quote

logger = logging.getLogger(__name__)

TOUCH_EVERY = 1.0
"""Seconds between two touches."""
FRESH_FOR = 5.0
"""Seconds after its last touch for which the file of another process counts as fresh."""


class AliveFile:
    """The file of this process."""

    def __init__(self, path: Path) -> None:
        """Begin without the file: one that is there was another process's. One that cannot be written ends this one."""
        self._path = path
        self._failed = False
        try:
            path.touch()
            path.unlink()
        except OSError as exc:
            fail(f"cannot write the alive file {quote(str(path))}: {exc.strerror or exc}")

    async def keep(self, is_alive: Callable[[], bool]) -> None:
        """Touch it while the process works, until cancelled."""
        while True:
            if is_alive():
                self.touch()
            await asyncio.sleep(TOUCH_EVERY)

    def touch(self) -> None:
        try:
            self._path.touch()
            self._failed = False
        except OSError as exc:
            if not self._failed:
                logger.error("cannot touch %s: %s", self._path, exc.strerror or exc)
            self._failed = True

    def remove(self) -> None:
        """The process ends as it should."""
        with suppress(OSError):
            self._path.unlink()


class WatchedFile:
    """The file of another process, looked at now and then. A clock that is set changes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._touched: int | None = None
        self._changed_at = 0.0

    def is_fresh(self) -> bool:
        """Say whether it was touched lately; a look at least every few seconds is what tells."""
        now = time.monotonic()
        touched = self._look()
        if touched != self._touched:
            self._touched, self._changed_at = touched, now
        return touched is not None and now - self._changed_at <= FRESH_FOR

    def _look(self) -> int | None:
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return None
