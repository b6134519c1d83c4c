"""A WebSocket client that reads nothing until it is told to: what the server sends piles up on the server's side."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, Literal

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

RECEIVE_BUFFER = 4_096
"""Bytes that the kernel may take from the server for us; it doubles them."""
TIMEOUT = 30.0
CHUNK = 65_536


class RawSocket:
    """One connection. All of it blocks, for `TIMEOUT` seconds at most."""

    def __init__(self, url: str, dialect: Literal["plain", "v1"]) -> None:
        uri = parse_uri(url)
        self.close_code: int | None = None
        """How the server closed; None: not yet, or without a close frame."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect((uri.host, uri.port))
        offered = [Subprotocol("eventbus.v1")] if dialect == "v1" else None
        self._protocol = ClientProtocol(uri, subprotocols=offered, max_size=None)
        self._frames: list[Frame] = []
        self._protocol.send_request(self._protocol.connect())
        self._flush()
        while not self._receive():
            pass

    def send(self, **frame: Any) -> None:
        """Send a frame of the bus."""
        self._protocol.send_text(json.dumps(frame).encode())
        self._flush()

    def read(self) -> Iterator[dict[str, Any]]:
        """Read on until the server closes or is gone; return the frames of the bus, one by one."""
        while True:
            frames, self._frames = self._frames, []
            for frame in frames:
                yield from self._parts(frame)
            if self.close_code is not None or not self._receive_more():
                return

    def close(self) -> None:
        """Leave without a word."""
        self._socket.close()

    def _parts(self, frame: Frame) -> Iterator[dict[str, Any]]:
        if frame.opcode is Opcode.CLOSE:
            self.close_code = int.from_bytes(bytes(frame.data[:2]), "big")
        elif frame.opcode is Opcode.TEXT:
            parsed = json.loads(bytes(frame.data))
            yield from parsed if isinstance(parsed, list) else [parsed]

    def _receive_more(self) -> bool:
        try:
            self._receive()
        except OSError:
            return False
        return True

    def _receive(self) -> bool:
        """Read once; return whether the handshake is done. Raises OSError when nothing comes any more."""
        chunk = self._socket.recv(CHUNK)
        if not chunk:
            raise ConnectionError("the server is gone")
        self._protocol.receive_data(chunk)
        is_open = False
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                is_open = True
            elif isinstance(event, Frame):
                self._frames.append(event)
        self._flush()
        return is_open

    def _flush(self) -> None:
        """Send what the protocol wants to say; the server may be gone by now."""
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)
