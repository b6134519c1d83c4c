"""What users' suites get: a bus in memory, handlers that run when told to, a clock to move."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi import Attempt, BusSession, Discard, Event, EventBus, Fixed, Message, Retry, Unique
from eventbus_fastapi.errors import InvalidEvent, NotRunning
from eventbus_fastapi.testing import BusTester, swap
from tests import documents
from tests.documents import README
from tests.processes import CHECKOUT

pytest_plugins = ["pytester"]

TESTING = CHECKOUT / "docs" / "testing.md"
PRODUCTION = "postgresql+asyncpg://app@db.invalid/app"


class UserCreated(Event, topic="user.created"):
    id: int
    username: str = "alice"


def get_sender() -> str:
    return "real"


@pytest.fixture
def eventbus() -> EventBus:
    return EventBus(PRODUCTION, workers=True)


@pytest.fixture
def bus(eventbus: EventBus) -> Iterator[BusTester]:
    with swap(eventbus) as tester:
        yield tester


# --- what was published --------------------------------------------------------------------------


async def test_published_returns_the_events_of_a_class_that_match(bus: BusTester) -> None:
    async with bus:
        await bus.eventbus.publish_many(
            [UserCreated(id=1), UserCreated(id=2, username="bob"), ("user.gone", {"id": 1})]
        )
        assert await bus.published(UserCreated) == [UserCreated(id=1), UserCreated(id=2, username="bob")]
        assert await bus.published(UserCreated, username="bob") == [UserCreated(id=2, username="bob")]
        assert [message.topic for message in await bus.published("user.*", id=1)] == ["user.created", "user.gone"]
        assert [message.seq for message in await bus.published()] == [1, 2, 3]


async def test_what_a_transaction_publishes_is_there_once_it_commits_and_never_if_it_does_not(bus: BusTester) -> None:
    async with bus:
        async with AsyncSession(bus.eventbus.engine) as session:
            await bus.eventbus.publish_txn(session, UserCreated(id=1))
            await session.commit()
            await bus.eventbus.publish_txn(session, UserCreated(id=2))
            await session.rollback()
        assert await bus.published(UserCreated) == [UserCreated(id=1)]


async def test_an_assertion_that_fails_shows_what_was_published(bus: BusTester) -> None:
    async with bus:
        with pytest.raises(pytest.fail.Exception, match=r"expected UserCreated, but nothing was published"):
            await bus.assert_published(UserCreated)
        await bus.eventbus.publish(UserCreated(id=1))
        await bus.eventbus.publish("later", delay=60, payload=1)
        await bus.assert_published(UserCreated, id=1)
        await bus.refute_published(UserCreated, id=2)
        with pytest.raises(
            pytest.fail.Exception, match=r"with username='bob', but the log has:\n  1 user\.created"
        ) as e:
            await bus.assert_published(UserCreated, username="bob")
        assert "the next scheduled event is due in" in str(e.value)
        with pytest.raises(pytest.fail.Exception, match=r"expected no user\.\* with id=1"):
            await bus.refute_published("user.*", id=1)


async def test_a_field_that_the_class_does_not_have_is_an_error(bus: BusTester) -> None:
    async with bus:
        with pytest.raises(InvalidEvent, match="UserCreated has no field 'name'"):
            await bus.refute_published(UserCreated, name="alice")


# --- draining ------------------------------------------------------------------------------------


async def test_drain_calls_handlers_until_nothing_is_due_also_with_what_they_publish(bus: BusTester) -> None:
    seen: list[Any] = []

    @bus.eventbus.handler(UserCreated, group="first")
    async def first(event: UserCreated) -> None:
        seen.append(event)
        await bus.eventbus.publish("mail.sent", event.id)

    @bus.eventbus.handler("mail.*", group="second")
    def second(message: Message) -> Discard:
        seen.append(message.payload)
        return Discard("seen")

    async with bus:
        await bus.eventbus.publish(UserCreated(id=7))
        await bus.eventbus.publish("of.nobody", 1)
        handled = await bus.drain()
        assert seen == [UserCreated(id=7), 7]
        assert [(item.group, item.attempt, item.outcome) for item in handled][1] == ("second", 1, Discard("seen"))
        assert await bus.drain() == []
        assert (await bus.eventbus.groups.group("first")).figures[2:] == (0, 0, 0)


async def test_drain_keeps_in_the_archive_what_the_queue_says(bus: BusTester) -> None:
    bus.eventbus.queue("default", archive="all")

    @bus.eventbus.handler(UserCreated, group="g")
    async def handle(event: UserCreated) -> None: ...

    async with bus:
        await bus.eventbus.publish(UserCreated(id=1))
        await bus.drain()
        ((_, entry),) = (await bus.eventbus.groups.archive("g")).entries
        assert (entry.outcome, entry.attempt, entry.duration is None) == ("acked", 1, False)


async def test_drain_raises_what_a_handler_raises_and_the_next_goes_on(bus: BusTester) -> None:
    seen: list[int] = []

    @bus.eventbus.handler(UserCreated, group="g", max_retries=0)
    async def fail_at_first(event: UserCreated) -> None:
        if event.id == 1:
            raise ValueError("not this one")
        seen.append(event.id)

    async with bus:
        await bus.eventbus.publish_many([UserCreated(id=1), UserCreated(id=2)])
        with pytest.raises(ValueError, match="not this one") as raised:
            await bus.drain()
        assert raised.value.__notes__ == ["handler g, attempt 1, of user.created at 1"]
        await bus.drain()
        assert seen == [2]
        assert [entry.seq for _, entry in (await bus.eventbus.groups.dead_letters()).entries] == [1]


async def test_drain_records_errors_when_asked_to(bus: BusTester) -> None:
    @bus.eventbus.handler(UserCreated, group="g", max_retries=2, backoff=Fixed(0))
    async def fail(event: UserCreated, attempt: Attempt) -> None:
        raise ValueError(attempt)

    async with bus:
        await bus.eventbus.publish_many([UserCreated(id=1), ("user.created", {"id": "none"})])
        handled = await bus.drain(errors="record")
        assert [(item.message.seq, item.attempt, type(item.error).__name__) for item in handled] == [
            (1, 1, "ValueError"),
            (1, 2, "ValueError"),
            (1, 3, "ValueError"),
            (2, 1, "UndecodablePayload"),
        ]


async def test_what_comes_later_is_due_when_the_clock_has_moved(bus: BusTester) -> None:
    attempts: list[int] = []

    @bus.eventbus.handler("late", group="g", backoff=Fixed(3600))
    async def fail_once(message: Message, attempt: Attempt) -> None:
        attempts.append(attempt)
        if attempt == 1:
            raise ValueError

    async with bus:
        await bus.eventbus.publish("late", 1, delay=timedelta(days=1))
        await bus.eventbus.publish("late", 2, publish_at=bus.clock.now() + timedelta(days=2))
        await bus.eventbus.publish("gone", 3, ttl=60)
        bus.clock.move(3600)
        await bus.drain()
        assert await bus.published() == []  # one has expired, the others are not due
        bus.clock.move(timedelta(hours=23))
        assert len(await bus.drain(errors="record")) == 1
        bus.clock.move(3599 - 60)
        assert await bus.drain() == []
        bus.clock.move(60 + 1)
        await bus.drain()
        assert attempts == [1, 2]
        bus.clock.move(timedelta(days=1))
        await bus.drain(errors="record")
        assert attempts == [1, 2, 1]
        (_, last) = await bus.published("late")
        assert abs(last.timestamp - bus.clock.now()) < timedelta(minutes=1)


async def test_expired_retries_hide_none_that_is_due(bus: BusTester) -> None:
    """Given retries that are gone with their TTL, when others behind them are due, then one drain handles those."""
    attempts: list[int] = []

    @bus.eventbus.handler("t", group="g")
    async def fail_once(message: Message, attempt: Attempt) -> Retry | None:
        attempts.append(message.seq)
        return Retry(after=60) if attempt == 1 else None

    async with bus:
        await bus.eventbus.publish_many([("t", number) for number in range(2)], ttl=90)
        await bus.eventbus.publish("t", 2)
        await bus.drain()
        bus.clock.move(120)
        await bus.drain()
        assert attempts == [1, 2, 3, 3]


async def test_sessions_see_the_clock_too(bus: BusTester) -> None:
    bus.clock.move(3600)
    async with bus:
        async with AsyncSession(bus.eventbus.engine) as session, session.begin():
            await bus.eventbus.publish_txn(session, "late", 1, delay=60)
        assert await bus.published() == []
        bus.clock.move(60)
        assert len(await bus.published("late")) == 1


def test_the_clock_never_goes_back(bus: BusTester) -> None:
    with pytest.raises(ValueError, match="a clock moves forward, by 0 seconds or more, got -1"):
        bus.clock.move(-1)


async def test_a_handler_in_the_bus_transaction_writes_both_or_neither(bus: BusTester) -> None:
    @bus.eventbus.handler(UserCreated, group="g", backoff=Fixed(0))
    async def enter(event: UserCreated, session: BusSession, attempt: Attempt) -> None:
        await session.execute(text("INSERT INTO entry VALUES (:attempt)"), {"attempt": attempt})
        await bus.eventbus.publish_txn(session, "entered", attempt)
        if attempt == 1:
            raise ValueError

    async with bus:
        async with bus.eventbus.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE entry (attempt INTEGER)"))
        await bus.eventbus.publish(UserCreated(id=1))
        await bus.drain(errors="record")
        async with AsyncSession(bus.eventbus.engine) as session:
            assert (await session.execute(text("SELECT attempt FROM entry"))).scalars().all() == [2]
        assert [message.payload for message in await bus.published("entered")] == [2]


async def test_an_event_behind_another_of_its_key_waits_for_it(bus: BusTester) -> None:
    calls: list[tuple[int, int]] = []

    @bus.eventbus.handler("t", group="g", ordered_by="key", backoff=Fixed(60))
    async def fail_once(message: Message, attempt: Attempt) -> None:
        calls.append((message.payload, attempt))
        if message.payload == 1 and attempt == 1:
            raise ValueError

    async with bus:
        for number, key in ((1, "a"), (2, "a"), (3, "b")):
            await bus.eventbus.publish("t", number, key=key)
        await bus.drain(errors="record")
        assert calls == [(1, 1), (3, 1)]
        bus.clock.move(60)
        await bus.drain()
        assert calls[2:] == [(1, 2), (2, 1)]


async def test_dependencies_can_be_overridden(bus: BusTester) -> None:
    seen: list[str] = []

    @bus.eventbus.handler(UserCreated, group="g")
    async def handle(event: UserCreated, sender: Annotated[str, Depends(get_sender)]) -> None:
        seen.append(sender)

    bus.eventbus.workers.dependency_overrides[get_sender] = lambda: "fake"
    async with bus:
        await bus.eventbus.publish(UserCreated(id=1))
        await bus.drain()
    assert seen == ["fake"]


async def test_a_paused_group_has_nothing_due(bus: BusTester) -> None:
    @bus.eventbus.handler(UserCreated, group="g")
    async def handle(event: UserCreated) -> None: ...

    async with bus:
        await bus.drain()
        await bus.eventbus.groups.pause("g")
        await bus.eventbus.publish(UserCreated(id=1))
        assert await bus.drain() == []
        await bus.eventbus.groups.resume("g")
        assert len(await bus.drain()) == 1


async def test_a_drain_without_an_end_is_an_error(bus: BusTester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventbus_fastapi.testing.drain.MOST_ATTEMPTS", 5)

    @bus.eventbus.handler("again", group="g")
    async def again(message: Message) -> None:
        await bus.eventbus.publish("again", message.payload + 1)

    async with bus:
        await bus.eventbus.publish("again", 1)
        with pytest.raises(RuntimeError, match="after 5 attempts there is still something due"):
            await bus.drain()


async def test_a_drain_may_make_as_many_attempts_as_its_limit(bus: BusTester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventbus_fastapi.testing.drain.MOST_ATTEMPTS", 3)

    @bus.eventbus.handler("rare", group="g")
    async def handle(message: Message) -> None: ...

    async with bus:
        # Those that nobody handles are more than a page of the log.
        await bus.eventbus.publish_many([*[("often", 0)] * 50, *[("rare", n) for n in range(3)]])
        assert [handled.message.payload for handled in await bus.drain()] == [0, 1, 2]


async def test_a_failed_test_within_a_handler_leaves_the_event_to_the_next_drain(bus: BusTester) -> None:
    is_failing = True
    attempts: list[int] = []

    @bus.eventbus.handler(UserCreated, group="g")
    async def handle(event: UserCreated, attempt: Attempt) -> None:
        attempts.append(attempt)
        if is_failing:
            pytest.fail("wrong")

    async with bus:
        await bus.eventbus.publish(UserCreated(id=1))
        with pytest.raises(pytest.fail.Exception, match="wrong"):
            await bus.drain()
        is_failing = False
        await bus.drain()
    assert attempts == [1, 1]


# --- the user's own bus --------------------------------------------------------------------------


async def test_swap_gives_the_bus_back_as_it_was() -> None:
    eventbus = EventBus(PRODUCTION, workers=True)
    url, engine = eventbus.node.store.engine.url, eventbus.engine
    with swap(eventbus) as bus:
        async with bus:
            assert not eventbus.workers.is_running
            await eventbus.publish(UserCreated(id=1))
        async with bus:
            assert await bus.published() == []
    assert (eventbus.node.store.engine.url, eventbus.engine, eventbus.starts_workers) == (url, engine, True)
    assert eventbus.settings.database_url == eventbus.node.settings.database_url == PRODUCTION


async def test_a_bus_is_swapped_only_while_it_is_stopped(eventbus: EventBus) -> None:
    async def forget_to_stop() -> None:
        with swap(eventbus):
            await eventbus.start()
            with pytest.raises(RuntimeError, match="the bus is running; start it inside of swap"), swap(eventbus):
                pass

    with pytest.raises(RuntimeError, match="the bus is running; stop it inside of swap"):
        await forget_to_stop()
    await eventbus.stop()


async def test_a_tester_whose_bus_is_not_started_says_so(bus: BusTester) -> None:
    with pytest.raises(NotRunning, match="the bus is not running"):
        await bus.drain()
    with pytest.raises(NotRunning, match="the bus is not running"):
        await bus.published()


async def test_routes_that_were_made_before_reach_the_bus_in_memory() -> None:
    eventbus = EventBus(PRODUCTION)
    app = FastAPI()
    app.include_router(eventbus.router())
    for _ in range(2):
        transport = httpx.ASGITransport(app)
        with swap(eventbus) as bus:
            async with bus, httpx.AsyncClient(transport=transport, base_url="http://app") as client:
                receipt = (await client.post("/publish", json={"topic": "t", "payload": 1})).json()
                assert [message.seq for message in await bus.published("t")] == [receipt["seq"]] == [1]
                assert (await client.get("/events?pattern=t&after=0")).json()["head"] == 1


# --- the plugin ----------------------------------------------------------------------------------


def test_the_package_does_not_import_pytest() -> None:
    command = "import eventbus_fastapi, eventbus_fastapi.app, sys; assert 'pytest' not in sys.modules"
    subprocess.run([sys.executable, "-c", command], check=True)


@pytest.mark.parametrize(
    ("mark", "options"),
    [
        ("pytest.mark.asyncio", ["-p", "no:anyio", "-o", "asyncio_default_fixture_loop_scope=function"]),
        ("pytest.mark.anyio", ["-p", "no:asyncio"]),
    ],
)
def test_the_fixture_serves_async_tests_of_either_plugin(
    pytester: pytest.Pytester, mark: str, options: list[str]
) -> None:
    pytester.makeconftest(
        """
        import pytest

        pytest_plugins = ["eventbus_fastapi.testing"]

        @pytest.fixture
        def anyio_backend():
            return "asyncio"
        """
    )
    pytester.makepyfile(
        f"""
        import pytest

        @{mark}
        @pytest.mark.parametrize("number", [1, 2])
        async def test_each_test_has_a_log_of_its_own(bus, eventbus, number):
            async with bus:
                await eventbus.publish("t", number)
                assert [message.payload for message in await bus.published("t")] == [number]
        """
    )
    result = pytester.runpytest_subprocess("-q", "-W", "error", *options)
    result.assert_outcomes(passed=2)


def test_the_suite_of_testing_md_passes_with_the_app_of_the_readme(pytester: pytest.Pytester) -> None:
    """Given the app of the README, when the files of the page are run as they are shown, then all tests pass."""
    (pytester.path / "app.py").write_text(documents.titled(README, "app.py"))
    for block in documents.python_blocks(TESTING):
        (pytester.path / block.title).write_text(block.text)
    pytester.makeini("[pytest]\nasyncio_mode = auto\npythonpath = .")
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=3)
    assert not (pytester.path / "eventbus.db").exists()


async def test_a_duplicate_is_shown_as_the_real_bus_shows_it(bus: BusTester) -> None:
    async with bus:
        first = await bus.eventbus.publish("a", {"id": 1}, unique=Unique(within=60))
        assert await bus.eventbus.publish("a", {"id": 1}, unique=Unique(within=60)) == first._replace(duplicate=True)
        async with AsyncSession(bus.eventbus.engine) as session:
            assert (await bus.eventbus.publish_txn(session, "a", {"id": 1}, unique=Unique(within=60))).duplicate
        bus.clock.move(61)
        assert not (await bus.eventbus.publish("a", {"id": 1}, unique=Unique(within=60))).duplicate
        assert len(await bus.published("a")) == 2
