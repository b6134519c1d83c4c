"""`eventbus groups`: how the groups of a database are, and what can be done with one while the bus runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import typer
from pydantic_core import to_json

from eventbus_fastapi.cli.opening import with_steward
from eventbus_fastapi.cli.options import AsJson, DatabaseUrl, start_of
from eventbus_fastapi.cli.terminal import show, show_table, visible, visible_json
from eventbus_fastapi.errors import quote
from eventbus_fastapi.pipeline.steward import GroupStatus, Steward
from eventbus_fastapi.server.group_objects import group_object

groups = typer.Typer(help="Look after groups; without a command, show how they are.", invoke_without_command=True)

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="Name of the group.")]

COLUMNS = ("group", "reads", "lag", "seconds", "in flight", "retries", "dead", "lost", "")


@groups.callback()
def list_groups(context: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show all groups: how far behind, in events and seconds, what is in flight, what waits, what is dead or lost."""
    context.obj = database_url
    if context.invoked_subcommand is not None:
        return
    statuses = with_steward(database_url, Steward.groups)
    if as_json:
        for status in statuses:
            show(visible_json(to_json(group_object(status)).decode()))
        return
    if not statuses:
        show("no groups")
        return
    show_table(COLUMNS, [_row(status) for status in statuses], numbers=range(2, 8))


@groups.command()
def pause(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """Hand out nothing more of a group, on any node. What is in flight may be settled."""
    _change(context, database_url, lambda steward: steward.pause(name))
    show(f"group {quote(name)} is paused")


@groups.command()
def resume(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """End the pause of a group."""
    _change(context, database_url, lambda steward: steward.resume(name))
    show(f"group {quote(name)} goes on")


@groups.command()
def reset(
    context: typer.Context,
    name: Name,
    to: Annotated[str, typer.Option("--to", help="now, earliest, a seq (exclusive) or an RFC 3339 time.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Have a group read from elsewhere. What is in flight or waits for a retry is forgotten; dead letters stay."""
    start = start_of("--to", to)
    after = _change(context, database_url, lambda steward: steward.reset(name, start))
    show(f"group {quote(name)} reads on after seq {after}")


@groups.command()
def delete(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """Forget a group with its place, its retries and its dead letters."""
    _change(context, database_url, lambda steward: steward.delete(name))
    show(f"group {quote(name)} is deleted")


def _change(context: typer.Context, database_url: str | None, work: Callable[[Steward], Awaitable[T]]) -> T:
    # `eventbus groups --database-url … pause x` gives the URL to the command before.
    return with_steward(database_url or context.obj, work)


def _row(status: GroupStatus) -> tuple[str, ...]:
    group, figures = status
    return (
        visible(group.name),
        visible(" ".join(group.patterns)),
        f"{figures.lag:,}",
        f"{figures.lag_seconds:,.0f}",
        f"{figures.in_flight:,}",
        f"{figures.retries:,}",
        f"{figures.dead:,}",
        f"{group.lost:,}",
        "paused" if group.is_paused else "",
    )
