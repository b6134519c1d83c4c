"""Batches are cut to fit a frame, shared by all readers, and bounded for the whole node."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.channel import BATCH_BYTES, BATCH_EVENTS, Batch, Channel, Page, Tail, cut


def message(seq: int, size: int = 10) -> Message:
    return Message(seq, UUID(int=seq), "a.b", None, b"x" * size, "application/octet-stream", None, 0)


def messages(first: int, last: int, size: int = 10) -> list[Message]:
    return [message(seq, size) for seq in range(first, last + 1)]


def seqs(batches: Sequence[Batch]) -> list[list[int]]:
    return [[message.seq for message in batch.messages] for batch in batches]


# --- cutting -------------------------------------------------------------------------------------


def test_few_events_are_one_batch() -> None:
    assert seqs(cut(messages(1, 3))) == [[1, 2, 3]]


def test_nothing_is_no_batch() -> None:
    assert cut([]) == []


def test_a_batch_holds_a_thousand_events_at_most() -> None:
    assert [len(batch.messages) for batch in cut(messages(1, 2 * BATCH_EVENTS + 1, 0))] == [
        BATCH_EVENTS,
        BATCH_EVENTS,
        1,
    ]


def test_a_batch_ends_with_the_event_that_fills_it() -> None:
    assert seqs(cut(messages(1, 5, BATCH_BYTES // 2))) == [[1, 2], [3, 4], [5]]
    assert seqs(cut(messages(1, 2, 2 * BATCH_BYTES))) == [[1], [2]]


def test_each_batch_knows_how_many_events_came_before_it() -> None:
    assert [batch.before for batch in cut(messages(1, 5, BATCH_BYTES // 2), 7)] == [7, 9, 11]


def test_a_batch_is_rendered_once_per_key() -> None:
    batch = Batch(messages(1, 2))
    rendered: list[int] = []

    def render(messages: Sequence[Message]) -> str:
        rendered.append(len(messages))
        return f"{len(messages)} events, {len(rendered)}"

    assert batch.text("one", render) == "2 events, 1"
    assert batch.text("one", render) == "2 events, 1"
    assert batch.text("two", render) == "2 events, 2"
    assert rendered == [2, 2]


# --- a channel -----------------------------------------------------------------------------------


def test_batches_are_numbered_for_the_life_of_the_channel() -> None:
    channel = Channel(("#",), 0)
    for seq in range(1, 6):
        channel.append([message(seq)])
    channel.drop(2, 2)
    assert (channel.first, channel.end) == (2, 5)
    assert seqs(channel.since(2, 10)) == [[3], [4], [5]]
    assert seqs(channel.since(3, 1)) == [[4]]
    assert channel.since(5, 10) == []


def test_a_channel_counts_every_event_it_ever_had() -> None:
    channel = Channel(("#",), 0)
    channel.append(messages(1, 3))
    channel.append(messages(4, 5))
    channel.drop(1, 3)
    assert channel.events == 5
    assert [channel.before(number) for number in (1, 2)] == [3, 5]


def test_a_place_is_found_by_seq() -> None:
    channel = Channel(("#",), 10)
    channel.append(messages(11, 13))
    channel.append(messages(20, 21))
    found = {seq: channel.find(seq) for seq in (10, 12, 13, 15, 20, 21, 99)}
    assert found == {10: 0, 12: 0, 13: 1, 15: 1, 20: 1, 21: 2, 99: 2}


def test_what_was_dropped_is_no_longer_covered() -> None:
    channel = Channel(("#",), 10)
    channel.append(messages(11, 13))
    channel.append(messages(14, 15))
    assert channel.covered_from == 10
    channel.drop(1, 13)
    assert channel.covered_from == 13


# --- the bound -----------------------------------------------------------------------------------


def fill(tail: Tail, channel: Channel, pages: int, size: int) -> None:
    for seq in range(1, pages + 1):
        tail.add(Page(size, seq, [(channel, channel.append([message(seq)]))]))


def test_the_tail_drops_the_oldest_pages_beyond_its_limit() -> None:
    tail, channel = Tail(100), Channel(("#",), 0)
    fill(tail, channel, pages=10, size=30)
    assert tail.size == 90
    assert seqs(channel.since(channel.first, 10)) == [[8], [9], [10]]
    assert channel.covered_from == 7


def test_a_page_goes_from_all_channels_at_once() -> None:
    tail, one, two = Tail(100), Channel(("a.#",), 0), Channel(("#",), 0)
    for seq in (1, 2, 3):
        parts = [(channel, channel.append([message(seq)])) for channel in (one, two)]
        tail.add(Page(50, seq, parts))
    assert [len(channel.batches) for channel in (one, two)] == [2, 2]


def test_the_newest_page_stays_however_large_it_is() -> None:
    tail, channel = Tail(100), Channel(("#",), 0)
    fill(tail, channel, pages=3, size=1_000)
    assert seqs(channel.since(channel.first, 10)) == [[3]]


def test_texts_that_are_kept_with_a_page_count() -> None:
    """Readers with patterns of their own have texts of their own; thousands of them were never counted."""
    tail, channel = Tail(20_000), Channel(("#",), 0)
    for seq in (1, 2, 3):
        tail.add(Page(100, seq, [(channel, channel.append([message(seq)]))]))
        for key in range(10):
            channel.batches[-1].text(key, lambda _: "x" * 1_000)
    assert seqs(channel.since(channel.first, 10)) == [[2], [3]]
    assert 20_000 < tail.size < 22_000


def test_texts_of_a_page_that_is_gone_do_not_count() -> None:
    tail, channel = Tail(100), Channel(("#",), 0)
    fill(tail, channel, pages=1, size=60)
    (old,) = channel.batches
    fill(tail, channel, pages=1, size=60)
    old.text("key", lambda _: "x" * 1_000)
    assert tail.size == 60


def test_a_tail_that_nobody_reads_is_empty() -> None:
    tail, channel = Tail(100), Channel(("#",), 0)
    fill(tail, channel, pages=3, size=30)
    tail.clear()
    assert tail.size == 0
