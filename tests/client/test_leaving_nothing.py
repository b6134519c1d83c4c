"""A client leaves no task, socket or timer behind, whatever it went through."""

from __future__ import annotations

import asyncio
import gc
import os
import weakref
from typing import Any, NamedTuple

import pytest

from eventbus_fastapi.client import EventBusClient
from eventbus_fastapi.errors import NotRunning
from tests.client.scripted import ScriptedServer, event, scripted_server


class Held(NamedTuple):
    """What the process holds."""

    tasks: int
    sockets: int
    timers: int


def held() -> Held:
    loop: Any = asyncio.get_running_loop()
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    return Held(len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd")), len(timers))


async def until_held_is(before: Held) -> None:
    """Wait until nothing more is held than before. `eventually` would count its own timer."""
    for _ in range(1_000):
        await asyncio.sleep(0.005)
        if held() == before:
            return
    raise AssertionError(f"held before: {before}, now: {held()}: {asyncio.all_tasks()}")


class DroppingServer(ScriptedServer):
    """Drops each connection after its welcome, every other one without a close frame."""

    async def drop_each(self) -> None:
        while True:
            peer = await self.welcome()
            if self.accepted % 2:
                peer.drop()
            else:
                await peer.close(1012)


async def test_nothing_is_left_after_a_thousand_reconnects() -> None:
    server = DroppingServer()
    await server.start()
    dropping = asyncio.create_task(server.drop_each())
    before = held()
    client = EventBusClient(server.config(reconnect_interval=0.001, max_reconnect_interval=0.001))
    subscription = client.subscribe("t", after=0)
    publish = asyncio.create_task(client.publish("t", 1))
    most = before
    while server.accepted < 1_000:
        most = Held(*map(max, most, held()))
        await asyncio.sleep(0.005)
    assert most.tasks - before.tasks <= 12, most
    assert most.sockets - before.sockets <= 6, most
    assert most.timers - before.timers <= 8, most
    publish.cancel()
    await subscription.aclose()
    await client.close()
    await until_held_is(before)
    dropping.cancel()
    await server.stop()


async def test_nothing_is_left_after_a_server_that_cannot_be_reached() -> None:
    async with scripted_server() as server:
        config = server.config(reconnect_interval=0.001, max_reconnect_interval=0.001)
    before = held()
    client = EventBusClient(config)
    publish = asyncio.create_task(client.publish("t", 1))
    await asyncio.sleep(0.2)  # it tries again and again
    publish.cancel()
    await client.close()
    assert held() == before


async def test_closing_says_goodbye_to_the_server(server: ScriptedServer) -> None:
    before = held()
    client = EventBusClient(server.config())
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed(after=0)
    await subscription.wait_started()
    closing = asyncio.create_task(client.close())
    assert await peer.closed() == 1000
    await closing
    await until_held_is(before)


async def test_closing_does_not_wait_for_a_server_that_does_not_answer(server: ScriptedServer) -> None:
    client = EventBusClient(server.config())
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.welcome()
    await connecting
    peer.socket.transport.pause_reading()
    async with asyncio.timeout(5):
        await client.close()
    peer.drop()


async def test_closing_twice_and_at_once_is_closing_once(server: ScriptedServer) -> None:
    client = EventBusClient(server.config())
    connecting = asyncio.create_task(client.wait_connected())
    await server.welcome()
    await connecting
    await asyncio.gather(client.close(), client.close())
    await client.close()
    assert not client.connected


async def test_a_client_that_was_never_used_closes_at_once() -> None:
    before = held()
    async with EventBusClient("ws://127.0.0.1:1/ws"):
        assert held() == before


async def test_closing_while_connecting_ends_what_waits(server: ScriptedServer) -> None:
    before = held()
    client = EventBusClient(server.config())
    connecting = asyncio.create_task(client.wait_connected())
    await server.accept()
    await client.close()
    with pytest.raises(NotRunning):
        await connecting
    await until_held_is(before)


async def test_a_cancelled_close_leaves_nothing_either(server: ScriptedServer) -> None:
    before = held()
    client = EventBusClient(server.config(close_timeout=60))
    publish = asyncio.create_task(client.publish("t", 1))
    peer = await server.welcome()
    await peer.expect("publish")
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    with pytest.raises(NotRunning):
        await publish
    await until_held_is(before)


async def test_a_close_that_was_cancelled_while_it_said_goodbye_can_be_done_again(server: ScriptedServer) -> None:
    before = held()
    client = EventBusClient(server.config())
    subscription = client.subscribe("t")
    peer = await server.welcome()
    await peer.subscribed()
    await subscription.wait_started()
    peer.socket.transport.pause_reading()  # so the closing handshake takes its time
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    again = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    async with asyncio.timeout(5):
        await again
        await client.close()
    assert [message async for message in subscription] == []
    peer.drop()
    await until_held_is(before)


async def test_subscriptions_and_messages_do_not_outlive_their_use(
    server: ScriptedServer, client: EventBusClient
) -> None:
    subscription = client.subscribe("t", after=0)
    peer = await server.welcome()
    await peer.subscribed(after=0)
    await peer.send(event(1))
    message = await anext(subscription)
    gone = weakref.ref(subscription)
    await subscription.aclose()
    del subscription, message
    gc.collect()
    assert gone() is None
    assert not client._session._readings
