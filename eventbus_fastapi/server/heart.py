"""The heart of a connection: tells a quiet client that it missed nothing, and finds out about a silent one.

It beats in v1 only. A client that has sent `ping` once is expected to go on with it; any other may be silent. One
`Pulse` makes all hearts of a node beat.
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
from eventbus_fastapi.server.tasks import Work

LOOKS = 20
"""So often in a heartbeat's time a heart looks what is due."""
SILENT_HEARTBEATS = 4
"""Heartbeats of silence after which a client that sends `ping` has lost its connection."""


class Pulse:
    """The one timer of all hearts: `interval` is theirs, and each looks what is due a few times in it."""

    def __init__(self, interval: float) -> None:
        self._every = interval / LOOKS
        self._hearts: set[Heart] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def add(self, heart: Heart) -> None:
        if not self._hearts:
            self._set_timer()
        self._hearts.add(heart)

    def remove(self, heart: Heart) -> None:
        self._hearts.discard(heart)
        if not self._hearts and self._timer is not None:
            self._timer.cancel()

    def _set_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + self._every
        self._timer = loop.call_at(self._due, self._beat)

    def _beat(self) -> None:
        late = asyncio.get_running_loop().time() - self._due
        self._set_timer()
        for heart in tuple(self._hearts):
            heart.beat(late)


class Heart:
    """See the module's docstring. A task is made only for what has to be said.

    `start` starts the task, and deals with how it ends; `on_lost` is called when the silence has been too long.
    """

    __slots__ = (
        "_dispatcher",
        "_feeds",
        "_has_pinged",
        "_interval",
        "_is_saying",
        "_listening_since",
        "_loop",
        "_on_lost",
        "_outlet",
        "_start",
    )

    def __init__(
        self,
        outlet: Outlet,
        dispatcher: Dispatcher,
        feeds: Mapping[Sub, Feed],
        *,
        interval: float,
        start: Callable[[Work], object],
        on_lost: Callable[[Ending], None],
    ) -> None:
        self._outlet = outlet
        self._dispatcher = dispatcher
        self._feeds = feeds
        self._interval = interval
        self._start = start
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._has_pinged = False
        self._is_saying = False
        self._listening_since: float | None = None  # None while we do something and do not listen

    def begin_listening(self) -> None:
        """From now on the client is heard, whatever it says."""
        self._listening_since = self._loop.time()

    def end_listening(self) -> None:
        """We do something, and its silence is not its own."""
        self._listening_since = None

    def expect_pings(self) -> None:
        self._has_pinged = True

    def beat(self, late: float = 0.0) -> None:
        """Find a client that is lost; tell one that is not how far it is, if it has heard nothing for long.

        For the `late` seconds by which the loop missed the beat nobody was heard: that is not the client's silence.
        """
        now = self._loop.time()
        if self._listening_since is not None:
            self._listening_since = min(now, self._listening_since + late)
        silent_at = self._silent_at()
        if silent_at is not None and now >= silent_at:
            self._on_lost(Ending(4101, LostHeartbeat(f"nothing came for {SILENT_HEARTBEATS} heartbeats")))
        elif now >= self._outlet.sent_at + self._interval and not self._is_saying:
            self._is_saying = True
            self._start(self._say)

    async def _say(self) -> None:
        try:
            if (head := await self._covered()) is not None:
                await self._outlet.send(frames.server_frame(frames.Heartbeat(head)))
        finally:
            self._is_saying = False

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
