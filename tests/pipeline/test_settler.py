"""Outcomes are written in batches, and what cannot be written is tried again by somebody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from uuid import UUID

import pytest

from eventbus_fastapi.errors import LeaseLost, StoreError, StoreUnavailable
from eventbus_fastapi.pipeline.delivery import Delivery
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.outcome import ACK
from eventbus_fastapi.pipeline.settler import Settler
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.group import Group, HeldRetry, Settlement
from eventbus_fastapi.store.groups import Groups
from tests.drafts import drafts
from tests.pipeline.conftest import OpenNode
from tests.waiting import eventually


class Troubled(Groups):
    """The groups of a store that raises what is in `errors`, one after the other, instead of settling."""

    errors: Sequence[Exception | None] = ()
    is_away = False

    async def renew(self, tokens: Sequence[UUID], held: Sequence[HeldRetry], *, lease: float) -> set[UUID | HeldRetry]:
        if self.is_away:
            raise StoreUnavailable("away")
        return await super().renew(tokens, held, lease=lease)

    async def settle(self, settlements: Sequence[Settlement]) -> set[tuple[UUID, int]]:
        first, *self.errors = [*self.errors] or [None]
        if first is not None:
            raise first
        return await super().settle(settlements)


async def claim(groups: Groups, store: Store, count: int) -> tuple[Group, list[Delivery]]:
    """Append some events and claim them for a new group."""
    group = await groups.ensure("g", ["#"], after=0)
    await store.append(drafts(count))
    messages = (await store.read(0, count)).messages
    claimed = await groups.claim(group, messages, up_to=count, owner="one", lease=60)
    assert claimed is not None
    return group, [Delivery(message, group_id=group.id, token=claimed.token) for message in messages]


async def test_a_range_that_is_settled_as_a_whole_is_written_at_once_and_in_parts_at_a_tick(store: Store) -> None:
    settler = Settler(store.groups, lease=60, owner="one")
    group, deliveries = await claim(store.groups, store, 3)
    settler.hold(deliveries)
    settler.settle(deliveries[0], ACK)
    assert await settler.run_once() is not None
    assert (await store.groups.figures(group)).in_flight == 3
    for delivery in deliveries[1:]:
        settler.settle(delivery, ACK)
    await settler.run_once()
    assert (await store.groups.figures(group)).in_flight == 0
    assert settler.held == 0


async def test_leases_may_have_ended_as_soon_as_they_have_if_they_began_when_they_were_asked_for(store: Store) -> None:
    """A claim may take a while to be answered; by the database's time the lease began before."""
    settler = Settler(store.groups, lease=60, owner="one")
    _, deliveries = await claim(store.groups, store, 2)
    settler.hold(deliveries, since=asyncio.get_running_loop().time() - 60)
    assert settler.may_be_late
    await settler.run_once()
    assert not settler.may_be_late


async def test_whoever_waits_for_an_ack_is_told_after_its_commit(store: Store) -> None:
    settler = Settler(store.groups, lease=60, owner="one")
    group, deliveries = await claim(store.groups, store, 2)
    settler.hold(deliveries)
    answer = settler.settle_and_tell(deliveries[0], ACK)
    assert not answer.done()
    await settler.run_once()
    await answer
    assert (await store.groups.figures(group)).in_flight == 1
    with pytest.raises(LeaseLost):
        await settler.settle_and_tell(deliveries[0], ACK)


async def test_outcomes_wait_for_a_database_that_is_away(store: Store) -> None:
    groups = Troubled(store)
    settler = Settler(groups, lease=60, owner="one")
    group, deliveries = await claim(groups, store, 2)
    settler.hold(deliveries)
    for delivery in deliveries:
        settler.settle(delivery, ACK)
    groups.errors = [StoreUnavailable("away")]
    with pytest.raises(StoreUnavailable):
        await settler.run_once()
    await settler.run_once()
    assert (await groups.figures(group)).in_flight == 0


async def test_an_outcome_that_the_store_refuses_is_not_taken_for_settled(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Given a range of which one outcome is refused, then the node holds nothing of it, and all of it is still due."""
    groups = Troubled(store)
    settler = Settler(groups, lease=60, owner="one")
    group, deliveries = await claim(groups, store, 3)
    settler.hold(deliveries)
    groups.errors = [StoreError("refused")]
    answer = settler.settle_and_tell(deliveries[0], ACK)
    await settler.run_once()
    with pytest.raises(StoreError, match="refused"):
        await answer
    assert all(delivery.is_lost for delivery in deliveries)
    assert settler.held == 0
    assert (await groups.figures(group)).in_flight == 3


async def test_a_refusal_fails_no_other_lease_and_an_outage_forgets_none(store: Store) -> None:
    groups = Troubled(store)
    settler = Settler(groups, lease=60, owner="one")
    group, first = await claim(groups, store, 1)
    await store.append(drafts(1))
    messages = (await store.read(1, 1)).messages
    claimed = await groups.claim(await groups.get("g"), messages, up_to=2, owner="one", lease=60)
    assert claimed is not None
    second = [Delivery(messages[0], group_id=group.id, token=claimed.token)]
    settler.hold([*first, *second])
    for delivery in (*first, *second):
        settler.settle(delivery, ACK)
    groups.errors = [StoreError("refused"), StoreUnavailable("away")]
    with pytest.raises(StoreUnavailable):
        await settler.run_once()
    await settler.run_once()
    assert (await groups.figures(group)).in_flight == 0


async def test_a_key_whose_event_was_lost_is_free_for_the_next(open_node: OpenNode) -> None:
    """Given a group ordered by key that is reset while an event is out, then the key's events come again."""
    node = await open_node(lease=1.0)
    consumer = await node.consume("g", ["#"], ordered_by="key")
    await _publish(node, 2)
    (held,) = await consumer.take(10)
    await node.store.groups.reset("g", 0)
    await eventually(lambda: held.is_lost, timeout=10)
    async with asyncio.timeout(10):
        (again,) = await consumer.take(10)
        consumer.settle(again, ACK)
        (following,) = await consumer.take(10)
    assert [again.message.seq, following.message.seq] == [1, 2]
    consumer.settle(following, ACK)
    await node.consumers.close(consumer)


async def _publish(node: Node, count: int) -> None:
    await node.submit([each._replace(key="x") for each in drafts(count)])


async def test_a_node_that_cannot_renew_in_time_withdraws_what_it_holds_and_gives_it_back_later(store: Store) -> None:
    """Its handlers went on until it reached the database again, while others had the same events."""
    groups = Troubled(store)
    groups.is_away = True
    settler = Settler(groups, lease=0.01, owner="one")
    group, deliveries = await claim(groups, store, 3)
    told: list[int] = []
    for delivery in deliveries:
        delivery.on_lost = partial(told.append, delivery.message.seq)
    settler.hold(deliveries)
    settler.settle(deliveries[0], ACK)

    async def are_withdrawn() -> bool:
        with suppress(StoreUnavailable):
            await settler.run_once()
        return told == [2, 3]

    await eventually(are_withdrawn)
    groups.is_away = False
    await settler.flush()
    assert settler.held == 0
    assert [(item.seq, item.attempt) for item in await groups.retries(group)] == [(2, 0), (3, 0)]
    assert (await groups.figures(group)).in_flight == 0


async def test_a_node_that_was_frozen_goes_on_with_what_nobody_has_taken_over(store: Store) -> None:
    """Its handlers were cancelled, and what they had done was done again as the same attempt."""
    settler = Settler(store.groups, lease=0.01, owner="one")
    _, (delivery,) = await claim(store.groups, store, 1)
    settler.hold([delivery])
    await eventually(lambda: asyncio.get_running_loop().time() >= settler._ends_at)
    await settler.run_once()
    assert not delivery.is_lost
    assert settler.held == 1
