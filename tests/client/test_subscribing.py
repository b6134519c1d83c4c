"""What a program reads, and how it acknowledges it."""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from eventbus_fastapi.client import ClientSubscription, EventBusClient
from eventbus_fastapi.errors import (
    InvalidInput,
    InvalidPattern,
    InvalidPayload,
    LogGap,
    NotRunning,
    RemoteError,
)
from eventbus_fastapi.events import Event, Message
from tests.client.scripted import EPOCH, Peer, ScriptedServer, error, event
from tests.waiting import eventually


class UserCreated(Event, topic="user.created"):
    n: int


class UserDeleted(Event, topic="user.deleted"):
    n: int


async def take(subscription: ClientSubscription, count: int) -> list[Message]:
    return [await anext(subscription) for _ in range(count)]


def seqs(messages: list[Message]) -> list[int]:
    return [message.seq for message in messages]


async def test_messages_come_in_order_from_single_frames_and_arrays(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("user.*", "#.log")
    peer = await server.welcome()
    frame = await peer.subscribed(after=4)
    assert frame["patterns"] == ["user.*", "#.log"]
    await peer.send(event(5))
    await peer.send(event(6), event(8))
    messages = await take(subscription, 3)
    assert seqs(messages) == [5, 6, 8]
    assert messages[0].payload == {"n": 5}
    assert messages[0].message_id == UUID(int=5)
    assert messages[0].timestamp == datetime(2026, 1, 1, tzinfo=UTC)


async def test_subscribing_needs_no_waiting(server: ScriptedServer, client: EventBusClient) -> None:
    client_side = client.subscribe("user.*")
    publish = asyncio.create_task(client.publish("user.created", 1))
    peer = await server.welcome()
    await peer.expect("subscribe")
    await peer.expect("publish")
    publish.cancel()
    await client_side.aclose()


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({}, "now"),
        ({"start": "earliest"}, "earliest"),
        ({"start": 7}, 7),
        ({"after": 0}, 0),
        ({"start": datetime(2026, 1, 1, tzinfo=UTC)}, "2026-01-01T00:00:00Z"),
    ],
)
async def test_a_subscription_starts_where_it_is_told_to(
    server: ScriptedServer, client: EventBusClient, options: dict[str, Any], start: object
) -> None:
    subscription = client.subscribe("t", **options)
    peer = await server.welcome()
    assert (await peer.expect("subscribe"))["from"] == start
    await subscription.aclose()


async def test_the_other_options_reach_the_server(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe(
        "t", after=3, epoch=EPOCH, include_processed=True, overflow="drop_oldest", buffer=50
    )
    peer = await server.welcome()
    frame = await peer.expect("subscribe")
    wanted = {"epoch": str(EPOCH), "include_processed": True, "overflow": "drop_oldest", "buffer": 50}
    assert wanted.items() <= frame.items()
    await subscription.aclose()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": 1, "after": 1}, "give start or after, not both"),
        ({"start": "latest"}, "start: expected 'now', 'earliest', a seq of 0 or more or a time, got 'latest'"),
        ({"start": datetime(2026, 1, 1)}, "start: expected a time with its zone"),  # noqa: DTZ001
        ({"start": 1.0}, "start: .* got 1.0"),
        ({"after": -1}, "after: expected a seq of 0 or more, got -1"),
        ({"after": True}, "after: .* got True"),
        ({"after": 2**63}, "after: "),
        ({"after": "now"}, "after: .* got 'now'"),
        ({"after": 1, "epoch": "x"}, "epoch: expected None or a UUID, got 'x'"),
        ({"after": 1, "epoch": str(EPOCH)}, "epoch: expected None or a UUID"),
        ({"overflow": "explode"}, "overflow: expected None or one of catch_up, .* got 'explode'"),
        ({"overflow": ["catch_up"]}, "overflow: "),
        ({"buffer": 0}, "buffer: expected None or an integer above 0, got 0"),
        ({"buffer": 1.5}, "buffer: .* got 1.5"),
        ({"buffer": True}, "buffer: .* got True"),
        ({"include_processed": "yes"}, "include_processed: expected True or False, got 'yes'"),
    ],
)
async def test_an_option_that_makes_no_sense_is_refused_at_once(
    client: EventBusClient, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        client.subscribe("t", **options)


async def test_a_bad_pattern_is_refused_at_once(client: EventBusClient) -> None:
    with pytest.raises(InvalidPattern, match="segment 2 is empty"):
        client.subscribe("orders.")
    with pytest.raises(InvalidInput, match="at least one"):
        client.subscribe()
    with pytest.raises(InvalidInput, match="at most 100, got 101"):
        client.subscribe(*(f"t.{number}" for number in range(101)))


@pytest.mark.parametrize("pattern", [5, int, b"#", ["a"], None, UserCreated(n=1)], ids=repr)
async def test_what_is_neither_a_string_nor_an_event_class_is_no_pattern(client: EventBusClient, pattern: Any) -> None:
    with pytest.raises(InvalidPattern, match=f"expected a str or an Event class, got {type(pattern).__name__}"):
        client.subscribe(pattern)


async def test_the_position_is_that_of_the_last_event_taken(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    assert repr(subscription) == "<ClientSubscription t position=None>"
    peer = await server.welcome()
    await peer.subscribed(after=10)
    assert await subscription.wait_started() == 10
    await peer.send(event(11), event(12), {"type": "caught_up", "sub": 1, "seq": 20})
    await anext(subscription)
    assert (subscription.after, subscription.position, subscription.epoch) == (10, 11, EPOCH)
    await anext(subscription)
    waiting = asyncio.ensure_future(anext(subscription))
    await eventually(lambda: subscription.position == 20)
    waiting.cancel()


async def test_entering_a_subscription_waits_until_the_server_has_it(
    server: ScriptedServer, client: EventBusClient
) -> None:
    async def enter() -> int | None:
        async with client.subscribe("t") as subscription:
            return subscription.after

    entering = asyncio.create_task(enter())
    peer = await server.welcome()
    await peer.subscribed(after=3)
    assert await entering == 3
    assert (await peer.expect("unsubscribe"))["sub"] == 1


async def test_a_refused_subscription_raises_the_server_s_error(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.refuse(await peer.expect("subscribe"), error("subscription.too_many", status=429))
    with pytest.raises(RemoteError) as caught:
        await anext(subscription)
    assert caught.value.code == "subscription.too_many"
    with pytest.raises(RemoteError):
        await subscription.wait_started()


async def test_a_subscription_refused_for_the_moment_is_tried_again(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t", after=5)
    peer = await server.welcome()
    await peer.refuse(await peer.expect("subscribe"), error("store.unavailable", retry=True, retry_after=0.01))
    assert (await peer.subscribed(after=5))["from"] == 5
    assert await subscription.wait_started() == 5


async def test_two_subscriptions_get_the_same_event_each_on_its_own(
    server: ScriptedServer, client: EventBusClient
) -> None:
    users, everything = client.subscribe("user.*"), client.subscribe("#")
    peer = await server.welcome()
    await peer.subscribed()
    await peer.subscribed()
    await peer.send(event(1, sub=1), event(1, sub=2), event(2, sub=2, topic="other"))
    assert seqs(await take(everything, 2)) == [1, 2]
    assert seqs(await take(users, 1)) == [1]


async def test_leaving_a_loop_over_a_subscription_that_nothing_else_holds_ends_it(
    server: ScriptedServer, client: EventBusClient
) -> None:
    async def read() -> None:
        async for _ in client.subscribe("t"):
            break

    reading = asyncio.create_task(read())
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1))
    await reading
    assert (await peer.expect("unsubscribe"))["sub"] == 1
    await peer.send(event(2))  # it was on its way: nobody minds


async def test_a_loop_that_was_left_may_be_begun_again_and_nothing_is_lost(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1), event(2))
    seen = []
    for _ in range(3):
        async for message in subscription:
            seen.append(message.seq)
            break
        publish = asyncio.create_task(client.publish("t", "no unsubscribe comes before"))
        await peer.published(await peer.expect("publish"), 3)
        await publish
        await peer.send(event(3))
    assert seen == [1, 2, 3]


async def test_a_loop_that_was_cancelled_may_be_begun_again(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed()
    await subscription.wait_started()

    async def read() -> None:
        async for _ in subscription:
            raise AssertionError("nothing was sent")

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    reading.cancel()
    await asyncio.wait([reading])
    await peer.send(event(1))
    async for message in subscription:
        assert message.seq == 1
        break
    await subscription.aclose()
    await peer.expect("unsubscribe")


async def test_an_iterator_goes_on_after_a_wait_that_timed_out(server: ScriptedServer, client: EventBusClient) -> None:
    iterator = aiter(client.subscribe("t"))
    peer = await server.welcome()
    await peer.subscribed()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(iterator)
    await peer.send(event(1))
    assert (await anext(iterator)).seq == 1


async def test_inside_a_with_block_a_loop_may_be_left_and_begun_again(
    server: ScriptedServer, client: EventBusClient
) -> None:
    async def read() -> list[int]:
        seen = []
        async with client.subscribe("t") as subscription:
            for _ in range(2):
                async for message in subscription:
                    seen.append(message.seq)
                    break
        return seen

    reading = asyncio.create_task(read())
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1), event(2), event(3))
    assert await reading == [1, 2]
    await peer.expect("unsubscribe")


async def test_a_subscription_that_nobody_refers_to_is_ended(server: ScriptedServer, client: EventBusClient) -> None:
    client.subscribe("t")
    gc.collect()
    async with asyncio.timeout(5):
        peer = await server.welcome()
        reading = client.subscribe("other")
        assert (await peer.subscribed())["patterns"] == ["other"]
    await reading.aclose()


async def test_iteration_ends_with_aclose_and_with_the_client(server: ScriptedServer, client: EventBusClient) -> None:
    async def read(subscription: ClientSubscription) -> int:
        return len([message async for message in subscription])

    first, second = client.subscribe("a"), client.subscribe("b")
    readings = [asyncio.create_task(read(subscription)) for subscription in (first, second)]
    peer = await server.welcome()
    await peer.subscribed()
    await peer.subscribed()
    await first.aclose()
    assert await readings[0] == 0
    await client.close()
    assert await readings[1] == 0
    with pytest.raises(StopAsyncIteration):
        await anext(second)
    with pytest.raises(NotRunning):
        client.subscribe("c")


async def test_cancelling_a_wait_for_a_message_loses_none(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(subscription)
    await peer.send(event(1), event(2))
    assert seqs(await take(subscription, 2)) == [1, 2]


# --- acks ---


async def test_an_ack_returns_when_the_server_has_confirmed_it(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1))
    acknowledging = asyncio.create_task((await anext(subscription)).ack())
    frame = await peer.expect("ack")
    assert (frame["seq"], frame["message_id"]) == (1, str(UUID(int=1)))
    assert not acknowledging.done()
    await peer.ok(frame, acked=1)
    await acknowledging


async def test_a_refused_ack_raises(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1))
    acknowledging = asyncio.create_task(client.ack(await anext(subscription)))
    await peer.refuse(await peer.expect("ack"), error("ack.mismatch", status=409))
    with pytest.raises(RemoteError, match=r"ack\.mismatch"):
        await acknowledging


async def test_an_ack_that_was_not_answered_is_sent_again(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1))
    acknowledging = asyncio.create_task((await anext(subscription)).ack())
    await peer.expect("ack")
    peer.drop()
    peer = await server.welcome()
    await peer.subscribed(after=1)
    await peer.ok(await peer.expect("ack"), acked=1)
    await acknowledging


async def test_an_event_without_storage_is_delivered_and_needs_no_ack(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed(after=5)
    await peer.send(event(0), event(0), event(6))
    live, _, stored = await take(subscription, 3)
    assert (live.is_durable, stored.is_durable) == (False, True)
    await live.ack()
    assert subscription.position == 6


# --- gaps ---

GAP = {"type": "gap", "sub": 1, "first_seq": 2, "last_seq": 9, "reason": "retention"}


async def test_a_gap_is_raised_at_its_place_and_reading_goes_on(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("t", after=0)
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1), GAP, event(10))
    assert seqs(await take(subscription, 1)) == [1]
    with pytest.raises(LogGap) as caught:
        [_ async for _ in subscription]
    assert (caught.value.first_seq, caught.value.last_seq, caught.value.reason) == (2, 9, "retention")
    assert subscription.position == 9
    async for message in subscription:
        assert message.seq == 10
        break


async def test_on_gap_takes_gaps_instead(server: ScriptedServer, client: EventBusClient) -> None:
    gaps: list[LogGap] = []
    subscription = client.subscribe("t", after=0, on_gap=gaps.append)
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1), GAP, event(10))
    assert seqs(await take(subscription, 2)) == [1, 10]
    assert [(gap.first_seq, gap.last_seq) for gap in gaps] == [(2, 9)]


# --- typed payloads ---


async def test_an_event_class_is_its_topic_and_the_type_of_its_payload(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe(UserCreated, UserDeleted)
    peer = await server.welcome()
    assert (await peer.subscribed())["patterns"] == ["user.created", "user.deleted"]
    await peer.send(event(1), event(2, topic="user.deleted"))
    created, deleted = await take(subscription, 2)
    assert created.payload == UserCreated(n=1)
    assert created.payload is created.payload
    assert deleted.payload == UserDeleted(n=2)


async def test_a_class_without_topic_is_no_pattern(client: EventBusClient) -> None:
    with pytest.raises(InvalidPattern, match="expected a class with a topic"):
        client.subscribe(Event)


async def test_payload_type_decodes_whatever_matches(server: ScriptedServer, client: EventBusClient) -> None:
    subscription = client.subscribe("user.*", payload_type=dict[str, float])
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1))
    (message,) = await take(subscription, 1)
    assert message.payload == {"n": 1.0}
    assert repr(message).startswith("<Message seq=1")


async def test_a_payload_that_does_not_fit_fails_alone_when_it_is_looked_at(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe(UserCreated)
    peer = await server.welcome()
    await peer.subscribed()
    await peer.send(event(1, payload={"n": "many"}), event(2))
    misfit, fits = await take(subscription, 2)
    for _ in range(2):
        with pytest.raises(InvalidPayload, match="UserCreated"):
            _ = misfit.payload
    assert misfit.decode(dict[str, str]) == {"n": "many"}
    assert fits.payload == UserCreated(n=2)


# --- flow control ---


async def credit(peer: Peer) -> int:
    granted: int = (await peer.expect("credit"))["credit"]
    return granted


async def test_credit_follows_what_the_program_takes(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(window=10, close_timeout=0)) as client:
        subscription = client.subscribe("t", after=0)
        peer = await server.welcome()
        assert (await peer.subscribed())["credit"] == 10
        await peer.send(*(event(seq) for seq in range(1, 11)))
        await take(subscription, 4)
        publish = asyncio.create_task(client.publish("t", "no credit frame comes before"))
        await peer.expect("publish")
        await take(subscription, 1)
        assert await credit(peer) == 5
        await take(subscription, 5)
        assert await credit(peer) == 5
        publish.cancel()


async def test_a_program_that_does_not_read_holds_up_nothing_else(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(window=10, close_timeout=0)) as client:
        slow, fast = client.subscribe("a", after=0), client.subscribe("b", after=0)
        peer = await server.welcome()
        await peer.subscribed()
        await peer.subscribed()
        await peer.send(*(event(seq) for seq in range(1, 11)))
        await peer.send(event(11, sub=2))
        assert seqs(await take(fast, 1)) == [11]
        publish = asyncio.create_task(client.publish("t", 1))
        await peer.published(await peer.expect("publish"), 12)
        await publish
        assert seqs(await take(slow, 10)) == list(range(1, 11))
