"""Messages of RabbitMQ are ingested by processes that are killed at random; each message becomes exactly one event.

    python -m tests.faults.ingested                         # 50,000 messages on every database
    python -m tests.faults.ingested --database postgresql

Two processes of `eventbus ingest` share one queue, and one after the other is killed with -9 and started again. What
was delivered to it and not acknowledged comes again, and some of it was stored already. A few messages cannot be
events: each is one dead letter in the end.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid5

import aio_pika

from eventbus_fastapi.bus import EventBus
from eventbus_fastapi.settings import Settings
from tests.brokers import any_broker
from tests.faults import command
from tests.faults.processes import Process, Processes, prepare
from tests.relay.sources import RabbitQueue, filled
from tests.waiting import eventually

PROCESSES = 2
BATCH = 200
SPACE = UUID("6f7d5a0e-1c8c-4c3e-9a41-0a5b8e0f3a11")
BAD_EVERY = 1_000
"""Of so many messages, one is none that can be an event."""
NAME = "ingest.faults"


class Staff:
    """The processes that ingest, one of which is always about to be killed."""

    def __init__(self, processes: Processes, database_url: str, broker_url: str, queue: str) -> None:
        self.kills = 0
        self._processes = processes
        self._command = ["-m", "eventbus_fastapi.cli", "ingest", "--from", broker_url, "--queue", queue]
        self._command += ["--name", NAME, "--topic", "order.paid", "--batch", str(BATCH)]
        self._settings: dict[str, Any] = {"database_url": database_url, "log_level": "warning"}
        self._names = (f"ingest-{number}" for number in range(1_000_000))
        self._running: list[Process] = [self._start() for _ in range(PROCESSES)]

    def _start(self) -> Process:
        return self._processes.python(next(self._names), self._command, **self._settings)

    async def be_killed(self, pause: float) -> None:
        """Kill one and start another, once it has begun to ingest; until cancelled."""
        chance = random.Random(11)
        for place in itertools.cycle(range(PROCESSES)):
            await _until_it_ingests(self._running[place])
            await asyncio.sleep(chance.uniform(0.5, 1) * pause)
            self._running[place].kill()
            self._running[place] = self._start()
            self.kills += 1

    async def end(self) -> list[int]:
        """Ask them to end; return their exit codes."""
        for process in self._running:
            await _until_it_ingests(process)
        return [await process.terminate() for process in self._running]


async def _until_it_ingests(process: Process) -> None:
    await eventually(lambda: "ingesting" in process.text(), 60)


async def run(
    processes: Processes,
    database_url: str,
    broker_url: str,
    *,
    count: int,
    kills: int,
    pause: float = 4.0,
    timeout: float = 60,
) -> Mapping[str, Any]:
    """Have so many messages ingested, and a process killed so often, or more often.

    Raises:
        AssertionError: a message is no event or more than one, or is left in the queue, or a process did not end well.
    """
    await prepare(database_url)
    bad = set(range(BAD_EVERY // 2, count, BAD_EVERY))
    async with filled("rabbitmq", broker_url) as queue, EventBus(settings=Settings(database_url=database_url)) as bus:
        assert isinstance(queue, RabbitQueue)
        staff = Staff(processes, database_url, broker_url, queue.name)
        killing = asyncio.create_task(staff.be_killed(pause))
        size = count // (kills + 1)
        for start in range(0, count, size):
            await eventually(lambda start=start: staff.kills >= start // size, timeout)  # type: ignore[misc]
            await _fill(queue, range(start, min(count, start + size)), bad)

        async def is_done() -> bool:
            assert not killing.done() or killing.cancelled(), killing.exception()
            dead = (await bus.groups.group(NAME)).figures.dead
            return (await bus.head()).last_seq + dead >= count

        await eventually(is_done, timeout)
        killing.cancel()
        await asyncio.wait([killing])
        await eventually(lambda: _is_empty(queue), 60)  # what was stored before a kill comes once more
        codes = await staff.end()
        left = await queue.left()
        letters = [entry for _, entry in (await bus.groups.dead_letters(NAME, limit=1_000)).entries]
        bodies = [(await bus.groups.dead_letter(NAME, letter.seq)).message.body for letter in letters]
        log = await _read_log(bus)
    stored = Counter(log)
    wanted = {(_id_of(number), number) for number in range(count) if number not in bad}
    missing, double = len(wanted - stored.keys()), sum(times - 1 for times in stored.values())
    assert (missing, double) == (0, 0), f"{missing} messages are no events, {double} events are there once more"
    assert stored.keys() == wanted, "there are events that nobody sent"
    assert sorted(bodies) == sorted(_body(number, is_bad=True) for number in bad), "the dead letters are not as sent"
    assert left == 0, f"{left} messages are left in the queue"
    assert codes == [0] * PROCESSES, f"the processes ended with {codes}"
    return {
        "messages": count,
        "processes killed": staff.kills,
        "events": len(log),
        "events that are missing or there twice": missing + double,
        "dead letters": len(letters),
    }


async def _read_log(bus: EventBus) -> list[tuple[UUID, int]]:
    """Return message_id and number of every event."""
    log: list[tuple[UUID, int]] = []
    after: int | None = 0
    while after is not None:
        page = await bus.node.history(["#"], after, 1_000)
        log += [(message.message_id, message.payload["n"]) for message in page.messages]
        after = page.next
    return log


async def _fill(queue: RabbitQueue, numbers: range, bad: set[int]) -> None:
    for start in range(0, len(numbers), BATCH):
        together = numbers[start : start + BATCH]
        await asyncio.gather(*[queue.publish(_message(number, number in bad)) for number in together])


def _message(number: int, is_bad: bool) -> aio_pika.Message:
    return aio_pika.Message(
        _body(number, is_bad=is_bad),
        content_type="application/json",
        message_id=str(_id_of(number)),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


def _id_of(number: int) -> UUID:
    return uuid5(SPACE, str(number))


def _body(number: int, *, is_bad: bool) -> bytes:
    return b'{"n":%d' % number + (b"" if is_bad else b"}")


async def _is_empty(queue: RabbitQueue) -> bool:
    return await queue.left() == 0


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=20, help="of processes, at least")
    parser.add_argument("--pause", type=float, default=4.0, help="seconds between two kills, at most")


async def _case(processes: Processes, database_url: str, options: argparse.Namespace) -> Mapping[str, Any]:
    with any_broker("rabbitmq") as url:
        size = {"count": options.count, "kills": options.kills, "pause": options.pause}
        return await run(processes, database_url, url, **size, timeout=1_800)


if __name__ == "__main__":
    command.run(_case, __doc__, _add_options)
