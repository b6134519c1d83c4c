"""`EventBus`: what it takes, and what it refuses before anything is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from eventbus_fastapi import Event, EventBus, InvalidInput, StoreUnavailable
from eventbus_fastapi.errors import InvalidEvent, InvalidPattern, NotRunning, SettingsError, StoreError
from tests.waiting import eventually


class Placed(Event, topic="order.placed"):
    order: int


@pytest.fixture
async def eventbus(tmp_path: Path) -> AsyncIterator[EventBus]:
    async with EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db") as running:
        yield running


async def topics(eventbus: EventBus) -> list[str]:
    return [message.topic for message in (await eventbus.node.history(["#"], 0, 100)).messages]


@pytest.mark.parametrize("database", [Path("mine.db"), 123, b"sqlite+aiosqlite:///mine.db", create_engine("sqlite://")])
def test_what_is_no_database_is_refused_and_not_replaced_by_the_default(database: Any) -> None:
    with pytest.raises(SettingsError, match="expected a database URL, an AsyncEngine or Settings"):
        EventBus(database)


def test_a_url_that_cannot_be_read_is_not_shown() -> None:
    with pytest.raises(SettingsError, match="cannot be read") as refused:
        EventBus("postgresql+asyncpg://app:top@S3:CRET@db.example/app")
    assert "CRET" not in str(refused.value)


async def test_starts_at_the_same_moment_are_one_start(tmp_path: Path) -> None:
    before = asyncio.all_tasks()
    eventbus = EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db")
    await asyncio.gather(eventbus.start(), eventbus.start())
    await eventbus.stop()
    assert asyncio.all_tasks() == before


async def test_an_inner_block_does_not_stop_the_bus_of_the_outer(eventbus: EventBus) -> None:
    async with eventbus:
        pass
    assert (await eventbus.publish("still.runs", 1)).seq == 1


async def test_publishing_before_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="async with eventbus"):
        await EventBus(f"sqlite+aiosqlite:///{tmp_path}/bus.db").publish("a", 1)


async def test_an_event_class_is_published_and_subscribed_to_by_its_topic(eventbus: EventBus) -> None:
    async with eventbus.subscribe(Placed) as subscription:
        await eventbus.publish(Placed(order=7))
        message = await anext(subscription)
    assert (message.topic, message.decode(Placed)) == ("order.placed", Placed(order=7))


@pytest.mark.parametrize("options", [{"overflow": "block"}, {"overflow": "drop-oldest"}, {"buffer": 0}, {"buffer": -5}])
async def test_a_policy_that_does_not_exist_is_refused(eventbus: EventBus, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent, match="must be"):
        await eventbus.subscribe("a", **options)


async def test_a_subscription_needs_patterns(eventbus: EventBus) -> None:
    with pytest.raises(InvalidEvent, match="at least one pattern"):
        eventbus.subscribe()
    with pytest.raises(InvalidPattern, match="expected str"):
        await eventbus.subscribe(5)  # type: ignore[arg-type]


class Untitled(Event):
    order: int


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (5, "invalid pattern 5: expected str, got int"),
        (b"#", "invalid pattern b'#': expected str, got bytes"),
        (["a"], "invalid pattern ['a']: expected str, got list"),
        (int, "expected a pattern or an Event class, got the class int"),
        (
            Untitled,
            'Untitled has no topic: declare it as class Untitled(Event, topic="…"), or give a pattern',
        ),
    ],
)
async def test_what_cannot_be_subscribed_to_is_refused_with_the_remedy(
    eventbus: EventBus, pattern: Any, message: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await eventbus.subscribe("a", pattern)
    assert str(refused.value) == message


async def test_an_event_that_expires_while_its_reader_waits_is_not_delivered(eventbus: EventBus) -> None:
    async with eventbus.subscribe("a") as subscription:
        await eventbus.publish("a", "short-lived", ttl=0.05)
        (expires_at,) = [m.expires_at for m in (await eventbus.node.history(["a"], 0, 1)).messages]
        assert expires_at is not None
        await eventually(lambda: eventbus.node.store.estimate_now() > expires_at)
        await eventbus.publish("a", "lasting")
        assert (await anext(subscription)).payload == "lasting"


async def test_a_delay_does_not_hide_a_duplicate(eventbus: EventBus) -> None:
    first = await eventbus.publish("a", 1)
    again = await eventbus.publish("a", 2, message_id=first.message_id, delay=60)
    assert (again.seq, again.duplicate) == (first.seq, True)
    assert (await eventbus.node.store.peek()).next_due is None


async def test_an_event_that_is_not_stored_cannot_wait(eventbus: EventBus) -> None:
    with pytest.raises(InvalidEvent, match="cannot wait"):
        await eventbus.publish("a", 1, durable=False, delay=1)


async def test_a_savepoint_that_would_commit_is_refused(eventbus: EventBus, tmp_path: Path) -> None:
    """The sqlite3 module sends no BEGIN before SAVEPOINT, so a RELEASE commits what the caller may still roll back."""
    own = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/bus.db")
    async with AsyncSession(own) as session:
        with pytest.raises(InvalidInput, match=r"use eventbus\.engine"):
            async with session.begin_nested():
                await eventbus.publish_txn(session, "lost", 1)
    await own.dispose()

    sync = create_engine(f"sqlite:///{tmp_path}/bus.db")
    with Session(sync) as plain, pytest.raises(InvalidInput, match=r"use eventbus\.engine"), plain.begin_nested():
        eventbus.publish_txn_sync(plain, "lost", 1)
    sync.dispose()

    async with AsyncSession(eventbus.engine) as session:
        async with session.begin_nested():
            await eventbus.publish_txn(session, "kept", 1)
        await session.commit()
    await eventbus.publish("last", 1)
    assert await topics(eventbus) == ["kept", "last"]


async def test_a_session_used_wrongly_is_no_reason_to_try_again(eventbus: EventBus) -> None:
    async with eventbus.engine.connect() as connection:
        pass
    with pytest.raises((StoreError, InvalidInput)) as refused:
        await eventbus.publish_txn(connection, "a", 1)
    assert not isinstance(refused.value, StoreUnavailable)


async def test_sessions_may_read_before_they_publish(eventbus: EventBus) -> None:
    async def count_and_publish() -> None:
        async with AsyncSession(eventbus.engine) as session, session.begin():
            await session.connection()
            await eventbus.publish_txn(session, "counted", 1, message_id=uuid4())

    await asyncio.gather(*(count_and_publish() for _ in range(20)))
    await eventbus.publish("last", 1)
    assert await topics(eventbus) == ["counted"] * 20 + ["last"]
