"""PostgreSQL goes away under load and comes back; the bus says so meanwhile, and goes on by itself.

    python -m tests.faults.outage                           # every way
    python -m tests.faults.outage --way frozen

The ways: `fast`, as an operator stops it; `immediate`, a crash; `frozen`, its connections stay and nothing answers;
`cut`, the connections of the node go dead without a word while new ones are whole, as after a failover of a network.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.client import ClientConfig, EventBusClient
from eventbus_fastapi.errors import StoreUnavailable
from tests.faults import command
from tests.faults.followers import ClientFollower, Follower, SocketFollower, following, until_seen
from tests.faults.many_writers import LAST, difference, publish_last, read_log
from tests.faults.postgres import PostgreSQL, Wire
from tests.faults.processes import Node, Processes, prepare
from tests.waiting import eventually

Way = Literal["fast", "immediate", "frozen", "cut"]
WAYS: tuple[Way, ...] = ("fast", "immediate", "frozen", "cut")
PACE = 0.01
MOST_HTTP = 4
"""Requests over HTTP at the same time."""


class Answer(NamedTuple):
    """What became of a publish over HTTP."""

    status: int
    """0: none came."""
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.began


class Load:
    """Publishes in every way until it is stopped, and takes down what was answered."""

    def __init__(self, node: Node, engine: AsyncEngine, bus: EventBus) -> None:
        self.answers: list[Answer] = []
        self.answered: dict[str, int | None] = {}
        """message_id to seq, where the answer had one."""
        self.codes: set[str] = set()
        """Error codes that were answered."""
        self.is_over = False
        self._node = node
        self._engine = engine
        self._bus = bus

    async def run(self) -> None:
        """Publish until `is_over`."""
        http = [self._over_http() for _ in range(MOST_HTTP)]
        await asyncio.gather(*http, self._with_client(), self._in_transactions())

    async def _over_http(self) -> None:
        async with httpx.AsyncClient(base_url=self._node.http, trust_env=False, timeout=60) as client:
            while not self.is_over:
                began = time.monotonic()
                answer = await client.post("/publish", json={"topic": "load.http", "payload": 1})
                self.answers.append(Answer(answer.status_code, began, time.monotonic()))
                if answer.status_code == 201:
                    self.answered[answer.json()["message_id"]] = answer.json()["seq"]
                else:
                    self.codes.add(answer.json()["code"])
                    assert answer.json()["retry"] is True, answer.text
                await asyncio.sleep(PACE)

    async def _with_client(self) -> None:
        config = ClientConfig(url=self._node.ws, reconnect_interval=0.1, max_reconnect_interval=0.5, proxy=None)
        async with EventBusClient(config) as client:
            while not self.is_over:
                receipt = await client.publish("load.client", 1)
                self.answered[str(receipt.message_id)] = receipt.seq
                await asyncio.sleep(PACE)

    async def _in_transactions(self) -> None:
        while not self.is_over:
            try:
                async with self._engine.begin() as connection:
                    message_id = (await self._bus.publish_txn(connection, "load.transaction", 1)).message_id
                self.answered[str(message_id)] = None
            except (DBAPIError, InterfaceError, OSError, StoreUnavailable):
                pass  # the program's own connection is no concern of the bus
            await asyncio.sleep(PACE)


async def run(processes: Processes, way: Way, *, seconds: float, **settings: Any) -> Mapping[str, Any]:
    """Take the database away for some seconds under load.

    Raises:
        AssertionError: an answer was not a retryable refusal, was lost, or a reader missed or doubled an event.
    """
    with PostgreSQL.running() as server:
        async with Wire.to(server.port) as wire:
            return await _run(processes, server, wire, way, seconds, settings)


async def _run(
    processes: Processes, server: PostgreSQL, wire: Wire, way: Way, seconds: float, settings: Mapping[str, Any]
) -> Mapping[str, Any]:
    direct = await asyncio.to_thread(server.factory.create)
    await prepare(direct)
    port = wire.port if way == "cut" else server.port
    url = make_url(direct).set(port=port).render_as_string(hide_password=False)
    node = await processes.node(url, by="serve", **settings)
    engine = create_async_engine(direct, pool_pre_ping=True)
    load = Load(node, engine, EventBus(direct))
    sockets = [SocketFollower(node.ws), SocketFollower(node.ws, dialect="plain")]
    readers: list[Follower] = [*sockets, ClientFollower(node.ws)]
    async with following(*readers):
        loading = asyncio.create_task(load.run(), name="load")
        await eventually(lambda: len(sockets[0].seen) > 100 or loading.done(), 30)

        away = time.monotonic()
        back = await _take_away(server, wire, way, seconds)
        published = await _published_after(load, loading, back)
        seen = [await _seen_after(reader, published) for reader in readers]
        ready = await _ready(node)

        load.is_over = True
        await loading
        await publish_last(node)
        await until_seen(readers, LAST, 30)
    await engine.dispose()
    log = await read_log(node)
    _check(log, load, readers)
    during = [answer for answer in load.answers if answer.ended > away and answer.began < back]
    refused = [answer for answer in during if answer.status != 201]
    return {
        "way": way,
        "seconds away": back - away,
        "HTTP answers meanwhile, of them refused": f"{len(during)} / {len(refused)}",
        "error codes": ", ".join(sorted(load.codes)) or "none",
        "a refusal took, median / longest s": _spread([answer.seconds for answer in refused]),
        "an answer took at the longest, s": max(answer.seconds for answer in load.answers),
        "back, until a publish is answered, s": published - back,
        "back, until every reader has new events, s": max(seen) - back,
        "back, until the node is ready, s": ready - back,
        "connections of the raw readers": " / ".join(str(reader.connections) for reader in sockets),
        "answered publishes, all in the log": len(load.answered),
        "events in the log, all seen by all readers": len(log),
    }


async def _take_away(server: PostgreSQL, wire: Wire, way: Way, seconds: float) -> float:
    """Take the database away and give it back; return when it was back."""
    match way:
        case "fast" | "immediate":
            await asyncio.to_thread(server.stop, way)
            await asyncio.sleep(seconds)
            await asyncio.to_thread(server.start)
        case "frozen":
            with server.frozen():
                await asyncio.sleep(seconds)
        case "cut":
            wire.cut()
    return time.monotonic()


async def _published_after(load: Load, loading: asyncio.Task[None], back: float) -> float:
    """Return when the first publish was answered that began after `back`."""

    def first() -> Answer | None:
        if loading.done():
            loading.result()
        return next((answer for answer in load.answers if answer.status == 201 and answer.began > back), None)

    found = await eventually(first, 60)
    assert found is not None
    return found.ended


async def _seen_after(reader: Follower, time: float) -> float:
    """Return when the reader got its first event after a time."""
    await eventually(lambda: reader.seen[-1].at > time, 60)
    return next(event.at for event in reader.seen if event.at > time)


async def _ready(node: Node) -> float:
    async with httpx.AsyncClient(base_url=node.http, trust_env=False, timeout=60) as client:

        async def is_ready() -> bool:
            return (await client.get("/readyz")).is_success

        await eventually(is_ready, 60)
    return time.monotonic()


def _check(log: list[tuple[int, str]], load: Load, readers: list[Follower]) -> None:
    assert [seq for seq, _ in log] == list(range(1, len(log) + 1)), "the seqs are not dense"
    places = {message_id: seq for seq, message_id in log}
    assert len(places) == len(log), "an event is in the log twice"
    wrong = [
        message_id
        for message_id, seq in load.answered.items()
        if message_id not in places or seq not in (None, places[message_id])
    ]
    assert not wrong, f"{len(wrong)} of {len(load.answered)} answered publishes are not where they should be"
    for reader in readers:
        seen = [(event.seq, event.message_id) for event in reader.seen]
        assert seen == log, f"{reader.name}: {difference(seen, log)}"
        assert not reader.gaps, f"{reader.name} was told of gaps: {reader.gaps}"


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return f"{command.percentile(seconds, 0.5):.3f} / {max(seconds):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=WAYS, action="append", help="one of them; may be given again")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long it is away")
    options = parser.parse_args()
    command.be_quiet()
    for way in options.way or WAYS:
        with tempfile.TemporaryDirectory(prefix="bus-fault-") as directory, Processes(Path(directory)) as processes:
            command.show("postgresql", asyncio.run(run(processes, way, seconds=options.seconds)))


if __name__ == "__main__":
    main()
