"""The notifier: hears of appends by other nodes, where the database can tell (LISTEN on PostgreSQL).

It is only a bell. When its connection is lost it reconnects, and rings once it listens again, so that what was appended
meanwhile is read; the sequencer's poll covers the time between.
"""

from __future__ import annotations

from collections.abc import Callable

from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store import Store


class Notifier:
    name = "notifier"

    def __init__(self, store: Store, ring: Callable[[], None]) -> None:
        self.bell = Bell()
        self._store = store
        self._ring = ring
        self.is_alive = False
        """True while the node listens."""

    async def run_once(self) -> float | None:
        """Listen until the connection is lost."""

        def ring() -> None:
            self.is_alive = True
            self._ring()

        try:
            await self._store.listen(ring)
        finally:
            self.is_alive = False
        return 0
