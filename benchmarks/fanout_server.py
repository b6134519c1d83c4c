"""The two servers of the fan-out benchmark: `python -m benchmarks.fanout_server loop|bus PORT`."""

from __future__ import annotations

import sys
from collections.abc import Callable

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

    async def burst(request: Request) -> PlainTextResponse:
        for seq in range(1, int(request.query_params["events"]) + 1):
            body, _ = encode(PAYLOAD)
            text = event_bodies([Message(seq, new_message_id(), TOPIC, None, body, JSON, None, 0)], 1)
            for socket in sockets:
                await socket.send_text(text)
        return PlainTextResponse("sent")

    return Starlette(routes=[WebSocketRoute("/ws", connect), Route("/burst", burst, methods=["POST"])])


def bus_app() -> ASGIApp:
    """The bus, publishing to itself."""
    eventbus = EventBus("sqlite+aiosqlite:///:memory:")
    app = FastAPI()
    app.include_router(eventbus.router())

    @app.post("/burst")
    async def burst(events: int) -> str:
        for start in range(0, events, 1_000):
            await eventbus.publish_many([(TOPIC, PAYLOAD)] * min(1_000, events - start))
        return "published"

    return app


APPS: dict[str, Callable[[], ASGIApp]] = {"loop": loop_app, "bus": bus_app}

if __name__ == "__main__":
    uvicorn.run(
        APPS[sys.argv[1]](),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="error",
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # the readers only count; they answer no ping
    )
