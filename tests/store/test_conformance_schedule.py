"""Every store: an event with a delay or a time waits, and enters the log when the database's clock says so."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from eventbus_fastapi.events import Receipt
from eventbus_fastapi.store import OutboxWriter, Store
from tests.drafts import draft, drafts
from tests.store.conftest import OpenStore
from tests.waiting import eventually

PAST = datetime(2001, 2, 3, tzinfo=UTC)
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


async def payloads(store: Store) -> list[Any]:
    return [message.payload for message in (await store.read(0, 10_000)).messages]


async def waiting(store: Store) -> int:
    async with store.engine.connect() as connection:
        return int((await connection.execute(select(func.count()).select_from(store.tables.scheduled))).scalar_one())


async def let_in(store: Store, count: int) -> None:
    """Let in what is due, until it is as much as expected."""

    async def work() -> bool:
        await store.promote()
        await store.sequence()
        return (await store.head()).last_seq >= count

    await eventually(work)


async def test_an_event_with_a_delay_has_no_seq_yet_and_is_not_in_the_log(store: Store) -> None:
    event = draft(delay=3_600)
    assert (await store.append([event]))[:2] == ([Receipt(event.message_id, None)], 0)
    assert await store.promote() == 0
    assert await payloads(store) == []
    assert await waiting(store) == 1


async def test_it_is_known_when_the_next_one_is_due_by_the_databases_clock(store: Store) -> None:
    assert (await store.peek()).next_due is None
    await store.append([draft(delay=3_600), draft(delay=60), draft(publish_at=FUTURE)])
    seen = await store.peek()
    assert seen.next_due is not None
    assert 0 < seen.next_due - seen.now <= 60_000_000


async def test_a_delayed_event_enters_the_log_when_its_delay_is_over(store: Store) -> None:
    event = draft(payload="late", key="k", metadata={"a": 1}, delay=0.001)
    await store.append([event, draft(payload="now")])
    await let_in(store, 2)
    assert await payloads(store) == ["now", "late"]
    message = (await store.get(2)).message
    assert (message.message_id, message.key, message.metadata) == (event.message_id, "k", {"a": 1})
    assert await waiting(store) == 0


async def test_a_time_that_has_passed_is_due_at_once(store: Store) -> None:
    await store.append([draft(publish_at=PAST)])
    assert await store.promote() == 1
    assert await store.sequence() == (1, 1)


async def test_a_time_to_come_is_not_due(store: Store) -> None:
    await store.append([draft(publish_at=FUTURE)])
    assert await store.promote() == 0


async def test_due_events_enter_in_the_order_of_their_times(store: Store) -> None:
    for number in (3, 1, 2, 0):
        await store.append([draft(payload=number, publish_at=PAST + timedelta(microseconds=number))])
    await let_in(store, 4)
    assert await payloads(store) == [0, 1, 2, 3]


async def test_one_append_may_hold_both_kinds(store: Store) -> None:
    late, one, two = draft(delay=3_600), draft(payload=1), draft(payload=2)
    assert (await store.append([one, late, two]))[:2] == (
        [Receipt(one.message_id, 1), Receipt(late.message_id, None), Receipt(two.message_id, 2)],
        2,
    )
    assert await payloads(store) == [1, 2]


async def test_a_transaction_schedules_only_with_its_commit(store: Store) -> None:
    outbox = OutboxWriter(store.sql, lambda: None)
    async with store.engine.connect() as connection:
        await outbox.add(connection, draft(publish_at=PAST))
        await connection.rollback()
        await outbox.add(connection, draft(payload="kept", publish_at=PAST))
        await connection.commit()
    await let_in(store, 1)
    assert await payloads(store) == ["kept"]


@pytest.mark.databases("postgresql", "mysql")
async def test_what_is_due_passes_an_open_transaction_that_has_scheduled(store: Store) -> None:
    outbox = OutboxWriter(store.sql, lambda: None)
    async with store.engine.begin() as slow:
        await outbox.add(slow, draft(payload="slow", publish_at=PAST))
        await store.append([draft(payload=number, publish_at=PAST) for number in range(20)])
        async with asyncio.timeout(5):
            assert await store.promote() == 20
    assert await store.promote() == 1


async def test_a_ttl_begins_when_the_delay_is_over(store: Store) -> None:
    await store.append([draft(publish_at=PAST, ttl=3_600)])
    await let_in(store, 1)
    message = (await store.get(1)).message
    assert message.expires_at is not None
    assert 0 <= message.expires_at - message.created_at - 3_600_000_000 < 1_000_000


async def test_a_scheduled_event_whose_message_id_is_in_the_log_by_then_is_dropped(store: Store) -> None:
    event = draft(payload="now")
    await store.append([event])
    await store.append([draft(payload="later", message_id=event.message_id, publish_at=PAST)])
    await store.append([draft(payload="other", publish_at=PAST)])
    await let_in(store, 2)
    assert await payloads(store) == ["now", "other"]


async def test_a_message_id_that_waits_is_not_scheduled_again(store: Store, open_another: OpenStore) -> None:
    """As of a client that has had no answer and sends it again: both were stored, and one was lost when it was due."""
    event, other = draft(payload="first", delay=3_600), draft(payload="other", delay=3_600)
    again = draft(payload="second", message_id=event.message_id, publish_at=PAST)
    await store.append([event])
    for node in (store, await open_another()):
        receipts, *_ = await node.append([again, other, other])
        assert receipts[0] == Receipt(event.message_id, None, duplicate=True)
        assert receipts[2] == Receipt(other.message_id, None, duplicate=True)
    assert await waiting(store) == 2
    assert await store.promote() == 0


@pytest.mark.databases("postgresql", "mysql")
async def test_a_message_id_that_becomes_due_while_it_is_looked_for_is_not_scheduled_again(
    store: Store, open_another: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked for in the log, then among the waiting; between the two another node let it into the outbox."""
    other = await open_another()
    event = draft(publish_at=PAST)
    await store.append([event])
    known = store._known

    async def promoted_after(*arguments: Any) -> Any:
        found = await known(*arguments)
        await other.promote()
        return found

    monkeypatch.setattr(store, "_known", promoted_after)
    ((receipt,), *_) = await store.append([event])
    assert (receipt.seq, receipt.duplicate) == (None, True)


async def test_an_immediate_event_does_not_wait_for_a_scheduled_one_of_its_id_and_replaces_it(store: Store) -> None:
    event = draft(payload="later", publish_at=PAST)
    await store.append([event])
    receipts, *_ = await store.append([draft(payload="now", message_id=event.message_id)])
    assert receipts == [Receipt(event.message_id, 1)]
    assert await store.promote() == 1
    assert await store.sequence() == (1, 1)
    assert await payloads(store) == ["now"]


async def test_thousands_that_are_due_enter_in_batches(store: Store) -> None:
    async with store.engine.begin() as connection:
        rows = [event._asdict() for event in drafts(1_200, publish_at=PAST)]
        await connection.execute(store.sql.schedule_at, [_without_delay(row) for row in rows])
    assert await store.promote() == 1_000
    assert await store.promote() == 200
    await let_in(store, 1_200)
    assert await payloads(store) == list(range(1, 1_201))


async def test_large_events_that_are_due_enter_a_few_at_a_time(store: Store) -> None:
    for number in range(7):
        await store.append([draft(payload=bytes(1_500_000), key=str(number), publish_at=PAST)])
    assert [await store.promote() for _ in range(4)] == [3, 3, 1, 0]
    await let_in(store, 7)
    assert [(await store.get(seq)).message.key for seq in range(1, 8)] == list("0123456")


@pytest.mark.databases("postgresql", "mysql", "sqlite")
async def test_two_nodes_let_each_event_in_once(store: Store, open_another: OpenStore) -> None:
    other = await open_another()
    for number in range(20):
        await store.append([draft(payload=number, publish_at=PAST)])
    moved = await asyncio.gather(*(node.promote() for node in (store, other, store, other)))
    assert sum(moved) == 20
    await let_in(store, 20)
    assert sorted(await payloads(store)) == list(range(20))


def _without_delay(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("delay", "unique")}
