"""The environment of the peers: `benchmarks/.peers`, in the versions of `peers.txt`, made when it is first needed.

What runs there imports nothing of the bus. Some of it answers questions for as long as it runs, a line of JSON each, so
that bus and peer can be measured by turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
WANTED = HERE / "peers.txt"
INSTALLED = PEERS / "peers.txt"
"""A copy of what is installed."""
PYTHON = PEERS / "bin" / "python"

Ask = Callable[[int], Awaitable[Any]]
"""Asks a peer to do something with so many events; returns what it has measured."""


async def install() -> None:
    """Make the environment, or make it anew if other versions are wanted by now."""
    if INSTALLED.exists() and INSTALLED.read_text() == WANTED.read_text():
        return
    shutil.rmtree(PEERS, ignore_errors=True)
    await _run(sys.executable, "-m", "venv", str(PEERS))
    await python("-m", "pip", "install", "--quiet", "--requirement", WANTED)
    shutil.copy(WANTED, INSTALLED)


async def python(*arguments: str | Path) -> str:
    """Run Python there; return what it printed."""
    return await _run(str(PYTHON), *map(str, arguments))


@contextlib.asynccontextmanager
async def asking(*arguments: str | Path) -> AsyncIterator[Ask]:
    """Run a script there until the block ends: it reads a number from a line, and answers with a line of JSON."""
    process = await asyncio.create_subprocess_exec(
        str(PYTHON), *map(str, arguments), stdin=PIPE, stdout=PIPE, limit=2**24
    )
    assert process.stdin is not None
    assert process.stdout is not None
    writer, reader = process.stdin, process.stdout

    async def ask(count: int) -> Any:
        writer.write(f"{count}\n".encode())
        await writer.drain()
        line = await reader.readline()
        if not line:
            raise RuntimeError(f"{arguments[0]} ended with {await process.wait()}")
        return json.loads(line)

    try:
        yield ask
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    output, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {errors.decode()[-2_000:]}")
    return output.decode().strip()
