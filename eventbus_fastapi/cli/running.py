"""What commands that run until a signal comes have in common: their log, the line that says they run, and the end."""

from __future__ import annotations

import asyncio
import logging
import logging.config
import signal

from eventbus_fastapi.cli.terminal import show
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.telemetry import logs

logger = logging.getLogger(__name__)

BROKER_CLIENTS = ("aio_pika", "aiokafka", "aiormq", "nats")
"""Loggers of clients, which tell of each try to connect, with tracebacks; that a broker is away is said once anyway."""


def set_up_log(settings: Settings) -> None:
    """Log to stderr, in the form and from the level that the settings say."""
    logging.config.dictConfig(logs.config(settings.log_format, settings.log_level))
    logging.captureWarnings(True)


def quiet_broker_clients() -> None:
    """Have `BROKER_CLIENTS` say nothing."""
    for client in BROKER_CLIENTS:
        logging.getLogger(client).setLevel(logging.CRITICAL)


def end_on_signals() -> asyncio.Event:
    """Return what is set when SIGTERM or SIGINT comes. Call it in the event loop."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return ended


def announce(text: str, settings: Settings) -> None:
    """Say it as a line of its own, or as one of the log where a program reads that."""
    if settings.log_format == "json":
        logger.info(text)
    else:
        show(text)
