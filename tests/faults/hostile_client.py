"""A program that opens many connections to a node and behaves badly on each, coming back whenever it is sent away:

    python -m tests.faults.hostile_client 3000 --count 100

They are of all KINDS in turn, and come from another address of this machine than everybody else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

from tests.security.wire import CONTINUED, HANDSHAKE, PING, TEXT, V1, frame, request

ADDRESS = "127.0.0.2"
PAUSE = 0.5
"""Seconds before it comes back."""
DRIBBLE = 0.1
"""Seconds between two bytes."""
TOPIC = "flood"
EVENT = b'{"type":"publish","data":{"topic":"flood","payload":"%s"}}' % (b"x" * 200)
BODY = b'{"topic":"flood","payload":"%s"}' % (b"x" * 200)

LARGE = b'{"type":"publish","data":{"topic":"flood","payload":[%s1]}}' % (b"1," * 500_000)
"""Parsed, and refused: as a payload it is too large."""
SUBSCRIBE = b'{"type":"subscribe","sub":1,"pattern":"flood.#"}'
UNSUBSCRIBE = b'{"type":"unsubscribe","sub":1}'

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Hostile:
    def __init__(self, port: int) -> None:
        self._port = port

    # --- slow ---

    async def subscribe_and_never_read(self) -> None:
        async with self._websocket() as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(frame(b'{"type":"subscribe","pattern":"#","after":0}'))
            await self._until_closed(writer)

    async def ask_and_never_read(self) -> None:
        async with self._connection() as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(b"GET /events?limit=1000 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
            await self._until_closed(writer)

    # --- silent ---

    async def say_nothing(self) -> None:
        async with self._connection() as (reader, _):
            await reader.read()

    async def say_nothing_after_the_handshake(self) -> None:
        async with self._websocket() as (reader, _):
            await reader.read()

    # --- dribbling ---

    async def dribble_a_head(self) -> None:
        await self._dribble(b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 1_000)

    async def dribble_a_body(self) -> None:
        await self._dribble(b" " * 10_000, after=request("POST", "/publish", b"", length=10_000))

    async def dribble_fragments(self) -> None:
        async with self._websocket() as streams:
            streams[1].write(frame(b"", TEXT, fin=False))
            await self._dribble_on(streams, itertools.repeat(frame(b"x", CONTINUED, fin=False)))

    # --- flooding ---

    async def flood_with_publishes(self) -> None:
        await self._flood(frame(EVENT) * 50)

    async def flood_with_empty_frames(self) -> None:
        await self._flood(frame(b"") * 5_000)

    async def flood_with_pings(self) -> None:
        await self._flood(frame(b"x" * 125, PING) * 100)

    async def flood_with_fragments(self) -> None:
        await self._flood(frame(b"", TEXT, fin=False) + frame(b"", CONTINUED, fin=False) * 5_000)

    async def flood_with_requests(self) -> None:
        async with self._connection() as (reader, writer):
            head = (
                b"POST /publish HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            )
            while not reader.at_eof():
                writer.write((head % len(BODY) + BODY) * 10)
                await writer.drain()
                await reader.read(65_536)

    async def flood_with_large_frames(self) -> None:
        await self._flood(frame(LARGE))

    async def subscribe_and_unsubscribe(self) -> None:
        await self._flood(frame(SUBSCRIBE) + frame(UNSUBSCRIBE))

    async def connect_and_leave(self) -> None:
        for _ in range(20):
            async with self._websocket() as (_, writer):
                writer.transport.abort()

    # --- parts ---

    async def _flood(self, data: bytes) -> None:
        async with self._websocket() as (reader, writer), _reading(reader) as reading:
            while not reading.done():
                writer.write(data)
                await writer.drain()

    async def _dribble(self, data: bytes, after: bytes = b"") -> None:
        async with self._connection() as streams:
            streams[1].write(after)
            await self._dribble_on(streams, (bytes([byte]) for byte in data))

    async def _dribble_on(self, streams: Streams, pieces: Iterable[bytes]) -> None:
        reader, writer = streams
        async with _reading(reader) as reading:
            for piece in pieces:
                writer.write(piece)
                await asyncio.wait([reading], timeout=DRIBBLE)
                if reading.done():
                    return

    async def _until_closed(self, writer: asyncio.StreamWriter) -> None:
        """Who does not read sees no end: write something, to hear that there is nobody."""
        while True:
            await asyncio.sleep(PAUSE)
            writer.write(frame(b'{"type":"ping"}'))
            await writer.drain()

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Streams]:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self._port, local_addr=(ADDRESS, 0), limit=10_000_000
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    @contextlib.asynccontextmanager
    async def _websocket(self) -> AsyncIterator[Streams]:
        async with self._connection() as (reader, writer):
            writer.write(HANDSHAKE + V1 + b"\r\n")
            await reader.readuntil(b"\r\n\r\n")
            yield reader, writer


@contextlib.asynccontextmanager
async def _reading(reader: asyncio.StreamReader) -> AsyncIterator[asyncio.Task[bytes]]:
    """Read on in the background, until the server closes, however it does."""
    reading = asyncio.create_task(reader.read())
    try:
        yield reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


Kind = Callable[[Hostile], Awaitable[None]]

KINDS: tuple[Kind, ...] = (
    Hostile.subscribe_and_never_read,
    Hostile.ask_and_never_read,
    Hostile.say_nothing,
    Hostile.say_nothing_after_the_handshake,
    Hostile.dribble_a_head,
    Hostile.dribble_a_body,
    Hostile.dribble_fragments,
    Hostile.flood_with_publishes,
    Hostile.flood_with_empty_frames,
    Hostile.flood_with_pings,
    Hostile.flood_with_fragments,
    Hostile.flood_with_requests,
    Hostile.flood_with_large_frames,
    Hostile.subscribe_and_unsubscribe,
    Hostile.connect_and_leave,
)


async def behave_badly(port: int, count: int, kinds: Sequence[Kind]) -> None:
    hostile = Hostile(port)

    async def again_and_again(kind: Kind) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await kind(hostile)
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(again_and_again(kinds[number % len(kinds)]) for number in range(count)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--kind", choices=[kind.__name__ for kind in KINDS], help="only this one")
    options = parser.parse_args()
    kinds = [kind for kind in KINDS if options.kind in (None, kind.__name__)]
    asyncio.run(behave_badly(options.port, options.count, kinds))


if __name__ == "__main__":
    main()
