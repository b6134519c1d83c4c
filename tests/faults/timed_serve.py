"""`eventbus serve` that takes down how much too late its event loop wakes a task up:

    python -m tests.faults.timed_serve serve --port 3000        # SIGUSR1: begin anew; SIGUSR2: write the file LATE

Two times of each wake-up, in seconds: how late it was, and how long the thread of the loop had the processor meanwhile.
The first is what clients feel, also of a machine whose processors are busy with something else; the second is the
node's own work.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from pathlib import Path

import uvicorn

from eventbus_fastapi.cli import main

LATE = Path("late.txt")
"""In the working directory."""
INTERVAL = 0.005

_serve = uvicorn.Server.serve


async def _serve_timed(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
    late: list[tuple[float, float]] = []

    async def wake() -> None:
        while True:
            due, used = time.monotonic() + INTERVAL, time.thread_time()
            await asyncio.sleep(INTERVAL)
            late.append((time.monotonic() - due, time.thread_time() - used))

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, late.clear)
    loop.add_signal_handler(signal.SIGUSR2, lambda: _write(late))
    waking = asyncio.create_task(wake(), name="timed-serve")
    try:
        await _serve(server, sockets)
    finally:
        waking.cancel()


def _write(late: list[tuple[float, float]]) -> None:
    written = LATE.with_suffix(".part")
    written.write_text("".join(f"{wall} {own}\n" for wall, own in late))
    written.replace(LATE)


if __name__ == "__main__":
    uvicorn.Server.serve = _serve_timed  # type: ignore[assignment, method-assign]
    main()
