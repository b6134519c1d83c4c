"""What an event costs PostgreSQL, and what that makes of 1, 10 and 100 nodes: the constants of docs/scaling.md.

    python -m benchmarks.scale                       # about seven minutes
    python -m benchmarks.scale --events-per-day 5e9 --groups 20

Each constant is measured on a server of its own (the wheel's PostgreSQL, fsync on): the bytes of write-ahead log and
the rows that the work wrote, in the server's own statistics, and the processor time of all its processes. Processor
time is this machine's, so a floor for others; bytes and rows are the same everywhere. What is made of them is a sum, no
measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

import asyncpg
import psutil
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.measuring import PAYLOAD, dsn, migrate, rate
from eventbus_fastapi import EventBus, Message
from eventbus_fastapi.store.group import Settlement
from tests.faults.postgres import PostgreSQL

TOPIC = "bench.event"
PAGE = 1_000
"""Events that a node reads at once at most: the default of EVENTBUS_PAGE_SIZE."""
PER_COMMIT = 20
"""Events that share a commit, where a day's events come evenly and many publish: an assumption of the sums."""
LISTENERS = 20
WRITERS = 8
"""Nodes that publish one by one."""
IDLE = 20.0
"""Seconds that an idle node is watched."""
SETTLED = 11.0
"""Seconds after which a backend that idles has reported the rows that it wrote."""
NEWS_BESIDE_FANOUT = 10
"""Notices a second that are sent where fan-out carries the events."""
DAY = 86_400
ROWS = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables"


class Cost(NamedTuple):
    """What one event, or one call, costs the database."""

    wal: float
    """Bytes of write-ahead log."""
    rows: float
    """Rows inserted, updated or removed."""
    cpu: float
    """Microseconds of processor time, of all the server's processes."""

    def per(self, count: float) -> Cost:
        return Cost(*(part / count for part in self))

    def __str__(self) -> str:
        return f"{self.wal:>9,.0f} B {self.rows:>7.3f} rows {self.cpu:>9,.1f} µs"


class Gauge:
    """Reads what a server has spent so far."""

    def __init__(self, server: PostgreSQL, connection: asyncpg.Connection) -> None:
        self._server = server
        self._connection = connection

    async def cost(self, count: int, work: Callable[[], Awaitable[object]]) -> Cost:
        """Do the work; return what it cost, by `count`."""
        before = await self._read()
        await work()
        after = await self._read()
        return Cost(*((late - early) / count for early, late in zip(before, after, strict=True)))

    async def _read(self) -> tuple[float, float, float]:
        await asyncio.sleep(SETTLED)
        wal = await self._connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        rows = await self._connection.fetchval(ROWS)
        return float(wal), float(rows), self._processor_time()

    def _processor_time(self) -> float:
        main, *children = self._server.processes()
        ended = main.cpu_times()
        total = ended.children_user + ended.children_system
        for process in (main, *children):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total * 1_000_000


class Measured(NamedTuple):
    """The constants."""

    alone: Cost
    together: Cost
    in_bulk: Cost
    outbox: Cost
    read_call: Cost
    read: Cost
    notice: Cost
    """To tell one node of one commit."""
    claimed: Cost
    claimed_alone: Cost
    removed: Cost
    vacuumed: Cost
    """By event that was removed."""
    idle: Cost
    """Of one node, a second."""
    stored: float
    """Bytes of an event in the log, with its indexes."""
    indexes: float
    """What of it the indexes take."""
    keyed: float
    """The same of one with a key."""
    commits: float
    """Commits a second, of nodes that publish one by one, each as soon as it has an answer."""

    def lines(self) -> list[tuple[str, Cost]]:
        return [
            ("publish, one by one: an event", self.alone),
            ("publish, 100 callers at once: an event", self.together),
            ("publish_many of 1,000: an event", self.in_bulk),
            ("publish_txn in a transaction of its own: an event", self.outbox),
            ("a node reads: a call", self.read_call),
            (f"a node reads, {PAGE} at once: an event", self.read),
            ("a node is told (NOTIFY): a commit", self.notice),
            ("a group claims and settles, 100 at once: an event", self.claimed),
            ("a group claims and settles, one by one: an event", self.claimed_alone),
            ("retention removes: an event", self.removed),
            ("vacuum takes its place back: an event", self.vacuumed),
            ("a node that idles: a second", self.idle),
        ]


@asynccontextmanager
async def serving(server: PostgreSQL) -> AsyncIterator[tuple[EventBus, Gauge]]:
    """A started bus on a new database, and what reads the costs."""
    url = server.factory.create()
    eventbus = EventBus(url, poll_interval=60)
    await migrate(eventbus)
    connection = await asyncpg.connect(dsn(url))
    try:
        async with eventbus:
            yield eventbus, Gauge(server, connection)
    finally:
        await connection.close()
        await eventbus.engine.dispose()


async def measure(server: PostgreSQL) -> Measured:
    idle = await _idle(server)  # first: nothing is left to clean up
    async with serving(server) as (eventbus, gauge):
        alone = await gauge.cost(3_000, lambda: _publish(eventbus, 3_000, tasks=1))
        together = await gauge.cost(50_000, lambda: _publish(eventbus, 50_000, tasks=100))
        outbox = await gauge.cost(5_000, lambda: _publish_txn(eventbus, 5_000))
    async with serving(server) as (eventbus, gauge):
        in_bulk = await gauge.cost(100_000, lambda: _publish_many(eventbus, 100_000))
        stored = await _size(eventbus) / 100_000
        indexes = await _size(eventbus, "pg_indexes_size") / 100_000
        read_call = await gauge.cost(3_000, lambda: _read(eventbus, 3_000, limit=1))
        read = await gauge.cost(100_000, lambda: _read(eventbus, 100_000 // PAGE, limit=PAGE))
        messages = [one for page in range(50) for one in (await eventbus.node.store.read(page * PAGE, PAGE)).messages]
        claimed = await gauge.cost(50_000, lambda: _claim(eventbus, messages, batch=100))
        claimed_alone = await gauge.cost(2_000, lambda: _claim(eventbus, messages[:2_000], batch=1))
        notice = await _notice(eventbus, gauge)
        removed = await gauge.cost(50_000, lambda: _remove(eventbus, 50_000))
        vacuumed = await gauge.cost(50_000, lambda: _vacuum(eventbus))
    async with serving(server) as (eventbus, gauge):
        await _publish_many(eventbus, 100_000, key="order-1234567")
        keyed = await _size(eventbus) / 100_000
    return Measured(
        alone,
        together,
        in_bulk,
        outbox,
        # A call reads one event; what is left of it is the call's own.
        read_call._replace(cpu=read_call.cpu - read.cpu),
        # Of a page of many the call is a part, too.
        read._replace(cpu=read.cpu - (read_call.cpu - read.cpu) / PAGE),
        notice,
        claimed,
        claimed_alone,
        removed,
        vacuumed,
        idle,
        stored,
        indexes,
        keyed,
        await _commits(server),
    )


async def _publish(eventbus: EventBus, count: int, *, tasks: int) -> None:
    async def publish() -> None:
        for _ in range(count // tasks):
            await eventbus.publish(TOPIC, PAYLOAD)

    await asyncio.gather(*(publish() for _ in range(tasks)))


async def _publish_many(eventbus: EventBus, count: int, key: str | None = None) -> None:
    for _ in range(count // 1_000):
        await eventbus.publish_many([(TOPIC, PAYLOAD)] * 1_000, key=key)


async def _publish_txn(eventbus: EventBus, count: int) -> None:
    """Publish in transactions that do nothing else, and wait until all of it is in the log."""
    last = (await eventbus.head()).last_seq + count
    async with eventbus.subscribe(TOPIC, after=last - 1) as subscription:
        for _ in range(count):
            async with AsyncSession(eventbus.engine) as session, session.begin():
                await eventbus.publish_txn(session, TOPIC, PAYLOAD)
        await subscription.next_messages()


async def _read(eventbus: EventBus, calls: int, *, limit: int) -> None:
    for number in range(calls):
        await eventbus.node.store.read(number * limit, limit)


async def _claim(eventbus: EventBus, messages: list[Message], *, batch: int) -> None:
    """Claim and settle what a group reads, apart from reading it."""
    groups = eventbus.node.store.groups
    group = await groups.ensure(f"by-{batch}", [TOPIC], after=0)
    for start in range(0, len(messages), batch):
        taken = messages[start : start + batch]
        claim = await groups.claim(group, taken, up_to=taken[-1].seq, owner="scale", lease=30)
        assert claim is not None
        await groups.settle([Settlement(group.id, claim.token, list(claim.seqs), [], [], pending=())])
        group = group._replace(cursor=claim.up_to)


async def _notice(eventbus: EventBus, gauge: Gauge) -> Cost:
    """What a commit costs more where so many nodes listen, by node."""
    url = dsn(eventbus.node.store.engine.url.render_as_string(hide_password=False))
    sender = await asyncpg.connect(url)

    async def notify() -> None:
        for number in range(2_000):
            await sender.execute(f"NOTIFY scale, '{number}'")

    listeners = [await asyncpg.connect(url) for _ in range(LISTENERS)]
    try:
        without = await gauge.cost(2_000, notify)
        for listener in listeners:
            await listener.add_listener("scale", lambda *_: None)
        having = await gauge.cost(2_000, notify)
    finally:
        for connection in (sender, *listeners):
            await connection.close()
    return Cost(*((late - early) / LISTENERS for early, late in zip(without, having, strict=True)))


async def _remove(eventbus: EventBus, count: int) -> None:
    store = eventbus.node.store
    for group in ("by-100", "by-1"):
        await store.groups.delete(group)
    keep = (await eventbus.head()).last_seq - count
    while await store.trim(before=None, keep=keep):
        pass


async def _idle(server: PostgreSQL) -> Cost:
    url = server.factory.create()
    eventbus = EventBus(url)
    await migrate(eventbus)
    connection = await asyncpg.connect(dsn(url))
    try:
        async with eventbus:
            return (await Gauge(server, connection).cost(1, lambda: asyncio.sleep(IDLE))).per(IDLE)
    finally:
        await connection.close()
        await eventbus.engine.dispose()


async def _vacuum(eventbus: EventBus) -> None:
    async with eventbus.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(text("VACUUM (INDEX_CLEANUP ON) bus_event"))


async def _commits(server: PostgreSQL) -> float:
    url = server.factory.create()
    nodes = [EventBus(url, pool_size=3) for _ in range(WRITERS)]
    await migrate(nodes[0])
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        return await rate(WRITERS * 500, asyncio.gather(*(_publish(node, 500, tasks=1) for node in nodes)))


async def _size(eventbus: EventBus, function: str = "pg_total_relation_size") -> int:
    async with eventbus.engine.connect() as connection:
        size: int = (await connection.execute(text(f"SELECT {function}('bus_event')"))).scalar_one()
    return size


class Load(NamedTuple):
    """What is asked of a database."""

    events_per_day: float
    nodes: int
    groups: int
    has_fanout: bool = False


class Sum(NamedTuple):
    """What that takes, by the constants."""

    cores: float
    wal_per_day: float
    log_per_day: float


def add_up(measured: Measured, load: Load) -> Sum:
    """Publishing costs by event, each node by commit and event that it reads, each group by event.

    Fan-out takes the reads away, and most of the news.
    """
    events = load.events_per_day / DAY
    commits = events / PER_COMMIT
    news = min(commits, NEWS_BESIDE_FANOUT) if load.has_fanout else commits
    per_node = news * measured.notice.cpu + measured.idle.cpu
    if not load.has_fanout:
        per_node += commits * measured.read_call.cpu + events * measured.read.cpu
    by_event = measured.together.cpu + measured.removed.cpu + measured.vacuumed.cpu + load.groups * measured.claimed.cpu
    written = measured.together.wal + measured.removed.wal + measured.vacuumed.wal + load.groups * measured.claimed.wal
    return Sum(
        (events * by_event + load.nodes * per_node) / 1_000_000,
        load.events_per_day * written,
        load.events_per_day * measured.stored,
    )


def show(measured: Measured, events_per_day: float, groups: int) -> None:
    for name, cost in measured.lines():
        print(f"{name:<52} {cost}")
    print(f"{'an event in the log, with its indexes':<52} {measured.stored:>9,.0f} B")
    print(f"{'of it the indexes':<52} {measured.indexes:>9,.0f} B")
    print(f"{'an event with a key':<52} {measured.keyed:>9,.0f} B")
    print(f"{f'{WRITERS} nodes that publish one by one: commits a second':<52} {measured.commits:>9,.0f}")
    print(f"\n{events_per_day:,.0f} events of 200 bytes a day, evenly, {PER_COMMIT} a commit, {groups} groups:")
    for nodes in (1, 10, 100):
        for has_fanout in (False, True):
            total = add_up(measured, Load(events_per_day, nodes, groups, has_fanout))
            print(
                f"{nodes:>4} nodes{', fan-out' if has_fanout else '':<10} {total.cores:>6.2f} cores of the database, "
                f"{total.wal_per_day / 1e9:,.0f} GB of WAL and {total.log_per_day / 1e9:,.0f} GB of log a day"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=__doc__)
    parser.add_argument("--events-per-day", type=float, default=1e9)
    parser.add_argument("--groups", type=int, default=5)
    arguments = parser.parse_args()
    began = time.monotonic()
    with PostgreSQL.running() as server:
        measured = asyncio.run(measure(server))
    show(measured, arguments.events_per_day, arguments.groups)
    print(f"\nmeasured in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
