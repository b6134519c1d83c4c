"""The examples as a user runs them: real processes, in an empty directory, on a free port."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from tests.processes import CHECKOUT, Process, environment

TIMEOUT = 90.0
"""Seconds that an example may take on a loaded machine."""
PORTS = range(20_000, 32_000)
"""Below those that systems give to outgoing connections: a client that looks for its server must not find itself."""


class Finished(NamedTuple):
    """What an example did that ends by itself."""

    code: int
    out: str
    err: str
    has_left_processes: bool
    left_files: list[Path]


def run(name: str, directory: Path, **variables: str) -> Finished:
    """Run an example to its end, with an empty working directory and an empty directory for temporary files."""
    temporary = directory / "tmp"
    temporary.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(CHECKOUT / "examples" / name)],
        cwd=directory,
        env=environment(TMPDIR=str(temporary), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        has_left_processes = _kill_group(process.pid)
    left_files = [path for path in directory.rglob("*") if path != temporary]
    return Finished(process.returncode, out, err, has_left_processes, left_files)


def _kill_group(group: int) -> bool:
    """Kill every process of a group; return whether there was any."""
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextlib.asynccontextmanager
async def serving(name: str, directory: Path, port: int, **variables: str) -> AsyncIterator[Process]:
    """Run an example that serves, until the block ends; it answers on its port when the block begins."""
    command = [sys.executable, str(CHECKOUT / "examples" / name)]
    async with Process.running(command, cwd=directory, env=environment(**variables)) as process:
        await process.line(f"running on http://127.0.0.1:{port}")
        yield process


def free_port() -> int:
    """Return a port that nobody listens on now."""
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
