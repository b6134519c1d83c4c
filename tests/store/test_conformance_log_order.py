"""Groups that are ordered by the log, on every store: one owner at a time, and nothing out of order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from eventbus_fastapi.errors import GroupConflict
from eventbus_fastapi.events import Message
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.group import Again, Claim, Death, Group, Held, OrderedBy, Settlement
from eventbus_fastapi.store.groups import Groups
from tests.drafts import draft
from tests.store.conftest import OpenStore

LEASE = 60.0
OVER = -1.0
"""A lease that has ended when it begins."""


@pytest.fixture
def groups(store: Store) -> Groups:
    return store.groups


@pytest.fixture
async def log(store: Store) -> list[Message]:
    await store.append([draft() for _ in range(6)])
    return (await store.read(0, 100)).messages


@pytest.fixture
async def group(groups: Groups) -> Group:
    return await groups.ensure("relay", ["#"], after=0, ordered_by="log", max_attempts=1_000)


async def claim(
    groups: Groups, group: Group, messages: Sequence[Message], owner: str = "one", lease: float = LEASE
) -> Claim:
    """Claim them, from where the group is now."""
    now = await groups.get(group.name)
    claimed = await groups.claim(now, messages, up_to=messages[-1].seq, owner=owner, lease=lease)
    assert claimed is not None
    return claimed


async def hold(groups: Groups, group: Group, owner: str, limit: int = 10, lease: float = LEASE) -> list[Held]:
    return await groups.hold_retries(group, limit=limit, owner=owner, lease=lease)


def again(*seqs: int, delay: int = 0) -> list[Again]:
    return [Again(seq, 1, delay, []) for seq in seqs]


def back(group: Group, claimed: Claim, *seqs: int, delay: int = 0) -> Settlement:
    """Give all of a claim back, or these, the others being acked."""
    failed = seqs or claimed.seqs
    done = [seq for seq in claimed.seqs if seq not in failed]
    return Settlement(group.id, claimed.token, done=done, again=again(*failed, delay=delay), pending=())


def seqs(held: Sequence[Held]) -> list[int]:
    return [item.message.seq for item in held]


async def test_its_owner_claims_further_ranges_while_earlier_ones_are_in_flight(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    assert (await claim(groups, group, log[:2])).seqs == (1, 2)
    assert (await claim(groups, group, log[2:4])).seqs == (3, 4)
    assert (await groups.figures(group)).in_flight == 4


@pytest.mark.parametrize("lease", [LEASE, OVER])
async def test_nobody_else_claims_while_its_owner_has_a_lease_even_one_that_has_ended(
    groups: Groups, group: Group, log: list[Message], lease: float
) -> None:
    first = await claim(groups, group, log[:2], lease=lease)
    refused = await claim(groups, group, log[2:], owner="two")
    assert (refused.seqs, refused.up_to) == ((), 2)
    assert (await groups.get("relay")).cursor == 2
    await groups.settle([Settlement(group.id, first.token, done=first.seqs, pending=())])
    assert (await claim(groups, group, log[2:], owner="two")).seqs == (3, 4, 5, 6)


async def test_of_many_who_claim_at_once_one_goes_on(open_another: OpenStore) -> None:
    stores = [await open_another() for _ in range(3)]
    await stores[0].append([draft() for _ in range(6)])
    log = (await stores[0].read(0, 100)).messages
    group = await stores[0].groups.ensure("relay", ["#"], after=0, ordered_by="log")
    claims = await asyncio.gather(
        *(
            store.groups.claim(group, log[:2], up_to=2, owner=str(number), lease=LEASE)
            for number, store in enumerate(stores)
        )
    )
    assert sorted(claimed.seqs for claimed in claims if claimed is not None and claimed.seqs) == [(1, 2)]


async def test_who_takes_over_gets_what_was_in_flight_first_and_in_order(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    await claim(groups, group, log[:2], lease=OVER)
    await claim(groups, group, log[2:4], lease=OVER)
    assert await hold(groups, group, "two") == []
    await groups.rescue()
    assert (await claim(groups, group, log[4:], owner="two")).seqs == ()
    held = await hold(groups, group, "two", limit=3)
    assert [(item.message.seq, item.attempt, item.errors[0]["type"]) for item in held] == [
        (1, 2, "LeaseLost"),
        (2, 2, "LeaseLost"),
        (3, 2, "LeaseLost"),
    ]
    assert (await claim(groups, group, log[4:], owner="two")).seqs == (), "4 comes before"
    assert seqs(await hold(groups, group, "two")) == [4]
    assert (await claim(groups, group, log[4:], owner="two")).seqs == (5, 6), "all that is older is its own"


async def test_nobody_holds_a_retry_while_another_holds_one_or_has_a_lease(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    first = await claim(groups, group, log[:2])
    second = await claim(groups, group, log[2:4])
    await groups.settle([back(group, first)])
    assert await hold(groups, group, "two") == []
    await groups.settle([back(group, second)])
    assert seqs(await hold(groups, group, "two", limit=1)) == [1]
    assert await hold(groups, group, "three") == []
    assert await hold(groups, group, "one") == []
    assert seqs(await hold(groups, group, "two")) == [2, 3, 4]


async def test_what_is_given_back_is_for_nobody_else_while_its_holder_has_what_is_behind_it(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    await groups.settle([back(group, await claim(groups, group, log[:2]))])
    held = await hold(groups, group, "two")
    await groups.settle([Settlement(group.id, held[0].token, again=again(1))])
    assert await hold(groups, group, "three") == []
    assert seqs(await hold(groups, group, "two")) == [1]
    await groups.settle([Settlement(group.id, held[0].token, again=again(2))])
    assert await hold(groups, group, "three") == [], "1 is still the other's"


async def test_a_retry_whose_holder_is_silent_is_found_in_its_place(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    await groups.settle([back(group, await claim(groups, group, log[:3]))])
    assert seqs(await hold(groups, group, "two", limit=2, lease=OVER)) == [1, 2]
    held = await hold(groups, group, "three")
    assert [(item.message.seq, item.attempt) for item in held] == [(1, 3), (2, 3), (3, 2)]


async def test_what_waits_for_its_time_holds_up_all_that_follows(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    first = await claim(groups, group, log[:3])
    await groups.settle([back(group, first, 1, delay=60_000_000)])
    second = await claim(groups, group, log[3:4])
    assert second.seqs == (), "1 comes before"
    assert await hold(groups, group, "one") == []


async def test_an_event_that_was_lost_many_times_takes_its_neighbours_along(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    """Elsewhere it would be handed out alone; here that would only slow down who catches up."""
    await groups.settle([back(group, await claim(groups, group, log[:3]))])
    for _ in range(4):
        assert seqs(await hold(groups, group, "two", lease=OVER)) == [1, 2, 3]


async def test_a_dead_letter_holds_up_nothing_and_comes_again_at_once_when_it_is_revived(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    first = await claim(groups, group, log[:3])
    error = {"type": "Unroutable", "message": "no queue"}
    await groups.settle([Settlement(group.id, first.token, done=(1, 3), dead=[Death(2, 1, [error])], pending=())])
    second = await claim(groups, group, log[3:4])
    assert second.seqs == (4,)
    await groups.revive(group, [2])
    assert (await claim(groups, group, log[4:5])).seqs == ()
    held = await hold(groups, group, "one")
    assert [(item.message.seq, item.attempt, item.errors) for item in held] == [(2, 1, [error])]


@pytest.mark.parametrize("ordered_by", [None, "key"])
async def test_the_group_of_a_relay_is_no_other_readers_and_that_of_another_no_relays(
    groups: Groups, group: Group, ordered_by: OrderedBy | None
) -> None:
    with pytest.raises(GroupConflict, match="the group 'relay' is a relay's"):
        await groups.ensure("relay", ["#"], after=0, ordered_by=ordered_by, is_declared=True)
    await groups.ensure("other", ["#"], after=0, ordered_by=ordered_by)
    with pytest.raises(GroupConflict, match="no relay can take events of it"):
        await groups.ensure("other", ["#"], after=0, ordered_by="log", is_declared=True)


async def test_what_does_not_match_is_passed_over_by_whoever_reads(
    groups: Groups, group: Group, log: list[Message]
) -> None:
    await claim(groups, group, log[:2])
    passed = await groups.claim(await groups.get("relay"), [], up_to=4, owner="two", lease=LEASE)
    assert passed is not None
    assert (passed.seqs, passed.up_to) == ((), 4)
