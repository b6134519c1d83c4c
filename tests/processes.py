"""Real processes for tests: started, listened to, and gone when the block ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from tests.waiting import eventually

CHECKOUT = Path(__file__).resolve().parent.parent
START = 60.0
"""Seconds that a process has to say something: starting Python on a loaded machine takes its time."""


def environment(**variables: str) -> dict[str, str]:
    """Return an environment in which a Python process finds this checkout, and no settings of a bus but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENTBUS_")}
    path = os.pathsep.join(filter(None, [str(CHECKOUT), kept.get("PYTHONPATH", "")]))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", **variables}


class Process:
    """A process in a session of its own, its output read line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        """What it has printed so far, on stdout and stderr."""

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls, command: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
    ) -> AsyncIterator[Self]:
        """Run a command until the block ends. Then whatever is left of it, its children too, is killed."""
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=environment() if env is None else env,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            start_new_session=True,
            limit=2**24,
        )
        running = cls(process)
        reader = asyncio.create_task(running._read(), name="process-reader")
        try:
            yield running
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            await reader

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "".join(line + "\n" for line in self.lines)

    async def line(self, text: str, timeout: float = START) -> str:
        """Wait for a line with this text, and return it."""
        try:
            await eventually(lambda: any(text in line for line in self.lines) or self._has_ended, timeout)
        finally:
            found = [line for line in self.lines if text in line]
            assert found, f"no line with {text!r} in what it printed:\n{self.output}"
        return found[0]

    async def end(self, timeout: float = START) -> int:
        """Wait for its end, and return the exit code."""
        return await asyncio.wait_for(self._process.wait(), timeout)

    async def interrupt(self, number: signal.Signals, timeout: float = 15.0) -> int:
        """Send a signal, and return the exit code of the end that it brings."""
        self._process.send_signal(number)
        return await self.end(timeout)

    @property
    def _has_ended(self) -> bool:
        return self._process.returncode is not None

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode().rstrip("\n"))


EVENTBUS = (sys.executable, "-m", "eventbus_fastapi.cli")
"""The command `eventbus`, of this checkout."""
