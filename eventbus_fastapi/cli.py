"""The command `eventbus`: serve a bus, publish to it, follow it, and look after its tables.

Every failure is one line on stderr, `error: …`, and exit code 1 (2 for a wrong call). What comes from the bus was
written by others: it is shown with its control characters escaped, and never read as markup.
"""

from __future__ import annotations

import asyncio
import copy
import os
import re
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast
from urllib.parse import urlsplit, urlunsplit

from eventbus_fastapi import codec
from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.errors import EventBusError, InvalidPayload, LogGap, SettingsError, quote
from eventbus_fastapi.events import Message, Receipt
from eventbus_fastapi.protocol.commands import Start
from eventbus_fastapi.protocol.events import event_object
from eventbus_fastapi.settings import PREFIX, Settings, refuse_unknown
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.engines import is_memory, parse_url
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.version import VERSION

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ModuleNotFoundError as exc:
    sys.exit(f"error: {exc.name} is not installed; the command needs: pip install 'eventbus-fastapi[cli]'")

UsageError: Any = typer.BadParameter.__base__
"""The base of all wrong calls, which typer itself has no name for."""

WS_FRAMES = 16
"""The WebSocket layer closes a connection at a frame of so many `max_frame`; smaller ones are answered."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended."""

DEFAULT_URL = "http://127.0.0.1:3000"

commands = typer.Typer(help="A durable, ordered event bus.", add_completion=False, pretty_exceptions_enable=False)
migrate = typer.Typer(help="Look after the tables of a bus.")
commands.add_typer(migrate, name="migrate")

DatabaseUrl = Annotated[
    str | None, typer.Option(help=f"SQLAlchemy URL of the database; defaults to {PREFIX}DATABASE_URL.")
]
Url = Annotated[
    str | None,
    typer.Option(
        help="Where the bus is: http(s)://… as `eventbus serve` prints it, or ws(s)://….", show_default=DEFAULT_URL
    ),
]
Sql = Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it; connects to nothing.")]


class LogLevel(StrEnum):
    critical = "critical"
    error = "error"
    warning = "warning"
    info = "info"
    debug = "debug"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line, by default that of this process, and exit."""
    # Python has None in place of a stream that was closed at its start.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    try:
        if sys.stdout is None:
            _fail("stdout is closed")
        sys.exit(commands(arguments, prog_name="eventbus", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except UsageError as exc:
        command = "eventbus" if exc.ctx is None else exc.ctx.command_path
        _fail(f"{exc.format_message().rstrip('.')} (see {command} --help)", exit_code=2)
    except EventBusError as exc:
        _fail(str(exc))
    except Exception as exc:
        if sys.flags.dev_mode:
            raise
        _fail(f"{type(exc).__name__}: {exc} (python -X dev -m eventbus_fastapi.cli … shows where)")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        _show(f"eventbus {VERSION}")
        raise typer.Exit


@commands.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass


# --- serve ---------------------------------------------------------------------------------------


@commands.command()
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
    settings = _settings(host=host, port=port, database_url=database_url)
    if workers > 1 and is_memory(parse_url(settings.database_url)):
        raise SettingsError(f"{settings.database_url} lives in one process; give a file, or --workers 1")
    try:
        import uvicorn
    except ModuleNotFoundError:
        _fail("uvicorn is not installed; serving needs: pip install 'eventbus-fastapi[server]'")
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
        _fail(f"cannot listen on {host} port {port}: {exc.strerror or exc}")
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
    _show("\n".join(lines))


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


# --- publish -------------------------------------------------------------------------------------


@commands.command()
def publish(
    topic: Annotated[str, typer.Argument(help="user.created, chat.user1, …")],
    payload: Annotated[str, typer.Argument(help="JSON if it parses as JSON, else text; - reads stdin.")],
    as_json: Annotated[bool, typer.Option("--json", help="The payload must be JSON.")] = False,
    as_text: Annotated[bool, typer.Option("--text", help="The payload is text, even if it parses as JSON.")] = False,
    key: Annotated[str | None, typer.Option(help="What the event is about.")] = None,
    message_id: Annotated[str | None, typer.Option(help="UUID; the same one is stored once.")] = None,
    ttl: Annotated[float | None, typer.Option(help="Seconds after which the event expires.")] = None,
    url: Url = None,
    database_url: Annotated[
        str | None, typer.Option(help="Write into this database, without a server (instead of --url).")
    ] = None,
) -> None:
    """Publish an event; print its seq and message_id once it is stored."""
    if as_json and as_text:
        raise typer.BadParameter("give --json or --text, not both")
    if url is not None and database_url is not None:
        raise typer.BadParameter("give --url or --database-url, not both")
    _refuse_unknown_settings()
    body, content_type = _read_payload(payload, as_json=as_json, as_text=as_text)
    options: dict[str, Any] = {"key": key, "message_id": message_id, "ttl": ttl, "content_type": content_type}
    if database_url is None:
        receipt = asyncio.run(_publish_to(_websocket_url(url), topic, body, options))
    else:
        receipt = asyncio.run(_publish_into(_settings(database_url=database_url), topic, body, options))
    duplicate = " duplicate=true" if receipt.duplicate else ""
    _show(f"seq={receipt.seq} message_id={receipt.message_id}{duplicate}")


def _read_payload(argument: str, *, as_json: bool, as_text: bool) -> tuple[bytes, str]:
    """Return the payload's bytes, as they are, and their content type."""
    body = _read_stdin() if argument == "-" else os.fsencode(argument)
    if as_text:
        return body, codec.TEXT
    try:
        codec.parse_json(body)
    except InvalidPayload:
        return body, codec.JSON if as_json else codec.TEXT
    return body, codec.JSON


def _read_stdin() -> bytes:
    if sys.stdin is None:
        _fail("stdin is closed")
    return sys.stdin.buffer.read()


async def _publish_to(url: str, topic: str, body: bytes, options: dict[str, Any]) -> Receipt:
    async with EventBusClient(ClientConfig(url=url, max_retries=0)) as client:
        return await client.publish(topic, body, **options)


async def _publish_into(settings: Settings, topic: str, body: bytes, options: dict[str, Any]) -> Receipt:
    async with EventBus(settings=settings) as eventbus:
        return await eventbus.publish(topic, body, **options)


# --- tail ----------------------------------------------------------------------------------------


@commands.command()
def tail(
    pattern: Annotated[str, typer.Argument(help="user.created, user.*, '#', …")],
    start: Annotated[str, typer.Option("--from", help="now, earliest, a seq (exclusive) or an RFC 3339 time.")] = "now",
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
    url: Url = None,
) -> None:
    """Print events as they come, one line each: seq, time, topic, payload; acknowledged ones too. Ctrl-C ends it."""
    _refuse_unknown_settings()
    asyncio.run(_follow(_websocket_url(url), pattern, _start_of(start), count, _printer(as_json)))


async def _follow(url: str, pattern: str, start: Start, count: int | None, show: Callable[[Message], None]) -> None:
    # A bus that is not there is an error now; one that goes away later is waited for.
    await (await EventBusClient.connect(ClientConfig(url=url, max_retries=0))).close()
    async with (
        EventBusClient(url) as client,
        client.subscribe(pattern, start=start, include_processed=True, on_gap=_warn) as messages,
    ):
        shown = 0
        async for message in messages:
            show(message)
            shown += 1
            if shown == count:
                return


def _warn(gap: LogGap) -> None:
    typer.echo(f"warning: {gap}", err=True)


def _start_of(text: str) -> Start:
    if text in ("now", "earliest"):
        return cast(Start, text)
    try:
        if text.isdecimal():
            return int(text)
        return datetime.fromisoformat(text).astimezone()  # without an offset it is local time
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"--from: expected now, earliest, a seq or a time, got {quote(text)}") from None


def _printer(as_json: bool) -> Callable[[Message], None]:
    """Return what prints an event: JSON for programs, colours for a terminal, else plain text."""
    if as_json:
        return lambda message: _show(_UNSEEN.sub(_escape, event_object(message)))
    if not sys.stdout.isatty():
        return lambda message: _show("  ".join(_columns(message)))
    console = Console(highlight=False, markup=False, emoji=False)
    styles = ("bold", "dim", "cyan", "")
    return lambda message: console.print(
        Text("  ").join(Text(text, style) for text, style in zip(_columns(message), styles, strict=True)),
        soft_wrap=True,
    )


def _columns(message: Message) -> tuple[str, str, str, str]:
    seq = str(message.seq) if message.is_durable else "-"
    time = message.timestamp.astimezone().isoformat(" ", "seconds")
    return seq, time, visible(message.topic), visible(_payload_text(message))


def _payload_text(message: Message) -> str:
    if codec.is_json(message.content_type) or codec.is_text(message.content_type):
        return message.body.decode(errors="replace")
    return f"<{len(message.body):,} bytes of {message.content_type}>"


def visible(text: str) -> str:
    """Escape what a terminal would obey, hide or reorder: control characters, line ends, bidi marks."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


_UNSEEN = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""Characters that JSON may hold as they are, and a terminal or a reader of lines would not show as they are."""


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


# --- migrate -------------------------------------------------------------------------------------


def _revision(argument: str) -> str:
    # Unknown options are taken for revisions, as -1 is one.
    if argument.startswith("--"):
        raise UsageError(f"No such option: {argument}")
    return argument


RELATIVE = {"ignore_unknown_options": True}
"""Settings of a command that takes -1 as an argument."""


@migrate.command(context_settings=RELATIVE)
def upgrade(
    revision: Annotated[
        str, typer.Argument(callback=_revision, help="Where to go: head, a revision, or +1 for the next, +2, ….")
    ] = "head",
    sql: Sql = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Create the tables, or bring them up to date. Does nothing where they are; beyond head is an error."""
    settings = _settings(database_url=database_url)
    if sql:
        _show(migrations.sql(parse_url(settings.database_url), _tables(settings), "base", revision))
        return
    asyncio.run(migrations.run(settings, _tables(settings), migrations.upgrade, revision))
    _print_revision(settings)


@migrate.command(context_settings=RELATIVE)
def downgrade(
    revision: Annotated[
        str,
        typer.Argument(
            callback=_revision,
            help="Where to go: a revision, -1 for the one before, -2, …, or base, which removes the tables and every "
            "event in them.",
        ),
    ],
    sql: Sql = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Take the tables back to an earlier revision. Does nothing where they are; below base is an error."""
    settings = _settings(database_url=database_url)
    if sql:
        _show(migrations.sql(parse_url(settings.database_url), _tables(settings), "head", revision))
        return
    asyncio.run(migrations.run(settings, _tables(settings), migrations.downgrade, revision))
    _print_revision(settings)


@migrate.command()
def current(database_url: DatabaseUrl = None) -> None:
    """Print the revision of the tables."""
    _print_revision(_without_making_a_file(_settings(database_url=database_url)))


@migrate.command()
def check(database_url: DatabaseUrl = None) -> None:
    """Exit with 0 if the tables are those that this version works with, else with 1."""
    settings = _without_making_a_file(_settings(database_url=database_url))
    asyncio.run(migrations.run(settings, _tables(settings), migrations.check))
    _show(f"the tables are at revision {migrations.head_revision()}, as needed")


def _without_making_a_file(settings: Settings) -> Settings:
    """Look at an empty database in memory instead of a SQLite file that is not there: SQLite would make it."""
    url = parse_url(settings.database_url)
    is_file = url.get_backend_name() == "sqlite" and not is_memory(url) and "uri" not in url.query
    if is_file and not Path(url.database or "").exists():
        return settings.replace(database_url=f"{url.drivername}://")
    return settings


def _print_revision(settings: Settings) -> None:
    revision = asyncio.run(migrations.run(settings, _tables(settings), migrations.current))
    _show(revision or "base (no tables)")


def _tables(settings: Settings) -> Tables:
    return Tables(settings.table_prefix, settings.db_schema)


# --- all of them ---------------------------------------------------------------------------------


def _settings(**given: Any) -> Settings:
    """Return the settings of the environment, with those options in front that were given."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _refuse_unknown_settings() -> None:
    """Refuse a misspelt variable where no settings are read, too."""
    refuse_unknown(os.environ, Settings.model_fields)


def _websocket_url(given: str | None) -> str:
    """Return where the WebSocket of a bus is, by the URL that its server prints. A query is kept, as for a token."""
    url = DEFAULT_URL if given is None else given
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.scheme not in ("http", "https", "ws", "wss"):
        raise typer.BadParameter(f"--url: expected http(s)://host:port or ws(s)://host:port/ws, got {quote(url)}")
    if "#" in url:
        raise typer.BadParameter(f"--url: expected no fragment (#…), got {quote(url)}")
    if parts.scheme in ("ws", "wss"):
        return url
    path = parts.path.rstrip("/") + "/ws"
    return urlunsplit((parts.scheme.replace("http", "ws"), parts.netloc, path, parts.query, ""))


def _show(text: str) -> None:
    """Print to stdout, at once."""
    try:
        typer.echo(text)
    except OSError as exc:
        # Python tries once more at its end: let it write elsewhere what stdout does not take.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError):
            # The reader of our output has had enough, as in `eventbus tail '#' | head -1`: a normal end.
            raise typer.Exit from None
        _fail(f"cannot write to stdout: {exc.strerror}")


def _fail(reason: str, exit_code: int = 1) -> NoReturn:
    typer.echo(f"error: {visible(reason)}", err=True)
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
