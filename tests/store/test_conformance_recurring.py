"""Every store: each tick of a recurring event is published once, and what is said about one is kept."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, update

from eventbus_fastapi.cron import EPOCH, MICROSECOND, time_text
from eventbus_fastapi.errors import InvalidRecurring, RecurringNotFound
from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.recurrer import MOST_TICKS, Recurrer
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.recurring import Declaration, Missed
from tests.store.conftest import OpenStore

MINUTE = 60_000_000
EVERY_MINUTE = Declaration("* * * * *", "UTC", "tick", "k", b'{"n":1}', "application/json", '{"a":1}', 5_000_000, "all")
YEARLY = EVERY_MINUTE._replace(cron="0 0 1 1 *")


def recurrer(store: Store, **declared: Declaration) -> Recurrer:
    return Recurrer(store, declared, ring=lambda: None)


async def log(store: Store) -> list[Message]:
    await store.sequence()
    return (await store.read(0, 10_000)).messages


async def ticks(store: Store) -> list[str]:
    return [message.metadata["scheduled_at"] for message in await log(store)]


async def set_back(store: Store, name: str, count: int) -> list[str]:
    """Have missed so many ticks, the last ones of the day before yesterday; return them.

    The next one is a year away: no more become due while the test runs.
    """
    day = datetime.fromtimestamp((await store.now()) / 1_000_000, UTC).date() - timedelta(days=1)
    end = (datetime(day.year, day.month, day.day, tzinfo=UTC) - EPOCH) // MICROSECOND
    day -= timedelta(days=1)
    await write(store, name, cron=f"* * {day.day} {day.month} *", next_at=end - count * MINUTE)
    return [time_text(end - number * MINUTE) for number in range(count, 0, -1)]


async def write(store: Store, name: str, **values: Any) -> None:
    """Change a row by hand."""
    table = store.tables.recurring
    async with store._writing.connect() as connection, connection.begin():
        await connection.execute(update(table).where(table.c.name == name).values(**values))


async def test_what_is_declared_can_be_read(store: Store) -> None:
    before = await store.now()
    made = await store.recurring.put("a", YEARLY)
    assert made == await store.recurring.get("a")
    assert await store.recurring.all() == [made]
    assert (made.name, made.declaration, made.last_at) == ("a", YEARLY, None)
    assert (made.is_paused, made.is_declared) == (False, False)
    assert before <= made.created_at == made.updated_at
    year = datetime.fromtimestamp(before / 1_000_000, UTC).year + 1
    assert time_text(made.next_at) == f"{year}-01-01T00:00:00Z"


@pytest.mark.databases("sqlite")
async def test_what_is_not_there_cannot_be_changed(store: Store) -> None:
    events = store.recurring
    for work in (events.get, events.pause, events.resume, events.delete):
        with pytest.raises(RecurringNotFound, match="no recurring event 'a'"):
            await work("a")


async def test_nothing_is_due_before_its_time(store: Store) -> None:
    assert (await store.recurring.look()).next_at is None
    made = await store.recurring.put("a", YEARLY)
    due = await store.recurring.look()
    assert (due.names, due.next_at) == ((), made.next_at)
    assert abs(due.now - await store.now()) < MINUTE
    assert await store.recurring.publish_due("a", lambda event, now: pytest.fail("it is not due")) is None


async def test_a_tick_is_an_event_with_its_name_and_time(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    (tick,) = await set_back(store, "a", 1)
    await recurrer(store).publish_due()
    (message,) = await log(store)
    assert (message.topic, message.key, message.body) == ("tick", "k", b'{"n":1}')
    assert message.content_type == "application/json"
    assert message.metadata == {"a": 1, "recurring": "a", "scheduled_at": tick}
    assert message.expires_at is not None
    assert 5_000_000 <= message.expires_at - message.created_at < 6_000_000
    event = await store.recurring.get("a")
    assert time_text(event.last_at or 0) == tick
    assert event.next_at == event.declaration.next_after(event.last_at or 0) > await store.now()


async def test_several_nodes_publish_each_tick_once(store: Store, open_another: OpenStore) -> None:
    """Given three nodes, when all find the same ticks of several events due at once, then each is published once."""
    stores = [store, await open_another(), await open_another()]
    names = ["a", "b", "c", "d"]
    for name in names:
        await store.recurring.put(name, EVERY_MINUTE)
        expected = await set_back(store, name, 20)
    await asyncio.gather(*(recurrer(each).publish_due() for each in stores))
    await recurrer(store).publish_due()  # what one passed over because another held it
    async with store.engine.connect() as connection:  # the ids would hide from the log what was published twice
        count = select(func.count()).select_from(store.tables.outbox)
        assert (await connection.execute(count)).scalar_one() == 20 * len(names)
    published = [(message.metadata["recurring"], message.metadata["scheduled_at"]) for message in await log(store)]
    assert sorted(published) == [(name, tick) for name in names for tick in expected]


async def test_a_tick_that_is_published_again_by_hand_is_in_the_log_once(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    for _ in range(2):
        expected = await set_back(store, "a", 3)
        await recurrer(store).publish_due()
    assert await ticks(store) == expected


async def test_a_step_that_fails_has_done_nothing(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    expected = await set_back(store, "a", 3)
    before = await store.recurring.get("a")

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.recurring.publish_due("a", fail)
    assert await store.recurring.get("a") == before
    await recurrer(store).publish_due()
    assert await ticks(store) == expected


@pytest.mark.parametrize(("missed", "count"), [("all", 5), ("last", 1), ("skip", 0)])
async def test_missed_ticks_are_published_as_the_policy_says(store: Store, missed: Missed, count: int) -> None:
    await store.recurring.put("a", EVERY_MINUTE._replace(missed=missed))
    expected = await set_back(store, "a", 5)
    await recurrer(store).publish_due()
    assert await ticks(store) == expected[5 - count :]
    event = await store.recurring.get("a")
    assert event.next_at > await store.now()
    assert (event.last_at and time_text(event.last_at)) == (expected[-1] if count else None)


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(("late", "count"), [(1, 1), (50, 1), (61, 0)])
async def test_a_tick_is_in_time_for_a_minute(store: Store, late: int, count: int) -> None:
    await store.recurring.put("a", YEARLY._replace(missed="skip"))
    await write(store, "a", next_at=await store.now() - late * 1_000_000)
    await recurrer(store).publish_due()
    assert len(await ticks(store)) == count


@pytest.mark.databases("sqlite", "postgresql")
async def test_many_missed_ticks_are_published_in_steps(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    expected = await set_back(store, "a", MOST_TICKS + 5)
    node = recurrer(store)
    assert await node.run_once() == 0
    assert await store.sequence() == (MOST_TICKS, MOST_TICKS)
    assert await node.run_once() == 0
    assert await ticks(store) == expected


@pytest.mark.databases("sqlite")
async def test_a_step_of_large_payloads_is_short(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE._replace(payload=b" " * 2_000_000 + b"1"))
    await set_back(store, "a", 5)
    assert await recurrer(store).run_once() == 0
    assert (await store.sequence())[0] == 2


async def test_nothing_is_published_while_paused_and_that_was_not_missed(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    assert (await store.recurring.pause("a")).is_paused
    await set_back(store, "a", 5)
    assert (await store.recurring.look()).next_at is None
    assert await recurrer(store).run_once() == 30
    resumed = await store.recurring.resume("a")
    assert not resumed.is_paused
    assert await store.now() < resumed.next_at
    assert await ticks(store) == []


@pytest.mark.databases("sqlite")
async def test_pausing_or_resuming_twice_is_once(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    assert await store.recurring.pause("a") == await store.recurring.pause("a")
    resumed = await store.recurring.resume("a")
    expected = await set_back(store, "a", 2)
    await store.recurring.resume("a")  # it runs: what is due stays due
    await recurrer(store).publish_due()
    assert not resumed.is_paused
    assert await ticks(store) == expected


async def test_what_is_deleted_is_gone(store: Store) -> None:
    made = await store.recurring.put("a", EVERY_MINUTE)
    assert await store.recurring.delete("a") == made
    assert await store.recurring.all() == []


async def test_what_a_program_says_again_changes_nothing(store: Store) -> None:
    """Given an operator's change, when the program starts again, it stays; when it says something else, that counts."""
    first = await store.recurring.put("a", EVERY_MINUTE, by_program=True)
    assert first.is_declared
    changed = await store.recurring.change("a", lambda event: event.declaration._replace(cron="5 * * * *"))
    await store.recurring.pause("a")
    kept = await store.recurring.put("a", EVERY_MINUTE, by_program=True)
    assert (kept.declaration.cron, kept.next_at, kept.is_paused) == ("5 * * * *", changed.next_at, True)
    said = await store.recurring.put("a", YEARLY, by_program=True)
    assert (said.declaration, said.is_paused) == (YEARLY, True)


@pytest.mark.databases("sqlite")
async def test_what_an_operator_made_is_taken_over_by_a_program(store: Store) -> None:
    await store.recurring.put("a", YEARLY)
    assert not (await store.recurring.get("a")).is_declared
    assert (await store.recurring.put("a", EVERY_MINUTE, by_program=True)).declaration == EVERY_MINUTE


async def test_another_payload_leaves_the_ticks_as_they_are(store: Store) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    expected = await set_back(store, "a", 2)
    await store.recurring.change("a", lambda event: event.declaration._replace(payload=b"2"))
    await recurrer(store).publish_due()
    assert await ticks(store) == expected
    assert [message.body for message in await log(store)] == [b"2", b"2"]


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize("change", [{"cron": "0 0 1 1 *"}, {"timezone": "Europe/Berlin"}])
async def test_another_schedule_begins_now(store: Store, change: dict[str, Any]) -> None:
    await store.recurring.put("a", EVERY_MINUTE)
    await set_back(store, "a", 2)
    await store.recurring.change("a", lambda event: event.declaration._replace(**change))
    await recurrer(store).publish_due()
    assert await ticks(store) == []


@pytest.mark.databases("sqlite")
async def test_a_change_that_is_refused_has_changed_nothing(store: Store) -> None:
    before = await store.recurring.put("a", EVERY_MINUTE)
    with pytest.raises(InvalidRecurring):
        await store.recurring.change("a", lambda event: event.declaration._replace(cron="0 0 31 2 *"))
    assert await store.recurring.get("a") == before


async def test_several_nodes_declare_the_same_at_once(store: Store, open_another: OpenStore) -> None:
    stores = [store, *[await open_another() for _ in range(3)]]
    names = [f"event-{number}" for number in range(5)]
    await asyncio.gather(*(recurrer(each, **dict.fromkeys(names, EVERY_MINUTE)).write_declared() for each in stores))
    made = await store.recurring.all()
    assert [event.name for event in made] == names
    assert {event.declaration for event in made} == {EVERY_MINUTE}


@pytest.mark.databases("sqlite")
async def test_one_that_cannot_be_used_does_not_hold_up_the_others(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a row that somebody has broken by hand, then others are published, and one line of the log names it."""
    for name in ("a", "b"):
        await store.recurring.put(name, EVERY_MINUTE)
    await set_back(store, "a", 5)
    expected = await set_back(store, "b", 1)
    await write(store, "a", timezone="Mars/Olympus")
    node = recurrer(store)
    assert [await node.run_once() for _ in range(3)] == [0, 1, 1]
    assert await ticks(store) == expected
    assert [record.getMessage() for record in caplog.records if "'a'" in record.getMessage()] == [
        "recurring event 'a' cannot be published by this node: timezone must be the name of one that this host knows, "
        "like 'Europe/Berlin', got 'Mars/Olympus' (a host without such data needs: pip install tzdata)"
    ]


@pytest.mark.databases("sqlite")
async def test_a_node_sleeps_until_the_next_tick_and_no_longer_than_half_a_minute(store: Store) -> None:
    node = recurrer(store)
    assert await node.run_once() == 30
    await store.recurring.put("a", YEARLY)
    assert await node.run_once() == 30
    await write(store, "a", next_at=await store.now() + 10_000_000)
    assert 5 < (await node.run_once() or 0) <= 10


@pytest.mark.parametrize(("field", "other"), [("key", None), ("payload", b"x"), ("metadata", None), ("ttl", None)])
def test_a_fingerprint_is_of_all_that_is_said(field: str, other: Any) -> None:
    assert EVERY_MINUTE.fingerprint == Declaration(*EVERY_MINUTE).fingerprint
    assert EVERY_MINUTE.fingerprint != EVERY_MINUTE._replace(**{field: other}).fingerprint
