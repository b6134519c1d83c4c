"""A real server for tests: uvicorn in the test's own loop, on a port that the system chooses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import uvicorn

from tests.waiting import eventually


class Served(NamedTuple):
    """Where the app answers."""

    server: uvicorn.Server
    port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"


@contextlib.asynccontextmanager
async def serving(app: Any, *, port: int = 0, **options: Any) -> AsyncIterator[Served]:
    """Serve an ASGI app, with its lifespan, until the block ends. `options` are uvicorn's."""
    options = {"ws": "auto", "log_config": None, "access_log": False, "timeout_graceful_shutdown": 5, **options}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, lifespan="on", **options))
    task = asyncio.create_task(server.serve(), name="test-server")
    try:
        await eventually(lambda: server.started or task.done())
        if task.done():
            raise AssertionError("the server did not start; its log says why")
        yield Served(server, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await task
