"""How long a client waits before it comes back. The source of randomness gives 1: every pause is the longest."""

from __future__ import annotations

import pytest

from eventbus_fastapi.backoff import FullJitter
from eventbus_fastapi.client.connection import Ending
from eventbus_fastapi.client.pauses import AT_ONCE, STEADY, Pauses

LOST = Ending("back_off", "lost", is_failure=False, lived=0.1)
RESTARTED = Ending("return", "1012", is_failure=False, lived=0.1)


@pytest.fixture
def pauses() -> Pauses:
    return Pauses(FullJitter(0.5, 30.0, random=lambda: 1.0))


def test_pauses_double_up_to_the_longest(pauses: Pauses) -> None:
    assert [pauses.after(LOST) for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_server_that_restarts_is_met_again_at_once_but_only_the_first_time(pauses: Pauses) -> None:
    assert [pauses.after(RESTARTED) for _ in range(4)] == [AT_ONCE, 1, 2, 4]


def test_after_a_connection_that_was_steady_pauses_are_short_again(pauses: Pauses) -> None:
    for _ in range(5):
        pauses.after(LOST)
    assert pauses.after(LOST._replace(lived=STEADY)) == 0.5
    assert pauses.after(LOST) == 1
    assert pauses.after(RESTARTED._replace(lived=STEADY)) == AT_ONCE


def test_what_the_server_asks_for_comes_on_top(pauses: Pauses) -> None:
    assert pauses.after(RESTARTED._replace(after=3.0)) == 3.0 + AT_ONCE


def test_coming_back_at_once_takes_no_longer_than_the_interval_that_was_set() -> None:
    assert Pauses(FullJitter(0.01, 0.05, random=lambda: 1.0)).after(RESTARTED) == 0.01
