"""The dialect `eventbus.v1`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from uuid import UUID

import pytest

from tests.server.sockets import Peer, ServedBus, serving_bus
from tests.waiting import eventually


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path) as served:
        yield served


@pytest.fixture
async def client(served: ServedBus) -> AsyncIterator[Peer]:
    async with served.v1() as client:
        await client.next_of("welcome")
        yield client


async def test_the_first_frame_is_a_welcome(served: ServedBus) -> None:
    await served.bus.publish("a", 1)

    async with served.v1() as client:
        welcome = await client.next()

    assert client.socket.subprotocol == "eventbus.v1"
    assert (welcome["type"], welcome["protocol"], welcome["head"], welcome["heartbeat"]) == ("welcome", 1, 1, 15.0)
    assert str(UUID(welcome["epoch"])) == welcome["epoch"]
    assert welcome["limits"] == {
        "max_frame": 1_048_576,
        "max_payload": 262_144,
        "max_batch": 1_000,
        "max_subscriptions": 100,
        "max_credit": 1_000_000,
        "buffer": 5_000,
    }


async def test_history_then_caught_up_then_live(served: ServedBus, client: Peer) -> None:
    await served.bus.publish("a", 1)
    await served.bus.publish("a", 2)

    assert await client.ask("subscribe", id=1, pattern="a", sub="s", after=1) == {
        "type": "ok",
        "id": 1,
        "sub": "s",
        "after": 1,
        "processed_before": ANY,
    }
    event = await client.next()
    assert (event["type"], event["sub"], event["seq"], event["payload"]) == ("event", "s", 2, 2)
    assert await client.next() == {"type": "caught_up", "sub": "s", "seq": 2}
    await served.bus.publish("a", 3)
    assert (await client.next())["seq"] == 3


async def test_the_answer_to_subscribe_comes_before_its_events(served: ServedBus, client: Peer) -> None:
    for _ in range(50):
        await client.send("publish", id=1, data={"topic": "a", "payload": 1})
    await client.send("subscribe", id=2, pattern="a", after=0)

    kinds = [(await client.next())["type"] for _ in range(51)]

    assert kinds == ["ok"] * 51
    assert [event["seq"] for event in await client.events(50)] == list(range(1, 51))


@pytest.mark.parametrize("frame_id", [0, -1, 2**53, -(2**63), 2**63 - 1])
async def test_a_frame_is_answered_with_its_own_id(client: Peer, frame_id: int) -> None:
    asked = [
        await client.ask("ping", id=frame_id),
        await client.ask("publish", id=frame_id, data={"topic": "a", "payload": 1}),
        await client.ask("publish_batch", id=frame_id, messages=[]),
        await client.ask("nonsense", id=frame_id),
    ]

    assert [answer["id"] for answer in asked] == [frame_id] * 4


async def test_subscriptions_get_the_smallest_unused_number(client: Peer) -> None:
    subs = [(await _ok(client, "subscribe", pattern="a"))["sub"] for _ in range(3)]
    await _ok(client, "unsubscribe", sub=2)

    assert subs == [1, 2, 3]
    assert (await _ok(client, "subscribe", pattern="a"))["sub"] == 2


async def test_several_patterns_deliver_an_event_once(served: ServedBus, client: Peer) -> None:
    await _ok(client, "subscribe", patterns=["a.*", "*.b", "#"], **{"from": "earliest"})
    await served.bus.publish("a.b", 1)
    await served.bus.publish("c", 2)

    assert [event["topic"] for event in await client.events(2)] == ["a.b", "c"]


async def test_each_subscription_gets_its_own_events(served: ServedBus, client: Peer) -> None:
    await _ok(client, "subscribe", pattern="a", sub=1)
    await _ok(client, "subscribe", pattern="#", sub="all")
    await served.bus.publish("a", 1)

    events = await client.events(2)

    assert {event["sub"] for event in events} == {1, "all"}
    assert {event["seq"] for event in events} == {1}


async def test_nothing_follows_an_unsubscribe(served: ServedBus, client: Peer) -> None:
    await _ok(client, "subscribe", pattern="a", sub=1)
    await _ok(client, "unsubscribe", sub=1)
    await served.bus.publish("a", 1)

    assert (await client.ask("ping", id=1))["type"] == "pong"
    assert (await client.ask("unsubscribe", sub=1, id=2))["error"]["code"] == "subscription.unknown"


async def test_under_load_many_events_share_a_frame_in_order(served: ServedBus, client: Peer) -> None:
    await _ok(client, "subscribe", pattern="#")
    count = 5_000
    for start in range(0, count, 500):
        messages = [{"topic": "load", "payload": number} for number in range(start, start + 500)]
        await client.send("publish_batch", messages=messages)

    events = await client.events(count)

    assert [event["payload"] for event in events] == list(range(count))
    assert [event["seq"] for event in events] == list(range(1, count + 1))
    assert len(client.sizes) < count / 50


async def test_a_lone_event_is_an_object_and_not_an_array(served: ServedBus, client: Peer) -> None:
    await _ok(client, "subscribe", pattern="#")
    await client.next_of("caught_up")
    await served.bus.publish("a", 1)

    assert json.loads(await client.socket.recv())["type"] == "event"


async def test_publishes_are_answered_in_order_and_stored_in_order(client: Peer) -> None:
    for number in range(1_500):
        await client.send("publish", id=number, data={"topic": "a", "payload": number})

    answers = [await client.next() for _ in range(1_500)]

    assert [answer["id"] for answer in answers] == list(range(1_500))
    assert [answer["seq"] for answer in answers] == list(range(1, 1_501))
    assert len(client.sizes) < 1_500


async def test_an_array_of_frames_is_done_in_order(client: Peer) -> None:
    publish = {"type": "publish", "data": {"topic": "a", "payload": 1}}
    await client.socket.send(json.dumps([{**publish, "id": 1}, {"type": "nonsense", "id": 2}, {**publish, "id": 3}]))

    answers = [await client.next() for _ in range(3)]

    assert [(answer["type"], answer["id"]) for answer in answers] == [("ok", 1), ("error", 2), ("ok", 3)]


async def test_a_batch_is_all_or_nothing(served: ServedBus, client: Peer) -> None:
    good, bad = {"topic": "a", "payload": 1}, {"topic": "a.*", "payload": 1}

    refused = await client.ask("publish_batch", id=1, messages=[good, bad, good])
    stored = await client.ask("publish_batch", id=2, messages=[good, good])
    empty = await client.ask("publish_batch", id=3, messages=[])

    assert refused["error"]["code"] == "topic.invalid"
    assert [result["seq"] for result in stored["results"]] == [1, 2]
    assert empty == {"type": "ok", "id": 3, "results": []}


async def test_a_live_event_has_seq_0_and_is_not_stored(served: ServedBus, client: Peer) -> None:
    await _ok(client, "subscribe", pattern="a", sub=1)
    await client.next_of("caught_up")
    await client.send("publish", id=1, data={"topic": "a", "payload": "now", "durable": False})

    frames = [await client.next(), await client.next()]

    [ok] = [frame for frame in frames if frame["type"] == "ok"]
    [event] = [frame for frame in frames if frame["type"] == "event"]
    assert (ok["seq"], ok["duplicate"]) == (None, False)
    assert (event["seq"], event["payload"], event["message_id"]) == (0, "now", ok["message_id"])
    assert (await served.bus.head()).last_seq == 0


async def test_a_delayed_event_has_no_seq_yet_and_comes_later(served: ServedBus, client: Peer) -> None:
    await _ok(client, "subscribe", pattern="a")

    ok = await _ok(client, "publish", data={"topic": "a", "payload": "later", "delay": 0.05})

    assert ok["seq"] is None
    assert (await client.events(1))[0]["payload"] == "later"


async def test_credit_limits_what_is_sent(served: ServedBus, client: Peer) -> None:
    await served.bus.publish_many([served.bus.draft("a", number) for number in range(10)])
    await _ok(client, "subscribe", pattern="a", sub=1, after=0, credit=3)

    assert [event["payload"] for event in await client.events(3)] == [0, 1, 2]
    assert (await client.ask("ping"))["type"] == "pong"
    await client.send("credit", sub=1, credit=2)
    assert [event["payload"] for event in await client.events(2)] == [3, 4]
    assert (await client.ask("ping"))["type"] == "pong"
    await client.send("credit", sub=1, credit=100)
    assert [event["payload"] for event in await client.events(5)] == [5, 6, 7, 8, 9]


async def test_acks_name_events_by_seq(served: ServedBus, client: Peer) -> None:
    receipts = await served.bus.publish_many([served.bus.draft("a", number) for number in range(4)])

    one = await client.ask("ack", id=1, seq=1, message_id=str(receipts[0].message_id))
    several = await client.ask("ack", id=2, seqs=[1, 2])
    mismatch = await client.ask("ack", id=3, seq=3, message_id=str(receipts[0].message_id))
    missing = await client.ask("ack", id=4, seq=99)

    assert one == {"type": "ok", "id": 1, "acked": 1}
    assert several == {"type": "ok", "id": 2, "acked": 2}
    assert (mismatch["id"], mismatch["error"]["code"]) == (3, "ack.mismatch")
    assert (missing["id"], missing["error"]["code"]) == (4, "event.not_found")
    assert [(await served.bus.get(seq)).status for seq in range(1, 5)] == ["processed"] * 2 + ["pending"] * 2


async def test_an_ack_up_to_marks_what_this_subscription_was_sent(served: ServedBus, client: Peer) -> None:
    for number in range(6):
        await served.bus.publish("a" if number % 2 else "b", number)
    await _ok(client, "subscribe", pattern="a", sub=1, after=0, credit=2)
    assert [event["seq"] for event in await client.events(2)] == [2, 4]

    first = await client.ask("ack", id=1, sub=1, up_to=3)
    rest = await client.ask("ack", id=2, sub=1, up_to=99)
    again = await client.ask("ack", id=3, sub=1, up_to=99)

    assert (first["acked"], rest["acked"], again["acked"]) == (1, 1, 0)
    statuses = [(await served.bus.get(seq)).status for seq in range(1, 7)]
    assert statuses == ["pending", "processed", "pending", "processed", "pending", "pending"]


async def test_an_ack_without_an_id_is_applied(served: ServedBus, client: Peer) -> None:
    await served.bus.publish("a", 1)

    await client.send("ack", seq=1)

    await eventually(lambda: _status(served, 1, "processed"))


async def test_a_failed_ack_without_an_id_is_reported(client: Peer) -> None:
    error = await client.ask("ack", seq=5)

    assert (error["type"], error["error"]["code"]) == ("error", "event.not_found")
    assert "id" not in error


async def test_processed_events_are_replayed_on_request(served: ServedBus, client: Peer) -> None:
    await served.bus.publish("a", 1)
    await client.ask("ack", id=1, seq=1)

    await _ok(client, "subscribe", pattern="a", sub=1, after=0)
    assert (await client.next())["type"] == "caught_up"
    await _ok(client, "subscribe", pattern="a", sub=2, after=0, include_processed=True)
    assert (await client.next())["seq"] == 1


async def test_another_epoch_is_told_and_reading_starts_over(served: ServedBus, client: Peer) -> None:
    await served.bus.publish("a", 1)

    other = "0192f0c1-2d3e-7a4b-8c5d-6e7f8091a2b3"
    await _ok(client, "subscribe", pattern="a", sub=1, after=500, epoch=other)

    gap = await client.next()
    assert (gap["type"], gap["sub"], gap["reason"]) == ("gap", 1, "epoch")
    assert (await client.events(1))[0]["seq"] == 1


async def test_reading_from_a_time(served: ServedBus, client: Peer) -> None:
    await served.bus.publish("a", 1)

    await _ok(client, "subscribe", pattern="a", **{"from": "2001-01-01T00:00:00Z"})

    assert (await client.events(1))[0]["seq"] == 1


async def test_an_idle_connection_gets_heartbeats_with_the_head(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.05) as served, served.v1() as client:
        await client.next_of("welcome")
        await _ok(client, "subscribe", pattern="a.#")
        await client.next_of("caught_up")
        await served.bus.publish("other", 1)

        async def has_heard_of_it() -> bool:
            return bool((await client.next_of("heartbeat"))["head"] == 1)

        await eventually(has_heard_of_it)


async def test_a_heartbeat_comes_while_a_subscription_waits_for_credit(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.05) as served, served.v1() as client:
        await client.send("subscribe", pattern="a", credit=1)
        await client.next_of("caught_up")
        await served.bus.publish("a", 1)
        await served.bus.publish("a", 2)
        await client.events(1)

        await client.next_of("heartbeat")


async def test_events_are_marked_as_they_are_sent_with_auto_ack(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, auto_ack=True) as served:
        async with served.v1() as client:
            await client.next_of("welcome")
            await served.bus.publish_many([served.bus.draft("a", number) for number in range(50)])
            await _ok(client, "subscribe", pattern="a", after=0)
            await client.events(50)
            await eventually(lambda: _status(served, 50, "processed"))

        async with served.v1() as client:
            await client.next_of("welcome")
            await _ok(client, "subscribe", pattern="a", after=0)
            assert (await client.next())["type"] == "caught_up"


async def test_many_connections_see_the_same_order(served: ServedBus) -> None:
    async def read(client: Peer) -> list[tuple[int, Any]]:
        return [(event["seq"], event["payload"]) for event in await client.events(400)]

    async with served.v1() as one, served.v1() as two, served.plain() as three:
        for client in (one, two, three):
            await client.send("subscribe", pattern="#", starting_seq=0)
        for number in range(200):
            await one.send("publish", data={"topic": "a", "payload": number})
            await two.send("publish", data={"topic": "b", "payload": number})

        seen = await asyncio.gather(read(one), read(two), read(three))

    assert seen[0] == seen[1] == seen[2]
    assert [seq for seq, _ in seen[0]] == list(range(1, 401))


async def _ok(client: Peer, kind: str, **fields: Any) -> dict[str, Any]:
    """Ask, pass over events, and return the `ok`."""
    await client.send(kind, id=99, **fields)
    return await client.next_of("ok")


async def _status(served: ServedBus, seq: int, status: str) -> bool:
    return (await served.bus.get(seq)).status == status


async def test_a_resumed_subscription_gets_what_others_processed_meanwhile(served: ServedBus, client: Peer) -> None:
    await served.bus.publish("a", "processed before the first subscription")
    await served.bus.publish("a", "processed while the reader was away")
    await client.ask("ack", id=1, seq=1)
    began = (await client.ask("subscribe", id=2, pattern="a", sub=1, after=0, credit=1))["processed_before"]
    await client.ask("ack", id=3, seq=2)

    await client.ask("subscribe", id=4, pattern="a", sub=2, after=0, processed_before=began)

    assert (await client.next_of("event"))["seq"] == 2
