"""Does anything get slower as the log grows? Rates of publishing, sequencing, reading and claiming at 10,000 and at
5,000,000 stored events.

`python -m benchmarks.growth [--events 5000000] [--databases sqlite postgresql]`. Not part of `make bench`: it writes
some gigabytes. The large log is filled by one SQL statement with rows of the shape that publishing writes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

from sqlalchemy import text

from benchmarks.measuring import PAYLOAD, database, migrate, rate
from eventbus_fastapi import EventBus, Message
from eventbus_fastapi.codec import new_message_id
from eventbus_fastapi.store.group import Settlement

SMALL = 10_000
PUBLISHED = 20_000
READ = 20_000
CLAIMED = 5_000
"""Fewer than there are behind the first quarter of the small log."""
BATCH = 100
TASKS = 100
ASKED = 0.8
"""The rate at a large log, as a share of that at a small one."""

FILL = {
    "postgresql": """
        INSERT INTO bus_event (seq, message_id, topic, payload, content_type, created_at)
        SELECT n, ('0192f0c1-' || substr(lpad(to_hex(n), 8, '0'), 1, 4) || '-7' || substr(lpad(to_hex(n), 8, '0'), 5, 3)
               || '-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
               'bench.event', convert_to(rpad('{"id":' || n || ',"note":"', 198, 'y') || '"}', 'UTF8'),
               'application/json', 1767225600000000 + n
        FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n""",
    "sqlite": """
        WITH RECURSIVE numbers(n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :last)
        INSERT INTO bus_event (seq, message_id, topic, payload, content_type, created_at)
        SELECT n, unhex_of(printf('0192f0c1%08x7000800000000000', n)), 'bench.event',
               CAST('{"id":' || n || ',"note":"' || substr(printf('%180s', ''), 1, 180) || '"}' AS BLOB),
               'application/json', 1767225600000000 + n
        FROM numbers""",
}


@asynccontextmanager
async def stored(kind: str, count: int) -> AsyncIterator[EventBus]:
    """A bus whose log holds `count` events, as if they had been published."""
    with database(kind) as url:
        eventbus = EventBus(url, statement_timeout=3_600)
        if kind != "sqlite":
            await migrate(eventbus)
        async with eventbus:
            await fill(eventbus, kind, count)
            yield eventbus


async def fill(eventbus: EventBus, kind: str, count: int) -> None:
    async with eventbus.engine.begin() as connection:
        if kind == "sqlite":
            driver = (await connection.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.create_function("unhex_of", 1, bytes.fromhex)
        await connection.execute(text(FILL[kind]), {"first": 1, "last": count})
        await connection.execute(text("UPDATE bus_head SET last_seq = :last"), {"last": count})
    if kind == "postgresql":
        async with eventbus.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            await connection.execute(text("VACUUM ANALYZE bus_event"))
            await connection.execute(text("CHECKPOINT"))


async def measure(eventbus: EventBus) -> dict[str, float]:
    """Return the rates of publishing at the end of the log, and of reading from its first quarter."""

    async def publish_alone() -> None:
        for _ in range(PUBLISHED // TASKS):
            await eventbus.publish("bench.event", PAYLOAD)

    async def publish_thousands() -> None:
        for _ in range(PUBLISHED // 1_000):
            await eventbus.publish_many([("bench.event", PAYLOAD)] * 1_000)

    async def read() -> None:
        after = last = (await eventbus.head()).last_seq // 4
        async with eventbus.subscribe("bench.#", after=after) as subscription:
            while last - after < READ:
                last = (await subscription.next_messages())[-1].seq

    return {
        "publish, 100 tasks": await rate(PUBLISHED, asyncio.gather(*(publish_alone() for _ in range(TASKS)))),
        "publish_many of 1,000": await rate(PUBLISHED, publish_thousands()),
        "outbox to log": await sequence(eventbus),
        "read": await rate(READ, read()),
        "claim, batches of 100": await claim(eventbus),
        "handle, by one worker": await handle(eventbus),
    }


async def claim(eventbus: EventBus) -> float:
    """Return the rate at which a group claims and settles the log from its first quarter on, apart from reading it."""
    groups = eventbus.node.store.groups
    after = (await eventbus.head()).last_seq // 4
    group = await groups.ensure(f"claim-{uuid4()}", ["bench.#"], after=after)
    async with eventbus.subscribe("bench.#", after=after) as subscription:
        messages: list[Message] = []
        while len(messages) < CLAIMED:
            messages += await subscription.next_messages()

    async def work() -> None:
        nonlocal group
        for start in range(0, CLAIMED, BATCH):
            batch = messages[start : start + BATCH]
            taken = await groups.claim(group, batch, up_to=batch[-1].seq, owner="growth", lease=30)
            assert taken is not None
            group = group._replace(cursor=batch[-1].seq)
            await groups.settle([Settlement(group.id, taken.token, list(taken.seqs), [], [], pending=())])

    per_second = await rate(CLAIMED, work())
    await groups.delete(group.name)
    return per_second


async def handle(eventbus: EventBus) -> float:
    """Return the rate at which a worker handles the log from its first quarter on."""
    after = (await eventbus.head()).last_seq // 4
    workers = EventBus(settings=eventbus.settings, workers=True)
    done, left = asyncio.Event(), CLAIMED

    @workers.handler("bench.#", group="handle")
    async def count(message: Message) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    await eventbus.node.store.groups.ensure("handle", ["bench.#"], after=after)
    async with workers:
        per_second = await rate(CLAIMED, done.wait())
    await eventbus.groups.delete("handle")
    return per_second


async def sequence(eventbus: EventBus) -> float:
    """Return the rate at which what a transaction of the program's own has committed enters the log."""
    last = (await eventbus.head()).last_seq + PUBLISHED
    async with eventbus.engine.begin() as connection:
        insert, values = eventbus.node.store.sql.insert_draft(eventbus.draft("bench.event", PAYLOAD))
        await connection.execute(insert, [{**values, "message_id": new_message_id()} for _ in range(PUBLISHED)])

    async def arrive() -> None:
        eventbus.node.sequencer.expect()
        async with eventbus.subscribe("bench.#", after=last - 1) as subscription:
            await subscription.next_messages()

    return await rate(PUBLISHED, arrive())


async def compare(kind: str, count: int, repeat: int) -> bool:
    """Measure a large log and a small one by turns, the small one made anew each time; one turn first.

    Returns whether nothing was slower than asked.
    """
    is_met = True
    pairs = []
    async with stored(kind, count) as large:
        for _ in range(repeat + 1):
            async with stored(kind, SMALL) as small:
                pairs.append((await measure(small), await measure(large)))
    del pairs[0]
    for name in pairs[0][0]:
        of_small, of_large = [statistics.median(pair[place][name] for pair in pairs) for place in (0, 1)]
        ratio = statistics.median(pair[1][name] / pair[0][name] for pair in pairs)
        print(
            f"{kind:<11} {name:<22} {SMALL:>9,} events {of_small:>10,.0f}/s   "
            f"{count:>9,} events {of_large:>10,.0f}/s   ratio {ratio:.2f}  (asked ≥ {ASKED})",
            flush=True,
        )
        is_met = is_met and ratio >= ASKED
    return is_met


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__)
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--repeat", type=int, default=5, help="turns of which the median is taken")
    parser.add_argument("--databases", nargs="*", default=["sqlite", "postgresql"], choices=sorted(FILL))
    arguments = parser.parse_args()
    met = [asyncio.run(compare(kind, arguments.events, arguments.repeat)) for kind in arguments.databases]
    if not all(met):
        sys.exit("something is slower than asked")


if __name__ == "__main__":
    main()
