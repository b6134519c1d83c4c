"""The client's end of a stream of server-sent events, which keeps every line that came."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx

PATIENCE = 20.0
"""Seconds after which something that should come is missing."""


class Block(NamedTuple):
    """The lines up to a blank one."""

    name: str
    """What `event:` says; empty: it is an event of the log."""
    id: str | None
    retry: int | None
    data: Any
    """What the lines of `data:` are as JSON; None: there are none."""


class Stream:
    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.comments: list[str] = []
        self.writes: list[int] = []
        """Bytes of each chunk as it came."""
        self._chunks = answer.aiter_bytes()
        self._rest = b""
        self._lines: deque[str] = deque()

    async def next(self) -> Block:
        """Return the next block.

        Raises:
            StopAsyncIteration: the stream has ended.
        """
        found: dict[str, list[str]] = {}
        while line := await self._line():
            field, _, value = line.partition(":")
            if not field:
                self.comments.append(value.strip())
            found.setdefault(field, []).append(value.removeprefix(" "))
        data = "\n".join(found["data"]) if "data" in found else None
        return Block(
            found.get("event", [""])[-1],
            found.get("id", [None])[-1],
            int(found["retry"][-1]) if "retry" in found else None,
            None if data is None else json.loads(data),
        )

    async def next_of(self, name: str) -> Block:
        """Return the next block of a name; pass over others."""
        while (block := await self.next()).name != name:
            pass
        return block

    async def events(self, count: int) -> list[Any]:
        """Return the next events; pass over what the bus says for itself."""
        return [(await self.next_of("")).data for _ in range(count)]

    async def rest(self) -> list[Block]:
        """Read until the stream ends."""
        blocks = []
        with contextlib.suppress(StopAsyncIteration):
            while True:
                blocks.append(await self.next())
        return blocks

    async def _line(self) -> str:
        while not self._lines:
            async with asyncio.timeout(PATIENCE):
                chunk = await anext(self._chunks)
            self.writes.append(len(chunk))
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            self._lines.extend(line.decode() for line in lines)
        return self._lines.popleft()


@contextlib.asynccontextmanager
async def streaming(base: str, *, headers: dict[str, str] | None = None, **params: Any) -> AsyncIterator[Stream]:
    """Ask for a stream; `from_` is the parameter `from`."""
    query = {name.rstrip("_"): value for name, value in params.items()}
    async with (
        httpx.AsyncClient(base_url=base, timeout=None) as client,
        client.stream("GET", "/events/stream", params=query, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        yield Stream(answer)
