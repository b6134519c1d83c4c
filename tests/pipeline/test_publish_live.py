"""An event that is not stored reaches the subscriptions that are live on its node now, and nobody else."""

from __future__ import annotations

import pytest

from eventbus_fastapi.errors import NotFound, NotRunning
from eventbus_fastapi.pipeline.node import Node
from tests.drafts import draft, drafts
from tests.pipeline.conftest import OpenNode
from tests.pipeline.reading import CaughtUp, read, read_payloads, take_until


async def test_it_reaches_every_live_subscription_that_matches(node: Node) -> None:
    one, two = await node.subscribe(["cursor.*"]), await node.subscribe(["#"])
    other = await node.subscribe(["chat.*"])
    receipt = node.publish_live(draft("cursor.moved", {"x": 1}))
    assert receipt.seq is None
    for subscription in (one, two):
        (message,) = await read(subscription, 1)
        assert (message.payload, message.message_id) == ({"x": 1}, receipt.message_id)
    node.publish_live(draft("chat.said", "hello"))
    assert await read_payloads(other, 1) == ["hello"]


async def test_it_has_no_place_in_the_log(node: Node) -> None:
    subscription = await node.subscribe(["#"])
    node.publish_live(draft())
    (message,) = await read(subscription, 1)
    assert message.seq == 0
    assert not message.is_durable
    assert subscription.position == 0
    assert (await node.head()).last_seq == 0
    with pytest.raises(NotFound):
        await node.get(1)


async def test_a_subscription_that_is_open_gets_it_though_nobody_has_read_yet(node: Node) -> None:
    await node.submit(drafts(3))
    subscription = await node.subscribe(["#"])
    node.publish_live(draft(payload="live"))
    assert await read_payloads(subscription, 1) == ["live"]


async def test_it_keeps_its_place_among_stored_events(node: Node) -> None:
    subscription = await node.subscribe(["#"])
    await node.submit([draft(payload="before")])
    assert await read_payloads(subscription, 1) == ["before"]
    node.publish_live(draft(payload="live"))
    await node.submit([draft(payload="after")])
    assert await read_payloads(subscription, 2) == ["live", "after"]


async def test_a_subscription_that_comes_later_never_sees_it(node: Node) -> None:
    early = await node.subscribe(["#"])
    node.publish_live(draft(payload="live"))
    late = await node.subscribe(["#"])
    await node.submit([draft(payload="stored")])
    assert await read_payloads(early, 2) == ["live", "stored"]
    assert await read_payloads(late, 1) == ["stored"]


async def test_a_subscription_that_still_reads_history_does_not_see_it(open_node: OpenNode) -> None:
    node = await open_node(page_size=2)
    live = await node.subscribe(["#"])
    await node.submit(drafts(6))
    assert await read_payloads(live, 6) == [1, 2, 3, 4, 5, 6]
    behind = await node.subscribe(["#"], "earliest")
    assert await read_payloads(behind, 2) == [1, 2]
    node.publish_live(draft(payload="live"))
    await node.submit([draft(payload="stored")])
    assert await read_payloads(behind, 5) == [3, 4, 5, 6, "stored"]
    assert await read_payloads(live, 2) == ["live", "stored"]


async def test_other_nodes_do_not_see_it(open_node: OpenNode, tmp_path: object) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/bus.db"
    one, two = await open_node(database_url=url), await open_node(database_url=url, poll_interval=0.01)
    subscription = await two.subscribe(["#"])
    await take_until(subscription, CaughtUp(0))
    one.publish_live(draft(payload="live"))
    await one.submit([draft(payload="stored")])
    assert await read_payloads(subscription, 1) == ["stored"]


async def test_nobody_there_is_no_error(node: Node) -> None:
    assert node.publish_live(draft()).seq is None


async def test_a_stopped_node_refuses_it(open_node: OpenNode) -> None:
    node = await open_node()
    await node.stop()
    with pytest.raises(NotRunning):
        node.publish_live(draft())
