"""A server whose side of the conversation a test plays itself, frame by frame."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from eventbus_fastapi.client import ClientConfig
from eventbus_fastapi.protocol.frames import SUBPROTOCOL

EPOCH = UUID("00000000-0000-4000-8000-000000000001")
Frame = dict[str, Any]


def event(seq: int, sub: int = 1, *, topic: str = "user.created", payload: Any = None, **fields: Any) -> Frame:
    """The frame of a JSON event; its message_id follows from its seq."""
    return {
        "type": "event",
        "sub": sub,
        "seq": seq,
        "message_id": str(UUID(int=seq)),
        "topic": topic,
        "payload": {"n": seq} if payload is None else payload,
        "metadata": {"timestamp": 1767225600, "content_type": "application/json"},
        **fields,
    }


def error(code: str, *, retry: bool = False, retry_after: float | None = None, status: int = 500) -> Frame:
    return {"code": code, "status": status, "message": f"this is {code}", "retry": retry, "retry_after": retry_after}


class Peer:
    """One connection, from the server's side."""

    def __init__(self, socket: ServerConnection) -> None:
        self.socket = socket
        self._waiting: deque[Frame] = deque()

    async def welcome(self, *, heartbeat: float = 60.0, epoch: UUID = EPOCH, **limits: int) -> Peer:
        await self.send(
            {
                "type": "welcome",
                "protocol": 1,
                "server": "scripted",
                "connection": "1",
                "epoch": str(epoch),
                "head": 0,
                "heartbeat": heartbeat,
                "limits": {"max_frame": 1_048_576, "max_payload": 262_144, "max_batch": 1_000, **limits},
            }
        )
        return self

    async def receive(self) -> Frame:
        """The client's next frame; a frame that joins several counts as several."""
        while not self._waiting:
            received = json.loads(await self.socket.recv())
            self._waiting.extend(received if isinstance(received, list) else [received])
        return self._waiting.popleft()

    async def expect(self, kind: str) -> Frame:
        """The client's next frame, which has to be of this type."""
        frame = await self.receive()
        assert frame["type"] == kind, f"expected {kind}, got {frame}"
        return frame

    async def send(self, *frames: Frame) -> None:
        await self.socket.send(json.dumps(frames[0] if len(frames) == 1 else frames))

    async def send_text(self, text: str | bytes) -> None:
        await self.socket.send(text)

    async def ok(self, frame: Frame, **result: Any) -> None:
        await self.send({"type": "ok", "id": frame["id"], **result})

    async def published(self, frame: Frame, seq: int, *, duplicate: bool = False) -> None:
        await self.ok(frame, seq=seq, message_id=frame["data"]["message_id"], duplicate=duplicate)

    async def refuse(self, frame: Frame, described: Frame) -> None:
        await self.send({"type": "error", "id": frame["id"], "error": described})

    async def subscribed(self, after: int = 0) -> Frame:
        """Confirm the subscription that the client asks for next, and return its frame."""
        frame = await self.expect("subscribe")
        await self.ok(frame, sub=frame["sub"], after=after)
        return frame

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.socket.close(code, reason)

    def drop(self) -> None:
        """Cut the connection without a word."""
        self.socket.transport.abort()

    async def closed(self) -> int | None:
        """Wait until the client has closed, and return its close code."""
        while True:
            try:
                await self.receive()
            except ConnectionClosed as exc:
                return exc.rcvd.code if exc.rcvd else None


class ScriptedServer:
    """Accepts connections and hands them to the test."""

    def __init__(self) -> None:
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._server: Server | None = None
        self._port = 0
        self.accepted = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}/ws"

    def config(self, **settings: Any) -> ClientConfig:
        """A configuration that comes back fast."""
        return ClientConfig(
            **{"url": self.url, "reconnect_interval": 0.01, "max_reconnect_interval": 0.05, "proxy": None, **settings}
        )

    async def start(self, **options: Any) -> None:
        options = {"subprotocols": [SUBPROTOCOL], "close_timeout": 1, **options}
        self._server = await serve(
            self._handle, "127.0.0.1", self._port, ping_interval=None, compression=None, **options
        )
        self._port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Stop listening, and close what is open with 1001."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def accept(self) -> Peer:
        """The next connection, before it was welcomed."""
        return await self._peers.get()

    async def welcome(self, *, heartbeat: float = 60.0, epoch: UUID = EPOCH, **limits: int) -> Peer:
        """The next connection, welcomed."""
        return await (await self.accept()).welcome(heartbeat=heartbeat, epoch=epoch, **limits)

    async def _handle(self, socket: ServerConnection) -> None:
        self.accepted += 1
        self._peers.put_nowait(Peer(socket))
        await socket.wait_closed()


@asynccontextmanager
async def scripted_server(**options: Any) -> AsyncIterator[ScriptedServer]:
    server = ScriptedServer()
    await server.start(**options)
    try:
        yield server
    finally:
        await server.stop()
