"""The outlet: sends the text frames of one WebSocket, one at a time, in fair turns.

Every sender of a connection waits here for its turn, and every send has a time limit: a client that does not read must
cost a bounded piece of memory for a bounded time, whatever else happens. It never decides what is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from starlette.websockets import WebSocket, WebSocketDisconnect

from eventbus_fastapi.errors import EventBusError, SlowConsumer
from eventbus_fastapi.protocol.frames import Bye, server_frame
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.transport import abort, find_transport

logger = logging.getLogger(__name__)


class Ending(NamedTuple):
    """Why the server closes a connection, and what the client should do."""

    code: int
    error: EventBusError
    reconnect: bool = True
    after: float = 1.0
    """Seconds after which the client should come back."""


class Text(Protocol):
    @property
    def text(self) -> str: ...


F = TypeVar("F", bound=Text)


class ConnectionEnded(Exception):
    """The frame was not sent: the connection has ended or is about to. Its end is reported elsewhere."""


class Outlet:
    """See the module's docstring.

    `on_end` is called once a send shows that the connection cannot go on: with the reason to close it, or with None
    when the peer is gone.
    """

    def __init__(self, websocket: WebSocket, *, send_timeout: float, on_end: Callable[[Ending | None], None]) -> None:
        self._websocket = websocket
        self._transport = find_transport(websocket)
        self._send_timeout = send_timeout
        self._on_end = on_end
        self._turn = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self.sent_at = self._loop.time()
        """When the last frame was sent, in the loop's time."""

    async def send(self, text: str) -> None:
        """Send a frame when its turn comes.

        Raises:
            ConnectionEnded: it was not sent.
        """
        async with self._turn:
            await self._send(text)

    async def send_next(self, frames: Iterator[F]) -> F | None:
        """Send the next of these frames, which is made when its turn comes, and return it; None: there was none.

        Raises:
            ConnectionEnded: it was not sent.
        """
        async with self._turn:
            frame = next(frames, None)
            if frame is not None:
                await self._send(frame.text)
            return frame

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._send_timeout):
                await self._websocket.send({"type": "websocket.send", "text": text})
        except TimeoutError:
            self._on_end(slow(f"a send stalled for {self._send_timeout:g} seconds"))
            raise ConnectionEnded from None
        except (WebSocketDisconnect, RuntimeError):  # the latter is how ASGI servers refuse a send after the end
            self._on_end(None)
            raise ConnectionEnded from None
        self.sent_at = self._loop.time()

    async def close(self, ending: Ending, *, with_bye: bool, timeout: float) -> None:
        """Say goodbye and close. Nothing else may be sent any more.

        The ASGI server passes a close on only when the client has read what is in the way. So wait for that, at most
        `timeout` seconds, and go at once when the client goes.
        """
        deadline = self._loop.time() + timeout
        closing = asyncio.create_task(self._close(ending, with_bye), name="websocket-close")
        leaving = asyncio.create_task(self._await_disconnect(), name="websocket-leave")
        try:
            async with asyncio.timeout_at(deadline):
                await asyncio.wait((closing, leaving), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            logger.info("gave up closing a connection whose client does not read")
        finally:
            has_left = leaving.done() and not closing.done()  # as when the server stops
            self.let_go(self._send_timeout if has_left else max(deadline - self._loop.time(), 0))
            await tasks.end(closing, leaving)

    def let_go(self, patience: float) -> None:
        """Leave the connection to the server, which passes on what the client has not read yet. What it has not read in
        `patience` seconds either is thrown away, and the connection with it.
        """
        if self._transport is not None and self._transport.get_write_buffer_size() > 0:
            self._loop.call_later(patience, abort, self._transport)

    async def _close(self, ending: Ending, with_bye: bool) -> None:
        if with_bye:
            bye = server_frame(Bye(ending.error, ending.reconnect, ending.after))
            await self._websocket.send({"type": "websocket.send", "text": bye})
        await self._websocket.close(ending.code, ending.error.code)

    async def _await_disconnect(self) -> None:
        message: dict[str, Any] = {}
        while message.get("type") != "websocket.disconnect":
            message = dict(await self._websocket.receive())


def slow(reason: str) -> Ending:
    return Ending(4100, SlowConsumer(f"{reason}; resume after the last seq that you got"))
