"""The transport below a WebSocket, which ASGI has no word for: the one way to end a client that does not read.

A server that closes a connection waits until its buffer is empty, for as long as the client likes, and a server that
stops waits for its connections. uvicorn hands an app `receive` as a method of the protocol that has the transport. With
another server, or behind a middleware that wraps `receive`, the transport is out of reach (None); then such a client is
left to the server's own limits, as uvicorn's `--timeout-graceful-shutdown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

from starlette.websockets import WebSocket

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: drop what the system has not sent yet, and reset the connection."""


def find_transport(websocket: WebSocket) -> asyncio.Transport | None:
    """Return the transport of a WebSocket; None: it is out of reach."""
    receive = getattr(websocket, "_receive", None)  # Starlette keeps it to itself
    protocol = getattr(receive, "__self__", None)
    transport: asyncio.Transport | None = getattr(protocol, "transport", None)
    return transport if hasattr(transport, "abort") else None


def abort(transport: asyncio.Transport) -> None:
    """End a connection at once, and with it what the client has not read. Does nothing if it has ended."""
    if transport.get_write_buffer_size() > 0:  # so it is open, and the socket is still its own
        with contextlib.suppress(OSError):
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
