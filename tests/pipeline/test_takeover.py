"""Who waits for its turn in a group that is ordered by the log goes on when the lease of one that died has ended.

Consumers here look once a minute, and would wait as long for the group to stand still: what they do within seconds,
they do because they know when the lease ends. That is the database's time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from eventbus_fastapi.events import Message, make_draft
from eventbus_fastapi.pipeline.delivery import Delivery
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store.group import Again, Claim, Group, Settlement
from tests.waiting import eventually

LEASE = 0.3


@pytest.fixture
async def node(own_tables: dict[str, Any]) -> AsyncIterator[Node]:
    node = Node(Settings(**own_tables))
    await node.start()
    yield node
    await node.stop()


@pytest.fixture
async def log(node: Node) -> list[Message]:
    await node.submit([make_draft("a", number, max_payload=100) for number in range(6)])
    return (await node.store.read(0, 100)).messages


@pytest.fixture
async def group(node: Node) -> Group:
    return await node.store.groups.ensure("relay", ["#"], after=0, ordered_by="log", max_attempts=1_000)


async def claim(node: Node, messages: list[Message], lease: float) -> Claim:
    """Claim them for one who is not heard of again."""
    groups = node.store.groups
    claimed = await groups.claim(await groups.get("relay"), messages, up_to=messages[-1].seq, owner="dead", lease=lease)
    assert claimed is not None
    return claimed


async def take(node: Node) -> list[Delivery]:
    """Wait for the turn, and take what comes first."""
    consumer = await node.consume(
        "relay", ["#"], start="earliest", ordered_by="log", max_attempts=1_000, poll_interval=60.0
    )
    async with asyncio.timeout(20):
        return await consumer.take(100)


async def now(node: Node, group: Group) -> int:
    """Return what time it is in the database."""
    return (await node.store.groups.look([group.id]))[0].now


async def test_the_other_goes_on_when_the_last_lease_of_one_that_died_has_ended(
    node: Node, group: Group, log: list[Message]
) -> None:
    await claim(node, log[:2], LEASE)
    await claim(node, log[2:4], 3 * LEASE)
    last_end = await now(node, group) + round(2.5 * LEASE * 1_000_000)  # it has begun already

    taken = await take(node)

    assert [(each.message.seq, each.attempt) for each in taken] == [(seq, 2) for seq in range(1, 5)]
    assert await now(node, group) > last_end


async def test_the_other_goes_on_when_one_that_died_does_not_hold_its_retries_any_longer(
    node: Node, group: Group, log: list[Message]
) -> None:
    groups = node.store.groups
    claimed = await claim(node, log[:2], 60)
    again = [Again(seq, 1, 0, []) for seq in claimed.seqs]
    await groups.settle([Settlement(group.id, claimed.token, again=again, pending=())])
    await groups.hold_retries(group, limit=10, owner="dead", lease=LEASE)
    end = min(retry.run_at for retry in await groups.retries(group))

    taken = await take(node)

    assert [(each.message.seq, each.attempt) for each in taken] == [(1, 3), (2, 3)]
    assert await now(node, group) > end


async def test_a_lease_that_ends_while_a_claim_is_refused_because_of_it_is_not_waited_for(
    node: Node, group: Group, log: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the refused claim had seen was older than what the look has told meanwhile."""
    groups = node.store.groups
    await claim(node, log[:2], LEASE)
    claim_at_once = groups.claim

    async def claim_slowly(*args: Any, **options: Any) -> Claim | None:
        claimed = await claim_at_once(*args, **options)
        (consumer,) = node.consumers
        await eventually(lambda: consumer._freed > 0)
        return claimed

    monkeypatch.setattr(groups, "claim", claim_slowly)
    assert [each.message.seq for each in await take(node)] == [1, 2]


async def test_the_first_does_not_wait_for_anybody(node: Node, group: Group, log: list[Message]) -> None:
    assert [each.message.seq for each in await take(node)] == [1, 2, 3, 4, 5, 6]


async def test_what_was_given_back_is_taken_at_once(node: Node, group: Group, log: list[Message]) -> None:
    claimed = await claim(node, log[:2], 60)
    again = [Again(seq, 0, 0, []) for seq in claimed.seqs]
    await node.store.groups.settle([Settlement(group.id, claimed.token, again=again, pending=())])

    assert [each.message.seq for each in await take(node)] == [1, 2]
