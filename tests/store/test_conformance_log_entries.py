"""The log of every store as a list: bounded, without payloads, from either end."""

from __future__ import annotations

from eventbus_fastapi.store import Store
from eventbus_fastapi.store.log_entries import BEGINNING
from tests.drafts import draft, drafts
from tests.waiting import eventually


async def test_the_log_is_listed_from_either_end_between_two_seqs(store: Store) -> None:
    await store.append(drafts(9))

    newest = await store.entries.page(2, 8, 3, newest_first=True)
    oldest = await store.entries.page(2, 8, 3, newest_first=False)

    assert [entry.seq for entry in newest] == [7, 6, 5]
    assert [entry.seq for entry in oldest] == [3, 4, 5]


async def test_an_event_is_listed_with_the_size_of_its_payload_and_no_payload(store: Store) -> None:
    event = draft("a.b", b"\x00\xff" * 1_000, key="k")
    await store.append([event])

    (entry,) = await store.entries.page(0, 10, 10, newest_first=True)
    (message,) = (await store.read(0, 1)).messages

    assert entry[:-1] == (1, event.message_id, "a.b", "k", "application/octet-stream", 2_000)
    assert entry.created_at == message.created_at
    assert await store.entries.beginnings([1]) == {1: (b"\x00\xff" * 1_000)[:BEGINNING]}


async def test_the_beginning_of_an_empty_payload_is_empty(store: Store) -> None:
    await store.append([draft("a", b""), draft("a", "")])
    assert await store.entries.beginnings([1, 2]) == {1: b"", 2: b""}


async def test_an_event_whose_ttl_is_over_is_not_listed(store: Store) -> None:
    await store.append([draft(ttl=0.000_001), draft()])

    async def is_the_other_alone() -> bool:
        return [entry.seq for entry in await store.entries.page(0, 10, 10, newest_first=False)] == [2]

    await eventually(is_the_other_alone)


async def test_topics_are_counted_after_a_seq_the_largest_first(store: Store) -> None:
    await store.append([draft("old"), draft("b", "x"), draft("a", "xx"), draft("B", "xxx"), draft("a", "xxxx")])

    counted = await store.entries.topics(1, 10)
    (largest,) = await store.entries.topics(1, 1)
    last = (await store.get(5)).message

    assert [(each.topic, each.events, each.size) for each in counted] == [("a", 2, 6), ("B", 1, 3), ("b", 1, 1)]
    assert (largest.last_seq, largest.last_at) == (5, last.created_at)
