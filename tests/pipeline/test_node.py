"""A node starts, stops, answers and says what is wrong with it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from eventbus_fastapi.errors import InvalidPattern, NotFound, NotRunning, SubscriptionClosed
from eventbus_fastapi.pipeline.node import SCAN_PAGES, Node
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Ack, OutboxWriter
from tests.drafts import draft, drafts
from tests.pipeline.conftest import MEMORY, OpenNode
from tests.pipeline.reading import CaughtUp, read_seqs, take_until
from tests.waiting import eventually


def tasks() -> set[str]:
    return {name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("eventbus-")}


async def turn_loop(times: int) -> None:
    """Let the tasks of the loop run for some turns."""
    for _ in range(times):
        await asyncio.sleep(0)


# --- life ----------------------------------------------------------------------------------------


async def test_a_running_node_has_a_task_per_stage_and_a_stopped_one_has_none(open_node: OpenNode) -> None:
    node = await open_node()
    assert tasks() == {
        "eventbus-publisher",
        "eventbus-sequencer",
        "eventbus-dispatcher",
        "eventbus-acknowledger",
        "eventbus-retention",
        "eventbus-recurrer",
    }
    await node.stop()
    assert tasks() == set()


async def test_starting_and_stopping_twice_is_once(open_node: OpenNode) -> None:
    node = await open_node()
    await node.start()
    assert len(tasks()) == 6
    await node.stop()
    await node.stop()
    assert not node.is_running


async def test_a_start_that_is_cancelled_leaves_nothing_running(tmp_path: Path) -> None:
    for turns in range(40):
        node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))
        starting = asyncio.create_task(node.start())
        await turn_loop(turns)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        if starting.cancelled():
            assert not node.is_running
            assert tasks() == set()
        await node.start()
        await node.stop()


async def test_a_start_that_is_cancelled_goes_on_for_whoever_else_waits_for_it(tmp_path: Path) -> None:
    node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))
    one, other = [asyncio.create_task(node.start()) for _ in range(2)]
    await turn_loop(3)
    one.cancel()
    await other
    assert node.is_running
    await node.stop()


async def test_a_stop_during_a_start_gives_the_start_up(tmp_path: Path) -> None:
    node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))
    starting = asyncio.create_task(node.start())
    await turn_loop(3)
    await node.stop()
    with pytest.raises(NotRunning, match="stopped while it started"):
        await starting
    assert not node.is_running
    assert tasks() == set()


async def test_a_start_during_a_stop_starts_anew(tmp_path: Path) -> None:
    node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))
    await node.start()
    stopping = asyncio.create_task(node.stop())
    await turn_loop(1)
    await node.start()
    await stopping
    assert (await node.submit([draft()]))[0].seq == 1
    await node.stop()


async def test_a_stop_that_is_cancelled_goes_on(tmp_path: Path) -> None:
    node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))
    await node.start()
    stopping = asyncio.create_task(node.stop())
    await turn_loop(1)
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    await eventually(lambda: tasks() == set())
    assert not node.is_running


async def test_a_node_that_was_stopped_starts_again_on_its_log(tmp_path: Path) -> None:
    node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))
    for turn in range(3):
        await node.start()
        assert (await node.submit([draft()]))[0].seq == turn + 1
        assert await read_seqs(await node.subscribe(["#"], turn), 1) == [turn + 1]
        await node.stop()


def test_a_node_may_run_in_one_event_loop_after_another(tmp_path: Path) -> None:
    node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db"))

    async def live() -> None:
        await node.start()
        async with node.store.engine.begin() as connection:
            await OutboxWriter(node.store.sql, node.sequencer.expect).add(connection, draft())
        subscription = await node.subscribe(["#"], "earliest")
        await asyncio.gather(*(node.submit([draft()]) for _ in range(20)))
        head = (await node.head()).last_seq
        assert await read_seqs(subscription, head) == list(range(1, head + 1))
        await node.stop()

    for _ in range(3):
        asyncio.run(live())


async def test_a_stop_stores_what_was_taken(tmp_path: Path) -> None:
    settings = Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db")
    node = Node(settings)
    await node.start()
    answers = [node.submit([draft()]) for _ in range(3_000)]
    await node.stop()
    assert [answer.result()[0].seq for answer in answers] == list(range(1, 3_001))


async def test_a_stop_ends_subscriptions(open_node: OpenNode) -> None:
    node = await open_node()
    subscription = await node.subscribe(["#"])
    await subscription.take()
    reading = asyncio.create_task(subscription.take())
    await asyncio.sleep(0)
    await node.stop()
    with pytest.raises(SubscriptionClosed, match="closed"):
        await reading


async def test_a_subscription_that_is_closed_leaves_nothing_behind(node: Node) -> None:
    subscriptions = [await node.subscribe([f"topic.{number % 7}"]) for number in range(50)]
    for subscription in subscriptions:
        await subscription.take()
        subscription.close()
        subscription.close()
    assert not node._subscriptions
    assert not node.dispatcher._channels
    assert len(node.dispatcher._index) == 0


async def test_a_node_that_cannot_start_leaves_nothing_behind(tmp_path: Path) -> None:
    node = Node(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/missing/bus.db"))
    with pytest.raises(Exception, match="unable to open"):
        await node.start()
    assert not node.is_running
    assert tasks() == set()
    await node.stop()


async def test_whatever_needs_a_running_node_says_so_when_it_is_not() -> None:
    node = Node(Settings(database_url=MEMORY))
    for attempt in (
        node.subscribe(["#"]),
        node.acknowledge([Ack(1)]),
        node.head(),
        node.get(1),
        node.history(["#"], 0, 10),
    ):
        with pytest.raises(NotRunning, match="async with eventbus"):
            await attempt
    with pytest.raises(NotRunning):
        node.submit([draft()])


async def test_start_and_stop_are_logged_without_the_url(open_node: OpenNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "eventbus_fastapi.pipeline.node")
    await (await open_node()).stop()
    assert [record.getMessage() for record in caplog.records] == ["started on sqlite", "stopped"]


# --- what is wrong -------------------------------------------------------------------------------


async def test_a_node_that_is_well_has_no_problems(node: Node) -> None:
    assert await node.problems() == []


async def test_a_node_that_does_not_run_says_so(open_node: OpenNode) -> None:
    node = await open_node()
    await node.stop()
    assert await node.problems() == ["the bus is not running"]


async def test_tables_that_are_gone_are_a_problem_with_its_remedy(node: Node) -> None:
    async with node.store.engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE bus_alembic_version")
    (problem,) = await node.problems()
    assert "eventbus migrate upgrade" in problem


# --- history -------------------------------------------------------------------------------------


async def pages(node: Node, patterns: list[str], limit: int) -> list[tuple[list[int], int | None]]:
    found: list[tuple[list[int], int | None]] = []
    after: int | None = 0
    while after is not None:
        page = await node.history(patterns, after, limit)
        assert page.head == (await node.head()).last_seq
        found.append(([message.seq for message in page.messages], page.next))
        after = page.next
    return found


async def test_history_comes_in_pages_that_follow_one_another(open_node: OpenNode) -> None:
    node = await open_node(page_size=3)
    await node.submit(drafts(7))
    assert await pages(node, ["#"], 3) == [([1, 2, 3], 3), ([4, 5, 6], 6), ([7], None)]
    assert await pages(node, ["#"], 7) == [([1, 2, 3, 4, 5, 6, 7], None)]


async def test_history_of_some_patterns_gives_only_what_matches(open_node: OpenNode) -> None:
    node = await open_node(page_size=2)
    await node.submit([draft(topic) for topic in ("a", "b", "a.x", "b", "a")])
    assert await pages(node, ["a.#"], 2) == [([1, 3], 3), ([5], None)]
    assert await pages(node, ["a", "b"], 10) == [([1, 2, 4, 5], None)]


async def test_an_empty_log_is_one_empty_page(node: Node) -> None:
    assert await pages(node, ["#"], 10) == [([], None)]


async def test_one_call_looks_at_a_part_of_the_log_only_and_says_where_to_go_on(open_node: OpenNode) -> None:
    node = await open_node(page_size=2)
    part = 2 * SCAN_PAGES
    await node.submit([*drafts(part, "common"), draft("rare")])
    assert await pages(node, ["rare"], 10) == [([], part), ([part + 1], None)]


async def test_a_pattern_of_history_must_follow_the_grammar(node: Node) -> None:
    with pytest.raises(InvalidPattern):
        await node.history(["a..b"], 0, 10)


@pytest.mark.parametrize("seq", [0, -1, 2, 2**63 - 1, 2**63, 2**200, -(2**70)])
async def test_an_event_that_there_is_not_is_not_found(node: Node, seq: int) -> None:
    await node.submit([draft()])
    with pytest.raises(NotFound):
        await node.get(seq)
    with pytest.raises(NotFound):
        await node.acknowledge([Ack(seq)])


@pytest.mark.parametrize("start", [2**63 - 1, 2**63, 2**200])
async def test_a_start_that_no_log_will_ever_reach_is_harmless(node: Node, start: Any) -> None:
    await node.submit([draft()])
    subscription = await node.subscribe(["#"], start)
    assert (await node.history(["#"], start, 10)).messages == []
    await node.submit([draft()])
    await eventually(lambda: node.dispatcher.position == 2)
    subscription.close()


async def test_history_says_what_retention_has_removed_while_it_was_read(node: Node) -> None:
    """The hole was there and its explanation was not: what was kept had been asked for before the pages."""
    await node.submit(drafts(10))
    async with node._reads, node._reads:  # it has seen the head, and waits to read
        reading = asyncio.create_task(node.history(["#"], 0, 100))
        await eventually(lambda: node._reads._waiters)
        await node.store.trim(before=None, keep=4)
    page = await reading
    assert [message.seq for message in page.messages] == [7, 8, 9, 10]
    assert page.first_seq == 7


async def test_a_page_of_history_without_a_hole_asks_for_the_head_once(node: Node) -> None:
    await node.submit(drafts(10))
    asked: list[str] = []
    read_head = str(node.store.sql.read_head.compile(node.store.engine.sync_engine))
    event.listen(
        node.store.engine.sync_engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: asked.append(statement),
    )
    assert (await node.history(["#"], 4, 100)).first_seq == 1
    assert asked.count(read_head) == 1


async def test_a_page_of_history_ends_where_it_is_large(node: Node) -> None:
    await node.submit([draft(payload=b"x" * 200_000) for _ in range(12)])
    assert await pages(node, ["#"], 100) == [([1, 2, 3, 4, 5, 6], 6), ([7, 8, 9, 10, 11, 12], None)]


async def test_a_subscription_that_is_live_keeps_no_topics(node: Node) -> None:
    await node.submit([draft(f"topic.{number}") for number in range(20)])
    subscription = await node.subscribe(["topic.*"], 0)
    assert len(await take_until(subscription, CaughtUp(20))) == 21
    assert subscription._matcher is None
