"""A burst to 1,000 `eventbus.v1` sockets on one topic: against a loop of `send_text` on the same uvicorn.

Server and readers are two processes. The readers count events in the bytes that arrive, so that reading costs the same
and little for both; a run ends when every socket has every event.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator

import httpx

from benchmarks.fanout_server import TOPIC
from benchmarks.measuring import Figure, compare

SOCKETS = 1_000
LOOP_EVENTS = 100
BUS_EVENTS = 5_000
MARK = b'"type":"event"'


class Reader(asyncio.Protocol):
    """A socket that counts the events in what it receives."""

    def __init__(self, port: int) -> None:
        self.count = 0
        self.expected = sys.maxsize
        self.ready = asyncio.Event()
        self.subscribed = asyncio.Event()
        self.done = asyncio.Event()
        self._port = port
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        transport.write(
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: eventbus.v1\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        if not self.ready.is_set():
            self._tail += data
            if b"\r\n\r\n" in self._tail:
                self.ready.set()
                self._tail = b""
            return
        if not self.subscribed.is_set() and b'"type":"ok"' in data:
            self.subscribed.set()
        joined = self._tail + data
        self.count += joined.count(MARK)
        self._tail = joined[-len(MARK) + 1 :]
        if self.count >= self.expected:
            self.done.set()

    def expect(self, events: int) -> None:
        self.count, self.expected = 0, events
        self.done.clear()

    def send_text(self, text: str) -> None:
        body = text.encode()
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(body))
        self.transport.write(bytes([0x81, 0x80 | len(body)]) + mask + masked)


@contextlib.asynccontextmanager
async def serving(kind: str) -> AsyncIterator[int]:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port: int = chosen.getsockname()[1]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.fanout_server", kind, str(port))
    try:
        await _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), 10)
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _wait_for(port: int, process: Process) -> None:
    while True:
        assert process.returncode is None, "the server ended"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        await writer.wait_closed()
        return


async def connect(port: int) -> list[Reader]:
    loop = asyncio.get_running_loop()
    readers = []
    for _ in range(SOCKETS):
        _, reader = await loop.create_connection(lambda: Reader(port), "127.0.0.1", port)
        readers.append(reader)
        await reader.ready.wait()
    for reader in readers:
        reader.send_text(f'{{"type":"subscribe","id":1,"pattern":"{TOPIC}","sub":1}}')
        await reader.subscribed.wait()
    return readers


async def burst(port: int, readers: list[Reader], events: int) -> float:
    """Return deliveries per second."""
    for reader in readers:
        reader.expect(events)
    async with httpx.AsyncClient(timeout=120) as client:
        start = time.perf_counter()
        sending = asyncio.create_task(client.post(f"http://127.0.0.1:{port}/burst?events={events}"))
        for reader in readers:
            await asyncio.wait_for(reader.done.wait(), 120)
        taken = time.perf_counter() - start
        (await sending).raise_for_status()
    return events * len(readers) / taken


async def run(repeat: int) -> list[Figure]:
    async with serving("loop") as loop_port, serving("bus") as bus_port:
        loop_readers, bus_readers = await connect(loop_port), await connect(bus_port)
        figure = await compare(
            f"burst to {SOCKETS:,} sockets, deliveries",
            lambda: burst(loop_port, loop_readers, LOOP_EVENTS),
            lambda: burst(bus_port, bus_readers, BUS_EVENTS),
            target=8.0,
            repeat=repeat,
        )
        for reader in (*loop_readers, *bus_readers):
            reader.transport.close()
    return [figure]
