"""The replies of one connection: answers in the order of the frames, written as soon as their results are known.

A task sends them, which is made for the first and ends with the last of those that wait together.

A publish is answered after its commit, so many wait at the same time. How many may wait is bounded, by number and by
bytes: beyond that the connection is not read on (`room`), and the client feels it. It never does what a frame asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from eventbus_fastapi.errors import EventBusError, StoreUnavailable
from eventbus_fastapi.protocol.events import Sub
from eventbus_fastapi.protocol.frames import Failed, Ok, joined, server_frame
from eventbus_fastapi.server.outlet import Outlet
from eventbus_fastapi.server.tasks import Work

logger = logging.getLogger(__name__)

MAX_WAITING = 1_000
"""Most frames of a connection that are not answered yet."""
FRAME_BYTES = 262_144
"""About how much is joined into one frame, characters."""


class Reply(NamedTuple):
    """What will be answered to one frame."""

    text: str | None = None
    result: asyncio.Future[Any] | None = None
    """The reply waits for it; None: `text` is the reply, known already."""
    render: Callable[[Any], str] | None = None
    """Makes the reply of the result; None: success needs none."""
    then: Callable[[], None] | None = None
    """Called after the reply was sent."""
    id: int | None = None
    size: int = 0
    """About the bytes that it holds while it waits: of the frame, or of `text`."""


WriteError = Callable[[EventBusError, int | None, Sub | None], str]
"""Makes the text that reports an error: of a frame with this id, about this subscription."""


def failed_frame(error: EventBusError, frame_id: int | None, sub: Sub | None) -> str:
    return server_frame(Failed(error, frame_id, sub))


class Replies:
    """`max_queued`: about the most bytes of the frames that are not answered yet, and of the answers that are known.

    `start` starts the task that sends, and deals with how it ends.
    """

    __slots__ = (
        "_is_plain",
        "_is_sending",
        "_max_queued",
        "_outlet",
        "_room",
        "_size",
        "_start",
        "_waiting",
        "_write_error",
    )

    def __init__(
        self,
        outlet: Outlet,
        *,
        is_plain: bool,
        max_queued: int,
        start: Callable[[Work], object],
        write_error: WriteError = failed_frame,
    ) -> None:
        self._outlet = outlet
        self._start = start
        self._write_error = write_error
        self._max_queued = max_queued
        self._is_plain = is_plain
        self._waiting: deque[Reply] | None = None  # None: there are none, and an empty one takes much memory
        self._size = 0
        self._is_sending = False
        self._room: asyncio.Event | None = None  # of who has to wait for it

    @property
    def has_room(self) -> bool:
        """True if another frame may be taken."""
        return self._waiting is None or (len(self._waiting) < MAX_WAITING and self._size < self._max_queued)

    async def room(self) -> None:
        """Wait until another frame may be taken."""
        while not self.has_room:
            self._room = self._room or asyncio.Event()
            await self._room.wait()

    def ok(self, frame_id: int | None, then: Callable[[], None] | None = None, /, **result: Any) -> None:
        """Answer `ok`, if the frame asked for an answer; then call `then`."""
        self._say(None if frame_id is None else server_frame(Ok(frame_id, result)), then)

    def say(self, text: str) -> None:
        """Answer with a frame that is written already."""
        self._say(text)

    def refuse(self, error: EventBusError, frame_id: int | None, sub: Sub | None = None) -> None:
        """Answer with an error, whether or not the frame asked for an answer."""
        self._say(self._write_error(error, frame_id, sub))

    def expect(
        self, result: asyncio.Future[Any], render: Callable[[Any], str] | None, frame_id: int | None, size: int
    ) -> None:
        """Answer with what `render` makes of the result when it is there, or with its error."""
        self._add(Reply(result=result, render=render, id=frame_id, size=size))

    async def _run(self) -> None:
        """Send replies until none waits.

        Raises:
            ConnectionEnded: the connection has ended.
        """
        try:
            while self._waiting:
                result = self._waiting[0].result
                if result is not None and not result.done():
                    await asyncio.wait((result,))
                await self._send(self._take(self._waiting))
            self._waiting = None
        finally:
            self._is_sending = False

    def close(self) -> None:
        """Forget the replies; what they wait for goes on."""
        for reply in self._waiting or ():
            if reply.result is not None:
                reply.result.add_done_callback(_note_lost_error)
        self._waiting = None

    def _say(self, text: str | None, then: Callable[[], None] | None = None) -> None:
        self._add(Reply(text=text, then=then, size=len(text or "")))

    def _add(self, reply: Reply) -> None:
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(reply)
        self._size += reply.size
        if not self._is_sending:
            self._is_sending = True
            self._start(self._run)

    def _take(self, waiting: deque[Reply]) -> list[Reply]:
        """Take the replies from the front that are known by now."""
        taken: list[Reply] = []
        while waiting and ((result := waiting[0].result) is None or result.done()):
            reply = waiting.popleft()
            self._size -= reply.size
            taken.append(reply if result is None else reply._replace(text=self._render(reply, result)))
        if self._room is not None and self.has_room:
            self._room.set()
            self._room = None
        return taken

    async def _send(self, replies: list[Reply]) -> None:
        frame: list[str] = []
        size = 0
        for reply in replies:
            if reply.text is not None:
                frame.append(reply.text)
                size += len(reply.text)
            if frame and (self._is_plain or size >= FRAME_BYTES or reply.then is not None):
                await self._outlet.send(joined(frame))
                frame, size = [], 0
            if reply.then is not None:
                reply.then()
        if frame:
            await self._outlet.send(joined(frame))

    def _render(self, reply: Reply, result: asyncio.Future[Any]) -> str | None:
        """Make the text of a reply whose result is there."""
        error = StoreUnavailable("the bus stopped before it was done") if result.cancelled() else result.exception()
        if error is None:
            return None if reply.render is None else reply.render(result.result())
        if not isinstance(error, EventBusError):
            logger.error("failed to do what a frame asked", exc_info=error)
            error = internal()
        return self._write_error(error, reply.id, None)


def internal() -> EventBusError:
    """The error to tell a client whose frame met a fault of ours."""
    return EventBusError("the server failed; its log has the details")


def _note_lost_error(result: asyncio.Future[Any]) -> None:
    """Log the error of a result that nobody is left to be told of."""
    if not result.cancelled() and (error := result.exception()) is not None:
        logger.info("a frame of a closed connection failed: %s", getattr(error, "code", type(error).__name__))
