"""What several commands take: where the bus is, and the settings."""

from __future__ import annotations

import os
import re
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import urlsplit, urlunsplit

import typer

from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.errors import quote
from eventbus_fastapi.protocol.commands import Start
from eventbus_fastapi.protocol.fields import MAX_SEQ
from eventbus_fastapi.settings import PREFIX, Settings, refuse_unknown
from eventbus_fastapi.store.engines import is_memory, parse_url

DEFAULT_URL = "http://127.0.0.1:3000"

DatabaseUrl = Annotated[
    str | None, typer.Option(help=f"SQLAlchemy URL of the database; defaults to {PREFIX}DATABASE_URL.")
]
Url = Annotated[
    str | None,
    typer.Option(
        help="Where the bus is: http(s)://… as `eventbus serve` prints it, or ws(s)://….", show_default=DEFAULT_URL
    ),
]


class LogLevel(StrEnum):
    critical = "critical"
    error = "error"
    warning = "warning"
    info = "info"
    debug = "debug"


class LogFormat(StrEnum):
    text = "text"
    json = "json"


LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option(help=f"The least important messages to log; defaults to {PREFIX}LOG_LEVEL.", show_default="info"),
]
LogFormatOption = Annotated[
    LogFormat | None,
    typer.Option(help=f"How to write them, one line each; defaults to {PREFIX}LOG_FORMAT.", show_default="text"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print each as one line of JSON.")]


def settings_of(**given: Any) -> Settings:
    """Return the settings of the environment, with those options in front that were given."""
    return Settings(**{name: value for name, value in given.items() if value is not None})


def client_of(url: str, **options: Any) -> EventBusClient:
    """Return a client of the bus at a URL, which shows the token of `EVENTBUS_TOKEN`."""
    token = Settings().token
    shown = None if token is None else token.get_secret_value()
    return EventBusClient(ClientConfig(url=url, token=shown, **options))


def refuse_unknown_settings() -> None:
    """Refuse a misspelt variable where no settings are read, too."""
    refuse_unknown(os.environ, Settings.model_fields)


_SECRETS = re.compile(r"(?<=//).*@|^[^/]*@|\?.*", re.DOTALL)


def websocket_url(given: str | None, option: str = "--url") -> str:
    """Return where the WebSocket of a bus is, by the URL that its server prints. A query is kept, as for a token.

    Of a wrong one neither user and password nor the query are shown.
    """
    url = DEFAULT_URL if given is None else given
    try:
        parts = urlsplit(url)
        is_address = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.scheme not in ("http", "https", "ws", "wss"):
        shown = quote(_SECRETS.sub("", url))
        raise typer.BadParameter(f"{option}: expected http(s)://host:port or ws(s)://host:port/ws, got {shown}")
    if "#" in url:
        raise typer.BadParameter(f"{option}: expected no fragment (#…), got {quote(_SECRETS.sub('', url))}")
    if parts.scheme in ("ws", "wss"):
        return url
    path = parts.path.rstrip("/") + "/ws"
    return urlunsplit((parts.scheme.replace("http", "ws"), parts.netloc, path, parts.query, ""))


def start_of(option: str, text: str) -> Start:
    """Return where reading begins: now, earliest, a seq or a time."""
    if text in ("now", "earliest"):
        return cast(Start, text)
    if text.isdecimal() and len(text) <= len(str(MAX_SEQ)):
        return int(text)
    return time_of(option, text, expected="now, earliest, a seq or a time")


def time_of(option: str, text: str, *, expected: str = "a time") -> datetime:
    """Return the time that a text says; without an offset it is local time."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{option}: expected {expected}, got {quote(text)}") from None


def is_missing_file(settings: Settings) -> bool:
    """Say whether the database is a SQLite file that is not there: SQLite would make it."""
    url = parse_url(settings.database_url)
    is_file = url.get_backend_name() == "sqlite" and not is_memory(url) and "uri" not in url.query
    return is_file and not Path(url.database or "").exists()
