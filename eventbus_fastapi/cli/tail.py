"""`eventbus tail`: events as they come, each as one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from eventbus_fastapi import codec
from eventbus_fastapi.cli.options import Url, client_of, refuse_unknown_settings, start_of, websocket_url
from eventbus_fastapi.cli.terminal import show, visible, visible_json, warn
from eventbus_fastapi.events import Message
from eventbus_fastapi.protocol.commands import Start
from eventbus_fastapi.protocol.events import event_object


def tail(
    pattern: Annotated[str, typer.Argument(help="user.created, user.*, '#', …")],
    start: Annotated[str, typer.Option("--from", help="now, earliest, a seq (exclusive) or an RFC 3339 time.")] = "now",
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="End after so many events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
    url: Url = None,
) -> None:
    """Print events as they come, one line each: seq, time, topic, payload; acknowledged ones too. Ctrl-C ends it."""
    refuse_unknown_settings()
    asyncio.run(_follow(websocket_url(url), pattern, start_of("--from", start), count, _printer(as_json)))


async def _follow(
    url: str, pattern: str, start: Start, count: int | None, print_event: Callable[[Message], None]
) -> None:
    # A bus that is not there is an error now; one that goes away later is waited for.
    async with client_of(url, max_retries=0) as first:
        await first.wait_connected()
    async with (
        client_of(url) as client,
        client.subscribe(pattern, start=start, include_processed=True, on_gap=lambda gap: warn(str(gap))) as messages,
    ):
        shown = 0
        async for message in messages:
            print_event(message)
            shown += 1
            if shown == count:
                return


def _printer(as_json: bool) -> Callable[[Message], None]:
    """Return what prints an event: JSON for programs, colours for a terminal, else plain text."""
    if as_json:
        return lambda message: show(visible_json(event_object(message)))
    if not sys.stdout.isatty():
        return lambda message: show("  ".join(_columns(message)))
    console = Console(highlight=False, markup=False, emoji=False)
    styles = ("bold", "dim", "cyan", "")
    return lambda message: console.print(
        Text("  ").join(Text(text, style) for text, style in zip(_columns(message), styles, strict=True)),
        soft_wrap=True,
    )


def _columns(message: Message) -> tuple[str, str, str, str]:
    seq = str(message.seq) if message.is_durable else "-"
    time = message.timestamp.astimezone().isoformat(" ", "seconds")
    return seq, time, visible(message.topic), visible(_payload_text(message))


def _payload_text(message: Message) -> str:
    if codec.is_json(message.content_type) or codec.is_text(message.content_type):
        return message.body.decode(errors="replace")
    return f"<{len(message.body):,} bytes of {message.content_type}>"
