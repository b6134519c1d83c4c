"""`eventbus recurring`: the events of a database that are published by a schedule, and what can be done with one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, TypeVar, cast

import typer

from eventbus_fastapi.cli.opening import with_store
from eventbus_fastapi.cli.options import AsJson, DatabaseUrl
from eventbus_fastapi.cli.publish import read_payload
from eventbus_fastapi.cli.terminal import show, show_table, visible, visible_json
from eventbus_fastapi.cron import EPOCH, MICROSECOND
from eventbus_fastapi.errors import RecurringNotFound, quote
from eventbus_fastapi.pipeline.recurring import Recurring
from eventbus_fastapi.server.recurring_objects import recurring_object
from eventbus_fastapi.store.recurring import Missed, RecurringEvent

recurring = typer.Typer(
    help="Look after recurring events; without a command, show which there are.", invoke_without_command=True
)

T = TypeVar("T")
Name = Annotated[str, typer.Argument(help="Name of the recurring event.")]

COLUMNS = ("recurring event", "cron", "timezone", "topic", "next", "last", "")


@recurring.callback()
def list_recurring(context: typer.Context, as_json: AsJson = False, database_url: DatabaseUrl = None) -> None:
    """Show all recurring events: what is published when, next and last."""
    context.obj = database_url
    if context.invoked_subcommand is not None:
        return
    events = _with_recurring(database_url, Recurring.all)
    if as_json:
        for event in events:
            show(visible_json(recurring_object(event)))
        return
    if not events:
        show("no recurring events")
        return
    show_table(COLUMNS, [_row(event) for event in events])


@recurring.command()
def add(
    context: typer.Context,
    name: Name,
    cron: Annotated[
        str, typer.Argument(help='Minute, hour, day of month, month, day of week: "0 3 * * *"; or @daily.')
    ],
    topic: Annotated[str, typer.Argument(help="user.created, chat.user1, …")],
    payload: Annotated[str, typer.Argument(help="JSON if it parses as JSON, else text; - reads stdin.")],
    timezone: Annotated[str, typer.Option(help="Whose clock the schedule goes by, such as Europe/Berlin.")] = "UTC",
    missed: Annotated[
        str, typer.Option(help="Of ticks that no node published in time: skip, last (one for all) or all.")
    ] = "last",
    key: Annotated[str | None, typer.Option(help="What the events are about.")] = None,
    ttl: Annotated[float | None, typer.Option(help="Seconds after which an event expires.")] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make a recurring event; one that exists becomes as given here."""
    body, content_type = read_payload(payload, as_json=False, as_text=False)

    async def work(recurring: Recurring) -> tuple[RecurringEvent, bool]:
        is_new = True
        with suppress(RecurringNotFound):
            await recurring.get(name)
            is_new = False
        event = await recurring.declare(
            name,
            cron,
            topic,
            body,
            timezone=timezone,
            missed=cast(Missed, missed),
            key=key,
            ttl=ttl,
            content_type=content_type,
        )
        return event, is_new

    event, is_new = _change(context, database_url, work)
    show(f"recurring event {quote(name)} is {'added' if is_new else 'changed'}; {_next(event)}")


@recurring.command()
def pause(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """Publish nothing of a recurring event, on any node, until it is resumed."""
    _change(context, database_url, lambda recurring: recurring.pause(name))
    show(f"recurring event {quote(name)} is paused")


@recurring.command()
def resume(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """End the pause of a recurring event. Its next tick is the first after now."""
    event = _change(context, database_url, lambda recurring: recurring.resume(name))
    show(f"recurring event {quote(name)} goes on; {_next(event)}")


@recurring.command()
def run(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """Publish one event of it now, also if it is paused. Its ticks stay as they are."""
    receipt = _change(context, database_url, lambda recurring: recurring.run(name))
    show(f"seq={receipt.seq} message_id={receipt.message_id}")


@recurring.command()
def delete(context: typer.Context, name: Name, database_url: DatabaseUrl = None) -> None:
    """Forget a recurring event. A program that still declares it makes it anew when it starts."""
    _change(context, database_url, lambda recurring: recurring.delete(name))
    show(f"recurring event {quote(name)} is deleted")


def _change(context: typer.Context, database_url: str | None, work: Callable[[Recurring], Awaitable[T]]) -> T:
    # `eventbus recurring --database-url … pause x` gives the URL to the command before.
    return _with_recurring(database_url or context.obj, work)


def _with_recurring(database_url: str | None, work: Callable[[Recurring], Awaitable[T]]) -> T:
    return with_store(database_url, lambda store, settings: work(Recurring(store, settings, {})))


def _row(event: RecurringEvent) -> tuple[str, ...]:
    said = event.declaration
    return (
        visible(event.name),
        visible(said.cron),
        visible(said.timezone),
        visible(said.topic),
        "" if event.is_paused else _time(event.next_at),
        "" if event.last_at is None else _time(event.last_at),
        "paused" if event.is_paused else "",
    )


def _next(event: RecurringEvent) -> str:
    return "it is paused" if event.is_paused else f"next at {_time(event.next_at)}"


def _time(time: int) -> str:
    """Return a time as this host's clock has it."""
    return (EPOCH + time * MICROSECOND).astimezone().isoformat(" ", "seconds")
