"""`eventbus dead` and `eventbus retry`: the dead letters of groups, looked at, tried again, forgotten."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

import typer
from pydantic_core import to_json

from eventbus_fastapi.cli.entries import find, local_time, option_time, short_error, show_event
from eventbus_fastapi.cli.opening import with_steward
from eventbus_fastapi.cli.options import AsJson, DatabaseUrl
from eventbus_fastapi.cli.terminal import show, show_table, visible, visible_json
from eventbus_fastapi.errors import quote
from eventbus_fastapi.pipeline.filters import dead_filter
from eventbus_fastapi.pipeline.steward import LARGEST_MAX_ATTEMPTS, Steward
from eventbus_fastapi.protocol import fields
from eventbus_fastapi.server.group_objects import entry_object, letter_object
from eventbus_fastapi.store.dead_letters import Changed, DeadEntry, DeadFilter

dead = typer.Typer(help="Look after dead letters: events that a group has given up.")

Group = Annotated[str, typer.Argument(help="Name of the group.")]
Seqs = Annotated[
    list[int] | None,
    typer.Argument(
        min=1, max=fields.MAX_SEQ, help="Their seqs; none: those that the options mean.", show_default=False
    ),
]
Pattern = Annotated[list[str] | None, typer.Option(help="Those whose topic matches; may be given several times.")]
Error = Annotated[str | None, typer.Option(help="Those whose last error is of this type, such as ConnectError.")]
DiedAfter = Annotated[str | None, typer.Option(help="Those that died at this RFC 3339 time or later.")]
DiedBefore = Annotated[str | None, typer.Option(help="Those that died before this time.")]
Attempts = Annotated[
    int, typer.Option(min=0, max=LARGEST_MAX_ATTEMPTS, help="Those with so many attempts, or more.", show_default=False)
]
Tag = Annotated[list[str] | None, typer.Option(help="Those that have this tag; may be given several times.")]
All = Annotated[bool, typer.Option("--all", help="All of the group.")]

COLUMNS = ("group", "seq", "topic", "attempts", "died", "error")


@dead.command("list")
def list_letters(
    group: Annotated[str | None, typer.Argument(help="Name of the group; by default all groups.")] = None,
    pattern: Pattern = None,
    error: Error = None,
    died_after: DiedAfter = None,
    died_before: DiedBefore = None,
    attempts: Attempts = 0,
    tag: Tag = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Show so many at most.")] = 100,
    as_json: AsJson = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List dead letters in the order in which they died."""
    wanted = _filter(pattern, error, died_after, died_before, attempts, tag)
    found = with_steward(
        database_url,
        lambda steward: find(lambda after, limit: steward.dead_letters(group, wanted, after=after, limit=limit), count),
    )
    if as_json:
        for name, entry in found:
            show(visible_json(to_json(entry_object(name, entry)).decode()))
    elif found:
        show_table(COLUMNS, [_row(name, entry) for name, entry in found], numbers=(1, 3))
    else:
        show("no dead letters")


@dead.command("show")
def show_letter(
    group: Group,
    seq: Annotated[int, typer.Argument(min=1, max=fields.MAX_SEQ)],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as one line of JSON.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Show a dead letter: the event, and all that went wrong with it, with tracebacks."""
    text = letter_object(group, with_steward(database_url, lambda steward: steward.dead_letter(group, seq)))
    show_event(text, as_json=as_json)


@dead.command()
def discard(
    group: Group,
    seqs: Seqs = None,
    pattern: Pattern = None,
    error: Error = None,
    died_after: DiedAfter = None,
    died_before: DiedBefore = None,
    attempts: Attempts = 0,
    tag: Tag = None,
    is_all: All = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Forget dead letters."""
    wanted = _choice(seqs, _filter(pattern, error, died_after, died_before, attempts, tag), is_all=is_all)

    async def work(steward: Steward) -> int:
        return await _change(group, seqs, wanted, steward.discard, steward.discard_matching)

    show(f"dead letters of group {quote(group)} discarded: {with_steward(database_url, work):,}")


def retry(
    group: Group,
    seqs: Seqs = None,
    pattern: Pattern = None,
    error: Error = None,
    died_after: DiedAfter = None,
    died_before: DiedBefore = None,
    attempts: Attempts = 0,
    tag: Tag = None,
    is_all: All = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Have dead letters tried again in their group, at once and with all their attempts."""
    wanted = _choice(seqs, _filter(pattern, error, died_after, died_before, attempts, tag), is_all=is_all)

    async def work(steward: Steward) -> int:
        return await _change(group, seqs, wanted, steward.retry, steward.retry_matching)

    show(f"dead letters of group {quote(group)} tried again: {with_steward(database_url, work):,}")


dead.command("retry")(retry)


def _filter(
    pattern: Sequence[str] | None,
    error: str | None,
    died_after: str | None,
    died_before: str | None,
    attempts: int,
    tag: Sequence[str] | None,
) -> DeadFilter:
    return dead_filter(
        *(pattern or ()),
        error=error,
        died_after=option_time("--died-after", died_after),
        died_before=option_time("--died-before", died_before),
        attempts=attempts,
        tags=tag or (),
    )


def _choice(seqs: Sequence[int] | None, wanted: DeadFilter, *, is_all: bool) -> DeadFilter:
    """Return the filter, if exactly one way was taken to say which are meant."""
    has_filter = wanted != DeadFilter()
    if bool(seqs) + has_filter + is_all != 1:
        raise typer.BadParameter("say which dead letters: give their seqs, a filter such as --pattern, or --all")
    return wanted


async def _change(
    group: str,
    seqs: Sequence[int] | None,
    wanted: DeadFilter,
    change: Callable[[str, Sequence[int]], Awaitable[int]],
    change_matching: Callable[..., Awaitable[Changed]],
) -> int:
    """Change all that are meant, by seq or step by step; return how many there were."""
    if seqs:
        return await change(group, seqs)
    changed = await change_matching(group, wanted, after=0)
    total = changed.done
    while changed.next is not None:
        changed = await change_matching(group, wanted, after=changed.next)
        total += changed.done
    return total


def _row(group: str, entry: DeadEntry) -> tuple[str, ...]:
    listed = entry_object(group, entry)
    died = local_time(listed["died_at"])
    return visible(group), str(entry.seq), visible(entry.topic), str(entry.attempt), died, short_error(listed["error"])
