"""`OutboxForwarder`: an outbox carried to a bus over WebSocket, whatever happens to the connection."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from eventbus_fastapi import ClientConfig, EventBus, Outbox, OutboxForwarder, Unique
from eventbus_fastapi.auth.bearer import BearerAuth
from eventbus_fastapi.auth.principal import Principal
from tests.outbox.reading import log, payloads, publish, until_forwarded
from tests.server.asking import app_of, bus_on
from tests.serving import serving
from tests.waiting import eventually

KEY = "a-key-that-is-long-enough"
NOBODY = "ws://127.0.0.1:1/ws"


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    async with Outbox(f"sqlite+aiosqlite:///{tmp_path}/service.db", poll_interval=0.05) as outbox:
        yield outbox


async def test_committed_events_reach_the_bus_in_their_order(tmp_path: Path, outbox: Outbox) -> None:
    bus = bus_on(tmp_path, publish_rate=1_000_000, publish_burst=1_000_000)
    async with serving(app_of(bus)) as served, OutboxForwarder(outbox, served.ws) as forwarder:
        for start in range(0, 2_500, 500):
            await publish(outbox, *range(start, start + 500))
        await publish(outbox, b"\x00", topic="order.scanned", key="1", metadata={"a": 1}, tags=["x"], ttl=60)
        await until_forwarded(outbox)

        messages = await log(bus)
        assert [message.payload for message in messages[:-1]] == list(range(2_500))
        last = messages[-1]
        assert (last.topic, last.key, last.body, last.metadata["a"], last.tags) == (
            "order.scanned",
            "1",
            b"\x00",
            1,
            ("x",),
        )
        assert last.expires_at is not None
        assert forwarder.is_forwarding


async def test_unique_and_delay_are_carried_on(tmp_path: Path, outbox: Outbox) -> None:
    bus = bus_on(tmp_path)
    async with serving(app_of(bus)) as served, OutboxForwarder(outbox, served.ws):
        await publish(outbox, {"id": 1}, {"id": 1}, unique=Unique(within=3_600))
        await publish(outbox, "later", delay=3_600)
        await until_forwarded(outbox)

        assert await payloads(bus) == [{"id": 1}]
        assert (await bus.node.store.peek()).next_due is not None


async def test_more_than_the_server_takes_at_once_goes_in_parts(tmp_path: Path, outbox: Outbox) -> None:
    bus = bus_on(tmp_path, max_batch=7, max_frame=2_048, max_payload=500)
    numbers = [*range(40)]
    await publish(outbox, *numbers, "x" * 400, "y" * 400, "z" * 501, "\x01" * 450)
    async with serving(app_of(bus)) as served, OutboxForwarder(outbox, served.ws):
        await until_forwarded(outbox)
        assert await payloads(bus) == [*numbers, "x" * 400, "y" * 400]

    assert [(each.code, each.size) for each in await outbox.refused()] == [
        ("payload.too_large", 501),
        ("frame.too_large", 450),
    ]


async def test_a_topic_that_is_not_granted_is_refused_and_the_rest_goes_on(tmp_path: Path, outbox: Outbox) -> None:
    shop = Principal("shop", publish=("order.#",))
    bus = bus_on(tmp_path, authenticate=BearerAuth({KEY: shop}))
    await publish(outbox, 1)
    await publish(outbox, 2, topic="user.created")
    await publish(outbox, 3)
    async with serving(app_of(bus)) as served, OutboxForwarder(outbox, served.ws, token=KEY):
        await until_forwarded(outbox)
        assert await payloads(bus) == [1, 3]

    assert [(each.topic, each.code) for each in await outbox.refused()] == [("user.created", "auth.forbidden")]


async def test_a_client_that_is_turned_away_forwards_once_it_is_let_in(tmp_path: Path, outbox: Outbox) -> None:
    tokens = ["wrong"]
    bus = bus_on(tmp_path, authenticate=BearerAuth({KEY: Principal("shop", publish=("#",))}))
    await publish(outbox, 1)
    async with (
        serving(app_of(bus)) as served,
        OutboxForwarder(outbox, served.ws, token=lambda: tokens[-1]) as forwarder,
    ):
        await eventually(lambda: forwarder.meters.failures["forwarder"] >= 2)
        assert (await outbox.figures()).waiting == 1
        tokens.append(KEY)
        await until_forwarded(outbox)
        assert await payloads(bus) == [1]


async def test_a_bus_that_is_away_is_waited_for_and_said_once(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    bus = bus_on(tmp_path)
    await publish(outbox, 1)
    with caplog.at_level(logging.INFO):
        async with serving(app_of(bus)) as served:
            port = served.port
        async with OutboxForwarder(outbox, f"ws://127.0.0.1:{port}/ws") as forwarder:
            await eventually(lambda: forwarder.meters.failures["forwarder"] >= 3)
            async with serving(app_of(bus), port=port):
                await until_forwarded(outbox)
                assert await payloads(bus) == [1]

    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len([text for text in said if text.startswith("forwarder paused: the bus has not answered for 1 ev")]) == 1
    assert len(said) == 1


@pytest.mark.parametrize("config", [NOBODY, ClientConfig(url=NOBODY), None])
async def test_it_is_closed_at_once_while_the_bus_is_away(outbox: Outbox, config: Any) -> None:
    await publish(outbox, 1)
    async with OutboxForwarder(outbox, config) as forwarder:
        await eventually(lambda: forwarder.is_forwarding)
    assert not forwarder.is_forwarding


async def test_two_forwarders_of_one_outbox_send_nothing_twice(tmp_path: Path, outbox: Outbox) -> None:
    bus: EventBus = bus_on(tmp_path)
    async with serving(app_of(bus)) as served, OutboxForwarder(outbox, served.ws) as first:
        await eventually(lambda: first.is_forwarding)
        async with OutboxForwarder(outbox, served.ws) as second:
            await publish(outbox, *range(100))
            await until_forwarded(outbox)
            assert not second.is_forwarding
        assert await payloads(bus) == list(range(100))
        assert bus.node.meters.duplicates == 0
