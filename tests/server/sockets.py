"""A bus behind a real server, and the client's end of a WebSocket, for tests of `/ws`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from eventbus_fastapi.bus import EventBus
from tests.serving import Served, serving
from tests.tables import log_at

V1 = Subprotocol("eventbus.v1")
IMPLEMENTATIONS = [
    "auto",
    pytest.param("websockets", marks=pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*websockets")),
]
"""What uvicorn speaks WebSocket with: its own choice, and the older one."""
PATIENCE = 10.0
"""Seconds after which a frame that should come is missing."""


class ServedBus(NamedTuple):
    bus: EventBus
    served: Served

    def plain(self, **options: Any) -> contextlib.AbstractAsyncContextManager[Peer]:
        return peer(self.served.ws, **options)

    def v1(self, **options: Any) -> contextlib.AbstractAsyncContextManager[Peer]:
        return peer(self.served.ws, subprotocols=[V1], **options)


@contextlib.asynccontextmanager
async def serving_bus(
    directory: Path, *, server: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[ServedBus]:
    """Serve the routes of a new bus on SQLite. `server` are uvicorn's options, `settings` the bus's own."""
    bus = EventBus(log_at(directory / "bus.db"), **settings)
    app = FastAPI()
    app.include_router(bus.router())
    async with serving(app, **(server or {})) as served:
        yield ServedBus(bus, served)


class Peer:
    """One open WebSocket, seen from the client. Frames that were joined are taken apart again."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.sizes: list[int] = []
        """How many frames came in each frame of the socket."""
        self._ready: deque[dict[str, Any]] = deque()

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a frame and return the next one."""
        await self.send(kind, **fields)
        return await self.next()

    async def next(self) -> dict[str, Any]:
        """Return the next frame.

        Raises:
            ConnectionClosed: there is none.
        """
        while not self._ready:
            async with asyncio.timeout(PATIENCE):
                text = await self.socket.recv()
            frame = json.loads(text)
            frames = frame if isinstance(frame, list) else [frame]
            self.sizes.append(len(frames))
            self._ready.extend(frames)
        return self._ready.popleft()

    async def next_of(self, kind: str) -> dict[str, Any]:
        """Return the next frame of a type; pass over others."""
        while (frame := await self.next()).get("type") != kind:
            pass
        return frame

    async def events(self, count: int) -> list[dict[str, Any]]:
        """Return the next events, in either dialect; pass over other frames."""
        found: list[dict[str, Any]] = []
        while len(found) < count:
            frame = await self.next()
            if "seq" in frame and frame.get("type", "event") == "event":
                found.append(frame)
        return found

    async def rest(self) -> tuple[list[dict[str, Any]], int]:
        """Read until the server closes; return the frames and the close code."""
        frames: list[dict[str, Any]] = []
        try:
            while True:
                frames.append(await self.next())
        except ConnectionClosed as exc:
            return frames, exc.rcvd.code if exc.rcvd is not None else 1006


@contextlib.asynccontextmanager
async def peer(url: str, **options: Any) -> AsyncIterator[Peer]:
    """Connect. In v1 the first frame is still to come: the `welcome`."""
    async with connect(url, compression=None, **{"max_size": None, **options}) as socket:
        yield Peer(socket)
