"""Feeds share the texts that they send."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.pipeline.channel import Batch
from eventbus_fastapi.pipeline.subscription import Subscription
from eventbus_fastapi.server.feed import Feed
from eventbus_fastapi.server.outlet import Ending, Outlet


class Socket:
    """Takes what is sent."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def send(self, message: dict[str, str]) -> None:
        self.texts.append(message["text"])


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db") as eventbus:
        yield eventbus


def feed(subscription: Subscription, sub: int | str, socket: Socket) -> Feed:
    def fail(ending: Ending | None) -> None:
        raise AssertionError(ending)

    outlet = Outlet(socket, send_timeout=1, on_end=fail)  # type: ignore[arg-type]
    return Feed(sub, subscription, outlet, is_plain=False, credit=None, auto_ack=None)


async def batch_of(eventbus: EventBus) -> tuple[Subscription, Batch]:
    await eventbus.publish_many([("a", 1), ("a", 2)])
    subscription = await eventbus.node.subscribe(["a"], 0)
    [batch] = [item for item in await subscription.take() if isinstance(item, Batch)]
    return subscription, batch


async def test_a_frame_is_built_once_for_all_who_use_the_usual_ids(eventbus: EventBus) -> None:
    subscription, batch = await batch_of(eventbus)

    [one] = feed(subscription, 1, Socket())._frames([batch])
    [other] = feed(subscription, 1, Socket())._frames([batch])

    assert one.text is other.text
    assert [event["seq"] for event in json.loads(one.text)] == [1, 2]


@pytest.mark.parametrize("sub", [5, "a-browser-tab", "1"])
async def test_texts_for_ids_of_a_clients_own_making_are_not_kept(eventbus: EventBus, sub: int | str) -> None:
    subscription, batch = await batch_of(eventbus)

    [frame] = feed(subscription, sub, Socket())._frames([batch])

    assert {event["sub"] for event in json.loads(frame.text)} == {sub}
    assert not batch._texts


async def test_several_batches_share_a_frame_until_it_is_full(eventbus: EventBus) -> None:
    await eventbus.publish_many([("a", "x" * 100_000)] * 5)
    subscription = await eventbus.node.subscribe(["a"], 0)
    batches = [Batch([await anext(subscription)]) for _ in range(5)]

    frames = list(feed(subscription, 1, Socket())._frames(batches))

    assert [len(frame.messages) for frame in frames] == [2, 2, 1]
    assert [message.seq for frame in frames for message in frame.messages] == [1, 2, 3, 4, 5]
