"""Groups with the client: members share a group's events, settle them, and lose them with their connection."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventbus_fastapi.client import ClientConfig, EventBusClient, GroupMessage
from eventbus_fastapi.client.group import GroupSubscription
from eventbus_fastapi.errors import InvalidInput, LeaseLost, NotRunning, RemoteError
from eventbus_fastapi.events import Event
from eventbus_fastapi.store.group import DeadLetter
from tests.client.scripted import Frame, Peer, ScriptedServer, error, event
from tests.server.sockets import ServedBus, serving_bus
from tests.waiting import eventually


class UserCreated(Event, topic="user.created"):
    id: int


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path) as served:
        yield served


@pytest.fixture
async def member(bus: ServedBus) -> AsyncIterator[EventBusClient]:
    async with client_of(bus) as client:
        yield client


def client_of(bus: ServedBus) -> EventBusClient:
    return EventBusClient(
        ClientConfig(url=bus.served.ws, reconnect_interval=0.01, max_reconnect_interval=0.05, proxy=None)
    )


async def publish(bus: ServedBus, count: int) -> None:
    await bus.bus.publish_many([("user.created", {"id": number}) for number in range(1, count + 1)])


async def dead_letters(bus: ServedBus) -> list[DeadLetter]:
    groups = bus.bus.node.store.groups
    return await groups.dead_letters(await groups.get("user-sync"))


async def is_done(bus: ServedBus) -> bool:
    """Whether the group has nothing left to do."""
    groups = bus.bus.node.store.groups
    figures = await groups.figures(await groups.get("user-sync"))
    return (figures.in_flight, figures.retries) == (0, 0)


# --- subscribing ---------------------------------------------------------------------------------


async def test_a_member_takes_and_acks(bus: ServedBus, member: EventBusClient) -> None:
    async with member.subscribe("user.*", group="user-sync") as subscription:
        await publish(bus, 3)
        for number in (1, 2, 3):
            message = await anext(subscription)
            assert (message.payload, message.attempt) == ({"id": number}, 1)
            await message.ack()
            await message.ack()
        assert await is_done(bus)
    assert subscription.answer == {
        "patterns": ["user.*"],
        "max_attempts": 10,
        "created": True,
        "credit": 100,
        "ack_wait": 30,
    }


async def test_messages_have_the_type_of_their_event(bus: ServedBus, member: EventBusClient) -> None:
    async with member.subscribe(UserCreated, group="user-sync") as subscription:
        await publish(bus, 1)
        assert (await anext(subscription)).payload == UserCreated(id=1)


async def test_two_clients_share_a_group(bus: ServedBus, member: EventBusClient) -> None:
    async with (
        client_of(bus) as other,
        member.subscribe("#", group="user-sync", credit=2) as first,
        other.subscribe("#", group="user-sync", credit=2) as second,
    ):
        await publish(bus, 4)
        taken = [await anext(subscription) for subscription in (first, second, first, second)]
        assert sorted(message.seq for message in taken) == [1, 2, 3, 4]
        for message in taken:
            await message.ack()
        assert await is_done(bus)


async def test_a_nack_brings_the_message_again_with_the_next_attempt(bus: ServedBus, member: EventBusClient) -> None:
    async with member.subscribe("#", group="user-sync", max_attempts=2) as subscription:
        await publish(bus, 1)
        message = await anext(subscription)
        await message.nack(delay=0.05, reason="busy")
        with pytest.raises(LeaseLost):
            await message.reject()
        message = await anext(subscription)
        assert message.attempt == 2
        await message.nack(reason="still busy")
        (letter,) = await dead_letters(bus)
    assert [each["message"] for each in letter.errors] == ["busy", "still busy"]


async def test_a_rejected_message_is_a_dead_letter(bus: ServedBus, member: EventBusClient) -> None:
    async with member.subscribe("#", group="user-sync") as subscription:
        await publish(bus, 1)
        await (await anext(subscription)).reject("no such user")
        (letter,) = await dead_letters(bus)
    assert letter.errors[0]["message"] == "no such user"


async def test_an_extended_message_stays_the_member_s(bus: ServedBus, member: EventBusClient) -> None:
    async with member.subscribe("#", group="user-sync", ack_wait=0.5) as subscription:
        await publish(bus, 1)
        message = await anext(subscription)
        for _ in range(8):
            await message.extend()
            await asyncio.sleep(0.1)  # the ack wait is time that passes
        await message.ack()
        assert await is_done(bus)


async def test_a_message_that_was_held_too_long_cannot_be_acked(bus: ServedBus, member: EventBusClient) -> None:
    async with member.subscribe("#", group="user-sync", ack_wait=0.2, credit=1) as subscription:
        await publish(bus, 1)
        late = await anext(subscription)
        await eventually(lambda: late.is_lost)
        with pytest.raises(LeaseLost):
            await late.ack()
        again = await anext(subscription)
        assert again.attempt == 2
        await again.ack()
        assert await is_done(bus)


async def test_what_waited_too_long_to_be_taken_is_passed_over(bus: ServedBus, member: EventBusClient) -> None:
    async with member.subscribe("#", group="user-sync", ack_wait=0.2, credit=2) as subscription:
        await publish(bus, 2)
        first = await anext(subscription)
        await eventually(lambda: first.is_lost)
        again = await anext(subscription)
        assert (again.seq, again.attempt) == (1, 2)
        with pytest.raises(LeaseLost):
            await first.ack()
        other = await anext(subscription)
        assert (other.seq, other.attempt) == (2, 2)
        await again.ack()
        await other.ack()
        assert await is_done(bus)


async def test_a_group_that_the_server_refuses_raises(member: EventBusClient) -> None:
    with pytest.raises(RemoteError) as caught:
        async with member.subscribe("#", group="a b"):
            pass
    assert caught.value.code == "group.invalid"


@pytest.mark.parametrize(
    "options",
    [
        {"group": ""},
        {"group": "g", "credit": 0},
        {"group": "g", "ack_wait": 0.0},
        {"group": "g", "ack_wait": True},
        {"group": "g", "max_attempts": 101},
        {"group": "g", "overflow": "catch_up"},
        {"credit": 5},
        {"ack_wait": 5},
    ],
)
async def test_options_that_do_not_fit_are_refused_at_the_call(client: EventBusClient, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        client.subscribe("#", **options)


async def test_a_member_that_is_let_go_gives_its_messages_back(bus: ServedBus, member: EventBusClient) -> None:
    subscription = member.subscribe("#", group="user-sync")
    await subscription.wait_started()
    await publish(bus, 1)
    assert (await anext(subscription)).attempt == 1
    del subscription
    gc.collect()
    async with member.subscribe("#", group="user-sync") as subscription:
        assert (await anext(subscription)).attempt == 2


# --- connections ---------------------------------------------------------------------------------


async def joined(peer: Peer) -> Frame:
    """Confirm the membership that the client asks for next, and return its frame."""
    frame = await peer.expect("subscribe")
    await peer.ok(
        frame, sub=frame["sub"], patterns=["#"], max_attempts=10, created=True, credit=100, ack_wait=30, group="g"
    )
    return frame


async def test_a_member_joins_again_without_a_position_and_what_it_held_is_lost(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("#", group="g", start="earliest", credit=5)
    first = await server.welcome()
    asked = await joined(first)
    await first.send(event(1, attempt=1), event(2, attempt=3))
    message = await anext(subscription)
    acking = asyncio.create_task(message.ack())
    ack = await first.expect("ack")
    assert (ack["sub"], ack["seq"], ack["attempt"]) == (1, 1, 1)
    first.drop()
    with pytest.raises(LeaseLost):
        await acking
    second = await server.welcome()
    again = await joined(second)
    assert {**again, "id": 0} == {**asked, "id": 0}
    assert (again["group"], again["from"], again["credit"]) == ("g", "earliest", 5)
    await second.send(event(1, attempt=2))
    with pytest.raises(LeaseLost):
        await message.ack()
    message = await anext(subscription)
    assert (message.seq, message.attempt) == (1, 2)


async def test_an_ack_that_is_cancelled_was_said_and_can_be_waited_for_again(
    server: ScriptedServer, client: EventBusClient
) -> None:
    """It said that the lease was lost: the server had done it, and knew nothing of the event any more."""
    subscription = client.subscribe("#", group="g")
    peer, message, ack = await acking_and_cancelled(server, subscription)
    assert message.is_settled
    again = asyncio.create_task(message.ack())
    await asyncio.sleep(0)
    assert not again.done()

    await peer.send({"type": "ok", "id": ack["id"], "acked": 1})

    await again
    await message.ack()
    with pytest.raises(LeaseLost):
        await message.nack()


async def test_an_ack_that_fails_after_it_was_cancelled_can_be_said_again(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("#", group="g")
    peer, message, ack = await acking_and_cancelled(server, subscription)

    await peer.refuse(ack, error("server.error"))
    await eventually(lambda: not message.is_settled)
    again = asyncio.create_task(message.ack())
    ack = await peer.expect("ack")
    await peer.send({"type": "ok", "id": ack["id"], "acked": 1})

    await again
    assert message.is_settled


async def test_an_ack_that_is_refused_after_it_was_cancelled_has_lost_the_message(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("#", group="g")
    peer, message, ack = await acking_and_cancelled(server, subscription)

    await peer.refuse(ack, error("lease.lost"))

    await eventually(lambda: message.is_lost)
    with pytest.raises(LeaseLost):
        await message.ack()


async def acking_and_cancelled(
    server: ScriptedServer, subscription: GroupSubscription
) -> tuple[Peer, GroupMessage, Frame]:
    """Have an ack sent and whoever waits for its answer cancelled; return the ack."""
    peer = await server.welcome()
    await joined(peer)
    await peer.send(event(1, attempt=1))
    message = await anext(subscription)
    acking = asyncio.create_task(message.ack())
    ack = await peer.expect("ack")
    acking.cancel()
    await asyncio.wait([acking])
    return peer, message, ack


async def test_a_server_without_groups_is_told_of_by_its_refusal(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("#", group="g")
    peer = await server.welcome()
    await peer.refuse(await peer.expect("subscribe"), error("feature.unsupported"))
    with pytest.raises(RemoteError):
        await anext(subscription)


@pytest.mark.parametrize("attempt", [None, 0, "1", True])
async def test_an_event_without_an_attempt_is_no_group_s(
    server: ScriptedServer, client: EventBusClient, attempt: object
) -> None:
    subscription = client.subscribe("#", group="g")
    peer = await server.welcome()
    await joined(peer)
    await peer.send(event(1, attempt=attempt))
    assert await peer.closed() == 1002
    await joined(await server.welcome())
    assert subscription.group == "g"


# --- consuming -----------------------------------------------------------------------------------


async def test_a_handler_gets_every_message_and_they_are_acked(bus: ServedBus, member: EventBusClient) -> None:
    handled: list[int] = []

    async def handle(message: GroupMessage) -> None:
        handled.append(message.payload.id)

    async with member.consume(handle, UserCreated, group="user-sync", concurrency=3):
        await publish(bus, 20)
        await eventually(lambda: len(handled) == 20)
        await eventually(lambda: is_done(bus))
    assert sorted(handled) == list(range(1, 21))


async def test_handlers_run_at_the_same_time_up_to_the_concurrency(bus: ServedBus, member: EventBusClient) -> None:
    running = 0
    most = 0
    go_on = asyncio.Event()

    async def handle(message: GroupMessage) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await go_on.wait()
        running -= 1

    async with member.consume(handle, "#", group="user-sync", concurrency=3):
        await publish(bus, 6)
        await eventually(lambda: running == 3)
        go_on.set()
        await eventually(lambda: is_done(bus))
    assert most == 3


async def test_a_handler_that_raises_is_tried_again_and_its_error_is_on_record(
    bus: ServedBus, member: EventBusClient
) -> None:
    def handle(message: GroupMessage) -> None:
        raise ValueError("no such user")

    async with member.consume(handle, "#", group="user-sync", max_attempts=1):
        await publish(bus, 1)
        (letter,) = await eventually(lambda: dead_letters(bus))
    assert letter.errors[0]["message"] == "ValueError: no such user"


async def test_a_handler_may_settle_its_message_itself(bus: ServedBus, member: EventBusClient) -> None:
    attempts: list[int] = []

    async def handle(message: GroupMessage) -> None:
        attempts.append(message.attempt)
        if message.attempt == 1:
            await message.nack(delay=0)
        else:
            await message.reject("enough")

    async with member.consume(handle, "#", group="user-sync"):
        await publish(bus, 1)
        await eventually(lambda: dead_letters(bus))
    assert attempts == [1, 2]


async def test_a_handler_may_take_longer_than_the_ack_wait(bus: ServedBus, member: EventBusClient) -> None:
    attempts: list[int] = []

    async def handle(message: GroupMessage) -> None:
        attempts.append(message.attempt)
        await asyncio.sleep(1.0)  # what takes long

    async with member.consume(handle, "#", group="user-sync", concurrency=1, ack_wait=0.4):
        await publish(bus, 2)
        await eventually(lambda: len(attempts) == 2)
        await eventually(lambda: is_done(bus))
    assert attempts == [1, 1]


async def test_a_handler_whose_message_is_lost_is_cancelled(server: ScriptedServer, client: EventBusClient) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def handle(message: GroupMessage) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    consumer = client.consume(handle, "#", group="g")
    peer = await server.welcome()
    await joined(peer)
    await peer.send(event(1, attempt=1))
    await started.wait()
    await peer.send({"type": "lost", "sub": 1, "seqs": [1]})
    await cancelled.wait()
    await consumer.close()


async def test_closing_lets_handlers_end_and_acks_them(bus: ServedBus, member: EventBusClient) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def handle(message: GroupMessage) -> None:
        started.set()
        await go_on.wait()

    consumer = member.consume(handle, "#", group="user-sync")
    await consumer.subscription.wait_started()
    await publish(bus, 1)
    await started.wait()
    closing = asyncio.create_task(consumer.close())
    go_on.set()
    await closing
    assert await is_done(bus)
    await consumer


async def test_closing_the_client_ends_its_consumers_and_leaves_no_task(bus: ServedBus) -> None:
    started = asyncio.Event()

    async def handle(message: GroupMessage) -> None:
        started.set()
        await asyncio.Event().wait()

    before = asyncio.all_tasks()
    client = EventBusClient(ClientConfig(url=bus.served.ws, close_timeout=0.1, proxy=None))
    consumer = client.consume(handle, "#", group="user-sync")
    await consumer.subscription.wait_started()
    await publish(bus, 1)
    await started.wait()
    await client.close()
    await consumer.wait()
    assert [task for task in asyncio.all_tasks() - before if "eventbus-c" in task.get_name()] == []
    with pytest.raises(NotRunning):
        client.consume(handle, "#", group="user-sync")


async def test_a_consumer_whose_group_is_deleted_says_so(bus: ServedBus, member: EventBusClient) -> None:
    consumer = member.consume(print, "#", group="user-sync")
    await consumer.subscription.wait_started()
    await bus.bus.node.store.groups.delete("user-sync")
    with pytest.raises(RemoteError) as caught:
        await consumer
    assert caught.value.code == "group.not_found"


@pytest.mark.parametrize("concurrency", [0, -1, True, "3", 1.5])
async def test_a_concurrency_that_is_none_is_refused(client: EventBusClient, concurrency: Any) -> None:
    with pytest.raises(InvalidInput):
        client.consume(print, "#", group="g", concurrency=concurrency)
