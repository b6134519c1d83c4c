"""`eventbus publish`: one event, through a server or straight into the database."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

import typer

from eventbus_fastapi import codec
from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.options import Url, client_of, refuse_unknown_settings, settings_of, websocket_url
from eventbus_fastapi.cli.terminal import read_stdin, show
from eventbus_fastapi.errors import InvalidPayload
from eventbus_fastapi.events import Receipt
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.unique import Unique


def publish(
    topic: Annotated[str, typer.Argument(help="user.created, chat.user1, …")],
    payload: Annotated[str, typer.Argument(help="JSON if it parses as JSON, else text; - reads stdin.")],
    as_json: Annotated[bool, typer.Option("--json", help="The payload must be JSON.")] = False,
    as_text: Annotated[bool, typer.Option("--text", help="The payload is text, even if it parses as JSON.")] = False,
    key: Annotated[str | None, typer.Option(help="What the event is about.")] = None,
    message_id: Annotated[str | None, typer.Option(help="UUID; the same one is stored once.")] = None,
    ttl: Annotated[float | None, typer.Option(help="Seconds after which the event expires.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word for it; may be given several times.")] = None,
    unique_within: Annotated[
        float | None, typer.Option(help="Store it unless the same was published within so many seconds.")
    ] = None,
    url: Url = None,
    database_url: Annotated[
        str | None, typer.Option(help="Write into this database, without a server (instead of --url).")
    ] = None,
) -> None:
    """Publish an event; print its seq and message_id once it is stored."""
    if as_json and as_text:
        raise typer.BadParameter("give --json or --text, not both")
    if url is not None and database_url is not None:
        raise typer.BadParameter("give --url or --database-url, not both")
    refuse_unknown_settings()
    body, content_type = read_payload(payload, as_json=as_json, as_text=as_text)
    options: dict[str, Any] = {"key": key, "message_id": message_id, "ttl": ttl, "content_type": content_type}
    options |= {"tags": tag, "unique": None if unique_within is None else Unique(within=unique_within)}
    if database_url is None:
        receipt = asyncio.run(_publish_to(websocket_url(url), topic, body, options))
    else:
        receipt = asyncio.run(_publish_into(settings_of(database_url=database_url), topic, body, options))
    duplicate = " duplicate=true" if receipt.duplicate else ""
    show(f"seq={receipt.seq} message_id={receipt.message_id}{duplicate}")


def read_payload(argument: str, *, as_json: bool, as_text: bool) -> tuple[bytes, str]:
    """Return the payload's bytes, as they are, and their content type."""
    body = read_stdin() if argument == "-" else os.fsencode(argument)
    if as_text:
        return body, codec.TEXT
    try:
        codec.parse_json(body)
    except InvalidPayload:
        return body, codec.JSON if as_json else codec.TEXT
    return body, codec.JSON


async def _publish_to(url: str, topic: str, body: bytes, options: dict[str, Any]) -> Receipt:
    async with client_of(url, max_retries=0) as client:
        return await client.publish(topic, body, **options)


async def _publish_into(settings: Settings, topic: str, body: bytes, options: dict[str, Any]) -> Receipt:
    async with EventBus(settings=settings) as eventbus:
        return await eventbus.publish(topic, body, **options)
