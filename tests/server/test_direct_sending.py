"""What nothing is in the way of is sent at once, without a task; all rules for what is sent hold as ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.server.feed import Feed
from eventbus_fastapi.server.outlet import ConnectionEnded, Outlet
from eventbus_fastapi.server.rounds import AT_ONCE, Rounds
from tests.server.sockets import (
    IMPLEMENTATIONS,
    ServedBus,
    has_unread,
    is_left_alone,
    peer,
    publish_until,
    serving_bus,
    tasks,
)
from tests.serving import serving
from tests.waiting import eventually


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path, send_timeout=0.2, close_timeout=20) as served:
        yield served


@pytest.fixture
def feeding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What feeds did, in order."""
    did: list[str] = []
    send_all, send_at_once = Feed.send_all, Outlet.send_at_once

    async def noted_task(self: Feed) -> None:
        did.append("task")
        await send_all(self)

    def noted(self: Outlet, text: str) -> None:
        did.append("at once")
        send_at_once(self, text)

    monkeypatch.setattr(Feed, "send_all", noted_task)
    monkeypatch.setattr(Outlet, "send_at_once", noted)
    return did


def outlets(served: ServedBus) -> list[Any]:
    return list(served.bus.node.meters.connections)


async def test_an_idle_connection_has_no_task_and_an_event_makes_none(served: ServedBus, feeding: list[str]) -> None:
    async with served.v1() as client:
        await client.send("subscribe", id=1, pattern="#")
        await client.next_of("caught_up")
        await eventually(lambda: not tasks("websocket-"))
        feeding.clear()

        for number in range(5):
            await served.bus.publish("a", number)
            assert (await client.next())["payload"] == number

        assert feeding == ["at once"] * 5


async def test_a_live_reader_that_stalls_is_cut_off_by_the_time_limit(served: ServedBus, feeding: list[str]) -> None:
    async with served.v1(max_queue=1, ping_interval=None) as slow:
        await slow.send("subscribe", id=1, pattern="#", overflow="catch_up")
        await slow.next_of("caught_up")
        feeding.clear()

        await publish_until(served, lambda: tasks("websocket-close"))
        frames, code = await slow.rest()

        assert feeding[0] == "at once"
        assert code == 4100
        seqs = [frame["seq"] for frame in frames if frame["type"] == "event"]
        assert seqs == list(range(1, len(seqs) + 1))
    await eventually(lambda: is_left_alone(served))


async def test_while_something_is_unread_nothing_is_sent_at_once(tmp_path: Path, feeding: list[str]) -> None:
    async with serving_bus(tmp_path, send_timeout=60) as served, served.v1(max_queue=1, ping_interval=None) as slow:
        await slow.send("subscribe", id=1, pattern="#")
        await slow.next_of("caught_up")
        await publish_until(served, lambda: has_unread(served))
        [outlet] = outlets(served)
        assert not outlet.is_free
        await eventually(lambda: tasks("websocket-"))  # the feed's, which waits for the client
        feeding.clear()

        await served.bus.publish("a", 1)

        assert feeding == []


async def test_events_and_replies_keep_their_orders_on_one_connection(served: ServedBus) -> None:
    async with served.v1() as client:
        await client.send("subscribe", id=1, pattern="#")
        await client.next_of("caught_up")

        for number in range(2, 102):
            await client.send("publish", id=number, data={"topic": "a", "payload": number})
            await served.bus.publish("b", number)
        got = [await client.next() for _ in range(300)]

        assert [frame["id"] for frame in got if frame["type"] == "ok"] == list(range(2, 102))
        assert [frame["seq"] for frame in got if frame["type"] == "event"] == list(range(1, 201))


async def test_after_the_reply_to_unsubscribe_no_event_follows(served: ServedBus) -> None:
    async with served.v1() as client:
        for sub in range(1, 20):
            await client.send("subscribe", sub=sub, pattern="#")
            await client.next_of("caught_up")
            publishing = asyncio.create_task(served.bus.publish("a", sub))
            await client.send("unsubscribe", id=sub, sub=sub)
            while (await client.next())["type"] != "ok":
                pass
            await publishing
            await client.send("ping", id=1_000)

            assert (await client.next())["type"] == "pong"


async def test_credit_bounds_what_is_sent_at_once(served: ServedBus, feeding: list[str]) -> None:
    async with served.v1() as client:
        await client.send("subscribe", id=1, pattern="#", sub=1, credit=2)
        await client.next_of("caught_up")
        feeding.clear()
        for number in range(4):
            await served.bus.publish("a", number)
        assert [(await client.next())["payload"] for _ in range(2)] == [0, 1]
        await client.send("ping", id=7)
        assert (await client.next())["type"] == "pong"

        await client.send("credit", sub=1, credit=5)

        assert [(await client.next())["payload"] for _ in range(2)] == [2, 3]


async def test_nothing_is_sent_at_once_after_the_outlet_was_shut(served: ServedBus) -> None:
    async with served.v1() as client:
        await client.send("subscribe", id=1, pattern="#")
        await client.next_of("caught_up")
        [outlet] = outlets(served)
        await eventually(lambda: outlet.is_free)

        outlet.shut()
        await served.bus.publish("a", 1)

        assert not outlet.is_free
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.next()


async def test_a_client_that_has_gone_ends_its_connection_when_an_event_is_sent_at_once(served: ServedBus) -> None:
    async with served.v1() as client:
        await client.send("subscribe", id=1, pattern="#")
        await client.next_of("caught_up")
        [outlet] = outlets(served)
        await eventually(lambda: outlet.is_free)
        client.socket.transport.abort()
        await eventually(lambda: is_left_alone(served))

        with pytest.raises(ConnectionEnded):
            outlet.send_at_once("late")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
async def test_it_works_on_every_implementation_of_websockets(tmp_path: Path, implementation: str) -> None:
    async with serving_bus(tmp_path, server={"ws": implementation}) as served, served.v1() as client:
        await client.send("subscribe", id=1, pattern="#")
        await client.next_of("caught_up")
        for number in range(20):
            await served.bus.publish("a", number)

        assert [(await client.next())["payload"] for _ in range(20)] == list(range(20))


@pytest.mark.parametrize("size", [1, 125, 126, 65_535, 65_536, 200_000])
async def test_one_frame_for_all_is_what_each_client_can_read(tmp_path: Path, size: int) -> None:
    """Also those who have agreed on compression, for whom it is another frame each time."""
    async with (
        serving_bus(tmp_path, server={"ws_per_message_deflate": True}) as served,
        served.v1() as one,
        served.v1() as other,
        served.v1(compression="deflate") as squeezed,
    ):
        assert squeezed.socket.protocol.extensions
        for client in (one, other, squeezed):
            await client.send("subscribe", id=1, pattern="#")
            await client.next_of("caught_up")
        for number in range(3):
            await served.bus.publish("a", f"{number}" * size)

        for client in (one, other, squeezed):
            assert [(await client.next())["payload"] for _ in range(3)] == [f"{number}" * size for number in range(3)]


class Watching:
    """A middleware that wants to see what is sent."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        self._app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watched(message: Message) -> None:
            async with asyncio.timeout(10):  # it may do what only a task can
                self._seen.append(message.get("text", ""))
                await send(message)

        await self._app(scope, receive, watched)


async def test_a_middleware_of_the_apps_own_sees_all_that_is_sent(tmp_path: Path) -> None:
    seen: list[str] = []
    bus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db")
    app = FastAPI()
    app.include_router(bus.router())
    app.add_middleware(Watching, seen=seen)
    async with serving(app) as served, peer(served.ws, subprotocols=["eventbus.v1"]) as client:
        await client.send("subscribe", id=1, pattern="#")
        await client.next_of("caught_up")

        await bus.publish("a", "look at me")

        assert (await client.next())["payload"] == "look at me"
        assert sum("look at me" in text for text in seen) == 1


class Counted:
    def __init__(self, order: list[int], number: int) -> None:
        self._order = order
        self._number = number

    def serve(self) -> None:
        self._order.append(self._number)


async def test_a_round_serves_all_who_asked_in_their_order_and_lets_others_have_the_loop() -> None:
    order: list[int] = []
    rounds = Rounds()
    for number in range(3 * AT_ONCE):
        rounds.ask(Counted(order, number))

    await asyncio.sleep(0)
    assert len(order) < 3 * AT_ONCE
    await eventually(lambda: len(order) == 3 * AT_ONCE)

    assert order == list(range(3 * AT_ONCE))
