"""One topic to 20 clients: against fastapi_websocket_pubsub, each with the client that comes with it.

All clients are in one process, which decodes what it is given; each server is another, and publishes by itself. The bus
stores what it publishes (in memory), the peer does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import httpx

from benchmarks import environment
from benchmarks.environment import Ask
from benchmarks.fanout import serving
from benchmarks.fanout_server import TOPIC
from benchmarks.measuring import Figure, compare
from eventbus_fastapi.client import ClientConfig, ClientSubscription, EventBusClient

CLIENTS = 20
EVENTS = 5_000
PEER_EVENTS = 200


@contextlib.asynccontextmanager
async def _bus() -> AsyncIterator[Ask]:
    async with serving("bus") as port, contextlib.AsyncExitStack() as stack:
        subscriptions: list[ClientSubscription] = []
        for _ in range(CLIENTS):
            client = await stack.enter_async_context(
                EventBusClient(ClientConfig(url=f"ws://127.0.0.1:{port}/ws", proxy=None))
            )
            subscriptions.append(await stack.enter_async_context(client.subscribe(TOPIC)))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=120, trust_env=False))

        async def turn(events: int) -> float:
            began = time.perf_counter()
            publishing = asyncio.create_task(http.post(f"http://127.0.0.1:{port}/burst?events={events}"))
            await asyncio.gather(*(_take(subscription, events) for subscription in subscriptions))
            taken = time.perf_counter() - began
            (await publishing).raise_for_status()
            return events * CLIENTS / taken

        yield turn


async def _take(subscription: ClientSubscription, events: int) -> None:
    for _ in range(events):
        message = await anext(subscription)
        assert message.payload["id"]


async def run(repeat: int) -> list[Figure]:
    await environment.install()
    async with _bus() as bus, environment.asking(environment.HERE / "pubsub_peer.py", "turns") as peer:
        figure = await compare(
            f"burst to {CLIENTS} clients of its own, fastapi_websocket_pubsub",
            lambda: peer(PEER_EVENTS),
            lambda: bus(EVENTS),
            target=5.0,
            repeat=repeat,
        )
    return [figure]
