"""The transport below a connection, which ASGI has no word for: the one way to end a client that does not read.

A server that closes a connection waits until its buffer is empty, for as long as the client likes, and a server that
stops waits for its connections. uvicorn hands an app `receive` as a method of the protocol that has the transport. With
another server, or behind a middleware that wraps `receive`, the transport is out of reach (None); then such a client is
left to the server's own limits, as uvicorn's `--timeout-graceful-shutdown`.

ASGI has no word either for a server that wants to stop: uvicorn closes WebSockets itself, all at once and without a
goodbye, and waits for streams, whose app learns of it only after they have ended. But it tells the protocol of each
connection, where `on_shutdown` listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any

from starlette.types import Receive, Send
from starlette.websockets import WebSocket
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol, State

_UvicornsSend = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]
_STARLETTES_OWN = "starlette._exception_handler"
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: drop what the system has not sent yet, and reset the connection."""


def raw_channels(websocket: WebSocket) -> tuple[Receive, Send]:
    """Return what a WebSocket receives and sends by, which Starlette keeps to itself."""
    return getattr(websocket, "_receive", websocket.receive), getattr(websocket, "_send", websocket.send)


def find_transport(method: object) -> asyncio.Transport | None:
    """Return the transport of the connection that `receive` or `send` is of; None: it is out of reach."""
    protocol = getattr(method, "__self__", None)
    transport: asyncio.Transport | None = getattr(protocol, "transport", None)
    return transport if hasattr(transport, "abort") else None


def forget_handshake(transport: asyncio.Transport | None) -> None:
    """Have uvicorn let go of what a WebSocket began with, a fifth of what an idle one takes: nothing asks for it again.

    The headers are emptied, as the parser of the connection holds on to its request.
    """
    protocol = None if transport is None else transport.get_protocol()
    if getattr(protocol, "handshake_complete", False):
        for name in ("request", "response"):
            message = vars(protocol).pop(name, None)
            if message is not None:
                message.headers.clear()


class Sender:
    """Sends the texts of a WebSocket of uvicorn's without a wait.

    One event is the same text for a thousand sockets, and most of what a `send` of uvicorn's takes is making a frame of
    it. So where the frame depends on nothing but the text (there is no compression), it is made once and written.
    Whatever else there is to know of a connection, uvicorn's own `send` does.
    """

    __slots__ = ("_protocol", "_send", "_transport", "_writable")

    def __init__(
        self, send: _UvicornsSend, transport: asyncio.Transport, writable: asyncio.Event, protocol: Protocol | None
    ) -> None:
        self._send = send
        self._transport = transport
        self._writable = writable
        self._protocol = protocol

    @property
    def is_ready(self) -> bool:
        """True while the client has read all that was sent, as far as it is in this process."""
        return self._transport.get_write_buffer_size() == 0 and self._writable.is_set()

    def send_text(self, text: str) -> None:
        """Send a text without a wait, while `is_ready`. Raises what uvicorn's `send` does."""
        protocol, transport = self._protocol, self._transport
        if (
            protocol is not None
            and protocol.state is State.OPEN
            and not protocol.extensions
            and not transport.is_closing()
        ):
            transport.write(_frame_of(text))
            return
        sending = self._send({"type": "websocket.send", "text": text})
        try:
            sending.send(None)
        except StopIteration:
            return
        sending.close()
        raise TypeError("expected uvicorn to send without a wait while the transport takes more")


@lru_cache(maxsize=4)
def _frame_of(text: str) -> bytes:
    """Return the frame of a text, as a server sends it (RFC 6455, 5.2: it masks nothing)."""
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=False)


def find_sender(send: Any) -> Sender | None:
    """Return the sender beneath what an app is given to send with; None: it is not uvicorn's, or a middleware of the
    app's wants to see what is sent.
    """
    while getattr(send, "__module__", None) == _STARLETTES_OWN:  # wrapped for the sake of answers to HTTP
        send = dict(zip(send.__code__.co_freevars, send.__closure__, strict=True))["send"].cell_contents
    server = getattr(send, "__self__", None)
    transport, writable, protocol = (
        find_transport(send),
        getattr(server, "writable", None),
        getattr(server, "conn", None),
    )
    if transport is None or not isinstance(writable, asyncio.Event):
        return None
    return Sender(send, transport, writable, protocol if isinstance(protocol, Protocol) else None)


def abort(transport: asyncio.Transport) -> None:
    """End a connection at once, and with it what the client has not read. Does nothing if it has ended."""
    if transport.get_write_buffer_size() > 0:  # so it is open, and the socket is still its own
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


class on_shutdown:  # noqa: N801 - used as a function is
    """Call `callback` when the server asks this connection to end. Without effect where that cannot be known.

    `is_instead`: the callback has the connection end, and the server does nothing about it but wait.
    """

    __slots__ = ("_entry", "_protocol")

    def __init__(
        self, transport: asyncio.Transport | None, callback: Callable[[], None], *, is_instead: bool = False
    ) -> None:
        protocol: Any = None if transport is None else transport.get_protocol()
        self._protocol = protocol if callable(getattr(protocol, "shutdown", None)) else None
        self._entry = (callback, is_instead)

    def __enter__(self) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        if not isinstance(protocol.shutdown, _Shutdown):
            protocol.shutdown = _Shutdown(protocol.shutdown)
        protocol.shutdown.callbacks.append(self._entry)

    def __exit__(self, *_: object) -> None:
        protocol = self._protocol
        if protocol is None:
            return
        protocol.shutdown.callbacks.remove(self._entry)
        if not protocol.shutdown.callbacks:
            del protocol.shutdown  # its own again


class _Shutdown:
    """In the place of a protocol's method of this name: calls those who want to know, then the method, unless one of
    them does its work.
    """

    __slots__ = ("_method", "callbacks")

    def __init__(self, method: Callable[[], None]) -> None:
        self.callbacks: list[tuple[Callable[[], None], bool]] = []
        self._method = method

    def __call__(self) -> None:
        asked = tuple(self.callbacks)
        for callback, _ in asked:
            callback()
        if not any(is_instead for _, is_instead in asked):
            self._method()
