"""Fan-out: nodes get live events from each other over a stream, and whatever the stream does, readers see the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from eventbus_fastapi.errors import StoreUnavailable
from eventbus_fastapi.events import Draft
from eventbus_fastapi.pipeline import fanout
from eventbus_fastapi.pipeline.fanout import Fanout
from eventbus_fastapi.pipeline.node import Node
from eventbus_fastapi.pipeline.run import Run
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Appended, OutboxWriter
from eventbus_fastapi.telemetry.meters import Meters
from tests.drafts import draft, drafts
from tests.pipeline.memory_stream import Hub
from tests.pipeline.reading import CaughtUp, Gap, read_payloads, read_seqs, take_until, take_what_is_there
from tests.waiting import eventually

OpenNode = Callable[..., Awaitable[Node]]


@pytest.fixture
def hub() -> Hub:
    return Hub()


@pytest.fixture
async def open_node(hub: Hub, own_tables: dict[str, Any]) -> AsyncIterator[OpenNode]:
    """Start a node with a stream on the test's tables, and wait until it hears the stream."""
    nodes: list[Node] = []

    async def open_node(*, has_stream: bool = True, **settings: Any) -> Node:
        stream = hub.stream() if has_stream else None
        node = Node(Settings(**{**own_tables, "poll_interval": 0.05, **settings}), stream=stream)
        nodes.append(node)
        await node.start()
        if has_stream and not hub.is_away:
            await eventually(lambda: fanout_of(node).is_alive)
        return node

    yield open_node
    for node in reversed(nodes):
        await node.stop()


def fanout_of(node: Node) -> Fanout:
    assert node.fanout is not None
    return node.fanout


async def publish(node: Node, count: int = 1, **options: Any) -> None:
    await node.publish(drafts(count, **options))


async def publish_one_by_one(node: Node, payloads: range) -> None:
    for payload in payloads:
        await node.publish([draft(payload=payload)])


async def test_another_node_reads_nothing_of_what_is_live(open_node: OpenNode) -> None:
    publisher, other = await open_node(), await open_node()
    await publish(publisher, 3)
    async with await other.subscribe(["#"]) as subscription:
        await publish(publisher, 2)
        assert await read_seqs(subscription, 2) == [4, 5]
        pages = other.store.pages_read
        await publish_one_by_one(publisher, range(100))
        assert await read_seqs(subscription, 100) == list(range(6, 106))
        assert other.store.pages_read == pages
        assert other.meters.fanout_given >= 100


async def test_everything_of_an_event_is_as_the_log_has_it(open_node: OpenNode) -> None:
    publisher, other = await open_node(), await open_node()
    events: list[Draft] = [
        draft(payload=b"\x00\xff binary", key="ключ", ttl=3_600, metadata={"a": [1, "é"]}),
        draft("other.topic", {"json": "é"}, tags=["x"]),
        draft(payload="text"),
    ]
    async with await other.subscribe(["#"]) as subscription:
        await publisher.publish(events)
        live = [await anext(subscription) for _ in events]
    stored = (await other.store.read(0, 10)).messages
    names = ["seq", "message_id", "topic", "key", "body", "content_type", "metadata_json", "created_at", "expires_at"]
    assert [[getattr(each, name) for name in names] for each in live] == [
        [getattr(each, name) for name in names] for each in stored
    ]


async def test_history_goes_over_into_live_without_hole_or_double(open_node: OpenNode) -> None:
    publisher, other = await open_node(), await open_node(page_size=50)
    await publish(publisher, 500)
    publishing = asyncio.create_task(publish_one_by_one(publisher, range(200)))
    async with await other.subscribe(["#"], 0) as one, await other.subscribe(["#"], 300) as two:
        assert await read_seqs(one, 700) == list(range(1, 701))
        assert await read_seqs(two, 400) == list(range(301, 701))
    await publishing


async def test_a_node_that_joins_late_sees_it_all(open_node: OpenNode) -> None:
    publisher = await open_node()
    publishing = asyncio.create_task(publish_one_by_one(publisher, range(200)))
    await eventually(lambda: publisher.dispatcher.head > 50)
    late = await open_node()
    async with await late.subscribe(["#"], "earliest") as subscription:
        assert await read_payloads(subscription, 200) == list(range(200))
    await publishing


async def test_what_is_lost_on_its_way_is_read_from_the_log(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        hub.passes = lambda encoded: len(hub.pushed) % 3 != 0
        await publish_one_by_one(publisher, range(20))
        assert await read_payloads(subscription, 20) == list(range(20))
        assert other.meters.fanout_mended > 0
        assert fanout_of(other).is_alive


async def test_a_node_that_hears_nothing_is_healed_by_the_head_of_the_log(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        hub.streams[1].is_deaf = True
        await publish_one_by_one(publisher, range(10))
        assert await read_payloads(subscription, 10) == list(range(10))


async def test_a_run_that_comes_again_changes_nothing(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        await publish_one_by_one(publisher, range(5))
        assert await read_seqs(subscription, 5) == [1, 2, 3, 4, 5]
        for encoded in (*hub.pushed, *reversed(hub.pushed)):
            hub.tell(encoded)
        await publish_one_by_one(publisher, range(1))
        assert await take_until(subscription, 6) == [6]


async def test_runs_in_any_order_are_put_in_line(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        hub.passes = lambda encoded: False
        await publish_one_by_one(publisher, range(6))
        for encoded in reversed(hub.pushed):
            hub.tell(encoded)
        assert await read_seqs(subscription, 6) == [1, 2, 3, 4, 5, 6]


async def test_a_run_of_another_log_is_left_alone(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    await publish(publisher)
    async with await other.subscribe(["#"]) as subscription:
        (message,) = (await other.store.read(0, 1)).messages
        message.seq = 2
        hub.tell(Run(2, 2, [message]).encode(uuid4(), 1_000_000))
        hub.tell(b"no run at all")
        await publish(publisher, 1, key="mine")
        assert [(each.seq, each.key) for each in [await anext(subscription)]] == [(2, "mine")]
        assert other.meters.fanout_runs["foreign"] == 2


async def test_a_damaged_run_is_read_from_the_log(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        hub.passes = lambda encoded: False
        await publish(publisher, 3)
        await eventually(lambda: bool(hub.pushed))
        hub.tell(hub.pushed[0][:-1])
        assert await read_seqs(subscription, 3) == [1, 2, 3]


async def test_an_event_that_is_too_large_for_the_stream_is_read_from_the_log(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    for stream in hub.streams:
        stream.most_bytes = 4_096
    async with await other.subscribe(["#"]) as subscription:
        await publisher.publish([draft(payload="small")])
        await publisher.publish([draft(payload="x" * 10_000)])
        await publisher.publish([draft(payload="small again")])
        assert [len(payload) for payload in await read_payloads(subscription, 3)] == [5, 10_000, 11]


async def test_two_nodes_that_append_at_once_give_all_nodes_one_order(open_node: OpenNode) -> None:
    nodes = [await open_node() for _ in range(3)]
    subscriptions = [await node.subscribe(["#"]) for node in nodes]
    await asyncio.gather(*(publish_one_by_one(node, range(100)) for node in nodes[:2]))
    for subscription in subscriptions:
        assert await read_seqs(subscription, 200) == list(range(1, 201))
        subscription.close()


async def test_what_a_transaction_published_is_pushed_by_the_node_that_sequenced_it(
    open_node: OpenNode, hub: Hub
) -> None:
    nodes = [await open_node(), await open_node()]
    subscriptions = [await node.subscribe(["#"]) for node in nodes]
    outbox = OutboxWriter(nodes[0].store.sql, nodes[0].sequencer.expect)
    pages = sum(node.store.pages_read for node in nodes)
    for number in range(3):
        async with nodes[0].store.engine.begin() as connection:
            await outbox.add(connection, draft(payload=number))
        for subscription in subscriptions:
            assert await read_seqs(subscription, 1) == [number + 1]
        assert len(hub.pushed) == number + 1
    assert sum(node.store.pages_read for node in nodes) <= pages + 3
    for subscription in subscriptions:
        subscription.close()


async def test_an_append_after_an_outbox_leaves_no_hole(open_node: OpenNode) -> None:
    publisher, other = await open_node(poll_interval=60), await open_node(poll_interval=60)
    outbox = OutboxWriter(publisher.store.sql, lambda: None)
    async with await other.subscribe(["#"]) as subscription:
        for number in range(5):
            async with publisher.store.engine.begin() as connection:
                await outbox.add(connection, draft(payload=f"{number} by a transaction"))
            await publisher.publish([draft(payload=f"{number} by itself")])
        found = await read_payloads(subscription, 10)
    assert found == [f"{number} by {who}" for number in range(5) for who in ("a transaction", "itself")]


async def test_of_what_nobody_pushed_one_node_tells_the_others(open_node: OpenNode, hub: Hub) -> None:
    """As of a node that died between its commit and its push."""
    nodes = [await open_node() for _ in range(3)]
    silent = await open_node(has_stream=False)
    subscriptions = [await node.subscribe(["#"]) for node in nodes]
    await publish(silent, 5)
    for subscription in subscriptions:
        assert await read_seqs(subscription, 5) == [1, 2, 3, 4, 5]
        subscription.close()
    assert len(hub.pushed) >= 1
    assert sum(node.meters.fanout_mended for node in nodes) <= 15


async def test_without_the_stream_nodes_read_the_log_and_come_back_by_themselves(
    open_node: OpenNode, hub: Hub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "eventbus_fastapi.pipeline.fanout")
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        publishing = asyncio.create_task(publish_one_by_one(publisher, range(300)))
        assert await read_payloads(subscription, 50) == list(range(50))
        hub.go()
        assert not fanout_of(other).is_alive
        assert other.remarks == ["fan-out is away; live events are read from the database"]
        assert await other.problems() == []
        assert await read_payloads(subscription, 50) == list(range(50, 100))
        hub.come_back()
        await eventually(lambda: fanout_of(other).is_alive)
        assert other.remarks == []
        assert await read_payloads(subscription, 200) == list(range(100, 300))
        await publishing
        await eventually(lambda: fanout_of(publisher).is_alive)
        pages = other.store.pages_read
        await publish(publisher)
        assert await read_seqs(subscription, 1) == [301]
        assert other.store.pages_read == pages
    levels = [record.levelname for record in caplog.records]
    assert sorted(levels) == ["INFO", "INFO", "WARNING", "WARNING"], "each node says once that it is away, and back"


async def test_what_comes_alone_is_pushed_without_a_turn_of_its_own(open_node: OpenNode, hub: Hub) -> None:
    """Each append woke a task for it, which is a part of the time that an event takes to another node."""
    publisher = await open_node()
    messages = Appended([], 1, [draft(payload="alone")], 1).messages()
    await fanout_of(publisher).append(messages)
    assert len(hub.pushed) == 1


async def test_what_comes_while_a_push_is_on_its_way_waits_for_nobody(open_node: OpenNode, hub: Hub) -> None:
    """A publish must not wait for the stream; what waits is pushed as one run when there is room."""
    publisher = await open_node()
    hub.streams[0].is_idle = False
    for seq in (1, 2):
        await fanout_of(publisher).append(Appended([], seq, [draft()], 1).messages())
    assert hub.pushed == []
    await eventually(lambda: len(hub.pushed) == 1)
    run = Run.decode(hub.pushed[0], (await publisher.store.head()).epoch)
    assert run is not None
    assert (run.first, run.last) == (1, 2)


async def test_a_push_that_fails_in_an_append_has_the_log_read(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        hub.streams[0].close_quietly()
        receipts = await publisher.publish([draft(payload="stored all the same")])
        assert receipts[0].seq == 1
        await eventually(lambda: publisher.meters.fanout_failures == 1)
        assert await read_payloads(subscription, 1) == ["stored all the same"]


async def test_a_stream_that_takes_less_than_is_appended_counts_as_lost(
    open_node: OpenNode, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that was appended waited in memory."""
    monkeypatch.setattr(fanout, "MOST_WAITING", 10_000)
    publisher, other = await open_node(), await open_node()
    if publisher.store.engine.dialect.name == "mysql":
        pytest.skip("nothing waits in memory there: what was appended is read from the log")
    takes, push = asyncio.Event(), hub.streams[0].push

    async def push_slowly(encoded: bytes, push_id: str | None = None) -> None:
        await takes.wait()
        await push(encoded, push_id)

    monkeypatch.setattr(hub.streams[0], "push", push_slowly)
    hub.streams[0].is_idle = False
    async with await other.subscribe(["#"]) as subscription:
        published = 0
        while fanout_of(publisher).is_alive:
            await publisher.publish([draft(payload="x" * 1_000)])
            published += 1
            assert fanout_of(publisher)._outgoing_bytes < 20_000
        assert "takes less than is appended" in fanout_of(publisher).problem
        takes.set()
        await eventually(lambda: fanout_of(publisher).is_alive)
        await publisher.publish([draft(payload="last")])
        assert (await read_payloads(subscription, published + 1))[-1] == "last"


async def test_what_waits_beyond_a_gap_is_bounded_while_the_log_cannot_be_read(
    open_node: OpenNode, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout, "MOST_WAITING", 10_000)
    publisher, other = await open_node(), await open_node()
    read, is_away = other.store.read, True

    async def read_later(after: int, limit: int) -> Any:
        if is_away:
            raise StoreUnavailable("the database is away")
        return await read(after, limit)

    monkeypatch.setattr(other.store, "read", read_later)
    async with await other.subscribe(["#"]) as subscription:
        hub.passes = lambda encoded: len(hub.pushed) > 1
        for _ in range(50):
            await publisher.publish([draft(payload="x" * 1_000)])
            assert fanout_of(other)._seam.waiting_bytes < 20_000
        assert other.meters.fanout_failures > 0
        is_away = False
        assert await read_seqs(subscription, 50) == list(range(1, 51))


async def test_a_node_starts_without_the_stream(open_node: OpenNode, hub: Hub) -> None:
    hub.is_away = True
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        await publish(publisher, 3)
        assert await read_seqs(subscription, 3) == [1, 2, 3]
        hub.come_back()
        await eventually(lambda: fanout_of(other).is_alive and fanout_of(publisher).is_alive)
        await publish(publisher, 3)
        assert await read_seqs(subscription, 3) == [4, 5, 6]


async def test_what_a_ttl_removed_in_between_is_no_hole(open_node: OpenNode, hub: Hub) -> None:
    publisher, other = await open_node(), await open_node()
    silent = await open_node(has_stream=False)
    async with await other.subscribe(["#"]) as subscription:
        hub.streams[0].is_deaf = hub.streams[1].is_deaf = True
        await publisher.publish([draft(payload="a")])
        await silent.publish([draft(payload="gone", ttl=1e-6), draft(payload="gone", ttl=1e-6)])
        await eventually(lambda: _all_removed(silent))
        await publisher.publish([draft(payload="b")])
        await silent.publish([draft(payload="gone", ttl=1e-6)])
        assert await read_payloads(subscription, 2) == ["a", "b"]
        await eventually(lambda: other.dispatcher.position == 5)
        hub.streams[0].is_deaf = hub.streams[1].is_deaf = False
        await publisher.publish([draft(payload="c")])
        assert await read_payloads(subscription, 1) == ["c"]


async def _all_removed(node: Node) -> bool:
    await node.store.remove_expired()
    return len((await node.store.read(0, 10)).messages) == 1 and await node.store.remove_expired() == 0


async def test_when_retention_was_faster_readers_are_sent_to_the_log(hub: Hub) -> None:
    node = Node(Settings(database_url="sqlite+aiosqlite:///:memory:"))
    await node.start()
    dispatcher = node.dispatcher
    fanout = Fanout(node.store, dispatcher, hub.stream(), page_size=10, meters=Meters())
    await fanout.run_once()
    async with await node.subscribe(["#"]) as subscription:
        await node.store.append(drafts(11))
        await node.store.trim(before=None, keep=3)
        (*_, last) = (await node.store.read(0, 100)).messages
        hub.tell(Run(last.seq, last.seq, [last]).encode((await node.head()).epoch, 1_000_000))
        assert dispatcher.position == 0
        while fanout.is_alive and dispatcher.position == 0 and subscription.is_live:
            await fanout.run_once()
            await asyncio.sleep(0)
        found = await take_until(subscription, 11)
    assert [each for each in found if not isinstance(each, CaughtUp)] == [Gap(1, 8, "retention"), 9, 10, 11]
    await node.stop()


async def test_when_nobody_reads_the_log_is_not_read(open_node: OpenNode) -> None:
    publisher, other = await open_node(), await open_node()
    pages = other.store.pages_read
    await publish_one_by_one(publisher, range(20))
    await eventually(lambda: other.dispatcher.head == 20)
    assert other.store.pages_read == pages
    async with await other.subscribe(["#"], 18) as subscription:
        assert await read_seqs(subscription, 2) == [19, 20]


async def test_readers_come_and_go_while_events_are_published(open_node: OpenNode) -> None:
    publisher, other = await open_node(), await open_node(page_size=20)
    publishing = asyncio.create_task(publish_one_by_one(publisher, range(300)))
    position = 0
    while position < 300:
        async with await other.subscribe(["#"], position) as subscription:
            found = await read_seqs(subscription, min(15, 300 - position))
        assert found == list(range(position + 1, position + 1 + len(found)))
        position = found[-1]
    await publishing


async def test_an_event_that_is_not_stored_stays_on_its_node(open_node: OpenNode) -> None:
    publisher, other = await open_node(), await open_node()
    async with await publisher.subscribe(["#"]) as here, await other.subscribe(["#"]) as there:
        publisher.publish_live(draft(payload="live"))
        assert await read_seqs(here, 1) == [0]
        assert [each for each in await take_what_is_there(there) if isinstance(each, int)] == []


async def test_a_node_that_stops_pushes_what_it_has_appended(open_node: OpenNode) -> None:
    publisher, other = await open_node(), await open_node()
    async with await other.subscribe(["#"]) as subscription:
        publisher.submit(drafts(50))
        await publisher.stop()
        assert await read_seqs(subscription, 50) == list(range(1, 51))


async def test_a_node_does_not_look_at_the_database_more_often_because_others_publish(open_node: OpenNode) -> None:
    """Not told of each append, the sequencer found at each look that the log had grown, and looked again after 2 ms."""
    publisher, other = await open_node(poll_interval=60), await open_node(poll_interval=60)
    async with await other.subscribe(["#"]) as subscription:
        await publish_one_by_one(publisher, range(20))
        assert await read_payloads(subscription, 20) == list(range(20))
        assert await other.sequencer.run_once() == 60
