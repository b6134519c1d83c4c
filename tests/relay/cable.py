"""A path to a broker that can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Cable:
    """A TCP path to a server. While it is cut, connections that there were are gone, and new ones are refused."""

    def __init__(self, url: str, place: socket.socket) -> None:
        self._parts = urlsplit(url)
        self._port: int = place.getsockname()[1]
        self._listening: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Self]:
        """Lead to the server of a URL until the block ends."""
        with socket.socket() as place:  # it never listens: it has nobody else take the port
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(("127.0.0.1", 0))
            cable = cls(url, place)
            await cable.mend()
            try:
                yield cable
            finally:
                cable.cut()
                await asyncio.gather(*cable._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The server's, by this path."""
        login, at, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{login}{at}127.0.0.1:{self._port}"))

    def cut(self) -> None:
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def mend(self) -> None:
        self._listening = await asyncio.start_server(self._connect, "127.0.0.1", self._port, reuse_address=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there_reader, there_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        self._writers.add(there_writer)
        if writer.transport.is_closing():  # it was cut meanwhile
            there_writer.transport.abort()
            return
        for source, target in ((reader, there_writer), (there_reader, writer)):
            self._tasks.add(asyncio.create_task(_pass_on(source, target), name="cable"))


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await source.read(65_536):
            target.write(chunk)
            await target.drain()
    target.transport.abort()
