"""Other people's WebSocket clients, unmodified: `websocket-client` from PyPI, and `wscat` from npm where it is there.

`wscat` is looked for in the folder that EVENTBUS_TEST_NODE_TOOLS names, into which npm has installed it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import websocket

from tests.processes import Process
from tests.server.sockets import ServedBus, serving_bus
from tests.unavailable import unavailable

WSCAT = Path(os.environ.get("EVENTBUS_TEST_NODE_TOOLS", "/nowhere")) / "node_modules" / ".bin" / "wscat"


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[ServedBus]:
    async with serving_bus(tmp_path) as served:
        yield served


async def test_websocket_client_speaks_the_plain_frames(bus: ServedBus) -> None:
    await bus.bus.publish("chat.user1", "Hello")

    def talk() -> list[Any]:
        connection = websocket.create_connection(bus.served.ws, timeout=10)
        try:
            connection.send(json.dumps({"type": "subscribe", "pattern": "chat.*", "starting_seq": 0}))
            first = json.loads(connection.recv())
            connection.send(json.dumps({"type": "publish", "id": 1, "data": {"topic": "user.created", "payload": 7}}))
            return [first, json.loads(connection.recv())]
        finally:
            connection.close()

    event, answer = await asyncio.to_thread(talk)
    assert (event["seq"], event["payload"]) == (1, "Hello")
    assert (answer["type"], answer["id"], answer["seq"]) == ("ok", 1, 2)


async def test_websocket_client_speaks_the_subprotocol(bus: ServedBus) -> None:
    await bus.bus.publish("chat.user1", "Hello")

    def talk() -> list[Any]:
        connection = websocket.create_connection(bus.served.ws, subprotocols=["eventbus.v1"], timeout=10)
        try:
            assert connection.getsubprotocol() == "eventbus.v1"
            frames = [json.loads(connection.recv())]
            subscribe = {"type": "subscribe", "patterns": ["#"], "from": "earliest", "sub": 1, "id": 1}
            connection.send(json.dumps(subscribe))
            while not any(frame["type"] == "event" for frame in frames):
                received = json.loads(connection.recv())
                frames += received if isinstance(received, list) else [received]
            return frames
        finally:
            connection.close()

    frames = await asyncio.to_thread(talk)
    assert frames[0]["type"] == "welcome"
    assert [frame["payload"] for frame in frames if frame["type"] == "event"] == ["Hello"]


@pytest.mark.parametrize(
    ("frame", "options"),
    [
        ({"type": "subscribe", "pattern": "chat.*", "starting_seq": 0}, []),
        ({"type": "subscribe", "patterns": ["chat.*"], "from": "earliest"}, ["--subprotocol", "eventbus.v1"]),
    ],
    ids=["plain", "v1"],
)
async def test_wscat_prints_what_was_published(
    bus: ServedBus, tmp_path: Path, frame: dict[str, Any], options: list[str]
) -> None:
    if not WSCAT.exists():
        unavailable("EVENTBUS_TEST_NODE_TOOLS names no folder into which npm has installed wscat")
    await bus.bus.publish("chat.user1", "Hello")
    wscat = [str(WSCAT), "--connect", bus.served.ws, "--execute", json.dumps(frame), "--wait", "30", *options]
    command = ["sh", "-c", f"sleep 60 | exec {shlex.join(wscat)}"]  # it ends when there is nothing to type any more
    async with Process.running(command, cwd=tmp_path) as process:
        await process.line("Hello")
