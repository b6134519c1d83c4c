"""A relay empties a log on PostgreSQL into JetStream: against nats-py, which publishes the same messages from memory.

nats-py has 100 publishes in flight and waits for the ack of each; the headers are those that the relay writes. Each
turn has a stream of its own. NATS with JetStream is expected at `nats://127.0.0.1:4222`, or where
EVENTBUS_TEST_NATS_URL says.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence

import nats
from nats.js import JetStreamContext

from benchmarks.measuring import PAYLOAD, Figure, compare, database, migrate, rate
from eventbus_fastapi import EventBus
from eventbus_fastapi.relay.parcel import Packer, Parcel
from eventbus_fastapi.relay.subject import SubjectTemplate
from tests.waiting import eventually

NATS_URL = "nats://127.0.0.1:4222"
EVENTS = 20_000
"""Events of one turn."""
IN_FLIGHT = 100
TOPIC = "relaybench.made"


async def run(repeat: int) -> list[Figure]:
    url = os.environ.get("EVENTBUS_TEST_NATS_URL", NATS_URL)
    turns = iter(range(1_000_000))
    client = await nats.connect(url)
    js = client.jetstream()
    with database("postgresql") as database_url:
        eventbus = EventBus(database_url)
        await migrate(eventbus)
        async with eventbus:
            for _ in range(0, EVENTS, 1_000):
                await eventbus.publish_many([(TOPIC, PAYLOAD)] * 1_000)
            parcels = await _parcels(eventbus)
            figure = await compare(
                "relay into JetStream, of nats-py with 100 in flight",
                lambda: _publish(js, parcels, f"relaybench-{next(turns)}"),
                lambda: _relay(eventbus, js, url, f"relaybench-{next(turns)}"),
                target=0.6,
                repeat=repeat,
            )
    await client.close()
    return [figure]


async def _parcels(eventbus: EventBus) -> list[Parcel]:
    """Return what the relay sends, in memory."""
    packer = Packer(SubjectTemplate(), relay="relaybench-0", epoch=str((await eventbus.head()).epoch))
    found: list[Parcel] = []
    while len(found) < EVENTS:
        page = await eventbus.node.history(["#"], len(found), 1_000)
        found += [packer.pack(message, 1) for message in page.messages]
    return found


async def _publish(js: JetStreamContext, parcels: Sequence[Parcel], stream: str) -> float:
    await js.add_stream(name=stream, subjects=[TOPIC])
    left: Iterator[Parcel] = iter(parcels)

    async def publish_some() -> None:
        for parcel in left:
            headers = {**parcel.headers, "Nats-Msg-Id": parcel.headers["eventbus-message-id"]}
            await js.publish(parcel.subject, parcel.body, headers=headers)

    per_second = await rate(EVENTS, asyncio.gather(*(publish_some() for _ in range(IN_FLIGHT))))
    await js.delete_stream(stream)
    return per_second


async def _relay(eventbus: EventBus, js: JetStreamContext, url: str, stream: str) -> float:
    relay = eventbus.relay(url, TOPIC, name=stream, stream=stream, create_stream=True, start="earliest")
    counts = eventbus.node.meters.relayed

    async def empty() -> None:
        await relay.start()
        await eventually(lambda: counts[stream, "confirmed"] == EVENTS, 600)

    per_second = await rate(EVENTS, empty())
    await relay.join(5)
    await eventbus.groups.delete(stream)
    await js.delete_stream(stream)
    return per_second
