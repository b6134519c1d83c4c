"""RabbitMQ as a destination of a relay.

Messages are persistent and mandatory; the routing key is the subject. Without an exchange it is the name of a queue.
The confirms of a batch are waited for together: FastStream's `publish`, and aio-pika's, wait for each. So this
publishes through a channel of its own on the connection that the broker holds. What no queue takes is returned by
RabbitMQ, and refused here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from aiormq.exceptions import AMQPError, ChannelNotFoundEntity, ChannelPreconditionFailed, DeliveryError, PublishError
from pamqp.commands import Basic

from eventbus_fastapi.errors import BrokerUnavailable, InvalidRelay, quote
from eventbus_fastapi.relay.brokers import CONNECT_TIMEOUT
from eventbus_fastapi.relay.destination import CONFIRMED, Outcome, refused, shown, unknown, unsent
from eventbus_fastapi.relay.headers import CONTENT_TYPE, MESSAGE_ID
from eventbus_fastapi.relay.opening import BrokerSource
from eventbus_fastapi.relay.parcel import TIMESTAMP, Parcel

if TYPE_CHECKING:
    from aiormq.channel import Channel

LONGEST_KEY = 255
"""Longest routing key, bytes."""
PERSISTENT = 2
QUIET = 60.0
"""Seconds without any confirm after which those that are missing are given up. A broker that is short of memory or disk
takes nothing for a while, and what was sent meanwhile arrives later."""
LOOK_EVERY = 0.25
FAILURES = (AMQPError, OSError, TimeoutError, RuntimeError, asyncio.CancelledError)
"""RuntimeError: aiormq's for a channel that is closed. CancelledError: of a publish whose channel went."""


class RabbitMQ:
    """See the module's docstring.

    Args:
        exchange: its name; empty: the default one, whose routing keys are names of queues.
    """

    kind = "rabbitmq"
    prefix = "cloudEvents:"

    def __init__(self, source: BrokerSource, *, exchange: str = "") -> None:
        self._source = source
        self._exchange = exchange
        self._connection: Any = None
        self._channel: Any = None
        self._is_careful = False  # after the channel was closed because of one message, until that is found

    def write_key(self, key: str) -> str:
        return key

    def prepare(self, relay: str, epoch: str, template: str, patterns: Sequence[str]) -> None:
        """Take any template: a routing key has any characters."""

    async def connect(self) -> None:
        if self._channel is not None and not self._channel.is_closed:
            return
        try:
            connection = await self._source.connect()
            async with asyncio.timeout(CONNECT_TIMEOUT):
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                if self._exchange:
                    await channel.get_exchange(self._exchange, ensure=True)
        except ChannelNotFoundEntity:
            raise InvalidRelay(f"RabbitMQ has no exchange {quote(self._exchange)}") from None
        except ValueError as exc:
            raise InvalidRelay(f"RabbitMQ cannot have the exchange {quote(self._exchange)}: {exc}") from exc
        except (AMQPError, OSError, TimeoutError, RuntimeError) as exc:
            await self._source.discard()
            raise BrokerUnavailable(f"RabbitMQ cannot be reached: {shown(exc)}") from exc
        self._connection, self._channel = connection, channel

    async def send(self, parcels: Sequence[Parcel]) -> list[Outcome]:
        if not self._connection.connected.is_set():
            await self._leave()
            return [unsent("RabbitMQ is not connected")] * len(parcels)
        try:
            channel = await self._channel.get_underlay_channel()
        except (AMQPError, RuntimeError) as exc:
            await self._leave()
            return [unsent(exc)] * len(parcels)
        together = parcels[:1] if self._is_careful else parcels
        publishing = [asyncio.create_task(self._publish(channel, parcel)) for parcel in together]
        try:
            await _wait_for(publishing)
        finally:
            for task in publishing:
                task.cancel()
        outcomes = [_outcome_of(task) for task in await asyncio.gather(*publishing, return_exceptions=True)]
        outcomes += [unsent("another may have closed the channel")] * (len(parcels) - len(together))
        return await self._judge(outcomes)

    async def _judge(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Find the message because of which RabbitMQ has closed the channel: it would do so for ever."""
        if any(outcome.reason.startswith(ChannelPreconditionFailed.__name__) for outcome in outcomes):
            if self._is_careful:
                outcomes[0] = refused(outcomes[0].reason)
            self._is_careful = not self._is_careful
            await self._leave()
        elif any(outcome.verdict == "unknown" for outcome in outcomes):
            await self._leave()
        return outcomes

    async def _publish(self, channel: Channel, parcel: Parcel) -> Outcome:
        if len(parcel.subject.encode()) > LONGEST_KEY:
            return refused(f"a routing key has at most {LONGEST_KEY} bytes")
        headers = parcel.headers
        properties = Basic.Properties(
            content_type=headers[CONTENT_TYPE],
            delivery_mode=PERSISTENT,
            headers={name: value for name, value in headers.items() if name != CONTENT_TYPE},
            message_id=headers[MESSAGE_ID],
            timestamp=datetime.fromisoformat(headers[TIMESTAMP]),
        )
        try:
            await channel.basic_publish(
                parcel.body,
                exchange=self._exchange,
                routing_key=parcel.subject,
                properties=properties,
                mandatory=True,
                wait=False,
            )
        except PublishError:
            where = f"the exchange {quote(self._exchange)} routes" if self._exchange else "there is no queue for"
            return refused(f"unroutable: {where} {quote(parcel.subject)}{' to no queue' * bool(self._exchange)}")
        except DeliveryError as exc:  # its queue is full, perhaps
            return unsent(exc)
        return CONFIRMED

    async def _leave(self) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        with suppress(AMQPError, OSError, TimeoutError, RuntimeError):
            async with asyncio.timeout(1.0):
                await channel.close()
        await self._source.discard()

    async def close(self) -> None:
        await self._leave()
        await self._source.close()


def _outcome_of(result: Outcome | BaseException) -> Outcome:
    if isinstance(result, FAILURES):
        return unknown("no confirm came" if isinstance(result, asyncio.CancelledError) else result)
    if isinstance(result, BaseException):
        raise result
    return result


async def _wait_for(publishing: Sequence[asyncio.Task[Outcome]]) -> None:
    """Wait for all, or until nothing has come for a while."""
    clock = asyncio.get_running_loop().time
    left, moved_at = set(publishing), clock()
    while left:
        done, left = await asyncio.wait(left, timeout=LOOK_EVERY)
        if done:
            moved_at = clock()
        elif clock() > moved_at + QUIET:
            return
