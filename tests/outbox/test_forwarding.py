"""A bus that reaches the database of an outbox carries its events to the log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from eventbus_fastapi import EventBus, Outbox, Unique
from eventbus_fastapi.errors import SchemaOutdated
from eventbus_fastapi.settings import Settings
from tests.outbox.reading import log, payloads, publish, until_forwarded
from tests.waiting import eventually


async def test_what_an_event_was_published_with_arrives(outbox: Outbox, bus: EventBus) -> None:
    message_id = uuid4()
    async with outbox.engine.begin() as connection:
        await bus.publish_txn(
            connection,
            "order.paid",
            b"\x00\xff",
            message_id=message_id,
            key="order-1",
            metadata={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
            ttl=3_600,
            content_type="application/pdf",
            tags=["billing"],
        )
    await until_forwarded(outbox)

    (message,) = await log(bus)
    assert (message.message_id, message.topic, message.key) == (message_id, "order.paid", "order-1")
    assert (message.body, message.content_type, message.tags) == (b"\x00\xff", "application/pdf", ("billing",))
    assert message.metadata["traceparent"].endswith("b7ad6b7169203331-01")
    assert message.expires_at == message.created_at + 3_600_000_000


async def test_a_commit_wakes_the_forwarder(database_url: str, outbox: Outbox, bus_tables: dict[str, Any]) -> None:
    """Given that nobody looks by itself for a minute, then what is committed is forwarded all the same."""
    async with (
        Outbox(database_url, poll_interval=60) as sleepy,
        EventBus(settings=Settings(**bus_tables), outboxes=[sleepy]) as bus,
    ):
        await eventually(lambda: bus.node.meters.backlogs)
        async with AsyncSession(sleepy.engine) as session, session.begin():
            await bus.publish_txn(session, "order.paid", 1)
        await eventually(lambda: bus.node.meters.forwarded.total() == 1)

        async with sleepy.engine.connect() as connection:  # kept after its commit
            await sleepy.publish_txn(connection, "order.paid", 2)
            await connection.commit()
            await eventually(lambda: bus.node.meters.forwarded.total() == 2)
        assert await payloads(bus) == [1, 2]


async def test_the_order_of_an_outbox_is_kept(outbox: Outbox, bus: EventBus) -> None:
    for start in range(0, 3_000, 500):
        await publish(outbox, *range(start, start + 500))
    await until_forwarded(outbox)

    assert await payloads(bus) == list(range(3_000))


async def test_large_events_are_carried_a_few_at_a_time(outbox: Outbox, bus: EventBus) -> None:
    texts = [str(number) * 200_000 for number in range(8)]
    await publish(outbox, *texts)
    await until_forwarded(outbox)

    assert await payloads(bus) == texts


async def test_an_open_transaction_holds_back_nobody_else_s_events(outbox: Outbox, bus: EventBus) -> None:
    if outbox.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer")
    async with outbox.engine.begin() as slow:
        await outbox.publish_txn(slow, "order.paid", "slow")
        await publish(outbox, "fast")

        async def has_arrived() -> bool:
            return await payloads(bus) == ["fast"]

        await eventually(has_arrived)
    await until_forwarded(outbox)
    assert await payloads(bus) == ["fast", "slow"]


async def test_a_repeat_stores_nothing(outbox: Outbox, bus: EventBus) -> None:
    message_id = uuid4()
    await publish(outbox, 1, message_id=message_id)
    await until_forwarded(outbox)
    await publish(outbox, 1, message_id=message_id)
    await until_forwarded(outbox)

    assert await payloads(bus) == [1]


async def test_a_delay_counts_from_the_publish_in_the_outbox(outbox: Outbox, bus: EventBus) -> None:
    await publish(outbox, "later", delay=3_600)
    await publish(outbox, "much later", publish_at=datetime.now(UTC) + timedelta(hours=2))
    await publish(outbox, "past", publish_at=datetime.now(UTC) - timedelta(hours=2))
    await until_forwarded(outbox)

    assert await payloads(bus) == ["past"]
    peek = await bus.node.store.peek()
    assert peek.next_due is not None
    assert 3_590 < (peek.next_due - peek.now) / 1_000_000 < 3_601


async def test_the_bus_decides_what_a_unique_event_is_a_duplicate_of(outbox: Outbox, bus: EventBus) -> None:
    rule = Unique(fields=["id"], within=timedelta(hours=1))
    await bus.publish("order.paid", {"id": 1, "by": "the bus"}, unique=rule)
    await publish(outbox, {"id": 1, "by": "the service"}, {"id": 2}, {"id": 2, "again": True}, unique=rule)
    await until_forwarded(outbox)

    assert await payloads(bus) == [{"id": 1, "by": "the bus"}, {"id": 2}]


async def test_what_the_bus_refuses_is_kept_apart_and_does_not_stop_the_rest(
    outbox: Outbox, bus_tables: dict[str, Any]
) -> None:
    settings = Settings(**bus_tables, max_payload=100)
    await publish(outbox, 1, 2, "x" * 101, 4, "y" * 200, 6)
    async with EventBus(settings=settings, outboxes=[outbox]) as bus:
        await until_forwarded(outbox)
        assert await payloads(bus) == [1, 2, 4, 6]
        assert (bus.node.meters.forwarded["service"], bus.node.meters.refused["service"]) == (4, 2)

    refused = await outbox.refused()
    assert [(each.topic, each.code, each.size) for each in refused] == [
        ("order.paid", "payload.too_large", 101),
        ("order.paid", "payload.too_large", 200),
    ]
    assert refused[0].reason == "payload is 101 bytes, limit is 100 (EVENTBUS_MAX_PAYLOAD)"
    assert await outbox.refused(after=refused[1].id) == []


async def test_refused_events_are_tried_again_or_forgotten(outbox: Outbox, bus_tables: dict[str, Any]) -> None:
    await publish(outbox, "x" * 101, "y" * 101, "z" * 101)
    async with EventBus(settings=Settings(**bus_tables, max_payload=100), outboxes=[outbox]):
        await until_forwarded(outbox)
    first, second, third = await outbox.refused()

    assert await outbox.discard([first.id]) == 1
    assert await outbox.retry([first.id, second.id]) == 1
    async with EventBus(settings=Settings(**bus_tables), outboxes=[outbox]) as bus:
        await until_forwarded(outbox)
        assert await payloads(bus) == ["y" * 101]
    assert await outbox.refused() == [third]


async def test_what_other_programs_write_and_no_bus_takes_is_refused(outbox: Outbox, bus: EventBus) -> None:
    row = {"message_id": uuid4(), "payload": b"1", "content_type": "application/json", "created_at": 0}
    async with outbox.engine.begin() as connection:
        for topic, payload, rule in (
            ("a.*", b"1", None),
            ("a", b"{", None),
            ("a", b"1", "nonsense"),
            ("a", b"1", None),
        ):
            values = {**row, "topic": topic, "payload": payload, "unique_rule": rule}
            await connection.execute(insert(outbox.store.tables.outbox).values(values))
    await until_forwarded(outbox)

    assert await payloads(bus) == [1]
    codes = [each.code for each in await outbox.refused()]
    assert codes == ["topic.invalid", "payload.invalid", "event.invalid"]


@pytest.mark.parametrize(
    "wrong",
    [{"ttl": -1}, {"ttl": 2**63 - 1}, {"publish_at": 2**63 - 1}, {"unique_rule": "[" * 60_000}],
    ids=["no ttl", "long ttl", "far", "deep rule"],
)
async def test_one_row_that_another_program_has_written_stops_neither_the_outbox_nor_the_bus(
    outbox: Outbox, bus: EventBus, wrong: dict[str, Any]
) -> None:
    row = {"topic": "a", "payload": b"1", "content_type": "application/json", "message_id": uuid4(), "created_at": 1}
    async with outbox.engine.begin() as connection:
        await connection.execute(insert(outbox.store.tables.outbox).values(**row, **wrong))
    await publish(outbox, 2)
    await until_forwarded(outbox)
    await bus.publish("b", 3)

    assert [refused.code for refused in await outbox.refused()] == ["event.invalid"]
    assert await payloads(bus) == [2, 3]


async def test_sqlite_stores_whatever_another_program_gives_it(outbox: Outbox, bus: EventBus) -> None:
    """One such value stopped the outbox; a ttl that is text had the bus publish nothing any more."""
    if outbox.engine.dialect.name != "sqlite":
        pytest.skip("the columns have types")
    for given in ("ttl = 'soon'", "publish_at = 'soon'", "metadata = x'7b7d'", """payload = '{"id": 7}'"""):
        async with outbox.engine.begin() as connection:
            await outbox.publish_txn(connection, "a", 1)
            await connection.exec_driver_sql(f"UPDATE bus_forward_outbox SET {given}")
        await until_forwarded(outbox)

    assert [refused.code for refused in await outbox.refused()] == ["event.invalid"] * 3
    assert await payloads(bus) == [{"id": 7}]


async def test_a_bus_that_starts_again_goes_on(outbox: Outbox, bus_tables: dict[str, Any]) -> None:
    bus = EventBus(settings=Settings(**bus_tables), outboxes=[outbox])
    for number in range(3):
        await publish(outbox, number)
        async with bus:
            await until_forwarded(outbox)
            assert await payloads(bus) == list(range(number + 1))


@pytest.mark.databases("postgresql", "mysql")
async def test_a_bus_does_not_start_while_an_outbox_has_no_tables(
    database_url: str, bus_tables: dict[str, Any]
) -> None:
    bus = EventBus(settings=Settings(**bus_tables), outboxes=[database_url])
    with pytest.raises(SchemaOutdated, match="eventbus migrate upgrade --outbox URL"):
        await bus.start()
    assert not bus.node.is_running
    await bus.stop()
