"""A relay into Redis Streams."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from faststream.redis import RedisBroker
from redis.asyncio import Redis

from eventbus_fastapi import EventBus
from eventbus_fastapi.relay.relay import Relay
from tests.brokers import BrokerServer, own_broker
from tests.relay.scripted import drained
from tests.waiting import eventually


class Streams(NamedTuple):
    """A connection, and names of the test's own."""

    url: str
    client: Any
    name: str

    def topic(self, rest: str = "created") -> str:
        return f"{self.name}.{rest}"

    def relay(self, bus: EventBus, **options: Any) -> Relay:
        return bus.relay(self.url, f"{self.name}.#", **{"name": "relay", "start": "earliest", **options})

    async def entries(self, rest: str = "created") -> list[tuple[str, dict[str, str]]]:
        found = await self.client.xrange(self.topic(rest))
        return [
            (entry.decode(), {name.decode(): value.decode() for name, value in fields.items()})
            for entry, fields in found
        ]

    async def ids(self, rest: str = "created") -> list[str]:
        return [entry for entry, _ in await self.entries(rest)]


@pytest.fixture
async def at(redis_url: str) -> AsyncIterator[Streams]:
    client = Redis.from_url(redis_url)
    at = Streams(redis_url, client, f"test-{uuid4().hex[:12]}")
    yield at
    for key in await client.keys(f"{at.name}*"):
        await client.delete(key)
    await client.aclose()


async def publish(bus: EventBus, at: Streams, count: int) -> None:
    await bus.publish_many([(at.topic(), {"n": number}) for number in range(count)])


async def relayed(bus: EventBus, relay: Relay) -> None:
    await relay.start()
    await drained(bus)
    await relay.join(5)


async def test_events_arrive_in_order_with_their_seq_as_the_id_of_their_entry(bus: EventBus, at: Streams) -> None:
    await bus.publish_many([(at.topic(), {"n": 0}), (at.topic("other"), "x"), (at.topic(), {"n": 1})])
    await relayed(bus, at.relay(bus))
    assert await at.ids() == ["1-0", "3-0"]
    ((_, other),) = await at.entries("other")
    assert (other["data"], other["eventbus-seq"], other["content-type"]) == ("x", "2", "text/plain")


async def test_who_reads_again_doubles_nothing_in_streams_of_its_own(bus: EventBus, at: Streams) -> None:
    await publish(bus, at, 1_500)
    relay = at.relay(bus)
    await relayed(bus, relay)
    await bus.groups.reset("relay", 0)
    await publish(bus, at, 5)
    await relayed(bus, relay)
    assert await at.ids() == [f"{seq}-0" for seq in range(1, 1_506)]
    assert (await bus.groups.group("relay")).figures.dead == 0


async def test_a_stream_keeps_about_as_many_entries_as_it_shall(bus: EventBus, at: Streams) -> None:
    await publish(bus, at, 2_000)
    relay = at.relay(bus, maxlen=100)
    await relayed(bus, relay)
    assert 100 <= len(await at.ids()) < 400
    await bus.groups.reset("relay", 0)
    await relayed(bus, relay)
    assert (await at.ids())[-1] == "2000-0"
    assert (await bus.groups.group("relay")).figures.dead == 0


async def test_in_streams_that_others_write_to_redis_makes_the_ids(bus: EventBus, at: Streams) -> None:
    await at.client.xadd(at.topic(), {"of": "another"})
    await publish(bus, at, 3)
    await relayed(bus, at.relay(bus, exclusive=False))
    assert [fields.get("eventbus-seq") for _, fields in await at.entries()] == [None, "1", "2", "3"]


async def test_a_stream_of_others_stops_a_relay_that_takes_it_for_its_own(
    bus: EventBus, at: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    await at.client.xadd(at.topic(), {"of": "another"})
    await publish(bus, at, 3)
    relay = at.relay(bus)
    await relay.start()
    await eventually(lambda: "has entries of others; exclusive=False is for that" in caplog.text)
    assert len(await at.ids()) == 1
    await relay.join(5)


@pytest.mark.parametrize("option", ["relay", "log"])
async def test_a_trimmed_stream_of_another_relay_or_log_stops_a_relay_that_takes_it_for_its_own(
    option: str, bus: EventBus, at: Streams, caplog: pytest.LogCaptureFixture
) -> None:
    """Its entries are behind the seqs of this one: what is refused as late was never there."""
    epoch = str((await bus.head()).epoch)
    headers = {"eventbus-message-id": str(uuid4()), "eventbus-relay": "relay", "eventbus-epoch": epoch}
    headers["eventbus-relay" if option == "relay" else "eventbus-epoch"] = "another"
    await at.client.xadd(at.topic(), headers, id="900-0")
    await publish(bus, at, 3)
    relay = at.relay(bus)
    await relay.start()
    await eventually(lambda: "or another log; exclusive=False is for that" in caplog.text)
    assert (await bus.groups.group("relay")).figures.in_flight == 3
    await relay.join(5)


async def test_a_key_that_is_no_stream_makes_dead_letters_and_they_come_late_when_it_is_mended(
    bus: EventBus, at: Streams
) -> None:
    await at.client.set(at.topic("b"), "a text")
    await bus.publish_many([(at.topic("a"), 1), (at.topic("b"), 2), (at.topic("a"), 3), (at.topic("b"), 4)])
    relay = at.relay(bus)
    await relay.start()
    await drained(bus)
    assert await at.ids("a") == ["1-0", "3-0"]
    assert "WRONGTYPE" in (await bus.groups.dead_letter("relay", 2)).errors[0]["message"]
    await at.client.delete(at.topic("b"))
    await bus.groups.retry("relay", [4])
    await drained(bus)
    await bus.groups.retry("relay", [2])
    await drained(bus)
    assert [(entry, fields["eventbus-seq"]) for entry, fields in await at.entries("b")] == [("4-0", "4"), ("4-1", "2")]
    await relay.join(5)


async def test_a_server_that_is_stopped_and_started_gets_each_event_once_and_in_order(bus: EventBus) -> None:
    with own_broker("redis") as server:
        relay = bus.relay(server.url, "a", name="relay", start="earliest")
        await relay.start()
        for is_killed in (False, True):
            await bus.publish_many([("a", number) for number in range(3_000)])
            server.kill() if is_killed else server.stop()
            await bus.publish_many([("a", number) for number in range(500)])
            await eventually(lambda: not relay.is_broker_up)
            server.start()
            await drained(bus, timeout=30)
        assert await _ids_on(server) == [f"{seq}-0" for seq in range(1, 7_001)]
        await relay.join(5)


async def test_a_broker_that_is_handed_in_stays_connected(bus: EventBus, at: Streams) -> None:
    broker = RedisBroker(at.url)
    await publish(bus, at, 3)
    await relayed(bus, bus.relay(broker, f"{at.name}.#", name="relay", start="earliest"))
    assert await at.ids() == ["1-0", "2-0", "3-0"]
    assert await (await broker.connect()).ping()
    await broker.stop()


async def test_a_server_without_memory_stops_the_relay_and_nothing_is_out_of_order(bus: EventBus) -> None:
    with own_broker("redis") as server:
        async with Redis.from_url(server.url) as client:
            await client.config_set("maxmemory", "1")
            relay = bus.relay(server.url, "a", name="relay", start="earliest")
            await bus.publish_many([("a", number) for number in range(50)])
            await relay.start()
            await eventually(lambda: not relay.is_broker_up)
            await client.config_set("maxmemory", "0")
            await drained(bus)
            assert await _ids_on(server) == [f"{seq}-0" for seq in range(1, 51)]
            assert bus.node.meters.relayed["relay", "resent"] == 0
            await relay.join(5)


async def _ids_on(server: BrokerServer) -> list[str]:
    client: Any = Redis.from_url(server.url)
    try:
        return [entry.decode() for entry, _ in await client.xrange("a")]
    finally:
        await client.aclose()
