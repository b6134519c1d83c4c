"""Servers that break the protocol: the client neither fails, nor grows, nor loses events silently."""

from __future__ import annotations

import asyncio
import json

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from eventbus_fastapi.client import EventBusClient
from eventbus_fastapi.errors import ConnectionLost, ConnectionRefused
from tests.client.scripted import Peer, ScriptedServer, error, event, scripted_server
from tests.waiting import eventually

BROKEN = [
    "",
    "not json",
    "[" * 100_000,
    "null",
    "17",
    '"welcome"',
    "[[]]",
    "{}",
    '{"type": "event"}',
    '{"type": "event", "sub": 1, "seq": "7"}',
    json.dumps(event(1) | {"seq": "1"}),
    json.dumps(event(1) | {"seq": -1}),
    json.dumps(event(1) | {"seq": 1.5}),
    json.dumps(event(1) | {"seq": True}),
    json.dumps(event(1) | {"topic": 7}),
    json.dumps(event(1) | {"key": {}}),
    json.dumps(event(1) | {"message_id": "x"}),
    json.dumps(event(1) | {"metadata": None}),
    json.dumps(event(1) | {"metadata": {"timestamp": 1e308, "content_type": "text/plain"}}),
    json.dumps(event(1) | {"metadata": {"timestamp": 1, "content_type": []}}),
    '{"type": "gap", "sub": 1, "first_seq": [], "last_seq": 2, "reason": "retention"}',
    '{"type": "caught_up", "sub": 1, "seq": "x"}',
    '{"type": "ok", "id": []}',
    '{"type": "error", "id": {}, "error": {}}',
    '{"type": "error", "error": 7}',
    '{"type": "error", "error": {"status": "x"}}',
    '{"type": "error", "error": {"status": 1e999}}',
    '{"type": "bye", "error": {}, "reconnect": true, "after": "soon"}',
    '{"type": "welcome"}',
    json.dumps(event(1))[:-1] + ', "payload": ' + "9" * 10_000 + "}",
    b"binary",
]


@pytest.fixture
async def peer(server: ScriptedServer, client: EventBusClient) -> Peer:
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.welcome()
    await connecting
    return peer


@pytest.mark.parametrize("text", BROKEN, ids=lambda text: text[:40])
async def test_after_a_broken_frame_it_resumes_on_another_connection(
    server: ScriptedServer, client: EventBusClient, peer: Peer, text: str | bytes
) -> None:
    subscription = client.subscribe("#", after=0)
    await peer.subscribed(after=0)
    await peer.send_text(text)
    assert await peer.closed() == 1002
    peer = await server.welcome()
    assert (await peer.subscribed(after=0))["from"] == 0
    await peer.send(event(1))
    assert (await anext(subscription)).seq == 1


@pytest.mark.parametrize(
    "welcome",
    [
        {"heartbeat": 0},
        {"heartbeat": -1},
        {"heartbeat": 1e30},
        {"heartbeat": "x"},
        {"limits": []},
        {"limits": 7},
        {"epoch": "x"},
    ],
)
async def test_a_broken_welcome_is_not_a_connection(
    server: ScriptedServer, client: EventBusClient, welcome: dict[str, object]
) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.accept()
    whole: dict[str, object] = {
        "type": "welcome",
        "protocol": 1,
        "server": "s",
        "connection": "c",
        "epoch": "00000000-0000-4000-8000-000000000001",
        "head": 0,
        "heartbeat": 15,
        "limits": {},
    }
    await peer.send(whole | welcome)
    assert await peer.closed() == 1002
    await server.welcome()
    await connecting


@pytest.mark.parametrize(
    "locations",
    [
        ["http://["],
        ["ws://host:99999/"],
        ["ws://a..b/"],
        [f"ws://{'a' * 300}/"],
        ["http://host/"],
        ["/a", "/b"],
        ["#a"],
    ],
    ids=lambda locations: locations[0][:20],
)
async def test_a_redirect_that_cannot_be_followed_is_tried_again(locations: list[str]) -> None:
    redirects = [locations, locations]

    def redirect_twice(connection: ServerConnection, request: Request) -> Response | None:
        if not redirects:
            return None
        return Response(302, "Found", Headers([("Location", location) for location in redirects.pop()]))

    async with scripted_server(process_request=redirect_twice) as server, EventBusClient(server.config()) as client:
        connecting = asyncio.create_task(client.wait_connected())
        await server.welcome()
        await connecting
        assert not redirects


async def test_why_a_redirect_cannot_be_followed_is_said() -> None:
    def redirect(connection: ServerConnection, request: Request) -> Response:
        return Response(302, "Found", Headers(Location="ws://host:99999/"))

    async with scripted_server(process_request=redirect) as server:
        with pytest.raises(ConnectionLost, match="the server's answer cannot be used: ValueError: Port out of range"):
            await EventBusClient.connect(server.config(max_retries=0))


async def test_anything_before_the_welcome_is_refused(server: ScriptedServer, client: EventBusClient) -> None:
    connecting = asyncio.create_task(client.wait_connected())
    peer = await server.accept()
    await peer.send(event(1))
    assert await peer.closed() == 1002
    await server.welcome()
    await connecting


async def test_what_only_a_newer_server_says_is_ignored(client: EventBusClient, peer: Peer) -> None:
    subscription = client.subscribe("#", after=0)
    await peer.subscribed(after=0)
    await peer.send({"type": "weather", "sun": True}, {"type": 1}, {"type": ["event"]})
    await peer.send({"type": "ok", "id": 999}, {"type": "pong", "id": 7}, event(1, sub=77), event(1, new_field=[1]))
    assert (await anext(subscription)).seq == 1


async def test_events_that_came_before_are_dropped(client: EventBusClient, peer: Peer) -> None:
    subscription = client.subscribe("#", after=5)
    await peer.subscribed(after=5)
    await peer.send(event(5), event(7), event(6), event(7), event(8))
    assert [(await anext(subscription)).seq for _ in range(2)] == [7, 8]


async def test_dropped_events_do_not_use_up_the_credit(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(window=10)) as client:
        subscription = client.subscribe("#", after=5)
        peer = await server.welcome()
        await peer.subscribed(after=5)
        await peer.send(*(event(1) for _ in range(5)))
        assert (await peer.expect("credit"))["credit"] == 5
        await subscription.aclose()


async def test_a_server_that_ignores_credit_is_left_before_it_fills_the_memory(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(window=10)) as client:
        subscription = client.subscribe("#", after=0)
        peer = await server.welcome()
        await peer.subscribed(after=0)
        await peer.send(*(event(seq) for seq in range(1, 10_000)))
        assert await peer.closed() == 1002
        assert (await anext(subscription)).seq == 1


async def test_a_frame_that_is_too_large_ends_it_with_a_clear_error(server: ScriptedServer) -> None:
    async with EventBusClient(server.config(max_frame=10_000)) as client:
        publish = asyncio.create_task(client.publish("t", 1))
        peer = await server.welcome()
        await peer.send(event(1, payload="x" * 20_000))
        with pytest.raises(ConnectionRefused, match=r"10,000 bytes \(ClientConfig.max_frame\)"):
            await publish


async def test_an_answer_that_makes_no_sense_is_asked_for_again(
    server: ScriptedServer, client: EventBusClient, peer: Peer
) -> None:
    publish = asyncio.create_task(client.publish("t", 1))
    answers: list[dict[str, object]] = [{}, {"seq": "x", "message_id": "x"}, {"results": []}]
    for nonsense in answers:
        await peer.ok(await peer.expect("publish"), **nonsense)
        assert await peer.closed() == 1002
        peer = await server.welcome()
    await peer.published(await peer.expect("publish"), 1)
    await publish


async def test_an_absurd_retry_after_is_not_followed(server: ScriptedServer, client: EventBusClient) -> None:
    publishes = [asyncio.create_task(client.publish("t", n)) for n in range(2)]
    peer = await server.welcome()
    frames = [await peer.expect("publish") for _ in publishes]
    await peer.refuse(frames[0], error("x", retry=True, retry_after=-5))
    await peer.refuse(frames[1], error("x", retry=True) | {"retry_after": "tomorrow"})
    assert [await peer.expect("publish") for _ in publishes] == [frame | {"wave": 1} for frame in frames]
    for publish in publishes:
        publish.cancel()


async def test_errors_that_name_no_request_are_logged_on_one_line(
    peer: Peer, client: EventBusClient, caplog: pytest.LogCaptureFixture
) -> None:
    await peer.send({"type": "error", "error": {"code": "frame.bad\nforged", "message": "a\nb" + "x" * 10_000}})
    await eventually(lambda: "frame.bad" in caplog.text)
    (record,) = [record for record in caplog.records if "frame.bad" in record.getMessage()]
    assert len(record.getMessage()) < 500
    assert "\n" not in record.getMessage()
    assert client.connected
