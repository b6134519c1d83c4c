"""What let a WebSocket in is over once it is accepted: nothing of it stays for as long as the connection is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import APIRouter, Depends, FastAPI
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.server.asking import bus_on
from tests.server.sockets import V1, peer, serving_bus
from tests.serving import serving


async def test_a_dependency_with_yield_ends_when_the_websocket_is_accepted(tmp_path: Path) -> None:
    """So a session of the database, which such a dependency gives, is not held for hours."""
    did: list[str] = []

    async def session() -> AsyncIterator[None]:
        did.append("begun")
        yield
        did.append("ended")

    app = FastAPI()
    app.include_router(bus_on(tmp_path).router(), dependencies=[Depends(session)])

    async with serving(app) as served, peer(served.ws, subprotocols=[V1]) as client:
        assert (await client.next())["type"] == "welcome"
        assert did == ["begun", "ended"]
        assert (await client.ask("ping", id=1))["type"] == "pong"


async def test_a_dependency_that_fails_at_its_end_ends_the_connection_and_frees_its_place(tmp_path: Path) -> None:
    async def session() -> AsyncIterator[None]:
        yield
        raise ConnectionError("the session could not be ended")

    app = FastAPI()
    app.include_router(bus_on(tmp_path, max_connections_per_address=1).router(), dependencies=[Depends(session)])

    async with serving(app) as served:
        for _ in range(2):
            async with connect(served.ws) as socket:
                with pytest.raises(ConnectionClosed):
                    await socket.recv()


async def test_a_router_that_is_mounted_serves_a_websocket_in_its_route(tmp_path: Path) -> None:
    eventbus = bus_on(tmp_path)
    outer = FastAPI()
    outer.mount("/bus", eventbus.router())

    async with eventbus, serving(outer) as served, peer(f"{served.ws.removesuffix('/ws')}/bus/ws") as client:
        assert (await client.ask("ping", id=1))["type"] == "ok"


async def test_a_router_in_a_router_serves_a_websocket(tmp_path: Path) -> None:
    inner = APIRouter(prefix="/inner")
    inner.include_router(bus_on(tmp_path).router(), prefix="/bus")
    app = FastAPI()
    app.include_router(inner, prefix="/outer")

    async with serving(app) as served, peer(f"{served.ws.removesuffix('/ws')}/outer/inner/bus/ws") as client:
        assert app.url_path_for("eventbus_ws") == "/outer/inner/bus/ws"
        assert (await client.ask("ping", id=1))["type"] == "ok"


async def test_an_open_websocket_keeps_nothing_of_its_handshake(tmp_path: Path) -> None:
    async with serving_bus(tmp_path) as bus, bus.v1() as client:
        assert (await client.next())["type"] == "welcome"

        [protocol] = bus.served.server.server_state.connections
        kept = vars(protocol)

        assert not {"request", "response"} & set(kept)
        assert [name for name in kept["scope"] if name.endswith("_astack")] == ["fastapi_middleware_astack"]
        assert dict(kept["scope"]["headers"])[b"upgrade"] == b"websocket"  # what `authenticate` is shown again
