"""`EventBus.publish` and `publish_many` on every database: stored once, in order, each caller with its own answer."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel
from sqlalchemy import select
from typing_extensions import TypedDict

from eventbus_fastapi import Event, EventBus, InvalidPayload, Unique
from eventbus_fastapi.errors import (
    InvalidEvent,
    InvalidTopic,
    NotFound,
    NotRunning,
    PayloadTooLarge,
    StoreError,
    StoreUnavailable,
)
from eventbus_fastapi.events import Draft, Receipt
from tests.conftest import OpenBus
from tests.databases import impatient
from tests.drafts import draft
from tests.pipeline.reading import read, read_payloads, read_seqs
from tests.waiting import eventually

on_sqlite = pytest.mark.databases("sqlite")
on_servers = pytest.mark.databases("postgresql", "mysql")


class UserCreated(Event, topic="user.created"):
    id: int
    username: str


class Address(TypedDict):
    street: str


@dataclasses.dataclass
class Order:
    id: int
    at: datetime


async def log(bus: EventBus) -> list[Any]:
    return [message.payload for message in (await bus.node.history(["#"], 0, 10_000)).messages]


# --- one event -----------------------------------------------------------------------------------


async def test_a_published_event_is_committed_and_has_its_seq(bus: EventBus) -> None:
    receipt = await bus.publish("user.created", {"id": 1})
    assert isinstance(receipt.message_id, UUID)
    assert (receipt.seq, receipt.duplicate) == (1, False)
    stored = await bus.get(1)
    assert (stored.message.message_id, stored.message.payload) == (receipt.message_id, {"id": 1})
    assert stored.status == "pending"


async def test_ids_are_made_in_the_order_of_time(bus: EventBus) -> None:
    receipts = [await bus.publish("a", None) for _ in range(5)]
    assert all(receipt.message_id.version == 7 for receipt in receipts)
    times = [receipt.message_id.int >> 80 for receipt in receipts]  # ids of one millisecond are in no order
    assert sorted(times) == times


@pytest.mark.parametrize(
    ("payload", "content_type"),
    [
        ("text 🚀", "text/plain"),
        (b"\x00\xff bytes", "application/octet-stream"),
        ({"json": [1, 2.5, None, True, "ü"]}, "application/json"),
        (None, "application/json"),
        ([], "application/json"),
    ],
)
async def test_a_payload_and_its_content_type_are_kept(bus: EventBus, payload: Any, content_type: str) -> None:
    await bus.publish("a", payload)
    message = (await bus.get(1)).message
    assert (message.payload, message.content_type) == (payload, content_type)


async def test_a_content_type_of_the_programs_own_is_kept(bus: EventBus) -> None:
    await bus.publish("a", b"<a/>", content_type="application/xml")
    assert (await bus.get(1)).message.content_type == "application/xml"
    assert (await bus.get(1)).message.payload == b"<a/>"


async def test_a_typed_event_is_published_to_its_topic_and_read_as_itself(bus: EventBus) -> None:
    subscription = await bus.subscribe(UserCreated)
    await bus.publish(UserCreated(id=1, username="ann"))
    (message,) = await read(subscription, 1)
    assert message.topic == "user.created"
    assert message.decode(UserCreated) == UserCreated(id=1, username="ann")
    assert message.payload == {"id": 1, "username": "ann"}


@on_sqlite
async def test_dataclasses_and_typed_dicts_are_payloads_too(bus: EventBus) -> None:
    order, address = Order(1, datetime(2026, 1, 2, tzinfo=UTC)), Address(street="Main")
    await bus.publish_many([("order.placed", order), ("address.changed", address)])
    one, two = [(await bus.get(seq)).message for seq in (1, 2)]
    assert one.decode(Order) == order
    assert two.decode(Address) == address


async def test_what_goes_with_an_event_is_kept(bus: EventBus) -> None:
    message_id = uuid4()
    await bus.publish("a", 1, key="customer-7", message_id=message_id, metadata={"trace": "t", "n": [1]}, ttl=60)
    message = (await bus.get(1)).message
    assert (message.key, message.message_id, message.metadata) == ("customer-7", message_id, {"trace": "t", "n": [1]})
    assert message.expires_at is not None
    assert abs(message.timestamp - datetime.now(UTC)) < timedelta(minutes=1)


# --- many ----------------------------------------------------------------------------------------


async def test_many_events_are_stored_together_in_their_order(bus: EventBus) -> None:
    events: list[Event | Draft | tuple[str, Any]] = [
        ("a", 1),
        UserCreated(id=2, username="bob"),
        bus.draft("b", "three", key="k"),
        ("a", 4),
    ]
    receipts = await bus.publish_many(events)
    assert [receipt.seq for receipt in receipts] == [1, 2, 3, 4]
    assert await log(bus) == [1, {"id": 2, "username": "bob"}, "three", 4]


async def test_of_many_events_one_bad_one_stops_all(bus: EventBus) -> None:
    with pytest.raises(InvalidPayload):
        await bus.publish_many([("a", 1), ("a", float("nan")), ("a", 3)])
    with pytest.raises(InvalidTopic):
        await bus.publish_many([("a", 1), ("a..b", 2)])
    assert await log(bus) == []


async def test_options_of_many_events_go_with_each_that_is_no_draft(bus: EventBus) -> None:
    await bus.publish_many([("a", 1), bus.draft("a", 2), UserCreated(id=3, username="c")], key="k", ttl=60)
    assert [(await bus.get(seq)).message.key for seq in (1, 2, 3)] == ["k", None, "k"]


@on_sqlite
async def test_one_id_cannot_name_many_events(bus: EventBus) -> None:
    with pytest.raises(InvalidEvent, match="one message_id cannot name many events"):
        await bus.publish_many([("a", 1)], message_id=uuid4())


@on_sqlite
@pytest.mark.parametrize(
    ("event", "came"),
    [
        (None, "NoneType"),
        (5, "int"),
        ("ab", "str"),
        (b"ab", "bytes"),
        ({"topic": "a", "payload": 1}, "dict"),
        (("a",), "a tuple of 1"),
        (["a", 1, 2], "a list of 3"),
        ((1, "a"), "a tuple of 2"),
        (UserCreated, "the class UserCreated itself"),
    ],
)
async def test_what_is_no_event_is_refused_among_many(bus: EventBus, event: Any, came: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        await bus.publish_many([("a", 1), event])
    assert str(refused.value) == f"expected an Event, a (topic, payload) or a draft, got {came}"
    assert await log(bus) == []


class Row(BaseModel):
    id: int = 1


async def pairs() -> AsyncIterator[tuple[str, int]]:
    yield "a", 1


@on_sqlite
@pytest.mark.parametrize(
    ("events", "came"),
    [
        (UserCreated(id=1, username="a"), "UserCreated"),
        (Row(), "Row"),
        (draft(), "Draft"),
        ({"ab": 1}, "dict"),
        ("ab", "str"),
        (b"ab", "bytes"),
        (None, "NoneType"),
        (pairs(), "async_generator"),
        (UserCreated, "the class UserCreated itself"),
    ],
)
async def test_what_holds_no_events_is_not_taken_apart(bus: EventBus, events: Any, came: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        await bus.publish_many(events)
    assert str(refused.value) == f"expected an iterable of events, got {came}"
    assert await log(bus) == []


@on_sqlite
async def test_one_pair_is_not_many_events(bus: EventBus) -> None:
    with pytest.raises(InvalidEvent, match=r"got str$"):
        await bus.publish_many(("ab", "cd"))  # type: ignore[arg-type]


@on_sqlite
async def test_pairs_may_be_lists_and_come_from_any_iterable(bus: EventBus) -> None:
    await bus.publish_many(["a", number] for number in range(3))  # type: ignore[misc]
    assert await log(bus) == [0, 1, 2]


async def test_no_events_are_no_work(bus: EventBus) -> None:
    assert await bus.publish_many([]) == []


async def test_thousands_in_one_call_are_one_unit(bus: EventBus) -> None:
    receipts = await bus.publish_many([("a", number) for number in range(3_000)])
    assert [receipt.seq for receipt in receipts] == list(range(1, 3_001))


# --- many callers --------------------------------------------------------------------------------


async def test_of_200_tasks_with_a_bad_payload_among_them_199_succeed(bus: EventBus) -> None:
    payloads: list[Any] = [{"n": number} for number in range(200)]
    payloads[77] = {"n": float("inf")}
    answers = await asyncio.gather(*(bus.publish("a", payload) for payload in payloads), return_exceptions=True)
    assert isinstance(answers.pop(77), InvalidPayload)
    receipts = [answer for answer in answers if isinstance(answer, Receipt)]
    assert sorted(receipt.seq or 0 for receipt in receipts) == list(range(1, 200))


async def test_of_200_tasks_one_that_the_database_refuses_fails_alone(bus: EventBus) -> None:
    drafts = [bus.draft("a", number) for number in range(200)]
    drafts[77] = drafts[77]._replace(content_type=None)  # type: ignore[arg-type]  # what the door would never let in
    answers = await asyncio.gather(*(bus.publish_many([draft]) for draft in drafts), return_exceptions=True)
    assert isinstance(answers.pop(77), StoreError)
    assert not [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(await log(bus)) == 199


async def test_one_message_id_from_20_publishers_on_two_nodes_is_one_event(open_bus: OpenBus) -> None:
    buses = [await open_bus(), await open_bus()]
    message_id = uuid4()
    answers = await asyncio.gather(
        *(buses[number % 2].publish("a", number, message_id=message_id) for number in range(20))
    )
    assert {(receipt.message_id, receipt.seq) for receipt in answers} == {(message_id, 1)}
    assert sum(not receipt.duplicate for receipt in answers) == 1
    assert len(await log(buses[0])) == 1


async def test_a_duplicate_among_many_events_is_answered_with_the_first_seq(bus: EventBus) -> None:
    first = await bus.publish("a", "first")
    twin = bus.draft("a", "twin")
    receipts = await bus.publish_many([bus.draft("a", "again", message_id=first.message_id), twin, ("a", "new"), twin])
    assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == [(1, True), (2, False), (3, False), (2, True)]
    assert await log(bus) == ["first", "twin", "new"]


async def test_a_message_id_may_be_a_string(bus: EventBus) -> None:
    message_id = uuid4()
    assert (await bus.publish("a", 1, message_id=str(message_id))).message_id == message_id
    assert (await bus.publish("a", 1, message_id=message_id)).duplicate


async def test_two_nodes_publish_into_one_order_that_both_show(open_bus: OpenBus) -> None:
    buses = [await open_bus(poll_interval=0.05), await open_bus(poll_interval=0.05)]
    subscriptions = [await bus.subscribe("#") for bus in buses]
    await asyncio.gather(*(buses[number % 2].publish("a", number) for number in range(100)))
    one, two = [await read(subscription, 100) for subscription in subscriptions]
    assert [message.seq for message in one] == list(range(1, 101))
    assert [message.message_id for message in one] == [message.message_id for message in two]


async def test_a_caller_that_gives_up_leaves_the_others_alone(bus: EventBus) -> None:
    tasks = [asyncio.create_task(bus.publish("a", number)) for number in range(60)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    stored = [answer.seq for answer in answers if isinstance(answer, Receipt)]
    assert len(stored) >= 40
    assert len(set(stored)) == len(stored)
    last = (await bus.head()).last_seq
    assert [message.seq for message in (await bus.node.history(["#"], 0, 100)).messages] == list(range(1, last + 1))


# --- later ---------------------------------------------------------------------------------------


async def test_an_event_with_a_delay_comes_after_it(bus: EventBus) -> None:
    subscription = await bus.subscribe("#")
    receipt = await bus.publish("a", "late", delay=0.2)
    assert receipt.seq is None
    await bus.publish("a", "now")
    assert await read_payloads(subscription, 2) == ["now", "late"]
    now, late = [(await bus.get(seq)).message for seq in (1, 2)]
    assert late.message_id == receipt.message_id
    assert late.created_at - now.created_at > 100_000


async def test_an_event_with_a_time_comes_at_that_time(bus: EventBus) -> None:
    subscription = await bus.subscribe("#")
    at = datetime.now(UTC) + timedelta(seconds=0.3)
    await bus.publish("a", "at a time", publish_at=at)
    assert await read_payloads(subscription, 1) == ["at a time"]
    assert (await bus.get(1)).message.timestamp >= at - timedelta(milliseconds=2)


async def test_an_event_whose_time_has_passed_comes_at_once(bus: EventBus) -> None:
    subscription = await bus.subscribe("#")
    await bus.publish("a", "late already", publish_at=datetime(2001, 1, 1, tzinfo=UTC))
    assert await read_payloads(subscription, 1) == ["late already"]


async def test_an_event_expires(bus: EventBus) -> None:
    await bus.publish("a", "short", ttl=timedelta(microseconds=1))
    await bus.publish("a", "long", ttl=timedelta(hours=1))

    async def is_over() -> bool:
        try:
            await bus.get(1)
        except NotFound:
            return True
        return False

    await eventually(is_over)
    assert await log(bus) == ["long"]
    assert await read_payloads(await bus.subscribe("#", start="earliest"), 1) == ["long"]


# --- not stored ----------------------------------------------------------------------------------


async def test_an_event_that_is_not_durable_reaches_who_is_there_and_is_not_stored(bus: EventBus) -> None:
    subscription = await bus.subscribe("cursor.*")
    receipt = await bus.publish("cursor.moved", {"x": 1}, durable=False)
    assert receipt.seq is None
    (message,) = await read(subscription, 1)
    assert (message.seq, message.payload, message.is_durable) == (0, {"x": 1}, False)
    assert (await bus.head()).last_seq == 0


# --- the door ------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        (("a..b", 1), {}, InvalidTopic),
        (("a.*", 1), {}, InvalidTopic),
        (("a", float("nan")), {}, InvalidPayload),
        (("a", {"x": "\ud800"}), {}, InvalidPayload),
        (("a", object()), {}, InvalidPayload),
        (("a", "x" * 262_145), {}, PayloadTooLarge),
        (("a",), {}, InvalidEvent),
        (("a", 1), {"key": ""}, InvalidEvent),
        (("a", 1), {"message_id": "no uuid"}, InvalidEvent),
        (("a", 1), {"metadata": {"timestamp": 1}}, InvalidEvent),
        (("a", 1), {"ttl": 0}, InvalidEvent),
        (("a", 1), {"delay": -1}, InvalidEvent),
        (("a", 1), {"publish_at": datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)}, InvalidEvent),
        (("a", 1), {"delay": 1, "publish_at": datetime(2026, 1, 1, tzinfo=UTC)}, InvalidEvent),
    ],
)
async def test_what_cannot_be_kept_is_refused_at_the_door_and_nothing_is_stored(
    bus: EventBus, arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await bus.publish(*arguments, **options)
    with pytest.raises(error):
        bus.draft(*arguments, **options)
    assert (await bus.head()).last_seq == 0


@pytest.mark.parametrize("size", [262_144, 0])
async def test_a_payload_may_be_as_large_as_the_limit(bus: EventBus, size: int) -> None:
    payload = bytes(range(256)) * (size // 256)
    subscription = await bus.subscribe("#")
    await bus.publish("a", payload)
    assert await read_payloads(subscription, 1) == [payload]
    assert await read_payloads(await bus.subscribe("#", start="earliest"), 1) == [payload]


# --- the reader's side ---------------------------------------------------------------------------


async def test_a_subscription_may_be_a_loop_a_block_or_awaited(bus: EventBus) -> None:
    await bus.publish_many([("a", number) for number in range(4)])
    seen = []
    async for message in bus.subscribe("a", start="earliest"):
        seen.append(message.payload)
        if len(seen) == 4:
            break
    assert seen == [0, 1, 2, 3]
    async with bus.subscribe("a", after=2) as subscription:
        assert await read_seqs(subscription, 2) == [3, 4]
    subscription = await bus.subscribe("a", after=3)
    assert await read_seqs(subscription, 1) == [4]
    subscription.close()
    await eventually(lambda: not bus.node._subscriptions)  # nor has the loop that was left kept its own


async def test_a_message_is_acknowledged_and_a_replay_skips_it(bus: EventBus) -> None:
    await bus.publish_many([("a", number) for number in range(3)])
    async with bus.subscribe("a", start="earliest") as subscription:
        (first, second) = await read(subscription, 2)
        await second.ack()
    assert [(await bus.get(seq)).status for seq in (1, 2, 3)] == ["pending", "processed", "pending"]
    async with bus.subscribe("a", start="earliest") as subscription:
        assert await read_seqs(subscription, 2) == [1, 3]
    async with bus.subscribe("a", start="earliest", include_processed=True) as subscription:
        assert await read_seqs(subscription, 3) == [1, 2, 3]
    assert first.seq == 1


async def test_a_bus_that_starts_again_replays_what_another_life_published(open_bus: OpenBus) -> None:
    first = await open_bus()
    await first.publish_many([("a", number) for number in range(3)])
    await first.stop()
    second = await open_bus()
    assert (await second.publish("a", 3)).seq == 4
    assert await read_payloads(await second.subscribe("#", start="earliest"), 4) == [0, 1, 2, 3]


# --- once ----------------------------------------------------------------------------------------


async def test_the_same_event_is_published_once_within_a_time(bus: EventBus) -> None:
    rule = Unique(fields=["id"], within=60)
    first = await bus.publish(UserCreated(id=1, username="ada"), unique=rule)
    again = await bus.publish(UserCreated(id=1, username="bob"), unique=rule)
    other = await bus.publish(UserCreated(id=2, username="bob"), unique=rule)
    assert again == first._replace(duplicate=True)
    assert (first.seq, other.seq) == (1, 2)


async def test_many_events_are_published_once_each(bus: EventBus) -> None:
    async with bus.subscribe("#") as subscription:
        events: list[Any] = [("a", 1), bus.draft("a", 2), ("a", 1), bus.draft("b", 1, unique=Unique(within=60))]
        receipts = await bus.publish_many(events, unique=Unique(within=60))
        assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == [
            (1, False),
            (2, False),
            (1, True),
            (3, False),
        ]
        assert await read_payloads(subscription, 3) == [1, 2, 1]


async def test_of_tasks_on_two_nodes_one_publishes_and_the_others_learn_its_seq(open_bus: OpenBus) -> None:
    nodes = [await open_bus(), await open_bus()]
    receipts = await asyncio.gather(*(nodes[n % 2].publish("a", 1, unique=Unique(within=60)) for n in range(10)))
    assert {receipt.seq for receipt in receipts} == {1}
    assert [receipt.duplicate for receipt in receipts].count(False) == 1


@on_servers
async def test_those_that_wait_for_a_transaction_leave_room_for_other_unique_events(bus: EventBus) -> None:
    rule = Unique(within=60)
    async with bus.engine.connect() as connection:
        first = await bus.publish_txn(connection, "a", 1, unique=rule)
        waiting = [asyncio.create_task(bus.publish("a", 1, unique=rule)) for _ in range(5)]
        assert not (await asyncio.wait(waiting, timeout=0.05))[0]
        async with asyncio.timeout(5):
            assert (await bus.publish("a", 2, unique=rule)).seq == 1
        assert not any(task.done() for task in waiting)
        await connection.commit()
    assert await asyncio.gather(*waiting) == [Receipt(first.message_id, 2, duplicate=True)] * 5


@on_servers
async def test_a_call_waits_its_time_however_many_wait_before_it(open_bus: OpenBus) -> None:
    bus = await open_bus()
    rule = Unique(within=60)
    async with bus.engine.connect() as connection:
        await bus.publish_txn(connection, "a", 1, unique=rule)
        with impatient(bus.node.store, 0.4):
            async with asyncio.timeout(10):  # one after the other they would take forty seconds
                waits = (bus.publish("a", 1, unique=rule) for _ in range(100))
                answers = await asyncio.gather(*waits, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreUnavailable}


async def test_of_calls_that_replace_the_last_one_stays(bus: EventBus) -> None:
    rule = Unique(fields=[], replace=["payload"])
    await asyncio.gather(*(bus.publish("a", {"n": n}, delay=60, unique=rule) for n in range(10)))
    scheduled = bus.node.store.tables.scheduled
    async with bus.engine.connect() as connection:
        assert list(await connection.scalars(select(scheduled.c.payload))) == [b'{"n":9}']


async def test_a_stop_stores_the_unique_events_that_it_has_taken(open_bus: OpenBus) -> None:
    bus = await open_bus()
    publishing = asyncio.create_task(bus.publish("a", 1, unique=Unique(within=60)))
    await asyncio.sleep(0)
    await bus.stop()
    assert (await publishing).seq == 1
    with pytest.raises(NotRunning):
        await bus.publish("a", 1, unique=Unique(within=60))


async def test_what_is_not_stored_cannot_be_unique(bus: EventBus) -> None:
    with pytest.raises(InvalidEvent, match="unique needs durable=True"):
        await bus.publish("a", 1, durable=False, unique=Unique(within=60))
