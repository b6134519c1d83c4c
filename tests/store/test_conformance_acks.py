"""Every store: acknowledging marks events processed, each on its own merits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from sqlalchemy import func, select

from eventbus_fastapi.errors import AckMismatch, EventBusError, NotFound
from eventbus_fastapi.store import Ack, Store
from tests.drafts import draft, drafts
from tests.store.conftest import OpenStore

LATER = 2**62
"""A time after every ack."""


async def status(store: Store, *seqs: int) -> list[str]:
    return [(await store.get(seq)).status for seq in seqs]


def kinds(verdicts: Iterable[EventBusError | None]) -> list[type | None]:
    return [None if verdict is None else type(verdict) for verdict in verdicts]


async def test_an_acknowledged_event_is_processed_and_the_others_are_pending(store: Store) -> None:
    await store.append(drafts(3))
    assert await store.acknowledge([Ack(2)]) == [None]
    assert await status(store, 1, 2, 3) == ["pending", "processed", "pending"]


async def test_acknowledging_twice_is_once(store: Store) -> None:
    await store.append(drafts(1))
    assert await store.acknowledge([Ack(1), Ack(1)]) == [None, None]
    assert await store.acknowledge([Ack(1)]) == [None]
    assert await status(store, 1) == ["processed"]


async def test_an_ack_may_name_the_event_that_it_means(store: Store) -> None:
    event = draft()
    await store.append([event])
    assert await store.acknowledge([Ack(1, event.message_id)]) == [None]
    assert await status(store, 1) == ["processed"]


async def test_an_ack_that_names_another_event_is_refused_and_changes_nothing(store: Store) -> None:
    event, other = drafts(2)
    await store.append([event, other])
    (verdict,) = await store.acknowledge([Ack(1, other.message_id)])
    assert isinstance(verdict, AckMismatch)
    assert str(event.message_id) in str(verdict)
    assert str(other.message_id) in str(verdict)
    assert await status(store, 1, 2) == ["pending", "pending"]


async def test_refused_acks_do_not_hinder_the_others(store: Store) -> None:
    events = drafts(3)
    await store.append(events)
    verdicts = await store.acknowledge(
        [Ack(99), Ack(1), Ack(2, events[0].message_id), Ack(3, events[2].message_id), Ack(0)]
    )
    assert kinds(verdicts) == [NotFound, None, AckMismatch, None, NotFound]
    assert await status(store, 1, 2, 3) == ["processed", "pending", "processed"]


async def test_what_may_not_be_read_is_as_if_it_were_not_there(store: Store) -> None:
    await store.append(drafts(2))
    [message, _] = (await store.read(0, 2)).messages
    refused = await store.acknowledge([Ack(1, None, lambda topic: topic != message.topic), Ack(99)])
    assert kinds(refused) == [NotFound, NotFound]
    assert str(refused[0]).replace("1", "99") == str(refused[1])
    assert await status(store, 1, 2) == ["pending", "pending"]
    assert await store.acknowledge([Ack(1, None, lambda topic: topic == message.topic)]) == [None]


async def test_one_refused_ack_of_an_event_does_not_undo_another(store: Store) -> None:
    event, other = drafts(2)
    await store.append([event, other])
    assert kinds(await store.acknowledge([Ack(1, other.message_id), Ack(1)])) == [AckMismatch, None]
    assert await status(store, 1) == ["processed"]


async def test_thousands_of_acks_are_one_commit(store: Store) -> None:
    await store.append(drafts(1_800))
    assert await store.acknowledge([Ack(seq) for seq in range(1_800, 0, -1)]) == [None] * 1_800
    assert await store.processed(0, 1_800, LATER) == set(range(1, 1_801))


async def test_no_acks_are_no_work(store: Store) -> None:
    assert await store.acknowledge([]) == []


async def test_processed_tells_a_range_after_one_seq_up_to_another(store: Store) -> None:
    await store.append(drafts(6))
    await store.acknowledge([Ack(seq) for seq in (1, 2, 4, 6)])
    assert await store.processed(1, 4, LATER) == {2, 4}
    assert await store.processed(4, 5, LATER) == set()
    assert await store.processed(0, 100, LATER) == {1, 2, 4, 6}


async def test_a_moment_lies_between_the_acks_before_it_and_those_after_it(store: Store) -> None:
    for seq in range(1, 20, 2):
        await store.append(drafts(2))
        await store.acknowledge([Ack(seq)])
        moment = await store.moment()
        await store.acknowledge([Ack(seq + 1)])
        assert await store.processed(seq - 1, seq + 1, moment) == {seq}


async def test_two_nodes_may_acknowledge_the_same_events_at_once(store: Store, open_another: OpenStore) -> None:
    other = await open_another()
    await store.append(drafts(40))
    acks = [Ack(seq) for seq in range(1, 41)]
    answers = await asyncio.gather(*(node.acknowledge(acks) for node in (store, other, store, other)))
    assert answers == [[None] * 40] * 4
    assert await store.processed(0, 40, LATER) == set(range(1, 41))


async def test_the_mark_goes_with_the_event(store: Store) -> None:
    await store.append(drafts(3))
    await store.acknowledge([Ack(1), Ack(3)])
    await store.trim(before=None, keep=1)
    async with store.engine.connect() as connection:
        marks = (await connection.execute(select(func.count()).select_from(store.tables.processed))).scalar_one()
    assert marks == 1
    assert kinds(await store.acknowledge([Ack(1)])) == [NotFound]
