"""Connections end: slow ones, silent ones, lost ones, all of them; and nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import in_use
from tests.server.sockets import (
    BULK,
    IMPLEMENTATIONS,
    ServedBus,
    has_unread,
    is_left_alone,
    publish_until,
    serving_bus,
    tasks,
)
from tests.waiting import eventually

STALLED: dict[str, Any] = {"max_queue": 1, "ping_interval": None}
"""A client that stops reading from its socket as soon as the test stops reading from it."""


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path, send_timeout=0.2, close_timeout=20) as served:
        yield served


@pytest.mark.parametrize("dialect", ["plain", "v1"])
async def test_a_reader_that_stalls_is_closed_and_learns_why_once_it_reads(served: ServedBus, dialect: str) -> None:
    async with served.plain(**STALLED) if dialect == "plain" else served.v1(**STALLED) as slow:
        await slow.send("subscribe", pattern="#", starting_seq=0)
        await publish_until(served, lambda: tasks("websocket-close"))

        frames, code = await slow.rest()

    assert code == 4100
    seqs = [frame["seq"] for frame in frames if frame.get("type", "event") == "event"]
    assert seqs == list(range(1, len(seqs) + 1))
    if dialect == "v1":
        assert (frames[-1]["type"], frames[-1]["reconnect"]) == ("bye", True)
        assert frames[-1]["error"]["code"] == "subscriber.slow"


async def test_a_connection_that_stalls_holds_one_page_of_the_log_however_many_subscriptions_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_bus(tmp_path, send_timeout=60) as served:
        store, pages = served.bus.node.store, 0
        await served.bus.publish_many([served.bus.draft("bulk", BULK) for _ in range(60)])  # two pages
        read = store.read

        async def counted(*args: Any) -> Any:
            nonlocal pages
            pages += 1
            return await read(*args)

        monkeypatch.setattr(store, "read", counted)
        async with served.v1(**STALLED) as slow:
            for sub in range(30):
                await slow.send("subscribe", sub=sub, pattern="#", after=0)
            await eventually(lambda: len(served.bus.node._subscriptions) == 30 and has_unread(served))

            assert pages < 15  # those that fit into the buffers on the way, and one
            slow.socket.transport.abort()


async def test_a_slow_reader_resumes_after_its_last_seq(served: ServedBus) -> None:
    async with served.v1(**STALLED) as slow:
        await slow.send("subscribe", pattern="#", starting_seq=0)
        await publish_until(served, lambda: tasks("websocket-close"))
        frames, _ = await slow.rest()
    last = max(frame["seq"] for frame in frames if frame["type"] == "event")
    head = (await served.bus.head()).last_seq

    async with served.v1() as again:
        await again.send("subscribe", pattern="#", after=last)

        seqs = [event["seq"] for event in await again.events(head - last)]

    assert seqs == list(range(last + 1, head + 1))


async def test_a_stalled_reader_holds_up_nobody_else(served: ServedBus) -> None:
    async with served.v1(**STALLED) as slow, served.v1() as quick:
        await slow.send("subscribe", pattern="#", after=0)
        await quick.send("subscribe", pattern="#", after=0)

        await publish_until(served, lambda: tasks("websocket-close"), reader=quick)

        await slow.rest()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
async def test_a_client_that_never_reads_again_leaves_nothing_on_the_server(
    tmp_path: Path, implementation: str
) -> None:
    server = {"ws": implementation}
    async with (
        serving_bus(tmp_path, server=server, send_timeout=0.1, close_timeout=0.3) as served,
        served.v1(**STALLED) as slow,
    ):
        await slow.send("subscribe", pattern="#", after=0)
        await publish_until(served, lambda: tasks("websocket-close"))

        await eventually(lambda: not served.served.server.server_state.connections)
        assert is_left_alone(served)
        slow.socket.transport.abort()


async def test_a_heartbeat_never_claims_what_is_still_to_be_sent(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with serving_bus(tmp_path, heartbeat=0.05, send_timeout=30) as served, served.v1(**STALLED) as slow:
        await slow.send("subscribe", id=1, pattern="#")
        await slow.next_of("caught_up")
        await publish_until(served, lambda: has_unread(served))
        # The feed waits for the client now, and has more to send. Let some heartbeats be due.
        last = (await served.bus.publish_many([served.bus.draft("bulk", BULK) for _ in range(30)]))[-1].seq
        began = loop.time()
        await eventually(lambda: loop.time() > began + 0.3)

        seen = claimed = 0
        while claimed != last:
            frame = await slow.next()
            if frame["type"] == "heartbeat":
                claimed = frame["head"]
                assert claimed <= seen
            elif frame["type"] == "event":
                seen = frame["seq"]


async def test_the_policy_disconnect_ends_a_reader_that_falls_behind(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, send_timeout=30) as served, served.v1(**STALLED) as slow:
        await slow.send("subscribe", id=1, pattern="#", overflow="disconnect", buffer=10)
        await slow.next_of("caught_up")
        # The close may be through at once: it falls behind by number, whether or not it stalls.
        await publish_until(served, lambda: tasks("websocket-close") or is_left_alone(served))

        frames, code = await slow.rest()

    assert code == 4100
    assert frames[-1]["error"]["code"] == "subscriber.slow"
    assert "10 events behind" in frames[-1]["error"]["message"]


async def test_the_policy_drop_oldest_tells_what_was_left_out(tmp_path: Path) -> None:
    async with serving_bus(tmp_path) as served, served.v1() as client:
        await client.send("subscribe", id=1, pattern="#", overflow="drop_oldest", buffer=10, credit=1)
        await client.next_of("caught_up")
        for number in range(50):
            await served.bus.publish("a", number)
        assert (await client.events(1))[0]["seq"] == 1
        await client.send("credit", sub=1, credit=1_000)

        missed = False
        told: list[int] = []
        while 50 not in told:
            frame = await client.next()
            last = frame["last_seq"] if frame["type"] == "gap" else frame["seq"]
            told.extend(range(frame.get("first_seq", last), last + 1))
            missed = frame["type"] == "gap" or missed

        assert missed
        assert told == list(range(2, 51))


async def test_a_client_that_pings_and_falls_silent_has_lost_its_heartbeat(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.05) as served, served.v1() as client:
        await client.send("ping")

        frames, code = await client.rest()

    assert code == 4101
    assert (frames[-1]["type"], frames[-1]["reconnect"]) == ("bye", True)
    assert frames[-1]["error"]["code"] == "heartbeat.lost"


async def test_a_client_that_pings_on_stays(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.05) as served, served.v1() as client:
        for _ in range(20):  # a second of heartbeats, with a ping after each
            await client.next_of("heartbeat")
            await client.send("ping")


async def test_a_client_that_pinged_while_the_node_did_not_run_stays(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.05) as served, served.v1() as client:
        await client.send("ping", id=1)
        await client.next_of("pong")
        await client.send("ping", id=2)
        time.sleep(0.5)  # noqa: ASYNC251 - it is the loop that stands still, for ten heartbeats
        assert (await client.next_of("pong"))["id"] == 2


async def test_a_client_that_never_pings_may_be_silent(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, heartbeat=0.02) as served, served.v1() as client:
        for _ in range(20):
            await client.next_of("heartbeat")


@pytest.mark.parametrize("dialect", ["plain", "v1"])
@pytest.mark.parametrize("way", ["closes", "vanishes"])
async def test_no_task_and_no_subscription_is_left_of_a_client_that(served: ServedBus, dialect: str, way: str) -> None:
    for _ in range(5):
        async with served.plain(max_queue=None) if dialect == "plain" else served.v1() as client:
            for sub in range(3):
                await client.send("subscribe", sub=sub, pattern="#", starting_seq=0)
                await client.send("publish", data={"topic": "a", "payload": sub})
            await client.send("ping", id=1)
            await client.next()
            if way == "vanishes":
                client.socket.transport.abort()

    await eventually(lambda: is_left_alone(served))
    await eventually(lambda: not served.bus.node._subscriptions)


async def test_no_socket_holds_a_database_connection(served: ServedBus) -> None:
    async with served.v1() as one, served.v1() as two, served.plain() as three:
        for client in (one, two, three):
            await client.send("subscribe", id=1, pattern="#")
            await client.next_of("ok")
            await client.send("subscribe", id=2, pattern="#")
            await client.next_of("ok")

        assert await eventually(lambda: in_use(served.bus.engine) == 0)


async def test_a_stopping_server_tells_its_clients_to_come_back(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with serving_bus(tmp_path) as served:
            client = await clients.enter_async_context(served.v1())
            await client.send("subscribe", pattern="#")
            await client.next_of("caught_up")

        assert (await client.rest())[1] == 1012
        assert is_left_alone(served)


async def test_a_stopping_server_tells_each_client_another_time_to_come_back(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with serving_bus(tmp_path, restart_spread=3) as served:
            clients = [await stack.enter_async_context(served.v1()) for _ in range(20)]
            plain = await stack.enter_async_context(served.plain())
            for client in clients:
                await client.next_of("welcome")

        byes = []
        for client in clients:
            frames, code = await client.rest()
            assert code == 1012
            byes.append(frames[-1])
        assert (await plain.rest()) == ([], 1012)  # this dialect has no word for it
    assert {bye["type"] for bye in byes} == {"bye"}
    assert {bye["error"]["code"] for bye in byes} == {"server.not_running"}
    assert all(bye["reconnect"] and 0 <= bye["after"] <= 3 for bye in byes)
    assert len({bye["after"] for bye in byes}) > 15


async def test_a_stopping_server_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, send_timeout=0.1, close_timeout=600) as served, served.v1(**STALLED) as slow:
        await slow.send("subscribe", pattern="#", after=0)
        await publish_until(served, lambda: tasks("websocket-close"))

        served.served.server.should_exit = True

        await eventually(lambda: is_left_alone(served))
        await slow.rest()


async def test_a_server_that_waits_for_its_connections_stops_beside_a_client_that_does_not_read(tmp_path: Path) -> None:
    server = {"timeout_graceful_shutdown": None}
    async with serving_bus(tmp_path, server=server, send_timeout=1) as served, served.v1(**STALLED) as slow:
        await slow.send("subscribe", pattern="#", after=0)
        await publish_until(served, lambda: has_unread(served))

        served.served.server.should_exit = True

        await eventually(lambda: not served.served.server.server_state.connections)
        slow.socket.transport.abort()


async def test_publishes_in_flight_are_bounded_by_not_reading_on(
    served: ServedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, gate, waiting = served.bus.node.store, asyncio.Event(), 0
    append, submit = store.append, served.bus.node.submit

    async def held(*args: Any) -> Any:
        await gate.wait()
        return await append(*args)

    def counted(drafts: Any) -> Any:
        nonlocal waiting
        waiting += 1
        return submit(drafts)

    monkeypatch.setattr(store, "append", held)
    monkeypatch.setattr(served.bus.node, "submit", counted)
    async with served.v1() as client:
        await client.next_of("welcome")
        for number in range(3_000):
            await client.send("publish", id=number, data={"topic": "a", "payload": number})
        await eventually(lambda: waiting == 1_000)

        gate.set()

        assert [(await client.next())["id"] for _ in range(3_000)] == list(range(3_000))
