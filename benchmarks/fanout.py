"""One topic to 100 and to 1,000 sockets: against a loop of `send_text` on the same uvicorn, and nats-server.

A burst is measured in deliveries per second, until every socket has every event; at a modest rate it is how long events
take from the call that publishes to the socket. The server is one process, all sockets are in another. The bus keeps
its log in memory. NATS is a nats-server of its own (found on the PATH, or where BENCHMARK_NATS_SERVER says) with a port
for WebSockets; its burst is published over TCP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.fanout_server import TOPIC
from benchmarks.measuring import PAYLOAD, Figure, compare, quantile
from benchmarks.sockets import Dialect, Reader, connected, free_port, running

SIZES = (100, 1_000)
LOOP_DELIVERIES = 100_000
BUS_DELIVERIES = 5_000_000
EVEN_DELIVERIES = 100_000
RATES = {100: 50.0, 1_000: 10.0}
"""Events per second that are modest: about a tenth of what the loop can do."""

EVENTBUS = Dialect(
    "eventbus.v1",
    f'{{"type":"subscribe","id":1,"pattern":"{TOPIC}","sub":1}}',
    b'"type":"ok"',
    b'"type":"event"',
)
NATS = Dialect(
    None,
    f'CONNECT {{"verbose":false,"echo":false}}\r\nSUB {TOPIC} 1\r\nPING\r\n',
    b"PONG",
    f"MSG {TOPIC} ".encode(),
)

Send = Callable[[int], Coroutine[Any, Any, None]]
"""Publishes so many events."""


@contextlib.asynccontextmanager
async def serving(kind: str) -> AsyncIterator[int]:
    port = free_port()
    async with running([sys.executable, "-m", "benchmarks.fanout_server", kind, str(port)], port):
        yield port


@contextlib.asynccontextmanager
async def serving_nats() -> AsyncIterator[tuple[int, int]]:
    """Run nats-server; yield its ports for WebSockets and for TCP."""
    program = os.environ.get("BENCHMARK_NATS_SERVER") or shutil.which("nats-server") or "/usr/sbin/nats-server"
    port, tcp = free_port(), free_port()
    with TemporaryDirectory() as directory:
        config = Path(directory) / "nats.conf"
        config.write_text(
            f'host: 127.0.0.1\nport: {tcp}\nwebsocket {{ host: "127.0.0.1", port: {port}, no_tls: true }}\n'
        )
        async with running([program, "--config", str(config), "--log", f"{directory}/nats.log"], port):
            yield port, tcp


async def burst(readers: list[Reader], deliveries: int, send: Send) -> float:
    """Return deliveries per second."""
    events = deliveries // len(readers)
    for reader in readers:
        reader.expect(events)
    start = time.perf_counter()
    sending = asyncio.create_task(send(events))
    for reader in readers:
        await asyncio.wait_for(reader.done.wait(), 120)
    taken = time.perf_counter() - start
    await sending
    return events * len(readers) / taken


async def even(readers: list[Reader], port: int, rate: float) -> float:
    """Publish at a rate; return how many milliseconds 99 of 100 deliveries do not exceed."""
    events = max(EVEN_DELIVERIES // len(readers), 100)
    for reader in readers:
        reader.expect(events)
        reader.is_timing = True
        reader.delays.clear()
    await _post(f"http://127.0.0.1:{port}/even?events={events}&rate={rate}")
    for reader in readers:
        await asyncio.wait_for(reader.done.wait(), 120)
        reader.is_timing = False
    return quantile([delay for reader in readers for delay in reader.delays], 0.99) * 1_000


async def _post(url: str) -> None:
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        (await client.post(url)).raise_for_status()


def _posting(port: int) -> Send:
    return lambda events: _post(f"http://127.0.0.1:{port}/burst?events={events}")


def _to_nats(port: int) -> Send:
    body = json.dumps(PAYLOAD, separators=(",", ":")).encode()
    message = f"PUB {TOPIC} {len(body)}\r\n".encode() + body + b"\r\n"

    async def send(events: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b'CONNECT {"verbose":false}\r\n')
        for _ in range(0, events, 100):
            writer.write(message * 100)
            await writer.drain()
        writer.write(b"PING\r\n")
        while b"PONG" not in await reader.readline():
            pass
        writer.close()
        await writer.wait_closed()

    return send


async def run(repeat: int) -> list[Figure]:
    figures = []
    async with serving("loop") as loop, serving("bus") as bus, serving_nats() as (nats, nats_tcp):
        for size in SIZES:
            async with connected(loop, EVENTBUS, size) as of_loop, connected(bus, EVENTBUS, size) as of_bus:

                async def of_the_bus(of_bus: list[Reader] = of_bus) -> float:
                    return await burst(of_bus, BUS_DELIVERIES, _posting(bus))

                figures.append(
                    await compare(
                        f"burst to {size:,} sockets, a loop of send_text",
                        lambda of_loop=of_loop: burst(of_loop, LOOP_DELIVERIES, _posting(loop)),  # type: ignore[misc]
                        of_the_bus,
                        target=10.0,
                        repeat=repeat,
                    )
                )
                async with connected(nats, NATS, size) as of_nats:
                    figures.append(
                        await compare(
                            f"burst to {size:,} sockets, nats-server",
                            lambda of_nats=of_nats: burst(of_nats, BUS_DELIVERIES, _to_nats(nats_tcp)),  # type: ignore[misc]
                            of_the_bus,
                            target=0.5,
                            repeat=repeat,
                        )
                    )
                figures.append(await _latency(size, of_loop, loop, of_bus, bus, repeat))
    return figures


async def _latency(size: int, of_loop: list[Reader], loop: int, of_bus: list[Reader], bus: int, repeat: int) -> Figure:
    rate = RATES[size]
    figure = await compare(
        f"{rate:g} events/s to {size:,} sockets, p99, the loop",
        lambda: even(of_loop, loop, rate),
        lambda: even(of_bus, bus, rate),
        target=1.0,
        repeat=repeat,
    )
    return Figure(figure.name, figure.limit, figure.bus, figure.ratio, figure.target, unit=" ms", is_lower_better=True)
