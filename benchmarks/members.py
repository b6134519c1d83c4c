"""Four WebSocket members of a group ack each event, on PostgreSQL: against RabbitMQ with aio-pika, prefetch 100.

Members and consumers are one process each, with a connection each, and empty what was published before: durable events
in a durable queue there. A member has up to 100 events at once, as a consumer has. `consume` acks each when its handler
returns, and a turn ends when the last ack is answered, after its commit; RabbitMQ answers none. RabbitMQ is expected at
`amqp://guest:guest@127.0.0.1/`, or where BENCHMARK_AMQP_URL says.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from benchmarks import environment
from benchmarks.environment import Ask
from benchmarks.measuring import Figure, compare, database, rate
from benchmarks.peer_turns import MEMBERS, NOTE, PREFETCH
from eventbus_fastapi import EventBus
from eventbus_fastapi.client import ClientConfig, EventBusClient, GroupMessage
from tests.faults.processes import Node, Processes, prepare

AMQP_URL = "amqp://guest:guest@127.0.0.1/"
EVENTS = 10_000
"""Events of one turn."""
TOPIC = "bench.members"


async def run(repeat: int) -> list[Figure]:
    await environment.install()
    where = os.environ.get("BENCHMARK_AMQP_URL", AMQP_URL)
    with database("postgresql") as url, tempfile.TemporaryDirectory() as directory:
        async with (
            _bus(url, Path(directory)) as bus,
            environment.asking(environment.HERE / "peer_turns.py", "rabbitmq", where) as rabbitmq,
        ):
            figure = await compare(
                f"{MEMBERS} members ack each event, RabbitMQ",
                lambda: rabbitmq(EVENTS),
                lambda: bus(EVENTS),
                target=1.5,
                repeat=repeat,
            )
    return [figure]


@contextlib.asynccontextmanager
async def _bus(url: str, directory: Path) -> AsyncIterator[Ask]:
    await prepare(url)
    with Processes(directory) as processes:
        node = await processes.node(url)
        async with EventBus(url) as eventbus, contextlib.AsyncExitStack() as clients:
            members = [await clients.enter_async_context(_client(node)) for _ in range(MEMBERS)]
            turns = iter(range(1_000_000))
            yield lambda count: _turn(eventbus, members, f"bench-{next(turns)}", count)


def _client(node: Node) -> EventBusClient:
    return EventBusClient(ClientConfig(url=node.ws, proxy=None))


async def _turn(eventbus: EventBus, members: list[EventBusClient], group: str, count: int) -> float:
    """Return how many events a second the members take and ack."""
    await eventbus.groups.declare(group, [TOPIC], start="now")
    for start in range(0, count, 1_000):
        await eventbus.publish_many([(TOPIC, {"id": 1, "note": NOTE})] * min(1_000, count - start))
    done, left = asyncio.Event(), count

    async def handle(message: GroupMessage) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    async def drain() -> None:
        consumers = [
            member.consume(handle, TOPIC, group=group, concurrency=PREFETCH, credit=PREFETCH) for member in members
        ]
        await done.wait()
        for consumer in consumers:
            await consumer.close()

    per_second = await rate(count, drain())
    await eventbus.groups.delete(group)
    return per_second
