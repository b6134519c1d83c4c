"""The plain dialect: what a client of the model library sees."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from tests.server.sockets import ServedBus, serving_bus
from tests.waiting import eventually


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path) as served:
        yield served


async def test_a_published_event_reaches_a_subscriber_and_nothing_else_does(served: ServedBus) -> None:
    async with served.plain() as subscriber, served.plain() as publisher:
        await subscriber.send("subscribe", pattern="chat.*", starting_seq=0)
        await publisher.send("publish", data={"topic": "chat.user1", "payload": "Hello", "message_id": None}, ttl=None)

        event = await subscriber.next()

    assert set(event) == {"seq", "message_id", "topic", "payload", "metadata"}
    assert (event["seq"], event["topic"], event["payload"]) == (1, "chat.user1", "Hello")
    assert set(event["metadata"]) == {"timestamp", "content_type"}
    assert event["metadata"]["content_type"] == "text/plain"
    assert str(UUID(event["message_id"])) == event["message_id"]


async def test_events_come_one_per_frame_and_in_order(served: ServedBus) -> None:
    async with served.plain() as subscriber:
        await subscriber.send("subscribe", pattern="#", starting_seq=0)
        messages = [{"topic": f"a.{number % 7}", "payload": str(number)} for number in range(500)]
        await subscriber.send("publish_batch", messages=messages, ttl=3600)

        events = await subscriber.events(500)

    assert [event["payload"] for event in events] == [str(number) for number in range(500)]
    assert [event["seq"] for event in events] == list(range(1, 501))
    assert set(subscriber.sizes) == {1}


async def test_starting_seq_is_inclusive(served: ServedBus) -> None:
    for number in range(1, 4):
        await served.bus.publish("a", number)

    async with served.plain() as subscriber:
        await subscriber.send("subscribe", pattern="a", starting_seq=2)

        assert [event["seq"] for event in await subscriber.events(2)] == [2, 3]


async def test_without_a_starting_seq_only_new_events_come(served: ServedBus) -> None:
    await served.bus.publish("a", "old")

    async with served.plain() as subscriber:
        assert (await subscriber.ask("subscribe", pattern="a", id=1))["after"] == 1
        await served.bus.publish("a", "new")

        assert (await subscriber.next())["payload"] == "new"


async def test_an_acknowledged_event_is_not_replayed(served: ServedBus) -> None:
    await served.bus.publish("a", "one")
    await served.bus.publish("a", "two")
    async with served.plain() as subscriber:
        await subscriber.send("subscribe", pattern="a", starting_seq=1)
        first, _ = await subscriber.events(2)
        await subscriber.send("ack", seq=first["seq"], message_id=first["message_id"])
        await eventually(lambda: _is_processed(served, 1))

    async with served.plain() as subscriber:
        await subscriber.send("subscribe", pattern="a", starting_seq=1)

        assert (await subscriber.next())["payload"] == "two"


async def test_acks_sent_just_before_the_end_still_count(served: ServedBus) -> None:
    receipts = [await served.bus.publish("a", number) for number in range(20)]
    async with served.plain() as subscriber:
        for receipt in receipts:
            await subscriber.send("ack", seq=receipt.seq, message_id=str(receipt.message_id))

    for receipt in receipts:
        assert receipt.seq is not None
        await eventually(partial(_is_processed, served, receipt.seq))


async def test_publishes_sent_just_before_the_end_are_stored(served: ServedBus) -> None:
    async with served.plain() as publisher:
        for number in range(100):
            await publisher.send("publish", data={"topic": "a", "payload": str(number)})

    async with served.plain() as subscriber:
        await subscriber.send("subscribe", pattern="a", starting_seq=0)

        assert [event["payload"] for event in await subscriber.events(100)] == [str(number) for number in range(100)]


async def test_the_same_message_id_is_delivered_once(served: ServedBus) -> None:
    twin = {"topic": "a", "payload": "x", "message_id": "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"}
    async with served.plain() as client:
        await client.send("subscribe", pattern="a", starting_seq=0)
        await client.send("publish", data=twin)
        await client.send("publish", data=twin)
        await client.send("publish", data={"topic": "a", "payload": "last"})

        assert [event["payload"] for event in await client.events(2)] == ["x", "last"]


async def test_a_frame_with_an_id_is_answered(served: ServedBus) -> None:
    async with served.plain() as client:
        ok = await client.ask("publish", id=0, data={"topic": "a", "payload": 1})
        again = await client.ask("publish", id=1, data={"topic": "a", "payload": 2, "message_id": ok["message_id"]})

        assert ok == {"type": "ok", "id": 0, "seq": 1, "message_id": ok["message_id"], "duplicate": False}
        assert again == {"type": "ok", "id": 1, "seq": 1, "message_id": ok["message_id"], "duplicate": True}
        assert await client.ask("ping", id=2) == {"type": "ok", "id": 2}


async def test_a_ping_without_an_id_and_arrays_are_not_part_of_it(served: ServedBus) -> None:
    async with served.plain() as client:
        await client.send("ping")
        await client.socket.send('[{"type":"ping","id":1}]')

        refused = await client.next()

    assert (refused["type"], refused["error"]["code"]) == ("error", "frame.bad")


async def test_a_subscriber_gets_no_caught_up_and_no_heartbeat(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.01) as served, served.plain() as plain, served.v1() as v1:
        await plain.send("subscribe", pattern="a", starting_seq=0)
        for _ in range(10):  # by now the other dialect has heard ten of them
            await v1.next_of("heartbeat")
        await served.bus.publish("a", 1)

        assert (await plain.next())["seq"] == 1


async def _is_processed(served: ServedBus, seq: int) -> bool:
    return (await served.bus.get(seq)).status == "processed"
