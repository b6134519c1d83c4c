"""A bus behind a real server, the client's end of a WebSocket, and what both do about slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from eventbus_fastapi.bus import EventBus
from tests.protocol.fitting import check_server_frame
from tests.serving import Served, serving
from tests.tables import log_at
from tests.waiting import eventually

V1 = Subprotocol("eventbus.v1")
IMPLEMENTATIONS = [
    "auto",
    pytest.param("websockets", marks=pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*websockets")),
]
"""What uvicorn speaks WebSocket with: its own choice, and the older one."""
BULK = "x" * 100_000
"""The payload of a large event."""
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
    """Serve the routes of a new bus on SQLite. `server` are uvicorn's options, `settings` the bus's own; but for them
    one address may publish a lot at once, as tests do.
    """
    bus = EventBus(log_at(directory / "bus.db"), **{"publish_burst": 100_000, **settings})
    app = FastAPI()
    app.include_router(bus.router())
    async with serving(app, **(server or {})) as served:
        yield ServedBus(bus, served)


class Peer:
    """One open WebSocket, seen from the client. Joined frames are taken apart again; those of our own
    dialects must fit their schemas.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.sizes: list[int] = []
        """How many frames came in each frame of the socket."""
        self._ready: deque[dict[str, Any]] = deque()
        self._asked: dict[Any, str] = {}

    async def send(self, kind: str, **fields: Any) -> None:
        self._asked[fields.get("id")] = f"{kind} as member" if kind == "subscribe" and "group" in fields else kind
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
        frame = self._ready.popleft()
        if self.socket.subprotocol in (None, V1):
            check_server_frame(frame, self._asked.get(frame.get("id")))
        return frame

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
    async with connect(url, **{"compression": None, "max_size": None, **options}) as socket:
        yield Peer(socket)


class Reads(Protocol):
    """A client of either kind."""

    async def events(self, count: int) -> list[Any]: ...


async def publish_until(served: ServedBus, check: Callable[[], object], *, reader: Reads | None = None) -> int:
    """Publish large events until `check` is true; `reader` must get each of them meanwhile. Return their number."""
    count = 0

    async def publish() -> bool:
        nonlocal count
        await served.bus.publish_many([served.bus.draft("bulk", BULK) for _ in range(10)])
        count += 10
        if reader is not None:
            assert (await reader.events(10))[-1]["seq"] == count
        return bool(check())

    await eventually(publish, timeout=60)
    return count


def has_unread(served: ServedBus) -> bool:
    """Say whether the server holds something that its client has not read."""
    return any(one.transport.get_write_buffer_size() for one in served.served.server.server_state.connections)


def tasks(prefix: str) -> list[asyncio.Task[Any]]:
    """Return the running tasks whose names begin so."""
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(prefix)]


def is_left_alone(served: ServedBus) -> bool:
    """Say whether nothing is left of any WebSocket. One that is idle has no task of its own."""
    return not tasks("websocket-") and not served.bus.node.meters.connections
