"""Workers call handlers with the events of their groups, on every database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import Depends
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi import Attempt, BusSession, Discard, Event, EventBus, Fixed, HandlerGroup, Message, Retry, Snooze
from eventbus_fastapi.errors import InvalidHandler
from eventbus_fastapi.store.group import DeadLetter, Figures
from tests.waiting import eventually

OpenBus = Callable[..., Awaitable[EventBus]]
AT_ONCE = Fixed(0)


class Made(Event, topic="thing.made"):
    number: int


async def serve(bus: EventBus) -> None:
    """Make the groups of all handlers, which read what comes from now on, and serve them."""
    await bus.workers.start()


async def figures(bus: EventBus, group: str) -> Figures:
    groups = bus.node.store.groups
    return await groups.figures(await groups.get(group))


async def dead_letters(bus: EventBus, group: str) -> list[DeadLetter]:
    groups = bus.node.store.groups
    return await groups.dead_letters(await groups.get(group))


async def until_done(bus: EventBus, *names: str) -> None:
    """Wait until groups have settled every event that was published so far."""
    for name in names:
        group = await bus.node.store.groups.get(name)
        page = await bus.node.history(group.patterns, 0, 1_000)
        last = max(message.seq for message in page.messages)
        await eventually(partial(_has_settled, bus, name, last), timeout=30)


async def _has_settled(bus: EventBus, name: str, last: int) -> bool:
    if (await bus.node.store.groups.get(name)).cursor < last:  # first: what is claimed after the figures is not in them
        return False
    now = await figures(bus, name)
    return (now.in_flight, now.retries) == (0, 0)


async def get_mailer() -> str:
    return "real"


async def test_a_handler_gets_each_event_of_its_pattern_once(open_bus: OpenBus) -> None:
    bus = await open_bus()
    seen: list[int] = []

    @bus.handler(Made, group="g")
    async def handle(event: Made) -> None:
        seen.append(event.number)

    await serve(bus)
    await bus.publish_many([Made(number=number) for number in range(300)])
    await bus.publish("other", 1)
    await eventually(lambda: len(seen) == 300)
    await until_done(bus, "g")
    assert sorted(seen) == list(range(300))
    assert (await figures(bus, "g"))[2:] == (0, 0, 0)


async def test_each_handler_is_a_group_and_one_that_fails_never_repeats_another(open_bus: OpenBus) -> None:
    """A always fails and ends in the dead letters with all its errors; B runs once per event."""
    bus = await open_bus()
    attempts: list[int] = []
    seen: list[int] = []

    @bus.handler(Made, group="a", max_retries=2, backoff=AT_ONCE)
    async def fail(event: Made, attempt: Attempt) -> None:
        attempts.append(attempt)
        raise ValueError(f"no {event.number}")

    @bus.handler(Made, group="b")
    async def succeed(event: Made) -> None:
        seen.append(event.number)

    await serve(bus)
    await bus.publish_many([Made(number=number) for number in range(5)])
    await eventually(lambda: len(attempts) == 15 and len(seen) == 5)
    await until_done(bus, "a", "b")
    assert sorted(seen) == list(range(5))
    assert sorted(attempts) == [1] * 5 + [2] * 5 + [3] * 5
    letters = await dead_letters(bus, "a")
    assert [letter.message.decode(Made).number for letter in letters] == list(range(5))
    assert [(error["attempt"], error["type"]) for error in letters[0].errors] == [
        (1, "ValueError"),
        (2, "ValueError"),
        (3, "ValueError"),
    ]
    assert letters[0].errors[0]["message"] == "no 0"
    assert "raise ValueError" in letters[0].errors[0]["traceback"]
    assert letters[0].errors[0]["node"]


async def test_dead_letters_are_drained_once_the_handler_is_mended(open_bus: OpenBus) -> None:
    bus = await open_bus()
    is_broken = True
    seen: list[int] = []

    @bus.handler(Made, group="g", max_retries=0)
    async def handle(event: Made) -> None:
        if is_broken:
            raise ValueError
        seen.append(event.number)

    await serve(bus)
    await bus.publish_many([Made(number=number) for number in range(3)])

    async def all_dead() -> bool:
        return (await figures(bus, "g")).dead == 3

    await eventually(all_dead)
    is_broken = False
    groups = bus.node.store.groups
    group = await groups.get("g")
    await groups.revive(group, [letter.message.seq for letter in await groups.dead_letters(group)])
    await eventually(lambda: sorted(seen) == [0, 1, 2])
    await until_done(bus, "g")
    assert await dead_letters(bus, "g") == []


async def test_what_a_handler_returns_decides(open_bus: OpenBus) -> None:
    bus = await open_bus()
    calls: list[tuple[int, int]] = []

    @bus.handler(Made, group="g", max_retries=1)
    async def handle(event: Made, attempt: Attempt) -> Any:
        calls.append((event.number, attempt))
        if event.number == 0 and attempt == 1:
            return Retry(after=0)
        if event.number == 1 and len([call for call in calls if call[0] == 1]) < 4:
            return Snooze(0.001)
        if event.number == 2:
            return Discard("not wanted")
        return None

    await serve(bus)
    await bus.publish_many([Made(number=number) for number in range(3)])
    await eventually(lambda: len(calls) == 7)
    await until_done(bus, "g")
    assert sorted(calls) == [(0, 1), (0, 2), (1, 1), (1, 1), (1, 1), (1, 1), (2, 1)]
    assert (await figures(bus, "g")).dead == 0


async def test_an_event_that_cannot_be_decoded_is_a_dead_letter_and_no_other_is_held_back(open_bus: OpenBus) -> None:
    bus = await open_bus()
    seen: list[int] = []

    @bus.handler(Made, group="g")
    async def handle(event: Made) -> None:
        seen.append(event.number)

    await serve(bus)
    await bus.publish_many([("thing.made", {"number": "x"}), ("thing.made", b"\xff"), Made(number=1)])
    await eventually(lambda: seen == [1])
    await until_done(bus, "g")
    assert [letter.message.seq for letter in await dead_letters(bus, "g")] == [1, 2]


async def test_a_handler_in_the_bus_transaction_writes_its_effects_and_its_ack_or_neither(
    open_bus: OpenBus, table_prefix: str
) -> None:
    bus = await open_bus()
    table = f"{table_prefix}handled"
    async with bus.engine.begin() as connection:
        await connection.execute(text(f"CREATE TABLE {table} (number INTEGER, attempt INTEGER)"))

    @bus.handler(Made, group="g", backoff=AT_ONCE)
    async def handle(event: Made, session: BusSession, attempt: Attempt) -> None:
        values = {"number": event.number, "attempt": attempt}
        await session.execute(text(f"INSERT INTO {table} VALUES (:number, :attempt)"), values)
        await bus.publish_txn(session, "thing.handled", event.number)
        if event.number % 2 and attempt == 1:
            raise ValueError("after its effects")

    await serve(bus)
    await bus.publish_many([Made(number=number) for number in range(6)])
    await until_done(bus, "g")
    async with AsyncSession(bus.engine) as session:
        rows = (await session.execute(text(f"SELECT number, attempt FROM {table} ORDER BY number"))).all()
    assert [tuple(row) for row in rows] == [(0, 1), (1, 2), (2, 1), (3, 2), (4, 1), (5, 2)]

    async def handled() -> bool:
        page = await bus.node.history(["thing.handled"], 0, 100)
        return sorted(message.payload for message in page.messages) == list(range(6))

    await eventually(handled)


async def test_dependencies_are_those_of_the_app_and_may_be_overridden(open_bus: OpenBus) -> None:
    bus = await open_bus()
    sent: list[tuple[str, int]] = []

    @bus.handler(Made, group="g")
    async def handle(message: Message, mailer: Annotated[str, Depends(get_mailer)]) -> None:
        sent.append((mailer, message.seq))

    bus.workers.dependency_overrides[get_mailer] = lambda: "fake"
    await serve(bus)
    await bus.publish(Made(number=1))
    await eventually(lambda: sent == [("fake", 1)])


async def test_of_a_key_one_event_after_another_is_handled_on_two_nodes(open_bus: OpenBus) -> None:
    """Given two nodes and an event that fails at first, when many come, then each key sees its own in order."""
    buses = [await open_bus(), await open_bus()]
    seen: dict[str, list[int]] = {}
    running: set[str] = set()
    clashes: list[str] = []
    handlers = HandlerGroup()

    @handlers.handler(Made, group="g", ordered_by="key", backoff=AT_ONCE)
    async def handle(event: Made, message: Message, attempt: Attempt) -> None:
        key = message.key or ""
        clashes.extend([key] * (key in running))
        running.add(key)
        await asyncio.sleep(0)
        running.discard(key)
        if event.number % 10 == 0 and attempt == 1:
            raise ValueError
        seen.setdefault(key, []).append(event.number)

    for bus in buses:
        bus.include(handlers)
        await serve(bus)
    drafts = [buses[0].draft(Made(number=number), key=f"k{number % 3}") for number in range(90)]
    for start in range(0, 90, 15):
        await buses[0].publish_many(drafts[start : start + 15])
    await eventually(lambda: sum(map(len, seen.values())) == 90, timeout=30)
    assert clashes == []
    assert seen == {f"k{key}": [number for number in range(90) if number % 3 == key] for key in range(3)}


async def test_a_shutdown_gives_back_what_has_not_ended_without_an_attempt(open_bus: OpenBus) -> None:
    bus = await open_bus()
    bus.queue("default", workers=2)
    started: list[int] = []
    never = asyncio.Event()

    @bus.handler(Made, group="g")
    async def handle(event: Made, attempt: Attempt) -> None:
        started.append(event.number)
        assert attempt == 1
        await never.wait()

    await serve(bus)
    await bus.publish_many([Made(number=number) for number in range(10)])
    await eventually(lambda: len(started) == 2)
    bus.workers.shutdown()
    assert not await bus.workers.join(0.01)

    async def is_back() -> bool:
        return (await figures(bus, "g")).in_flight == 0

    await eventually(is_back)
    never.set()
    await serve(bus)
    await eventually(lambda: set(started) == set(range(10)))
    await until_done(bus, "g")
    assert (await figures(bus, "g")).dead == 0


async def test_a_handler_whose_lease_is_lost_is_stopped(open_bus: OpenBus, caplog: pytest.LogCaptureFixture) -> None:
    bus = await open_bus(lease=1.0)
    calls: list[int] = []
    stopped = asyncio.Event()

    @bus.handler(Made, group="g")
    async def handle(event: Made) -> None:
        calls.append(event.number)
        if len(calls) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                stopped.set()

    await serve(bus)
    await bus.publish(Made(number=1))
    await eventually(lambda: calls == [1])
    with caplog.at_level(logging.WARNING):
        await bus.node.store.groups.reset("g", 0)  # whoever holds something loses it
        await eventually(stopped.is_set, timeout=10)
    await eventually(lambda: calls == [1, 1], timeout=10)
    await until_done(bus, "g")


async def test_a_handler_whose_lease_is_lost_while_it_is_cancelled_ends_with_the_workers(
    open_bus: OpenBus, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await open_bus()
    settler = bus.node.consumers.settler
    begun = asyncio.Event()

    @bus.handler(Made, group="g")
    async def handle(event: Made) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            (delivery,) = (held for deliveries in settler._held.values() for held in deliveries.values())
            asyncio.get_running_loop().call_soon(settler.lose, delivery)
            await asyncio.Event().wait()

    await serve(bus)
    await bus.publish(Made(number=1))
    await asyncio.wait_for(begun.wait(), 10)
    await bus.workers.join(0)
    assert "do not end" not in caplog.text


async def test_a_paused_group_waits_and_goes_on(open_bus: OpenBus) -> None:
    bus = await open_bus()
    seen: list[int] = []

    @bus.handler(Made, group="g")
    async def handle(event: Made) -> None:
        seen.append(event.number)

    await serve(bus)
    groups = bus.node.store.groups
    await groups.pause("g")
    await bus.publish(Made(number=1))

    async def knows() -> bool:
        return next(iter(bus.node.consumers)).group.is_paused

    await eventually(knows)
    assert seen == []
    await groups.resume("g")
    await eventually(lambda: seen == [1])


async def serve_low_and_high(bus: EventBus) -> tuple[asyncio.Event, list[str]]:
    """Have the one worker of a queue wait in a handler, beside one of a higher priority; return the gate that it waits
    at, and the handlers in the order in which they end.
    """
    bus.queue("default", workers=1)
    gate = asyncio.Event()
    order: list[str] = []

    @bus.handler("low", group="low")
    async def low(event: int) -> None:
        await gate.wait()
        order.append("low")

    @bus.handler("high", group="high", priority=5)
    async def high(event: int) -> None:
        order.append("high")

    await serve(bus)
    await bus.publish("low", 0)
    await eventually(lambda: bus.node.consumers.settler.held == 1)
    return gate, order


async def test_priorities_decide_what_of_a_queue_comes_first(open_bus: OpenBus) -> None:
    bus = await open_bus()
    gate, order = await serve_low_and_high(bus)
    await bus.publish_many([("low", 1), ("low", 2), ("high", 3)])
    await eventually(lambda: all(consumer.has_work for consumer in bus.node.consumers))
    gate.set()
    await eventually(lambda: len(order) == 4)
    assert order == ["low", "high", "low", "low"]


@pytest.mark.databases("sqlite")
async def test_a_group_that_is_deleted_holds_back_none_of_a_lower_priority(open_bus: OpenBus) -> None:
    bus = await open_bus()
    gate, order = await serve_low_and_high(bus)
    await bus.publish_many([("low", 1), ("high", 2)])
    await eventually(lambda: all(consumer.has_work for consumer in bus.node.consumers))
    await bus.groups.delete("high")
    gate.set()
    await eventually(lambda: order == ["low", "low"])


@pytest.mark.databases("sqlite")
async def test_what_another_node_has_taken_holds_back_none_of_a_lower_priority(open_bus: OpenBus) -> None:
    """They wait for it while it seems to be there, and nothing of it ever ends here."""
    bus = await open_bus()
    gate, order = await serve_low_and_high(bus)
    await bus.publish_many([("low", 1), ("high", 2)])
    await eventually(lambda: all(consumer.has_work for consumer in bus.node.consumers))
    store = bus.node.store
    high = await store.groups.get("high")
    messages = [each for each in (await store.read(0, 10)).messages if each.topic == "high"]
    assert await store.groups.claim(high, messages, up_to=messages[-1].seq, owner="other", lease=60)
    gate.set()
    await eventually(lambda: order == ["low", "low"])


async def test_of_two_retries_the_later_one_comes_when_it_is_due_however_seldom_the_queue_polls(
    open_bus: OpenBus,
) -> None:
    """Looking for the first made the node forget when the second is due."""
    bus = await open_bus()
    bus.queue("default", workers=2, poll_interval=60)
    retried: list[float] = []

    @bus.handler("a", group="g")
    async def fail_once(delay: float, attempt: Attempt) -> Retry | None:
        if attempt == 1:
            return Retry(after=delay)
        retried.append(delay)
        return None

    await bus.workers.start()
    await bus.publish_many([("a", 0.25), ("a", 0.05)])
    await eventually(lambda: retried == [0.05, 0.25])


@pytest.mark.databases("sqlite")
async def test_workers_may_start_with_the_bus(open_bus: OpenBus) -> None:
    bus = await open_bus()
    await bus.stop()
    another = EventBus(settings=bus.settings, workers=True)
    seen: list[int] = []

    @another.handler(Made, group="g")
    def handle(event: Made) -> None:
        seen.append(event.number)

    async with another:
        assert another.workers.is_running
        await another.publish(Made(number=1))
        await eventually(lambda: seen == [1])
    assert not another.workers.is_running


@pytest.mark.databases("sqlite")
async def test_a_queue_that_no_handler_is_of_is_refused(open_bus: OpenBus) -> None:
    bus = await open_bus()

    @bus.handler(Made, group="g", queue="email")
    def handle(event: Made) -> None: ...

    with pytest.raises(InvalidHandler, match="no handler is of the queue 'emial'; there are: email"):
        await bus.workers.start(["emial"])
    for wrong in (0, 1.5, True, 10_000):
        with pytest.raises(InvalidHandler, match="workers must be an integer from 1 to 1,000"):
            bus.queue("email", workers=wrong)  # type: ignore[arg-type]


async def test_listeners_are_called_before_emit_returns_and_nothing_is_stored(open_bus: OpenBus) -> None:
    bus = await open_bus()
    heard: list[int] = []

    @bus.listener(Made)
    def listen(event: Made) -> None:
        heard.append(event.number)

    await bus.emit(Made(number=7))
    assert heard == [7]
    assert (await bus.head()).last_seq == 0
