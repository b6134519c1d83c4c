"""An attacker's end of a connection: bytes as they stand, over a socket that blocks for a limited time."""

from __future__ import annotations

import json
import select
import socket
import struct
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, NamedTuple, Self

PATIENCE = 20.0
"""Seconds after which an answer that should come is missing."""
PIECE = 65_536
TEXT, BINARY, CONTINUED, CLOSE, PING = 0x1, 0x2, 0x0, 0x8, 0x9
FIN = 0x80
HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)
V1 = b"Sec-WebSocket-Protocol: eventbus.v1\r\n"


class Answer(NamedTuple):
    """An HTTP answer; status 0: the server closed without one."""

    status: int
    head: bytes
    body: bytes

    @property
    def code(self) -> str | None:
        """The code of a problem; None: it is none."""
        try:
            return str(json.loads(self.body)["code"])
        except (ValueError, KeyError, TypeError):
            return None


def open_socket(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def ask(port: int, *parts: bytes | Iterable[bytes]) -> Answer:
    """Send the parts, as long as the server says nothing, and read until it closes."""
    with open_socket(port) as connection:
        for part in parts:
            send(connection, part)
        return read_answer(connection)


def send(connection: socket.socket, data: bytes | Iterable[bytes]) -> None:
    """Send data until it ends or the server says something: what is sent after a close destroys what it said."""
    pieces = (data[at : at + PIECE] for at in range(0, len(data), PIECE)) if isinstance(data, bytes) else data
    try:
        for piece in pieces:
            connection.sendall(piece)
            if select.select([connection], [], [], 0)[0]:
                return
    except OSError:
        return


def read_answer(connection: socket.socket) -> Answer:
    """Read the first answer, and whatever follows it until the server closes."""
    received = b""
    try:
        while chunk := connection.recv(65_536):
            received += chunk
    except ConnectionResetError:
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    return Answer(int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0, head, body)


def request(
    method: str,
    path: str,
    body: bytes | None = None,
    *headers: str,
    content_type: str = "application/json",
    length: int | None = None,
) -> bytes:
    """Return the bytes of a request after whose answer the server closes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if body is not None:
        if content_type:
            lines.append(f"Content-Type: {content_type}")
        if not any(header.lower().startswith("transfer-encoding") for header in headers):
            lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunks(*bodies: bytes, is_last: bool = True) -> bytes:
    """Return a body in chunks, without a length."""
    framed = b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies)
    return framed + b"0\r\n\r\n" if is_last else framed


def frame(payload: bytes, opcode: int = TEXT, *, fin: bool = True, mask: bool = True, reserved: int = 0) -> bytes:
    """Return the bytes of a WebSocket frame of a client. The mask is zeros, so the payload stands as it is."""
    first = (FIN if fin else 0) | reserved << 4 | opcode
    return bytes([first]) + frame_length(len(payload), mask=mask) + payload


def frame_length(length: int, *, mask: bool = True) -> bytes:
    """Return what a frame has between its first byte and its payload."""
    bit = 0x80 if mask else 0
    if length < 126:
        head = bytes([bit | length])
    elif length < 65_536:
        head = bytes([bit | 126]) + struct.pack("!H", length)
    else:
        head = bytes([bit | 127]) + struct.pack("!Q", length)
    return head + (bytes(4) if mask else b"")


def fragments(*payloads: bytes) -> bytes:
    """Return the frames of one text message in pieces."""
    last = len(payloads) - 1
    return b"".join(
        frame(payload, TEXT if place == 0 else CONTINUED, fin=place == last) for place, payload in enumerate(payloads)
    )


class Socket:
    """A WebSocket after its handshake. `outcome` is what the server makes of what was sent."""

    def __init__(self, port: int, headers: bytes = V1) -> None:
        self._socket = open_socket(port)
        self._received = b""
        self._socket.sendall(HANDSHAKE + headers + b"\r\n")
        while b"\r\n\r\n" not in self._received:
            self._receive()
        self.head, self._received = self._received.split(b"\r\n\r\n", 1)
        if b"eventbus.v1" in self.head:
            next(self.messages())  # the welcome

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes | Iterable[bytes]) -> None:
        """Send bytes, see `send`."""
        send(self._socket, data)

    def outcome(self) -> str | int:
        """Return the code of the next error, the type of the next answer, or how the server closed (1006: without a
        word).
        """
        for message in self.messages():
            if isinstance(message, int):
                return message
            if message["type"] == "error":
                return str(message["error"]["code"])
            if message["type"] in ("ok", "pong"):
                return str(message["type"])
        return 1006

    def messages(self) -> Iterator[dict[str, Any] | int]:
        """Read what the server says, its close code last."""
        try:
            while True:
                opcode, payload = self._read_frame()
                if opcode == CLOSE:
                    yield struct.unpack("!H", payload[:2])[0] if payload else 1005
                    return
                if opcode == TEXT:
                    said = json.loads(payload)
                    yield from said if isinstance(said, list) else [said]
        except ConnectionError:
            return

    def _read_frame(self) -> tuple[int, bytes]:
        first, length = self._take(2)
        if length == 126:
            (length,) = struct.unpack("!H", self._take(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self._take(8))
        return first & 0x0F, self._take(length)

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            self._receive()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _receive(self) -> None:
        chunk = self._socket.recv(65_536)
        if not chunk:
            raise ConnectionError("the server has closed")
        self._received += chunk
