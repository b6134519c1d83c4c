"""Fixtures of the client's tests: a server that the test plays, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from eventbus_fastapi.client import EventBusClient
from tests.client.scripted import ScriptedServer, scripted_server


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
async def client(server: ScriptedServer) -> AsyncIterator[EventBusClient]:
    async with EventBusClient(server.config(close_timeout=0)) as client:
        yield client
