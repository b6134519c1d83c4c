"""Every store: dead letters by filter, and what waits for a retry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from eventbus_fastapi.errors import NotFound
from eventbus_fastapi.store import Store, pages
from eventbus_fastapi.store.dead_letters import DeadFilter
from eventbus_fastapi.store.group import Again, Death, Group, Settlement
from tests.drafts import draft
from tests.waiting import eventually

LEASE = 60.0
CONNECT = {"type": "httpx.ConnectError", "message": "refused"}
VALUE = {"type": "ValueError", "message": "no"}


async def claim(store: Store, group: Group) -> Settlement:
    """Claim what is left of the log for a group."""
    group = await store.groups.get(group.name)
    messages = (await store.read(group.cursor, 1_000)).messages
    claimed = await store.groups.claim(group, messages, up_to=messages[-1].seq, owner="one", lease=LEASE)
    assert claimed is not None
    return Settlement(group.id, claimed.token, pending=())


async def kill(store: Store, group: Group, *topics: str, errors: Sequence[dict[str, Any]] = (VALUE,)) -> None:
    """Publish events of these topics, which die in the group at once."""
    await store.append([draft(topic) for topic in topics])
    claimed = await claim(store, group)
    last = (await store.head()).last_seq
    seqs = range(last - len(topics) + 1, last + 1)
    await store.groups.settle([claimed._replace(dead=[Death(seq, len(errors), list(errors)) for seq in seqs])])


async def found(store: Store, group: Group | None, **wanted: Any) -> list[int]:
    page = await store.dead_letters.find(group, DeadFilter(**wanted))
    assert page.next is None
    return [entry.seq for entry in page.entries]


@pytest.fixture
async def group(store: Store) -> Group:
    return await store.groups.ensure("g", ["#"], after=0, max_attempts=5)


# --- finding -------------------------------------------------------------------------------------


async def test_a_list_says_what_died_of_what_and_when(store: Store, group: Group) -> None:
    before = await store.now()
    await store.append([draft("order.placed", key="k")])
    claimed = await claim(store, group)
    await store.groups.settle([claimed._replace(dead=[Death(1, 2, [CONNECT, VALUE])])])
    (message,) = (await store.read(0, 1)).messages
    (entry,) = (await store.dead_letters.find(group, DeadFilter())).entries
    assert entry[1:7] == (group.id, 1, message.message_id, "order.placed", "k", 2)
    assert entry.errors == [CONNECT, VALUE]
    assert before <= entry.died_at <= await store.now()


async def test_they_are_found_by_tags(store: Store, group: Group) -> None:
    await store.append([draft(tags=["billing", "eu"]), draft(tags=["eu"]), draft(metadata={"tags": "eu"}), draft()])
    claimed = await claim(store, group)
    await store.groups.settle([claimed._replace(dead=[Death(seq, 1, [VALUE]) for seq in range(1, 5)])])
    assert await found(store, group, tags=("eu",)) == [1, 2]
    assert await found(store, None, tags=("eu", "billing")) == [1]
    assert await found(store, group, tags=("us",)) == []


async def test_they_are_found_by_pattern(store: Store, group: Group) -> None:
    await kill(store, group, "order.placed", "user.created", "order.paid")
    assert await found(store, group, patterns=("order.*",)) == [1, 3]
    assert await found(store, group, patterns=("user.#", "order.paid")) == [2, 3]
    assert await found(store, group, patterns=("nothing",)) == []


async def test_they_are_found_by_their_last_error_with_or_without_its_module(store: Store, group: Group) -> None:
    await kill(store, group, "a", errors=[VALUE, CONNECT])
    await kill(store, group, "a", errors=[CONNECT, VALUE])
    await kill(store, group, "a", errors=[])
    assert await found(store, group, error="httpx.ConnectError") == [1]
    assert await found(store, group, error="ConnectError") == [1]
    assert await found(store, group, error="ValueError") == [2]
    assert await found(store, group, error="Error") == []


async def test_they_are_found_by_attempts(store: Store, group: Group) -> None:
    await kill(store, group, "a")
    await kill(store, group, "a", errors=[VALUE] * 3)
    assert await found(store, group, attempts=2) == [2]


async def test_they_are_found_by_when_they_died(store: Store, group: Group) -> None:
    await kill(store, group, "a")
    time = await store.now() + 1

    async def has_passed() -> bool:
        return await store.now() > time

    await eventually(has_passed)
    await kill(store, group, "a")
    assert await found(store, group, since=time) == [2]
    assert await found(store, group, until=time) == [1]


async def test_those_of_all_groups_are_found_together(store: Store, group: Group) -> None:
    other = await store.groups.ensure("other", ["#"], after=0)
    await kill(store, group, "a")
    await kill(store, other, "a", "b")
    assert await found(store, other) == [2, 3]
    assert await found(store, None) == [1, 2, 3]


async def test_pages_lead_through_all_of_them(store: Store, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 2)
    await kill(store, group, *["a", "b"] * 5)
    seen, after = [], 0
    while True:
        page = await store.dead_letters.find(group, DeadFilter(patterns=("b",)), after=after, limit=2)
        seen += [entry.seq for entry in page.entries]
        if page.next is None:
            break
        after = page.next
    assert seen == [2, 4, 6, 8, 10]


async def test_what_is_rare_is_found_by_going_on(store: Store, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 2)
    monkeypatch.setattr(pages, "PAGES", 2)
    await kill(store, group, *["often"] * 6, "rare")
    page = await store.dead_letters.find(group, DeadFilter(patterns=("rare",)))
    assert page.entries == []
    assert page.next is not None
    page = await store.dead_letters.find(group, DeadFilter(patterns=("rare",)), after=page.next)
    assert [entry.seq for entry in page.entries] == [7]


async def test_one_is_shown_with_payload_and_all_errors(store: Store, group: Group) -> None:
    await kill(store, group, "a", errors=[VALUE, CONNECT])
    letter = await store.groups.dead_letter(group, 1)
    assert (letter.message.body, letter.errors, letter.attempt) == (b"hello", [VALUE, CONNECT], 2)
    with pytest.raises(NotFound, match="no dead letter of group 'g' at seq 2"):
        await store.groups.dead_letter(group, 2)


# --- changing ------------------------------------------------------------------------------------


async def test_those_that_are_meant_are_tried_again_with_all_attempts(store: Store, group: Group) -> None:
    await kill(store, group, "a", "b", "a")
    assert await store.dead_letters.revive(group, DeadFilter(patterns=("a",))) == (2, None)
    held = await store.groups.hold_retries(group, limit=10, owner="two", lease=LEASE)
    assert [(item.message.seq, item.attempt, item.errors) for item in held] == [(1, 1, [VALUE]), (3, 1, [VALUE])]
    assert await found(store, group) == [2]


async def test_those_that_are_meant_are_forgotten(store: Store, group: Group) -> None:
    other = await store.groups.ensure("other", ["#"], after=0)
    await kill(store, other, "a")
    await kill(store, group, "b", "a")
    assert await store.dead_letters.discard(group, DeadFilter(patterns=("a",))) == (1, None)
    assert (await found(store, group), await found(store, other)) == ([2], [1])


async def test_many_are_changed_in_steps(store: Store, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE", 2)
    monkeypatch.setattr(pages, "PAGES", 2)
    await kill(store, group, *["a"] * 7)
    first = await store.dead_letters.revive(group, DeadFilter())
    assert first.done == 4
    assert first.next is not None
    assert await store.dead_letters.revive(group, DeadFilter(), after=first.next) == (3, None)


async def test_what_waits_for_a_retry_and_is_not_dead_stays_when_it_is_named(store: Store, group: Group) -> None:
    await store.append([draft(), draft()])
    claimed = await claim(store, group)
    await store.groups.settle([claimed._replace(dead=[Death(1, 1, [VALUE])], again=[Again(2, 1, 0, [VALUE])])])
    assert await store.groups.revive(group, [1, 2]) == 1
    held = await store.groups.hold_retries(group, limit=10, owner="two", lease=LEASE)
    assert [(item.message.seq, item.attempt) for item in held] == [(2, 2), (1, 1)]


async def test_one_that_is_tried_again_has_no_ttl_any_more(store: Store, group: Group) -> None:
    await store.append([draft(ttl=0.1)])
    claimed = await claim(store, group)
    await store.groups.settle([claimed._replace(dead=[Death(1, 1, [VALUE])])])

    async def has_expired() -> bool:
        return (await store.read(0, 1)).messages == []

    await eventually(has_expired)
    assert await store.groups.revive(group, [1]) == 1
    (held,) = await store.groups.hold_retries(group, limit=10, owner="two", lease=LEASE)
    assert (held.message.seq, held.message.expires_at) == (1, None)


# --- retries -------------------------------------------------------------------------------------


async def test_what_waits_for_a_retry_is_listed_with_when_and_why(store: Store, group: Group) -> None:
    await store.append([draft("a", key="k"), draft("b"), draft("c")])
    claimed = await claim(store, group)
    again = [Again(1, 1, 3_600_000_000, [VALUE]), Again(2, 3, 0, [CONNECT, VALUE]), Again(3, 0, 3_600_000_000, [])]
    await store.groups.settle([claimed._replace(again=again)])
    await store.groups.hold_retries(group, limit=10, owner="two", lease=LEASE)
    now = await store.now()
    listed = await store.groups.retries(group)
    assert [(item.seq, item.topic, item.key, item.attempt, item.is_held) for item in listed] == [
        (1, "a", "k", 1, False),
        (2, "b", None, 4, True),
        (3, "c", None, 0, False),
    ]
    assert [item.errors for item in listed] == [[VALUE], [CONNECT, VALUE], []]
    assert now + 3_500_000_000 < listed[0].run_at <= now + 3_600_000_000
    assert [item.seq for item in await store.groups.retries(group, after=1, limit=1)] == [2]
