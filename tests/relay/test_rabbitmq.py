"""A relay into RabbitMQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from uuid import uuid4

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from eventbus_fastapi import EventBus
from eventbus_fastapi.errors import InvalidRelay
from eventbus_fastapi.relay.relay import Relay
from tests.brokers import own_broker
from tests.relay.scripted import drained
from tests.waiting import eventually


class Rabbit(NamedTuple):
    """A channel, and names of the test's own."""

    url: str
    channel: AbstractChannel
    name: str

    def topic(self, rest: str = "created") -> str:
        return f"{self.name}.{rest}"

    def relay(self, bus: EventBus, **options: Any) -> Relay:
        return bus.relay(self.url, f"{self.name}.#", **{"name": "relay", "start": "earliest", **options})

    async def take(self, rest: str = "created") -> list[AbstractIncomingMessage]:
        """Take all that is in the queue of a topic."""
        return await self.take_all(self.topic(rest))

    async def take_all(self, name: str) -> list[AbstractIncomingMessage]:
        queue = await self.channel.get_queue(name, ensure=False)
        found = []
        while (message := await queue.get(fail=False)) is not None:
            await message.ack()
            found.append(message)
        return found


@pytest.fixture
async def at(rabbitmq_url: str) -> AsyncIterator[Rabbit]:
    connection = await aio_pika.connect(rabbitmq_url)
    async with connection:
        channel = await connection.channel()
        at = Rabbit(rabbitmq_url, channel, f"test-{uuid4().hex[:12]}")
        await channel.declare_queue(at.topic(), durable=True)
        yield at
        await channel.queue_delete(at.topic())


async def publish(bus: EventBus, at: Rabbit, count: int) -> None:
    await bus.publish_many([(at.topic(), {"n": number}) for number in range(count)])


def seqs(messages: list[AbstractIncomingMessage]) -> list[int]:
    return [int(str(message.headers["eventbus-seq"])) for message in messages]


async def test_events_arrive_in_order_persistent_and_with_their_headers(bus: EventBus, at: Rabbit) -> None:
    await bus.publish(at.topic(), {"n": 0}, key="k", metadata={"a": 1})
    await publish(bus, at, 1_100)
    relay = at.relay(bus)
    await relay.start()
    await drained(bus)
    await relay.join(5)
    messages = await at.take()
    assert seqs(messages) == list(range(1, 1_102))
    first = messages[0]
    assert (first.body, first.content_type) == (b'{"n":0}', "application/json")
    assert first.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
    assert first.message_id == first.headers["eventbus-message-id"]
    assert (first.headers["eventbus-key"], first.headers["eventbus-metadata"]) == ("k", '{"a":1}')


async def test_what_no_queue_takes_becomes_a_dead_letter_and_the_log_goes_on(bus: EventBus, at: Rabbit) -> None:
    await bus.publish_many([(at.topic("nowhere"), 1), (at.topic(), 2)])
    relay = at.relay(bus)
    await relay.start()
    await drained(bus)
    letter = await bus.groups.dead_letter("relay", 1)
    assert letter.errors[0]["message"] == f"unroutable: there is no queue for '{at.topic('nowhere')}'"
    assert bus.node.meters.relayed["relay", "refused"] == 1
    await relay.join(5)
    assert seqs(await at.take()) == [2]


async def test_a_routing_key_that_is_too_long_becomes_a_dead_letter(bus: EventBus, at: Rabbit) -> None:
    await publish(bus, at, 1)
    relay = at.relay(bus, subject_template="x" * 250 + ".{topic}")
    await relay.start()
    await drained(bus)
    assert "at most 255 bytes" in (await bus.groups.dead_letter("relay", 1)).errors[0]["message"]
    await relay.join(5)


async def test_an_exchange_routes_by_the_subject(bus: EventBus, at: Rabbit) -> None:
    exchange = await at.channel.declare_exchange(at.name, aio_pika.ExchangeType.TOPIC)
    await (await at.channel.get_queue(at.topic())).bind(exchange, "events.#")
    await publish(bus, at, 3)
    relay = at.relay(bus, exchange=at.name, subject_template="events.{topic}")
    await relay.start()
    await drained(bus)
    await relay.join(5)
    assert seqs(await at.take()) == [1, 2, 3]
    await at.channel.exchange_delete(at.name)


async def test_an_exchange_that_is_not_there_is_named(bus: EventBus, at: Rabbit) -> None:
    with pytest.raises(InvalidRelay, match="RabbitMQ has no exchange 'nowhere'"):
        await at.relay(bus, exchange="nowhere").start()
    with pytest.raises(InvalidRelay, match="RabbitMQ cannot have the exchange 'xxx"):
        await at.relay(bus, exchange="x" * 300, name="long").start()


async def test_a_full_queue_stops_the_relay_and_it_goes_on_when_there_is_room(bus: EventBus, at: Rabbit) -> None:
    await at.channel.declare_queue(
        at.topic("full"), durable=True, arguments={"x-max-length": 3, "x-overflow": "reject-publish"}
    )
    await bus.publish_many([(at.topic("full"), number) for number in range(5)])
    relay = at.relay(bus)
    await relay.start()
    await eventually(lambda: bus.node.meters.relayed["relay", "confirmed"] >= 3)
    found: list[int] = []

    async def has_all() -> bool:
        found.extend(seqs(await at.take("full")))
        return len(set(found)) == 5

    await eventually(has_all)
    await drained(bus)
    await relay.join(5)
    assert sorted(found) == [1, 2, 3, 4, 5]
    await at.channel.queue_delete(at.topic("full"))


@pytest.mark.timeout(240)
async def test_a_server_that_is_killed_and_started_has_all_in_order_and_a_double_says_that_it_may_be_one(
    bus: EventBus,
) -> None:
    with own_broker("rabbitmq") as server:
        async with await aio_pika.connect(server.url) as connection:
            await (await connection.channel()).declare_queue("a", durable=True)
        relay = bus.relay(server.url, "a", name="relay", start="earliest")
        await relay.start()
        await bus.publish_many([("a", number) for number in range(3_000)])
        await eventually(lambda: bus.node.meters.relayed["relay", "confirmed"] >= 1)
        server.kill()
        await bus.publish_many([("a", number) for number in range(500)])
        await eventually(lambda: not relay.is_broker_up)
        server.start()
        await drained(bus, timeout=60)
        await relay.join(5)
        async with await aio_pika.connect(server.url) as connection:
            messages = await Rabbit(server.url, await connection.channel(), "").take_all("a")
    found = seqs(messages)
    assert list(dict.fromkeys(found)) == list(range(1, 3_501))
    first: set[int] = set()
    for seq, message in zip(found, messages, strict=True):
        assert seq not in first or int(str(message.headers["eventbus-attempt"])) > 1
        first.add(seq)
