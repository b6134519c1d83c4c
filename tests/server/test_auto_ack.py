"""Automatic acks: events are marked beside the sending, and a sender that is too fast waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.server import auto_ack
from eventbus_fastapi.server.auto_ack import AutoAck
from tests.server.asking import bus_on
from tests.server.sockets import serving_bus


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with bus_on(tmp_path) as eventbus:
        yield eventbus


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Hold every ack back until it is set; let two wait."""
    gate = asyncio.Event()
    monkeypatch.setattr(auto_ack, "MAX_WAITING", 2)
    return gate


def hold(eventbus: EventBus, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    acknowledge = eventbus.node.store.acknowledge

    async def held(acks: Any) -> Any:
        await gate.wait()
        return await acknowledge(acks)

    monkeypatch.setattr(eventbus.node.store, "acknowledge", held)


async def test_a_sender_waits_while_too_many_events_wait_to_be_marked(
    eventbus: EventBus, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(eventbus, gate, monkeypatch)
    await eventbus.publish_many([("a", number) for number in range(2)])
    messages = await (await eventbus.subscribe("a", after=0)).next_messages()
    marking = AutoAck(eventbus.node)
    marking.add(messages[:1])
    assert marking._room.is_set()

    marking.add(messages[1:])

    assert not marking._room.is_set()
    gate.set()
    await asyncio.wait_for(marking.room(), 10)
    await marking.close(10)
    assert {(await eventbus.get(seq)).status for seq in (1, 2)} == {"processed"}


async def test_a_subscription_is_sent_no_more_than_can_be_marked_soon(
    tmp_path: Path, gate: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_bus(tmp_path, auto_ack=True, page_size=2) as served, served.v1() as client:
        hold(served.bus, gate, monkeypatch)
        await served.bus.publish_many([("a", number) for number in range(10)])
        await client.send("subscribe", id=1, pattern="a", after=0)
        await client.events(2)

        for _ in range(20):  # time enough to send more
            assert (await client.ask("publish", id=2, data={"topic": "b", "payload": 1}))["type"] == "ok"

        gate.set()
        assert [event["seq"] for event in await client.events(8)] == list(range(3, 11))
