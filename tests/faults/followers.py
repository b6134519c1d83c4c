"""Followers: readers of the log that write down all that comes, doubles included, and come back when cut off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

from eventbus_fastapi.client import ClientConfig, EventBusClient
from tests.waiting import eventually

V1 = Subprotocol("eventbus.v1")
COME_BACK = 0.05
"""Seconds between two attempts to connect."""


class Seen(NamedTuple):
    """An event as it came."""

    seq: int
    message_id: str
    topic: str
    at: float
    """When, on this machine's monotonic clock."""


class Follower(Protocol):
    """Somebody who reads the log."""

    name: str
    seen: list[Seen]
    gaps: list[Any]
    """What it was told that it will not see."""
    has_started: bool

    async def run(self) -> None:
        """Read until cancelled."""


class SocketFollower:
    """Speaks the protocol itself and forgives nothing: what the server sends twice is seen twice.

    It reads what follows `after` (None: from now on). `leave_after`: it disconnects after so many events, and resumes.
    """

    def __init__(
        self,
        url: str,
        *,
        dialect: Literal["plain", "v1"] = "v1",
        pattern: str = "#",
        leave_after: int | None = None,
        after: int | None = 0,
    ) -> None:
        self.name = f"{dialect} socket" + (f", leaves after {leave_after}" if leave_after else "")
        self.seen: list[Seen] = []
        self.gaps: list[Any] = []
        self.codes: list[int] = []
        """How its connections were closed; 1006: without a close frame."""
        self.connections = 0
        self.has_started = False
        self._url = url
        self._dialect = dialect
        self._pattern = pattern
        self._leave_after = leave_after
        self._after = after

    @property
    def position(self) -> int | None:
        """The last seq that it got; before, where it started. None: nowhere yet."""
        return self.seen[-1].seq if self.seen else self._after

    async def run(self) -> None:
        options: dict[str, Any] = {"subprotocols": [V1]} if self._dialect == "v1" else {}
        while True:
            try:
                async with connect(self._url, compression=None, max_size=None, proxy=None, **options) as socket:
                    self.connections += 1
                    await self._read(socket)
            except ConnectionClosed as exc:
                self.codes.append(1006 if exc.rcvd is None else exc.rcvd.code)
            except (OSError, TimeoutError, EOFError, InvalidStatus, InvalidMessage):
                pass
            await asyncio.sleep(COME_BACK)

    async def _read(self, socket: ClientConnection) -> None:
        await socket.send(json.dumps({"type": "subscribe", "id": 1, "pattern": self._pattern, **self._where()}))
        leaves_at = None if self._leave_after is None else len(self.seen) + self._leave_after
        while leaves_at is None or len(self.seen) < leaves_at:
            frame = json.loads(await socket.recv())
            at = time.monotonic()
            for one in frame if isinstance(frame, list) else [frame]:
                self._note(one, at)

    def _where(self) -> dict[str, Any]:
        if self.position is None:
            return {}
        return {"after": self.position} if self._dialect == "v1" else {"starting_seq": self.position + 1}

    def _note(self, frame: dict[str, Any], at: float) -> None:
        kind = frame.get("type", "event")
        if kind == "event":
            self.seen.append(Seen(frame["seq"], frame["message_id"], frame["topic"], at))
        elif kind == "ok":
            self._after = self.position if self.seen else frame["after"]
            self.has_started = True
        elif kind == "gap":
            self.gaps.append(frame)
        elif kind in ("error", "closed"):
            raise OSError(f"{self.name} was refused: {frame}")


class ClientFollower:
    """Uses `EventBusClient`, as a program would."""

    def __init__(self, url: str, *, pattern: str = "#") -> None:
        self.name = "client"
        self.seen: list[Seen] = []
        self.gaps: list[Any] = []
        self.has_started = False
        self._config = ClientConfig(url=url, reconnect_interval=0.1, max_reconnect_interval=1.0, proxy=None)
        self._pattern = pattern

    async def run(self) -> None:
        async with (
            EventBusClient(self._config) as client,
            client.subscribe(self._pattern, after=0, on_gap=self.gaps.append) as subscription,
        ):
            self.has_started = True
            async for message in subscription:
                self.seen.append(Seen(message.seq, str(message.message_id), message.topic, time.monotonic()))


@contextlib.asynccontextmanager
async def following(*followers: Follower) -> AsyncIterator[None]:
    """Let followers read inside the block; it begins when all have started."""
    tasks = [asyncio.create_task(follower.run(), name=follower.name) for follower in followers]
    try:
        await eventually(lambda: all(follower.has_started for follower in followers) or any(map(_failed, tasks)), 30)
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _failed(task: asyncio.Task[None]) -> bool:
    if task.done():
        task.result()
    return False


async def until_seen(followers: Sequence[Follower], topic: str, timeout: float) -> None:
    """Wait until the last event that each follower has seen is one of a topic."""
    for follower in followers:
        seen = follower.seen
        try:
            await eventually(partial(_ends_with, seen, topic), timeout)
        except AssertionError:
            last = seen[-1] if seen else None
            raise AssertionError(
                f"{follower.name} saw {len(seen)} events and not {topic} within {timeout:g} s; last: {last}"
            ) from None


def _ends_with(seen: list[Seen], topic: str) -> bool:
    return bool(seen) and seen[-1].topic == topic
