"""Fixtures of the command's tests: command lines run in this process, and a bus for them."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eventbus_fastapi import EventBus
from eventbus_fastapi.cli import main
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.telemetry import logs
from tests.cli.command_line import Beside, Command, Done, Server
from tests.server.asking import app_of, bus_on
from tests.serving import serving


@pytest.fixture
def eventbus(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command line in this process: `eventbus("publish", "a", "1")`."""

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with kept_logging(), pytest.raises(SystemExit) as end:
            main(arguments)
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


@contextlib.contextmanager
def kept_logging() -> Iterator[None]:
    """Undo what a command that runs for long says about logging: later tests would write to a file that is closed."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    loggers = [root, *map(logging.getLogger, logs.config()["loggers"])]
    levels = [logger.level for logger in loggers]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    bus = bus_on(tmp_path)
    async with serving(app_of(bus)) as served:
        yield Server(bus, served.http)


@pytest.fixture
async def beside(database_url: str, eventbus: Command) -> AsyncIterator[Beside]:
    """A bus that runs, on each kind of database, and the command beside it on the same database."""
    settings = Settings(database_url=database_url)
    await migrations.run(settings, Tables(), migrations.upgrade)
    async with EventBus(settings=settings) as bus:
        yield Beside(bus, eventbus, database_url)
