"""Sockets that only count, so that reading costs the same and little whoever serves: the protocols are not parsed.

A reader shakes hands, says what it wants, and from then on counts the events in the bytes that arrive, or notes when
each arrived: events carry the time at which they were published, of a clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import secrets
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

STARTED_WITHIN = 120.0
AT = re.compile(rb'"at":([0-9.]+)')


class Dialect(NamedTuple):
    """What a server wants to hear."""

    subprotocol: str | None
    hello: str
    """What subscribes."""
    ready: bytes
    """What is in its answer."""
    mark: bytes
    """What is in each event, once."""


class Reader(asyncio.Protocol):
    """One socket."""

    def __init__(self, port: int, dialect: Dialect) -> None:
        self.count = 0
        self.delays: list[float] = []
        self.is_timing = False
        self.opened = asyncio.Event()
        self.ready = asyncio.Event()
        self.done = asyncio.Event()
        self._expected = sys.maxsize
        self._port, self._dialect = port, dialect
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        offered = f"Sec-WebSocket-Protocol: {self._dialect.subprotocol}\r\n" if self._dialect.subprotocol else ""
        transport.write(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offered}\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if not self.opened.is_set():
            self._tail += data
            if b"\r\n\r\n" in self._tail:
                self._tail = b""
                self.opened.set()
            return
        if not self.ready.is_set():
            self._tail += data
            if self._dialect.ready in self._tail:
                self._tail = b""
                self.ready.set()
            return
        if self.is_timing:
            now = time.perf_counter()
            self.delays += [now - float(at) for at in AT.findall(data)]
        mark = self._dialect.mark
        joined = self._tail + data
        self.count += joined.count(mark)
        self._tail = joined[-len(mark) + 1 :]
        if self.count >= self._expected:
            self.done.set()

    def expect(self, events: int) -> None:
        self.count, self._expected = 0, events
        self.done.clear()

    def send_text(self, text: str) -> None:
        body = text.encode()
        assert len(body) <= 125
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(body))
        self.transport.write(bytes([0x81, 0x80 | len(body)]) + mask + masked)


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
    return port


@contextlib.asynccontextmanager
async def running(command: Sequence[str], port: int) -> AsyncIterator[Process]:
    """Run a server until the block ends."""
    process = await asyncio.create_subprocess_exec(*command)
    try:
        await _wait_for(port, process)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _wait_for(port: int, process: Process) -> None:
    deadline = time.perf_counter() + STARTED_WITHIN
    while time.perf_counter() < deadline:
        assert process.returncode is None, "the server ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        await writer.wait_closed()
        return
    raise TimeoutError(f"nothing answers on port {port}")


@contextlib.asynccontextmanager
async def connected(port: int, dialect: Dialect, count: int) -> AsyncIterator[list[Reader]]:
    """Have so many sockets subscribed until the block ends."""
    loop = asyncio.get_running_loop()
    readers: list[Reader] = []
    try:
        for _ in range(count):
            _, reader = await loop.create_connection(lambda: Reader(port, dialect), "127.0.0.1", port)
            readers.append(reader)
            await asyncio.wait_for(reader.opened.wait(), STARTED_WITHIN)
            if not dialect.hello:
                reader.ready.set()
        for reader in readers:
            if dialect.hello:
                reader.send_text(dialect.hello)
                await asyncio.wait_for(reader.ready.wait(), STARTED_WITHIN)
        yield readers
    finally:
        for reader in readers:
            reader.transport.close()
