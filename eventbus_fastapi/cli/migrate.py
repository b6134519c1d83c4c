"""`eventbus migrate`: the tables of a bus, looked at, brought up to date, or taken back."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from eventbus_fastapi.cli.options import DatabaseUrl, is_missing_file, settings_of
from eventbus_fastapi.cli.terminal import UsageError, show
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.engines import parse_url
from eventbus_fastapi.store.forward_schema import ForwardTables
from eventbus_fastapi.store.schema import Tables, TableSet

migrate = typer.Typer(help="Look after the tables of a bus, or of an outbox in another database (--outbox).")

OutboxUrl = Annotated[
    str | None,
    typer.Option("--outbox", help="SQLAlchemy URL of a database that is not the bus's: move its outbox's tables."),
]
Sql = Annotated[bool, typer.Option("--sql", help="Print the SQL instead of running it; connects to nothing.")]


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
    outbox: OutboxUrl = None,
) -> None:
    """Create the tables, or bring them up to date. Does nothing where they are; beyond head is an error."""
    settings, tables = _meant(database_url, outbox)
    if sql:
        show(migrations.sql(parse_url(settings.database_url), tables, "base", revision))
        return
    asyncio.run(migrations.run(settings, tables, migrations.upgrade, revision))
    _print_revision(settings, tables)


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
    outbox: OutboxUrl = None,
) -> None:
    """Take the tables back to an earlier revision. Does nothing where they are; below base is an error."""
    settings, tables = _meant(database_url, outbox)
    if sql:
        show(migrations.sql(parse_url(settings.database_url), tables, "head", revision))
        return
    asyncio.run(migrations.run(settings, tables, migrations.downgrade, revision))
    _print_revision(settings, tables)


@migrate.command()
def current(database_url: DatabaseUrl = None, outbox: OutboxUrl = None) -> None:
    """Print the revision of the tables."""
    settings, tables = _meant(database_url, outbox)
    _print_revision(_without_making_a_file(settings), tables)


@migrate.command()
def check(database_url: DatabaseUrl = None, outbox: OutboxUrl = None) -> None:
    """Exit with 0 if the tables are those that this version works with, else with 1."""
    settings, tables = _meant(database_url, outbox)
    asyncio.run(migrations.run(_without_making_a_file(settings), tables, migrations.check))
    show(f"the tables are at revision {migrations.head_revision(tables.history)}, as needed")


def _without_making_a_file(settings: Settings) -> Settings:
    """Look at an empty database in memory instead of a SQLite file that is not there: SQLite would make it."""
    if is_missing_file(settings):
        return settings.replace(database_url=f"{parse_url(settings.database_url).drivername}://")
    return settings


def _print_revision(settings: Settings, tables: TableSet) -> None:
    revision = asyncio.run(migrations.run(settings, tables, migrations.current))
    show(revision or "base (no tables)")


def _meant(database_url: str | None, outbox: str | None) -> tuple[Settings, TableSet]:
    """Return the database, and the tables in it that are meant: those of a bus, or those of an outbox."""
    if outbox is None:
        settings = settings_of(database_url=database_url)
        return settings, Tables(settings.table_prefix, settings.db_schema)
    if database_url is not None:
        raise typer.BadParameter("give --outbox or --database-url, not both")
    settings = settings_of(database_url=outbox)
    return settings, ForwardTables(settings.table_prefix, settings.db_schema)
