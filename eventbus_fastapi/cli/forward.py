"""`eventbus forward`: the outbox of a database that is not the bus's, carried to the bus."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventbus_fastapi.cli.options import LogFormatOption, LogLevelOption, settings_of, websocket_url
from eventbus_fastapi.cli.outbox import OutboxUrl
from eventbus_fastapi.cli.running import announce, end_on_signals, set_up_log
from eventbus_fastapi.client import ClientConfig, OutboxForwarder
from eventbus_fastapi.client.token import Token
from eventbus_fastapi.errors import SettingsError, StoreUnavailable
from eventbus_fastapi.outbox import Outbox
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.engines import WAL_RESET_FIX, sqlite_has_wal_reset_bug

if TYPE_CHECKING:
    from eventbus_fastapi.server.metrics_port import MetricsPort

logger = logging.getLogger(__name__)


def forward(
    to: Annotated[str, typer.Option(help="Where the bus is: http(s)://host:port or ws(s)://host:port/ws.")],
    outbox: OutboxUrl = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the token to show, read for each connection; defaults to EVENTBUS_TOKEN."),
    ] = None,
    allow_insecure: Annotated[
        bool, typer.Option("--allow-insecure", help="Show the token over ws:// to another machine, too.")
    ] = False,
    grace: Annotated[float, typer.Option(min=0, max=3_600, help="Seconds that the end may take.")] = 10.0,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Serve metrics on this port, or the next one that is free.")
    ] = None,
    metrics_host: Annotated[str | None, typer.Option(help="Its address.", show_default="127.0.0.1")] = None,
) -> None:
    """Carry the events of an outbox to a bus until SIGTERM or Ctrl-C; a bus or database that is away is waited for."""
    given = {"database_url": outbox, "log_level": log_level, "log_format": log_format}
    settings = settings_of(**given, metrics_port=metrics_port, metrics_host=metrics_host)
    url = websocket_url(to, "--to")
    config = ClientConfig(url=url, token=_token(token_file, settings), allow_insecure=allow_insecure)
    box = Outbox(settings.database_url, settings=settings)
    set_up_log(settings)
    asyncio.run(_forward(box, config, grace, settings))


async def _forward(outbox: Outbox, config: ClientConfig, grace: float, settings: Settings) -> None:
    ended = end_on_signals()
    _warn_of_old_sqlite(outbox)
    forwarder = OutboxForwarder(outbox, config)
    port = _metrics_port(forwarder, settings)
    try:
        with contextlib.suppress(StoreUnavailable):  # the forwarder says so, and waits for it
            await outbox.start()
        await forwarder.start()
        announce(f"forwarding the outbox {outbox.name} to {config.address}", settings)
        await ended.wait()
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await forwarder.close()
        await outbox.stop()
        if port is not None:
            await port.close()


def _metrics_port(forwarder: OutboxForwarder, settings: Settings) -> MetricsPort | None:
    if settings.metrics_port is None:
        return None
    try:
        from eventbus_fastapi.server.metrics import ForwarderMetrics
        from eventbus_fastapi.server.metrics_port import MetricsPort
    except ModuleNotFoundError as exc:
        raise SettingsError(
            "prometheus-client is not installed; metrics need: pip install 'eventbus-fastapi[prometheus]'"
        ) from exc
    return MetricsPort(ForwarderMetrics(forwarder.meters), settings.metrics_host, settings.metrics_port)


def _token(file: Path | None, settings: Settings) -> Token | None:
    if file is None:
        return None if settings.token is None else settings.token.get_secret_value()

    def read() -> str:
        try:
            return file.read_text().strip()
        except (OSError, UnicodeError) as exc:
            raise SettingsError(f"cannot read the token in {file}: {exc}") from exc

    read()  # what is wrong with it is said now
    return read


def _warn_of_old_sqlite(outbox: Outbox) -> None:
    if outbox.store.engine.dialect.name == "sqlite" and sqlite_has_wal_reset_bug():
        logger.warning(
            "the service writes to %s, too, and SQLite %s can lose committed events or corrupt the file when two "
            "processes write at the same moment (WAL-reset bug); use SQLite %s or later in both, or let the service "
            "forward by itself (OutboxForwarder)",
            outbox.name,
            sqlite3.sqlite_version,
            WAL_RESET_FIX,
        )
