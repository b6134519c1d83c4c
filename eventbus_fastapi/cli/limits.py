"""`eventbus limits`: how often the attempts of groups may begin, and how to change that while the bus runs."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic_core import to_json

from eventbus_fastapi.cli.opening import with_steward
from eventbus_fastapi.cli.options import AsJson, DatabaseUrl
from eventbus_fastapi.cli.terminal import show, show_table, visible, visible_json
from eventbus_fastapi.errors import quote
from eventbus_fastapi.pipeline.steward import Steward
from eventbus_fastapi.server.group_objects import rate_limit_object

limits = typer.Typer(help="Look after rate limits; without a command, show them.", invoke_without_command=True)


@limits.callback()
def list_limits(context: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show all rate limits: how many attempts may begin in any period."""
    context.obj = database_url
    if context.invoked_subcommand is not None:
        return
    found = with_steward(database_url, Steward.rate_limits)
    if as_json:
        for limit in found:
            show(visible_json(to_json(rate_limit_object(limit)).decode()))
    elif not found:
        show("no rate limits")
    else:
        rows = [(visible(each.name), f"{each.permits:,}", f"{each.period / 1_000_000:,g}") for each in found]
        show_table(("limit", "permits", "per seconds"), rows, numbers=range(1, 3))


@limits.command("set")
def set_limit(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the rate limit.")],
    permits: Annotated[int, typer.Argument(help="Attempts that may begin in any period.")],
    per: Annotated[float, typer.Option(help="The period, seconds.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Make a rate limit, or change it; it holds at once, on every node. What it gave lately still counts."""
    limit = with_steward(database_url or context.obj, lambda steward: steward.set_rate_limit(name, permits, per))
    show(f"rate limit {quote(limit.name)} gives {limit.permits:,} permits per {limit.period / 1_000_000:,g} s")
