"""Queues under control: paused, resumed and scaled while they are served, with no event lost and no attempt counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from eventbus_fastapi import Attempt, Event, EventBus, Message
from eventbus_fastapi.store.queues import Control
from eventbus_fastapi.store.roster import Serving
from tests.waiting import eventually


class Made(Event, topic="thing.made"):
    number: int


class Gate:
    """Holds what passes it until it may go on, and counts who is held."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.done: list[tuple[int, int]] = []
        """Numbers with their attempts."""
        self._may_go = asyncio.Semaphore(0)

    async def hold(self, number: int, attempt: int) -> None:
        assert number not in self.running
        self.running.add(number)
        try:
            await self._may_go.acquire()
        finally:
            self.running.discard(number)
        self.done.append((number, attempt))

    def open(self, count: int = 1_000) -> None:
        for _ in range(count):
            self._may_go.release()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def bus(tmp_path: Path, gate: Gate) -> AsyncIterator[EventBus]:
    """A bus with a handler of the queue `email`, two of which run at the same time; it is not served yet."""
    bus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/eventbus.db")
    bus.queue("email", workers=2, poll_interval=60)

    @bus.handler(Made, group="g", queue="email")
    async def handle(event: Made, attempt: Attempt) -> None:
        await gate.hold(event.number, attempt)

    async with bus:
        yield bus
        gate.open()


async def publish(bus: EventBus, *numbers: int) -> None:
    await bus.publish_many([Made(number=number) for number in numbers])


async def apply(bus: EventBus) -> None:
    """Have the workers look at what operators say, as they do every second."""
    worker = bus.workers._worker
    assert worker is not None
    assert worker._foreman is not None
    await worker._foreman.run_once()


async def in_flight(bus: EventBus, count: int) -> None:
    """Wait until so many events are in flight, and no other waits for a retry that is not due."""

    async def is_so() -> bool:
        return (await bus.groups.group("g")).figures.in_flight == count

    await eventually(is_so)


async def all_are_done(bus: EventBus, gate: Gate, count: int) -> None:
    """Each of so many events was handled once, as the first attempt."""
    gate.open()
    await eventually(lambda: len(gate.done) >= count)
    await in_flight(bus, 0)
    assert sorted(gate.done) == [(number, 1) for number in range(count)]


async def test_a_pause_gives_back_what_has_not_begun_and_what_runs_goes_on(bus: EventBus, gate: Gate) -> None:
    await bus.workers.start()
    await publish(bus, *range(4))
    await eventually(lambda: len(gate.running) == 2)
    await bus.node.store.queues.pause("email")
    await apply(bus)
    gate.open(2)
    await eventually(lambda: len(gate.done) == 2)
    await in_flight(bus, 0)
    assert gate.running == set()

    await bus.node.store.queues.resume("email")
    await apply(bus)
    await all_are_done(bus, gate, 4)


async def test_a_queue_that_was_paused_before_takes_nothing_from_the_start(bus: EventBus, gate: Gate) -> None:
    await bus.node.store.queues.pause("email")
    await bus.workers.start()
    await publish(bus, 0)
    await eventually(lambda: all(consumer.has_work for consumer in bus.node.consumers))
    await apply(bus)
    assert (await bus.groups.group("g")).figures[0] == 1
    assert gate.running == set()
    await bus.node.store.queues.resume("email")
    await apply(bus)
    await all_are_done(bus, gate, 1)


async def test_a_queue_is_scaled_up_and_back(bus: EventBus, gate: Gate) -> None:
    await bus.workers.start()
    await publish(bus, *range(30))
    await eventually(lambda: len(gate.running) == 2)

    await bus.node.store.queues.scale("email", 10)
    await apply(bus)
    await eventually(lambda: len(gate.running) == 10)

    await bus.node.store.queues.scale("email", None)
    await apply(bus)
    assert len(gate.running) == 10  # none is cancelled
    gate.open(10)
    await eventually(lambda: len(gate.done) == 10 and len(gate.running) == 2)
    gate.open(2)
    await eventually(lambda: len(gate.done) == 12 and len(gate.running) == 2)
    await all_are_done(bus, gate, 30)


async def test_idle_runners_end_at_once_and_come_back(bus: EventBus, gate: Gate) -> None:
    await bus.workers.start()
    assert bus.workers._worker is not None
    (pool,) = bus.workers._worker._pools
    await asyncio.sleep(0)  # they begin to wait
    for workers in (50, 1, 3):
        await bus.node.store.queues.scale("email", workers)
        await apply(bus)
        await eventually(lambda wanted=workers: len(pool._idle) == len(pool._runners) == wanted)  # type: ignore[misc]
    await publish(bus, *range(5))
    await eventually(lambda: len(gate.running) == 3)
    await all_are_done(bus, gate, 5)


async def test_events_of_a_key_keep_their_order_over_a_pause(bus: EventBus, gate: Gate) -> None:
    """Given one of a key that runs and others that are held behind it, when the queue pauses, then they come later."""
    order: list[int] = []

    @bus.handler("keyed", group="keyed", queue="email", ordered_by="key")
    async def handle(number: int, message: Message) -> None:
        await gate.hold(number, 1)
        order.append(number)

    await bus.workers.start()
    await bus.publish_many([("keyed", number) for number in range(5)], key="k")
    await eventually(lambda: gate.running == {0})
    await bus.node.store.queues.pause("email")
    await apply(bus)
    gate.open(1)
    await eventually(lambda: order == [0])
    await eventually(lambda: bus.node.consumers.settler.held == 0)
    await bus.node.store.queues.resume("email")
    await apply(bus)
    gate.open()
    await eventually(lambda: order == [0, 1, 2, 3, 4])


async def test_a_process_that_serves_queues_is_on_the_roster(bus: EventBus, gate: Gate) -> None:
    store = bus.node.store
    await bus.workers.start()
    assert bus.workers.is_alive
    await publish(bus, 0)
    await eventually(lambda: gate.running == {0})
    await store.queues.pause("email")
    await apply(bus)
    (worker,) = await store.roster.all()
    assert (worker.id, worker.is_alive) == (bus.node.consumers.owner, True)
    assert worker.queues == {"email": Serving(2, 1, True, ("g",))}
    gate.open()
    bus.workers.shutdown()
    await bus.workers.join(10)
    assert await store.roster.all() == []
    assert await store.queues.controls() == {"email": Control(None, True)}


async def test_a_puller_that_has_ended_is_noticed(bus: EventBus) -> None:
    await bus.workers.start()
    (consumer,) = bus.node.consumers
    await bus.node.consumers.close(consumer)
    await eventually(lambda: not bus.workers.is_alive)


async def test_a_group_that_was_deleted_is_declared_anew_and_served_on(
    bus: EventBus, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    await bus.workers.start()
    await publish(bus, 0)
    await all_are_done(bus, gate, 1)
    with caplog.at_level(logging.WARNING):
        await bus.groups.delete("g")
        await publish(bus, 1)  # nobody is there to read it
        await eventually(lambda: "group g was deleted; it is served again, from after seq 2" in caplog.text)
    await publish(bus, 2)
    await eventually(lambda: gate.done == [(0, 1), (2, 1)])
    assert bus.workers.is_alive


async def test_a_group_that_was_deleted_and_declared_again_is_served_from_where_it_is(
    bus: EventBus, gate: Gate
) -> None:
    """Given a deleted group that somebody declares from the start, when it is served again, then from there."""
    await bus.workers.start()
    await publish(bus, 0)
    await all_are_done(bus, gate, 1)
    await bus.groups.delete("g")
    await bus.groups.declare("other", ["#"])  # on SQLite it gets the id that has become free
    await bus.groups.declare("g", ["thing.made"], start="earliest")
    await publish(bus, 1)
    await eventually(lambda: gate.done == [(0, 1), (0, 1), (1, 1)])
