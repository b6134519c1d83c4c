"""What the commands read from the streams of their process, show on them, and end with.

Every failure is one line on stderr, `error: …`, and exit code 1 (2 for a wrong call). What comes from the bus was
written by others: `visible` escapes its control characters. No command is known here.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eventbus_fastapi.errors import EventBusError

UsageError: Any = typer.BadParameter.__base__
"""The base of all wrong calls, which typer itself has no name for."""

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C ended."""


def run(commands: typer.Typer, arguments: Sequence[str] | None) -> NoReturn:
    """Run a command line (None: that of this process) and exit."""
    # Python has None in place of a stream that was closed at its start.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    try:
        if sys.stdout is None:
            fail("stdout is closed")
        sys.exit(commands(arguments, prog_name="eventbus", standalone_mode=False))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except UsageError as exc:
        command = "eventbus" if exc.ctx is None else exc.ctx.command_path
        fail(f"{exc.format_message().rstrip('.')} (see {command} --help)", exit_code=2)
    except EventBusError as exc:
        fail(str(exc))
    except Exception as exc:
        if sys.flags.dev_mode:
            raise
        fail(f"{type(exc).__name__}: {exc} (python -X dev -m eventbus_fastapi.cli … shows where)")


def show(text: str) -> None:
    """Print to stdout, at once."""
    try:
        typer.echo(text)
    except OSError as exc:
        # Python tries once more at its end: let it write elsewhere what stdout does not take.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(exc, BrokenPipeError):
            # The reader of our output has had enough, as in `eventbus tail '#' | head -1`: a normal end.
            raise typer.Exit from None
        fail(f"cannot write to stdout: {exc.strerror}")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> None:
    """Print rows below their columns; `numbers` are the places of those that are aligned on the right."""
    if sys.stdout.isatty():
        table = Table(box=None, header_style="bold")
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if place in numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console(highlight=False, markup=False, emoji=False).print(table)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if place in numbers else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        show("  ".join(cells).rstrip())


def warn(text: str) -> None:
    """Say in one line what the output does not show; the command goes on."""
    typer.echo(f"warning: {visible(text)}", err=True)


def fail(reason: str, exit_code: int = 1) -> NoReturn:
    """Say why in one line, and exit."""
    typer.echo(f"error: {visible(reason)}", err=True)
    sys.exit(exit_code)


def read_stdin() -> bytes:
    if sys.stdin is None:
        fail("stdin is closed")
    return sys.stdin.buffer.read()


def visible(text: str) -> str:
    """Escape what a terminal would obey, hide or reorder: control characters, line ends, bidi marks."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def visible_json(text: str) -> str:
    """Escape the same in JSON, in its own way: it reads back as it was."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_UNSEEN = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
"""Characters that JSON may hold as they are, and a terminal or a reader of lines would not show as they are."""
