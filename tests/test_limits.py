"""Limits hold over the workers of several nodes, on every database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from eventbus_fastapi import Event, EventBus, Fixed
from eventbus_fastapi.errors import InvalidGroup, InvalidHandler
from tests.waiting import eventually

OpenBus = Callable[..., Awaitable[EventBus]]


class Made(Event, topic="thing.made"):
    number: int


class Counter:
    """Counts how many run, and how many ran at the same time at most."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.running = self.most = 0
        self.may_end = asyncio.Event()

    async def run(self, number: int) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await self.may_end.wait()
        await asyncio.sleep(0)
        self.running -= 1
        self.done.append(number)


async def test_no_more_events_are_handled_at_once_than_a_group_allows_whatever_nodes_there_are(
    open_bus: OpenBus,
) -> None:
    counter = Counter()
    buses = [await open_bus(), await open_bus()]
    for bus in buses:

        @bus.handler(Made, group="g", max_in_flight=3)
        async def handle(event: Made) -> None:
            await counter.run(event.number)

        await bus.workers.start()
    await buses[0].publish_many([Made(number=number) for number in range(30)])
    await eventually(lambda: counter.running == 3)
    counter.may_end.set()
    await eventually(lambda: len(counter.done) == 30, timeout=30)
    assert counter.most == 3
    assert sorted(counter.done) == list(range(30))


async def test_attempts_begin_no_more_often_than_their_limit_says(open_bus: OpenBus) -> None:
    """Two groups on two nodes share it; the retries of one take permits, too."""
    began: list[str] = []
    buses = [await open_bus(), await open_bus()]
    for bus in buses:
        bus.rate_limit("mail", 5, per=3_600)

        @bus.handler(Made, group="one", rate_limit="mail", backoff=Fixed(0))
        async def fail(event: Made) -> None:
            began.append("one")
            raise ValueError

        @bus.handler(Made, group="other", rate_limit="mail")
        async def handle(event: Made) -> None:
            began.append("other")

        await bus.workers.start()
    await buses[0].publish_many([Made(number=number) for number in range(10)])
    await eventually(lambda: len(began) == 5, timeout=30)
    await buses[0].groups.set_rate_limit("mail", 8, 3_600)
    await eventually(lambda: len(began) == 8, timeout=30)


@pytest.mark.databases("sqlite")
async def test_who_waits_for_a_permit_notices_that_the_limit_was_raised(open_bus: OpenBus) -> None:
    """Where it is the only node, and nothing else tells it to look."""
    bus = await open_bus()
    bus.rate_limit("mail", 1, per=3_600)
    bus.queue("default", poll_interval=0.1)
    began: list[int] = []

    @bus.handler(Made, group="g", rate_limit="mail")
    async def handle(event: Made) -> None:
        began.append(event.number)

    await bus.workers.start()
    await bus.publish_many([Made(number=number) for number in range(3)])
    await eventually(lambda: began and not any(consumer.has_work for consumer in bus.node.consumers))
    await bus.groups.set_rate_limit("mail", 3, 3_600)
    await eventually(lambda: began == [0, 1, 2])


@pytest.mark.databases("sqlite")
async def test_what_waits_for_a_permit_holds_back_no_handler_of_a_lower_priority(open_bus: OpenBus) -> None:
    bus = await open_bus()
    bus.rate_limit("mail", 1, per=3_600)
    done: list[str] = []

    @bus.handler(Made, group="limited", rate_limit="mail", priority=1)
    async def limited(event: Made) -> None:
        done.append("limited")

    @bus.handler(Made, group="other")
    async def other(event: Made) -> None:
        done.append("other")

    await bus.workers.start()
    await bus.publish_many([Made(number=number) for number in range(3)])
    await eventually(lambda: len(done) == 4)
    assert sorted(done) == ["limited", "other", "other", "other"]


@pytest.mark.databases("sqlite")
async def test_a_handler_whose_limit_is_nowhere_is_refused_when_the_workers_start(open_bus: OpenBus) -> None:
    bus = await open_bus()

    @bus.handler(Made, group="g", rate_limit="mail")
    async def handle(event: Made) -> None: ...

    with pytest.raises(InvalidHandler, match=r"handler 'g': there is no rate limit 'mail'; say eventbus\.rate_limit"):
        await bus.workers.start()
    await bus.groups.set_rate_limit("mail", 1, 60)  # somewhere else, perhaps
    await bus.workers.start()


@pytest.mark.databases("sqlite")
async def test_what_cannot_be_a_limit_is_refused_where_it_is_said(open_bus: OpenBus) -> None:
    bus = await open_bus()
    with pytest.raises(InvalidGroup, match=r"rate limit 'mail': per must be 0 to .* seconds .* got nan"):
        bus.rate_limit("mail", 1, per=float("nan"))
    with pytest.raises(InvalidHandler, match="max_in_flight must be an int of at least 1, got 0"):

        @bus.handler(Made, group="g", max_in_flight=0)
        async def handle(event: Made) -> None: ...
