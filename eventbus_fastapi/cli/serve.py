"""`eventbus serve`: the bus alone, in one or several processes of uvicorn."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
from typing import Annotated, Any, NoReturn

import typer

from eventbus_fastapi.auth.access_file import access_of
from eventbus_fastapi.auth.loopback import require_loopback
from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.options import DatabaseUrl, LogFormatOption, LogLevelOption, settings_of
from eventbus_fastapi.cli.terminal import fail, show
from eventbus_fastapi.dashboard import has_dashboard
from eventbus_fastapi.errors import SettingsError
from eventbus_fastapi.settings import PREFIX, Settings
from eventbus_fastapi.store.engines import is_memory, parse_url
from eventbus_fastapi.telemetry import logs
from eventbus_fastapi.version import VERSION

WS_FRAMES = 2
"""The WebSocket layer closes a connection at a frame of so many `max_frame`; smaller ones are answered."""
PING_INTERVAL = 10.0
"""Seconds between the pings of the WebSocket layer."""


logger = logging.getLogger(__name__)


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port to listen on; 0: any free one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve.")] = 1,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on any address, although nobody is asked who they are.")
    ] = False,
    database_url: DatabaseUrl = None,
    access_log: Annotated[bool, typer.Option(help="Log every request.")] = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    grace: Annotated[int, typer.Option(min=0, help="Seconds that open requests and sockets have at the end.")] = 5,
) -> None:
    """Serve a bus. Every other setting comes from EVENTBUS_*."""
    settings = settings_of(
        host=host,
        port=port,
        database_url=database_url,
        insecure=insecure or None,
        log_level=log_level,
        log_format=log_format,
    )
    is_guarded = access_of(settings) is not None
    if not is_guarded and not settings.insecure:
        require_loopback(settings.host)
    if workers > 1 and settings.tickets:
        raise SettingsError("a ticket is of use at the process that gave it; use --workers 1, or no EVENTBUS_TICKETS")
    if workers > 1 and is_memory(parse_url(settings.database_url)):
        raise SettingsError(f"{settings.database_url} lives in one process; give a file, or --workers 1")
    try:
        import uvicorn
    except ModuleNotFoundError:
        fail("uvicorn is not installed; serving needs: pip install 'eventbus-fastapi[server]'")
    from eventbus_fastapi.server.uvicorn_guards import GuardedHTTP, GuardedWebSocket

    asyncio.run(_start_once(settings))
    ping_timeout = settings.send_timeout + settings.close_timeout + 5
    listening = _listen(settings.host, settings.port)
    _give_up_after(listening, ping_timeout)
    # The app is made from the environment, in this process or in those that uvicorn starts.
    for name in ("host", "port", "database_url", "insecure"):
        os.environ[PREFIX + name.upper()] = str(getattr(settings, name))
    config = uvicorn.Config(
        "eventbus_fastapi.app:app",
        workers=workers,
        http=GuardedHTTP,
        ws=GuardedWebSocket,
        ws_max_size=WS_FRAMES * settings.max_frame,
        ws_per_message_deflate=False,
        ws_ping_interval=PING_INTERVAL,
        ws_ping_timeout=ping_timeout,  # a slow reader is to learn why it is closed, not that it answered no ping
        timeout_graceful_shutdown=grace,
        access_log=access_log,
        log_level=logs.quiet_level(settings.log_level),
        log_config=logs.config(settings.log_format, settings.log_level),
    )
    if settings.log_format == "text":
        _greet(settings, listening, is_guarded=is_guarded)
    else:
        logger.info("serving %s from %s", _url_of(listening), _database_of(settings))
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


def _give_up_after(listening: socket.socket, seconds: float) -> None:
    """Have the system end connections whose client takes nothing for so long: also those of plain HTTP, of which nobody
    else looks whether their answers are read.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from the socket that accepted them
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1_000))


def _greet(settings: Settings, listening: socket.socket, *, is_guarded: bool) -> None:
    """Say where the bus is and what to try next; every line of it works as it stands, with a token if need be."""
    url, eventbus = _url_of(listening), _own_command()
    database = _database_of(settings)
    body = '{"topic": "chat.user1", "payload": "Hello"}'
    token = ' -H "authorization: Bearer $EVENTBUS_TOKEN"' if is_guarded else ""
    publish = f"curl {url}/publish{token} -H 'content-type: application/json' -d {shlex.quote(body)}"
    lines = [
        f"eventbus {VERSION} serves {url} from {database}",
        "Try in another terminal, with a key of yours in EVENTBUS_TOKEN:" if is_guarded else "Try in another terminal:",
        f"  {eventbus} tail '#' --url {url}",
        f"  {eventbus} publish chat.user1 Hello --url {url}",
        f"  {publish}",
        f"or open {url}/dashboard or {url}/docs" if has_dashboard(settings) else f"or open {url}/docs",
    ]
    show("\n".join(lines))


def _database_of(settings: Settings) -> str:
    return parse_url(settings.database_url).render_as_string(hide_password=True)


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
