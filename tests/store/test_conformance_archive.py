"""Every store: the archive of groups, written with what settles their events, listed, removed by age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import delete, update

from eventbus_fastapi.errors import LeaseLost, NotFound
from eventbus_fastapi.events import Message
from eventbus_fastapi.store import Store, pages
from eventbus_fastapi.store.archive import ArchiveEntry, ArchiveFilter
from eventbus_fastapi.store.group import Again, ArchiveMode, Death, Ended, Ending, Group, Settlement
from tests.drafts import draft
from tests.waiting import eventually

LEASE = 60.0
OVER = -1.0
"""A lease that has ended when it begins."""
CONNECT = {"type": "httpx.ConnectError", "message": "refused"}
VALUE = {"type": "ValueError", "message": "no"}
MODES: tuple[ArchiveMode, ...] = ("all", "failed", "none")


async def make_group(store: Store, name: str = "g", archive: ArchiveMode = "all", max_attempts: int = 5) -> Group:
    return await store.groups.ensure(name, ["#"], after=0, archive=archive, max_attempts=max_attempts)


async def claim(store: Store, group: Group, *topics: str, lease: float = LEASE) -> tuple[list[Message], Settlement]:
    """Publish events of these topics and claim what is left of the log for a group."""
    if topics:
        await store.append([draft(topic, key="k") for topic in topics])
    group = await store.groups.get(group.name)
    messages = (await store.read(group.cursor, 1_000)).messages
    claimed = await store.groups.claim(group, messages, up_to=messages[-1].seq, owner="one", lease=lease)
    assert claimed is not None
    return messages, Settlement(group.id, claimed.token, pending=())


def ended(message: Message, outcome: Ended = "acked", *errors: dict[str, Any]) -> Ending:
    return Ending(message, outcome, len(errors) or 1, 1_500, "one", errors)


async def finish(
    store: Store, group: Group, *topics: str, outcome: Ended = "acked", errors: Sequence[dict[str, Any]] = ()
) -> None:
    """Publish events of these topics, which end in the group at once."""
    messages, settlement = await claim(store, group, *topics)
    endings = [ended(message, outcome, *errors) for message in messages]
    await store.groups.settle([settlement._replace(done=[message.seq for message in messages], endings=endings)])


async def hold(store: Store, group: Group, lease: float = LEASE) -> tuple[Message, Settlement]:
    (held,) = await store.groups.hold_retries(group, limit=10, owner="two", lease=lease)
    return held.message, Settlement(group.id, held.token)


async def archived(store: Store, group: Group | None = None, **wanted: Any) -> list[ArchiveEntry]:
    page = await store.archive.find(group, ArchiveFilter(**wanted))
    assert page.next is None
    return page.entries


async def seqs(store: Store, group: Group | None = None, **wanted: Any) -> list[int]:
    return [entry.seq for entry in await archived(store, group, **wanted)]


# --- written with a settlement -------------------------------------------------------------------


async def test_an_ending_says_how_when_where_and_after_which_errors(store: Store) -> None:
    group = await make_group(store)
    before = await store.now()
    ((message,), settlement) = await claim(store, group, "order.placed")
    ending = Ending(message, "discarded", 2, 1_500, "one", [CONNECT, VALUE])
    assert await store.groups.settle([settlement._replace(done=[1], endings=[ending])]) == set()
    (entry,) = await archived(store, group)
    assert entry[1:10] == (group.id, 1, message.message_id, "order.placed", "k", "discarded", 2, 1_500, "one")
    assert entry.errors == [CONNECT, VALUE]
    assert before <= entry.finished_at <= await store.now()


async def test_the_event_of_an_ending_is_shown_as_it_was(store: Store) -> None:
    group = await make_group(store)
    await store.append([draft(ttl=3600)])
    ((message,), settlement) = await claim(store, group)
    await store.groups.settle([settlement._replace(done=[1], endings=[ended(message)])])
    (entry,) = await archived(store)
    found = await store.archive.get(entry.id)
    assert found.entry == entry
    for name in ("seq", "message_id", "topic", "key", "body", "content_type", "metadata", "created_at", "expires_at"):
        assert getattr(found.message, name) == getattr(message, name)
    with pytest.raises(NotFound, match="nothing in the archive has the id 4711"):
        await store.archive.get(4711)


async def test_endings_of_a_claim_are_written_with_the_rest_of_its_settlement(store: Store) -> None:
    group = await make_group(store)
    (one, two, _), settlement = await claim(store, group, "a", "b", "c")
    first = settlement._replace(done=[1], pending=(2, 3), endings=[ended(one)])
    await store.groups.settle([first])
    dead = [Death(2, 1, [VALUE])]
    last = settlement._replace(dead=dead, again=[Again(3, 1, 0, [VALUE])], endings=[ended(two, "dead", VALUE)])
    await store.groups.settle([last])
    assert [(entry.seq, entry.outcome) for entry in await archived(store, group)] == [(1, "acked"), (2, "dead")]
    assert [letter.message.seq for letter in await store.groups.dead_letters(group)] == [2]


async def test_the_ending_of_a_retry_is_written_with_its_settlement(store: Store) -> None:
    group = await make_group(store)
    _, settlement = await claim(store, group, "a")
    await store.groups.settle([settlement._replace(again=[Again(1, 1, 0, [VALUE])])])
    message, held = await hold(store, group)
    await store.groups.settle([held._replace(done=[1], endings=[ended(message, "acked", VALUE)])])
    assert [(entry.seq, entry.outcome, entry.errors) for entry in await archived(store)] == [(1, "acked", [VALUE])]


async def test_many_ranges_are_settled_and_archived_in_one_commit(store: Store) -> None:
    group, other = await make_group(store), await make_group(store, "other", "none")
    (one, two), settlement = await claim(store, group, "a", "b")
    _, plain = await claim(store, other)
    done = settlement._replace(done=[1, 2], endings=[ended(one), ended(two)])
    assert await store.groups.settle([done, plain._replace(done=[1, 2])]) == set()
    assert await seqs(store) == [1, 2]
    assert (await store.groups.figures(other)).in_flight == 0


async def test_a_stale_token_archives_nothing(store: Store) -> None:
    group = await make_group(store)
    ((message,), settlement) = await claim(store, group, "a", lease=OVER)
    await store.groups.rescue()
    late = settlement._replace(done=[1], endings=[ended(message)])
    assert await store.groups.settle([late]) == {(settlement.token, 1)}
    _, lost = await hold(store, group, lease=OVER)
    await hold(store, group)
    assert await store.groups.settle([lost._replace(done=[1], endings=[ended(message)])]) == {(lost.token, 1)}
    assert await archived(store) == []


async def test_a_transaction_of_the_handler_archives_what_it_settles_or_nothing(store: Store) -> None:
    group = await make_group(store)
    ((message,), settlement) = await claim(store, group, "a")
    done = settlement._replace(done=[1], endings=[ended(message)])
    async with store._writer() as connection:
        async with connection.begin() as transaction:
            await store.groups.settle_in(connection, done)
            await transaction.rollback()
        async with connection.begin():
            await store.groups.settle_in(connection, done)
        async with connection.begin() as transaction:
            with pytest.raises(LeaseLost):
                await store.groups.settle_in(connection, done)
            await transaction.rollback()
    assert await seqs(store) == [1]


async def test_an_event_that_the_log_has_lost_before_it_ends_is_archived_all_the_same(store: Store) -> None:
    group = await make_group(store)
    ((message,), settlement) = await claim(store, group, "a")
    async with store._writer() as connection, connection.begin():
        await connection.execute(delete(store.tables.event))
    await store.groups.settle([settlement._replace(done=[1], endings=[ended(message)])])
    (entry,) = await archived(store)
    assert (await store.archive.get(entry.id)).message.body == message.body


async def test_a_dead_letter_that_is_tried_again_and_acked_has_ended_twice(store: Store) -> None:
    group = await make_group(store)
    ((message,), settlement) = await claim(store, group, "a")
    endings = [ended(message, "dead", VALUE)]
    await store.groups.settle([settlement._replace(dead=[Death(1, 1, [VALUE])], endings=endings)])
    await store.groups.revive(group, [1])
    again, held = await hold(store, group)
    await store.groups.settle([held._replace(done=[1], endings=[ended(again, "acked", VALUE)])])
    assert [(entry.seq, entry.outcome) for entry in await archived(store)] == [(1, "dead"), (1, "acked")]


async def test_the_newest_errors_are_kept(store: Store) -> None:
    group = await make_group(store)
    errors = [{**VALUE, "attempt": number} for number in range(1, 31)]
    await finish(store, group, "a", errors=errors)
    (entry,) = await archived(store)
    assert [error["attempt"] for error in entry.errors] == list(range(11, 31))


# --- written by the store itself -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
async def test_an_event_whose_holders_are_lost_until_no_attempt_is_left_ends_as_dead(
    store: Store, mode: ArchiveMode
) -> None:
    group = await make_group(store, archive=mode, max_attempts=2)
    await claim(store, group, "a", lease=OVER)
    await store.groups.rescue()
    message, _ = await hold(store, group, lease=OVER)
    assert await store.groups.hold_retries(group, limit=1, owner="three", lease=LEASE) == []
    assert [letter.message.seq for letter in await store.groups.dead_letters(group)] == [1]
    found = await archived(store, group)
    if mode == "none":
        assert found == []
        return
    (entry,) = found
    assert (entry.outcome, entry.attempt, entry.duration, entry.owner) == ("dead", 2, None, "two")
    assert [error["type"] for error in entry.errors] == ["LeaseLost", "LeaseLost"]
    assert (await store.archive.get(entry.id)).message.body == message.body


async def test_what_the_group_keeps_now_counts_not_what_a_node_knows(store: Store) -> None:
    known = await make_group(store, archive="none", max_attempts=1)
    await store.groups.ensure("g", ["#"], after=0, archive="failed", max_attempts=1, is_declared=True)
    await claim(store, known, "a", lease=OVER)
    await store.groups.rescue()
    await store.groups.hold_retries(known, limit=1, owner="two", lease=LEASE)
    assert [(entry.outcome, entry.owner) for entry in await archived(store)] == [("dead", "one")]


async def test_a_retry_whose_ttl_is_over_has_not_ended(store: Store) -> None:
    group = await make_group(store)
    _, settlement = await claim(store, group, "a")
    await store.groups.settle([settlement._replace(again=[Again(1, 1, 0, [VALUE])])])
    async with store._writer() as connection, connection.begin():
        await connection.execute(update(store.tables.retry).values(expires_at=1))
    assert await store.groups.hold_retries(group, limit=1, owner="two", lease=LEASE) == []
    assert await store.groups.retries(group) == []
    assert await archived(store) == []


# --- finding -------------------------------------------------------------------------------------


async def test_endings_are_found_by_group_pattern_outcome_and_last_error(store: Store) -> None:
    group, other = await make_group(store), await make_group(store, "other")
    await finish(store, group, "order.placed", "user.created", errors=[VALUE, CONNECT])
    await finish(store, group, "order.paid", outcome="discarded", errors=[VALUE])
    await finish(store, other)
    assert (await seqs(store, group), await seqs(store, other)) == ([1, 2, 3], [1, 2, 3])
    assert await seqs(store) == [1, 2, 3, 1, 2, 3]
    assert await seqs(store, group, patterns=("order.*",)) == [1, 3]
    assert await seqs(store, group, outcome="discarded") == [3]
    assert await seqs(store, outcome="dead") == []
    assert await seqs(store, error="ConnectError") == await seqs(store, error="httpx.ConnectError") == [1, 2]
    assert await seqs(store, error="Error") == []


async def test_endings_are_found_by_tags(store: Store) -> None:
    group = await make_group(store)
    await store.append([draft(tags=["mail", "eu"]), draft(tags=["mail"]), draft()])
    await finish(store, group)
    assert await seqs(store, tags=("mail",)) == [1, 2]
    assert await seqs(store, tags=("mail", "eu")) == [1]
    assert [entry.tags for entry in await archived(store)] == [("mail", "eu"), ("mail",), ()]


async def test_endings_are_found_by_their_time(store: Store) -> None:
    group = await make_group(store)
    await finish(store, group, "a")
    time = await _next_moment(store)
    await finish(store, group, "b")
    assert (await seqs(store, since=time), await seqs(store, until=time)) == ([2], [1])


async def test_pages_lead_through_all_of_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 2)
    group = await make_group(store)
    await finish(store, group, *["a", "b"] * 4)
    found, after = [], 0
    while True:
        page = await store.archive.find(group, ArchiveFilter(patterns=("b",)), after=after, limit=3)
        found += [entry.seq for entry in page.entries]
        if page.next is None:
            break
        after = page.next
    assert found == [2, 4, 6, 8]


# --- the end -------------------------------------------------------------------------------------


async def test_the_oldest_are_removed_by_age_in_batches(store: Store) -> None:
    group = await make_group(store)
    await finish(store, group, "a", "b", "c")
    time = await _next_moment(store)
    await finish(store, group, "d")
    assert await store.archive.remove(before=time, limit=2) == 2
    assert await store.archive.remove(before=time, limit=2) == 1
    assert await store.archive.remove(before=time, limit=2) == 0
    assert await seqs(store) == [4]


async def test_dead_letters_are_removed_by_age_in_batches(store: Store) -> None:
    group = await make_group(store)
    _, settlement = await claim(store, group, "a", "b", "c")
    await store.groups.settle([settlement._replace(dead=[Death(seq, 1, [VALUE]) for seq in (1, 2, 3)])])
    time = await _next_moment(store)
    _, settlement = await claim(store, group, "d")
    await store.groups.settle([settlement._replace(dead=[Death(4, 1, [VALUE])])])
    assert await store.dead_letters.remove(before=time, limit=2) == 2
    assert await store.dead_letters.remove(before=time, limit=2) == 1
    assert await store.dead_letters.remove(before=time, limit=2) == 0
    assert [letter.message.seq for letter in await store.groups.dead_letters(group)] == [4]


async def test_a_deleted_group_leaves_nothing_in_the_archive(store: Store) -> None:
    group, other = await make_group(store), await make_group(store, "other")
    await finish(store, group, "a", "b")
    await finish(store, other)
    await store.groups.delete("g")
    assert [entry.group_id for entry in await archived(store)] == [other.id] * 2


async def _next_moment(store: Store) -> int:
    """Wait until what comes now is later than all before; return the time between."""
    time = await store.now() + 1

    async def has_passed() -> bool:
        return await store.now() > time

    await eventually(has_passed)
    return time
