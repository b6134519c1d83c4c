"""A bus: events that its program declares recur, and stay as operators have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventbus_fastapi import Event, EventBus
from eventbus_fastapi.errors import InvalidInput, InvalidRecurring, NotRunning
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import migrations
from eventbus_fastapi.store.schema import Tables
from eventbus_fastapi.testing import BusTester, swap
from tests.waiting import eventually


class ReportRequested(Event, topic="report.requested"):
    kind: str


@pytest.fixture
async def open_bus(database_url: str) -> Callable[[], EventBus]:
    """Make a further bus on the test's database, as another process has one."""
    await migrations.run(Settings(database_url=database_url), Tables(), migrations.upgrade)
    return lambda: EventBus(database_url)


@pytest.fixture
def bus() -> Iterator[BusTester]:
    with swap(EventBus("sqlite+aiosqlite://")) as tester:
        yield tester


def program(bus: EventBus, cron: str = "0 3 * * *") -> EventBus:
    """Declare what a program declares."""
    bus.recurring("nightly", cron, ReportRequested(kind="sales"), timezone="Europe/Berlin")
    return bus


# --- declaring -----------------------------------------------------------------------------------


async def test_what_a_program_declares_is_there_once_its_bus_has_started(open_bus: Callable[[], EventBus]) -> None:
    async with program(open_bus()) as first, program(open_bus()) as second:
        (event,) = await first.recurring.all()
        assert event == await second.recurring.get("nightly")
        assert (event.name, event.declaration.topic, event.is_declared) == ("nightly", "report.requested", True)
        assert event.declaration.missed == "last"


@pytest.mark.databases("sqlite")
async def test_what_an_operator_changes_outlives_a_restart_until_the_program_says_something_else(
    open_bus: Callable[[], EventBus],
) -> None:
    async with program(open_bus()) as bus:
        await bus.recurring.change("nightly", cron="0 4 * * *", payload={"kind": "all"}, missed="all")
        await bus.recurring.pause("nightly")
    async with program(open_bus()) as bus:
        kept = await bus.recurring.get("nightly")
        said = kept.declaration
        assert (said.cron, said.timezone, said.payload) == ("0 4 * * *", "Europe/Berlin", b'{"kind":"all"}')
        assert (said.missed, kept.is_paused) == ("all", True)
    async with program(open_bus(), cron="0 5 * * *") as bus:
        changed = await bus.recurring.get("nightly")
        assert (changed.declaration.cron, changed.declaration.payload) == ("0 5 * * *", b'{"kind":"sales"}')
        assert changed.is_paused


@pytest.mark.databases("sqlite")
async def test_what_is_no_longer_declared_stays_until_it_is_deleted(open_bus: Callable[[], EventBus]) -> None:
    async with program(open_bus()):
        pass
    async with open_bus() as bus:
        assert [event.name for event in await bus.recurring.all()] == ["nightly"]
        await bus.recurring.delete("nightly")
    async with open_bus() as bus:
        assert await bus.recurring.all() == []


@pytest.mark.databases("sqlite")
async def test_what_is_declared_while_the_bus_runs_is_written_soon(open_bus: Callable[[], EventBus]) -> None:
    async with open_bus() as bus:
        program(bus)
        await eventually(bus.recurring.all)


@pytest.mark.databases("sqlite")
async def test_a_tick_is_published_when_it_is_due(open_bus: Callable[[], EventBus]) -> None:
    """Given a bus that sleeps, when something is declared that is due, then nobody has to ask for it."""
    async with open_bus() as bus, bus.subscribe("#") as subscription:
        made = await bus.recurring.declare("often", "* * * * *", "tick", None)
        table = bus.node.store.tables.recurring
        async with bus.engine.begin() as connection:
            await connection.execute(table.update().values(next_at=made.created_at + 200_000))
        bus.node.recurrer.bell.ring()
        (message,) = await subscription.next_messages()
        due = datetime.fromtimestamp((made.created_at + 200_000) / 1_000_000, UTC)
        assert (message.topic, message.metadata["recurring"]) == ("tick", "often")
        assert datetime.fromisoformat(message.metadata["scheduled_at"]) == due <= message.timestamp


REFUSED: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    (("a b", "@daily", "a", 1), {}, "1 to 255 bytes without spaces, slashes"),
    (("a/b", "@daily", "a", 1), {}, "got 'a/b'"),
    ((7, "@daily", "a", 1), {}, "must be str, got int"),
    (("a", "daily", "a", 1), {}, "5 fields"),
    (("a", "@daily", "a..b", 1), {}, "segment 2 is empty"),
    (("a", "@daily", "a"), {}, "no payload"),
    (("a", "@daily", ReportRequested), {}, "the class ReportRequested itself"),
    (("a", "@daily", "a", 1), {"timezone": "Mars/Olympus"}, "Mars/Olympus"),
    (("a", "@daily", "a", 1), {"missed": "some"}, "one of skip, last, all, got 'some'"),
    (("a", "@daily", "a", 1), {"delay": 5}, "no option 'delay'; expected key, metadata, ttl, content_type"),
    (("a", "@daily", "a", 1), {"metadata": {"scheduled_at": 1}}, "'scheduled_at' is reserved"),
    (("a", "@daily", "a", 1), {"metadata": {"a": "x" * 16_350}}, "limit is 16,384"),
    (("a", "@daily", "a", 1), {"ttl": 0}, "more than 0 seconds"),
]


@pytest.mark.parametrize(("arguments", "options", "words"), REFUSED)
def test_what_cannot_be_used_is_refused_at_once(
    arguments: tuple[Any, ...], options: dict[str, Any], words: str
) -> None:
    bus = EventBus("sqlite+aiosqlite://")
    with pytest.raises(InvalidInput) as refused:
        bus.recurring(*arguments, **options)
    assert words in str(refused.value)


def test_a_name_is_declared_once() -> None:
    bus = program(EventBus("sqlite+aiosqlite://"))
    with pytest.raises(InvalidRecurring, match="'nightly' is declared already"):
        program(bus)


async def test_a_bus_that_is_not_started_has_no_recurring_events_to_look_after() -> None:
    with pytest.raises(NotRunning):
        await EventBus("sqlite+aiosqlite://").recurring.all()


# --- in users' suites ----------------------------------------------------------------------------


async def test_moving_the_clock_makes_ticks_due(bus: BusTester) -> None:
    """Given a program's recurring event, when a test moves the clock to its tick, then it is published and handled."""
    handled: list[str] = []
    program(bus.eventbus)

    @bus.eventbus.handler(ReportRequested, group="reports")
    async def make_report(event: ReportRequested) -> None:
        handled.append(event.kind)

    async with bus:
        assert await bus.published() == []
        next_at = (await bus.eventbus.recurring.get("nightly")).next_at / 1_000_000
        bus.clock.move(next_at - bus.clock.now().timestamp() + 1)
        await bus.drain()
        assert handled == ["sales"]
        (message,) = await bus.published("report.*")
        assert datetime.fromisoformat(message.metadata["scheduled_at"]).timestamp() == next_at
        bus.clock.move(timedelta(days=3))  # over three ticks: missed, so one event stands for them
        assert len(await bus.published("report.*")) == 2


async def test_each_start_in_memory_declares_anew(bus: BusTester) -> None:
    program(bus.eventbus)
    for _ in range(2):
        async with bus:
            assert len(await bus.eventbus.recurring.all()) == 1
            await bus.eventbus.recurring.delete("nightly")
