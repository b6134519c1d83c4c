"""Inline mode: when publishing returns, the handlers have run."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi import Attempt, BusSession, Event, EventBus, Fixed, Message, Retry, Snooze
from eventbus_fastapi.pipeline.outcome import Ack
from eventbus_fastapi.testing import BusTester, swap

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # newer versions of Starlette would like another HTTP client
    from fastapi.testclient import TestClient


class UserCreated(Event, topic="user.created"):
    id: int


@pytest.fixture
def eventbus() -> EventBus:
    return EventBus("sqlite+aiosqlite://")


@pytest.fixture
def bus(eventbus: EventBus) -> Iterator[BusTester]:
    with swap(eventbus) as tester:
        yield tester


@pytest.fixture
def seen(eventbus: EventBus) -> list[Any]:
    """The payloads that a handler of `user.*` has seen."""
    payloads: list[Any] = []

    @eventbus.handler("user.*", group="seer")
    async def see(message: Message) -> None:
        payloads.append(message.payload)

    return payloads


# --- when ----------------------------------------------------------------------------------------


async def test_publish_returns_when_the_handlers_have_run(bus: BusTester, seen: list[Any]) -> None:
    async with bus:
        with bus.inline() as handled:
            receipt = await bus.eventbus.publish(UserCreated(id=1))
            assert seen == [{"id": 1}]
            await bus.eventbus.publish_many([("user.gone", 2), ("of.nobody", 3)])
            assert seen == [{"id": 1}, 2]
        assert receipt.seq == 1
        assert [(item.group, item.message.seq, item.outcome) for item in handled] == [
            ("seer", 1, Ack()),
            ("seer", 2, Ack()),
        ]
        await bus.eventbus.publish("user.late", 4)
        assert len(seen) == 2, "the block has ended"


async def test_what_handlers_publish_is_handled_after_them_and_before_the_first_publish_returns(
    bus: BusTester,
) -> None:
    calls: list[str] = []

    @bus.eventbus.handler("first")
    async def first(message: Message) -> None:
        await bus.eventbus.publish("second", message.payload)
        calls.append("first has published")

    @bus.eventbus.handler("second")
    def second(message: Message) -> None:
        calls.append("second")

    async with bus:
        with bus.inline():
            await bus.eventbus.publish("first", 1)
            assert calls == ["first has published", "second"]


async def test_a_commit_returns_when_the_handlers_have_run_and_a_rollback_runs_none(
    bus: BusTester, seen: list[Any]
) -> None:
    async with bus:
        with bus.inline():
            async with AsyncSession(bus.eventbus.engine) as session:
                await bus.eventbus.publish_txn(session, "user.created", 1)
                async with session.begin_nested():
                    await bus.eventbus.publish_txn(session, "user.created", 2)
                assert seen == []
                await session.commit()
                assert seen == [1, 2]
                await bus.eventbus.publish_txn(session, "user.created", 3)
                await session.rollback()
            async with AsyncSession(bus.eventbus.engine) as session, session.begin():
                await bus.eventbus.publish_txn(session, "user.created", 4)
            assert seen == [1, 2, 4]


async def test_what_a_connection_commits_is_handled_by_the_next_publish_or_drain(
    bus: BusTester, seen: list[Any]
) -> None:
    async with bus:
        with bus.inline():
            for end in (bus.drain, lambda: bus.eventbus.publish("of.nobody", 0)):
                seen.clear()
                async with bus.eventbus.engine.begin() as connection:
                    await bus.eventbus.publish_txn(connection, "user.created", 1)
                assert seen == []
                await end()
                assert seen == [1]


async def test_publishers_side_by_side_return_when_their_own_event_is_handled(bus: BusTester, seen: list[Any]) -> None:
    async def publish(number: int) -> None:
        await bus.eventbus.publish("user.created", number)
        assert number in seen

    async with bus:
        with bus.inline():
            await asyncio.gather(*(publish(number) for number in range(20)))
        assert sorted(seen) == list(range(20))


async def test_a_handler_in_the_bus_transaction_publishes_in_it(bus: BusTester, seen: list[Any]) -> None:
    @bus.eventbus.handler("enter")
    async def enter(message: Message, session: BusSession) -> None:
        await bus.eventbus.publish_txn(session, "user.entered", message.payload)
        assert seen == []

    async with bus:
        with bus.inline():
            await bus.eventbus.publish("enter", 1)
            assert seen == [1]


async def test_what_comes_later_is_handled_when_the_clock_has_reached_it(bus: BusTester, seen: list[Any]) -> None:
    async with bus:
        with bus.inline():
            await bus.eventbus.publish("user.created", 1, delay=timedelta(hours=1))
            assert seen == []
            bus.clock.move(timedelta(hours=1))
            await bus.drain()
            assert seen == [1]


# --- errors and retries --------------------------------------------------------------------------


async def test_a_publisher_gets_what_a_handler_raises_and_the_next_one_goes_on(bus: BusTester) -> None:
    attempts: list[tuple[int, int]] = []

    @bus.eventbus.handler("user.created", group="g", backoff=Fixed(3600))
    async def fail_at_first(message: Message, attempt: Attempt) -> None:
        attempts.append((message.payload, attempt))
        if attempt == 1 and message.payload == 1:
            raise ValueError("not yet")

    async with bus:
        with bus.inline():
            with pytest.raises(ValueError, match="not yet") as raised:
                await bus.eventbus.publish("user.created", 1)
            assert raised.value.__notes__ == ["handler g, attempt 1, of user.created at 1"]
            assert len(await bus.published("user.created")) == 1
            await bus.eventbus.publish("user.created", 2)
            assert attempts == [(1, 1), (1, 2), (2, 1)]


async def test_a_commit_raises_what_a_handler_raises_and_is_done(bus: BusTester) -> None:
    @bus.eventbus.handler("user.created", group="g", max_retries=0)
    async def fail(message: Message) -> None:
        raise ValueError(message.payload)

    async with bus:
        with bus.inline():
            session = AsyncSession(bus.eventbus.engine)
            with pytest.raises(ValueError, match="1"):
                async with session, session.begin():
                    await bus.eventbus.publish_txn(session, "user.created", 1)
            assert not session.in_transaction()
            assert [entry.seq for _, entry in (await bus.eventbus.groups.dead_letters()).entries] == [1]
            async with session, session.begin():  # it may be used again
                await bus.eventbus.publish_txn(session, "of.nobody", 2)
            assert len(await bus.published()) == 2


async def test_recorded_errors_stop_nothing_and_retries_do_not_wait(bus: BusTester) -> None:
    @bus.eventbus.handler("user.created", group="g", max_retries=2, backoff=Fixed(3600))
    async def fail(message: Message, attempt: Attempt) -> Retry:
        if attempt == 1:
            return Retry(after=3600)
        raise ValueError(attempt)

    async with bus:
        with bus.inline(errors="record") as handled:
            await bus.eventbus.publish("user.created", 1)
        assert [(item.attempt, repr(item.error)) for item in handled] == [
            (1, "None"),
            (2, "ValueError(2)"),
            (3, "ValueError(3)"),
        ]
        assert (await bus.eventbus.groups.group("g")).figures.dead == 1


async def test_a_snooze_waits_for_the_clock(bus: BusTester) -> None:
    calls: list[int] = []

    @bus.eventbus.handler("report", group="g")
    async def look(message: Message, attempt: Attempt) -> Snooze | None:
        calls.append(attempt)
        return Snooze(60) if len(calls) == 1 else None

    async with bus:
        with bus.inline():
            await bus.eventbus.publish("report", 1)
            assert calls == [1]
            bus.clock.move(60)
            await bus.drain()
            assert calls == [1, 1]


# --- around it -----------------------------------------------------------------------------------


def test_a_route_answers_when_the_handlers_have_run(bus: BusTester, seen: list[Any]) -> None:
    """Given an app that publishes in its transaction, and the bus's own routes, then a sync test needs no portal."""
    app = FastAPI()
    app.include_router(bus.eventbus.router())

    @app.post("/users")
    async def create_user(user: UserCreated) -> None:
        async with AsyncSession(bus.eventbus.engine) as session, session.begin():
            await bus.eventbus.publish_txn(session, user)

    with bus.inline(), TestClient(app) as client:
        client.post("/users", json={"id": 1}).raise_for_status()
        assert seen == [{"id": 1}]
        client.post("/publish", json={"topic": "user.created", "payload": 2}).raise_for_status()
        assert seen == [{"id": 1}, 2]
        with client.websocket_connect("/ws") as socket:
            socket.send_json({"type": "publish", "id": 1, "data": {"topic": "user.created", "payload": 3}})
            assert socket.receive_json()["seq"] == 3
            assert seen == [{"id": 1}, 2, 3]


async def test_sessions_may_commit_before_the_bus_runs_as_in_a_lifespan(bus: BusTester) -> None:
    with bus.inline():
        async with AsyncSession(bus.eventbus.engine) as session:
            await session.connection()
            await session.commit()
        async with bus:
            assert await bus.published() == []


async def test_a_block_in_a_block_and_unknown_errors_are_refused(bus: BusTester) -> None:
    with bus.inline(), pytest.raises(RuntimeError, match="the bus is inline already"), bus.inline():
        pass
    unknown: Any = "ignore"
    with (
        pytest.raises(ValueError, match="errors must be 'raise' or 'record', got 'ignore'"),
        bus.inline(errors=unknown),
    ):
        pass
    with contextlib.suppress(RuntimeError), bus.inline():
        raise RuntimeError
    with bus.inline():
        pass
