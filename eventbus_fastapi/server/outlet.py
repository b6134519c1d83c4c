"""The outlet: sends the texts of one connection, one at a time, in fair turns.

Every sender of a connection waits here for its turn, and every send has a time limit: a client that does not read must
cost a bounded piece of memory for a bounded time, whatever else happens. It never decides what is sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeVar

from starlette.types import Receive, Send

from eventbus_fastapi.errors import EventBusError, SlowConsumer
from eventbus_fastapi.protocol.frames import Bye, server_frame
from eventbus_fastapi.server import tasks
from eventbus_fastapi.server.transport import Sender, abort, find_sender, find_transport

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
_REFUSED = (RuntimeError, OSError)
"""How ASGI servers refuse a send after the end."""


class ConnectionEnded(Exception):
    """The frame was not sent: the connection has ended or is about to. Its end is reported elsewhere."""


class Line(Protocol):
    """A connection, as the ASGI server gives it."""

    @property
    def kind(self) -> str:
        """What its tasks are named after."""

    @property
    def transport(self) -> asyncio.Transport | None:
        """What is below it; None: it is out of reach."""

    @property
    def sender(self) -> Sender | None:
        """Sends without a wait, where that can be done; None: it cannot."""

    async def write(self, text: str) -> None:
        """Pass a text on to the server."""

    async def finish(self, ending: Ending) -> None:
        """Say goodbye and close."""

    async def leave(self) -> None:
        """Return when the client has left. What it says meanwhile is thrown away."""


class Outlet:
    """See the module's docstring.

    A text may also be sent at once, by nobody's task, while nothing is in its way (`is_free`): no other text, and
    nothing that the client has not read.

    `on_end` is called once a send shows that the connection cannot go on: with the reason to close it, or with None
    when the peer is gone.
    """

    __slots__ = ("_is_shut", "_line", "_loop", "_on_end", "_send_timeout", "_turn", "history", "sent_at")

    def __init__(self, line: Line, *, send_timeout: float, on_end: Callable[[Ending | None], None]) -> None:
        self._line = line
        self._send_timeout = send_timeout
        self._on_end = on_end
        self._turn = asyncio.Lock()
        self.history = asyncio.Lock()
        """Held while a page of the log is read and sent: a connection holds one, however many subscriptions it has."""
        self._is_shut = False
        self._loop = asyncio.get_running_loop()
        self.sent_at = self._loop.time()
        """When the last text was sent, in the loop's time."""

    @property
    def kind(self) -> str:
        return self._line.kind

    @property
    def queued_bytes(self) -> int:
        """What was sent and has not left the process yet; 0 where the transport is out of reach."""
        transport = self._line.transport
        return 0 if transport is None else transport.get_write_buffer_size()

    async def send(self, text: str) -> None:
        """Send a text when its turn comes.

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

    @property
    def is_free(self) -> bool:
        """True while a text may be sent at once."""
        sender = self._line.sender
        return sender is not None and sender.is_ready and not self._is_shut and not self._turn.locked()

    def send_at_once(self, text: str) -> None:
        """Send a text without a wait, while `is_free`.

        Raises:
            ConnectionEnded: it was not sent.
        """
        assert self._line.sender is not None
        try:
            self._line.sender.send_text(text)
        except _REFUSED:
            self._on_end(None)
            raise ConnectionEnded from None
        self.sent_at = self._loop.time()

    def shut(self) -> None:
        """Send nothing more; only `close` still says goodbye."""
        self._is_shut = True

    async def _send(self, text: str) -> None:
        if self._is_shut:
            raise ConnectionEnded
        try:
            async with asyncio.timeout(self._send_timeout):
                await self._line.write(text)
        except TimeoutError:
            self._on_end(slow(f"a send stalled for {self._send_timeout:g} seconds"))
            raise ConnectionEnded from None
        except _REFUSED:
            self._on_end(None)
            raise ConnectionEnded from None
        self.sent_at = self._loop.time()

    async def close(self, ending: Ending, timeout: float) -> None:
        """Say goodbye and close. Nothing else may be sent any more.

        The ASGI server passes a close on only when the client has read what is in the way. So wait for that, at most
        `timeout` seconds, and go at once when the client goes.
        """
        deadline = self._loop.time() + timeout
        closing = asyncio.create_task(self._line.finish(ending), name=f"{self._line.kind}-close")
        leaving = asyncio.create_task(self._line.leave(), name=f"{self._line.kind}-leave")
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
        transport = self._line.transport
        if transport is not None and transport.get_write_buffer_size() > 0:
            self._loop.call_later(patience, abort, transport)

    def cut_off(self, patience: float) -> None:
        """End the connection after so many seconds, whether or not the client has done its part by then."""
        if self._line.transport is not None:
            self._loop.call_later(patience, abort, self._line.transport)


class SocketLine:
    """An accepted WebSocket. `has_bye`: its dialect has a word for goodbye, beside the close code."""

    __slots__ = ("_has_bye", "_send", "receive", "sender", "transport")

    kind = "websocket"

    def __init__(self, receive: Receive, send: Send, *, has_bye: bool) -> None:
        self.receive = receive
        self._send = send
        self._has_bye = has_bye
        self.transport = find_transport(receive)
        self.sender = find_sender(send)

    async def write(self, text: str) -> None:
        await self._send({"type": "websocket.send", "text": text})

    async def finish(self, ending: Ending) -> None:
        if self._has_bye:
            await self.write(server_frame(Bye(ending.error, ending.reconnect, ending.after)))
        await self._send({"type": "websocket.close", "code": ending.code, "reason": ending.error.code})

    async def leave(self) -> None:
        while (await self.receive())["type"] != "websocket.disconnect":
            pass


def slow(reason: str) -> Ending:
    return Ending(4100, SlowConsumer(f"{reason}; resume after the last seq that you got"))
