"""Real processes for the cases: nodes and programs, each ended with the block that started it.

A process has a process group of its own, so that its end takes its children along, and its output goes to a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import psutil

from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables
from tests.processes import environment
from tests.waiting import eventually

PORTS = range(20_000, 32_000)
"""Below those that systems give to outgoing connections: nobody takes a node's port while it restarts."""
START_TIMEOUT = 30.0
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
STOP_TIMEOUT = 20.0
NO_LIMITS = {"publish_rate": 1_000_000, "publish_burst": 1_000_000, "max_connections_per_address": 100_000}
"""All load comes from one address."""


By = Literal["uvicorn", "serve", "timed"]


class Process:
    """A started program."""

    def __init__(self, command: Sequence[str], output: Path, environment: Mapping[str, str], directory: Path) -> None:
        self.output = output
        with output.open("ab") as file:
            self._popen = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                env=dict(environment),
                cwd=directory,
                start_new_session=True,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - it takes no lock
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._popen.poll()

    def text(self) -> str:
        """Return what it has written."""
        return self.output.read_text(errors="replace")

    def itself(self) -> psutil.Process:
        """Return the process as the system knows it, for `stopped`."""
        return psutil.Process(self.pid)

    def memory(self) -> int:
        """Return the resident memory of the process itself, bytes."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def busy(self) -> float:
        """Return how long it has had a processor so far, seconds."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def descriptors(self) -> int:
        """Return how many files and sockets it has open."""
        return int(psutil.Process(self.pid).num_fds())

    def connections(self, port: int) -> int:
        """Return how many TCP connections it has open on a port of its own: those to a database are not among them."""
        open_ones = psutil.Process(self.pid).net_connections("tcp")
        return sum(each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port for each in open_ones)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process, not to its children."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill it and its children at once, as a crash would."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    async def wait(self, timeout: float) -> int:
        """Wait for its end; return the exit code."""
        await eventually(lambda: self.exit_code is not None, timeout)
        assert self.exit_code is not None
        return self.exit_code

    async def terminate(self) -> int:
        """Ask it to end; return the exit code."""
        self.signal(signal.SIGTERM)
        return await self.wait(STOP_TIMEOUT)


class Node:
    """A standalone bus on a port of its own, which it keeps over restarts.

    It is `uvicorn eventbus_fastapi.app:app`, or `eventbus serve`, whose log says more, or that timed (`timed_serve`).
    """

    def __init__(
        self,
        processes: Processes,
        name: str,
        *,
        by: By,
        workers: int,
        settings: dict[str, Any],
        host: str = "127.0.0.1",
    ) -> None:
        self._processes = processes
        self._name = name
        self._by = by
        self._workers = workers
        # Nobody but the other end of a network of the test's own reaches another address than loopback.
        self._settings = settings if host == "127.0.0.1" else {"insecure": True, **settings}
        self._host = host
        self.port = free_port()
        self.process: Process

    @property
    def http(self) -> str:
        return f"http://{self._host}:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://{self._host}:{self.port}/ws"

    async def start(self, *, is_ready: bool = True) -> None:
        """Start it and wait until it is ready; `is_ready=False`: until it answers at all."""
        where = ["--host", self._host, "--port", str(self.port), "--workers", str(self._workers)]
        if self._by == "uvicorn":
            command = ["-m", "uvicorn", "eventbus_fastapi.app:app", "--timeout-graceful-shutdown", "5"]
            command += ["--no-access-log", *where]
        else:
            program = "tests.faults.timed_serve" if self._by == "timed" else "eventbus_fastapi.cli"
            command = ["-m", program, "serve", *where]
        self.process = self._processes.python(self._name, command, **self._settings)
        async with httpx.AsyncClient(base_url=self.http, trust_env=False) as client:
            path = "/readyz" if is_ready else "/healthz"

            async def answers() -> bool:
                if self.process.exit_code is not None:
                    return True
                return (await client.get(path)).is_success

            await eventually(answers, START_TIMEOUT)
        if self.process.exit_code is not None:
            raise AssertionError(f"{self._name} did not start:\n{self.process.text()}")

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()

    async def restart(self) -> None:
        """Start it again, on the same port."""
        self.kill()
        await self.start()


class Processes:
    """Starts processes, and ends all that still run when the block ends. A traceback that one wrote is an error."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._started: list[Process] = []
        self._outputs: dict[Path, None] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._started:
            process.kill()
        if error is None:
            self.check()
        else:
            self.show()

    def show(self) -> None:
        """Print the last of what each has written."""
        for output in self._outputs:
            lines = output.read_text(errors="replace").splitlines()[-40:]
            sys.stderr.write("\n".join([f"--- {output.name}", *lines, ""]))

    def check(self) -> None:
        """Raise if a process has written a traceback."""
        for output in self._outputs:
            text = output.read_text(errors="replace")
            if "Traceback" in text:
                raise AssertionError(f"{output.name} has a traceback:\n{text[-10_000:]}")

    def python(self, name: str, arguments: Sequence[str], **settings: Any) -> Process:
        """Start Python with arguments, in the settings' environment and no other."""
        variables = {f"EVENTBUS_{key.upper()}": str(value) for key, value in settings.items()}
        output = self.directory / f"{name}.log"
        process = Process([sys.executable, *arguments], output, environment(**variables), self.directory)
        self._started.append(process)
        self._outputs[output] = None
        return process

    async def node(
        self,
        database_url: str,
        *,
        name: str = "node",
        by: By = "uvicorn",
        workers: int = 1,
        listen_on: str = "127.0.0.1",
        **settings: Any,
    ) -> Node:
        """Start a node, and wait until it is ready. It takes whatever load a case puts on it, unless told otherwise."""
        settings = {"database_url": database_url, **NO_LIMITS, **settings}
        node = Node(self, name, by=by, workers=workers, settings=settings, host=listen_on)
        await node.start()
        return node


@contextlib.contextmanager
def stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Stop processes inside the block, so that they neither answer nor close anything."""
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


async def prepare(database_url: str) -> None:
    """Make the tables of the bus."""
    settings = Settings(database_url=database_url)
    await migrations.run(settings, Tables(settings.table_prefix, settings.db_schema), migrations.upgrade)


async def gather(*work: Any, timeout: float) -> list[Any]:
    """Run awaitables together, within a time."""
    async with asyncio.timeout(timeout):
        return list(await asyncio.gather(*work))


def end_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however that ended. Linux only."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """Return a port that nothing listens on, and that nothing else is likely to take."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
