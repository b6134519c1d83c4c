"""The sequencer moves what is committed and what is due to the log, and looks again at the right time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from eventbus_fastapi.pipeline.sequencer import SHORTEST_POLL, Sequencer
from eventbus_fastapi.store import OutboxWriter, Store
from tests.drafts import draft, drafts
from tests.waiting import eventually

POLL = 0.1
PAST = datetime(2001, 1, 1, tzinfo=UTC)


@pytest.fixture
def told() -> list[int]:
    return []


@pytest.fixture
def sequencer(store: Store, told: list[int]) -> Sequencer:
    return Sequencer(store, told.append, poll_interval=POLL)


async def commit(store: Store, count: int) -> None:
    async with store.engine.begin() as connection:
        for event in drafts(count):
            await OutboxWriter(store.sql, lambda: None).add(connection, event)


async def test_what_is_committed_enters_the_log(store: Store, sequencer: Sequencer, told: list[int]) -> None:
    await commit(store, 3)
    await sequencer.run_once()
    assert [message.payload for message in (await store.read(0, 10)).messages] == [1, 2, 3]
    assert told == [3]
    assert sequencer.sequenced == 3


async def test_after_a_move_it_looks_again_at_once(store: Store, sequencer: Sequencer) -> None:
    await commit(store, 1)
    assert await sequencer.run_once() == 0


async def test_it_tells_how_far_the_log_is_whoever_wrote_it(
    store: Store, sequencer: Sequencer, told: list[int]
) -> None:
    await store.append(drafts(5))  # as another node would
    await sequencer.run_once()
    assert told == [5]


async def test_an_idle_node_looks_at_the_poll_interval(sequencer: Sequencer) -> None:
    assert [await sequencer.run_once() for _ in range(3)] == [POLL, POLL, POLL]


async def test_after_a_commit_it_looks_at_once_then_soon_then_ever_more_rarely(sequencer: Sequencer) -> None:
    sequencer.expect()
    assert await sequencer.bell.wait(0) is True
    delays = [await sequencer.run_once() for _ in range(8)]
    assert delays == [min(SHORTEST_POLL * 2**look, POLL) for look in range(8)]


async def test_while_the_log_grows_it_looks_often(store: Store, sequencer: Sequencer) -> None:
    await sequencer.run_once()
    await store.append([draft()])
    assert await sequencer.run_once() == SHORTEST_POLL


async def test_a_commit_may_be_told_from_any_thread(sequencer: Sequencer) -> None:
    waiting = asyncio.create_task(sequencer.bell.wait(None))
    await asyncio.sleep(0)
    await asyncio.to_thread(sequencer.expect)
    assert await waiting is True


async def test_what_is_due_enters_the_log(store: Store, sequencer: Sequencer, told: list[int]) -> None:
    await store.append([draft(payload="late", publish_at=PAST)])
    await sequencer.run_once()
    assert [message.payload for message in (await store.read(0, 10)).messages] == ["late"]
    assert told == [1]


async def test_it_looks_again_when_the_next_event_is_due(store: Store, sequencer: Sequencer) -> None:
    await store.append([draft(delay=0.03)])
    delay = await sequencer.run_once()
    assert delay is not None
    assert 0 < delay <= 0.03

    async def has_entered() -> bool:
        await sequencer.run_once()
        return (await store.head()).last_seq == 1

    await eventually(has_entered)


async def test_an_event_due_far_away_does_not_lengthen_the_poll(store: Store, sequencer: Sequencer) -> None:
    await store.append([draft(delay=3_600)])
    assert await sequencer.run_once() == POLL


async def test_a_long_outbox_is_moved_in_turns(store: Store, sequencer: Sequencer) -> None:
    async with store.engine.begin() as connection:
        rows = [
            {name: value for name, value in event._asdict().items() if name not in ("delay", "publish_at", "unique")}
            for event in drafts(2_200)
        ]
        await connection.execute(store.sql.add_to_outbox, rows)
    assert [await sequencer.run_once() for _ in range(3)] == [0, 0, 0]
    assert sequencer.sequenced == 2_200
