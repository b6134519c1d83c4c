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
from eventbus_fastapi.store.schema import Tables

migrate = typer.Typer(help="Look after the tables of a bus.")

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
) -> None:
    """Create the tables, or bring them up to date. Does nothing where they are; beyond head is an error."""
    settings = settings_of(database_url=database_url)
    if sql:
        show(migrations.sql(parse_url(settings.database_url), _tables(settings), "base", revision))
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
    settings = settings_of(database_url=database_url)
    if sql:
        show(migrations.sql(parse_url(settings.database_url), _tables(settings), "head", revision))
        return
    asyncio.run(migrations.run(settings, _tables(settings), migrations.downgrade, revision))
    _print_revision(settings)


@migrate.command()
def current(database_url: DatabaseUrl = None) -> None:
    """Print the revision of the tables."""
    _print_revision(_without_making_a_file(settings_of(database_url=database_url)))


@migrate.command()
def check(database_url: DatabaseUrl = None) -> None:
    """Exit with 0 if the tables are those that this version works with, else with 1."""
    settings = _without_making_a_file(settings_of(database_url=database_url))
    asyncio.run(migrations.run(settings, _tables(settings), migrations.check))
    show(f"the tables are at revision {migrations.head_revision()}, as needed")


def _without_making_a_file(settings: Settings) -> Settings:
    """Look at an empty database in memory instead of a SQLite file that is not there: SQLite would make it."""
    if is_missing_file(settings):
        return settings.replace(database_url=f"{parse_url(settings.database_url).drivername}://")
    return settings


def _print_revision(settings: Settings) -> None:
    revision = asyncio.run(migrations.run(settings, _tables(settings), migrations.current))
    show(revision or "base (no tables)")


def _tables(settings: Settings) -> Tables:
    return Tables(settings.table_prefix, settings.db_schema)
