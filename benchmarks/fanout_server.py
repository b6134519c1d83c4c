"""The servers of the fan-out benchmarks: `python -m benchmarks.fanout_server loop|bus|echo PORT`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from benchmarks.measuring import PAYLOAD
from eventbus_fastapi import EventBus
from eventbus_fastapi.codec import JSON, encode
from eventbus_fastapi.codec.message_id import new_message_id
from eventbus_fastapi.events import Message
from eventbus_fastapi.protocol.events import event_bodies

TOPIC = "bench.fanout"

Publish = Callable[[dict[str, Any]], Awaitable[object]]


async def publish_evenly(publish: Publish, events: int, rate: float) -> None:
    """Publish so many a second, each with the time at which that began."""
    start = time.perf_counter()
    for number in range(events):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        await publish({"at": round(time.perf_counter(), 6), "note": "y" * 170})


def loop_app() -> ASGIApp:
    """What a program without a bus does: send every event to every socket, one after the other."""
    sockets: set[WebSocket] = set()

    async def connect(socket: WebSocket) -> None:
        await socket.accept(subprotocol="eventbus.v1")
        sockets.add(socket)
        try:
            while True:
                await socket.receive_text()
                await socket.send_text('{"type":"ok","id":1}')
        except WebSocketDisconnect:
            sockets.discard(socket)

    async def send(payload: dict[str, Any]) -> None:
        body, _ = encode(payload)
        text = event_bodies([Message(1, new_message_id(), TOPIC, None, body, JSON, None, 0)], 1)
        for socket in sockets:
            await socket.send_text(text)

    async def burst(request: Request) -> PlainTextResponse:
        for _ in range(int(request.query_params["events"])):
            await send(PAYLOAD)
        return PlainTextResponse("sent")

    async def even(request: Request) -> PlainTextResponse:
        await publish_evenly(send, int(request.query_params["events"]), float(request.query_params["rate"]))
        return PlainTextResponse("sent")

    return Starlette(
        routes=[
            WebSocketRoute("/ws", connect),
            Route("/burst", burst, methods=["POST"]),
            Route("/even", even, methods=["POST"]),
        ]
    )


def bus_app() -> ASGIApp:
    """The bus, publishing to itself."""
    eventbus = EventBus("sqlite+aiosqlite:///:memory:", max_connections_per_address=100_000)
    app = FastAPI()
    app.include_router(eventbus.router())

    @app.post("/burst")
    async def burst(events: int) -> str:
        for start in range(0, events, 1_000):
            await eventbus.publish_many([(TOPIC, PAYLOAD)] * min(1_000, events - start))
        return "published"

    @app.post("/even")
    async def even(events: int, rate: float) -> str:
        await publish_evenly(lambda payload: eventbus.publish(TOPIC, payload), events, rate)
        return "published"

    return app


def echo_app() -> ASGIApp:
    """The least that a WebSocket on uvicorn can be: an ASGI function that echoes."""

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for answer in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{answer}.complete"})
            return
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "eventbus.v1"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"]})

    return echo


APPS: dict[str, Callable[[], ASGIApp]] = {"loop": loop_app, "bus": bus_app, "echo": echo_app}

if __name__ == "__main__":
    uvicorn.run(
        APPS[sys.argv[1]](),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="error",
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # the readers only count; they answer no ping
    )
