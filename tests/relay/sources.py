"""A queue or stream of each kind of broker, to be filled by a test and emptied by what it tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol
from uuid import uuid4

import aio_pika
import nats
import redis.asyncio
from nats.js.errors import NotFoundError


class Filled(Protocol):
    """See the module's docstring."""

    name: str
    subject: str
    """Of what is sent: subject, routing key or stream."""

    async def send(
        self, body: bytes, *, content_type: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send one message, and wait until the broker has it."""
        ...

    async def send_many(self, count: int) -> None:
        """Send `{"n":0}`, `{"n":1}`, …"""
        ...

    async def left(self) -> int:
        """How many messages are not acknowledged by the reader `ingest.NAME`."""
        ...

    async def delete(self) -> None: ...


@contextlib.asynccontextmanager
async def filled(kind: str, url: str) -> AsyncIterator[Filled]:
    """Make one, and remove it when the block ends."""
    kinds: dict[str, Any] = {"rabbitmq": RabbitQueue, "nats": JetStream, "redis": RedisStream}
    opened = await kinds[kind].open(url)
    try:
        yield opened
    finally:
        await opened.delete()
        await opened.close()


def new_name() -> str:
    return f"bus-test-{uuid4().hex[:12]}"


class RabbitQueue:
    def __init__(self, connection: aio_pika.abc.AbstractConnection, channel: aio_pika.abc.AbstractChannel) -> None:
        self.name = self.subject = new_name()
        self._connection = connection
        self._channel = channel

    @classmethod
    async def open(cls, url: str) -> RabbitQueue:
        connection = await aio_pika.connect(url)
        queue = cls(connection, await connection.channel())
        await queue._channel.declare_queue(queue.name, durable=True)
        return queue

    async def send(
        self, body: bytes, *, content_type: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        message = aio_pika.Message(
            body,
            content_type=content_type,
            headers=dict(headers or {}),
            message_id=str(uuid4()),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await self.publish(message)

    async def publish(self, message: aio_pika.Message) -> None:
        """Send a message of the caller's making, and wait until the broker has it."""
        await self._channel.default_exchange.publish(message, routing_key=self.name)

    async def send_many(self, count: int) -> None:
        for number in range(count):
            await self.send(b'{"n":%d}' % number)

    async def left(self) -> int:
        """Those that are not delivered; a closed channel gives back those that are not acknowledged."""
        queue = await self._channel.get_queue(self.name, ensure=True)
        declared = await queue.declare()
        return int(declared.message_count or 0)

    async def delete(self) -> None:
        await self._channel.queue_delete(self.name)

    async def close(self) -> None:
        await self._connection.close()


class JetStream:
    def __init__(self, client: Any) -> None:
        self.name = new_name()
        self.subject = f"{self.name}.sent"
        self._client = client
        self._context = client.jetstream()

    @classmethod
    async def open(cls, url: str) -> JetStream:
        stream = cls(await nats.connect(url))
        await stream._context.add_stream(name=stream.name, subjects=[f"{stream.name}.>"])
        return stream

    async def send(
        self, body: bytes, *, content_type: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        await self._context.publish(self.subject, body, headers={"Content-Type": content_type, **(headers or {})})

    async def send_many(self, count: int) -> None:
        for number in range(count):
            await self.send(b'{"n":%d}' % number)

    async def left(self) -> int:
        info = await self._context.consumer_info(self.name, f"ingest-{self.name}")
        return int((info.num_pending or 0) + (info.num_ack_pending or 0))

    async def delete(self) -> None:
        with contextlib.suppress(NotFoundError):
            await self._context.delete_stream(self.name)

    async def close(self) -> None:
        await self._client.close()


class RedisStream:
    def __init__(self, client: Any) -> None:
        self.name = self.subject = new_name()
        self._client = client

    @classmethod
    async def open(cls, url: str) -> RedisStream:
        stream = cls(redis.asyncio.from_url(url))
        first = await stream._client.xadd(stream.name, {"payload": b""})
        await stream._client.xdel(stream.name, first)  # the stream stays
        return stream

    async def send(
        self, body: bytes, *, content_type: str = "application/json", headers: Mapping[str, str] | None = None
    ) -> None:
        await self.add({"payload": body, "content-type": content_type, **(headers or {})})

    async def add(self, fields: Mapping[str, Any]) -> None:
        """Add an entry of the caller's making."""
        await self._client.xadd(self.name, dict(fields))

    async def send_many(self, count: int) -> None:
        for number in range(count):
            await self.send(b'{"n":%d}' % number)

    async def left(self) -> int:
        for group in await self._client.xinfo_groups(self.name):
            if group["name"] == f"ingest.{self.name}".encode():
                return int(group["pending"] + (group["lag"] or 0))
        return 0

    async def delete(self) -> None:
        await self._client.delete(self.name)

    async def close(self) -> None:
        await self._client.aclose()
