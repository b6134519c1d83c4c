"""Feeds share the texts that they send."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.errors import SubscriptionClosed
from eventbus_fastapi.pipeline.channel import Batch
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.server.dialects import V1, Plain
from eventbus_fastapi.server.feed import Feed
from eventbus_fastapi.server.outlet import ConnectionEnded, Ending, Outlet, SocketLine
from eventbus_fastapi.server.rounds import Rounds
from eventbus_fastapi.server.tasks import Work
from tests.waiting import eventually


class Socket:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def receive(self) -> Message:
        raise AssertionError("it is not read")

    async def send(self, message: Message) -> None:
        self.texts.append(message["text"])


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db") as eventbus:
        yield eventbus


def feed(
    eventbus: EventBus,
    subscription: Subscription,
    sub: int | str = 1,
    socket: Socket | None = None,
    *,
    outlet: Outlet | None = None,
    is_plain: bool = False,
    credit: int | None = None,
    started: list[asyncio.Task[None]] | None = None,
) -> Feed:
    """Return a feed; `started` gets its tasks."""

    def fail(ending: Ending | None) -> None:
        raise AssertionError(ending)

    def start(feed: Feed, work: Work) -> asyncio.Task[None]:
        task = asyncio.create_task(until_closed(work))
        if started is not None:
            started.append(task)
        return task

    if outlet is None:
        socket = socket or Socket()
        outlet = Outlet(SocketLine(socket.receive, socket.send, has_bye=True), send_timeout=10, on_end=fail)
    lock = asyncio.Lock()
    dialect = Plain() if is_plain else V1(sub)
    return Feed(
        sub,
        subscription,
        outlet,
        eventbus.node,
        dialect=dialect,
        acknowledging=lock,
        start=start,
        rounds=Rounds(),
        credit=credit,
    )


async def until_closed(work: Work) -> None:
    with contextlib.suppress(SubscriptionClosed):
        await work()


async def batch_of(eventbus: EventBus) -> tuple[Subscription, Batch]:
    await eventbus.publish_many([("a", 1), ("a", 2)])
    subscription = await eventbus.node.subscribe(["a"], 0)
    [batch] = [item for item in await subscription.take() if isinstance(item, Batch)]
    return subscription, batch


async def test_a_frame_is_built_once_for_all_who_use_the_usual_ids(eventbus: EventBus) -> None:
    subscription, batch = await batch_of(eventbus)

    [one] = feed(eventbus, subscription)._frames([batch])
    [other] = feed(eventbus, subscription)._frames([batch])

    assert one.text is other.text
    assert [event["seq"] for event in json.loads(one.text)] == [1, 2]


@pytest.mark.parametrize("sub", [5, "a-browser-tab", "1"])
async def test_texts_for_ids_of_a_clients_own_making_are_not_kept(eventbus: EventBus, sub: int | str) -> None:
    subscription, batch = await batch_of(eventbus)

    [frame] = feed(eventbus, subscription, sub)._frames([batch])

    assert {event["sub"] for event in json.loads(frame.text)} == {sub}
    assert not batch._texts


async def test_several_batches_share_a_frame_until_it_is_full(eventbus: EventBus) -> None:
    await eventbus.publish_many([("a", "x" * 100_000)] * 5)
    subscription = await eventbus.node.subscribe(["a"], 0)
    batches = [Batch([await anext(subscription)]) for _ in range(5)]

    frames = list(feed(eventbus, subscription)._frames(batches))

    assert [len(frame.messages) for frame in frames] == [2, 2, 1]
    assert [message.seq for frame in frames for message in frame.messages] == [1, 2, 3, 4, 5]


# --- the end -------------------------------------------------------------------------------------


class StalledSocket(Socket):
    """Takes what is sent once its client reads."""

    def __init__(self) -> None:
        super().__init__()
        self.is_asked = asyncio.Event()
        self.reads = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.is_asked.set()
        await self.reads.wait()
        await super().send(message)


async def test_a_frame_that_is_being_sent_is_the_last_one_of_a_feed_that_is_closed(eventbus: EventBus) -> None:
    await eventbus.publish_many([("a", "x" * 200_000)] * 5)
    socket = StalledSocket()
    one = feed(eventbus, await eventbus.node.subscribe(["a"], 0), socket=socket)
    one.open()
    await socket.is_asked.wait()

    closing = asyncio.create_task(one.close())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    socket.reads.set()
    await asyncio.wait_for(closing, 10)

    assert len(socket.texts) == 1


async def test_closing_a_feed_does_not_reset_the_time_that_its_client_has_stalled(eventbus: EventBus) -> None:
    await eventbus.publish("a", 1)
    socket, endings = StalledSocket(), list[Ending | None]()
    line = SocketLine(socket.receive, socket.send, has_bye=True)
    outlet = Outlet(line, send_timeout=0.2, on_end=endings.append)
    started: list[asyncio.Task[None]] = []
    one = feed(eventbus, await eventbus.node.subscribe(["a"], 0), outlet=outlet, started=started)
    one.open()
    await socket.is_asked.wait()

    await asyncio.wait_for(one.close(), 10)

    [ending] = endings
    assert ending is not None
    assert ending.code == 4100
    [task] = started
    assert isinstance(task.exception(), ConnectionEnded)


# --- acks up to a seq ----------------------------------------------------------------------------


async def sent(feed: Feed, socket: Socket, count: int) -> None:
    """Wait until so many events went out."""
    await eventually(lambda: sum(text.count('"type":"event"') for text in socket.texts) == count)


async def statuses(eventbus: EventBus, last: int) -> set[str]:
    return {(await eventbus.get(seq)).status for seq in range(1, last + 1)}


async def test_what_is_sent_while_an_ack_is_stored_can_be_acknowledged_after_it(
    eventbus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket, store = Socket(), asyncio.Event()
    one = feed(eventbus, await eventbus.node.subscribe(["a"], 0), 1, socket)
    acknowledge = eventbus.node.acknowledge

    async def held(acks: Any) -> int:
        await store.wait()
        return await acknowledge(acks)

    monkeypatch.setattr(eventbus.node, "acknowledge", held)
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        one.open()
        await eventbus.publish("a", 1)
        await sent(one, socket, 1)
        first = tasks.create_task(one.acknowledge_up_to(100))
        await eventually(lambda: one._acknowledging.locked())
        await eventbus.publish("a", 2)
        await sent(one, socket, 2)

        store.set()

        assert (await first, await one.acknowledge_up_to(100)) == (1, 1)
    assert await statuses(eventbus, 2) == {"processed"}


async def test_an_ack_forgets_nothing_beyond_it(eventbus: EventBus) -> None:
    """It looks through a page of the log, and forgot all of it."""
    await eventbus.publish_many([("a", 1)] * 2_500)
    socket = Socket()
    one = feed(eventbus, await eventbus.node.subscribe(["a"], 0), 1, socket)
    one.open()
    await sent(one, socket, 2_500)

    assert [await one.acknowledge_up_to(seq) for seq in (50, 900, 900, 2_500)] == [50, 850, 0, 1_600]

    assert await statuses(eventbus, 2_500) == {"processed"}


async def test_acks_that_wait_for_one_another_read_the_log_once(
    eventbus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    await eventbus.publish_many([("a", 1)] * 10)
    socket = Socket()
    one = feed(eventbus, await eventbus.node.subscribe(["a"], 0), 1, socket)
    history, reads = eventbus.node.history, 0

    async def counted(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        return await history(*args)

    monkeypatch.setattr(eventbus.node, "history", counted)
    one.open()
    await sent(one, socket, 10)

    acked = await asyncio.gather(*(one.acknowledge_up_to(number % 10 + 1) for number in range(500)))

    assert sum(acked) == 10
    assert reads <= 2
    assert await statuses(eventbus, 10) == {"processed"}


# --- expiry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_plain", [True, False])
async def test_what_expires_while_a_frame_before_it_is_sent_is_left_out(
    eventbus: EventBus, monkeypatch: pytest.MonkeyPatch, is_plain: bool
) -> None:
    await eventbus.publish("a", "x" * 200_000)
    await eventbus.publish_many([("a", "y" * 100_000)], ttl=60)
    await eventbus.publish("a", "z" * 100_000)
    subscription = await eventbus.node.subscribe(["a"], 0)
    batches = [Batch([await anext(subscription)]) for _ in range(3)]
    frames = feed(eventbus, subscription, is_plain=is_plain)._frames(batches)

    first = next(frames)
    later = eventbus.node.store.estimate_now() + 61_000_000
    monkeypatch.setattr(eventbus.node.store, "estimate_now", lambda: later)

    assert [[message.seq for message in frame.messages] for frame in (first, *frames)] == [[1], [3]]


class ReadyLine:
    """A connection with nothing in the way, which can be sent to at once and by a task."""

    kind = "websocket"
    is_ready = True

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.on_sent: list[Callable[[], object]] = []
        """Called after the first text, in the next turn of the loop."""
        self.sender = self.transport = self

    def get_write_buffer_size(self) -> int:
        return 0

    def send_text(self, text: str) -> None:
        self.texts.append(text)
        while self.on_sent:
            asyncio.get_running_loop().call_soon(self.on_sent.pop())

    async def write(self, text: str) -> None:
        self.send_text(text)


@pytest.mark.parametrize("is_plain", [True, False])
async def test_what_expires_after_a_frame_was_sent_at_once_is_left_out(
    eventbus: EventBus, monkeypatch: pytest.MonkeyPatch, is_plain: bool
) -> None:
    line, started = ReadyLine(), list[asyncio.Task[None]]()
    outlet = Outlet(line, send_timeout=10, on_end=lambda ending: None)  # type: ignore[arg-type]
    subscription = await eventbus.node.subscribe(["a"], 0)
    await subscription.take()  # it is live
    one = feed(eventbus, subscription, outlet=outlet, is_plain=is_plain, started=started)
    await eventbus.publish("a", "x" * 200_000)
    await eventbus.publish_many([("a", "y" * 100_000)], ttl=60)
    later = eventbus.node.store.estimate_now() + 61_000_000
    line.on_sent = [lambda: monkeypatch.setattr(eventbus.node.store, "estimate_now", lambda: later)]

    one.open()
    await eventually(lambda: bool(started) and started[0].done())

    assert ["x" * 1_000 in text for text in line.texts] == [True]
    assert one.is_idle


@pytest.mark.parametrize("is_plain", [True, False])
async def test_what_was_sent_at_once_leaves_no_task_behind(eventbus: EventBus, is_plain: bool) -> None:
    line, started = ReadyLine(), list[asyncio.Task[None]]()
    outlet = Outlet(line, send_timeout=10, on_end=lambda ending: None)  # type: ignore[arg-type]
    subscription = await eventbus.node.subscribe(["a"], 0)
    await subscription.take()  # it is live
    feed(eventbus, subscription, outlet=outlet, is_plain=is_plain, started=started).open()
    for _ in range(3):
        await eventbus.publish("a", 1)
        await asyncio.sleep(0.01)

    await eventually(lambda: sum('"a"' in text for text in line.texts) >= 3)
    assert started == []


async def test_what_has_expired_on_its_way_costs_the_client_no_credit(
    eventbus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gives new credit for what it gets: that of events which never came was lost, until nothing came."""
    await eventbus.publish("a", "x" * 262_000)
    await eventbus.publish_many([("a", "y" * 100_000)] * 3, ttl=60)
    socket = Socket()
    later = eventbus.node.store.estimate_now() + 61_000_000
    send = socket.send

    async def expire_after(message: Message) -> None:
        await send(message)
        monkeypatch.setattr(eventbus.node.store, "estimate_now", lambda: later)

    monkeypatch.setattr(socket, "send", expire_after)
    one = feed(eventbus, await eventbus.node.subscribe(["a"], 0), 1, socket, credit=5)
    one.open()
    await sent(one, socket, 1)
    await eventually(lambda: one.is_idle)
    assert one._credit == 4
