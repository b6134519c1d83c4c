"""`eventbus relay`: events of a database handed on to an existing broker, by a process of its own."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import typer

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.cli.options import DatabaseUrl, LogFormatOption, LogLevelOption, settings_of, start_of
from eventbus_fastapi.cli.running import announce, end_on_signals, quiet_broker_clients, set_up_log
from eventbus_fastapi.cli.terminal import fail
from eventbus_fastapi.relay import brokers
from eventbus_fastapi.relay.opening import RelayOptions
from eventbus_fastapi.relay.relay import Relay

LOOK_EVERY = 0.5
"""Seconds between two looks whether the relay has ended by itself."""


class CloudEventsForm(StrEnum):
    binary = "binary"
    structured = "structured"


def relay(
    to: Annotated[str, typer.Option("--to", help="The broker: nats://, amqp://, redis:// or kafka://host:port.")],
    pattern: Annotated[list[str] | None, typer.Option(help="Which events; may be given again. Default: all.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the relay and its group.", show_default="relay.<kind of broker>")
    ] = None,
    subject_template: Annotated[
        str, typer.Option(help="Subject, routing key, stream or topic of an event, with {topic} and {key}.")
    ] = "{topic}",
    start: Annotated[
        str, typer.Option("--from", help="Where a new relay begins: now, earliest, a seq or an RFC 3339 time.")
    ] = "now",
    stream: Annotated[str | None, typer.Option(help="NATS: the stream.")] = None,
    create_stream: Annotated[bool, typer.Option("--create-stream", help="NATS: make the stream if needed.")] = False,
    exclusive: Annotated[
        bool | None, typer.Option(help="NATS, Redis: whether nobody else writes there; see docs/relay.md.")
    ] = None,
    exchange: Annotated[
        str | None, typer.Option(help="RabbitMQ: the exchange.", show_default="the default one")
    ] = None,
    maxlen: Annotated[int | None, typer.Option(min=1, help="Redis: entries that a stream keeps, about.")] = None,
    cloudevents: Annotated[CloudEventsForm | None, typer.Option(help="Send CloudEvents, in this form.")] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that what is on its way has at the end.")] = 10.0,
    database_url: DatabaseUrl = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    metrics_port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Serve metrics on this port.")] = None,
) -> None:
    """Hand events on to an existing broker until SIGTERM or Ctrl-C. Of several with the same name one works."""
    settings = settings_of(
        database_url=database_url, log_level=log_level, log_format=log_format, metrics_port=metrics_port
    )
    set_up_log(settings)
    quiet_broker_clients()
    options: RelayOptions = {
        "name": name,
        "subject_template": subject_template,
        "start": start_of("--from", start),
        "stream": stream,
        "create_stream": create_stream,
        "exclusive": exclusive,
        "exchange": exchange,
        "maxlen": maxlen,
        "cloudevents": None if cloudevents is None else cloudevents.value,
    }
    eventbus = EventBus(settings=settings)
    relay = eventbus.relay(to, *(pattern or ["#"]), **options)
    asyncio.run(_serve(eventbus, relay, where=brokers.shown(to), grace=grace))


async def _serve(eventbus: EventBus, relay: Relay, *, where: str, grace: float) -> None:
    """Relay until a signal comes, then end within the grace time."""
    ended = end_on_signals()
    async with eventbus:
        await relay.start()
        announce(f"relaying {' '.join(relay.patterns)} to {where} as {relay.name}", eventbus.settings)
        while relay.is_alive and not ended.is_set():
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await ended.wait()
            except TimeoutError:
                continue
        await relay.join(grace)
    if not ended.is_set():
        fail("the relay has ended; the log says why")
