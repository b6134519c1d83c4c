"""The notifier: hears of appends by other nodes, where the database can tell (LISTEN on PostgreSQL).

What it hears is how far the log is; nothing is delivered from it. When its connection is lost it reconnects, and has
the log looked at once it listens again; the sequencer's poll covers the time between.
"""

from __future__ import annotations

from collections.abc import Callable

from eventbus_fastapi.pipeline.bell import Bell
from eventbus_fastapi.store import Store


class Notifier:
    """See the module's docstring. `tell` is called with the last seq of an append, `look` when some may be unheard."""

    name = "notifier"

    def __init__(self, store: Store, *, tell: Callable[[int], None], look: Callable[[], None]) -> None:
        self.bell = Bell()
        self._store = store
        self._tell = tell
        self._look = look
        self.is_alive = False
        """True while the node listens."""

    async def run_once(self) -> float | None:
        """Listen until the connection is lost."""
        try:
            await self._store.listen(self._hear)
        finally:
            self.is_alive = False
        return 0

    def _hear(self, last_seq: int | None) -> None:
        self.is_alive = True
        if last_seq is None:
            self._look()
        else:
            self._tell(last_seq)
