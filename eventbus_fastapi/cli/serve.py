"""`eventbus serve`: the bus alone, in one or several processes of uvicorn."""

from __future__ import annotations

import asyncio
import copy
import os
import shlex
import shutil
import signal
import socket
import sys
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.options import DatabaseUrl, settings_of
from eventbus_fastapi.cli.terminal import fail, show
from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.settings import PREFIX, Settings
from eventbus_fastapi.store.engines import is_memory, parse_url
from eventbus_fastapi.version import VERSION

WS_FRAMES = 16
"""The WebSocket layer closes a connection at a frame of so many `max_frame`; smaller ones are answered."""


class LogLevel(StrEnum):
    critical = "critical"
    error = "error"
    warning = "warning"
    info = "info"
    debug = "debug"


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port to listen on; 0: any free one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve.")] = 1,
    database_url: DatabaseUrl = None,
    access_log: Annotated[bool, typer.Option(help="Log every request.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="The least important messages to log.")] = LogLevel.info,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that open requests and sockets have at the end.")] = 5,
) -> None:
    """Serve a bus. Every other setting comes from EVENTBUS_*."""
    settings = settings_of(host=host, port=port, database_url=database_url)
    if workers > 1 and is_memory(parse_url(settings.database_url)):
        raise SettingsError(f"{settings.database_url} lives in one process; give a file, or --workers 1")
    try:
        import uvicorn
    except ModuleNotFoundError:
        fail("uvicorn is not installed; serving needs: pip install 'eventbus-fastapi[server]'")
    asyncio.run(_start_once(settings))
    listening = _listen(settings.host, settings.port)
    # The app is made from the environment, in this process or in those that uvicorn starts.
    for name in ("host", "port", "database_url"):
        os.environ[PREFIX + name.upper()] = str(getattr(settings, name))
    config = uvicorn.Config(
        "eventbus_fastapi.app:app",
        workers=workers,
        ws_max_size=WS_FRAMES * settings.max_frame,
        ws_per_message_deflate=False,
        ws_ping_timeout=settings.close_timeout + 20,  # a slow reader is to learn why, not that a ping failed
        timeout_graceful_shutdown=grace,
        access_log=access_log,
        log_level=log_level.value,
        log_config=_log_config(log_level),
    )
    _greet(settings, listening)
    _serve(config, listening)


async def _start_once(settings: Settings) -> None:
    """Find out now what is wrong with the settings or the database: later it would be a traceback of the server."""
    async with EventBus(settings=settings):
        pass


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family)
    except OSError as exc:
        fail(f"cannot listen on {host} port {port}: {exc.strerror or exc}")
    listening.set_inheritable(True)
    return listening


def _log_config(level: str) -> dict[str, Any]:
    """Return uvicorn's own log configuration, with the loggers of the bus beside its own."""
    from uvicorn.config import LOGGING_CONFIG

    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["eventbus_fastapi"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    return config


def _greet(settings: Settings, listening: socket.socket) -> None:
    """Say where the bus is and what to try next; every line of it works as it stands."""
    url, eventbus = _url_of(listening), _own_command()
    database = parse_url(settings.database_url).render_as_string(hide_password=True)
    body = '{"topic": "chat.user1", "payload": "Hello"}'
    publish = f"curl {url}/publish -H 'content-type: application/json' -d {shlex.quote(body)}"
    lines = [
        f"eventbus {VERSION} serves {url} from {database}",
        "Try in another terminal:",
        f"  {eventbus} tail '#' --url {url}",
        f"  {eventbus} publish chat.user1 Hello --url {url}",
        f"  {publish}",
        f"or open {url}/docs",
    ]
    show("\n".join(lines))


def _url_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _own_command() -> str:
    """Return how to call this command from a shell, as it was called now."""
    script = os.path.abspath(sys.argv[0])
    found = shutil.which("eventbus")
    if found and os.path.samefile(found, script):
        return "eventbus"
    if os.path.basename(script) == "eventbus":
        return shlex.quote(script)
    return f"{shlex.quote(sys.executable)} -m eventbus_fastapi.cli"


def _serve(config: Any, listening: socket.socket) -> NoReturn:
    """Run the server until SIGINT or SIGTERM, both a normal end of it."""
    import uvicorn
    from uvicorn.supervisors import Multiprocess

    # uvicorn ends gracefully and then raises the signal once more.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    signal.signal(signal.SIGINT, lambda number, frame: sys.exit(0))
    if config.workers > 1:
        supervisor = Multiprocess(config, sockets=[listening])
        supervisor.run()
        sys.exit(any(worker.exitcode == uvicorn.config.STARTUP_FAILURE for worker in supervisor.processes))
    server = uvicorn.Server(config)
    server.run(sockets=[listening])
    sys.exit(0 if server.started else uvicorn.config.STARTUP_FAILURE)
