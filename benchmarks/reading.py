"""Reading the log in-process, after the fact: against asyncpg pages of 1,000 by hand.

"By hand" does what a program needs of each event: its columns by name and its payload decoded. The bus is asked for the
same. A second line compares bare records with bare messages, whose payload nobody looks at.
"""

from __future__ import annotations

import json
from itertools import islice

import asyncpg

from benchmarks.measuring import PAYLOAD, Figure, compare, database, dsn, migrate, rate
from eventbus_fastapi import EventBus

EVENTS = 50_000
PAGE = """
SELECT seq, message_id, topic, key, payload, content_type, metadata, created_at, expires_at
FROM bus_event WHERE seq > $1 ORDER BY seq LIMIT 1000"""


async def run(repeat: int) -> list[Figure]:
    with database("postgresql") as url:
        eventbus = EventBus(url)
        await migrate(eventbus)
        connection = await asyncpg.connect(dsn(url))

        async def read_by_hand(decode: bool) -> None:
            after = 0
            while rows := await connection.fetch(PAGE, after):
                if decode:
                    for row in rows:
                        event = dict(row)
                        event["payload"] = json.loads(event["payload"])
                after = rows[-1]["seq"]

        async def read_bus(decode: bool) -> None:
            last = 0
            async with eventbus.subscribe("bench.#", after=0) as subscription:
                while last < EVENTS:
                    for message in await subscription.next_messages():
                        if decode:
                            message.payload  # noqa: B018
                    last = message.seq

        async def read_bus_one_by_one() -> None:
            async for message in eventbus.subscribe("bench.#", after=0):
                message.payload  # noqa: B018
                if message.seq == EVENTS:
                    break

        async def limit_decoded() -> float:
            return await rate(EVENTS, read_by_hand(True))

        async def limit_bare() -> float:
            return await rate(EVENTS, read_by_hand(False))

        async def loop() -> float:
            return await rate(EVENTS, read_bus_one_by_one())

        async def bare() -> float:
            return await rate(EVENTS, read_bus(False))

        async with eventbus:
            events = (("bench.event", PAYLOAD) for _ in range(EVENTS))
            while page := list(islice(events, 1_000)):
                await eventbus.publish_many(page)
            await connection.execute("VACUUM ANALYZE bus_event")  # or the statement by hand gets a plan for no rows
            figures = [
                await compare(
                    "read the log, one subscriber, payloads decoded", limit_decoded, loop, target=0.5, repeat=repeat
                ),
                await compare("read the log, bare records and messages", limit_bare, bare, target=0.5, repeat=repeat),
            ]
        await connection.close()
        return figures
