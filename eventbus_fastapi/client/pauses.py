"""How long to wait between the end of a connection and the next attempt.

Arithmetic over how the connections ended. Nothing here sleeps or reads a clock.
"""

from __future__ import annotations

from dataclasses import replace

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.client.connection import Ending

AT_ONCE = 0.25
"""Longest pause, seconds, before coming back to a server that restarts."""
STEADY = 5.0
"""Seconds that a connection must have been open for the pause after it to be short again."""


class Pauses:
    """The pauses of one client: they double until a connection has proved steady.

    So a server that welcomes each client and then closes is asked no more often than one that cannot be reached.
    """

    def __init__(self, backoff: FullJitter) -> None:
        self._backoff = backoff
        self._at_once = replace(backoff, base=min(AT_ONCE, backoff.base))
        self._endings = 0
        """Connections and attempts that have ended since the last steady one."""

    def after(self, ending: Ending) -> float:
        """Return the seconds to wait now that a connection, or an attempt to open one, has ended so."""
        if ending.lived >= STEADY:
            self._endings = 0
        jitter = self._at_once if ending.verdict == "return" and self._endings == 0 else self._backoff
        delay = ending.after + jitter.delay(self._endings)
        self._endings += 1
        return delay
