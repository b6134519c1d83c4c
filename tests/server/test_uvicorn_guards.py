"""What uvicorn's own protocols leave open, and `eventbus serve` does not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from eventbus_fastapi.server import uvicorn_guards
from eventbus_fastapi.server.address import UNKNOWN
from eventbus_fastapi.server.turns import MOST_OWED, QUANTUM, Share
from eventbus_fastapi.server.uvicorn_guards import SLICE, GuardedHTTP, GuardedWebSocket
from tests.security.wire import CONTINUED, TEXT, frame, request
from tests.server.sockets import ServedBus, serving_bus
from tests.waiting import eventually

FOREIGN = "127.0.0.2"
"""An address that is no proxy's."""
GUARDED = {"http": GuardedHTTP, "ws": GuardedWebSocket, "ws_per_message_deflate": False}


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ServedBus]:
    monkeypatch.setattr(uvicorn_guards, "HEAD_TIMEOUT", 0.3)
    monkeypatch.setattr(uvicorn_guards, "LINGER", 0.3)
    async with serving_bus(tmp_path, server=GUARDED) as served:
        yield served


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def streams(served: ServedBus) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.served.port)
    yield reader, writer
    writer.close()


async def test_who_connects_and_says_nothing_is_closed(streams: Streams) -> None:
    assert await asyncio.wait_for(streams[0].read(), 10) == b""


async def test_a_connection_of_an_address_in_debt_is_read_in_its_turn(served: ServedBus) -> None:
    """Given an address that floods, when it connects anew, then that is taken from its share, and answered in line."""
    assert await _used_by_a_connection(served, FOREIGN) >= QUANTUM


async def test_connections_of_a_proxy_are_not_one_clients(served: ServedBus) -> None:
    """Given a proxy that is trusted to name its clients (by default one on this machine), when it owes time for one of
    them, then the others do not stand in line for that.
    """
    assert await _used_by_a_connection(served, "127.0.0.1") == 0


@pytest.mark.parametrize("trusted", ["*", "127.0.0.1"])
async def test_those_over_a_unix_socket_are_not_one_clients_where_it_is_trusted(tmp_path: Path, trusted: str) -> None:
    """Given a proxy that has no address, and is trusted if all are, when it owes time for one of its clients."""
    path = str(tmp_path / "bus.sock")
    async with serving_bus(tmp_path, server={**GUARDED, "uds": path, "forwarded_allow_ips": trusted}):
        used = await _used_by_streams(asyncio.open_unix_connection(path), UNKNOWN)

    assert used == 0 if trusted == "*" else used >= QUANTUM


async def _used_by_a_connection(served: ServedBus, address: str) -> float:
    """Have an address that floods connect anew; return what that has cost it in line."""
    opening = asyncio.open_connection("127.0.0.1", served.served.port, local_addr=(address, 0))
    return await _used_by_streams(opening, address)


async def _used_by_streams(opening: Awaitable[Streams], address: str) -> float:
    share = Share(asyncio.get_running_loop(), address)
    share.spend(MOST_OWED)
    used = share.account.used
    reader, writer = await opening
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: bus\r\n\r\n")
    assert b"200" in await asyncio.wait_for(reader.readuntil(b'{"status":"ok"}'), 10)
    writer.close()
    return share.account.used - used


async def test_a_head_that_dribbles_is_closed(streams: Streams) -> None:
    reader, writer = streams
    head = b"GET /healthz HTTP/1.1\r\n" + b"X: y\r\n" * 100_000

    async def dribble() -> None:
        for byte in head:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.01)

    dribbling = asyncio.create_task(dribble())
    with contextlib.suppress(ConnectionResetError):  # it may have written on
        assert await asyncio.wait_for(reader.read(), 10) == b""
    dribbling.cancel()


async def test_the_head_of_a_second_request_has_its_time_too(streams: Streams) -> None:
    reader, writer = streams
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: bus\r\n\r\n")
    assert b"200" in await reader.readuntil(b'{"status":"ok"}')

    writer.write(b"GET /healthz HTT")

    began = time.monotonic()
    assert await asyncio.wait_for(reader.read(), 10) == b""
    assert time.monotonic() - began < 4  # before uvicorn's keep-alive would


async def test_a_request_that_takes_its_time_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is the head's: a stream is open for long, and so is a connection between requests."""
    monkeypatch.setattr(uvicorn_guards, "HEAD_TIMEOUT", 0.1)
    async with serving_bus(tmp_path, server=GUARDED, heartbeat=0.1) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.served.port)
        writer.write(b"GET /events/stream HTTP/1.1\r\nHost: bus\r\n\r\n")
        for _ in range(5):
            await asyncio.wait_for(reader.readuntil(b": heartbeat"), 10)
        writer.close()


async def test_a_body_that_goes_on_after_its_answer_is_cut_off(streams: Streams) -> None:
    reader, writer = streams
    writer.write(request("POST", "/publish", b"", "Transfer-Encoding: chunked", content_type="text/plain"))

    answer = await asyncio.wait_for(reader.read(), 10)

    assert b"415" in answer.split(b"\r\n")[0]


async def test_messages_of_any_size_arrive_whole_and_in_order(served: ServedBus) -> None:
    """Given frames around the size of a slice, in one piece with small ones, then none is lost or torn."""
    sizes = [1, SLICE - 1, SLICE, SLICE + 1, 200_000, 5, 5, 5, 3 * SLICE, 700_000]
    async with served.v1() as client:
        await client.next_of("welcome")
        for number, size in enumerate(sizes * 3):
            await client.socket.send(json.dumps({"type": "ping", "id": number}).ljust(size))

        ids = [(await client.next_of("pong"))["id"] for _ in range(3 * len(sizes))]

    assert ids == list(range(3 * len(sizes)))


async def test_others_get_the_loop_between_the_slices_of_a_flood(served: ServedBus) -> None:
    async with served.v1() as client:
        await client.next_of("welcome")
        connections = served.served.server.server_state.connections
        [protocol] = [each for each in connections if isinstance(each, GuardedWebSocket)]
        flood = frame(b"") * 40_000
        protocol.data_received(flood)

        assert protocol.queue.qsize() <= SLICE // len(frame(b""))
        assert protocol.read_paused
        frames, code = await client.rest()

    assert code == 4400  # each was looked at
    assert frames[-1]["type"] == "bye"


async def test_a_first_message_that_is_to_say_who_comes_is_bounded_and_later_ones_are_not(served: ServedBus) -> None:
    url = served.served.ws + "?auth=frame"
    publish = json.dumps({"type": "publish", "id": 1, "data": {"topic": "a.b", "payload": "x" * 100_000}})
    async with connect(url, proxy=None) as socket:
        await socket.send(publish)
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009
    async with connect(url, proxy=None) as socket:
        await socket.send(json.dumps({"type": "ping", "id": 7}))
        assert json.loads(await socket.recv())["id"] == 7
        await socket.send(publish)
        assert json.loads(await socket.recv())["seq"] == 1


async def test_a_slice_of_tiny_frames_is_smaller(served: ServedBus) -> None:
    """What counts is the time that a slice takes: one of tiny frames took twenty times as long as any other."""
    async with served.v1() as client:
        await client.next_of("welcome")
        connections = served.served.server.server_state.connections
        [protocol] = [each for each in connections if isinstance(each, GuardedWebSocket)]
        await client.socket.send(json.dumps({"type": "ping", "id": 1}).ljust(500_000))
        await client.next_of("pong")
        large = protocol._slice

        client.socket.transport.write(frame(b"") * 40_000)
        await client.rest()

    assert large == SLICE
    assert protocol._slice < SLICE


async def test_what_floods_on_after_the_close_is_not_parsed_for_long(
    served: ServedBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_guards, "MAX_TIME_AFTER_CLOSE", 0.0)
    async with served.v1() as client:
        await client.next_of("welcome")
        client.socket.transport.write(frame(b"") * 40_000)  # the hundredth bad one ends it

        await client.rest()

    await eventually(lambda: not served.served.server.server_state.connections, 5)  # uvicorn would wait for ten


async def test_a_message_of_too_many_fragments_ends_the_connection(served: ServedBus) -> None:
    async with served.v1() as client:
        await client.next_of("welcome")
        transport = client.socket.transport
        transport.write(frame(b"{", TEXT, fin=False) + frame(b"", CONTINUED, fin=False) * 1_100)

        assert (await client.rest())[1] == 1009
    await eventually(lambda: not served.served.server.server_state.connections)
