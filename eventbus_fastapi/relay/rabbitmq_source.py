"""A queue of RabbitMQ as a source: a consumer with a prefetch, and one ack for each batch.

The channel is not one of aio-pika's that restore themselves: what was delivered over a channel that is gone cannot be
acknowledged any more, so it is better to know. RabbitMQ delivers it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aio_pika
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from eventbus_fastapi.errors import BrokerUnavailable, SourceNotFound, quote
from eventbus_fastapi.relay.brokers import CONNECT_TIMEOUT, connect, translated
from eventbus_fastapi.relay.foreign import Foreign
from eventbus_fastapi.relay.source import IDLE, LOOK_EVERY, Arrivals, Reading


class RabbitSource:
    """See the module's docstring."""

    def __init__(self, broker: Any, reading: Reading) -> None:
        self._broker = broker
        self._reading = reading
        self._channel: aio_pika.Channel | None = None
        self._delivered: Arrivals[AbstractIncomingMessage] = Arrivals()
        self._idle = 0.0

    async def open(self) -> None:
        """Begin to consume the queue, which must be there: how it is declared is not ours to say."""
        connection = await connect(self._broker)
        name = quote(self._reading.source)
        with translated("rabbitmq", f"cannot consume the queue {name}"):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await connection.ready()
                channel = self._channel = aio_pika.Channel(connection, publisher_confirms=False)
                await channel.initialize()
                await channel.set_qos(prefetch_count=self._reading.prefetch)
                queue = await self._queue(channel)
                self._delivered = Arrivals()
                self._idle = 0.0
                await queue.consume(self._delivered.note)

    async def _queue(self, channel: aio_pika.Channel) -> Any:
        try:
            return await channel.get_queue(self._reading.source, ensure=True)
        except ChannelNotFoundEntity as exc:
            raise SourceNotFound(f"rabbitmq has no queue {quote(self._reading.source)}") from exc

    async def take(self) -> list[Foreign]:
        channel = self._channel
        if not await self._delivered.wait(IDLE):
            await self._look(channel)
            return []
        if channel is None or channel.is_closed:
            raise BrokerUnavailable("rabbitmq: the channel was closed")
        self._idle = 0.0
        return [_foreign(message) for message in self._delivered.pop(self._reading.batch)]

    async def _look(self, channel: aio_pika.Channel | None) -> None:
        """Find out that the channel was closed, or the queue deleted: nothing else tells of the latter."""
        if channel is None or channel.is_closed:
            raise BrokerUnavailable("rabbitmq: the channel was closed")
        self._idle += IDLE
        if self._idle >= LOOK_EVERY:
            self._idle = 0.0
            with translated("rabbitmq", "does not answer"):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    await self._queue(channel)

    async def ack(self, taken: Sequence[Foreign]) -> None:
        if taken:
            with translated("rabbitmq", "cannot acknowledge"):
                await taken[-1].handle.ack(multiple=True)

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and not channel.is_closed:
            try:
                async with asyncio.timeout(IDLE):
                    await channel.close()
            except Exception:  # noqa: BLE001, S110 - the connection is gone, and the channel with it
                pass


def _foreign(message: AbstractIncomingMessage) -> Foreign:
    properties = {
        "correlation_id": message.correlation_id,
        "type": message.type,
        "app_id": message.app_id,
        "reply_to": message.reply_to,
    }
    headers = {f"amqp-{name}": value for name, value in properties.items() if value is not None}
    return Foreign(
        subject=message.routing_key or "",
        body=message.body,
        headers={**headers, **(message.headers or {})},
        content_type=message.content_type,
        encoding=message.content_encoding,
        given_id=message.message_id,
        is_again=bool(message.redelivered),
        handle=message,
    )
