"""What a member holds, without a socket and a clock."""

from __future__ import annotations

from uuid import uuid4

from eventbus_fastapi.events import Message
from eventbus_fastapi.pipeline.delivery import Delivery
from eventbus_fastapi.server.holdings import Holdings


def delivery(seq: int, attempt: int = 1) -> Delivery:
    message = Message(seq, uuid4(), "t", None, b"1", "application/json", None, 0)
    return Delivery(message, group_id=1, token=uuid4(), attempt=attempt)


def holding(*seqs: int, now: float = 0.0) -> Holdings:
    holdings = Holdings(ack_wait=10)
    holdings.hold([delivery(seq) for seq in seqs], now)
    return holdings


def test_what_is_released_is_no_longer_held() -> None:
    holdings = holding(1, 2)
    assert holdings.release(1) is not None
    assert holdings.release(1) is None
    assert (len(holdings), holdings.up_to(9)) == (1, [2])


def test_another_attempt_than_the_one_that_is_held_is_not_released() -> None:
    holdings = holding(1)
    assert holdings.release(1, attempt=2) is None
    assert holdings.release(1, attempt=1) is not None


def test_what_is_held_too_long_is_taken_back_once_and_counts_until_it_is_named() -> None:
    holdings = holding(1, 2, now=0)
    holdings.hold([delivery(3)], now=5)
    assert holdings.first_due == 10
    assert [each.message.seq for each in holdings.take_overdue(10)] == [1, 2]
    assert holdings.take_overdue(10) == []
    assert (len(holdings), holdings.first_due) == (3, 15)
    assert holdings.release(1) is None
    assert len(holdings) == 2
    assert holdings.up_to(9) == [2, 3]


def test_extending_begins_the_wait_anew() -> None:
    holdings = holding(1, 2)
    assert holdings.extend(1, None, now=5)
    assert [each.message.seq for each in holdings.take_overdue(10)] == [2]
    assert not holdings.extend(2, None, now=10)
    assert holdings.first_due == 15


def test_a_word_that_names_no_attempt_is_about_the_oldest() -> None:
    holdings = holding(1)
    holdings.take_overdue(10)
    holdings.hold([delivery(1, attempt=2)], now=11)
    assert holdings.release(1) is None
    released = holdings.release(1)
    assert released is not None
    assert released.attempt == 2
    assert len(holdings) == 0


def test_a_word_about_the_attempt_that_is_held_passes_over_the_one_that_was_taken_back() -> None:
    holdings = holding(1)
    holdings.take_overdue(10)
    holdings.hold([delivery(1, attempt=2)], now=11)
    assert holdings.release(1, attempt=2) is not None
    assert holdings.release(1, attempt=1) is None
    assert len(holdings) == 0


def test_what_another_node_has_got_is_not_released() -> None:
    holdings = Holdings(ack_wait=10)
    held = delivery(1)
    holdings.hold([held], 0)
    held.is_lost = True
    holdings.take_back(held)
    assert holdings.release(1) is None


def test_a_member_that_left_holds_nothing() -> None:
    holdings = holding(1, 2)
    assert [each.message.seq for each in holdings.clear()] == [1, 2]
    assert (len(holdings), holdings.first_due) == (0, None)
