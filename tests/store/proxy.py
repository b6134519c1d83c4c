"""A TCP proxy between a bus and its database server, to break the network between them in every way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from sqlalchemy import make_url

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Proxy:
    """Forwards connections until told otherwise."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._flows = asyncio.Event()
        self._flows.set()
        self._ends = asyncio.Event()
        self._ends.set()
        self._is_open = True
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def freeze(self) -> None:
        """Forward nothing more, and say nothing: what a network does that loses every packet."""
        self._flows.clear()

    def thaw(self) -> None:
        """Forward again, also what was held back."""
        self._flows.set()

    def hold_ends(self) -> None:
        """Forward what is said, but not that a connection was closed: the end of a connection may come late."""
        self._ends.clear()

    def cut(self) -> None:
        """End every connection and accept none: what a server does that is stopped."""
        self._is_open = False
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """Accept connections again."""
        self._is_open = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_open:
            writer.transport.abort()
            return
        there_reader, there_writer = await self._connect()
        self._writers |= {writer, there_writer}
        for task in (self._pump(reader, there_writer), self._pump(there_reader, writer)):
            pumping = asyncio.create_task(task)
            self._tasks.add(pumping)
            pumping.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        await self._ends.wait()
        writer.close()

    async def close(self) -> None:
        self.cut()
        self.thaw()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[str, Proxy]]:
    """Yield the URL of a database through a proxy, and the proxy."""
    parsed = make_url(url)
    port = parsed.port or (5432 if parsed.get_backend_name() == "postgresql" else 3306)
    directory = parsed.query.get("host")

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if directory is None:
            return await asyncio.open_connection(parsed.host or "127.0.0.1", port)
        return await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.{port}")  # a throw-away server has a socket

    proxy = Proxy(connect)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    behind = parsed.difference_update_query(["host", "port"])
    behind = behind.set(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    try:
        yield behind.render_as_string(hide_password=False), proxy
    finally:
        await proxy.close()
        server.close()
