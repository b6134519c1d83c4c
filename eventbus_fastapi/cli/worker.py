"""`eventbus worker`: the handlers of an app, served in one or several processes of their own."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.serve import LogLevel
from eventbus_fastapi.cli.terminal import fail, show
from eventbus_fastapi.errors import quote

RESTART_PAUSE = 1.0
"""Seconds until a process that has ended by itself is started again."""
KILL_AFTER = 15.0
"""Seconds beyond the grace time after which a process that does not end is killed."""


def worker(
    target: Annotated[str, typer.Argument(help="Where the EventBus is: module:name, as in myapp.main:eventbus.")],
    queue: Annotated[list[str] | None, typer.Option(help="Serve this queue; may be given again. Default: all.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes that serve.")] = 1,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that running handlers have at the end.")] = 30.0,
    log_level: Annotated[LogLevel, typer.Option(help="The least important messages to log.")] = LogLevel.info,
) -> None:
    """Serve the handlers of an app until SIGTERM or Ctrl-C. Settings come from the app and from EVENTBUS_*."""
    logging.basicConfig(
        level=log_level.value.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    eventbus = find(target)
    if processes == 1:
        asyncio.run(_serve(eventbus, queue, grace))
        return
    again = [sys.executable, "-m", "eventbus_fastapi.cli", "worker", target, "--grace", str(grace)]
    again += ["--log-level", log_level.value, *(part for name in queue or () for part in ("--queue", name))]
    _supervise(again, processes, grace)


def find(target: str) -> EventBus:
    """Import the EventBus that a target names."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise typer.BadParameter(f"expected module:name, as in myapp.main:eventbus, got {quote(target)}")
    sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise
        fail(f"there is no module {quote(exc.name)} in {os.getcwd()}, nor among the installed ones")
    eventbus = getattr(found, name, None)
    if not isinstance(eventbus, EventBus):
        fail(f"expected an EventBus at {target}, got {type(eventbus).__name__}")
    return eventbus


async def _serve(eventbus: EventBus, queues: Sequence[str] | None, grace: float) -> None:
    """Serve until a signal comes, then end within the grace time."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    eventbus.starts_workers = False  # those of the queues that were asked for, below
    async with eventbus:
        await eventbus.workers.start(queues)
        show(f"serving {', '.join(eventbus.workers.groups) or 'no handlers'}")
        await ended.wait()
        eventbus.workers.shutdown()
        await eventbus.workers.join(grace)


def _supervise(command: Sequence[str], count: int, grace: float) -> None:
    """Keep `count` processes running until a signal comes, and pass that on."""
    is_ending = False

    def end(number: int, frame: object) -> None:
        nonlocal is_ending
        is_ending = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    running = [_start(command) for _ in range(count)]
    while not is_ending:
        for place, process in enumerate(running):
            if process.poll() is not None and not is_ending:
                logging.getLogger(__name__).error("a worker process ended with %s; it is replaced", process.returncode)
                time.sleep(RESTART_PAUSE)
                running[place] = _start(command)
        time.sleep(0.1)
    for process in running:
        process.terminate()
    deadline = time.monotonic() + grace + KILL_AFTER
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
    codes = [process.wait() for process in running]
    sys.exit(1 if any(codes) else 0)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # A session of its own: a Ctrl-C is passed on by us alone.
    return subprocess.Popen(command, start_new_session=True)  # noqa: S603 - our own command
