"""The command `eventbus`: serve a bus, publish to it, follow and relay it, look after groups, queues, recurring events.

One module for each command; `terminal` is what they read, show and end with.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

try:
    import typer
except ModuleNotFoundError as exc:
    sys.exit(f"error: {exc.name} is not installed; the command needs: pip install 'eventbus-fastapi[cli]'")

from eventbus_fastapi.cli import (
    archive,
    dead,
    forward,
    groups,
    ingest,
    limits,
    migrate,
    outbox,
    publish,
    queues,
    recurring,
    relay,
    schema,
    serve,
    tail,
    terminal,
    worker,
)
from eventbus_fastapi.version import VERSION

commands = typer.Typer(help="A durable, ordered event bus.", add_completion=False, pretty_exceptions_enable=False)
commands.command()(serve.serve)
commands.command()(worker.worker)
commands.command()(forward.forward)
commands.command()(relay.relay)
commands.command()(ingest.ingest)
commands.command()(publish.publish)
commands.command()(tail.tail)
commands.command()(schema.schema)
commands.add_typer(groups.groups, name="groups")
commands.add_typer(queues.queues, name="queues")
commands.command()(queues.workers)
commands.add_typer(dead.dead, name="dead")
commands.command()(dead.retry)
commands.add_typer(recurring.recurring, name="recurring")
commands.add_typer(archive.archive, name="archive")
commands.add_typer(limits.limits, name="limits")
commands.add_typer(outbox.outbox, name="outbox")
commands.add_typer(migrate.migrate, name="migrate")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line, by default that of this process, and exit."""
    terminal.run(commands, arguments)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        terminal.show(f"eventbus {VERSION}")
        raise typer.Exit


@commands.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    pass
