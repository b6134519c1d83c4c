"""The publisher commits what gathers in one go, and each caller learns its own result."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from eventbus_fastapi.errors import NotRunning, StoreError, StoreUnavailable
from eventbus_fastapi.events import Draft, Receipt
from eventbus_fastapi.pipeline import publisher as publishers
from eventbus_fastapi.pipeline import service
from eventbus_fastapi.pipeline.publisher import Publisher
from eventbus_fastapi.settings import Settings
from eventbus_fastapi.store import Appended, Store, open_store
from tests.conftest import OpenBus
from tests.drafts import draft, drafts


@pytest.fixture
def commits() -> list[int]:
    """The last seq after each commit: the publisher tells it once per commit."""
    return []


def note_in(commits: list[int]) -> Callable[[Appended], Awaitable[None]]:
    async def note(appended: Appended) -> None:
        commits.append(appended.last_seq)

    return note


@pytest.fixture
def publisher(store: Store, commits: list[int]) -> Publisher:
    publisher = Publisher(store, note_in(commits))
    publisher.open()
    return publisher


@contextlib.asynccontextmanager
async def running(publisher: Publisher) -> AsyncIterator[None]:
    task = service.start(publisher)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def payloads(store: Store) -> list[object]:
    return [message.payload for message in (await store.read(0, 10_000)).messages]


def refused() -> Draft:
    """An event that the database refuses, which the door would never let in."""
    return draft()._replace(topic=None)  # type: ignore[arg-type]


async def test_before_it_is_open_nothing_is_taken(store: Store) -> None:
    with pytest.raises(NotRunning, match="async with eventbus"):
        Publisher(store, note_in([])).submit(drafts(1))


async def test_a_receipt_comes_with_the_commit(store: Store, publisher: Publisher) -> None:
    event = draft()
    answer = publisher.submit([event])
    assert not answer.done()
    assert await publisher.run_once() is None
    assert answer.result() == [Receipt(event.message_id, 1)]
    assert await payloads(store) == ["hello"]


async def test_all_that_gathered_is_one_commit(publisher: Publisher, commits: list[int]) -> None:
    answers = [publisher.submit([draft()]) for _ in range(200)]
    await publisher.run_once()
    assert commits == [200]
    assert [answer.result()[0].seq for answer in answers] == list(range(1, 201))


async def test_what_gathers_during_a_commit_is_the_next_one(publisher: Publisher, commits: list[int]) -> None:
    async with running(publisher):
        first = publisher.submit([draft()])
        await asyncio.sleep(0)  # the loop has taken it
        others = [publisher.submit([draft()]) for _ in range(50)]
        await asyncio.gather(first, *others)
    assert commits == [1, 51]


async def test_the_order_of_the_calls_is_the_order_in_the_log(store: Store, publisher: Publisher) -> None:
    async with running(publisher):
        await asyncio.gather(*(publisher.submit([draft(payload=number)]) for number in range(3_000)))
    assert await payloads(store) == list(range(3_000))


async def test_a_list_stays_together(publisher: Publisher) -> None:
    answers = [publisher.submit(drafts(count)) for count in (3, 1, 5)]
    await publisher.run_once()
    assert [[receipt.seq for receipt in answer.result()] for answer in answers] == [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


async def test_an_empty_list_is_answered_at_once(publisher: Publisher, commits: list[int]) -> None:
    assert await publisher.submit([]) == []
    assert commits == []


async def test_a_commit_has_a_bounded_number_of_events(publisher: Publisher, commits: list[int]) -> None:
    for _ in range(publishers.MOST_EVENTS + 5):
        publisher.submit([draft()])
    assert await publisher.run_once() == 0  # there is more
    assert await publisher.run_once() is None
    assert commits == [publishers.MOST_EVENTS, publishers.MOST_EVENTS + 5]


async def test_a_commit_has_a_bounded_number_of_bytes(publisher: Publisher, commits: list[int]) -> None:
    for _ in range(5):
        publisher.submit([draft(payload=bytes(publishers.MOST_BYTES // 2))])
    while await publisher.run_once() is not None:
        pass
    assert commits == [2, 4, 5]


# --- failures ------------------------------------------------------------------------------------


async def test_one_event_that_is_refused_fails_alone(store: Store, publisher: Publisher) -> None:
    answers = [publisher.submit([draft(payload=number)]) for number in range(50)]
    answers[17:17] = [publisher.submit([refused()])]
    await publisher.run_once()
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert isinstance(results.pop(17), StoreError)
    assert [result[0].seq for result in results if isinstance(result, list)] == list(range(1, 51))
    assert await payloads(store) == list(range(50))


async def test_a_list_with_an_event_that_is_refused_fails_as_a_whole(store: Store, publisher: Publisher) -> None:
    bad, good = publisher.submit([draft(), refused(), draft()]), publisher.submit([draft(payload="good")])
    await publisher.run_once()
    with pytest.raises(StoreError, match="refused"):
        await bad
    assert (await good)[0].seq == 1
    assert await payloads(store) == ["good"]


async def test_while_the_database_is_away_every_caller_hears_it_and_may_try_again(tmp_path: Path) -> None:
    store = open_store(Settings(database_url=f"sqlite+aiosqlite:///{tmp_path}/bus.db", busy_timeout=0.01))
    await store.start()
    publisher = Publisher(store, note_in([]))
    publisher.open()
    other = sqlite3.connect(tmp_path / "bus.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    event = draft()
    answers = [publisher.submit([event]), publisher.submit(drafts(2))]
    await publisher.run_once()
    for answer in answers:
        with pytest.raises(StoreUnavailable) as caught:
            await answer
        assert caught.value.retry
    other.execute("COMMIT")
    other.close()
    again = publisher.submit([event])
    await publisher.run_once()
    assert await again == [Receipt(event.message_id, 1)]
    await store.stop()


# --- cancellation --------------------------------------------------------------------------------


async def test_a_publish_cancelled_before_its_commit_is_withdrawn(store: Store, publisher: Publisher) -> None:
    answers = [publisher.submit([draft(payload=number)]) for number in range(3)]
    answers[1].cancel()
    await publisher.run_once()
    assert await payloads(store) == [0, 2]
    assert [answers[place].result()[0].seq for place in (0, 2)] == [1, 2]


async def test_a_publish_cancelled_during_its_commit_is_stored_and_harms_nobody(
    store: Store, publisher: Publisher
) -> None:
    answers = [publisher.submit([draft(payload=number)]) for number in range(3)]
    committing = asyncio.create_task(publisher.run_once())
    await asyncio.sleep(0)
    answers[1].cancel()
    await committing
    assert await payloads(store) == [0, 1, 2]
    assert [answers[place].result()[0].seq for place in (0, 2)] == [1, 3]


async def test_when_all_that_waits_is_cancelled_there_is_no_commit(publisher: Publisher, commits: list[int]) -> None:
    publisher.submit([draft()]).cancel()
    assert await publisher.run_once() is None
    assert commits == []


# --- closing -------------------------------------------------------------------------------------


async def test_closing_waits_until_everything_taken_is_committed(store: Store, publisher: Publisher) -> None:
    async with running(publisher):
        answers = [publisher.submit([draft()]) for _ in range(2_500)]
        await publisher.close(10)
        assert all(answer.done() for answer in answers)
    assert len(await payloads(store)) == 2_500


async def test_after_closing_nothing_is_taken(publisher: Publisher) -> None:
    await publisher.close(10)
    with pytest.raises(NotRunning):
        publisher.submit([draft()])


async def test_closing_does_not_wait_for_ever_and_answers_who_still_waits(publisher: Publisher) -> None:
    answer = publisher.submit([draft()])  # and no loop takes it
    await publisher.close(0.01)
    with pytest.raises(StoreUnavailable, match="stopped before"):
        await answer


async def test_a_commit_that_is_cut_off_answers_its_callers(publisher: Publisher) -> None:
    answers = [publisher.submit([draft()]) for _ in range(3)]
    committing = asyncio.create_task(publisher.run_once())
    await asyncio.sleep(0)
    committing.cancel()
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    await asyncio.gather(committing, return_exceptions=True)


# --- on every database ---------------------------------------------------------------------------


@pytest.mark.databases("sqlite", "postgresql", "mysql")
async def test_concurrent_publishes_share_commits_on_every_database(
    open_bus: OpenBus, own_tables: dict[str, str]
) -> None:
    bus = await open_bus()
    commits: list[int] = []
    publisher = Publisher(bus.node.store, note_in(commits))
    publisher.open()
    async with running(publisher):
        answers = await asyncio.gather(*(publisher.submit([draft()]) for _ in range(500)))
    assert len(commits) <= 3
    assert sorted(answer[0].seq or 0 for answer in answers) == list(range(1, 501))
