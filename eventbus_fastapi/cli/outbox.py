"""`eventbus outbox`: the outbox of a database that is not the bus's, looked at; what the bus refused, tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import typer
from pydantic_core import to_json

from eventbus_fastapi.cli.entries import local_time
from eventbus_fastapi.cli.options import AsJson, is_missing_file, settings_of
from eventbus_fastapi.cli.terminal import UsageError, show, show_table, visible, visible_json
from eventbus_fastapi.errors import SettingsError, quote
from eventbus_fastapi.outbox import Outbox
from eventbus_fastapi.settings import PREFIX
from eventbus_fastapi.store.engines import parse_url
from eventbus_fastapi.store.forward_store import Refused

T = TypeVar("T")

outbox = typer.Typer(help="Look after the outbox of a database that is not the bus's.")

OutboxUrl = Annotated[
    str | None,
    typer.Option("--outbox", help=f"SQLAlchemy URL of the outbox's database; defaults to {PREFIX}DATABASE_URL."),
]
Ids = Annotated[list[int] | None, typer.Argument(help="Their ids, as `refused` lists them.", show_default=False)]
All = Annotated[bool, typer.Option("--all", help="All of them.")]

COLUMNS = ("id", "topic", "message_id", "bytes", "refused", "code", "reason")
PAGE = 1_000


@outbox.command()
def status(as_json: AsJson = False, outbox: OutboxUrl = None) -> None:
    """Show how many events wait for the bus, for how long the oldest has, and how many the bus has refused."""
    figures = _with_outbox(outbox, lambda found: found.figures())
    if as_json:
        show(to_json(figures._asdict()).decode())
    else:
        show(f"waiting={figures.waiting} oldest={figures.oldest:.1f}s refused={figures.refused}")


@outbox.command("refused")
def list_refused(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Show so many at most.")] = 100,
    as_json: AsJson = False,
    outbox: OutboxUrl = None,
) -> None:
    """List events that the bus has refused for good, the oldest refusal first."""
    found = _with_outbox(outbox, lambda found: found.refused(limit=count))
    if as_json:
        for each in found:
            show(visible_json(to_json(each._asdict()).decode()))
    elif found:
        show_table(COLUMNS, [_row(each) for each in found], numbers=(0, 3))
    else:
        show("no refused events")


@outbox.command()
def retry(ids: Ids = None, is_all: All = False, outbox: OutboxUrl = None) -> None:
    """Send refused events once more, behind all that wait."""
    show(f"retried {_with_outbox(outbox, _each(_choice(ids, is_all), lambda box, some: box.retry(some)))}")


@outbox.command()
def discard(ids: Ids = None, is_all: All = False, outbox: OutboxUrl = None) -> None:
    """Forget refused events for good."""
    show(f"discarded {_with_outbox(outbox, _each(_choice(ids, is_all), lambda box, some: box.discard(some)))}")


@dataclass(frozen=True)
class Choice:
    """Those that are meant; None: all."""

    ids: list[int] | None


def _choice(ids: list[int] | None, is_all: bool) -> Choice:
    if bool(ids) == is_all:
        raise UsageError("give ids, or --all")
    return Choice(None if is_all else ids)


def _each(choice: Choice, work: Callable[[Outbox, list[int]], Awaitable[int]]) -> Callable[[Outbox], Awaitable[int]]:
    """Return what does something with those that are chosen, and counts them."""

    async def do(box: Outbox) -> int:
        if choice.ids is not None:
            return await work(box, choice.ids)
        found: list[int] = []  # first: what is tried again may be refused again meanwhile
        while page := await box.refused(after=found[-1] if found else 0, limit=PAGE):
            found += [each.id for each in page]
        return await work(box, found)

    return do


def _with_outbox(url: str | None, work: Callable[[Outbox], Awaitable[T]]) -> T:
    """Do something with an outbox, and return what came of it; nothing is forwarded.

    Raises:
        SettingsError: there is no such file.
        SchemaOutdated: the database has no tables of an outbox, or those of another version.
    """

    async def run() -> T:
        settings = settings_of(database_url=url)
        if is_missing_file(settings):
            raise SettingsError(f"there is no database at {quote(parse_url(settings.database_url).database)}")
        box = Outbox(settings.database_url, settings=settings)
        try:
            await box.store.check()
            return await work(box)
        finally:
            await box.stop()

    return asyncio.run(run())


def _row(refused: Refused) -> list[str]:
    return [
        str(refused.id),
        visible(refused.topic),
        str(refused.message_id),
        f"{refused.size:,}",
        local_time(datetime.fromtimestamp(refused.refused_at / 1_000_000, UTC).isoformat()),
        refused.code,
        visible(refused.reason),
    ]
