"""Every store: events enter the log in one commit, densely numbered, once per message_id."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from eventbus_fastapi.errors import StoreError
from eventbus_fastapi.events import Receipt
from eventbus_fastapi.store import Store
from tests.drafts import draft, drafts
from tests.store.conftest import OpenStore


async def seqs(store: Store) -> list[int]:
    return [message.seq for message in (await store.read(0, 10_000)).messages]


async def test_an_empty_log_has_no_event_and_an_identity(store: Store) -> None:
    head = await store.head()
    assert (head.last_seq, head.first_seq) == (0, 1)
    assert head.epoch.int != 0


async def test_the_first_event_has_seq_1(store: Store) -> None:
    event = draft()
    assert (await store.append([event]))[:2] == ([Receipt(event.message_id, 1)], 1)


async def test_seqs_are_dense_over_appends_of_any_size(store: Store) -> None:
    for count in (1, 7, 1_000, 2, 1):
        await store.append(drafts(count))
    assert await seqs(store) == list(range(1, 1_012))
    assert (await store.head()).last_seq == 1_011


async def test_an_append_answers_each_event_in_its_order(store: Store) -> None:
    await store.append(drafts(3))
    events = drafts(5)
    receipts, last_seq, *_ = await store.append(events)
    assert receipts == [Receipt(event.message_id, seq) for seq, event in enumerate(events, start=4)]
    assert last_seq == 8


async def test_a_message_id_published_again_stores_nothing_and_gets_the_first_seq(store: Store) -> None:
    first = draft(payload="first")
    await store.append([draft(), first])
    again = draft(payload="second", message_id=first.message_id)
    receipts, last_seq, *_ = await store.append([again])
    assert (receipts, last_seq) == ([Receipt(first.message_id, 2, duplicate=True)], 2)
    assert (await store.get(2)).message.payload == "first"


async def test_duplicates_take_no_seq_from_the_events_around_them(store: Store) -> None:
    old = draft()
    await store.append([old])
    one, two = drafts(2)
    receipts, last_seq, *_ = await store.append([one, old, two])
    assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == [(2, False), (1, True), (3, False)]
    assert last_seq == 3
    assert await seqs(store) == [1, 2, 3]


async def test_a_message_id_twice_in_one_append_is_stored_once(store: Store) -> None:
    twin = draft(payload="first")
    receipts, last_seq, *_ = await store.append(
        [draft(), twin, draft(), draft(payload="second", message_id=twin.message_id), draft()]
    )
    assert [(receipt.seq, receipt.duplicate) for receipt in receipts] == [
        (1, False),
        (2, False),
        (3, False),
        (2, True),
        (4, False),
    ]
    assert last_seq == 4
    assert (await store.get(2)).message.payload == "first"


async def test_a_message_id_can_be_published_again_after_the_first_event_is_gone(store: Store) -> None:
    event = draft()
    await store.append([event, draft()])
    await store.trim(before=None, keep=1)
    assert (await store.append([event]))[0] == [Receipt(event.message_id, 3)]


async def test_one_message_id_from_many_publishers_is_one_event_with_one_seq(
    store: Store, open_another: OpenStore
) -> None:
    stores = [store, await open_another()]
    message_id = uuid4()
    answers = await asyncio.gather(
        *(stores[number % 2].append([draft(payload=number, message_id=message_id)]) for number in range(20))
    )
    receipts = [receipts[0] for receipts, *_ in answers]
    assert {receipt.seq for receipt in receipts} == {1}
    assert sum(not receipt.duplicate for receipt in receipts) == 1
    assert await seqs(store) == [1]


async def test_two_nodes_that_append_at_once_number_densely_and_twice_nothing(
    store: Store, open_another: OpenStore
) -> None:
    stores = [store, await open_another()]
    answers = await asyncio.gather(*(stores[number % 2].append(drafts(number % 5 + 1)) for number in range(60)))
    total = sum(number % 5 + 1 for number in range(60))
    answered = sorted(receipt.seq or 0 for receipts, *_ in answers for receipt in receipts)
    assert answered == list(range(1, total + 1))
    assert await seqs(store) == answered


async def test_each_append_stays_together_in_its_order_while_two_nodes_append(
    store: Store, open_another: OpenStore
) -> None:
    stores = [store, await open_another()]
    answers = await asyncio.gather(*(stores[number % 2].append(drafts(7)) for number in range(20)))
    for receipts, last_seq, *_ in answers:
        assert [receipt.seq for receipt in receipts] == list(range(last_seq - 6, last_seq + 1))


async def test_both_nodes_read_the_same_log(store: Store, open_another: OpenStore) -> None:
    other = await open_another()
    await asyncio.gather(*(node.append(drafts(3)) for node in (store, other, store, other)))
    one, two = await store.read(0, 100), await other.read(0, 100)
    assert [(m.seq, m.message_id, m.body) for m in one.messages] == [
        (m.seq, m.message_id, m.body) for m in two.messages
    ]
    assert await store.head() == await other.head()


async def test_times_never_go_back_along_the_log_while_two_nodes_append(store: Store, open_another: OpenStore) -> None:
    stores = [store, await open_another()]
    await asyncio.gather(*(stores[number % 2].append(drafts(2)) for number in range(40)))
    times = [message.created_at for message in (await store.read(0, 1_000)).messages]
    assert len(times) == 80
    assert times == sorted(times)


async def test_the_time_of_an_event_is_the_databases(store: Store) -> None:
    before = await store.now()
    await store.append([draft()])
    after = await store.now()
    assert before <= (await store.get(1)).message.created_at <= after


async def test_an_append_that_the_database_refuses_leaves_nothing(store: Store) -> None:
    good, bad = draft(), draft()._replace(topic=None)  # type: ignore[arg-type]  # what the door would never let in
    with pytest.raises(StoreError, match="refused"):
        await store.append([good, bad])
    assert await seqs(store) == []
    assert (await store.append([good]))[0] == [Receipt(good.message_id, 1)]
