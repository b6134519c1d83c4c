"""The clock of a bus under test, which a test moves.

The statements of the store ask SQLite for the time in one way. Here that is replaced, as they are executed.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import AsyncEngine

from eventbus_fastapi.errors import quote

NOW = "julianday('now')"
"""How the statements ask SQLite for the time."""


class Clock:
    """The clock of the bus's database: it goes on by itself, and a test moves it forward.

    With it moves everything that the bus reads from its database's clock: retries, scheduled events, TTLs, leases and
    the timestamps of events. What Python reads does not: `datetime.now()` and `sleep` are as ever.
    """

    def __init__(self) -> None:
        self._ahead = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + self._ahead, UTC)

    def move(self, duration: float | timedelta) -> None:
        """Move forward, by seconds or a timedelta. What is due then is handled by the next `drain`.

        Raises:
            ValueError: it would go back.
        """
        seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
        if not 0 <= seconds < float("inf"):
            raise ValueError(f"a clock moves forward, by 0 seconds or more, got {quote(duration)}")
        self._ahead += seconds

    def drive(self, engine: AsyncEngine) -> None:
        """Have all statements of an engine see this clock."""

        @sqlalchemy_event.listens_for(engine.sync_engine, "before_cursor_execute", retval=True)
        def see_this_clock(
            connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
        ) -> tuple[str, Any]:
            return statement.replace(NOW, f"julianday('now', '+{self._ahead:.3f} seconds')"), parameters
