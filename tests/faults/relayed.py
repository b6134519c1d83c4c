"""The log goes to a broker while the relay is killed and the broker is stopped; nothing is lost, and order is kept.

    python -m tests.faults.relayed                         # 100,000 events into NATS
    python -m tests.faults.relayed --broker rabbitmq --database postgresql
    python -m tests.faults.relayed --broker two            # two relays of one name

The broker is a server of the case's own. As the relay comes on, its process is killed with -9 ten times, and the broker
is stopped and started twice. Then what the broker has is read from its beginning. JetStream and Redis, in a stream of
the relay's own, have each event once. What RabbitMQ has twice has the same message_id, says so with its attempt, and
the group's record says which confirm was lost.

Or two relays of one name run beside each other, and the one that works is killed: how long until the other goes on is
what the broker has seen. It can go on when the lease of the dead one has ended, by the database's time.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import aio_pika
import nats
from aio_pika.abc import AbstractIncomingMessage
from redis.asyncio import Redis
from sqlalchemy import func, select

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.archive import ArchiveEntry, ArchiveFilter
from tests.brokers import KINDS, BrokerServer, Kind, own_broker
from tests.faults import command
from tests.faults.processes import Process, Processes, prepare
from tests.waiting import eventually

TOPIC = "relayed.made"
NAME = "relay"
LEASE = 2.0
BATCH = 500
BURST = 20
"""Events that come at once, fifty times a second, so that the relay that works always has some."""
LATEST = 2.0
"""Seconds beyond the lease after which another has taken over at the latest, on a loaded machine."""


class Copy(NamedTuple):
    """An event as the broker has it."""

    seq: int
    message_id: str
    attempt: int
    at: float = 0.0
    """When the broker got it, unix seconds; only of NATS."""


class Relays:
    """Processes that relay, all of one name."""

    def __init__(self, processes: Processes, database_url: str, server: BrokerServer, lease: float) -> None:
        self.kills = 0
        self._processes = processes
        self._settings: dict[str, Any] = {"database_url": database_url, "lease": lease}
        options = ("--stream", "relayed", "--create-stream") if server.kind == "nats" else ()
        self._command = ["--to", server.url, "--pattern", TOPIC, "--name", NAME, "--from", "earliest", *options]
        self._started = 0

    def start(self) -> Process:
        self._started += 1
        command = ["-m", "eventbus_fastapi.cli", "relay", *self._command]
        return self._processes.python(f"relay-{self._started}", command, **self._settings)


async def run(
    processes: Processes,
    database_url: str,
    *,
    kind: Kind,
    count: int,
    kills: int = 10,
    stops: int = 2,
    lease: float = LEASE,
    timeout: float = 120,
) -> Mapping[str, Any]:
    """Have so many events relayed while the relay is killed and the broker is stopped.

    Raises:
        AssertionError: one is missing, out of order, or there twice without a lost confirm on record.
    """
    await prepare(database_url)
    with own_broker(kind) as server:
        await _make_queue(server)
        async with EventBus(settings=Settings(database_url=database_url)) as bus:
            relays = Relays(processes, database_url, server, lease)
            relay = relays.start()
            publishing = asyncio.create_task(_publish(bus, count))
            began = time.monotonic()
            await eventually(lambda: bus.groups.group(NAME), timeout)
            troubles = _troubles(kills, stops)
            for number, trouble in enumerate(troubles, start=1):
                await _reach(bus, count * number // (len(troubles) + 1), timeout)
                if trouble == "kill":
                    relay.kill()
                    relay = relays.start()
                else:
                    await asyncio.to_thread(server.stop)
                    await asyncio.sleep(0.5)
                    await asyncio.to_thread(server.start)
            await publishing
            await _drain(bus, timeout)
            seconds = time.monotonic() - began
            assert await relay.terminate() == 0
            copies = await read(server)
            doubles = _check(copies, count, await _record(bus), is_once=kind != "rabbitmq")
    return {
        "events": count,
        "relay killed with -9": kills,
        "broker stopped and started": stops,
        "copies that the broker has": len(copies),
        "doubles, each after a lost confirm on record": doubles,
        "events sent as a second attempt or later": sum(copy.attempt > 1 for copy in copies),
        "events a second": count / seconds,
    }


async def take_over(
    processes: Processes, database_url: str, *, lease: float = LEASE, seconds: float = 4.0, timeout: float = 60
) -> Mapping[str, Any]:
    """Kill the one of two relays that works, while events come all the time.

    Raises:
        AssertionError: both work, one event is missing, twice or out of order, or the other is late.
    """
    await prepare(database_url)
    with own_broker("nats") as server:
        async with EventBus(settings=Settings(database_url=database_url)) as bus:
            relays = Relays(processes, database_url, server, lease)
            running = [relays.start(), relays.start()]
            await eventually(lambda: all("relaying" in each.text() for each in running), timeout)
            ended = asyncio.Event()
            publishing = asyncio.create_task(_publish_slowly(bus, ended))
            owner = str(await eventually(lambda: _owner(bus), timeout))
            await asyncio.sleep(seconds / 2)
            assert {await eventually(lambda: _owner(bus), timeout) for _ in range(20)} == {owner}, "two relays work"
            killed_at = time.time()
            next(each for each in running if f"-{each.pid}-" in owner).kill()
            lease_end = await _lease_end(bus, owner)
            other = await eventually(lambda: _owner(bus, other_than=owner), timeout)
            await asyncio.sleep(seconds / 2)
            ended.set()
            count = await publishing
            await _drain(bus, timeout)
            copies = await read(server)
    assert other != owner
    _check(copies, count, {}, is_once=True)
    resumed_at = min(copy.at for copy in copies if copy.at > killed_at + 0.05)
    assert resumed_at - killed_at < lease + LATEST, f"the other took over after {resumed_at - killed_at:.1f} s"
    return {
        "events": count,
        "lease, seconds": lease,
        "seconds until the other has taken over": resumed_at - killed_at,
        "of these after the end of the last lease": None if lease_end is None else resumed_at - lease_end,
    }


def _troubles(kills: int, stops: int) -> Sequence[str]:
    """Return what happens, one after the other: stops of the broker spread among kills of the relay."""
    every = kills // (stops + 1) + 1 if stops else kills + 1
    troubles: list[str] = []
    for number in range(kills):
        troubles.append("kill")
        if (number + 1) % every == 0 and troubles.count("stop") < stops:
            troubles.append("stop")
    return troubles + ["stop"] * (stops - troubles.count("stop"))


# --- the bus -------------------------------------------------------------------------------------


async def _publish(bus: EventBus, count: int) -> None:
    for start in range(0, count, BATCH):
        await bus.publish_many([(TOPIC, {"number": n}) for n in range(start, min(count, start + BATCH))])


async def _publish_slowly(bus: EventBus, ended: asyncio.Event) -> int:
    count = 0
    while not ended.is_set():
        await bus.publish_many([(TOPIC, {"number": count + n}) for n in range(BURST)])
        count += BURST
        await asyncio.sleep(0.02)
    return count


async def _owner(bus: EventBus, other_than: str = "") -> str | None:
    """Return who has a lease; None: nobody at the moment, or who is not meant."""
    lease = bus.node.store.tables.lease
    async with bus.engine.connect() as connection:
        owner = (await connection.execute(select(lease.c.owner).limit(1))).scalar_one_or_none()
    return None if owner == other_than else owner


async def _lease_end(bus: EventBus, owner: str) -> float | None:
    """Return when the last lease of an owner ends, unix seconds; None: it has none."""
    lease = bus.node.store.tables.lease
    async with bus.engine.connect() as connection:
        statement = select(func.max(lease.c.until)).where(lease.c.owner == owner)
        until = (await connection.execute(statement)).scalar_one()
    return None if until is None else until / 1_000_000


async def _reach(bus: EventBus, seq: int, timeout: float) -> None:
    """Wait until the group has come so far."""

    async def has_come() -> bool:
        return (await bus.groups.group(NAME)).group.cursor >= seq

    await eventually(has_come, timeout)


async def _drain(bus: EventBus, timeout: float) -> None:
    async def is_done() -> bool:
        figures = (await bus.groups.group(NAME)).figures
        return (figures.lag, figures.in_flight, figures.retries) == (0, 0, 0)

    await eventually(is_done, timeout)
    assert (await bus.groups.group(NAME)).figures.dead == 0


async def _record(bus: EventBus) -> dict[int, ArchiveEntry]:
    """Return what is on record of each event of which anything is."""
    store = bus.node.store
    group = await store.groups.get(NAME)
    found: dict[int, ArchiveEntry] = {}
    after: int | None = 0
    while after is not None:
        page = await store.archive.find(group, ArchiveFilter(), after=after, limit=1_000)
        found |= {entry.seq: entry for entry in page.entries}
        after = page.next
    return found


def _check(copies: Sequence[Copy], count: int, record: Mapping[int, ArchiveEntry], *, is_once: bool) -> int:
    """Return how many copies are doubles. Raise if one has no reason on record, or anything is not in its place."""
    first: dict[int, Copy] = {}
    doubles: list[Copy] = []
    for copy in copies:
        if copy.seq not in first:
            first[copy.seq] = copy
        else:
            doubles.append(copy)
    missing = set(range(1, count + 1)) - first.keys()
    assert not missing, f"{len(missing)} events are missing: {sorted(missing)[:5]}"
    assert list(first) == list(range(1, count + 1)), "first copies are out of order"
    assert not (is_once and doubles), f"{len(doubles)} events are there twice: {Counter(doubles).most_common(3)}"
    for copy in doubles:
        assert copy.message_id == first[copy.seq].message_id, f"copies of {copy.seq} have two message_ids"
        assert copy.attempt > 1, f"a second copy of {copy.seq} says that it is the first"
        lost = {error["type"] for error in record[copy.seq].errors} if copy.seq in record else set()
        assert lost & {"LeaseLost", "ConfirmLost"}, f"{copy.seq} is there twice, and on record is {lost}"
    return len(doubles)


# --- the brokers ---------------------------------------------------------------------------------


async def _make_queue(server: BrokerServer) -> None:
    if server.kind == "rabbitmq":
        async with await aio_pika.connect(server.url) as connection:
            await (await connection.channel()).declare_queue(TOPIC, durable=True)


async def read(server: BrokerServer) -> list[Copy]:
    """Return all that a broker has, in its order."""
    if server.kind == "nats":
        return await _read_nats(server.url)
    if server.kind == "redis":
        return await _read_redis(server.url)
    return await _read_rabbitmq(server.url)


def _copy(headers: Mapping[str, Any], at: float = 0.0) -> Copy:
    message_id = str(headers["eventbus-message-id"])
    return Copy(int(headers["eventbus-seq"]), message_id, int(headers["eventbus-attempt"]), at)


async def _read_nats(url: str) -> list[Copy]:
    client = await nats.connect(url)
    js = client.jetstream()
    left = (await js.stream_info("relayed")).state.messages
    reader = await js.pull_subscribe(TOPIC, durable="reader", stream="relayed")
    copies: list[Copy] = []
    while len(copies) < left:
        messages = await reader.fetch(min(1_000, left - len(copies)), timeout=10)
        copies += [_copy(each.headers or {}, each.metadata.timestamp.timestamp()) for each in messages]
        for each in messages:
            await each.ack()
    await client.close()
    return copies


async def _read_redis(url: str) -> list[Copy]:
    client: Any = Redis.from_url(url, decode_responses=True)
    copies: list[Copy] = []
    after = "-"
    while page := await client.xrange(TOPIC, after, "+", count=1_000):
        copies += [_copy(fields) for _, fields in page]
        after = f"({page[-1][0]}"
    await client.aclose()
    return copies


async def _read_rabbitmq(url: str) -> list[Copy]:
    copies: list[Copy] = []
    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).declare_queue(TOPIC, durable=True, passive=True)
        left = queue.declaration_result.message_count or 0

        async def take(message: AbstractIncomingMessage) -> None:
            copies.append(_copy(message.headers))

        await queue.consume(take, no_ack=True)
        await eventually(lambda: len(copies) >= left, 120)
    return copies


# --- from the command line -----------------------------------------------------------------------


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--broker", choices=["two", *KINDS], default="nats", help="or two relays of one name")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    if options.broker == "two":
        return await take_over(processes, database_url, seconds=10)
    return await run(processes, database_url, kind=options.broker, count=options.count, timeout=600)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
