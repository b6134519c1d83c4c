"""Streams end: after a while, with the server, with slow readers, without clients; and nothing is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware

from tests.databases import in_use
from tests.server.asking import bus_on
from tests.server.sockets import ServedBus, has_unread, publish_until, serving_bus, tasks
from tests.server.streams import Stream, streaming
from tests.serving import serving
from tests.waiting import eventually

IMPLEMENTATIONS = ["httptools", "h11"]
"""What uvicorn speaks HTTP with."""


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path, send_timeout=0.2, close_timeout=0.3) as served:
        yield served


async def test_a_stream_ends_after_a_while_and_its_client_is_to_come_back_soon(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, stream_lifetime=0.2) as served, streaming(served.served.http) as stream:
        blocks = await stream.rest()

    bye = blocks[-1]
    assert bye.name == "bye"
    assert bye.data["error"] == {
        "code": "stream.rotated",
        "status": 410,
        "message": "the stream has lasted long enough; resume after the last id",
        "retry": True,
    }
    assert bye.data["reconnect"] is True
    assert bye.retry is not None
    assert 0 <= bye.retry <= 1_000
    assert bye.data["after"] == bye.retry / 1_000


async def test_streams_that_begin_together_do_not_end_together(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()

    async def lifetime(stream: Stream) -> float:
        began = loop.time()
        await stream.rest()
        return loop.time() - began

    async with serving_bus(tmp_path, stream_lifetime=0.5) as served, contextlib.AsyncExitStack() as streams:
        opened = [await streams.enter_async_context(streaming(served.served.http)) for _ in range(5)]
        lived = await asyncio.gather(*map(lifetime, opened))

    assert max(lived) - min(lived) > 0.001


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
async def test_a_server_that_stops_says_goodbye_and_does_not_wait(
    tmp_path: Path, implementation: str, connection: str
) -> None:
    server = {"http": implementation, "timeout_graceful_shutdown": None}
    async with contextlib.AsyncExitStack() as streams, serving_bus(tmp_path, server=server) as served:
        opened = [
            await streams.enter_async_context(streaming(served.served.http, headers={"Connection": connection}))
            for _ in range(3)
        ]
        for stream in opened:
            await stream.next_of("caught_up")
        served.served.server.should_exit = True
        byes = [(await stream.rest())[-1] for stream in opened]
        await eventually(lambda: not tasks("stream-"))

    for bye in byes:
        assert (bye.name, bye.data["error"]["code"], bye.data["reconnect"]) == ("bye", "server.not_running", True)
        assert bye.retry is not None
        assert 1_000 <= bye.retry <= 5_000


async def test_a_server_that_stops_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path) -> None:
    server = {"timeout_graceful_shutdown": None}
    async with serving_bus(tmp_path, server=server, send_timeout=60) as served:
        with await stalled(served):
            await publish_until(served, lambda: has_unread(served))

            served.served.server.should_exit = True

            await eventually(lambda: not served.served.server.server_state.connections)
            await eventually(lambda: not tasks("stream-"))


async def test_a_server_that_stops_does_not_wait_for_one_that_it_is_closing_already(tmp_path: Path) -> None:
    server = {"timeout_graceful_shutdown": None}
    async with serving_bus(tmp_path, server=server, send_timeout=0.1, close_timeout=60) as served:
        with await stalled(served):
            await publish_until(served, lambda: tasks("stream-close"))

            served.served.server.should_exit = True

            await eventually(lambda: not served.served.server.server_state.connections)
            await eventually(lambda: not tasks("stream-"))


async def test_a_bus_that_stops_ends_its_streams(served: ServedBus) -> None:
    async with streaming(served.served.http) as stream:
        await stream.next_of("caught_up")

        await served.bus.stop()

        bye = (await stream.rest())[-1]
    assert (bye.name, bye.data["error"]["code"], bye.data["reconnect"]) == ("bye", "subscription.closed", True)


async def test_a_client_that_never_reads_leaves_nothing_on_the_server(
    served: ServedBus, caplog: pytest.LogCaptureFixture
) -> None:
    with await stalled(served):
        await publish_until(served, lambda: tasks("stream-close"))

        await eventually(lambda: not served.served.server.server_state.connections)
        await eventually(lambda: not tasks("stream-") and not served.bus.node._subscriptions)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_client_that_stalls_and_reads_again_learns_why_it_is_closed(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, send_timeout=0.1, close_timeout=30) as served:
        with await stalled(served) as client:
            await publish_until(served, lambda: tasks("stream-close"))
            text = await asyncio.to_thread(_read_all, client)

    *_, bye = text.split(b"\n\n")[:-1]
    assert b"event: bye\n" in bye
    assert b'"code":"subscriber.slow"' in bye


async def test_a_slow_reader_holds_up_nobody_else(served: ServedBus) -> None:
    with await stalled(served):
        async with streaming(served.served.http, after=0) as quick:
            count = await publish_until(served, lambda: tasks("stream-close"), reader=quick)
    assert count


async def test_the_policy_disconnect_ends_a_stream_that_falls_behind(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, send_timeout=30) as served:
        with await stalled(served, "overflow=disconnect&buffer=10") as client:
            await eventually(lambda: any(one.is_live for one in served.bus.node._subscriptions))
            await publish_until(served, lambda: tasks("stream-close") or not tasks("stream-"))
            text = await asyncio.to_thread(_read_all, client)

    assert b"10 events behind" in text


async def test_the_policy_drop_oldest_tells_what_was_left_out(tmp_path: Path) -> None:
    async with serving_bus(tmp_path, send_timeout=30) as served:
        with await stalled(served, "overflow=drop_oldest&buffer=10") as client:
            await eventually(lambda: any(one.is_live for one in served.bus.node._subscriptions))
            await publish_until(served, lambda: has_unread(served))
            await served.bus.publish_many([("small", number) for number in range(100)])
            reading = asyncio.to_thread(_read_until, client, b'"reason":"overflow"')
            assert b"event: gap\n" in await reading


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
async def test_no_task_and_no_subscription_is_left_of_clients_that_leave(tmp_path: Path, implementation: str) -> None:
    async with serving_bus(tmp_path, server={"http": implementation}) as served:
        for _ in range(5):
            async with streaming(served.served.http, after=0) as stream:
                await served.bus.publish("a", 1)
                await stream.events(1)

        await eventually(lambda: not tasks("stream-"))
        await eventually(lambda: not served.bus.node._subscriptions)


async def test_no_stream_holds_a_database_connection(served: ServedBus) -> None:
    async with streaming(served.served.http) as one, streaming(served.served.http) as two:
        for stream in (one, two):
            await stream.next_of("caught_up")

        assert await eventually(lambda: in_use(served.bus.engine) == 0)


async def test_a_fault_of_ours_ends_its_stream_and_says_no_more(
    served: ServedBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: Any) -> Any:
        raise RuntimeError("a secret of the server")

    await served.bus.publish("a", 1)
    monkeypatch.setattr(served.bus.node.store, "read", fail)
    async with streaming(served.served.http, after=0) as stream:
        bye = (await stream.rest())[-1]

    assert bye.data["error"]["code"] == "server.internal"
    assert "secret" not in str(bye)
    assert "a secret of the server" in caplog.text


async def test_a_middleware_that_hides_the_connection_leaves_the_stream_working(tmp_path: Path) -> None:
    async def pass_on(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    bus = bus_on(tmp_path)
    app = FastAPI()
    app.include_router(bus.router())
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    async with serving(app) as served:
        async with streaming(served.http, after=0) as stream:
            await bus.publish("a", 1)
            assert [event["payload"] for event in await stream.events(1)] == [1]
        await eventually(lambda: not tasks("stream-") and not bus.node._subscriptions)


async def stalled(served: ServedBus, query: str = "after=0") -> socket.socket:
    """Ask for a stream, and do not read it."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.setblocking(False)
    await loop.sock_connect(client, ("127.0.0.1", served.served.port))
    await loop.sock_sendall(client, f"GET /events/stream?{query} HTTP/1.1\r\nHost: bus\r\n\r\n".encode())
    await eventually(lambda: tasks("stream-"))
    return client


def _read_all(client: socket.socket) -> bytes:
    client.settimeout(10)
    return b"".join(iter(lambda: client.recv(65_536), b""))


def _read_until(client: socket.socket, text: bytes) -> bytes:
    client.settimeout(10)
    read = bytearray()
    while text not in read and (chunk := client.recv(65_536)):
        read += chunk
    return bytes(read)
