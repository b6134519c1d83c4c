"""Limits of every store: how many events of a group may be in flight, and how often an attempt may begin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from eventbus_fastapi.errors import InvalidGroup, NotFound
from eventbus_fastapi.events import Message
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.group import Again, Claim, Group, Settlement
from eventbus_fastapi.store.groups import Groups
from eventbus_fastapi.store.limits import LOOK_AGAIN, RateLimit
from tests.drafts import draft
from tests.store.conftest import OpenStore

LEASE = 60.0
OVER = -1.0
HOUR = 3_600_000_000


@pytest.fixture
def groups(store: Store) -> Groups:
    return store.groups


async def fill(store: Store, count: int, *, keys: Sequence[str] = ()) -> list[Message]:
    await store.append([draft("a", number, key=keys[number] if keys else None) for number in range(count)])
    return (await store.read(0, 1_000)).messages


async def claim(groups: Groups, group: Group, messages: Sequence[Message], *, lease: float = LEASE) -> Claim:
    claimed = await groups.claim(group, messages, up_to=messages[-1].seq, owner="one", lease=lease)
    assert claimed is not None
    return claimed


# --- in flight -----------------------------------------------------------------------------------


async def test_a_claim_takes_no_more_than_may_be_in_flight(store: Store, groups: Groups) -> None:
    """What was not taken stays in front of the cursor, and is taken once there is room."""
    log = await fill(store, 5)
    group = await groups.ensure("g", ["#"], after=0, max_in_flight=2)
    first = await claim(groups, group, log)
    assert (first.seqs, first.up_to) == ((1, 2), 2)
    group = await groups.get("g")
    none = await claim(groups, group, log[2:])
    assert (none.seqs, none.up_to, (await groups.get("g")).cursor) == ((), 2, 2)
    assert await groups.room(group, 10) == (0, LOOK_AGAIN)
    await groups.settle([Settlement(group.id, first.token, done=(1,), pending=(2,))])
    assert await groups.room(group, 10) == (1, 0)
    assert (await claim(groups, group, log[2:])).seqs == (3,)


async def test_two_nodes_that_claim_at_once_keep_the_limit_together(open_another: OpenStore) -> None:
    one, other = await open_another(), await open_another()
    log = await fill(one, 8)
    group = await one.groups.ensure("g", ["#"], after=0, max_in_flight=3)
    await asyncio.gather(
        *(store.groups.claim(group, log, up_to=8, owner="x", lease=LEASE) for store in (one, other, one, other))
    )
    assert (await one.groups.figures(group)).in_flight == 3


async def test_a_retry_that_is_held_is_in_flight(store: Store, groups: Groups) -> None:
    log = await fill(store, 4)
    group = await groups.ensure("g", ["#"], after=0, max_in_flight=2)
    first = await claim(groups, group, log)
    await groups.settle([Settlement(group.id, first.token, again=[Again(1, 1, 0, []), Again(2, 1, 0, [])], pending=())])
    second = await claim(groups, await groups.get("g"), log[2:3])
    held = await groups.hold_retries(group, limit=10, owner="two", lease=LEASE)
    assert [item.message.seq for item in held] == [1]
    await groups.settle([Settlement(group.id, second.token, done=second.seqs, pending=())])
    held = await groups.hold_retries(group, limit=10, owner="two", lease=LEASE)
    assert [item.message.seq for item in held] == [2]
    assert await groups.hold_retries(group, limit=10, owner="two", lease=LEASE) == []


async def test_what_a_lease_held_that_has_ended_leaves_room(store: Store, groups: Groups) -> None:
    """Else a node that died would block its group for ever."""
    log = await fill(store, 2)
    group = await groups.ensure("g", ["#"], after=0, max_in_flight=1)
    await claim(groups, group, log, lease=OVER)
    await groups.rescue()
    (held,) = await groups.hold_retries(group, limit=10, owner="two", lease=OVER)
    (held,) = await groups.hold_retries(group, limit=10, owner="three", lease=LEASE)
    assert (held.message.seq, held.attempt) == (1, 3)
    assert (await groups.room(group, 10)).events == 0


async def test_who_does_not_know_a_group_s_limits_yet_claims_nothing(store: Store, groups: Groups) -> None:
    """It looks at the group as seldom as its queue polls, and would take any number until then."""
    log = await fill(store, 3)
    known = await groups.ensure("g", ["#"], after=0)
    group = await groups.ensure("g", ["#"], after=0, max_in_flight=1, is_declared=True)
    assert await groups.claim(known, log, up_to=3, owner="one", lease=LEASE) is None
    assert (await claim(groups, group, log)).seqs == (1,)


async def test_who_does_not_know_a_group_s_limits_yet_holds_no_more_retries_than_they_say(
    store: Store, groups: Groups
) -> None:
    log = await fill(store, 3)
    known = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, known, log)
    again = [Again(seq, 1, 0, []) for seq in claimed.seqs]
    await groups.settle([Settlement(known.id, claimed.token, again=again, pending=())])
    await groups.limits.declare(RateLimit("mail", 2, HOUR))
    await groups.ensure("g", ["#"], after=0, rate_limit="mail", is_declared=True)
    held = await groups.hold_retries(known, limit=10, owner="two", lease=LEASE)
    assert [item.message.seq for item in held] == [1, 2]
    assert await groups.hold_retries(known, limit=10, owner="two", lease=LEASE) == []


# --- rates ---------------------------------------------------------------------------------------


async def test_a_rate_limit_gives_its_permits_once_in_a_period_whatever_group_takes_them(
    store: Store, groups: Groups
) -> None:
    await groups.limits.declare(RateLimit("mail", 3, HOUR))
    log = await fill(store, 4)
    one, other = [await groups.ensure(name, ["#"], after=0, rate_limit="mail") for name in ("one", "other")]
    assert (await claim(groups, one, log[:2])).seqs == (1, 2)
    assert (await claim(groups, other, log)).seqs == (1,)
    room = await groups.room(one, 10)
    assert room.events == 0
    assert 0 < room.wait <= HOUR
    assert (await claim(groups, await groups.get("other"), log[1:])).seqs == ()


async def test_a_permit_is_an_attempt_so_a_retry_takes_one(store: Store, groups: Groups) -> None:
    await groups.limits.declare(RateLimit("mail", 2, HOUR))
    (log,) = await fill(store, 1)
    group = await groups.ensure("g", ["#"], after=0, rate_limit="mail")
    claimed = await claim(groups, group, [log])
    await groups.settle([Settlement(group.id, claimed.token, again=[Again(1, 1, 0, [])], pending=())])
    (held,) = await groups.hold_retries(group, limit=10, owner="two", lease=LEASE)
    await groups.settle([Settlement(group.id, held.token, again=[Again(1, 2, 0, [])])])
    assert await groups.hold_retries(group, limit=10, owner="two", lease=LEASE) == []


async def test_permits_come_back_when_the_period_is_over(store: Store, groups: Groups) -> None:
    await groups.limits.declare(RateLimit("mail", 1, 1))  # a microsecond
    log = await fill(store, 2)
    group = await groups.ensure("g", ["#"], after=0, rate_limit="mail")
    await claim(groups, group, log[:1])
    assert (await claim(groups, await groups.get("g"), log[1:])).seqs == (2,)


async def test_nodes_that_claim_at_once_are_given_no_permit_twice(open_another: OpenStore) -> None:
    one, other = await open_another(), await open_another()
    await one.groups.limits.declare(RateLimit("mail", 5, HOUR))
    log = await fill(one, 8)
    made = [await one.groups.ensure(f"g{number}", ["#"], after=0, rate_limit="mail") for number in range(4)]
    claims = await asyncio.gather(
        *(
            store.groups.claim(group, log[:2], up_to=2, owner="x", lease=LEASE)
            for store, group in zip((one, other, one, other), made, strict=True)
        )
    )
    assert sum(len(each.seqs) for each in claims if each is not None) == 5


async def test_of_a_key_one_event_takes_a_permit_and_the_others_wait_for_it(store: Store, groups: Groups) -> None:
    """A permit that was taken long before its attempt begins would let more begin at once than the limit says."""
    await groups.limits.declare(RateLimit("mail", 10, HOUR))
    log = await fill(store, 4, keys=["x", "x", "y", "x"])
    group = await groups.ensure("g", ["#"], after=0, ordered_by="key", rate_limit="mail")
    assert (await claim(groups, group, log)).seqs == (1, 3)
    assert (await groups.room(group, 10)).events == 8


async def test_a_limit_is_changed_while_what_it_gave_still_counts(store: Store, groups: Groups) -> None:
    await groups.limits.declare(RateLimit("mail", 3, HOUR))
    log = await fill(store, 3)
    group = await groups.ensure("g", ["#"], after=0, rate_limit="mail")
    await claim(groups, group, log)
    await groups.limits.declare(RateLimit("mail", 2, HOUR))
    assert (await groups.room(group, 10)).events == 0
    await groups.limits.declare(RateLimit("mail", 5, HOUR))
    assert (await groups.room(group, 10)).events == 2
    assert await groups.limits.all() == [RateLimit("mail", 5, HOUR)]


async def test_many_declare_the_same_limit_at_once_and_there_is_one(open_another: OpenStore) -> None:
    stores = [await open_another() for _ in range(3)]
    await asyncio.gather(*(store.groups.limits.declare(RateLimit("mail", 3, HOUR)) for store in stores))
    assert await stores[0].groups.limits.get("mail") == RateLimit("mail", 3, HOUR)


async def test_a_limit_that_is_not_there_is_named(store: Store, groups: Groups) -> None:
    with pytest.raises(NotFound, match="no rate limit 'mail'"):
        await groups.limits.get("mail")
    group = await groups.ensure("g", ["#"], after=0, rate_limit="mail")
    with pytest.raises(InvalidGroup, match="the rate limit 'mail' of group 'g' is gone"):
        await claim(groups, group, await fill(store, 1))


@pytest.mark.databases("sqlite")
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (RateLimit("", 1, HOUR), "name"),
        (RateLimit("mail", 0, HOUR), "permits of rate limit 'mail' must be an int from 1 to 1,000,000, got 0"),
        (RateLimit("mail", True, HOUR), "permits .* got True"),
        (RateLimit("mail", 1, 0), "period of rate limit 'mail' must be more than 0 .* got 0"),
        (RateLimit("mail", 1, 32 * 24 * HOUR), "at most 2,678,400 seconds"),
    ],
)
async def test_what_cannot_be_a_limit_is_refused(groups: Groups, limit: RateLimit, expected: str) -> None:
    with pytest.raises(InvalidGroup, match=expected):
        await groups.limits.declare(limit)
