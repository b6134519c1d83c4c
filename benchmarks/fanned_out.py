"""Fan-out over NATS, against the same nodes without it, which hear by NOTIFY and read the log.

Two clusters on one throw-away PostgreSQL, each with a database of its own, run side by side and take turns: one with
fan-out over a nats-server of the benchmark's own, one without. Events of 200 bytes are published one by one through the
first node.

- How long an event takes from the call that publishes it to a socket on another node: one socket on the second of four
  nodes, 50 events a second.
- How much CPU time the database takes per delivered event: four nodes with 25 sockets each, 200 events a second.
  Counted are the processes of the sessions on the cluster's database (`pg_stat_activity`), user and system time by
  psutil, from the first event until every socket has the last one, with all that these sessions do meanwhile, as the
  polls of the nodes. It is divided by events times sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import psutil

from benchmarks.fanout import EVENTBUS
from benchmarks.measuring import Figure, dsn, migrate, quantile
from benchmarks.sockets import Reader, connected, free_port, running
from eventbus_fastapi import EventBus
from tests.brokers import own_broker
from tests.faults.postgres import PostgreSQL
from tests.waiting import eventually

NODES = 4
SOCKETS = 25
"""On each node that has some."""
RATE = 50.0
LATENCY_TURN = 100
"""Events of one turn of a cluster."""
LATENCY_TURNS = 8
"""Turns of each cluster in a round."""
CPU_RATE = 200.0
CPU_TURN = 2_000


class Cluster:
    """Nodes on one database, and sockets on some of them."""

    def __init__(self, database_url: str, ports: list[int], client: httpx.AsyncClient) -> None:
        self.ports = ports
        self._url = database_url
        self._client = client

    async def publish(self, events: int, rate: float) -> None:
        await self._post(f"/even?events={events}&rate={rate}")

    async def _post(self, path: str) -> None:
        (await self._client.post(f"http://127.0.0.1:{self.ports[0]}{path}")).raise_for_status()

    async def is_ready(self) -> bool:
        answers = [await self._client.get(f"http://127.0.0.1:{port}/fanned-out") for port in self.ports]
        return all(answer.is_success for answer in answers)

    async def pages_read(self) -> int:
        answers = [await self._client.get(f"http://127.0.0.1:{port}/fanned-out") for port in self.ports]
        return sum(answer.json() for answer in answers)

    async def database_cpu(self) -> float:
        """Return the seconds of CPU time that the sessions of now have taken on the database."""
        connection = await asyncpg.connect(dsn(self._url))
        query = (
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"  # autovacuum has its own pace
        )
        pids = [row["pid"] for row in await connection.fetch(query)]
        await connection.close()
        total = 0.0
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
        return total


@contextlib.asynccontextmanager
async def cluster(postgres: PostgreSQL, nodes: int, **settings: str) -> AsyncIterator[Cluster]:
    """Run so many nodes on a new database."""
    url = postgres.factory.create()
    eventbus = EventBus(url)
    await migrate(eventbus)
    await eventbus.engine.dispose()
    own = {"database_url": url, "pool_size": "3", "max_connections_per_address": "10000", **settings}
    variables = {f"EVENTBUS_{name.upper()}": value for name, value in own.items()}
    async with contextlib.AsyncExitStack() as stack:
        ports: list[int] = []
        starting = []
        for _ in range(nodes):
            ports.append(port := free_port())
            command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable]
            node = running([*command, "-m", "benchmarks.fanned_out_server", str(port)], port)
            starting.append(stack.enter_async_context(node))
        await asyncio.gather(*starting)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=300, trust_env=False))
        made = Cluster(url, ports, client)
        await eventually(made.is_ready, 30)
        yield made


async def deliver(cluster: Cluster, readers: list[Reader], events: int, rate: float) -> None:
    """Publish, and wait until every socket has all of it."""
    for reader in readers:
        reader.expect(events)
    await cluster.publish(events, rate)
    for reader in readers:
        await asyncio.wait_for(reader.done.wait(), 60)


async def run(repeat: int) -> list[Figure]:
    for name in [name for name in os.environ if name.startswith("EVENTBUS_") and "_TEST_" not in name]:
        del os.environ[name]
    with PostgreSQL.running() as postgres, own_broker("nats") as nats:
        async with cluster(postgres, NODES) as off, cluster(postgres, NODES, fanout=nats.url) as on:
            sides = {"off": off, "on": on}
            return [*await _latency(sides, repeat), *await _cpu(sides, repeat)]


async def _latency(sides: dict[str, Cluster], repeat: int) -> list[Figure]:
    taken: dict[str, list[float]] = {side: [] for side in sides}
    async with contextlib.AsyncExitStack() as stack:
        sockets = {
            side: await stack.enter_async_context(connected(nodes.ports[1], EVENTBUS, 1))
            for side, nodes in sides.items()
        }
        for turn in range(1 + repeat * LATENCY_TURNS):
            for side, readers in sockets.items():
                for reader in readers:
                    reader.is_timing = True
                    reader.delays.clear()
                await deliver(sides[side], readers, LATENCY_TURN, RATE)
                if turn > 0:
                    taken[side] += [1_000 * delay for reader in readers for delay in reader.delays]
    return [
        _figure(
            f"publish to a socket on another node at {RATE:g}/s, {name}, no fan-out",
            *(quantile(taken[side], place) for side in sides),
            target=1.0,
            unit="ms",
        )
        for name, place in (("p50", 0.5), ("p99", 0.99))
    ]


async def _cpu(sides: dict[str, Cluster], repeat: int) -> list[Figure]:
    taken: dict[str, list[float]] = {side: [] for side in sides}
    pages: dict[str, list[int]] = {side: [] for side in sides}
    async with contextlib.AsyncExitStack() as stack:
        sockets: dict[str, list[Reader]] = {side: [] for side in sides}
        for side, nodes in sides.items():
            for port in nodes.ports:
                sockets[side] += await stack.enter_async_context(connected(port, EVENTBUS, SOCKETS))
        for turn in range(1 + repeat):
            for side, nodes in sides.items():
                before, read_before = await nodes.database_cpu(), await nodes.pages_read()
                await deliver(nodes, sockets[side], CPU_TURN, CPU_RATE)
                if turn > 0:
                    deliveries = CPU_TURN * len(sockets[side])
                    taken[side].append(1e6 * (await nodes.database_cpu() - before) / deliveries)
                    pages[side].append(await nodes.pages_read() - read_before)
    for side in sides:  # what the ratio comes from
        per_event = NODES * SOCKETS * statistics.median(taken[side])
        read = statistics.median(pages[side])
        print(
            f"fan-out {side}: {read:,.0f} pages read for {CPU_TURN:,} events; {per_event:,.0f} µs per event", flush=True
        )
    return [
        _figure(
            f"database CPU per delivery, {NODES} nodes, {CPU_RATE:g}/s, no fan-out",
            *(statistics.median(taken[side]) for side in sides),
            target=0.4,
            unit="µs",
        )
    ]


def _figure(name: str, limit: float, bus: float, *, target: float, unit: str) -> Figure:
    options: dict[str, Any] = {"unit": unit, "is_lower_better": True}
    return Figure(name, limit, bus, bus / limit, target, **options)
