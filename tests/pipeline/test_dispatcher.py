"""The dispatcher reads the log once per node and gives each event to the channels that match."""

from __future__ import annotations

import pytest

from eventbus_fastapi.pipeline.channel import Channel
from eventbus_fastapi.pipeline.dispatcher import Dispatcher
from eventbus_fastapi.store import Store
from tests.drafts import draft, drafts
from tests.waiting import eventually


class Reader:
    """Reads a channel; remembers what the channel told it."""

    def __init__(self) -> None:
        self.notified = 0
        self.has_left = False

    def notify(self) -> None:
        self.notified += 1

    def leave(self) -> None:
        self.has_left = True


@pytest.fixture
def dispatcher(store: Store) -> Dispatcher:
    return Dispatcher(store, page_size=10, tail_bytes=65_536)


def attach(dispatcher: Dispatcher, *patterns: str, position: int = 0) -> tuple[Reader, Channel]:
    reader = Reader()
    channel = dispatcher.attach(reader, patterns, position)
    assert channel is not None
    return reader, channel


def seqs(channel: Channel) -> list[int]:
    return [message.seq for batch in channel.batches for message in batch.messages]


async def drain(dispatcher: Dispatcher, store: Store) -> None:
    dispatcher.tell((await store.head()).last_seq)
    while await dispatcher.run_once() is not None:
        pass


async def test_while_nobody_reads_the_log_is_not_read(store: Store, dispatcher: Dispatcher) -> None:
    await store.append(drafts(3))
    await drain(dispatcher, store)
    assert dispatcher.position == 0


async def test_events_go_to_the_channels_that_match(store: Store, dispatcher: Dispatcher) -> None:
    _, users = attach(dispatcher, "user.*")
    _, everything = attach(dispatcher, "#")
    _, mixed = attach(dispatcher, "user.created", "order.*")
    await store.append([draft(topic) for topic in ("user.created", "user.deleted", "order.paid", "other")])
    await drain(dispatcher, store)
    assert (seqs(users), seqs(everything), seqs(mixed)) == ([1, 2], [1, 2, 3, 4], [1, 3])


async def test_an_event_that_matches_several_patterns_of_a_channel_comes_once(
    store: Store, dispatcher: Dispatcher
) -> None:
    _, channel = attach(dispatcher, "a.*", "*.b", "#")
    await store.append([draft("a.b")])
    await drain(dispatcher, store)
    assert seqs(channel) == [1]


async def test_readers_of_the_same_patterns_share_a_channel(store: Store, dispatcher: Dispatcher) -> None:
    one, channel = attach(dispatcher, "a", "b")
    two, same = attach(dispatcher, "a", "b")
    assert channel is same
    await store.append([draft("a")])
    await drain(dispatcher, store)
    assert (one.notified, two.notified) == (1, 1)


async def test_a_reader_is_not_told_of_what_does_not_match(store: Store, dispatcher: Dispatcher) -> None:
    reader, _ = attach(dispatcher, "a")
    await store.append([draft("b")])
    await drain(dispatcher, store)
    assert reader.notified == 0
    assert dispatcher.position == 1


async def test_it_reads_page_by_page(store: Store, dispatcher: Dispatcher) -> None:
    _, channel = attach(dispatcher, "#")
    await store.append(drafts(25))
    dispatcher.tell(25)
    assert await dispatcher.run_once() == 0
    assert dispatcher.position == 10
    assert await dispatcher.run_once() == 0
    assert await dispatcher.run_once() is None
    assert seqs(channel) == list(range(1, 26))
    assert dispatcher.dispatched == 25


async def test_news_ring_the_bell_and_no_news_do_not(dispatcher: Dispatcher) -> None:
    attach(dispatcher, "#")
    dispatcher.tell(5)
    assert await dispatcher.bell.wait(0.001)
    dispatcher.tell(5)
    dispatcher.tell(4)
    assert not await dispatcher.bell.wait(0.001)


async def test_the_first_reader_says_where_reading_begins(store: Store, dispatcher: Dispatcher) -> None:
    await store.append(drafts(8))
    dispatcher.tell(8)
    _, channel = attach(dispatcher, "#", position=6)
    await drain(dispatcher, store)
    assert seqs(channel) == [7, 8]


async def test_a_reader_that_is_behind_cannot_join(store: Store, dispatcher: Dispatcher) -> None:
    attach(dispatcher, "a")
    await store.append(drafts(3))
    await drain(dispatcher, store)
    assert dispatcher.attach(Reader(), ("b",), 2) is None
    assert dispatcher.attach(Reader(), ("b",), 3) is not None


async def test_a_reader_that_is_behind_can_join_a_channel_that_still_has_what_it_misses(
    store: Store, dispatcher: Dispatcher
) -> None:
    _, channel = attach(dispatcher, "#")
    await store.append(drafts(3))
    await drain(dispatcher, store)
    assert dispatcher.attach(Reader(), ("#",), 1) is channel


async def test_a_reader_that_waits_for_a_seq_far_ahead_takes_nothing_from_others(
    store: Store, dispatcher: Dispatcher
) -> None:
    attach(dispatcher, "#", position=10**9)
    await store.append(drafts(3))
    dispatcher.tell(3)
    other = dispatcher.attach(Reader(), ("test.*",), 0)
    assert other is not None
    await drain(dispatcher, store)
    assert seqs(other) == [1, 2, 3]


async def test_a_channel_ends_with_its_last_reader(store: Store, dispatcher: Dispatcher) -> None:
    one, channel = attach(dispatcher, "#")
    two, _ = attach(dispatcher, "#")
    await store.append(drafts(2))
    await drain(dispatcher, store)
    dispatcher.detach(one, channel)
    assert attach(dispatcher, "#", position=2)[1] is channel
    for reader in (one, two, *channel.readers):
        dispatcher.detach(reader, channel)
    assert attach(dispatcher, "#", position=2)[1] is not channel


async def test_detaching_twice_is_once(dispatcher: Dispatcher) -> None:
    reader, channel = attach(dispatcher, "#")
    dispatcher.detach(reader, channel)
    _, other = attach(dispatcher, "#")
    dispatcher.detach(reader, channel)
    assert len(other.readers) == 1


async def test_what_a_ttl_removed_at_the_end_counts_as_looked_at(store: Store, dispatcher: Dispatcher) -> None:
    _, channel = attach(dispatcher, "#")
    await store.append([draft(), draft(ttl=1e-6), draft(ttl=1e-6)])

    async def is_removed() -> bool:
        await store.remove_expired()
        return (await store.read(0, 10)).scanned_to == 1

    await eventually(is_removed)
    await drain(dispatcher, store)
    assert seqs(channel) == [1]
    assert dispatcher.position == 3


async def test_when_retention_was_faster_every_reader_is_sent_to_the_log(store: Store, dispatcher: Dispatcher) -> None:
    reader, _ = attach(dispatcher, "#")
    await store.append(drafts(9))
    await store.trim(before=None, keep=2)
    await drain(dispatcher, store)
    assert reader.has_left


async def test_the_memory_of_all_channels_together_is_bounded(store: Store, dispatcher: Dispatcher) -> None:
    channels = [attach(dispatcher, f"*.{name}")[1] for name in ("a", "b", "c")]
    for turn in range(40):
        await store.append([draft(f"x.{'abc'[turn % 3]}", bytes(5_000)) for _ in range(2)])
        await drain(dispatcher, store)
    kept = sum(len(message.body) for channel in channels for batch in channel.batches for message in batch.messages)
    assert kept <= 65_536
    assert max(channel.events for channel in channels) == 28


async def test_an_event_that_is_not_stored_goes_to_the_channels_of_the_moment(
    store: Store, dispatcher: Dispatcher
) -> None:
    _, channel = attach(dispatcher, "test.#")
    attach(dispatcher, "other")
    await store.append([draft()])
    await drain(dispatcher, store)
    (live,) = (await store.read(0, 1)).messages
    live.seq = 0
    dispatcher.dispatch([live])
    assert seqs(channel) == [1, 0]
    assert dispatcher.position == 1


async def test_when_retention_was_faster_the_readers_leave_and_the_end_of_the_log_is_known(
    store: Store, dispatcher: Dispatcher
) -> None:
    """Who left joined again at once, at a place that is gone, and waited there until the node heard of what is new."""
    reader, _ = attach(dispatcher, "#")
    await store.append(drafts(5))
    await store.trim(before=None, keep=1)
    assert await dispatcher.run_once() is None
    assert reader.has_left
    assert dispatcher.head == 5
