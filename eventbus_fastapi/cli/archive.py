"""`eventbus archive`: how events have ended in the groups that keep it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from pydantic_core import to_json

from eventbus_fastapi.cli.dead import Error, Pattern, Tag
from eventbus_fastapi.cli.entries import find, local_time, option_time, short_error, show_event
from eventbus_fastapi.cli.opening import with_steward
from eventbus_fastapi.cli.options import AsJson, DatabaseUrl
from eventbus_fastapi.cli.terminal import show, show_table, visible, visible_json
from eventbus_fastapi.pipeline.filters import archive_filter
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.server.group_objects import archived_object, ending_object
from eventbus_fastapi.store.archive import ArchiveEntry

archive = typer.Typer(help="Look into the archive: how events have ended in the groups that keep it.")

COLUMNS = ("id", "group", "seq", "topic", "outcome", "attempts", "seconds", "finished", "error")


class Outcome(StrEnum):
    """How an event can end."""

    ACKED = "acked"
    DISCARDED = "discarded"
    DEAD = "dead"


@archive.command("list")
def list_endings(
    group: Annotated[str | None, typer.Argument(help="Name of the group; by default all groups.")] = None,
    pattern: Pattern = None,
    outcome: Annotated[Outcome | None, typer.Option(help="Those that ended so.")] = None,
    error: Error = None,
    finished_after: Annotated[str | None, typer.Option(help="Those that ended at this RFC 3339 time or later.")] = None,
    finished_before: Annotated[str | None, typer.Option(help="Those that ended before this time.")] = None,
    tag: Tag = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Show so many at most.")] = 100,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List how events have ended, in the order in which that was written."""
    wanted = archive_filter(
        *(pattern or ()),
        outcome=None if outcome is None else outcome.value,
        error=error,
        finished_after=option_time("--finished-after", finished_after),
        finished_before=option_time("--finished-before", finished_before),
        tags=tag or (),
    )
    found = with_steward(
        database_url,
        lambda steward: find(lambda after, limit: steward.archive(group, wanted, after=after, limit=limit), count),
    )
    if as_json:
        for name, entry in found:
            show(visible_json(to_json(ending_object(name, entry)).decode()))
    elif found:
        show_table(COLUMNS, [_row(name, entry) for name, entry in found], numbers=(0, 2, 5, 6))
    else:
        show("nothing in the archive")


@archive.command("show")
def show_ending(
    ending_id: Annotated[int, typer.Argument(metavar="ID", min=1, max=fields.MAX_SEQ)],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one line of JSON.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show how an event has ended: the event, and all that went wrong with it, with tracebacks."""
    name, archived = with_steward(database_url, lambda steward: steward.archived(ending_id))
    show_event(archived_object(name, archived), as_json=as_json)


def _row(group: str, entry: ArchiveEntry) -> tuple[str, ...]:
    listed = ending_object(group, entry)
    return (
        str(entry.id),
        visible(group),
        str(entry.seq),
        visible(entry.topic),
        entry.outcome,
        str(entry.attempt),
        "" if entry.duration is None else f"{entry.duration / 1_000_000:,.3f}",
        local_time(listed["finished_at"]),
        short_error(listed["error"]),
    )
