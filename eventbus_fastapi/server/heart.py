"""The heart of a connection: tells a quiet client that it missed nothing, and finds out about a silent one.

It beats in v1 only. A client that has sent `ping` once is expected to go on with it; any other may be silent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from eventbus_fastapi.errors import LostHeartbeat
from eventbus_fastapi.pipeline.dispatcher import Dispatcher
from eventbus_fastapi.protocol import frames
from eventbus_fastapi.protocol.events import Sub
from eventbus_fastapi.server.feed import Feed
from eventbus_fastapi.server.outlet import Ending, Outlet

SILENT_HEARTBEATS = 4
"""Heartbeats of silence after which a client that sends `ping` has lost its connection."""


class Heart:
    """See the module's docstring. `on_lost` is called when the silence has been too long."""

    def __init__(
        self,
        outlet: Outlet,
        dispatcher: Dispatcher,
        feeds: Mapping[Sub, Feed],
        *,
        interval: float,
        on_lost: Callable[[Ending], None],
    ) -> None:
        self._outlet = outlet
        self._dispatcher = dispatcher
        self._feeds = feeds
        self._interval = interval
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._has_pinged = False
        self._listening_since: float | None = None  # None while we do something and do not listen

    def begin_listening(self) -> None:
        """From now on the client is heard, whatever it says."""
        self._listening_since = self._loop.time()

    def end_listening(self) -> None:
        """We do something, and its silence is not its own."""
        self._listening_since = None

    def expect_pings(self) -> None:
        self._has_pinged = True

    async def run(self) -> None:
        """Beat until the client is lost."""
        interval = self._interval
        while True:
            now = self._loop.time()
            silent_at = self._silent_at()
            if silent_at is not None and now >= silent_at:
                self._on_lost(Ending(4101, LostHeartbeat(f"nothing came for {SILENT_HEARTBEATS} heartbeats")))
                return
            if now >= self._outlet.sent_at + interval and (head := await self._covered()) is not None:
                await self._outlet.send(frames.server_frame(frames.Heartbeat(head)))
            due = max(self._outlet.sent_at + interval, now + interval / 20)
            await asyncio.sleep(min(due, silent_at or due) - now)

    def _silent_at(self) -> float | None:
        """When the silence will have been too long, in the loop's time; None: this client may be silent."""
        if not self._has_pinged or self._listening_since is None:
            return None
        return self._listening_since + SILENT_HEARTBEATS * self._interval

    async def _covered(self) -> int | None:
        """Return the seq up to which every matching event was sent; None if something is under way.

        Nothing is said about subscriptions that catch up or wait for credit.
        """
        position = self._dispatcher.position
        # What the dispatcher gave out up to there has woken its readers. They run before us now.
        await asyncio.sleep(0)
        feeds = [feed for feed in self._feeds.values() if feed.subscription.is_live and not feed.is_out_of_credit]
        if not feeds:
            return self._dispatcher.head
        return position if all(feed.is_idle for feed in feeds) else None
