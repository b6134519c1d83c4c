"""Nodes with fan-out: every socket sees each event once and in order, NATS is killed meanwhile, nobody reads the log.

    python -m tests.faults.fanned_out                       # 3 nodes, 300 sockets, 50,000 events; PostgreSQL
    python -m tests.faults.fanned_out --count 5000 --sockets 30 --database mysql

A quarter of the events are published while there is one node, with a third of the sockets; a quarter through all three
nodes by turns, once they have caught up. In both quarters the reads of the log are counted, by the nodes, and on
PostgreSQL by its own statistics, too: there are about none, with three nodes as with one. While the other half is
published, NATS is killed with -9, and started again with an empty stream; then nodes may read, and their readers must
not notice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from websockets.asyncio.client import connect

from tests.brokers import BrokerServer, own_broker
from tests.databases import kind_of
from tests.faults import command
from tests.faults.followers import V1
from tests.faults.processes import Node, Processes, prepare
from tests.waiting import eventually

NODES = 3
BATCH = 50
"""Events of one publish."""
PACE = 0.02
"""Seconds between two publishes."""
DOWN = 3.0
"""Seconds that NATS is away."""
STILL = 12
"""Seconds that PostgreSQL's count must stay the same: an idle session reports what it has done after 10."""
STALLED = 0.02
"""Pages of the log for each publish that other nodes may read while all is well: on a machine that stalls, one loses
its patience now and then."""
MOST_READS = {"postgresql": STALLED, "mysql": 1.5}
"""The same on all nodes together: on MySQL the one that has appended reads what it pushes. Without fan-out each node
reads for nearly every publish of another."""
EVENT = re.compile(rb'"type":"event","sub":1,"seq":(\d+)')
READS = "SELECT coalesce(sum(idx_scan + seq_scan), 0) FROM pg_stat_user_tables WHERE relname = 'bus_event'"


class Socket:
    """A reader that takes down nothing but whether the seqs come one after the other."""

    def __init__(self, node: Node) -> None:
        self.position = 0
        self.wrong: list[tuple[int, int]] = []
        """What came instead of what was expected."""
        self._node = node

    async def run(self) -> None:
        """Read the log from its beginning, until cancelled. A connection that ends is an error."""
        options: dict[str, Any] = {"compression": None, "max_size": None, "proxy": None, "ping_interval": None}
        async with connect(self._node.ws, subprotocols=[V1], **options) as socket:
            await socket.send(json.dumps({"type": "subscribe", "id": 1, "sub": 1, "pattern": "#", "after": 0}))
            while True:
                self._note(list(map(int, EVENT.findall(await socket.recv(decode=False)))))

    def _note(self, seqs: list[int]) -> None:
        if not seqs:
            return
        if seqs != list(range(self.position + 1, self.position + 1 + len(seqs))):
            place = next(each for each, seq in enumerate(seqs) if seq != self.position + 1 + each)
            self.wrong.append((self.position + 1 + place, seqs[place]))
        self.position = seqs[-1]


class Crowd:
    """The nodes and their sockets."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.nodes: list[Node] = []
        self.sockets: list[Socket] = []
        self.published = 0
        self._client = client
        self._tasks: list[asyncio.Task[None]] = []

    async def add(self, node: Node, sockets: int) -> None:
        """Add a node; wait until it has the stream, and its sockets have the whole log."""
        self.nodes.append(node)
        await eventually(lambda: self.is_alive(node), 30)
        self.sockets += (added := [Socket(node) for _ in range(sockets)])
        self._tasks += [asyncio.create_task(socket.run()) for socket in added]
        await self.catch_up()

    async def publish(self, count: int) -> None:
        """Publish so many events, through the nodes by turns."""
        for start in range(0, count, BATCH):
            node = self.nodes[start // BATCH % len(self.nodes)]
            numbers = range(self.published + start, self.published + min(count, start + BATCH))
            body = [{"topic": "fanned.out", "payload": number} for number in numbers]
            (await self._client.post(f"{node.http}/publish", json=body)).raise_for_status()
            await asyncio.sleep(PACE)
        self.published += count

    async def catch_up(self) -> None:
        """Wait until all sockets have all that was published."""
        await eventually(self._has_all, 60 + self.published * len(self.sockets) / 100_000)

    def _has_all(self) -> bool:
        self.check()
        return all(socket.position >= self.published for socket in self.sockets)

    def check(self) -> None:
        """Raise if a socket saw anything but each event once and in order."""
        ended = [task for task in self._tasks if task.done()]
        if ended:
            ended[0].result()
        wrong = [each for socket in self.sockets for each in socket.wrong]
        if wrong:
            raise WrongOrder(f"{len(wrong)} times a socket saw another seq than the next: {wrong[:5]}")

    async def figure(self, name: str) -> float:
        """Return the sum of a metric over all nodes."""
        return sum([await self._figure(node, name) for node in self.nodes])

    async def is_alive(self, node: Node) -> bool:
        return await self._figure(node, "eventbus_fanout_alive") == 1

    async def are_alive(self) -> bool:
        return await self.figure("eventbus_fanout_alive") == len(self.nodes)

    async def _figure(self, node: Node, name: str) -> float:
        for line in (await self._client.get(f"{node.http}/metrics")).text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(f"no {name} in the metrics of {node.http}")

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class WrongOrder(BaseException):
    """No reason to look again, as `eventually` would."""


async def run(
    processes: Processes,
    database_url: str,
    *,
    count: int,
    sockets: int,
    down: float = DOWN,
    asks_database: bool = False,
) -> Mapping[str, Any]:
    """Publish so many events to so many sockets. PostgreSQL is asked for its count as well, if `asks_database`: slowly.

    Raises:
        AssertionError: a socket did not see each event once and in order, or the log was read as without fan-out.
    """
    await prepare(database_url)
    quarter = count // 4
    with own_broker("nats") as nats:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            crowd = Crowd(client)
            try:
                asked = database_url if asks_database and kind_of(database_url) == "postgresql" else None
                return await _run(crowd, processes, database_url, asked, nats, quarter, sockets // NODES, down)
            except WrongOrder as exc:
                raise AssertionError(str(exc)) from None
            finally:
                await crowd.end()


async def _run(
    crowd: Crowd,
    processes: Processes,
    database_url: str,
    asked: str | None,
    nats: BrokerServer,
    quarter: int,
    sockets: int,
    down: float,
) -> Mapping[str, Any]:
    settings: dict[str, Any] = {"fanout": nats.url, "metrics": "true", "retention_interval": 3_600}
    began = time.monotonic()
    await crowd.add(await processes.node(database_url, name="node-1", **settings), sockets)
    by_one = await _reads_of(crowd, asked, quarter)
    for number in range(2, NODES + 1):
        await crowd.add(await processes.node(database_url, name=f"node-{number}", **settings), sockets)
    by_all = await _reads_of(crowd, asked, quarter)
    publishes = quarter / BATCH
    most = 5 + MOST_READS[kind_of(database_url)] * publishes
    for reads in (*by_one, *by_all):
        assert reads <= most, f"{by_one} and {by_all} reads of the log for {publishes:,.0f} publishes"
    assert by_all[0] <= by_one[0] + 5 + STALLED * publishes, f"{by_one} reads with one node, {by_all} with {NODES}"

    given, before = (
        await crowd.figure("eventbus_fanout_events_total"),
        await crowd.figure("eventbus_log_pages_read_total"),
    )
    publishing = asyncio.create_task(crowd.publish(2 * quarter))
    await asyncio.sleep(min(2.0, quarter / BATCH * PACE))
    nats.kill()
    await asyncio.sleep(down)
    nats.start()
    await eventually(crowd.are_alive, 30)
    await publishing
    await crowd.catch_up()
    meanwhile = await crowd.figure("eventbus_log_pages_read_total") - before
    given = await crowd.figure("eventbus_fanout_events_total") - given
    crowd.check()
    return {
        "events": crowd.published,
        "sockets": len(crowd.sockets),
        "deliveries": crowd.published * len(crowd.sockets),
        "holes, doubles, out of order": "0",
        f"publishes of {BATCH} in each of the first two quarters": publishes,
        "pages of the log read with 1 node": _shown(by_one),
        f"pages of the log read with {NODES} nodes": _shown(by_all),
        f"pages read while NATS was killed and away for {down:g} s": f"{meanwhile:,.0f}",
        "events that nodes had from the fan-out in that half": f"{given:,.0f}",
        "deliveries per second, over all": crowd.published * len(crowd.sockets) / (time.monotonic() - began),
    }


async def _reads_of(crowd: Crowd, asked: str | None, count: int) -> Sequence[float]:
    """Return the reads of the log while so many events are published: as the nodes count, and as PostgreSQL does."""
    before = None if asked is None else await _scans(asked)
    pages = await crowd.figure("eventbus_log_pages_read_total")
    await crowd.publish(count)
    await crowd.catch_up()
    counted = await crowd.figure("eventbus_log_pages_read_total") - pages
    return [counted] if asked is None or before is None else [counted, await _scans(asked) - before]


async def _scans(database_url: str) -> float:
    """Return the scans of the log that PostgreSQL has counted, once that stays the same: sessions report them late."""
    engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT")
    seen: list[int] = []
    async with engine.connect() as connection:
        while len(seen) < STILL or len(set(seen[-STILL:])) > 1:
            seen.append(int((await connection.execute(text(READS))).scalar_one()))
            await asyncio.sleep(1)
    await engine.dispose()
    return seen[-1]


def _shown(reads: Sequence[float]) -> str:
    return f"{reads[0]:,.0f}" + (f" (PostgreSQL counts {reads[1]:,.0f} scans)" if len(reads) > 1 else "")


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=50_000, help="events")
    parser.add_argument("--sockets", type=int, default=300, help="on all nodes together")
    parser.add_argument("--down", type=float, default=DOWN, help="seconds that NATS is away")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    sizes = {"count": options.count, "sockets": options.sockets, "down": options.down}
    return await run(processes, database_url, **sizes, asks_database=True)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options, kinds=["postgresql", "mysql"])
