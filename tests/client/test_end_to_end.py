"""The client against real servers, in processes that are killed."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.errors import LogGap, RemoteError
from eventbus_fastapi.events import Event, Receipt
from tests.processes import environment
from tests.server.sockets import serving_bus
from tests.waiting import eventually


class UserCreated(Event, topic="user.created"):
    id: int


class ServerProcess:
    """`uvicorn eventbus_fastapi.app:app` on one SQLite file and one port."""

    def __init__(self, database: Path, settings: dict[str, str]) -> None:
        self._database = database
        self._settings = settings
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port: int = free.getsockname()[1]
        self._process: asyncio.subprocess.Process | None = None

    @property
    def config(self) -> ClientConfig:
        return ClientConfig(
            url=f"ws://127.0.0.1:{self._port}/ws", reconnect_interval=0.05, max_reconnect_interval=0.2, proxy=None
        )

    async def start(self) -> None:
        arguments = ["-m", "uvicorn", "eventbus_fastapi.app:app", "--port", str(self._port), "--log-level", "warning"]
        settings = {"EVENTBUS_DATABASE_URL": f"sqlite+aiosqlite:///{self._database}", **self._settings}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, cwd=self._database.parent, env=environment(**settings)
        )

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, with_signal: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(with_signal)
        await self._process.wait()

    async def restart(self, with_signal: signal.Signals) -> None:
        await self.end(with_signal)
        await self.start()


@asynccontextmanager
async def server_process(directory: Path, **settings: str) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(directory / "bus.db", settings)
    await server.start()
    try:
        yield server
    finally:
        await server.end(signal.SIGKILL)


async def test_events_go_round(tmp_path: Path) -> None:
    async with server_process(tmp_path) as server, EventBusClient(server.config) as client:
        async with client.subscribe(UserCreated) as subscription:
            receipts = [await client.publish(UserCreated(id=1))]
            receipts += await client.publish_many([UserCreated(id=2), ("user.deleted", 2), UserCreated(id=3)])
            taken = [await anext(subscription) for _ in range(3)]
        assert [message.payload for message in taken] == [UserCreated(id=1), UserCreated(id=2), UserCreated(id=3)]
        assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4]
        assert [message.seq for message in taken] == [1, 2, 4]
        await taken[0].ack()
        async with client.subscribe("#", start="earliest") as subscription:
            assert [(await anext(subscription)).seq for _ in range(3)] == [2, 3, 4]
        again = await client.publish("t", 1, message_id=receipts[0].message_id)
        assert again == receipts[0]._replace(duplicate=True)
        taken[0].message_id = receipts[1].message_id
        with pytest.raises(RemoteError) as caught:
            await taken[0].ack()
        assert caught.value.code == "ack.mismatch"


async def publish_until(done: asyncio.Event, client: EventBusClient, name: str, answered: list[Receipt]) -> int:
    """Publish one event after the other; return how many."""
    number = 0
    while not done.is_set():
        answered.append(await client.publish(f"load.{name}", {"number": number}))
        number += 1
    return number


async def test_killing_the_server_loses_and_doubles_nothing(tmp_path: Path) -> None:
    names = [f"p{number}" for number in range(10)]
    done = asyncio.Event()
    answered: list[Receipt] = []
    seen: list[tuple[int, str, int]] = []

    async def read(client: EventBusClient) -> None:
        async for message in client.subscribe("load.*", start="earliest"):
            seen.append((message.seq, message.topic, message.payload["number"]))  # noqa: PERF401 - it has no end

    async with (
        server_process(tmp_path) as server,
        EventBusClient(server.config) as publisher,
        EventBusClient(server.config) as reader,
    ):
        reading = asyncio.create_task(read(reader))
        publishing = [asyncio.create_task(publish_until(done, publisher, name, answered)) for name in names]
        for with_signal in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            wanted = len(seen) + 200
            await eventually(lambda: len(seen) >= wanted, timeout=60)  # noqa: B023 - it is done with before the next
            await server.restart(with_signal)
        done.set()
        counts = await asyncio.gather(*publishing)
        await eventually(lambda: len(seen) >= sum(counts) or reading.done(), timeout=60)
        reading.cancel()
        await asyncio.wait([reading])

    assert [seq for seq, _, _ in seen] == list(range(1, sum(counts) + 1))
    assert {receipt.seq for receipt in answered} == {seq for seq, _, _ in seen}
    for name, count in zip(names, counts, strict=True):
        assert [number for _, topic, number in seen if topic == f"load.{name}"] == list(range(count))


async def test_a_server_that_hangs_is_left_and_found_again(tmp_path: Path) -> None:
    async with (
        server_process(tmp_path, EVENTBUS_HEARTBEAT="0.2") as server,
        EventBusClient(server.config) as client,
        client.subscribe("t") as subscription,
    ):
        await client.publish("t", 1)
        server.send_signal(signal.SIGSTOP)
        publish = asyncio.create_task(client.publish("t", 2))
        await eventually(lambda: not client.connected)
        server.send_signal(signal.SIGCONT)
        assert (await publish).seq == 2
        assert [(await anext(subscription)).payload for _ in range(2)] == [1, 2]


async def test_a_reader_that_was_cut_off_for_being_slow_sees_all(tmp_path: Path) -> None:
    async with serving_bus(tmp_path) as served:
        config = ClientConfig(
            url=served.served.ws, window=10, reconnect_interval=0.01, max_reconnect_interval=0.05, proxy=None
        )
        async with (
            EventBusClient(config) as client,
            client.subscribe("t", overflow="disconnect", buffer=20) as subscription,
        ):
            for first in range(0, 500, 50):
                await client.publish_many([("t", number) for number in range(first, first + 50)])
                await anext(subscription)
            rest = [(await anext(subscription)).payload for _ in range(490)]
            assert rest == list(range(10, 500))


async def test_events_without_storage_reach_who_listens_now(tmp_path: Path) -> None:
    async with (
        serving_bus(tmp_path) as served,
        EventBusClient(served.served.ws) as client,
        client.subscribe("t") as subscription,
    ):
        assert (await client.publish("t", 1, durable=False)).seq is None
        message = await anext(subscription)
        assert (message.payload, message.is_durable) == (1, False)
        await message.ack()


async def test_what_retention_has_removed_is_a_gap(tmp_path: Path) -> None:
    gaps: list[LogGap] = []
    async with (
        serving_bus(tmp_path, retention_count=5, retention_interval=0.05) as served,
        EventBusClient(served.served.ws) as client,
    ):
        await client.publish_many([("t", number) for number in range(1, 21)])
        await eventually(lambda: _first_kept(served.bus))
        async with client.subscribe("t", after=3, on_gap=gaps.append) as subscription:
            first = await anext(subscription)
    (gap,) = gaps
    assert (gap.first_seq, gap.reason) == (4, "retention")
    assert first.seq == gap.last_seq + 1 == 16


async def _first_kept(bus: EventBus) -> bool:
    return (await bus.node.head()).first_seq == 16
