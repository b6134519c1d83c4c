"""`eventbus worker`: the handlers of an app, served in one or several processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import math
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.alive import AliveFile
from eventbus_fastapi.cli.options import LogFormatOption, LogLevelOption, settings_of
from eventbus_fastapi.cli.running import announce, end_on_signals, set_up_log
from eventbus_fastapi.cli.supervisor import Supervisor, end_with_parent
from eventbus_fastapi.cli.terminal import fail
from eventbus_fastapi.errors import quote
from eventbus_fastapi.pipeline.workers import Workers
from eventbus_fastapi.settings import PREFIX, Settings


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise typer.BadParameter(f"expected a number of seconds, got {seconds}")
    return seconds


def worker(
    target: Annotated[str, typer.Argument(help="Where the EventBus is: module:name, as in myapp.main:eventbus.")],
    queue: Annotated[list[str] | None, typer.Option(help="Serve this queue; may be given again. Default: all.")] = None,
    processes: Annotated[int, typer.Option(min=1, max=64, help="Processes that serve.")] = 1,
    grace: Annotated[
        float, typer.Option(min=0, callback=_finite, help="Seconds that running handlers have at the end.")
    ] = 30.0,
    alive_file: Annotated[
        Path | None, typer.Option(help="Touch this file about every second while all processes work.")
    ] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Serve metrics on this port, each process on the next one that is free."),
    ] = None,
    metrics_host: Annotated[str | None, typer.Option(help="Its address.", show_default="127.0.0.1")] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Serve the handlers of an app until SIGTERM or Ctrl-C. Settings come from the app and from EVENTBUS_*."""
    given = {
        "log_level": log_level,
        "log_format": log_format,
        "metrics_port": metrics_port,
        "metrics_host": metrics_host,
    }
    settings = settings_of(**given)
    # The bus is made by the program, in this process or in those that the supervisor starts.
    os.environ.update({PREFIX + name.upper(): str(value) for name, value in given.items() if value is not None})
    alive = None if alive_file is None else AliveFile(alive_file)
    set_up_log(settings)
    eventbus = find(target)
    if processes == 1:
        asyncio.run(_serve(eventbus, queue, grace=grace, alive=alive, parent=parent))
        return
    again = [sys.executable, "-m", "eventbus_fastapi.cli", "worker", target, "--grace", str(grace)]
    again += [part for name in queue or () for part in ("--queue", name)]
    sys.exit(Supervisor(again, count=processes, grace=grace, alive=alive).run())


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


async def _serve(
    eventbus: EventBus, queues: Sequence[str] | None, *, grace: float, alive: AliveFile | None, parent: int | None
) -> None:
    """Serve until a signal comes or the supervisor is gone, then end within the grace time."""
    ended = end_on_signals()
    if parent is not None:
        end_with_parent(parent, ended.set, grace=grace)
    eventbus.starts_workers = False  # those of the queues that were asked for, below
    _spare_the_collector()
    async with eventbus:
        await eventbus.workers.start(queues)
        async with _kept(alive, eventbus.workers):
            announce(f"serving {', '.join(eventbus.workers.groups) or 'no handlers'}", Settings())
            await ended.wait()
            eventbus.workers.shutdown()
            await eventbus.workers.join(grace)


def _spare_the_collector() -> None:
    """Have no garbage collection look at what importing the app has made, which stays for good.

    Under load there is a full one about every second, and it takes 0.2 s with the modules of an app; nothing is handled
    meanwhile.
    """
    gc.collect()
    gc.freeze()


@contextlib.asynccontextmanager
async def _kept(alive: AliveFile | None, workers: Workers) -> AsyncIterator[None]:
    """Keep the alive file inside the block."""
    if alive is None:
        yield
        return
    keeping = asyncio.create_task(alive.keep(lambda: workers.is_alive), name="eventbus-alive")
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])
        alive.remove()
