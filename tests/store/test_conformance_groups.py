"""Groups of every store: claims, leases, retries, dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from eventbus_fastapi.errors import GroupNotFound, InvalidGroup, LeaseLost
from eventbus_fastapi.events import Message, make_draft
from eventbus_fastapi.store import Store
from eventbus_fastapi.store.group import Again, Claim, Death, Group, Held, HeldRetry, Settlement
from eventbus_fastapi.store.groups import Groups, expected
from tests.drafts import draft
from tests.store.conftest import OpenStore
from tests.waiting import eventually

LEASE = 60.0
OVER = -1.0
"""A lease that has ended when it begins."""
ERROR = {"type": "ValueError", "message": "no"}


@pytest.fixture
def groups(store: Store) -> Groups:
    return store.groups


async def fill(store: Store, *topics: str, keys: Sequence[str | None] = ()) -> list[Message]:
    """Append events of these topics; return the whole log."""
    padded = [*keys, *[None] * (len(topics) - len(keys))]
    await store.append(
        [
            make_draft(topic, number, key=key, max_payload=1_000)
            for number, (topic, key) in enumerate(zip(topics, padded, strict=True))
        ]
    )
    return (await store.read(0, 1_000)).messages


async def claim(groups: Groups, group: Group, messages: Sequence[Message], *, lease: float = LEASE) -> Claim:
    claimed = await groups.claim(group, messages, up_to=messages[-1].seq, owner="one", lease=lease)
    assert claimed is not None
    return claimed


async def hold(groups: Groups, group: Group, *, lease: float = LEASE, limit: int = 10) -> list[Held]:
    return await groups.hold_retries(group, limit=limit, owner="two", lease=lease)


def again(seq: int, attempt: int = 1, delay: int = 0) -> Again:
    return Again(seq, attempt, delay, [ERROR])


def seqs(held: Sequence[Held]) -> list[int]:
    return [item.message.seq for item in held]


# --- a group -------------------------------------------------------------------------------------


async def test_a_group_is_made_once_and_keeps_its_place(groups: Groups) -> None:
    made = await groups.ensure("billing", ["user.*", "#"], after=7)
    assert (made.patterns, made.cursor, made.is_paused, made.lost) == (("user.*", "#"), 7, False, 0)
    assert await groups.ensure("billing", ["other"], after=0) == made
    assert await groups.all() == [made]


async def test_many_make_the_same_group_at_once_and_there_is_one(open_another: OpenStore) -> None:
    stores = [await open_another() for _ in range(3)]
    made = await asyncio.gather(*(store.groups.ensure("billing", ["#"], after=0) for store in stores for _ in range(3)))
    assert len({group.id for group in made}) == 1


async def test_a_group_that_is_ordered_from_now_on_has_the_keys_of_what_is_in_flight(
    store: Store, groups: Groups
) -> None:
    """Given an event that was claimed while there was no order, then the next of its key waits for it all the same."""
    log = await fill(store, "a", "a", "a", keys=["x", "x", "y"])
    group = await groups.ensure("g", ["#"], after=0)
    first = await claim(groups, group, log[:1])

    group = await groups.ensure("g", ["#"], after=0, ordered_by="key", is_declared=True)

    assert (await claim(groups, group, log[1:])).seqs == (3,)
    assert await hold(groups, group) == []
    assert await groups.settle([Settlement(group.id, first.token, done=[1], pending=())]) == set()
    assert seqs(await hold(groups, group)) == [2]


async def test_a_declared_group_takes_over_what_is_declared_and_keeps_its_place(groups: Groups) -> None:
    await groups.ensure("billing", ["a"], after=7)
    group = await groups.ensure("billing", ["b", "c"], after=0, ordered_by="key", max_attempts=3, is_declared=True)
    assert (group.patterns, group.ordered_by, group.max_attempts, group.cursor) == (("b", "c"), "key", 3, 7)


@pytest.mark.parametrize("name", ["", "a\0b", "\ud800", "a" * 1_000])
async def test_a_name_that_no_group_can_have_is_refused_whatever_is_asked_of_it(groups: Groups, name: str) -> None:
    """Some databases do not take it as a value; some drivers raise errors of their own."""
    for work in (groups.get, groups.pause, groups.delete):
        with pytest.raises(InvalidGroup):
            await work(name)


async def test_names_of_groups_differ_by_their_case(groups: Groups) -> None:
    one, other = [await groups.ensure(name, ["#"], after=0) for name in ("Billing", "billing")]
    assert one.id != other.id


async def test_a_group_that_is_not_there_is_named(groups: Groups) -> None:
    for work in (groups.get, groups.pause, groups.resume, groups.delete):
        with pytest.raises(GroupNotFound, match="no group 'nobody'"):
            await work("nobody")


# --- claims --------------------------------------------------------------------------------------


async def test_a_claim_moves_the_cursor_and_is_gone_once_settled(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    messages = await fill(store, "a", "b", "c")
    claimed = await claim(groups, group, messages)
    assert claimed.seqs == (1, 2, 3)
    assert (await groups.get("g")).cursor == 3
    assert (await groups.figures(group))[0] == 0
    assert (await groups.figures(group)).in_flight == 3
    assert await groups.settle([Settlement(group.id, claimed.token, done=(1, 2, 3), pending=())]) == set()
    assert (await groups.figures(group)).in_flight == 0


async def test_what_does_not_match_is_passed_over_without_a_lease(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["b"], after=0)
    messages = await fill(store, "a", "b", "a", "a")
    claimed = await groups.claim(group, [messages[1]], up_to=3, owner="one", lease=LEASE)
    assert claimed is not None
    assert claimed.seqs == (2,)
    nothing = await groups.claim(await groups.get("g"), [], up_to=4, owner="one", lease=LEASE)
    assert nothing is not None
    assert nothing.seqs == ()
    assert (await groups.figures(group)).in_flight == 1


async def test_only_one_of_many_claims_the_same_range(open_another: OpenStore) -> None:
    stores = [await open_another() for _ in range(3)]
    group = await stores[0].groups.ensure("g", ["#"], after=0)
    messages = await fill(stores[0], *["a"] * 10)
    claims = await asyncio.gather(
        *(
            store.groups.claim(group, messages, up_to=10, owner=str(number), lease=LEASE)
            for number, store in enumerate(stores)
        )
    )
    assert [claimed is not None for claimed in claims].count(True) == 1


@pytest.mark.parametrize("declared", [{"patterns": ["a", "b"]}, {"patterns": ["a"], "ordered_by": "key"}])
async def test_who_knows_a_group_as_it_was_declared_before_claims_nothing(
    store: Store, groups: Groups, declared: dict[str, Any]
) -> None:
    """It would pass over what it does not know to match, and give out what it does not know to be ordered."""
    log = await fill(store, "b", "a")
    before = await groups.ensure("g", ["a"], after=0)
    now = await groups.ensure("g", after=0, is_declared=True, **declared)
    assert await groups.claim(before, log[1:], up_to=2, owner="one", lease=LEASE) is None
    assert await groups.claim(before, [], up_to=2, owner="one", lease=LEASE) is None
    assert (await claim(groups, now, log)).seqs == (1, 2)


async def test_a_paused_group_hands_out_nothing_and_its_deliveries_can_be_settled(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    messages = await fill(store, "a", "b")
    claimed = await claim(groups, group, messages[:1])
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1)], pending=())])
    await groups.pause("g")
    paused = await groups.get("g")
    assert paused.is_paused
    assert await groups.claim(paused, messages[1:], up_to=2, owner="one", lease=LEASE) is None
    assert await hold(groups, group) == []
    await groups.resume("g")
    assert await groups.claim(paused, messages[1:], up_to=2, owner="one", lease=LEASE) is not None
    assert seqs(await hold(groups, group)) == [1]


async def test_a_group_that_is_reset_reads_again_and_old_tokens_settle_nothing(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    messages = await fill(store, "a", "b")
    claimed = await claim(groups, group, messages)
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1)], pending=(2,))])
    (held,) = await hold(groups, group)
    await groups.reset("g", 0)
    assert await groups.settle(
        [
            Settlement(group.id, claimed.token, done=(2,), pending=()),
            Settlement(group.id, held.token, done=(1,)),
        ]
    ) == {(claimed.token, 2), (held.token, 1)}
    assert (await groups.get("g")).cursor == 0
    assert (await claim(groups, await groups.get("g"), messages)).seqs == (1, 2)


async def test_a_group_that_is_deleted_during_a_claim_leaves_nothing(open_another: OpenStore) -> None:
    """Its lease was rescued for nobody, and retention waited for it."""
    store, other = await open_another(), await open_another()
    if store.engine.dialect.name == "sqlite":
        pytest.skip("it has one writer")
    await fill(store, "a")
    group = await store.groups.ensure("g", ["#"], after=0)
    deleting: list[asyncio.Task[None]] = []

    async def work(connection: AsyncConnection) -> None:
        sql = store.groups.sql
        await connection.execute(sql.move_cursor, {**expected(group), "cursor": 1})
        deleting.append(asyncio.create_task(other.groups.delete("g")))
        await asyncio.wait(deleting, timeout=0.3)  # it waits for the group
        lease = {"token": uuid4(), "group_id": group.id, "owner": "one", "first_seq": 1, "pending": "1"}
        await connection.execute(sql.add_lease, {**lease, "key_seqs": None, "duration": 1})

    await store.transact(work)
    await deleting[0]
    assert await store.groups.floor() is None


async def test_who_knows_a_deleted_group_takes_nothing_of_the_one_that_has_its_id_now(
    store: Store, groups: Groups
) -> None:
    messages = await fill(store, "a", "b")
    group = await groups.ensure("new", ["#"], after=0)
    deleted = group._replace(name="deleted")
    held = await claim(groups, group, messages[:1])
    await groups.settle([Settlement(group.id, held.token, again=[again(1)], pending=())])
    now = await groups.get("new")

    assert await groups.claim(deleted._replace(cursor=1), messages[1:], up_to=2, owner="one", lease=LEASE) is None
    assert await hold(groups, deleted) == []

    assert await groups.get("new") == now
    assert seqs(await hold(groups, now)) == [1]


async def test_a_deleted_group_leaves_nothing(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    messages = await fill(store, "a", "b", "c")
    claimed = await claim(groups, group, messages)
    dead = [Death(2, 1, [ERROR])]
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1)], dead=dead, pending=(3,))])
    await groups.delete("g")
    assert await groups.all() == []
    assert await groups.dead_letters(group) == []
    with pytest.raises(GroupNotFound):
        await groups.get_by_id(group.id)
    assert await groups.claim(group, messages, up_to=3, owner="one", lease=LEASE) is None


# --- settling ------------------------------------------------------------------------------------


async def test_a_claim_is_settled_in_parts(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a", "b", "c"))
    await groups.settle([Settlement(group.id, claimed.token, done=(2,), pending=(1, 3))])
    assert (await groups.figures(group)).in_flight == 2
    assert await groups.floor() == 1
    await groups.settle([Settlement(group.id, claimed.token, done=(1,), pending=(3,))])
    assert await groups.floor() == 3
    await groups.settle([Settlement(group.id, claimed.token, done=(3,), pending=())])
    assert await groups.floor() == 4


async def test_a_failed_event_waits_and_is_handed_out_with_its_attempt_and_errors(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    messages = await fill(store, "a", "b")
    claimed = await claim(groups, group, messages)
    await groups.settle([Settlement(group.id, claimed.token, done=(1,), again=[again(2)], pending=())])
    assert (await groups.figures(group)).retries == 1
    (held,) = await hold(groups, group)
    assert (held.message.seq, held.message.body, held.attempt, held.errors) == (2, messages[1].body, 2, [ERROR])
    assert await hold(groups, group) == []
    second = [*held.errors, ERROR]
    await groups.settle([Settlement(group.id, held.token, again=[Again(2, 2, 0, second)])])
    (held,) = await hold(groups, group)
    assert (held.attempt, held.errors) == (3, second)
    assert await groups.settle([Settlement(group.id, held.token, done=(2,))]) == set()
    assert (await groups.figures(group))[2:] == (0, 0, 0)


async def test_a_retry_is_handed_out_when_it_is_due_and_not_before(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a", "b"))
    later = [again(1, delay=3_600_000_000), again(2, delay=-1)]
    await groups.settle([Settlement(group.id, claimed.token, again=later, pending=())])
    (look,) = await groups.look([group.id])
    assert look.retry_due is not None
    assert look.retry_due <= look.now
    assert seqs(await hold(groups, group)) == [2]
    (look,) = await groups.look([group.id])
    assert look.retry_due is not None
    assert look.now < look.retry_due <= look.now + 3_600_000_000


async def test_an_attempt_that_was_given_back_does_not_count(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a"))
    await groups.settle([Settlement(group.id, claimed.token, again=[Again(1, 0, 0, [])], pending=())])
    (held,) = await hold(groups, group)
    assert held.attempt == 1
    await groups.settle([Settlement(group.id, held.token, again=[Again(1, held.attempt - 1, 0, [])])])
    (held,) = await hold(groups, group)
    assert held.attempt == 1


async def test_settling_in_the_callers_transaction_is_undone_with_it(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a"))
    settlement = Settlement(group.id, claimed.token, done=(1,), pending=())
    async with store._writer() as connection:
        transaction = await connection.begin()
        await groups.settle_in(connection, settlement)
        await transaction.rollback()
    assert (await groups.figures(group)).in_flight == 1
    async with store._writer() as connection, connection.begin():
        await groups.settle_in(connection, settlement)
    assert (await groups.figures(group)).in_flight == 0
    with pytest.raises(LeaseLost, match="no longer held: 1"):
        async with store._writer() as connection, connection.begin():
            await groups.settle_in(connection, settlement)


# --- leases --------------------------------------------------------------------------------------


async def test_an_expired_lease_becomes_retries_and_its_owner_cannot_settle(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a", "b", "c"), lease=OVER)
    await groups.settle([Settlement(group.id, claimed.token, done=(2,), pending=(1, 3))])
    assert await groups.rescue() == {group.id}
    held = await hold(groups, group)
    assert [(item.message.seq, item.attempt) for item in held] == [(1, 2), (3, 2)]
    assert [(error["type"], error["node"], error["attempt"]) for error in held[0].errors] == [("LeaseLost", "one", 1)]
    assert await groups.settle([Settlement(group.id, claimed.token, done=(1,), pending=(3,))]) == {(claimed.token, 1)}
    assert (await groups.figures(group)).in_flight == 2
    assert await groups.rescue() == set()


async def test_a_lease_that_has_ended_can_be_settled_as_long_as_nobody_took_over(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a"), lease=OVER)
    assert await groups.settle([Settlement(group.id, claimed.token, done=(1,), pending=())]) == set()


async def test_a_renewed_lease_goes_on_and_a_lost_one_is_told(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a", "b"), lease=OVER)
    stranger = uuid4()
    assert await groups.renew([claimed.token, stranger], [], lease=LEASE) == {stranger}
    assert await groups.rescue() == set()
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1), again(2)], pending=())])
    held = await hold(groups, group, lease=OVER)
    mine = [HeldRetry(group.id, item.message.seq, item.token) for item in held]
    assert await groups.renew([], mine, lease=LEASE) == set()
    assert await hold(groups, group) == []
    assert await groups.renew([], [HeldRetry(group.id, 1, stranger)], lease=LEASE) == {HeldRetry(group.id, 1, stranger)}


async def test_a_retry_whose_holder_is_silent_is_handed_out_again_and_the_attempt_counts(
    store: Store, groups: Groups
) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a"))
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1)], pending=())])
    (first,) = await hold(groups, group, lease=OVER)
    (second,) = await hold(groups, group)
    assert (first.attempt, second.attempt) == (2, 3)
    assert [error["type"] for error in second.errors] == ["ValueError", "LeaseLost"]
    assert await groups.settle([Settlement(group.id, first.token, done=(1,))]) == {(first.token, 1)}
    assert await groups.settle([Settlement(group.id, second.token, done=(1,))]) == set()


async def test_an_event_that_ends_its_holders_is_handed_out_alone_and_dies_at_last(
    store: Store, groups: Groups
) -> None:
    group = await groups.ensure("g", ["#"], after=0, max_attempts=4)
    await claim(groups, group, await fill(store, "a", "b", "c"), lease=OVER)
    await groups.rescue()
    assert seqs(await hold(groups, group, lease=OVER)) == [1, 2, 3]
    alone = [await hold(groups, group) for _ in range(3)]
    assert [[(item.message.seq, item.attempt) for item in held] for held in alone] == [[(1, 3)], [(2, 3)], [(3, 3)]]
    for (held,) in (alone[0], alone[2]):
        await groups.settle([Settlement(group.id, held.token, done=(held.message.seq,))])
    await groups.renew([], [HeldRetry(group.id, 2, alone[1][0].token)], lease=OVER)
    (held,) = await hold(groups, group, lease=OVER)
    assert (held.message.seq, held.attempt) == (2, 4)
    assert await hold(groups, group) == []
    (letter,) = await groups.dead_letters(group)
    assert (letter.message.seq, letter.attempt) == (2, 4)
    assert [error["type"] for error in letter.errors] == ["LeaseLost"] * 4
    assert (await groups.figures(group))[2:] == (0, 0, 1)


async def test_many_hold_retries_at_once_and_each_is_held_once(open_another: OpenStore) -> None:
    stores = [await open_another() for _ in range(3)]
    groups = stores[0].groups
    group = await groups.ensure("g", ["#"], after=0)
    messages = await fill(stores[0], *["a"] * 30)
    claimed = await claim(groups, group, messages)
    await groups.settle([Settlement(group.id, claimed.token, again=[again(m.seq) for m in messages], pending=())])
    got: list[int] = []
    while len(got) < 30:
        answers = await asyncio.gather(*(hold(store.groups, group, limit=5) for store in stores for _ in range(2)))
        got += [seq for held in answers for seq in seqs(held)]
    assert sorted(got) == list(range(1, 31))


# --- dead letters --------------------------------------------------------------------------------


async def test_dead_letters_keep_the_event_and_its_errors_after_the_log_has_lost_it(
    store: Store, groups: Groups
) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    messages = await fill(store, "a", "b")
    claimed = await claim(groups, group, messages)
    await groups.settle(
        [Settlement(group.id, claimed.token, dead=[Death(1, 1, [ERROR])], again=[again(2)], pending=())]
    )
    assert await store.trim(before=None, keep=0) == 2
    (letter,) = await groups.dead_letters(group)
    assert (letter.message.body, letter.message.message_id) == (messages[0].body, messages[0].message_id)
    assert (letter.attempt, letter.errors) == (1, [ERROR])
    (held,) = await hold(groups, group)
    await groups.settle([Settlement(group.id, held.token, dead=[Death(2, 2, [ERROR, ERROR])])])
    assert [(item.message.seq, item.attempt) for item in await groups.dead_letters(group)] == [(1, 1), (2, 2)]
    assert [item.message.seq for item in await groups.dead_letters(group, after=letter.id)] == [2]


async def test_dead_letters_are_tried_again_from_the_first_attempt_or_forgotten(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0, max_attempts=2)
    claimed = await claim(groups, group, await fill(store, "a", "b"))
    dead = [Death(seq, 2, [ERROR, ERROR]) for seq in (1, 2)]
    await groups.settle([Settlement(group.id, claimed.token, dead=dead, pending=())])
    assert await groups.revive(group, [1, 99]) == 1
    (held,) = await hold(groups, group)
    assert (held.message.seq, held.attempt, held.errors) == (1, 1, [ERROR, ERROR])
    assert await groups.discard(group, [1, 2]) == 1
    assert await groups.dead_letters(group) == []


# --- in the order of keys ------------------------------------------------------------------------


async def test_an_event_that_is_revived_while_it_is_read_again_wedges_nothing(store: Store, groups: Groups) -> None:
    """Its row is among the retries already when the new attempt fails, or its lease ends."""
    log = await fill(store, "a", "a", keys=["k", "k"])
    for name, ordered_by, lease in (("failing", None, LEASE), ("ending", None, OVER), ("ordered", "key", LEASE)):
        group = await groups.ensure(name, ["#"], after=0, ordered_by=ordered_by)  # type: ignore[arg-type]
        first = await claim(groups, group, log[:1])
        await groups.settle([Settlement(group.id, first.token, dead=[Death(1, 1, [ERROR])], pending=())])
        await groups.reset(name, 0)
        assert await groups.revive(group, [1]) == 1
        group = await groups.get(name)
        again_read = await claim(groups, group, log, lease=lease)
        if lease == LEASE and again_read.seqs:
            assert not await groups.settle(
                [Settlement(group.id, again_read.token, done=[2], again=[again(1)], pending=())]
            )
        await groups.rescue()
        handed_out = []
        while held := await hold(groups, group):
            handed_out += seqs(held)
            await groups.settle([Settlement(group.id, held[0].token, done=seqs(held))])
        assert handed_out == ([1] if name == "failing" else [1, 2])


async def test_a_key_in_flight_whose_followers_wait_does_not_hide_what_is_due_of_other_keys(
    store: Store, groups: Groups
) -> None:
    log = await fill(store, *"aaaa", keys=["slow", "other", "slow", "slow"])
    group = await groups.ensure("g", ["#"], after=0, ordered_by="key")
    first = await claim(groups, group, log[:2])
    await claim(groups, group._replace(cursor=2), log[2:])  # they wait for the first
    await groups.settle([Settlement(group.id, first.token, again=[again(2)], pending=[1])])
    assert seqs(await hold(groups, group, limit=1)) == [2]


@pytest.mark.parametrize("fails_first", [True, False])
async def test_an_event_that_fails_while_retries_are_looked_for_is_not_overtaken_by_its_key(
    open_another: OpenStore, monkeypatch: pytest.MonkeyPatch, *, fails_first: bool
) -> None:
    """It went from the lease to the retries between two looks, and was seen in neither."""
    store, other = await open_another(), await open_another()
    if store.engine.dialect.name == "sqlite":
        pytest.skip("it has one writer")
    log = await fill(store, "a", "a", keys=["k", "k"])
    group = await store.groups.ensure("g", ["#"], after=0, ordered_by="key")
    first = await claim(store.groups, group, log[:1])
    await claim(store.groups, group._replace(cursor=1), log[1:])
    look = other.groups._keys_in_flight

    async def fail() -> set[str]:
        await store.groups.settle([Settlement(group.id, first.token, again=[again(1, delay=60_000_000)], pending=())])
        return set()

    async def look_meanwhile(connection: Any, group_id: int) -> set[str]:
        if fails_first:
            await fail()
        taken = await look(connection, group_id)
        return taken if fails_first else taken | await fail()

    monkeypatch.setattr(other.groups, "_keys_in_flight", look_meanwhile)
    assert await hold(other.groups, group) == []


async def test_what_is_held_is_found_behind_many_whose_attempts_are_over(store: Store, groups: Groups) -> None:
    log = await fill(store, *"aaaa")
    group = await groups.ensure("g", ["#"], after=0, max_attempts=2)
    first = await claim(groups, group, log)
    failed = [again(seq, attempt=2) for seq in (1, 2, 3)]
    await groups.settle([Settlement(group.id, first.token, again=[*failed, again(4)], pending=())])
    assert seqs(await hold(groups, group, limit=1)) == [4]
    assert len(await groups.dead_letters(group)) == 3


async def test_of_a_key_one_event_after_another_is_handed_out_and_other_keys_flow(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0, ordered_by="key")
    messages = await fill(store, *["a"] * 6, keys=["x", "y", "x", "y", "z", None])
    first = await claim(groups, group, messages[:2])
    second = await claim(groups, await groups.get("g"), messages[2:])
    assert (first.seqs, second.seqs) == ((1, 2), (5, 6))
    assert await hold(groups, group) == []
    await groups.settle([Settlement(group.id, first.token, done=(2,), pending=(1,))])
    (held,) = await hold(groups, group)
    assert (held.message.seq, held.attempt) == (4, 1)
    await groups.settle([Settlement(group.id, first.token, done=(1,), pending=())])
    assert seqs(await hold(groups, group)) == [3]


async def test_a_failing_event_holds_back_those_of_its_key_only(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0, ordered_by="key")
    messages = await fill(store, *["a"] * 4, keys=["x", "x", "y", "x"])
    claimed = await claim(groups, group, messages[:1])
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1, delay=3_600_000_000)], pending=())])
    claimed = await claim(groups, await groups.get("g"), messages[1:])
    assert claimed.seqs == (3,)
    assert await hold(groups, group) == []
    assert await groups.blocked_keys(group) == [("x", 1, 3)]


async def test_a_dead_letter_that_is_revived_while_its_group_is_deleted_leaves_nothing(
    open_another: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion had passed the retries when the new one was written, and it stayed behind the group for ever."""
    store, other = await open_another(), await open_another()
    if store.engine.dialect.name == "sqlite":
        pytest.skip("it has one writer")
    log = await fill(store, "a")
    group = await store.groups.ensure("g", ["#"], after=0)
    claimed = await claim(store.groups, group, log)
    await store.groups.settle([Settlement(group.id, claimed.token, dead=[Death(1, 1, [ERROR])], pending=())])
    deletions: list[asyncio.Task[None]] = []
    forget = other.groups._remove_retries

    async def delete_meanwhile(*arguments: Any) -> None:
        await forget(*arguments)
        deletions.append(asyncio.create_task(store.groups.delete("g")))
        await asyncio.wait(deletions, timeout=0.2)  # it waits for a lock of this transaction, or has passed it

    monkeypatch.setattr(other.groups, "_remove_retries", delete_meanwhile)
    assert await other.groups.revive(group, [1]) == 1
    await deletions[0]
    assert await store.groups.retries(group) == []


# --- retention -----------------------------------------------------------------------------------


async def test_what_the_slowest_group_needs_is_known(store: Store, groups: Groups) -> None:
    assert await groups.floor() is None
    slow = await groups.ensure("slow", ["#"], after=1)
    fast = await groups.ensure("fast", ["#"], after=0)
    messages = await fill(store, "a", "b", "c")
    claimed = await claim(groups, fast, messages)
    assert await groups.floor() == 1
    await groups.settle([Settlement(fast.id, claimed.token, done=(1, 2, 3), pending=())])
    assert await groups.floor() == 2
    await groups.delete(slow.name)
    assert await groups.floor() == 4


async def overtaken(store: Store, *, keep: int) -> int:
    """Remove what is beyond the newest `keep`, whatever groups still need; return how many."""
    return await store.trim(before=None, keep=keep, overtake=await store.now() + 3_600_000_000)


async def test_retention_waits_for_what_the_slowest_group_has_not_read(store: Store, groups: Groups) -> None:
    slow = await groups.ensure("slow", ["a"], after=2)
    await groups.ensure("fast", ["#"], after=4)
    messages = await fill(store, "a", "b", "c", "d", "e")
    assert await store.trim(before=None, keep=1) == 2
    assert (await store.head()).first_seq == 3
    assert await store.trim(before=await store.now() + 1, keep=None) == 0
    await claim(groups, slow, messages[2:4])
    assert await store.trim(before=None, keep=1) == 0
    await groups.delete("slow")
    assert await store.trim(before=None, keep=1) == 2


async def test_retention_waits_for_what_is_in_flight_and_not_for_retries(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, "a", "b", "c"))
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1)], pending=(2, 3))])
    assert await store.trim(before=None, keep=0) == 1
    await groups.settle([Settlement(group.id, claimed.token, done=(2, 3), pending=())])
    assert await store.trim(before=None, keep=0) == 2
    assert seqs(await hold(groups, group)) == [1]


async def test_retention_does_not_wait_with_events_from_before_a_time(store: Store, groups: Groups) -> None:
    await groups.ensure("g", ["#"], after=0)
    await fill(store, "a", "b")
    time = await store.now() + 1
    await eventually(lambda: is_past(store, time))
    await fill(store, "c")
    assert await store.trim(before=None, keep=0, overtake=time) == 2
    assert await store.trim(before=None, keep=0, overtake=time) == 0
    assert [message.seq for message in (await store.read(0, 10)).messages] == [3]


async def is_past(store: Store, time: int) -> bool:
    return await store.now() > time


async def test_a_group_that_retention_has_overtaken_passes_over_and_counts_what_it_lost(
    store: Store, groups: Groups
) -> None:
    group = await groups.ensure("g", ["#"], after=1)
    await fill(store, "a", "b", "c", "d")
    assert await overtaken(store, keep=1) == 3
    moved = await groups.pass_over(group, (await store.head()).first_seq)
    assert (moved.cursor, moved.lost) == (3, 2)


async def test_what_retention_removed_in_flight_is_lost_if_its_attempt_fails_and_only_then(
    store: Store, groups: Groups
) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    claimed = await claim(groups, group, await fill(store, *["a"] * 5))
    assert await overtaken(store, keep=1) == 4
    assert (await groups.get("g")).lost == 0
    failed = Settlement(group.id, claimed.token, done=(1,), again=[again(2), again(5)], pending=(3, 4))
    assert await groups.settle([failed]) == set()
    assert (await groups.get("g")).lost == 1
    dead = Settlement(group.id, claimed.token, done=(4,), dead=[Death(3, 1, [ERROR])], pending=())
    assert await groups.settle([dead]) == set()
    assert (await groups.get("g")).lost == 2
    assert (seqs(await hold(groups, group)), await groups.dead_letters(group)) == ([5], [])


async def test_what_a_lease_that_ended_held_and_retention_removed_is_lost(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    await claim(groups, group, await fill(store, "a", "b"), lease=OVER)
    await overtaken(store, keep=1)
    assert await groups.rescue() == {group.id}
    assert seqs(await hold(groups, group)) == [2]
    assert (await groups.get("g")).lost == 1


async def test_a_ttl_waits_for_no_group_and_blocks_none(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0, ordered_by="key")
    await store.append([draft(key="k", ttl=3_600), draft(key="k", ttl=3_600), draft(key="k"), draft()])
    messages = (await store.read(0, 10)).messages
    claimed = await claim(groups, group, messages)
    await store._remove([1, 2])  # as when their time is over
    dead = [Death(2, 1, [ERROR])]
    again_ = [again(1), again(3)]
    await groups.settle([Settlement(group.id, claimed.token, again=again_, dead=dead, pending=(4,))])
    assert seqs(await hold(groups, group)) == [3]
    assert await groups.dead_letters(group) == []
    assert (await groups.get("g")).lost == 0


async def test_a_retry_whose_ttl_is_over_is_handed_out_no_more(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    await store.append([draft(ttl=0.05), draft()])
    claimed = await claim(groups, group, (await store.read(0, 10)).messages)
    await groups.settle([Settlement(group.id, claimed.token, again=[again(1), again(2)], pending=())])
    await eventually(lambda: has_expired(store))
    assert seqs(await hold(groups, group)) == [2]
    assert (await groups.figures(group)).retries == 0


async def has_expired(store: Store) -> bool:
    return len((await store.read(0, 10)).messages) == 1


async def test_figures_say_how_far_behind_a_group_is(store: Store, groups: Groups) -> None:
    group = await groups.ensure("g", ["#"], after=0)
    assert await groups.figures(group) == (0, 0.0, 0, 0, 0)
    await fill(store, "a", "b", "c")
    figures: Any = await groups.figures(group)
    assert figures.lag == 3
    assert figures.lag_seconds >= 0


async def test_the_figures_of_all_groups_are_those_of_each(store: Store, groups: Groups) -> None:
    """Given groups in different states, when all are looked at, each has what it has alone."""
    messages = await fill(store, *"abcdef")
    for name in ("idle", "busy", "behind"):
        await groups.ensure(name, ["#"], after=0)
    busy, behind = await groups.get("busy"), await groups.get("behind")
    claimed = await claim(groups, busy, messages)
    dead, back = [Death(1, 1, [ERROR])], [again(2), again(3, delay=60_000_000)]
    await groups.settle([Settlement(busy.id, claimed.token, dead=dead, again=back, pending=claimed.seqs[3:])])
    await hold(groups, busy, limit=1)
    await claim(groups, behind, messages[:2])

    figures = await groups.all_figures()

    assert figures[busy.id][:1] + figures[busy.id][2:] == (0, 4, 1, 1)
    for name in ("idle", "busy", "behind"):
        group = await groups.get(name)
        alone = await groups.figures(group)
        assert figures[group.id]._replace(lag_seconds=0) == alone._replace(lag_seconds=0)
        assert 0 <= figures[group.id].lag_seconds <= alone.lag_seconds


async def test_the_figures_of_a_group_tell_how_long_it_waits_also_behind_a_gap(store: Store, groups: Groups) -> None:
    """Given a group whose next event was removed, then what waits is the one after it."""
    await store.append([draft(ttl=0.000_001), draft(), draft()])
    group = await groups.ensure("g", ["#"], after=0)
    await eventually(lambda: _removes(store))

    (figures,) = (await groups.all_figures()).values()

    assert figures.lag == 3
    assert 0 < figures.lag_seconds <= (await groups.figures(group)).lag_seconds


async def _removes(store: Store) -> bool:
    return await store.remove_expired() == 1
