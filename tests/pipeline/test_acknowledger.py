"""The acknowledger marks many acks in one commit and answers each caller for its own."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from eventbus_fastapi.errors import AckMismatch, NotFound, NotRunning, StoreError
from eventbus_fastapi.pipeline import acknowledger as acknowledgers
from eventbus_fastapi.pipeline.acknowledger import Acknowledger
from eventbus_fastapi.store import Ack, Store
from tests.drafts import drafts

LATER = 2**62
"""A time after every ack."""


@pytest.fixture
def acknowledger(store: Store) -> Acknowledger:
    return Acknowledger(store)


async def test_acks_of_many_callers_are_one_commit(store: Store, acknowledger: Acknowledger) -> None:
    await store.append(drafts(20))
    answers = [acknowledger.submit([Ack(seq)]) for seq in range(1, 21)]
    assert await acknowledger.run_once() is None
    assert [answer.result() for answer in answers] == [1] * 20
    assert await store.processed(0, 20, LATER) == set(range(1, 21))


async def test_the_answer_counts_what_is_processed_now(store: Store, acknowledger: Acknowledger) -> None:
    await store.append(drafts(3))
    await store.acknowledge([Ack(2)])
    answer = acknowledger.submit([Ack(1), Ack(2), Ack(3)])
    await acknowledger.run_once()
    assert answer.result() == 3


async def test_a_refused_ack_fails_its_caller_and_no_other(store: Store, acknowledger: Acknowledger) -> None:
    await store.append(drafts(3))
    good = acknowledger.submit([Ack(1)])
    missing = acknowledger.submit([Ack(2), Ack(99)])
    mistaken = acknowledger.submit([Ack(3, uuid4())])
    await acknowledger.run_once()
    assert good.result() == 1
    with pytest.raises(NotFound, match="no event at seq 99"):
        missing.result()
    with pytest.raises(AckMismatch):
        mistaken.result()
    assert await store.processed(0, 3, LATER) == {1, 2}


async def test_a_commit_takes_a_bounded_number_of_acks(store: Store, acknowledger: Acknowledger) -> None:
    await store.append(drafts(3))
    half = acknowledgers.MOST_ACKS // 2 + 1
    answers = [acknowledger.submit([Ack(1)] * half) for _ in range(3)]
    assert await acknowledger.run_once() == 0
    assert [answer.done() for answer in answers] == [True, False, False]


async def test_a_caller_that_has_gone_hinders_nobody(store: Store, acknowledger: Acknowledger) -> None:
    await store.append(drafts(2))
    gone, waiting = acknowledger.submit([Ack(1)]), acknowledger.submit([Ack(2)])
    gone.cancel()
    await acknowledger.run_once()
    assert waiting.result() == 1


async def test_a_failure_of_the_database_is_every_callers(store: Store, acknowledger: Acknowledger) -> None:
    async with store.engine.begin() as connection:
        await connection.exec_driver_sql("DROP TABLE bus_processed")
    answers = [acknowledger.submit([Ack(1)]), acknowledger.submit([Ack(2)])]
    await acknowledger.run_once()
    for answer in answers:
        with pytest.raises(StoreError):
            answer.result()


async def test_at_the_end_nobody_is_left_waiting(store: Store, acknowledger: Acknowledger) -> None:
    await store.append(drafts(2))
    taken = acknowledger.submit([Ack(1)])
    committing = asyncio.create_task(acknowledger.run_once())
    await asyncio.sleep(0)
    waiting = acknowledger.submit([Ack(2)])
    committing.cancel()  # as a stop does
    await asyncio.gather(committing, return_exceptions=True)
    acknowledger.fail_waiting(NotRunning("stopped"))
    async with asyncio.timeout(5):
        for answer in (taken, waiting):
            with pytest.raises(NotRunning):
                await answer
