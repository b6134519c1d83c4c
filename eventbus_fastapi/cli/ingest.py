"""`eventbus ingest`: the messages of an existing broker, taken into a bus by a process of its own."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated, Any

import typer

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.options import DatabaseUrl, LogFormatOption, LogLevelOption, settings_of
from eventbus_fastapi.cli.running import announce, end_on_signals, quiet_broker_clients, set_up_log
from eventbus_fastapi.relay.brokers import disconnect, open_broker, shown


class IdentityChoice(StrEnum):
    given = "given"
    content = "content"
    delivery = "delivery"


def ingest(
    url: Annotated[str, typer.Option("--from", help="The broker: nats://, amqp://, redis:// or kafka://host:port.")],
    source: Annotated[
        str,
        typer.Option("--queue", "--stream", help="The queue (RabbitMQ), stream (JetStream, Redis) or Kafka topic."),
    ],
    topic: Annotated[str | None, typer.Option(help="The topic of all events. Default: see --topic-template.")] = None,
    topic_template: Annotated[
        str | None,
        typer.Option(
            help="As shop.{subject}, of {subject}, {source} and {header:NAME}.",
            show_default="{subject}: the subject, routing key or stream",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Its dead letters, consumer and metrics go by it.", show_default="ingest.QUEUE")
    ] = None,
    content_type: Annotated[
        str | None,
        typer.Option(help="Of messages that say none.", show_default="application/octet-stream"),
    ] = None,
    identity: Annotated[
        IdentityChoice,
        typer.Option(
            help="Messages without an id of their own (RabbitMQ): refuse them, know them by their content, or by their"
            " delivery."
        ),
    ] = IdentityChoice.given,
    subjects: Annotated[str | None, typer.Option(help="Only these subjects of a JetStream stream.")] = None,
    field: Annotated[str | None, typer.Option(help="The field of a Redis entry that is the payload.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=1_000, help="Messages in one commit.")] = 500,
    prefetch: Annotated[
        int | None, typer.Option(min=1, help="Messages given out before acks.", show_default="twice the batch")
    ] = None,
    claim_after: Annotated[
        float, typer.Option(min=1, help="Seconds after which others get what nobody has acknowledged.")
    ] = 60.0,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that the batch at hand has at the end.")] = 10.0,
    database_url: DatabaseUrl = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Serve metrics on this port.")] = None,
) -> None:
    """Make each message of a queue or stream an event, exactly once, until SIGTERM or Ctrl-C."""
    settings = settings_of(
        database_url=database_url, log_level=log_level, log_format=log_format, metrics_port=metrics_port
    )
    options: dict[str, Any] = {
        "name": name,
        "topic": topic,
        "topic_template": topic_template,
        "content_type": content_type,
        "identity": identity.value,
        "subjects": subjects,
        "field": field,
        "batch": batch,
        "prefetch": prefetch,
        "claim_after": claim_after,
    }
    set_up_log(settings)
    quiet_broker_clients()
    asyncio.run(_ingest(EventBus(settings=settings), url, source, grace, options))


async def _ingest(eventbus: EventBus, url: str, source: str, grace: float, options: dict[str, Any]) -> None:
    """Ingest until a signal comes, then end within the grace time."""
    ended = end_on_signals()
    broker = open_broker(url)
    ingest = eventbus.ingest(broker, source, **options)
    try:
        async with eventbus:
            announce(f"ingesting {source} of {shown(url)} as {ingest.name}", eventbus.settings)
            await ended.wait()
            await ingest.stop(grace)
    finally:
        await disconnect(broker)
