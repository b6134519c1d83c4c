"""Runs `process.py` several times at once."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("process.py")


async def publish_from_processes(url: str, names: Sequence[str], count: int) -> None:
    """Start a process per name, let them all publish `count` events at the same time, and wait for their end.

    Raises:
        AssertionError: one failed; says what it wrote.
    """
    processes = [await _start(url, name, count) for name in names]
    try:
        for process in processes:
            assert process.stdout is not None
            line = await process.stdout.readline()
            assert line == b"ready\n", await _complaint(process)
        answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    for process, (_, complaint) in zip(processes, answers, strict=True):
        assert process.returncode == 0, complaint.decode()


async def _start(url: str, name: str, count: int) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), url, name, str(count), cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
        stdin=PIPE, stdout=PIPE, stderr=PIPE,
    )  # fmt: skip


async def _complaint(process: Process) -> str:
    return (await process.communicate())[1].decode()
